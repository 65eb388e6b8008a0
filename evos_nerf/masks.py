"""Masks of training images in an eighth of a byte a pixel, and the unmasked pixels of tiles.

Letters: N images, P cells of the tile grid, K points.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped, UInt8
from torch import Tensor

Size = tuple[int, int]
"""Height and width in px."""


def pack(mask: Bool[Tensor, "H W"]) -> UInt8[Tensor, " B"]:
    """The pixels of a mask in order, eight a byte, the first in the lowest bit; on the CPU."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy(), bitorder="little"))


class PackedMask:
    """The masks of all images; True: a pixel that may be drawn.

    Args:
        sizes: of each image.
        bits: what ``pack`` returns of each image, one after the other.
    """

    def __init__(self, sizes: Sequence[Size], bits: UInt8[Tensor, " B"]) -> None:
        self.sizes, self.bits = sizes, bits
        length = (torch.tensor(sizes).prod(1) + 7) // 8
        self.first: Int[Tensor, " N"] = (length.cumsum(0) - length).to(bits.device)

    def picture(self, image: int) -> Bool[np.ndarray, "H W"]:
        """The mask of one image."""
        height, width = self.sizes[image]
        first = int(self.first[image])
        packed = self.bits[first : first + (height * width + 7) // 8].cpu().numpy()
        return np.unpackbits(packed, count=height * width, bitorder="little").view(bool).reshape(height, width)

    def at(self, image: Int[Tensor, "*#K"], pixel: Int[Tensor, "*#K"]) -> Bool[Tensor, "*K"]:
        """The mask at the ``pixel``-th pixel of each ``image``; anything where the image has no such pixel."""
        byte = self.bits[(self.first[image] + (pixel >> 3)).clamp(max=len(self.bits) - 1)]
        return (byte >> (pixel & 7).byte() & 1).bool()


def first_pixels(tile: Int[Tensor, "*#K"], extent: Int[Tensor, "*#K"], tiles: Int[Tensor, "*#K"]) -> Int[Tensor, "*K"]:
    """Along one axis, the first of ``extent`` pixels whose centre lies in ``tile``, of ``tiles`` equal ones."""
    return (2 * extent * tile + tiles - 1) // (2 * tiles)


@dataclass(frozen=True)
class Members:
    """The unmasked pixels of the tiles of images, each divided evenly into ``tiles`` (rows, columns).

    Per pixel an eighth of a byte and, of each run of pixels in a row of a tile, two bytes: a pixel is found by counting
    along the runs of its tile and then along its run, in static shapes. All tensors lie on the device of the mask.
    """

    mask: PackedMask
    side: int
    """No tile is higher or wider, in px."""
    extent: Int[Tensor, "N 2"]
    tiles: Int[Tensor, "N 2"]
    runs: Int[Tensor, " S"]
    """How many pixels of each run are unmasked; of each image: its pixel rows, in each of them its tile columns."""
    first: Int[Tensor, " N"]
    """Where the runs of each image begin."""
    count: Int[Tensor, " P"]
    """How many pixels of each cell of the grid are unmasked."""

    def points(
        self, image: Int[Tensor, " K"], tile: Int[Tensor, "K 2"], number: Int[Tensor, " K"]
    ) -> Int[Tensor, "K 2"]:
        """The unmasked pixel (y, x) with this ``number``, counted from 0 row by row, in each ``tile`` (row, column)."""
        extent, tiles = self.extent[image], self.tiles[image]
        begin, end = (first_pixels(some, extent, tiles)[:, :, None] for some in (tile, tile + 1))
        y, x = (begin + torch.arange(self.side, device=begin.device)).unbind(1)
        run = self.first[image, None] + y * tiles[:, 1:] + tile[:, 1:]
        unmasked = self.runs[run.clamp(max=len(self.runs) - 1)] * (y < end[:, 0])
        row, number = counted_to(unmasked, number)
        y = begin[:, 0, 0] + row
        unmasked = self.mask.at(image[:, None], (y * extent[:, 1])[:, None] + x) & (x < end[:, 1])
        column, _ = counted_to(unmasked.int(), number)
        return torch.stack((y, begin[:, 1, 0] + column), dim=1)


def counted_to(counts: Shaped[Tensor, "K S"], number: Int[Tensor, " K"]) -> tuple[Int[Tensor, " K"], Int[Tensor, " K"]]:
    """In which of S groups of these ``counts`` the one with this ``number`` is, and its number there, from 0."""
    total = counts.cumsum(1, dtype=torch.int32)
    group = (total <= number[:, None]).sum(1).clamp(max=counts.shape[1] - 1)[:, None]
    before = total.gather(1, group) - counts.gather(1, group)
    return group.squeeze(1), number - before.squeeze(1)


def list_members(mask: PackedMask, side: int, shape: tuple[int, int, int], tiles: Sequence[tuple[int, int]]) -> Members:
    """The unmasked pixels of the tiles, image by image: never more than one image's mask is unpacked at a time."""
    length = torch.tensor([height * columns for (height, _), (_, columns) in zip(mask.sizes, tiles, strict=True)])
    first, count = length.cumsum(0) - length, np.zeros(shape, np.int64)
    runs = np.empty(int(length.sum()), np.int16)
    for image, (height, width) in enumerate(mask.sizes):
        rows, columns = tiles[image]
        top, left = (
            first_pixels(torch.arange(n), torch.tensor([extent]), torch.tensor([n])).numpy()
            for n, extent in ((rows, height), (columns, width))
        )
        own = runs[int(first[image]) :][: height * columns].reshape(height, columns)
        np.add.reduceat(mask.picture(image).view(np.uint8), left, axis=1, dtype=np.int16, out=own)
        count[image, :rows, :columns] = np.add.reduceat(own, top, axis=0, dtype=np.int64)
    device = mask.bits.device
    return Members(
        mask,
        side,
        torch.tensor(mask.sizes, device=device),
        torch.tensor(tiles, device=device),
        torch.from_numpy(runs).to(device),
        first.to(device),
        torch.from_numpy(count.reshape(-1)),
    )
