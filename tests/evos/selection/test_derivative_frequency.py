"""EVOS that ranks the high frequencies by the residual of derivatives."""

import pytest
import torch

from evos.errors import InputError
from evos.selection import EvosConfig, Pool, build_selector

ALWAYS = {"key_interval": 1.0, "key_interval_end": 1.0, "frequency": "derivative"}


def select_and_observe(selector, steps, shape, axes):
    """Random residuals and derivative residuals for each step's points; yields both as whole maps "R P ..."."""
    rows, cells = selector.pool.rows, selector.pool.cells
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        residual = torch.rand(rows, cells, 3, generator=generator) - 0.5
        slopes = torch.rand(rows, cells, 3, axes, generator=generator) - 0.5
        selection = selector.select(step)
        own = slice(None) if selection.index is None else selection.index
        place = (torch.arange(rows)[:, None], own) if selection.index is not None else slice(None)
        selector.observe(selection, residual[place], derivative_residual=slopes[place])
        yield selection, residual, slopes


@pytest.mark.parametrize("shape", [(30,), (5, 6)])
def test_the_high_frequency_fitness_is_the_squared_derivative_error(shape):
    config = EvosConfig(laplacian_weight=0.4, **ALWAYS)
    selector = build_selector(config, Pool(2, shape), total_steps=9, device="cpu")
    ((_, residual, slopes),) = select_and_observe(selector, [1], shape, len(shape))
    low, high = selector.fitness(torch.arange(2))
    for row in range(2):
        for cell in range(30):
            error = slopes[row, cell].double().square()
            assert float(high[row, cell]) == pytest.approx(0.4 * float(error.sum()) / 3, rel=1e-5)
            assert float(low[row, cell]) == pytest.approx(4 * float(residual[row, cell].square().mean()), rel=1e-5)


def test_streaming_keeps_the_last_derivative_error_of_each_cell():
    config = EvosConfig(evaluation="streaming", keep_ratio=0.4, **ALWAYS)
    selector = build_selector(config, Pool(2, (40,)), total_steps=9, device="cpu")
    expected = torch.zeros(2, 40)
    for selection, _, slopes in select_and_observe(selector, range(1, 4), (40,), 1):
        for row, points in enumerate(selection.index.tolist()):
            for cell in points:
                expected[row, cell] = 0.65 * slopes[row, cell].square().sum() / 3
    torch.testing.assert_close(selector.fitness(torch.arange(2))[1], expected)
    assert 0 < int((expected == 0).sum()) < 80


def test_survivors_are_where_derivatives_are_wrong():
    """Values are right everywhere, derivatives wrong in five cells: these survive."""
    config = EvosConfig(keep_ratio=0.2, mutation_share=0.0, crossover="add", **{**ALWAYS, "key_interval": 5.0})
    selector = build_selector(config, Pool(1, (25,)), total_steps=9, device="cpu")
    selection = selector.select(1)
    slopes = torch.zeros(1, 25, 1, 1)
    slopes[0, [3, 4, 11, 17, 24]] = 0.1
    selector.observe(selection, torch.zeros(1, 25, 1), derivative_residual=slopes)
    assert sorted(selector.select(2).index[0].tolist()) == [3, 4, 11, 17, 24]


def test_the_derivative_errors_are_part_of_the_state():
    pool, config = Pool(1, (5, 6)), EvosConfig(**ALWAYS)
    one, other = (build_selector(config, pool, total_steps=9, device="cpu", seed=seed) for seed in (0, 1))
    list(select_and_observe(one, [1, 2], (5, 6), 2))
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.fitness(other.all_rows)[1], one.fitness(one.all_rows)[1])
    assert torch.equal(other.select(3, None).rows, one.select(3, None).rows)


def test_a_training_without_derivatives_is_told_so():
    selector = build_selector(EvosConfig(**ALWAYS), Pool(1, (9,)), total_steps=9, device="cpu")
    with pytest.raises(InputError, match="frequency: got derivative; allowed: laplacian"):
        selector.observe(selector.select(1), torch.zeros(1, 9, 1))
    with pytest.raises(InputError, match="did you mean laplacian"):
        EvosConfig(frequency="laplace")
