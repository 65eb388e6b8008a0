"""EVOS: fitness, survivors, mutants, streaming, budgets and adaptive pressure."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.stats import chisquare

from evos.errors import InputError
from evos.selection import EvosConfig, Pool, Selection, build_selector

NEVER_AGAIN = {"key_interval": 1000.0, "key_interval_end": 1000.0}
EVERY_STEP = {"key_interval": 1.0, "key_interval_end": 1.0}
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
    config = EvosConfig(keep_ratio=keep, mutation_share=share, crossover=crossover, **NEVER_AGAIN)
    training = train(config, pool, seed=seed)
    assert training.step(1).index is None
    usable = int(mask.sum(1).min()) if masked else cells
    for step in (2, 3):
        for row, points in enumerate(training.step(step).index.tolist()):
            assert len(points) == len(set(points)) == max(1, int(keep * usable + 1e-6))
            assert not masked or all(mask[row, cell] for cell in points)


def test_a_dense_key_step_trains_everything(train):
    training = train(EvosConfig(budget=4, key_interval=4.0, key_interval_end=4.0))
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
    training = train(EvosConfig(crossover=crossover, mutation_share=0.0, **NEVER_AGAIN), Pool(1, (6, 7)))
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


def test_a_mutation_share_of_zero_is_all_survivors_and_of_one_none(train, p_value):
    pool = Pool(1500, (5, 4))
    none, all_ = (train(EvosConfig(mutation_share=share, **NEVER_AGAIN), pool) for share in (0.0, 1.0))
    assert (none.selector.counts(2), all_.selector.counts(2)) == ((10, 0), (0, 10))
    for training in (none, all_):
        training.step(1)
    assert torch.equal(none.step(2).index, none.step(3).index)
    assert 1e-3 < p_value(all_.step(2).index, range(20)) < 1 - 1e-3


def test_counts_follow_the_schedules_of_both_shares(train):
    config = EvosConfig(keep_ratio=0.2, keep_schedule="step", mutation_schedule="linear", mutation_share_end=1.0)
    selector = train(config, Pool(1, (100,)), steps=10).selector
    mutants = [int(20 * (0.5 + 0.05 * step) + 1e-6) for step in range(1, 11)]
    assert [selector.counts(step) for step in range(1, 11)] == [
        (20 + 8 * (step - 1) - m, m) for step, m in enumerate(mutants, 1)
    ]
    shrinking = EvosConfig(keep_ratio=1.0, keep_schedule="reverse-cosine", mutation_share=1.0)
    assert train(shrinking, Pool(1, (100,)), steps=10).selector.counts(10)[0] == 0


def test_a_keep_ratio_of_one_keeps_everything(train):
    training = train(EvosConfig(keep_ratio=1.0, **NEVER_AGAIN))
    training.step(1)
    assert all(sorted(row) == list(range(42)) for row in training.step(2).index.tolist())


def test_rows_that_were_never_ranked_have_survivors_drawn_uniformly_from_their_usable_cells(train, p_value):
    mask = torch.arange(24).expand(1500, 24) % 5 > 0
    training = train(EvosConfig(mutation_share=0.0, **NEVER_AGAIN), Pool(1500, (4, 6), mask=mask))
    usable = [cell for cell in range(24) if cell % 5]
    assert 1e-3 < p_value(training.step(2).index, usable) < 1 - 1e-3


def test_bad_options_are_refused_by_name():
    bad = {
        "crossover": "slect",
        "laplacian_weight": -1.0,
        "mutation_share": 1.5,
        "mutation_schedule": "cosine",
        "key_schedule": "step",
        "key_interval": 0.5,
        "evaluation": "sparse",
        "budget": 0,
    }
    for name, value in bad.items():
        with pytest.raises(InputError, match=f"^{name}: got"):
            EvosConfig(**{name: value})
    with pytest.raises(InputError, match=r"^mutation_share: got 0"):
        EvosConfig(mutation_schedule="exp", mutation_share=0.0)


# ---- streaming -----------------------------------------------------------------------------------------------------


def streaming(**options) -> EvosConfig:
    return EvosConfig(**{"keep_ratio": 0.25, "mutation_share": 0.0, "evaluation": "streaming", **options})


def test_unseen_cells_come_first_and_then_the_fittest(train, slow_offspring):
    training = train(streaming(**EVERY_STEP), Pool(1, (6, 7)))
    signal = training.residuals(1)
    training.residuals = lambda step: signal  # errors stay, so that the cache is the whole map once all is seen
    points = [training.step(step).index[0].tolist() for step in range(1, 7)]
    assert len(set().union(*points[:4])) == 40
    assert set().union(*points[:5]) == set(range(42))
    assert set(points[5]) == slow_offspring(*slow_fitness(signal[0], (6, 7)), 10)


def test_which_unseen_cells_come_first_is_random(train, p_value):
    training = train(streaming(**EVERY_STEP), Pool(1500, (5, 4)))
    first, second = training.step(1).index, training.step(2).index
    assert 1e-3 < p_value(first, range(20)) < 1 - 1e-3
    assert all(not set(a) & set(b) for a, b in zip(first.tolist(), second.tolist(), strict=True))


def test_between_key_steps_the_order_stands_and_key_steps_rank_anew(train, slow_offspring):
    training = train(streaming(keep_ratio=0.5, key_interval=4.0, key_interval_end=4.0, mutation_share=0.5))
    ranked = None
    for step in range(1, 13):
        cached = training.selector.cache.read(training.selector.all_rows).clone()
        seen = training.selector.cache.seen.all()
        selection = training.step(step)
        assert selection.is_key == (step % 4 == 1) and selection.index.shape == (2, 21)
        survivors = fit_part(training, selection, step)
        if not selection.is_key:
            assert survivors == ranked
        elif seen:
            assert survivors == [slow_offspring(*slow_fitness(row, (6, 7)), 11) for row in cached]
        ranked = survivors
    assert seen


def test_selecting_some_rows_leaves_the_others_untouched(train):
    training = train(streaming(**EVERY_STEP), Pool(4, (6, 7)))
    training.step(1)
    selector, rows = training.selector, torch.tensor([3, 1], device=training.device)
    before = [selector.order.clone(), selector.cache.residual.clone(), selector.cache.seen.clone()]
    selection = training.step(2, rows)
    after = [selector.order, selector.cache.residual, selector.cache.seen]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[[0, 2]], new[[0, 2]])
        assert not torch.equal(old[[1, 3]], new[[1, 3]])
    picked = selector.cache.residual[rows[:, None], selection.index]
    assert torch.equal(picked, selection.gather(training.residuals(2)))


def test_a_batch_of_rows_survives_like_its_rows_one_by_one(train):
    config = streaming(**EVERY_STEP)
    together, apart = train(config, Pool(3, (6, 7))), train(config, Pool(3, (6, 7)))
    for training in (together, apart):  # all seen: nothing is random without mutants
        training.selector.cache.seen[:] = True
        training.selector.cache.residual = training.residuals(1).clone()
    rows = [torch.tensor([row], device=together.device) for row in (2, 0)]
    batch = together.selector.select(2, torch.cat(rows)).index
    assert torch.equal(batch, torch.cat([apart.selector.select(2, row).index for row in rows]))


# ---- budgets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_a_budget_is_drawn_from_survivors_and_the_rest_in_their_shares(train, masked, p_value):
    mask = torch.arange(60) % 6 > 0 if masked else None
    usable = [cell for cell in range(60) if mask is None or mask[cell]]
    pool = Pool(1, (6, 10), mask=None if mask is None else mask[None])
    training = train(EvosConfig(keep_ratio=0.4, mutation_share=0.25, budget=40_000, **NEVER_AGAIN), pool)
    training.step(1)
    kept = int(0.4 * len(usable) + 1e-6)
    mutants = int(0.25 * 0.4 * len(usable) + 1e-6)
    survivors = training.selector.order[0, : kept - mutants].tolist()
    drawn = training.step(2).index[0].cpu()
    split = round(40_000 * (kept - mutants) / kept)
    for part, cells in [(drawn[:split], survivors), (drawn[split:], sorted(set(usable) - set(survivors)))]:
        assert 1e-3 < p_value(part[:, None], cells) < 1 - 1e-3


def test_a_budget_without_mutants_or_without_survivors_draws_from_one_side_only(train):
    for share in (0.0, 1.0):
        training = train(EvosConfig(mutation_share=share, budget=500, **NEVER_AGAIN))
        training.step(1)
        fittest = training.selector.order[:, :21]
        drawn = training.step(2).index
        survivors = [set(row) for row in fittest.tolist()]
        if share == 0:
            assert all(set(row) == fit for row, fit in zip(drawn.tolist(), survivors, strict=True))
        else:
            assert all(set(row) == set(range(42)) for row in drawn.tolist())


def adaptive(share, cells=400, budget=1000, **options):
    """A selector that has seen an error of 1 in the first ``share`` of the cells, and none elsewhere."""
    config = EvosConfig(adapt=True, budget=budget, evaluation="streaming", key_schedule="fixed", key_interval=1.0)
    config = replace(config, **options)
    one = build_selector(config, Pool(1, (20, cells // 20)), total_steps=100, device="cpu")
    residual = (torch.arange(cells) < share * cells).float()[None, :, None]
    one.observe(Selection(one.all_rows, None, is_key=True, step=1), residual)
    return one


@pytest.mark.parametrize("share", [0.1, 0.35, 0.5])
def test_adaptive_pressure_follows_the_concentration_of_the_error(share):
    one = adaptive(share, laplacian_weight=0.0, keep_ratio=0.08, mutation_share=0.25, budget=10_000)
    index = one.select(2).index[0]
    # Equal errors in a share s of the cells have the effective sample size s.
    assert one.spread.item() == pytest.approx(share)
    kept, mutated = (max((share / 0.6) ** 4, least) for least in (0.08, 0.25))
    fit, survivors = round(kept * (1 - mutated) * 400), round(10_000 * (1 - mutated))
    assert torch.equal(index[:survivors].unique(), one.order[0, :fit].sort().values)
    assert (index[:survivors] < share * 400).all()
    assert not torch.isin(index[survivors:], one.order[0, :fit]).any()


def test_errors_alike_everywhere_give_a_uniform_batch():
    one = adaptive(1.0, budget=40_000)
    counts = torch.bincount(one.select(2).index[0], minlength=400)
    assert one.budget_counts(2, one.all_rows)[1].item() == 0
    assert chisquare(counts).pvalue > 0.001


# ---- adaptive batches: without a budget ---------------------------------------------------------------------------


def adaptive_batch(share, seed=0, **options):
    """Like ``adaptive``: kept 100 of 400 cells, of which at full pressure 40 are mutants."""
    return adaptive(share, budget=None, keep_ratio=0.25, mutation_share=0.4, laplacian_weight=0.0, **options)


@pytest.mark.parametrize("evaluation", ["dense", "streaming"])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.15, 0.2, 0.3, 0.6, 1.0])
def test_as_many_places_go_to_the_fittest_as_the_concentration_of_the_error_says(share, evaluation):
    """All from s = 0.1 down, none from 0.3 up, and in between linear in log s."""
    one = adaptive_batch(share, evaluation=evaluation, key_interval=3.0)
    index = one.select(3 if evaluation == "dense" else 4).index
    assert one.spread.item() == pytest.approx(share)
    expected = 60 * min(1.0, max(0.0, math.log(0.3 / share) / math.log(3)))
    fit = int(expected + 1e-4)
    assert index.shape == (1, 100) and len(set(index[0].tolist())) == 100
    assert set(index[0, :fit].tolist()) == set(one.order[0, :fit].tolist())
    assert int((index < share * 400).sum()) >= min(fit, share * 400)


def test_even_errors_give_a_uniform_batch_and_concentrated_ones_a_uniform_rest(p_value):
    for share, fit in ((0.5, 0), (0.1, 60)):
        config = EvosConfig(keep_ratio=0.25, mutation_share=0.4, adapt=True, laplacian_weight=0.0)
        one = build_selector(config, Pool(800, (20, 20)), total_steps=10, device="cpu")
        error = (torch.arange(400) < share * 400).float().expand(800, -1)
        one.observe(one.select(1), error[..., None])
        index = one.select(2).index
        top = set(one.order[0, :fit].tolist())
        assert len(top) == fit and all(set(row[:fit]) == top for row in index.tolist())
        assert 1e-3 < p_value(index[:, fit:], [cell for cell in range(400) if cell not in top]) < 1 - 1e-3


def test_adaptive_weights_of_a_batch_undo_the_selection():
    one = adaptive_batch(0.1, importance_cap=1000.0)
    weight = one.select(2).weight[0]
    assert torch.allclose(weight[:60], torch.tensor(60 / 400 * 100 / 60))
    assert torch.allclose(weight[60:], torch.tensor(340 / 400 * 100 / 40))


# ---- draws in proportion to the error ------------------------------------------------------------------------------


@pytest.mark.parametrize("mutation_share", [0.0, 1.0])
def test_proportional_draws_follow_the_error_and_mutants_do_not(mutation_share):
    """One cell a row, 20,000 rows: the frequencies are the odds."""
    config = EvosConfig(
        keep_ratio=0.1, mutation_share=mutation_share, draw="proportional", crossover="none", importance_cap=9.0
    )
    one = build_selector(config, Pool(20_000, (2, 5)), total_steps=10, device="cpu")
    error = torch.arange(1.0, 11.0)
    one.observe(one.select(1), error.expand(20_000, -1)[..., None])
    selection = one.select(2)
    expected = torch.full((10,), 0.1).double() if mutation_share else error.double() / 55
    counts = torch.bincount(selection.index[:, 0], minlength=10)
    assert chisquare(counts, 20_000 * expected).pvalue > 1e-3
    torch.testing.assert_close(selection.weight, (0.1 / expected).float().clamp(1 / 9, 9)[selection.index])


@pytest.mark.parametrize(("share", "pressed"), [(0.05, 1.0), (0.5, 0.0)])
def test_adaptive_odds_are_uniform_until_the_error_is_concentrated(share, pressed):
    one = adaptive_batch(share, draw="proportional", evaluation="streaming")
    index = one.select(2).index
    large = torch.arange(400) < share * 400
    fit = 0.6 * pressed  # 1 - mutation_share
    expected = torch.where(large, 1 - fit + fit / share, 1 - fit)
    torch.testing.assert_close(one.odds(2, one.all_rows)[0], expected)
    assert len(set(index[0].tolist())) == 100


def test_unseen_cells_have_the_odds_of_mean_ones():
    config = EvosConfig(draw="proportional", evaluation="streaming", mutation_share=0.0, crossover="none")
    one = build_selector(config, Pool(1, (10,)), total_steps=10, device="cpu")
    assert one.odds(1, one.all_rows).tolist() == [[1.0] * 10]
    one.observe(Selection(one.all_rows, torch.tensor([[2, 3]])), torch.tensor([[[1.0], [3.0]]]))
    expected = torch.ones(1, 10)
    expected[0, 2:4] = torch.tensor([0.5, 1.5])
    torch.testing.assert_close(one.odds(2, one.all_rows), expected)
    with pytest.raises(InputError, match="draw: got proportional; allowed: top with a budget"):
        replace(config, budget=3)


def test_adaptive_weights_undo_the_selection():
    one = adaptive(0.5, importance_cap=1000.0, laplacian_weight=0.0, budget=4000)
    selection = one.select(2)
    fit, survivors = (count.item() for count in one.budget_counts(2, one.all_rows))
    weight = selection.weight[0]
    assert torch.allclose(weight[:survivors], torch.tensor(fit / 400 * 4000 / survivors))
    assert torch.allclose(weight[survivors:], torch.tensor((1 - fit / 400) * 4000 / (4000 - survivors)))
    assert weight.sum().item() == pytest.approx(4000, rel=1e-4)
