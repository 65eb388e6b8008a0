"""Outliers: which cells they are, against a slow reference, and what they leave of a fitness."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from evos.selection.outliers import far_above, trimmed


def slow_outliers(error, count, threshold, eligible):
    """Cells of one row above the threshold times the (upper) median of the count largest errors, one by one."""
    largest = sorted(error, reverse=True)[:count]
    median = largest[(len(largest) - 1) // 2]
    return [may and value > threshold * median for value, may in zip(error, eligible, strict=True)]


@given(data=st.data(), rows=st.integers(1, 3), cells=st.integers(1, 20))
def test_outliers_are_eligible_cells_far_above_the_median_of_the_most_wrong(data, rows, cells):
    # Small whole numbers: products are exact, and values on the threshold come up.
    error = data.draw(
        st.lists(st.lists(st.integers(0, 12), min_size=cells, max_size=cells), min_size=rows, max_size=rows)
    )
    row = st.lists(st.booleans(), min_size=cells, max_size=cells)
    eligible = data.draw(st.lists(row, min_size=rows, max_size=rows))
    count, threshold = data.draw(st.integers(1, cells)), data.draw(st.integers(1, 4))
    found = far_above(torch.tensor(error).float(), count, float(threshold), torch.tensor(eligible))
    assert found.tolist() == [
        slow_outliers(one, count, threshold, may) for one, may in zip(error, eligible, strict=True)
    ]


def test_a_clean_tail_is_hardly_trimmed_and_a_second_mode_is_whatever_its_size():
    generator = torch.Generator().manual_seed(0)
    error = torch.randn(1, 20_000, 3, generator=generator).square().mean(-1)
    everywhere = torch.ones_like(error, dtype=torch.bool)
    assert far_above(error, 3000, 3.0, everywhere).float().mean() < 1e-3
    for size in (20, 200, 1000):
        error[0, :size] = 50.0
        assert far_above(error, 3000, 3.0, everywhere).nonzero()[:, 1].tolist()[:size] == list(range(size))
        assert far_above(error, 3000, 3.0, everywhere).sum() < size + 20


def test_a_trimmed_fitness_is_a_thousandth_and_no_other_moves():
    fitness, outliers = torch.tensor([[4.0, 2.0, 0.0]]), torch.tensor([[True, False, True]])
    torch.testing.assert_close(trimmed(fitness, outliers), torch.tensor([[0.004, 2.0, 0.0]]))
