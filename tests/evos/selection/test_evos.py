"""EVOS: fitness, survivors, mutants, key steps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from evos.errors import InputError
from evos.selection import EvosConfig, Feedback, Pool

NEVER_AGAIN = {"key_interval": 1000.0, "key_interval_end": 1000.0}
KERNEL = [[0, 1, 0], [1, -4, 1], [0, 1, 0]]


def slow_fitness(residual, shape) -> tuple[list[float], list[float]]:
    """Low and high fitness of one row in float64, by scipy."""
    residual = residual.double().cpu()
    grey = (residual @ torch.tensor([0.2989, 0.587, 0.114], dtype=torch.float64)).view(shape).numpy()
    high = 0.65 * ndimage.convolve(grey, KERNEL, mode="constant") ** 2
    return (4 * residual.square().mean(-1)).tolist(), high.ravel().tolist()


def fit_part(training, selection, step) -> list[set[int]]:
    fit, _ = training.selector.counts(step)
    return [set(row[:fit]) for row in selection.index.tolist()]


@settings(max_examples=60)
@given(
    rows=st.integers(1, 3),
    shape=st.sampled_from([(30,), (5, 6), (2, 3, 5), (1, 1)]),
    keep=st.floats(0.01, 1),
    share=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    crossover=st.sampled_from(["none", "add", "select"]),
    masked=st.booleans(),
    seed=st.integers(0, 9),
)
def test_every_step_between_key_steps_trains_exactly_k_distinct_usable_cells(
    train, rows, shape, keep, share, crossover, masked, seed
):
    cells = torch.Size(shape).numel()
    mask = torch.rand(rows, cells, generator=torch.Generator().manual_seed(seed)) < 0.7
    mask[:, 0] = True
    pool = Pool(rows, shape, mask=mask if masked else None)
    config = EvosConfig(keep_ratio=keep, mutation_ratio=share, crossover=crossover, **NEVER_AGAIN)
    training = train(config, pool, seed=seed)
    assert training.step(1).index is None
    usable = mask.sum(1).double().mean().item() if masked else cells
    for step in (2, 3):
        for row, points in enumerate(training.step(step).index.tolist()):
            assert len(points) == len(set(points)) == max(1, int(keep * usable + 1e-6))
            drawn = sum(bool(mask[row, cell]) for cell in points)
            assert not masked or drawn == min(len(points), int(mask[row].sum()))


def test_a_key_step_trains_on_every_cell(train):
    training = train(EvosConfig(key_interval=4.0, key_interval_end=4.0))
    keys = [(s.is_key, s.index is None) for s in training.run()]
    assert keys == [(step % 4 == 1,) * 2 for step in range(1, 13)]


def test_survivors_are_the_offspring_of_the_last_key_step(train, slow_offspring):
    training = train(EvosConfig(keep_ratio=0.6, key_interval=4.0, key_interval_end=4.0), Pool(3, (6, 7)))
    for selection in training.run():
        if selection.index is None:
            maps = [slow_fitness(row, (6, 7)) for row in training.residuals(selection.step)]
            continue
        fit, mutants = training.selector.counts(selection.step)
        assert (fit, mutants) == (25 - 12, 12)
        assert fit_part(training, selection, selection.step) == [slow_offspring(*both, fit) for both in maps]


@pytest.mark.parametrize("crossover", ["none", "add"])
def test_other_crossovers_keep_the_largest_fitness(train, crossover):
    training = train(EvosConfig(crossover=crossover, mutation_ratio=0.0, **NEVER_AGAIN), Pool(1, (6, 7)))
    training.step(1)
    low, high = slow_fitness(training.residuals(1)[0], (6, 7))
    fitness = low if crossover == "none" else [a + b for a, b in zip(low, high, strict=True)]
    expected = set(sorted(range(42), key=lambda cell: -fitness[cell])[:21])
    assert fit_part(training, training.step(2), 2) == [expected]


def test_mutants_come_from_the_unfit_and_are_uniform_among_them(train, p_value):
    pool = Pool(1500, (5, 8))
    training = train(EvosConfig(keep_ratio=0.5, **NEVER_AGAIN), pool)
    training.signal[:] = training.signal[0].clone()
    training.step(1)
    index = training.step(2).index
    fit, mutants = training.selector.counts(2)
    assert (fit, mutants) == (10, 10)
    survivors = set(index[0, :fit].tolist())
    assert all(set(row) == survivors for row in index[:, :fit].tolist())
    rest = [cell for cell in range(40) if cell not in survivors]
    assert 1e-3 < p_value(index[:, fit:], rest) < 1 - 1e-3


def test_mutants_are_drawn_anew_in_every_step_while_survivors_stay(train):
    training = train(EvosConfig(**NEVER_AGAIN), Pool(1, (20, 20)))
    training.step(1)
    one, other = training.step(2).index[0].tolist(), training.step(3).index[0].tolist()
    assert one[:100] == other[:100] and set(one[100:]) != set(other[100:])


def test_a_mutation_ratio_of_zero_is_all_survivors_and_of_one_none(train, p_value):
    pool = Pool(1500, (5, 4))
    none, all_ = (train(EvosConfig(mutation_ratio=share, **NEVER_AGAIN), pool) for share in (0.0, 1.0))
    assert (none.selector.counts(2), all_.selector.counts(2)) == ((10, 0), (0, 10))
    for training in (none, all_):
        training.step(1)
    assert torch.equal(none.step(2).index, none.step(3).index)
    assert 1e-3 < p_value(all_.step(2).index, range(20)) < 1 - 1e-3


def test_counts_follow_the_schedules_of_both_ratios(train):
    config = EvosConfig(keep_ratio=0.2, keep_schedule="step", mutation_schedule="linear", mutation_ratio_end=1.0)
    selector = train(config, Pool(1, (100,)), steps=10).selector
    mutants = [int(20 * (0.5 + 0.05 * step) + 1e-6) for step in range(1, 11)]
    assert [selector.counts(step) for step in range(1, 11)] == [
        (20 + 8 * (step - 1) - m, m) for step, m in enumerate(mutants, 1)
    ]
    shrinking = EvosConfig(keep_ratio=1.0, keep_schedule="reverse-cosine", mutation_ratio=1.0)
    assert train(shrinking, Pool(1, (100,)), steps=10).selector.counts(10)[0] == 0


def test_a_keep_ratio_of_one_keeps_everything(train):
    training = train(EvosConfig(keep_ratio=1.0, **NEVER_AGAIN))
    training.step(1)
    assert all(sorted(row) == list(range(42)) for row in training.step(2).index.tolist())


def test_the_residuals_of_masked_cells_move_the_rank_of_none(train):
    """Nor by the Laplacian of their neighbours."""
    mask = torch.arange(42)[None] % 4 > 0
    orders = []
    for wild in (0.0, 9.0):
        training = train(EvosConfig(**NEVER_AGAIN), Pool(1, (6, 7), mask=mask))
        training.signal[~mask] = 0.5 + wild
        training.step(1)
        orders.append(training.selector.order[0, : int(mask.sum())])
    assert torch.equal(*orders)


def test_masked_cells_have_no_part_in_the_parents_shares(train, slow_offspring):
    """The offspring are those of the usable cells alone; for the Laplacian, masked residuals are 0."""
    mask = torch.arange(42)[None] % 4 > 0
    training = train(EvosConfig(keep_ratio=0.8, **NEVER_AGAIN), Pool(1, (6, 7), mask=mask))
    training.step(1)
    low, high = slow_fitness(training.residuals(1)[0].cpu() * mask[0, :, None], (6, 7))
    usable = [cell for cell in range(42) if cell % 4]
    fit, _ = training.selector.counts(2)
    offspring = slow_offspring([low[cell] for cell in usable], [high[cell] for cell in usable], fit)
    assert fit_part(training, training.step(2), 2) == [{usable[place] for place in offspring}]


def test_views_of_a_stack_are_no_neighbours(train, slow_offspring):
    training = train(EvosConfig(keep_ratio=0.6, **NEVER_AGAIN), Pool(1, (2, 3, 7)))
    training.step(1)
    views = [slow_fitness(view, (3, 7)) for view in training.residuals(1)[0].view(2, 21, 3)]
    low, high = ([value for view in views for value in view[kind]] for kind in (0, 1))
    fit, _ = training.selector.counts(2)
    assert fit_part(training, training.step(2), 2) == [slow_offspring(low, high, fit)]


def test_selecting_some_rows_leaves_the_others_untouched(train):
    training = train(EvosConfig(**NEVER_AGAIN), Pool(4, (6, 7)))
    training.step(1)
    selector, rows = training.selector, torch.tensor([3, 1], device=training.device)
    before = [selector.order.clone(), selector.cache.residual.clone()]
    training.residuals = lambda step: training.signal.square()
    selection = selector.select(1001, rows)
    assert selection.is_key
    selector.observe(selection, Feedback(training.residuals(1)[rows]))
    for old, new in zip(before, [selector.order, selector.cache.residual], strict=True):
        assert torch.equal(old[[0, 2]], new[[0, 2]])
        assert not torch.equal(old[[1, 3]], new[[1, 3]])
    assert torch.equal(selector.cache.residual[rows], training.residuals(1)[rows])


def test_a_batch_of_rows_survives_like_its_rows_one_by_one(train):
    config = EvosConfig(mutation_ratio=0.0, **NEVER_AGAIN)
    together, apart = train(config, Pool(3, (6, 7))), train(config, Pool(3, (6, 7)))
    together.step(1)
    for row in (2, 0, 1):
        apart.step(1, torch.tensor([row], device=apart.device))
    assert torch.equal(together.step(2).index, apart.step(2).index)


def test_rows_that_were_never_ranked_have_survivors_drawn_uniformly_from_their_usable_cells(train, p_value):
    mask = torch.arange(24).expand(1500, 24) % 5 > 0
    training = train(EvosConfig(mutation_ratio=0.0, **NEVER_AGAIN), Pool(1500, (4, 6), mask=mask))
    usable = [cell for cell in range(24) if cell % 5]
    assert 1e-3 < p_value(training.step(2).index, usable) < 1 - 1e-3


def test_bad_options_are_refused_by_name():
    bad = {
        "crossover": "slect",
        "laplacian_weight": -1.0,
        "mutation_ratio": 1.5,
        "mutation_schedule": "cosine",
        "key_interval": 0.5,
        "key_interval_end": 0.0,
    }
    for name, value in bad.items():
        with pytest.raises(InputError, match=f"^{name}: got"):
            EvosConfig(**{name: value})
    with pytest.raises(InputError, match=r"^mutation_ratio: got 0"):
        EvosConfig(mutation_schedule="exp", mutation_ratio=0.0)
