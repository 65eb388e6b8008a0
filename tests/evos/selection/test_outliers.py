"""Outliers: which cells they are, against a slow reference, and what they leave of a fitness."""

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evos.selection.outliers import largest_errors, outlying_grids, trimmed


def slow_outliers(error, eligible, count):
    """The largest errors of one row's eligible cells, one after the other."""
    left = [cell for cell, may in enumerate(eligible) if may]
    found = []
    while left and len(found) < count:
        found.append(max(left, key=lambda cell: error[cell]))
        left.remove(found[-1])
    return {error[cell] for cell in found}, len(found)


@given(data=st.data(), rows=st.integers(1, 3), cells=st.integers(1, 20))
def test_outliers_are_the_largest_errors_of_cells_that_may_be_and_exactly_as_many_as_asked_for(data, rows, cells):
    values = st.floats(0, 1e6, width=32) | st.just(0.0)
    error = data.draw(st.lists(st.lists(values, min_size=cells, max_size=cells), min_size=rows, max_size=rows))
    row = st.lists(st.booleans(), min_size=cells, max_size=cells)
    eligible = data.draw(st.lists(row, min_size=rows, max_size=rows))
    count = data.draw(st.integers(1, cells + 3))
    found = largest_errors(torch.tensor(error), torch.tensor(eligible), count)
    for mine, errors, may in zip(found.tolist(), error, eligible, strict=True):
        chosen = [cell for cell in range(cells) if mine[cell]]
        assert all(may[cell] for cell in chosen)
        assert ({errors[cell] for cell in chosen}, len(chosen)) == slow_outliers(errors, may, count)


def slow_outlying(error, weight, deviations):
    """Whether each grid of one row is outlying: ``error`` and ``weight`` are lists of the grids' cells."""
    means = [
        sum(e * w for e, w in zip(es, ws, strict=True)) / sum(ws) if sum(ws) else None
        for es, ws in zip(error, weight, strict=True)
    ]
    counted = [mean for mean in means if mean is not None]
    middle = statistics.median_low(counted)
    scale = 1.4826 * statistics.median_low(abs(mean - middle) for mean in counted)
    return [mean is not None and scale > 0 and (mean - middle) / scale > deviations for mean in means]


@given(data=st.data(), grids=st.integers(1, 7), cells=st.integers(1, 4), deviations=st.sampled_from([0.0, 1.0, 3.0]))
def test_outlying_grids_are_those_far_above_the_median_and_all_of_their_cells(data, grids, cells, deviations):
    row = st.lists(st.lists(st.integers(0, 200), min_size=cells, max_size=cells), min_size=grids, max_size=grids)
    error, weight = data.draw(row), data.draw(row)
    weight[0][0] = 1  # no row is masked as a whole
    flat = [torch.tensor(values, dtype=torch.float64).reshape(1, -1) for values in (error, weight)]
    found = outlying_grids(flat[0], flat[1], grids, deviations + 1e-6)  # above the bound by more than rounding errors
    expected = slow_outlying(error, weight, deviations + 1e-6)
    assert found.view(grids, cells).tolist() == [[each] * cells for each in expected]


def test_without_weights_all_cells_count_alike():
    error = torch.tensor([[1.0, 3, 3, 2, 2, 4, 4, 1, 90, 92]])
    assert outlying_grids(error, None, 5, 3.0).tolist() == [[False] * 8 + [True] * 2]


@pytest.mark.parametrize("means", [[1.0], [1.0, 90.0], [0.0, 0.0, 0.0, 90.0]])
def test_one_or_two_grids_and_mostly_equal_ones_have_no_outliers(means):
    assert not outlying_grids(torch.tensor([means]), None, len(means), 0.7).any()


def test_a_trimmed_fitness_is_a_thousandth_and_no_other_moves():
    fitness, outliers = torch.tensor([[4.0, 2.0, 0.0]]), torch.tensor([[True, False, True]])
    torch.testing.assert_close(trimmed(fitness, outliers), torch.tensor([[0.004, 2.0, 0.0]]))
