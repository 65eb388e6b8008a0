"""Pools, selections and counts."""

import itertools

import pytest
import torch

from evos.errors import InputError
from evos.selection import Pool, Selection, UniformConfig


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_a_pool_counts_its_cells_and_takes_the_laplacian_over_at_most_two_axes():
    assert [(Pool(3, shape).cells, Pool(3, shape).grid_axes) for shape in [(5,), (4, 5), (2, 4, 5)]] == [
        (5, 1),
        (20, 2),
        (40, 2),
    ]
    assert Pool(1, (3, 8), axes=1).grid_axes == 1


def test_pools_that_make_no_sense_are_refused():
    for rows, shape in [(0, (4,)), (1, ()), (1, (4, 0))]:
        with pytest.raises(InputError, match="pool"):
            Pool(rows, shape)
    with pytest.raises(InputError, match="mask"):
        Pool(2, (4,), mask=torch.ones(2, 5, dtype=torch.bool))
    with pytest.raises(InputError, match="mask: got a row without a single usable cell"):
        Pool(2, (2,), mask=torch.tensor([[True, False], [False, False]]))
    with pytest.raises(InputError, match=r"mask: got torch.float32; allowed: torch.bool"):
        Pool(2, (2,), mask=torch.ones(2, 2))
    for axes, shape in [(-1, (4, 5)), (0, (4,)), (2, (4,)), (4, (2, 3, 4))]:
        with pytest.raises(InputError, match=f"axes: got {axes}; allowed: 1 to {len(shape)}"):
            Pool(1, shape, axes=axes)


def test_selections_and_pools_can_be_compared():
    one = Selection(torch.arange(2), torch.zeros(2, 3, dtype=torch.long))
    assert one == one and one != Selection(one.rows, one.index)
    pool = Pool(1, (4,), mask=torch.ones(1, 4, dtype=torch.bool))
    assert pool == pool and pool != Pool(1, (4,))


def test_one_row_of_few_usable_cells_does_not_shrink_the_others(train):
    mask = torch.ones(4, 40, dtype=torch.bool)
    mask[3, 1:] = False
    training = train(UniformConfig(keep_ratio=0.5), Pool(4, (5, 8), mask=mask))
    selection = training.step(1)
    assert selection.index.shape == (4, 15)  # half of (3 · 40 + 1) / 4
    assert torch.equal(selection.weight[:3], torch.ones_like(selection.weight[:3]))
    assert selection.weight[3].sort().values.tolist() == pytest.approx([0.0] * 14 + [15.0])
    assert selection.index[3, selection.weight[3].argmax()] == 0


@pytest.mark.parametrize("name", ["uniform", "egra", "expansive", "soft", "tiles"])
def test_a_number_of_points_can_be_asked_for(train, name):
    training = train(name)
    assert training.selector.select(1, count=17).index.shape == (2, 17)


def test_points_cannot_be_drawn_where_all_cells_are_trained_on(train):
    with pytest.raises(InputError, match="selector: got evos; allowed: one that does not train on every cell"):
        train("evos").selector.select(1, count=5)


def test_gather_takes_the_selected_points_of_the_selected_rows():
    values, rows = noise(3, 5, 2), torch.tensor([2, 0])
    index = torch.tensor([[4, 1, 1], [0, 3, 2]])
    picked = Selection(rows, index).gather(values)
    shared = Selection(rows, index).gather(values[0])
    for b, k in itertools.product(range(2), range(3)):
        assert torch.equal(picked[b, k], values[rows[b], index[b, k]])
        assert torch.equal(shared[b, k], values[0, index[b, k]])
    assert torch.equal(Selection(rows, None).gather(values), values[rows])
    assert torch.equal(Selection(rows, None).gather(values[:1]), values[:1].repeat(2, 1, 1))


def test_reduce_is_the_weighted_mean_over_points():
    error, weight, rows = noise(2, 3, seed=1), noise(2, 3, seed=2), torch.arange(2)
    assert Selection(rows, None).reduce(error).item() == pytest.approx(sum(error.flatten().tolist()) / 6)
    expected = sum(e * w for e, w in zip(error.flatten().tolist(), weight.flatten().tolist(), strict=True)) / 6
    assert Selection(rows, None, weight).reduce(error).item() == pytest.approx(expected)


def test_uniform_draws_are_uniform(train, p_value):
    training = train(UniformConfig(keep_ratio=0.3), Pool(2000, (5, 4)))
    assert 1e-3 < p_value(training.step(1).index, range(20)) < 1 - 1e-3


def test_the_number_of_points_is_the_fraction_of_the_usable_cells_and_at_least_one(train):
    mask = torch.ones(2, 40, dtype=torch.bool)
    mask[0, :10] = False
    assert train(UniformConfig(keep_ratio=0.1), Pool(2, (5, 8), mask=mask)).step(1).index.shape == (2, 3)  # of 35
    assert train(UniformConfig(keep_ratio=0.29), Pool(1, (100,))).step(1).index.shape == (1, 29)
    assert train(UniformConfig(keep_ratio=0.001), Pool(1, (100,))).step(1).index.shape == (1, 1)
    climbing = train(UniformConfig(keep_ratio=0.2, keep_schedule="step"), Pool(1, (100,)), steps=10)
    assert [selection.index.shape[1] for selection in climbing.run()] == list(range(20, 100, 8))
