"""EVOS over tiles: adaptive pressure, draws, warm-up, rankings and what they go by."""

import pytest
import torch
from scipy import ndimage
from scipy.stats import chisquare

from evos.errors import InputError
from evos.selection import Feedback, Pool, Selection, TilesConfig, build_selector

NO_WARMUP = {"warmup_steps": 0, "rank_interval": 1, "pooling": 1e-6}


def seen(ratio, cells=400, mask=None, device="cpu", **options):
    """A selector that has seen an error of 1 in the first ``ratio`` of the cells, and none elsewhere."""
    config = TilesConfig(**{**NO_WARMUP, **options})
    pool = Pool(1, (20, cells // 20), mask=mask)
    one = build_selector(config, pool, total_steps=100, device=device)
    residual = (torch.arange(cells) < ratio * cells).float()[None, :, None]
    one.observe(Selection(one.all_rows, None, step=1), Feedback(residual))
    return one


@pytest.mark.parametrize("ratio", [0.1, 0.35, 0.5])
def test_pressure_follows_the_concentration_of_the_error(ratio):
    one = seen(ratio, laplacian_weight=0.0, keep_ratio=0.08, mutation_ratio=0.25)
    index = one.select(2, count=10_000).index[0]
    # Equal errors in a fraction s of the cells have the effective sample fraction s.
    assert one.evenness.item() == pytest.approx((ratio / 0.6) ** 4, rel=1e-4)
    kept, mutated = (max((ratio / 0.6) ** 4, least) for least in (0.08, 0.25))
    fit, survivors = round(kept * (1 - mutated) * 400), round(10_000 * (1 - mutated))
    assert torch.equal(index[:survivors].unique(), one.order[0, :fit].sort().values)
    assert (index[:survivors] < ratio * 400).all()
    assert not torch.isin(index[survivors:], one.order[0, :fit]).any()
    metrics = {name: value.item() for name, value in one.metrics().items()}
    expected = {"survivor_ratio": survivors / 10_000, "mutant_ratio": 1 - survivors / 10_000}
    assert metrics == pytest.approx(expected)


def test_errors_alike_everywhere_give_uniform_points():
    one = seen(1.0)
    counts = torch.bincount(one.select(2, count=40_000).index[0], minlength=400)
    assert one.metrics()["survivor_ratio"].item() == 0
    assert chisquare(counts.numpy()).pvalue > 0.001


def learning(exponent, steps=100, **options):
    """A selector for which the error, in a tenth of the tiles, fell as the step to the power of -exponent."""
    one = seen(0.1, rank_interval=steps, warmup_steps=steps, **options)
    for step in range(2, steps + 1):
        selection = one.select(step, count=400)
        error = (selection.index < 40).float() * step ** (-exponent / 2)
        one.observe(selection, Feedback(error[..., None]))
    return one


@pytest.mark.parametrize(
    ("exponent", "mutants"), [(-1.0, 1.0), (0.0, 1.0), (0.3, 1 - 0.5**4), (0.55, 0.294), (0.9, 0.1)]
)
def test_where_the_error_does_not_fall_fast_enough_there_is_less_pressure(exponent, mutants):
    one = learning(exponent)
    one.select(101, count=10_000)
    assert one.metrics()["mutant_ratio"].item() == pytest.approx(mutants, abs=0.1)
    full = learning(exponent, full_exponent=0.0)
    full.select(101, count=10_000)
    assert full.metrics()["mutant_ratio"].item() == pytest.approx(0.1)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_learning_curve_is_of_all_tiles_whatever_is_drawn(weighted):
    """A wrong tenth of the tiles, or of their points, gets most of the draws, and the mean error is still a tenth."""
    cells = torch.arange(400)
    weight = torch.where(cells < 40, 2, 1 + (cells >= 60) * 2)[None] if weighted else None
    config, pool = TilesConfig(**NO_WARMUP, trim_ratio=0.0), Pool(1, (20, 20), weight=weight)
    one = build_selector(config, pool, total_steps=100, device="cpu")
    one.observe(Selection(one.all_rows, None, step=1), Feedback((cells < 40).float()[None, :, None]))
    for step in range(2, 6):
        selection = one.select(step, count=20_000)
        assert one.metrics()["survivor_ratio"].item() > 0.8
        residual = (selection.index < 40).float()[..., None]
        part = 0.1 if weight is None else weight[0, :40].sum() / weight.sum()
        assert one.mean_error(selection, residual).item() == pytest.approx(float(part), rel=0.05)
        one.observe(selection, Feedback(residual))


def test_outliers_have_no_part_in_the_learning_curve():
    one = seen(0.1, trim_ratio=0.05, trim_visits=1)
    selection = one.select(2, count=20_000)
    outlying = one.outlying[0].nonzero()[:, 0]
    assert len(outlying) == 20 and (outlying < 40).all()
    error = torch.where(torch.isin(selection.index, outlying), 1.0, 0.1)
    assert one.mean_error(selection, error[..., None]).item() == pytest.approx(0.01)
    one.forget(one.all_rows)
    assert not one.outlying.any() and not one.curve.any() and one.evenness.item() == 1


def test_of_however_few_draws_one_is_a_mutant():
    one = seen(0.05, mutation_ratio=0.01)
    for step in range(2, 12):
        one.select(step, count=5)
        assert one.metrics()["mutant_ratio"].item() == pytest.approx(0.2)
    without = seen(0.05, mutation_ratio=0.0)
    without.select(2, count=5)
    assert without.metrics()["mutant_ratio"].item() == 0


def test_until_the_warm_up_is_over_points_are_uniform_and_from_the_selectors_own_generator():
    draws = []
    for disturbed in (1, 2):
        torch.manual_seed(disturbed)
        one = seen(0.05, warmup_steps=3)
        draws.append([one.select(step, count=4000).index for step in (1, 2, 3)])
        assert one.metrics()["survivor_ratio"].item() == 0
        one.select(4, count=4000)
        assert one.metrics()["survivor_ratio"].item() > 0.5
    for first, second in zip(*draws, strict=True):
        assert torch.equal(first, second)
        assert chisquare(torch.bincount(first[0], minlength=400).numpy()).pvalue > 1e-3


@pytest.mark.parametrize(("warmup", "interval"), [(16, 16), (5, 4), (0, 1), (3, 7)])
def test_steps_alike_end_where_the_warm_up_does_and_where_tiles_are_ranked_anew(warmup, interval):
    config = TilesConfig(warmup_steps=warmup, rank_interval=interval)
    one = build_selector(config, Pool(1, (4, 5)), total_steps=50, device="cpu")
    changes = {warmup + 1} | {n for n in range(warmup + 1, 80) if one.ranks_at(n)}
    for step in range(1, 60):
        assert step + one.steps_alike(step) == min(n for n in changes if n > step)


def test_tiles_are_ranked_at_intervals_and_rows_of_a_batch_whenever_they_come(train):
    training = train(TilesConfig(warmup_steps=0, rank_interval=4), Pool(3, (6, 7)))
    for step in range(1, 9):
        before = training.selector.order.clone()
        training.step(step)
        assert torch.equal(before, training.selector.order) == (step % 4 != 1)
    before = training.selector.order.clone()
    training.step(10, torch.tensor([2], device=training.device))
    assert torch.equal(before[:2], training.selector.order[:2])
    assert not torch.equal(before[2], training.selector.order[2])


def test_the_fit_are_the_crossovers_of_the_running_means(train, slow_offspring):
    training = train(TilesConfig(warmup_steps=0, rank_interval=1, pooling=1e-6), Pool(1, (6, 7)))
    selector = training.selector
    residual = training.residuals(1)
    selector.observe(Selection(selector.all_rows, None, step=1), Feedback(residual))
    selector.evenness[:] = 0.0
    selector.rank(2, selector.all_rows)
    fit = int(selector.group_sizes(2, selector.all_rows, 1)[0])
    grey = residual[0].double().cpu() @ torch.tensor([0.2989, 0.587, 0.114], dtype=torch.float64)
    padded = torch.nn.functional.pad(grey.view(6, 7), (1, 1, 1, 1))
    around = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    high = 0.65 * (around - 4 * grey.view(6, 7)).square()
    low = 4 * residual[0].double().square().mean(-1)
    assert set(selector.order[0, :fit].tolist()) == slow_offspring(low.tolist(), high.flatten().tolist(), fit)


def test_masked_tiles_have_no_part_in_the_parents_shares(train, slow_offspring):
    mask = torch.arange(42)[None] % 4 > 0
    training = train(TilesConfig(warmup_steps=0, rank_interval=1, keep_ratio=0.6), Pool(1, (6, 7), mask=mask))
    selector = training.selector
    selector.observe(Selection(selector.all_rows, None, step=1), Feedback(training.residuals(1)))
    selector.rank(2, selector.all_rows)
    fit = int(selector.group_sizes(2, selector.all_rows, 1)[0])
    residual, square = (found[0].double().cpu() for found in selector.cache.errors(selector.all_rows))
    grey = (residual @ torch.tensor([0.2989, 0.587, 0.114], dtype=torch.float64)).view(6, 7).numpy()
    high = 0.65 * ndimage.convolve(grey, [[0, 1, 0], [1, -4, 1], [0, 1, 0]], mode="constant") ** 2
    usable = [cell for cell in range(42) if cell % 4]
    offspring = slow_offspring((4 * square)[usable].tolist(), high.ravel()[usable].tolist(), fit)
    assert set(selector.order[0, :fit].tolist()) == {usable[place] for place in offspring}


def test_masked_tiles_move_the_rank_of_none():
    """Neither by the errors booked on them nor by the estimates that they borrow."""
    mask = torch.ones(1, 400, dtype=torch.bool)
    mask[:, 200:] = False
    one = seen(0.1, mask=mask)
    one.rank(2, one.all_rows)
    assert one.evenness.item() == pytest.approx((0.2 / 0.6) ** 4, rel=1e-4)  # 40 of the 200 that count
    assert mask[0, one.order[0, :200]].all() and not mask[0, one.order[0, 200:]].any()
    assert mask[0, one.select(3, count=5000).index[0]].all()


def test_a_visit_that_is_not_finite_leaves_all_estimates_as_they_were():
    one, other = seen(0.2), seen(0.2)
    bad = torch.full((1, 1, 1), float("nan"))
    one.observe(Selection(one.all_rows, torch.tensor([[3]]), step=2), Feedback(bad))
    torch.testing.assert_close(one.cache.errors(one.all_rows), other.cache.errors(other.all_rows))


def test_options_are_checked():
    bad = {"mutation_ratio": 1.5, "rank_interval": 0, "warmup_steps": -1, "momentum": 1.0, "pooling": 0.0}
    bad |= {"trim_ratio": 1.5, "trim_visits": 0, "trim_views": -1.0}
    for name, value in {**bad, "crossover": "slect", "laplacian_weight": -1.0}.items():
        with pytest.raises(InputError, match=f"^{name}: got"):
            TilesConfig(**{name: value})


def visited(times, **options):
    """A selector that saw an error of 1 in the first 40 of 400 cells, twice that in the first 8, ``times`` over."""
    one = build_selector(TilesConfig(**{**NO_WARMUP, **options}), Pool(1, (20, 20)), total_steps=100, device="cpu")
    cells = torch.arange(400)
    residual = ((cells < 40).float() + (cells < 8).float())[None, :, None]
    for _ in range(times):
        one.observe(Selection(one.all_rows, None, step=1), Feedback(residual))
    one.evenness[:] = 0.0
    return one


def test_the_most_wrong_tiles_leave_the_fit_once_they_were_visited_often_enough():
    options = {"keep_ratio": 0.09, "crossover": "none"}
    for times, gone in ((3, False), (4, True)):
        one = visited(times, **options)
        one.rank(2, one.all_rows)
        assert torch.isin(torch.arange(8), one.order[0, :32]).any().item() is not gone
    # They come behind all other errors, before what is right; and mutants may still be drawn from them.
    assert set(one.order[0, 32:40].tolist()) == set(range(8))
    one.evenness[:] = 0.0
    assert torch.isin(torch.arange(8), one.select(3, count=20_000).index[0]).all()


def seen_views(**options):
    """A selector that saw six views of 16 tiles: the last is several times as wrong as the others."""
    config = TilesConfig(**{**NO_WARMUP, "keep_ratio": 0.25, "crossover": "none", "trim_ratio": 0.0, **options})
    one = build_selector(config, Pool(1, (6, 4, 4)), total_steps=100, device="cpu")
    residual = torch.linspace(0.5, 1, 96).view(6, 16) + 0.1 * torch.arange(6)[:, None]
    residual[:, 3] += 0.5
    residual[5] += 5
    one.observe(Selection(one.all_rows, None, step=1), Feedback(residual.view(1, 96, 1)))
    one.evenness[:] = 0.0
    one.rank(2, one.all_rows)
    return one


def test_a_view_that_is_far_more_wrong_than_the_others_leaves_the_fit():
    last = torch.arange(80, 96)
    assert torch.isin(seen_views(trim_views=0.0).order[0, :16], last).all()
    trimmed = seen_views()
    assert not torch.isin(trimmed.order[0, :24], last).any()
    assert torch.isin(last, trimmed.select(3, count=20_000).index[0]).all()  # mutants are still drawn from it


def test_where_cells_are_neighbours_along_all_axes_there_are_no_views_to_leave():
    config = TilesConfig(**NO_WARMUP)
    one = build_selector(config, Pool(1, (6, 4, 4), axes=3), total_steps=100, device="cpu")
    one.observe(Selection(one.all_rows, None, step=1), Feedback(torch.rand(1, 96, 1)))
    assert one.views == 1 and one.outliers(one.all_rows, torch.rand(1, 96), None).sum() == 0


def test_without_trimming_the_order_is_that_of_the_fitness_alone():
    one, other = visited(9, trim_ratio=0.0), visited(9, trim_visits=10)
    for selector in (one, other):
        selector.rank(2, selector.all_rows)
    assert torch.equal(one.order, other.order)
    assert set(one.order[0, :8].tolist()) <= set(range(40)) and 0 in one.order[0, :32]


def test_neither_masked_tiles_nor_those_forgotten_are_visited():
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[0, :5] = False
    one = build_selector(TilesConfig(**NO_WARMUP), Pool(2, (3, 4), mask=mask), total_steps=100, device="cpu")
    index = torch.tensor([[0, 6, 6, 7], [1, 1, 1, 2]])
    one.observe(Selection(one.all_rows, index, step=1), Feedback(torch.ones(2, 4, 3)))
    visits = {(row, cell): one.cache.visits[row, cell].item() for row, cell in one.cache.visits.nonzero().tolist()}
    assert visits == {(0, 6): 2, (0, 7): 1, (1, 1): 3, (1, 2): 1}
    one.forget(torch.tensor([1]))
    assert one.cache.visits.sum(1).tolist() == [3, 0]


def test_tiles_of_one_point_each_are_drawn_and_ranked_as_tiles_without_weights():
    mask = torch.ones(1, 400, dtype=torch.bool)
    mask[:, 390:] = False
    draws = []
    for weight in (None, mask.long()):
        pool = Pool(1, (20, 20), mask=mask, weight=weight)
        one = build_selector(TilesConfig(**NO_WARMUP), pool, total_steps=100, device="cpu")
        residual = torch.linspace(1, 0, 400)[None, :, None].pow(8)
        one.observe(Selection(one.all_rows, None, step=1), Feedback(residual))
        draws.append(one.select(2, count=3000).index)
        assert one.metrics()["survivor_ratio"] > 0.5
    assert torch.equal(*draws)


def test_the_fit_are_a_fraction_of_the_points_however_few_of_them_a_wrong_tile_has():
    """The wrong half of the tiles has one point each, the other half 99: a hundredth of all points."""
    cells = torch.arange(400)
    weight = torch.where(cells < 200, 1, 99)[None]
    options = {**NO_WARMUP, "crossover": "none", "keep_ratio": 0.1, "mutation_ratio": 0.2}
    one = build_selector(TilesConfig(**options), Pool(1, (20, 20), weight=weight), total_steps=100, device="cpu")
    one.observe(Selection(one.all_rows, None, step=1), Feedback((cells < 200).float()[None, :, None]))
    index = one.select(2, count=40_000).index[0]
    # 8 % of the points are fit, 1.0 of these 8 % the wrong ones, and survivors are 80 % of the draws.
    assert one.metrics()["survivor_ratio"].item() == pytest.approx(0.8)
    assert (index < 200).float().mean().item() == pytest.approx(0.8 / 8, rel=0.05)


def test_weights_are_checked():
    mask = torch.tensor([[True, False]])
    for weight in (torch.tensor([[1.0, 0.0]]), torch.tensor([[1, 1]]), torch.tensor([[0, 0]])):
        with pytest.raises(InputError, match=r"^weight: got"):
            Pool(1, (2,), mask=mask, weight=weight)
