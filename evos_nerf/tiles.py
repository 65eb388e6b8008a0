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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from evos_nerf.masks import Members, PackedMask, Size, list_members

COUNTED_AT_ONCE = 1 << 20
"""Runs or pixels of a tile that are counted at a time to find unmasked ones, about a hundred bytes each."""

TILE_BYTES = 200
"""Memory that a tile takes at most, while tiles are ranked."""


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


def largest_count(device: torch.device) -> int:
    """The largest number of tiles to rank on a device."""
    if device.type != "cuda":
        return 1 << 18
    return min(1 << 23, torch.cuda.get_device_properties(device).total_memory // 16 // TILE_BYTES)


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

    usable: Bool[Tensor, " P"] | None
    """Which cells are tiles with a pixel to draw; None = all."""

    members: Members | None
    """The pixels that may be drawn; None = all."""

    pixels: Int[Tensor, " P"] | None
    """How many pixels of each tile may be drawn, where masks make that differ; None = as many of each."""

    def draw(self, cells: Int[Tensor, " K"], generator: torch.Generator) -> Int[Tensor, "K 3"]:
        """A uniformly random unmasked pixel (image, y, x) of each tile; with masks, on the device of the masks.

        With masks the number of the pixel among the unmasked ones of its tile is drawn: exact however few there are,
        and of static shape, unlike rejection sampling.
        """
        image, tile = cells // (self.shape[1] * self.shape[2]), self._tile(cells)
        if self.members is None or self.pixels is None:
            inside = torch.rand(len(cells), 2, generator=generator, device=cells.device)
            place = (tile + inside) * self.extent[image] / self.tiles[image]
            return torch.cat((image[:, None], place.long().minimum(self.extent[image] - 1)), dim=1)
        count = self.pixels[cells]
        uniform = torch.rand(len(cells), generator=generator, device=cells.device)
        number = (uniform * count).long().minimum(count - 1)
        drawn = torch.stack((image, *tile.unbind(1), number)).to(self.members.runs.device)
        parts = drawn.split(max(1, COUNTED_AT_ONCE // self.side), dim=1)
        return torch.cat([drawn[0][:, None], torch.cat([self.members.points(p[0], p[1:3].T, p[3]) for p in parts])], 1)

    def cells_of(self, points: Int[Tensor, "K 3"]) -> Int[Tensor, " K"]:
        """The cell in which the centre of each pixel (image, y, x) lies."""
        image = points[:, 0]
        return self._cell(image, (2 * points[:, 1:] + 1) * self.tiles[image] // (2 * self.extent[image]))

    def means(self, pictures: Iterable[Float[Tensor, "H W C"]]) -> Float[Tensor, "P C"]:
        """Mean of each tile over its pixels in the ``pictures``; zero where a cell is no tile of its image."""
        found = []
        for picture, (rows, columns) in zip(pictures, self.tiles.tolist(), strict=True):
            small = F.adaptive_avg_pool2d(rearrange(picture, "h w c -> 1 c h w"), (rows, columns))
            small = F.pad(small, (0, self.shape[2] - columns, 0, self.shape[1] - rows))
            found.append(rearrange(small, "1 c h w -> (h w) c"))
        return torch.cat(found)

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
    sizes: Sequence[Size], side: int, device: torch.device | str, mask: PackedMask | None = None
) -> TileGrid:
    """Tiles of at most ``side`` px over images of ``sizes`` (height, width); ``mask`` is False for pixels never drawn.

    Synchronizes with the host: call it once before training, not in every step.
    """
    tiles = [(-(-height // side), -(-width // side)) for height, width in sizes]
    shape = (len(sizes), max(rows for rows, _ in tiles), max(columns for _, columns in tiles))
    extent, divided = (torch.tensor(some, device=device) for some in (sizes, tiles))
    found = TileGrid(side, shape, extent, divided, None, None, None)
    if mask is not None:
        members = list_members(mask, side, shape, tiles)
        pixels = members.count.to(device)
        return replace(found, usable=pixels > 0, members=members, pixels=pixels)
    if len(set(tiles)) == 1:
        return found
    place = found._tile(torch.arange(math.prod(shape), device=device)).unflatten(0, (len(sizes), -1))
    return replace(found, usable=(place < found.tiles[:, None]).all(-1).flatten())
