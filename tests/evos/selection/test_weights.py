"""Cells of unequally many points, as tiles of masked images are: the points are drawn alike, not the cells."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from evos.selection import EgraConfig, ExpansiveConfig, Feedback, Pool, SoftConfig, build_selector
from evos.selection.draws import stratified

IMAGES, SIZE = 16, 96


def stray_mask() -> tuple[np.ndarray, np.ndarray]:
    """The unmasked pixels of images: the left half, and single pixels elsewhere, 0.24 % of all; which these are."""
    mask = np.zeros((IMAGES, SIZE, SIZE), bool)
    mask[:, :, : SIZE // 2] = True
    is_stray = np.zeros_like(mask)
    outside = np.flatnonzero(~mask)
    is_stray.flat[np.random.default_rng(0).choice(outside, round(0.0024 * mask.sum()), replace=False)] = True
    return mask | is_stray, is_stray


def per_tile(pixels: np.ndarray, side: int) -> torch.Tensor:
    """How many of ``pixels`` lie in each tile, "1 P"."""
    tiles = pixels.reshape(IMAGES, SIZE // side, side, SIZE // side, side).sum((2, 4))
    return torch.as_tensor(tiles.reshape(1, -1), dtype=torch.int64)


@pytest.mark.parametrize("side", [3, 8, 32])
@pytest.mark.parametrize("config", [EgraConfig(), ExpansiveConfig(), SoftConfig()], ids=lambda config: config.name)
def test_stray_pixels_get_their_share_of_the_draws_at_every_tile_side(config, side, device):
    mask, is_stray = stray_mask()
    points, stray = per_tile(mask, side), per_tile(is_stray, side)
    grid = (IMAGES, SIZE // side, SIZE // side)
    shares = []
    for seed in range(6):  # a target has strong edges, or none, where the stray pixels happen to be
        target = torch.rand(1, points.shape[1], 3, generator=torch.Generator().manual_seed(seed))
        pool = Pool(1, grid, tile=side, mask=points > 0, weight=points)
        one = build_selector(config, pool, total_steps=40, device=device, seed=seed, target=target)
        for step in range(1, 41):
            selection = one.select(step, count=1000)
            residual = 0.1 + 0.4 * torch.rand(1, 1000, 3, generator=torch.Generator().manual_seed(step))
            one.observe(selection, Feedback(residual.to(device)))
            cells = selection.index[0].cpu()
            assert (points[0, cells] > 0).all()
            shares.append((stray[0, cells] / points[0, cells]).mean().item())
    expected = is_stray.sum() / mask.sum()
    # Walkers of soft mining leave single pixels more readily than areas, as they leave the signal.
    assert (0.4 if isinstance(config, SoftConfig) else 0.8) * expected < np.mean(shares) < 1.2 * expected


def test_stratified_draws_of_weighted_cells_are_uniform_over_their_points():
    cells, weight = torch.tensor([[3, 0, 2, 1]]), torch.tensor([[1, 0, 4, 2]])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([stratified(cells, 7, generator, weight) for _ in range(500)], dim=1)[0]
    # One draw a point in each call, so the counts are exact.
    assert torch.bincount(drawn, minlength=4).tolist() == [0, 1000, 2000, 500]
    few = torch.cat([stratified(cells, 2, generator, weight) for _ in range(3500)], dim=1)[0]
    assert chisquare(torch.bincount(few, minlength=4)[1:], [2000, 4000, 1000]).pvalue > 1e-3


def test_walking_points_move_between_cells_at_the_rates_of_their_points(device):
    """On a line of cells with 9 points and 1 in turn, all errors alike, a tenth of the walkers are in these."""
    weight = torch.tensor([9, 1]).repeat(20)[None]
    config = SoftConfig(uniform_ratio=0.0, restart_ratio=0.0, step_size=0.0, noise=0.1)
    pool, target = Pool(1, (40,), weight=weight), torch.zeros(1, 40, 1)
    one = build_selector(config, pool, total_steps=60, device=device, target=target)
    small = []
    for step in range(1, 61):
        selection = one.select(step, count=4000)
        one.observe(selection, Feedback(torch.full((1, 4000, 1), 0.5, device=device)))
        small.append((selection.index % 2 == 1).float().mean().item())
    assert small[0] == pytest.approx(0.1, abs=0.02)
    assert np.mean(small[20:]) == pytest.approx(0.1, abs=0.01)


def test_points_of_a_saved_walk_leave_what_was_masked_since(device):
    """A resumed training may have masks that it began without: from its first step on they hold."""
    build = dict(total_steps=9, device=device, target=torch.rand(1, 144, 1))
    before, mask = build_selector(SoftConfig(), Pool(1, (12, 12)), **build), torch.rand(1, 144) < 0.3
    before.observe(before.select(1, count=50), Feedback(torch.ones(1, 50, 1, device=device)))
    after = build_selector(SoftConfig(), Pool(1, (12, 12), mask=mask), **build)
    after.load_state_dict(before.state_dict())
    assert mask[0, after.select(2, count=50).index[0].cpu()].all()
    assert not mask[0, before.select(2, count=50).index[0].cpu()].all()
