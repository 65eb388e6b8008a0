"""Outliers: which cells they are, against a slow reference, and what they leave of a fitness."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from evos.selection.outliers import largest_errors, trimmed


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


def test_a_trimmed_fitness_is_a_thousandth_and_no_other_moves():
    fitness, outliers = torch.tensor([[4.0, 2.0, 0.0]]), torch.tensor([[True, False, True]])
    torch.testing.assert_close(trimmed(fitness, outliers), torch.tensor([[0.004, 2.0, 0.0]]))
