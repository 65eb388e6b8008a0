"""Sampling by error over tiles: whose odds are whose, and that points, not tiles, are drawn alike."""

import pytest
import torch

from evos.selection import Feedback, Pool, Selection, TileErrorConfig, build_selector


def selector(pool: Pool, **options):
    return build_selector(TileErrorConfig(**options), pool, total_steps=1000, device="cpu", seed=3)


def observe(selector, errors: torch.Tensor, times: int = 40) -> None:
    """Visit every tile so often that its neighbourhood no longer counts."""
    everything = Selection(selector.all_rows, torch.arange(errors.shape[1])[None])
    for _ in range(times):
        selector.observe(everything, Feedback(errors[..., None]))


def test_odds_are_half_uniform_and_half_in_proportion_to_the_error():
    tiles = selector(Pool(1, (4, 4), tile=8), momentum=0.99, pooling=1e-6)
    errors = torch.linspace(0.1, 1.6, 16)[None]
    observe(tiles, errors)
    torch.testing.assert_close(
        tiles.odds(tiles.all_rows).float(), 0.5 + 0.5 * errors / errors.mean(), rtol=1e-3, atol=0
    )


def test_a_tile_is_drawn_as_often_as_its_odds_say_to_the_nearest_draw():
    tiles = selector(Pool(1, (4, 4), tile=8), momentum=0.99, pooling=1e-6, odds_interval=1)
    errors = torch.linspace(0.1, 1.6, 16)[None]
    observe(tiles, errors)
    selection = tiles.select(1, count=4096)
    odds = tiles.odds(tiles.all_rows)[0]
    drawn = torch.bincount(selection.index[0], minlength=16)
    assert (drawn - 4096 * odds / odds.sum()).abs().max() <= 2
    assert (selection.index.diff() >= 0).all()  # in the order of the tiles: neighbours lie together in memory


def test_before_the_first_look_every_point_is_as_likely_whatever_its_tile():
    weight = torch.tensor([[64, 64, 8, 64, 64, 8, 1, 1, 1]])
    tiles = selector(Pool(1, (3, 3), tile=8, weight=weight))
    drawn = torch.bincount(tiles.select(1, count=2750).index[0], minlength=9)
    assert (drawn - 10 * weight[0]).abs().max() <= 2


def test_odds_are_looked_at_in_intervals():
    tiles = selector(Pool(1, (4, 4), tile=8), odds_interval=8)
    observe(tiles, torch.linspace(0.1, 1.6, 16)[None])
    first = tiles.bounds.clone()
    for step in range(1, 8):
        tiles.select(step, count=10)
        assert torch.equal(tiles.bounds, first)
        assert tiles.steps_alike(step) == 8 - step
    tiles.select(8, count=10)
    assert not torch.equal(tiles.bounds, first)


@pytest.mark.parametrize("count", [1, 100_000])
def test_masked_tiles_and_the_end_of_the_row_are_never_overrun(count):
    mask = torch.ones(1, 12, dtype=torch.bool)
    mask[0, [0, 5, 11]] = False
    tiles = selector(Pool(1, (3, 4), tile=8, mask=mask))
    observe(tiles, torch.rand(1, 12, generator=torch.Generator().manual_seed(0)))
    for step in range(14, 18):
        index = tiles.select(step, count=count).index
        assert mask[0, index[0]].all()
