"""Tiles over training images: what they hold, which pixels are drawn from them, how fine they are."""

import math

import pytest
import torch
from scipy.stats import chisquare

from evos_nerf.masks import PackedMask, pack
from evos_nerf.tiles import build_grid, smallest_side, tile_count, tile_side

MIXED = [(7, 5), (12, 9), (4, 16)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def flat(grid, points):
    """Numbers of pixels (image, y, x), counted image by image and row by row."""
    begin = [0, *grid.extent.prod(1).cumsum(0).tolist()]
    return torch.tensor([begin[image] + y * int(grid.extent[image, 1]) + x for image, y, x in points.tolist()])


def flat_counts(grid, cells, pixels, times=400):
    drawn = torch.cat([grid.draw(cells, generator(seed)) for seed in range(times)])
    return torch.bincount(flat(grid, drawn), minlength=pixels)


def packed(sizes, mask):
    """Masks of images from one tensor of all their pixels."""
    parts = mask.split([height * width for height, width in sizes])
    return PackedMask(sizes, torch.cat([pack(part.view(size)) for part, size in zip(parts, sizes, strict=True)]))


def cells_of_every_image(grid):
    cells = torch.arange(math.prod(grid.shape))
    return cells if grid.usable is None else cells[grid.usable]


def test_a_uniform_tile_makes_a_uniform_pixel_also_where_tiles_do_not_fit():
    grid = build_grid([(7, 10), (7, 10)], 3, "cpu")
    assert grid.shape == (2, 3, 4) and grid.usable is None
    counts = flat_counts(grid, cells_of_every_image(grid), 140, times=2000)
    assert chisquare(counts).pvalue > 0.001


def test_a_pixel_lies_in_the_tile_that_it_was_drawn_from():
    grid = build_grid([(8, 12), (8, 12)], 4, "cpu")
    cells = torch.arange(math.prod(grid.shape)).repeat(50)
    points = grid.draw(cells, generator())
    assert torch.equal(points[:, 0], cells // 6)
    assert torch.equal(points[:, 1] // 4, cells // 3 % 2)
    assert torch.equal(points[:, 2] // 4, cells % 3)
    assert torch.equal(grid.cells_of(points), cells)


def test_images_of_different_sizes_have_tiles_of_their_own():
    grid = build_grid(MIXED, 4, "cpu")
    assert grid.shape == (3, 3, 4)
    assert grid.tiles.tolist() == [[2, 2], [3, 3], [1, 4]]
    usable = [[[r < rows and c < columns for c in range(4)] for r in range(3)] for rows, columns in grid.tiles.tolist()]
    assert grid.usable.view(3, 3, 4).tolist() == usable
    points = grid.draw(cells_of_every_image(grid).repeat(200), generator())
    assert (points[:, 1:] < torch.tensor(MIXED)[points[:, 0]]).all()


def test_masked_pixels_are_never_drawn_and_the_others_of_a_tile_are_equally_likely():
    sizes = [(8, 8), (6, 10)]
    mask = torch.rand(124, generator=generator(1)) < 0.3
    mask[:32] = False  # both upper tiles of the first image without a pixel
    grid = build_grid(sizes, 4, "cpu", packed(sizes, mask))
    assert grid.usable[:2].tolist() == [False, False]
    counts = flat_counts(grid, cells_of_every_image(grid), 124, times=600)
    assert counts[~mask].sum() == 0 and (counts[mask] > 0).all()
    every = torch.cat(
        [torch.cartesian_prod(torch.tensor([i]), *map(torch.arange, size)) for i, size in enumerate(sizes)]
    )
    cell_of = grid.cells_of(every)
    for cell in cells_of_every_image(grid).tolist():
        inside = mask & (cell_of == cell)
        assert grid.pixels[cell] == inside.sum()
        assert chisquare(counts[inside]).pvalue > 1e-4


def test_a_single_unmasked_pixel_is_enough():
    mask = torch.zeros(64, dtype=torch.bool)
    mask[43] = True
    grid = build_grid([(8, 8)], 4, "cpu", packed([(8, 8)], mask))
    assert grid.usable.tolist() == [False, False, True, False]
    assert grid.draw(torch.tensor([2] * 20), generator()).tolist() == [[0, 5, 3]] * 20


def test_means_are_those_of_a_slow_loop():
    grid = build_grid([(8, 4), (4, 8)], 4, "cpu")
    pictures = [torch.rand(8, 4, 3), torch.rand(4, 8, 3)]
    means = grid.means(pictures).view(2, 2, 2, 3)
    for image, r, c in ((0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 0, 1)):
        tile = pictures[image][4 * r : 4 * r + 4, 4 * c : 4 * c + 4]
        assert torch.allclose(means[image, r, c], tile.mean((0, 1)), atol=1e-6)
    assert (means[0, :, 1] == 0).all() and (means[1, 1] == 0).all()


def test_a_picture_shows_every_pixel_the_value_of_its_tile():
    grid = build_grid(MIXED, 3, "cpu")
    values = torch.arange(float(math.prod(grid.shape)))
    for image, (height, width) in enumerate(MIXED):
        every = torch.cartesian_prod(torch.tensor([image]), torch.arange(height), torch.arange(width))
        assert torch.equal(grid.picture(values, image).flatten(), values[grid.cells_of(every)])


@pytest.mark.parametrize("tiles", [1, 3, 10, 40, 151, 1000])
def test_the_smallest_side_is_the_first_that_fits(tiles):
    fitting = [side for side in range(1, 17) if tile_count(MIXED, side) <= tiles]
    assert smallest_side(MIXED, tiles) == (fitting[0] if fitting else 16)


def test_tiles_are_the_smallest_that_training_sees_often_enough():
    sizes = [(200, 200)] * 100
    side = tile_side(sizes, 512, 800, visits=4, max_tiles=1 << 18)
    assert side == 7 and tile_count(sizes, 7) <= 512 * 800 / 4 < tile_count(sizes, 6)
    assert tile_side(sizes, 512, 10**6, visits=4, max_tiles=5000) == 29
    assert tile_side(sizes, 512, 10**6, visits=4, max_tiles=1) == 200  # one an image at least
    assert tile_side([(4, 4)], 512, 10**6, visits=4, max_tiles=5000) == 1
