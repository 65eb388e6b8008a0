"""Coordinate grids: the one place that says axis order, range and pixel-centre convention.

Cells are numbered in C order over the grid's shape; a coordinate has one number per axis, in the order of the shape
(row y before column x); the centres of the first and the last cell of an axis are -1 and 1 (the convention of SIREN
and EVOS).
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor


def grid(shape: tuple[int, ...], device: torch.device | str = "cpu") -> Float[Tensor, "P D"]:
    """Coordinates of all P cells of a D-dimensional grid, each axis in [-1, 1]; an axis of one cell sits at 0."""
    axes = [torch.linspace(-1, 1, size) if size > 1 else torch.zeros(1) for size in shape]
    # Made on the CPU, so that every device sees the same bits.
    return rearrange(torch.stack(torch.meshgrid(*axes, indexing="ij")), "d ... -> (...) d").contiguous().to(device)


def spacing(shape: tuple[int, ...]) -> tuple[float, ...]:
    """Distance between neighbouring cells along each axis, in coordinate units (1 for an axis of one cell)."""
    return tuple(2 / (size - 1) if size > 1 else 1.0 for size in shape)
