"""Coordinate grids: the one place that says axis order, range and where in a cell its centre lies.

Cells are numbered in C order over the grid's shape; a coordinate has one number per axis, in the order of the shape
(row y before column x), in [-1, 1]. Two conventions, as ``align_corners`` of PyTorch's ``interpolate`` has them:

- ``corner``: the centres of the first and the last cell of an axis are -1 and 1 (SIREN's and EVOS' convention).
- ``cell``: the interval is cut into n equal cells, and cell i has its centre at -1 + (2 i + 1) / n. A finer grid
  subdivides the same cells, so a field can be decoded at another resolution without a shift.
"""

from typing import Literal, TypeAlias

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

Centres: TypeAlias = Literal["corner", "cell"]


def grid(
    shape: tuple[int, ...], device: torch.device | str = "cpu", *, centres: Centres = "corner"
) -> Float[Tensor, "P D"]:
    """Coordinates of all P cells of a D-dimensional grid, each axis in [-1, 1]; an axis of one cell sits at 0."""
    return window(shape, (0,) * len(shape), shape, device, centres=centres)


def window(
    shape: tuple[int, ...],
    start: tuple[int, ...],
    size: tuple[int, ...],
    device: torch.device | str = "cpu",
    *,
    centres: Centres = "corner",
) -> Float[Tensor, "N D"]:
    """Coordinates of the cells of a box within a grid of ``shape``: ``size`` of them along each axis from ``start``."""
    axes = [axis(n, centres)[first : first + count] for n, first, count in zip(shape, start, size, strict=True)]
    # Made on the CPU, so that every device sees the same bits.
    return rearrange(torch.stack(torch.meshgrid(*axes, indexing="ij")), "d ... -> (...) d").contiguous().to(device)


def axis(size: int, centres: Centres) -> Float[Tensor, " size"]:
    """Centres of the ``size`` cells of one axis."""
    if centres == "cell":
        return (2 * torch.arange(size, dtype=torch.float64) + 1).div(size).sub(1).float()
    return torch.linspace(-1, 1, size) if size > 1 else torch.zeros(1)


def spacing(shape: tuple[int, ...], *, centres: Centres = "corner") -> tuple[float, ...]:
    """Distance between neighbouring centres along each axis, in coordinate units.

    An axis of one cell has the length of its cell, 2, with ``cell``, and by convention 1 with ``corner``.
    """
    if centres == "cell":
        return tuple(2 / size for size in shape)
    return tuple(2 / (size - 1) if size > 1 else 1.0 for size in shape)
