"""Draws against slow loops, closed forms and, over many rows, their distributions."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from evos.selection.draws import (
    capped_sums,
    cells_within,
    draw_from_two_groups,
    effective_sample_fraction,
    random_order,
    spaced_draw,
    stratified,
    stratified_draw,
    survivors_and_mutants,
    uniform_draw,
    weighted_draw,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_weighted_draws_are_those_made_one_after_the_other():
    odds = torch.tensor([1.0, 2.0, 5.0])
    drawn = weighted_draw(odds.expand(20_000, 3), 2, generator())
    for first, second in itertools.combinations(range(3), 2):
        a, b, total = odds[first], odds[second], odds.sum()
        expected = float(a / total * b / (total - a) + b / total * a / (total - b))
        seen = ((drawn == first).any(1) & (drawn == second).any(1)).double().mean().item()
        assert seen == pytest.approx(expected, abs=0.015)


def test_weighted_draws_take_cells_without_odds_last():
    odds = torch.tensor([[1.0, 0.0, 3.0, -1.0]]).expand(50, 4)
    assert all(set(row) == {0, 2} for row in weighted_draw(odds, 2, generator()).tolist())
    assert all(set(row) == {0, 1, 2} for row in weighted_draw(odds, 3, generator()).tolist())


def drawn_by(odds, count, generator):
    """Stratified draws by odds "B P"."""
    return stratified_draw(capped_sums(odds, count), count, generator)


def capped(odds, count):
    """The odds of one row, none above one ``count``-th of their sum."""
    return [min(each, sum(odds) / count) for each in odds]


@settings(max_examples=60)
@given(data=st.data(), cells=st.integers(1, 30), seed=st.integers(0, 99))
def test_stratified_draws_are_where_the_running_sum_of_the_odds_passes_a_random_place_of_each_segment(
    data, cells, seed
):
    count = data.draw(st.integers(1, 2 * cells))
    odds = data.draw(st.lists(st.integers(0, 8), min_size=cells, max_size=cells).filter(any))
    drawn = drawn_by(torch.tensor([odds], dtype=torch.float32), count, generator(seed))[0].tolist()
    places = torch.rand(1, count, generator=generator(seed), dtype=torch.float64)[0].tolist()
    ends = list(itertools.accumulate(capped(odds, count)))
    for segment, (cell, place) in enumerate(zip(drawn, places, strict=True)):
        at = (segment + place) * ends[-1] / count
        assert odds[cell] > 0
        assert ends[cell] > at - 1e-5 and at + 1e-5 > (ends[cell - 1] if cell else 0)


def test_stratified_draws_take_each_cell_as_often_as_its_odds_say():
    odds, count, times = [1.0, 0.0, 2.0, 0.5, 30.0, 1.5, 4.0, 1.0], 4, 20_000
    drawn = drawn_by(torch.tensor(odds).expand(times, 8), count, generator())
    one = capped(odds, count)
    for cell, each in enumerate(one):
        seen = (drawn == cell).double().sum(1).mean().item()
        assert seen == pytest.approx(count * each / sum(one), abs=0.015)


def test_stratified_draws_of_equal_odds_are_one_of_each_segment():
    drawn = drawn_by(torch.full((500, 24), 0.3), 6, generator())
    assert torch.equal(drawn // 4, torch.arange(6).expand(500, 6))
    assert 1e-3 < chisquare(torch.bincount(drawn.flatten(), minlength=24).numpy()).pvalue < 1 - 1e-3


def test_stratified_draws_reach_every_cell_of_a_pool_beyond_single_precision():
    """2^24 odds of 1 in single precision add up to 2^24 and no further."""
    odds = torch.ones(1, 2**24 + 4)
    drawn = drawn_by(odds, 2**22 + 1, generator())
    assert drawn[0, -1] >= 2**24 and drawn.diff(dim=1).min() > 0


@settings(max_examples=60)
@given(
    cells=st.integers(1, 30),
    data=st.data(),
    seed=st.integers(0, 99),
)
def test_uniform_draws_and_orders_are_distinct_and_take_masked_cells_last(cells, data, seed):
    count = data.draw(st.integers(0, cells))
    valid = torch.rand(3, cells, generator=generator(seed)) < 0.6
    drawn = uniform_draw(torch.arange(3), cells, count, generator(seed), valid)
    order = random_order(torch.arange(3), cells, generator(seed), valid)
    assert drawn.shape == (3, count) and order.sort(1).values.equal(torch.arange(cells).expand(3, -1))
    for row in range(3):
        usable = int(valid[row].sum())
        assert len(set(drawn[row].tolist())) == count
        assert int(valid[row, drawn[row]].sum()) == min(count, usable)
        assert valid[row, order[row, :usable]].all()


@settings(max_examples=60)
@given(cells=st.integers(1, 40), data=st.data(), seed=st.integers(0, 99))
def test_spaced_draws_are_distinct_and_no_gap_is_longer_than_two_segments(cells, data, seed):
    count = data.draw(st.integers(1, cells))
    drawn = spaced_draw(torch.arange(3), cells, count, generator(seed))
    assert drawn.shape == (3, count) and drawn.min() >= 0 and drawn.max() < cells
    for row in drawn.sort(dim=1).values.tolist():
        assert len(set(row)) == count
        gaps = [after - before for before, after in zip(row, [*row[1:], row[0] + cells], strict=True)]
        assert max(gaps) < 2 * -(-cells // count) or count == 1


@pytest.mark.parametrize("count", [1, 3, 6, 8, 20])
def test_spaced_draws_are_uniform_and_others_in_other_rows_and_steps(count):
    random = generator(1)
    drawn = torch.cat([spaced_draw(torch.arange(500), 20, count, random) for _ in range(20)])
    counts = torch.bincount(drawn.flatten(), minlength=20)
    assert chisquare(counts.numpy()).pvalue > 1e-3
    assert len(drawn.unique(dim=0)) > 15


def test_uniform_draws_are_uniform(p_value):
    assert 1e-3 < p_value(uniform_draw(torch.arange(2000), 20, 6, generator()), range(20)) < 1 - 1e-3


def slow_survivors_and_mutants(order, survivors, mutants, keys, valid):
    """Cell by cell: the first of the order, then the rest by falling key, masked ones last."""
    rest = list(zip(order[survivors:], keys, strict=True))
    rest.sort(key=lambda pair: (not valid[pair[0]], -pair[1]))
    return set(order[:survivors]), {cell for cell, _ in rest[:mutants]}


@settings(max_examples=60)
@given(cells=st.integers(1, 20), data=st.data(), seed=st.integers(0, 99))
def test_survivors_and_mutants_equal_the_slow_reference(cells, data, seed):
    survivors = data.draw(st.integers(0, cells))
    mutants = data.draw(st.integers(0, cells - survivors))
    valid = torch.rand(2, cells, generator=generator(seed)) < 0.7
    order = torch.rand(2, cells, generator=generator(seed + 1)).argsort(1)
    index = survivors_and_mutants(order, survivors, mutants, generator(seed), valid)
    keys = torch.rand(2, cells - survivors, generator=generator(seed))
    for row in range(2):
        parts = slow_survivors_and_mutants(order[row].tolist(), survivors, mutants, keys[row].tolist(), valid[row])
        assert (set(index[row, :survivors].tolist()), set(index[row, survivors:].tolist())) == parts or not valid[
            row, list(parts[1])
        ].all()


def test_mutants_are_uniform_among_those_that_did_not_survive(p_value):
    order = torch.arange(30).flip(0).expand(2000, -1)
    index = survivors_and_mutants(order, 10, 7, generator())
    assert index[:, :10].equal(order[:, :10])
    assert 1e-3 < p_value(index[:, 10:], range(20)) < 1 - 1e-3


@pytest.mark.parametrize("per_row", [False, True])
def test_draws_from_two_groups_are_uniform_in_each(per_row):
    order = torch.rand(2, 50, generator=generator(3)).argsort(1)
    fit, survivors, usable = 12, 30_000, 40
    if per_row:
        fit, survivors, usable = (torch.tensor([[n], [n - 2]]) for n in (fit, survivors, usable))
    index = draw_from_two_groups(order, fit, survivors, usable, 40_000, generator())
    for row in range(2):
        less = 2 * row * per_row
        first, rest = index[row, : 30_000 - less], index[row, 30_000 - less :]
        for drawn, cells in ((first, order[row, : 12 - less]), (rest, order[row, 12 - less : 40 - less])):
            counts = torch.bincount(drawn, minlength=50)
            assert int(counts.sum()) == int(counts[cells].sum())
            assert chisquare(counts[cells].numpy()).pvalue > 1e-3


@settings(max_examples=60)
@given(selected=st.integers(1, 40), data=st.data(), seed=st.integers(0, 99))
def test_stratified_draws_take_one_of_each_stretch(selected, data, seed):
    count = data.draw(st.integers(1, 60))
    cells = torch.arange(selected)[None] * 10
    drawn = stratified(cells, count, generator(seed))[0] // 10
    assert len(drawn) == count
    for place, cell in enumerate(drawn.tolist()):
        assert int(place * selected / count) <= cell <= (place + 1) * selected / count
    assert count != selected or drawn.tolist() == list(range(selected))


def test_stratified_draws_reach_every_selected_cell_alike():
    cells = torch.arange(10)[None]
    counts = sum(torch.bincount(stratified(cells, 4, generator(seed))[0], minlength=10) for seed in range(2000))
    assert chisquare(counts.numpy()).pvalue > 1e-3


def test_every_cell_of_a_large_pool_can_be_drawn():
    """Of 2^25 cells, float32 numbers in [0, 1) reach every second one alone."""
    cells = torch.arange(2**25, dtype=torch.int32)[None]
    two_groups = draw_from_two_groups(cells, 2**25, 1000, 2**25, 2000, generator())[0, :1000]
    strata = stratified(cells, 2000, generator())[0, 1000:]
    for drawn in (two_groups, strata):
        assert 400 < int((drawn % 2).sum()) < 600


@given(
    errors=st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=20),
    data=st.data(),
)
def test_the_effective_sample_fraction_is_its_closed_form_over_the_known_cells(errors, data):
    known = data.draw(st.lists(st.booleans(), min_size=len(errors), max_size=len(errors)))
    found = effective_sample_fraction(torch.tensor([errors], dtype=torch.float64), torch.tensor([known])).item()
    kept = [error for error, is_known in zip(errors, known, strict=True) if is_known]
    squares = sum(error**2 for error in kept)
    assert found == pytest.approx(sum(kept) ** 2 / squares / len(kept) if squares > 1e-300 else 1.0, rel=1e-9)


def test_the_effective_sample_fraction_of_the_smallest_errors_is_still_theirs():
    tiny = torch.full((1, 8), 1e-12)
    tiny[:, 4:] = 0
    assert effective_sample_fraction(tiny).item() == pytest.approx(0.5, rel=1e-4)


@given(data=st.data(), cells=st.integers(1, 12), seed=st.integers(0, 99))
def test_draws_by_points_are_those_of_a_list_of_points(data, cells, seed):
    """A cell of w points is w cells of one: the same random numbers draw the same."""
    weight = data.draw(st.lists(st.integers(0, 4), min_size=cells, max_size=cells).filter(any))
    order = data.draw(st.permutations(range(cells)))
    listed = torch.tensor([[cell for cell in order for _ in range(weight[cell])]])
    points = listed.shape[1]
    fit = data.draw(st.integers(0, points))
    survivors = data.draw(st.integers(0, 30)) if fit else 0
    places = torch.arange(points)[None]
    expected = listed[0, draw_from_two_groups(places, fit, survivors, points, 40, generator(seed))[0]]
    found = draw_from_two_groups(
        torch.tensor([order]), fit, survivors, torch.tensor([[points]]), 40, generator(seed), torch.tensor([weight])
    )
    assert torch.equal(found[0], expected)
    assert all(weight[cell] > 0 for cell in found[0].tolist())


@given(data=st.data(), cells=st.integers(1, 12))
def test_cells_within_are_the_fewest_that_have_so_many_points(data, cells):
    weight = data.draw(st.lists(st.integers(0, 4), min_size=cells, max_size=cells))
    order = data.draw(st.permutations(range(cells)))
    points = data.draw(st.integers(0, sum(weight)))
    found = cells_within(torch.tensor([order]), torch.tensor([[points]]), torch.tensor([weight])).item()
    assert found == next(n for n in range(cells + 1) if sum(weight[cell] for cell in order[:n]) >= points)


def test_the_effective_sample_fraction_of_cells_with_points_is_that_of_the_points():
    error, weight = torch.tensor([[3.0, 1.0, 0.0, 9.0]]), torch.tensor([[2, 3, 4, 0]])
    listed = error[0].repeat_interleave(weight[0])[None]
    found, expected = effective_sample_fraction(error, weight), effective_sample_fraction(listed)
    torch.testing.assert_close(found, expected)
