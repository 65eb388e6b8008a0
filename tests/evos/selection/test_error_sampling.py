"""Sampling by error: odds by closed forms, and what is drawn by them."""

import pytest
import torch
from scipy.stats import chisquare

from evos.errors import InputError
from evos.selection import ErrorConfig, Feedback, Pool, Selection, build_selector


def selector_with(residual, pool=None, **options):
    """A selector that has seen ``residual`` "R P C" of all its cells."""
    pool = Pool(len(residual), (residual.shape[1],)) if pool is None else pool
    one = build_selector(ErrorConfig(**options), pool, total_steps=10, device="cpu")
    one.observe(Selection(one.all_rows, None, step=1), Feedback(residual))
    return one


def test_odds_are_half_uniform_and_half_in_proportion_to_the_root_mean_square_error():
    residual = torch.randn(2, 30, 3, generator=torch.Generator().manual_seed(0))
    one = selector_with(residual)
    for row in range(2):
        error = [sum(c * c / 3 for c in cell) ** 0.5 for cell in residual[row].tolist()]
        mean = sum(error) / 30
        assert one.odds(one.all_rows)[row].tolist() == pytest.approx([0.5 + 0.5 * e / mean for e in error], rel=1e-5)


def test_unseen_cells_have_the_odds_of_mean_ones():
    one = build_selector(ErrorConfig(uniform_ratio=0.0), Pool(1, (10,)), total_steps=10, device="cpu")
    assert one.odds(one.all_rows).tolist() == [[1.0] * 10]
    one.observe(Selection(one.all_rows, torch.tensor([[2, 3]])), Feedback(torch.tensor([[[1.0], [3.0]]])))
    expected = torch.ones(1, 10)
    expected[0, 2:4] = torch.tensor([0.5, 1.5])
    torch.testing.assert_close(one.odds(one.all_rows), expected)


def test_masked_cells_do_not_move_the_odds_of_others():
    mask = torch.arange(12)[None] % 3 > 0
    odds = []
    for wild in (0.0, 50.0):
        residual = torch.linspace(0.1, 1, 12)[None, :, None].clone()
        residual[~mask] = wild
        one = selector_with(residual, Pool(1, (12,), mask=mask))
        odds.append(one.odds(one.all_rows)[mask])
    assert torch.equal(*odds)


def test_single_draws_follow_the_odds():
    rows = 4000
    residual = torch.arange(1.0, 9.0)[None, :, None].expand(rows, -1, -1)
    one = selector_with(residual, keep_ratio=0.125, uniform_ratio=0.25)
    counts = torch.bincount(one.select(2).index.flatten(), minlength=8).double()
    expected = 0.25 + 0.75 * torch.arange(1.0, 9.0).double() / 4.5
    assert chisquare(counts.numpy(), (expected / expected.sum() * rows).numpy()).pvalue > 1e-3


def test_the_odds_of_one_row_are_renewed_after_a_part_of_its_cells_was_trained_on_and_those_of_many_in_every_step():
    for rows, renewed in ((1, [1, 4, 7, 10]), (2, list(range(1, 12)))):
        one = build_selector(ErrorConfig(keep_ratio=0.05), Pool(rows, (100,)), total_steps=20, device="cpu")
        found, last = [], None
        for step in range(1, 12):
            selection = one.select(step)
            twin = torch.Generator().manual_seed(0)
            sums = one.sums if rows == 1 else one.sums_of(one.all_rows, 5)
            if last is None or not torch.equal(sums, last):
                found.append(step)
            last = sums
            residual = torch.rand(rows, 5, 1, generator=twin) + 0.1 * step
            one.observe(selection, Feedback(residual))
            if rows == 1:
                assert step + one.steps_alike(step) == min(each for each in (4, 7, 10, 13) if each > step)
        assert found == renewed
    assert one.steps_alike(1) == 1


def test_a_signal_that_takes_another_s_place_is_drawn_uniformly_at_first():
    one = selector_with(torch.arange(100.0)[None, :, None])
    one.select(1)
    assert one.sums.diff(dim=1).std() > 0.1
    one.forget(torch.tensor([0]))
    assert torch.equal(one.sums, torch.arange(1.0, 101, dtype=torch.float64)[None])


def test_without_error_and_with_only_uniform_odds_all_are_alike():
    assert selector_with(torch.zeros(1, 5, 1)).odds(torch.tensor([0])).tolist() == [[1.0] * 5]
    assert selector_with(torch.rand(1, 5, 1), uniform_ratio=1.0).odds(torch.tensor([0])).tolist() == [[1.0] * 5]


def test_options_are_checked():
    with pytest.raises(InputError, match=r"uniform_ratio: got 1\.5"):
        ErrorConfig(uniform_ratio=1.5)
    assert ErrorConfig().keep_ratio == 0.1
