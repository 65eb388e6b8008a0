"""Tiles: the cells that EVOS ranks when the signal is a set of training images.

Each image is divided evenly into ceil(height / side) by ceil(width / side) tiles. Dividing evenly, rather than clipping
at the border, gives all tiles of an image the same (fractional) area, so that a uniformly drawn tile and a uniform
position in it give a pixel that is exactly uniform over the image. Between images of different sizes the tile's area
differs by a factor below (1 + side / shortest image side)²; nerfstudio's own sampler gives each image the same number
of rays instead.

The pool is one row of (N, rows, columns) cells, all images ranked together; images with fewer tiles than the largest
leave cells unusable. Letters: N images, P cells, M pixels of all images one after the other, K points.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

Size = tuple[int, int]


def tile_count(sizes: Sequence[Size], side: int) -> int:
    """Cells of a grid of tiles of ``side`` px over images of ``sizes`` (height, width), unusable ones included."""
    return len(sizes) * math.prod(max(math.ceil(size[axis] / side) for size in sizes) for axis in (0, 1))


def smallest_side(sizes: Sequence[Size], tiles: float) -> int:
    """The smallest tile side in px that makes at most ``tiles`` cells, or one cell an image where that is too many."""
    low, high = 1, max(map(max, sizes))
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if tile_count(sizes, middle) <= tiles else (middle + 1, high)
    return low


def tile_side(sizes: Sequence[Size], rays: int, total_steps: int, *, visits: float, max_tiles: int) -> int:
    """The smallest tile side in px that gives a mean of ``visits`` rays per tile in training and at most ``max_tiles``.

    Tiles need not be visited between two rankings: an unvisited tile is ranked by its neighbourhood (RunningCache).
    """
    return smallest_side(sizes, min(max_tiles, rays * total_steps / visits))


@dataclass(frozen=True)
class Members:
    """The unmasked pixels sorted by tile: those of cell p are ``pixel[first[p] : first[p] + count[p]]``."""

    pixel: Int[Tensor, " V"]
    first: Int[Tensor, " P"]
    count: Int[Tensor, " P"]


@dataclass(frozen=True)
class TileGrid:
    """A grid of tiles over images; made by ``build_grid``."""

    side: int
    """Tiles are at most this many px high and wide."""

    shape: tuple[int, int, int]
    """(N, rows, columns) of the pool."""

    extent: Int[Tensor, "N 2"]
    """Height and width of each image in px."""

    tiles: Int[Tensor, "N 2"]
    """Rows and columns of tiles of each image."""

    start: Int[Tensor, " N"]
    """Where each image begins among all pixels."""

    usable: Bool[Tensor, " P"] | None
    """Which cells are tiles with a pixel to draw; None = all."""

    members: Members | None
    """The pixels that may be drawn; None = all."""

    @property
    def pixels(self) -> Int[Tensor, " P"] | None:
        """How many pixels of each tile may be drawn, where masks make that differ; None = as many of each."""
        return None if self.members is None else self.members.count

    def draw(self, cells: Int[Tensor, " K"], generator: torch.Generator) -> Int[Tensor, "K 3"]:
        """A uniformly random unmasked pixel (image, y, x) of each tile.

        With masks a pixel is drawn from the tile's list of unmasked ones: exact however few there are, and of static
        shape, unlike rejection sampling.
        """
        image = cells // (self.shape[1] * self.shape[2])
        if self.members is None:
            inside = torch.rand(len(cells), 2, generator=generator, device=cells.device)
            place = (self._tile(cells) + inside) * self.extent[image] / self.tiles[image]
            point = place.long().minimum(self.extent[image] - 1)
        else:
            count = self.members.count[cells]
            uniform = torch.rand(len(cells), generator=generator, device=cells.device)
            place = self.members.first[cells] + (uniform * count).long().minimum(count - 1)
            inside = self.members.pixel[place] - self.start[image]
            width = self.extent[image, 1]
            point = torch.stack((inside // width, inside % width), dim=1)
        return torch.cat((image[:, None], point), dim=1)

    def flat(self, points: Int[Tensor, "K 3"]) -> Int[Tensor, " K"]:
        """Indices of pixels (image, y, x) among the flattened pixels of all images."""
        image, y, x = points.unbind(1)
        return self.start[image] + y * self.extent[image, 1] + x

    def cells_of(self, points: Int[Tensor, "K 3"]) -> Int[Tensor, " K"]:
        """The cell in which the centre of each pixel (image, y, x) lies."""
        image = points[:, 0]
        return self._cell(image, (2 * points[:, 1:] + 1) * self.tiles[image] // (2 * self.extent[image]))

    def means(self, pixels: Float[Tensor, "M C"]) -> Float[Tensor, "P C"]:
        """Mean of each tile over its pixels; zero where a cell is no tile of its image."""
        result = pixels.new_zeros(*self.shape, pixels.shape[-1])
        for image, ((height, width), tiles) in enumerate(zip(self.extent.tolist(), self.tiles.tolist(), strict=True)):
            begin = int(self.start[image])
            picture = rearrange(pixels[begin : begin + height * width], "(h w) c -> 1 c h w", h=height)
            small = F.adaptive_avg_pool2d(picture, tiles)
            result[image, : tiles[0], : tiles[1]] = rearrange(small, "1 c h w -> h w c")
        return result.flatten(0, 2)

    def picture(self, cells: Float[Tensor, " P"], image: int) -> Float[Tensor, "H W"]:
        """An image in which each pixel has the value of its tile."""
        (height, width), (rows, columns) = self.extent[image].tolist(), self.tiles[image].tolist()
        y = (2 * torch.arange(height, device=cells.device) + 1) * rows // (2 * height)
        x = (2 * torch.arange(width, device=cells.device) + 1) * columns // (2 * width)
        return cells.view(self.shape)[image][y[:, None], x]

    def _tile(self, cells: Int[Tensor, " K"]) -> Int[Tensor, "K 2"]:
        return torch.stack((cells // self.shape[2] % self.shape[1], cells % self.shape[2]), dim=1)

    def _cell(self, image: Int[Tensor, " K"], tile: Int[Tensor, "K 2"]) -> Int[Tensor, " K"]:
        return (image * self.shape[1] + tile[:, 0]) * self.shape[2] + tile[:, 1]


def build_grid(
    sizes: Sequence[Size], side: int, device: torch.device | str, mask: Bool[Tensor, " M"] | None = None
) -> TileGrid:
    """Tiles of at most ``side`` px over images of ``sizes`` (height, width); ``mask`` is False for pixels never drawn.

    Synchronizes with the host to list the unmasked pixels: call it once before training, not in every step.
    """
    extent = torch.tensor(sizes, device=device)
    tiles = (extent + side - 1) // side
    area = extent.prod(1)
    rows, columns = tiles.amax(0).tolist()
    shape = (len(sizes), rows, columns)
    grid = TileGrid(side, shape, extent, tiles, area.cumsum(0) - area, None, None)
    if mask is not None:
        members = list_members(grid, mask)
        return TileGrid(side, shape, extent, tiles, grid.start, members.count > 0, members)
    if bool((tiles == tiles[0]).all()):
        return grid
    inside = grid._tile(torch.arange(math.prod(shape), device=device)).unflatten(0, (len(sizes), -1)) < tiles[:, None]
    return TileGrid(side, shape, extent, tiles, grid.start, inside.all(-1).flatten(), None)


def list_members(grid: TileGrid, mask: Bool[Tensor, " M"]) -> Members:
    """The unmasked pixels of ``grid``, sorted by tile."""
    pixel = mask.nonzero().squeeze(1)
    image = torch.searchsorted(grid.start, pixel, right=True) - 1
    inside, width = pixel - grid.start[image], grid.extent[image, 1]
    cell = grid.cells_of(torch.stack((image, inside // width, inside % width), dim=1))
    count = torch.bincount(cell, minlength=math.prod(grid.shape))
    return Members(pixel[cell.argsort()], count.cumsum(0) - count, count)
