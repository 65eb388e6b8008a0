"""Multiresolution hash grid, small ReLU network (Müller et al., "Instant Neural Graphics Primitives", SIGGRAPH 2022).

Letters: L levels, V = 2^D corners of a cell, F features per level, T rows of a hashed level's table.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from importlib import import_module
from itertools import pairwise, product
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from evos.config import check_range
from evos.errors import InputError
from evos.fields.base import Field, FieldConfig
from evos.fields.mlp import ReluField

PRIMES = tuple(
    prime - 2**32 * (prime >= 2**31)
    for prime in (1, 2654435761, 805459861, 3674653429, 2097192037, 1434869437, 2165219737)
)
"""The hash's factors by axis, as the 32-bit integers with a sign that PyTorch has."""

Pair = tuple[Tensor, Tensor]
"""Something of the lower and of the upper one of two neighbouring vertices along an axis."""


@dataclass(frozen=True)
class HashGridConfig(FieldConfig):
    """Options of the hash grid; the defaults of the network behind it are smaller than elsewhere."""

    name: ClassVar[str] = "hashgrid"
    default_lr: ClassVar[float] = 1e-2

    hidden_features: int = 64
    """Width of the hidden layers; at least 1."""
    hidden_layers: int = 2
    """Layers from hidden to hidden features (the paper's two hidden layers are 1 in this count); at least 0."""
    levels: int = 16
    """Resolutions, in geometric progression; 1 to 32."""
    table_log2: int = 15
    """log2 of the rows a level's table has at most: levels with more vertices are hashed; 3 to 24."""
    level_features: int = 2
    """Learned features per vertex (1, 2, 4 or 8 where tiny-cuda-nn is to be used); 1 to 8."""
    base_resolution: int = 16
    """Vertices per axis of the coarsest level; at least 2."""
    finest_resolution: int = 512
    """Vertices per axis of the finest level; at least base_resolution, at most 2^20."""
    proportions: str | None = None
    """Sides of a signal, such as 64x128x128: an axis has vertices in proportion to its side, and the longest as many as
    the resolutions say; none: every axis as many."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("levels", self.levels, 1, 32)
        check_range("table_log2", self.table_log2, 3, 24)
        check_range("level_features", self.level_features, 1, 8)
        check_range("base_resolution", self.base_resolution, 2)
        check_range("finest_resolution", self.finest_resolution, self.base_resolution, 2**20)
        if self.proportions is not None and not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", self.proportions):
            raise InputError("proportions", self.proportions, "whole numbers above 0 joined by x, one an axis")

    @property
    def growth(self) -> float:
        """Ratio between the resolutions of neighbouring levels (equation 3).

        It is a millionth smaller, lest tiny-cuda-nn's float32 round a resolution of 32 up to 33: the table's layout
        follows from the resolutions.
        """
        return (self.finest_resolution / self.base_resolution) ** (1 / max(self.levels - 1, 1)) * (1 - 1e-6)

    @property
    def cells(self) -> list[float]:
        """Cells per axis of each level, the vertices less one; not whole numbers."""
        return [self.base_resolution * self.growth**level - 1 for level in range(self.levels)]

    def axis_cells(self, in_features: int) -> list[list[float]]:
        """Cells of each level, for each axis: those of ``cells``, and fewer, at least 1, where ``proportions`` say so.

        Raises InputError where these are of another number of axes.
        """
        sides = [1] * in_features if self.proportions is None else [int(side) for side in self.proportions.split("x")]
        if len(sides) != in_features:
            raise InputError("proportions", self.proportions, f"{in_features} numbers, as many as the signal has axes")
        ratios = [side / max(sides) for side in sides]
        return [[n if ratio == 1 else max(1.0, (n + 1) * ratio - 1) for n in self.cells] for ratio in ratios]

    def vertices(self, in_features: int) -> list[tuple[int, ...]]:
        """Vertices along each axis, for each level."""
        return list(zip(*([math.ceil(n) + 1 for n in axis] for axis in self.axis_cells(in_features)), strict=True))

    def table_sizes(self, in_features: int) -> list[int]:
        """Rows that each level would have in the table if none were hashed: its vertices, rounded up to eights."""
        return [math.ceil(math.prod(level) / 8) * 8 for level in self.vertices(in_features)]

    def parameters(self, in_features: int, out_features: int) -> int:
        """How many numbers the tables and the network have, without building them."""
        rows = sum(min(size, 2**self.table_log2) for size in self.table_sizes(in_features))
        width = self.hidden_features
        widths = [self.levels * self.level_features, *[width] * (self.hidden_layers + 1), out_features]
        return rows * self.level_features + sum((a + 1) * b for a, b in pairwise(widths))

    def build(self, in_features: int, out_features: int) -> Field:
        """A hash grid and its network, with fresh weights."""
        encoding = HashGrid(self, in_features)
        return ReluField(self, encoding.out_features, out_features, encoding)


class HashGrid(nn.Module):
    """Features interpolated linearly between the vertices of L grids, coarse grids stored in full and fine ones hashed.

    Vertices, hash and table are laid out as in tiny-cuda-nn, so that one parameter serves this module and, for float32
    on CUDA where that is installed, its kernel. Both differ from the paper's section 3 in that a resolution counts
    vertices, not cells; that vertices are shifted by half a cell, so that those of different levels don't coincide
    (appendix A); and that in grids stored in full, vertices past the upper edge wrap around into the table.

    Args:
        config: levels, table_log2, level_features, resolutions and proportions are used.
        in_features: D, 1 to 7 (the hash has seven primes).

    Raises:
        InputError: more than 7 axes, or another number than the proportions have.
    """

    cells: Tensor
    """For each axis, those of each level."""
    strides: Tensor
    corner_strides: Tensor
    dense_sizes: Tensor
    offsets: Tensor

    def __init__(self, config: HashGridConfig, in_features: int) -> None:
        super().__init__()
        check_range("in_features", in_features, 1, len(PRIMES))
        self.config = config
        self.out_features = config.levels * config.level_features

        limit = 2**config.table_log2
        sizes = torch.tensor([min(size, limit) for size in config.table_sizes(in_features)])
        dense = [level for level in config.vertices(in_features) if math.prod(level) <= limit]

        self.table = nn.Parameter(torch.empty(int(sizes.sum()), config.level_features))
        nn.init.uniform_(self.table, -1e-4, 1e-4)  # section 4
        self.mask = limit - 1
        strides = [[math.prod(level[:axis]) for axis in range(in_features)] for level in dense]
        strides = torch.tensor(strides, dtype=torch.long).reshape(-1, in_features)
        corners = torch.tensor(list(product((0, 1), repeat=in_features)))
        constants = {
            "cells": torch.tensor(config.axis_cells(in_features)),
            # Rows in 32 bits: a wider product would be cut down to the mask's anyway, and takes twice the time.
            "strides": strides[:, None].int(),
            "corner_strides": (corners @ strides.T)[..., None].int(),
            "dense_sizes": sizes[: len(dense), None].int(),
            "offsets": (sizes.cumsum(0) - sizes)[:, None, None].int(),
        }
        for name, constant in constants.items():
            self.register_buffer(name, constant, persistent=False)

    def forward(self, coords: Float[Tensor, "*N D"]) -> Float[Tensor, "*N E"]:
        """The features at coordinates in [-1, 1], level by level."""
        unit = (coords + 1) / 2
        fusible = coords.is_cuda and self.table.dtype == torch.float32
        fusible = fusible and self.config.proportions is None  # which tiny-cuda-nn does not know
        fused = fused_grid(self.config, coords.shape[-1], coords.device) if fusible else None
        if fused is None:
            return self.interpolate(unit)
        features = functional_call(fused, {"params": self.table.flatten()}, (unit.reshape(-1, coords.shape[-1]),))
        return features.view(*coords.shape[:-1], -1)

    def interpolate(self, unit: Float[Tensor, "*N D"]) -> Float[Tensor, "*N E"]:
        """The features at coordinates in [0, 1], in PyTorch's own operations."""
        factors, rows = self.corners(unit.reshape(-1, unit.shape[-1]))
        return self.blend(factors, rows).view(*unit.shape[:-1], self.out_features)

    def forward_with_tangents(
        self, coords: Float[Tensor, "N D"], tangents: Float[Tensor, "K N D"]
    ) -> tuple[Float[Tensor, "N E"], Float[Tensor, "K N E"]]:
        """The features, and their derivatives along each tangent; tiny-cuda-nn has no forward mode."""
        factors, rows = self.corners((coords + 1) / 2)
        # A weight is a product of one factor per axis, each linear in its coordinate with derivative +-cells / 2.
        rises = [cells[:, None].expand_as(factors[0][0]) / 2 for cells in self.cells]
        jacobian = torch.stack(
            [
                self.blend([*factors[:axis], (-rise, rise), *factors[axis + 1 :]], rows)
                for axis, rise in enumerate(rises)
            ]
        )
        return self.blend(factors, rows), einsum(tangents, jacobian, "k n d, d n e -> k n e")

    def corners(self, unit: Float[Tensor, "N D"]) -> tuple[list[Pair], Int[Tensor, "L N V"]]:
        """The interpolation factors "L N" of an axis' two vertices, for each axis, and the corners' rows of the table.

        A corner's weight is the product of its factors. Points vary fastest, so that an operation is one long loop.
        """
        factors, vertices = [], []
        for coordinate, cells in zip(unit.unbind(-1), self.cells, strict=True):
            position = coordinate * cells[:, None] + 0.5
            cell = position.floor()
            fraction = position - cell
            factors.append((1 - fraction, fraction))
            vertices.append(cell.int())
        return factors, self.rows(vertices)

    def rows(self, cells: Sequence[Int[Tensor, "L N"]]) -> Int[Tensor, "L N V"]:
        """The rows of the table that hold the corners of cells, given along each axis (section 3, equation 4)."""
        dense = len(self.dense_sizes)
        first = sum(cell[:dense] * stride for cell, stride in zip(cells, self.strides.unbind(-1), strict=True))
        # The other corners are less than a table away, so that only the first one takes a division.
        first = torch.remainder(first, self.dense_sizes)
        dense_rows = [first + stride for stride in self.corner_strides]
        dense_rows = [torch.where(row < self.dense_sizes, row, row - self.dense_sizes) for row in dense_rows]
        products = [cell[dense:] * prime for cell, prime in zip(cells, PRIMES, strict=False)]
        steps = [(low, low + prime) for low, prime in zip(products, PRIMES, strict=False)]
        hashed_rows = combine(torch.bitwise_xor, steps)
        rows = [torch.stack(dense_rows, dim=-1), torch.stack(hashed_rows, dim=-1) & self.mask]
        return torch.cat(rows) + self.offsets

    def blend(self, factors: Sequence[Pair], rows: Int[Tensor, "L N V"]) -> Float[Tensor, "N E"]:
        """The sums over corners of the table's rows, times their weights."""
        weights = torch.stack(combine(torch.mul, factors), dim=-1)
        if weights.device.type != "cpu" or torch.compiler.is_compiling():
            # Elsewhere the sum is one kernel; and on a GPU index_add_ would not repeat its results bit for bit.
            features = einsum(weights, self.table[rows], "l n v, l n v f -> n l f")
        else:
            sums = WeightedRows.apply(self.table, rows.flatten(0, 1), weights.flatten(0, 1))
            features = rearrange(sums, "(l n) f -> n l f", l=self.config.levels)
        return features.flatten(1)


def combine(operation: Callable[[Tensor, Tensor], Tensor], pairs: Sequence[Pair]) -> list[Tensor]:
    """An operation on one member of each pair, for all choices of members; the last pair's varies fastest."""
    return [reduce(operation, choice) for choice in product(*pairs)]


class WeightedRows(torch.autograd.Function):
    """Sums "M F" over v of weights[m, v] · table[rows[m, v]], on a CPU several times faster than by indexing.

    Differentiable any number of times in table and weights, in both modes, and under ``torch.func.vmap``. PyTorch's
    ``embedding_bag`` doesn't store the rows that it adds up, but its gradient is slow, and so is that of indexing;
    ``index_add_`` is fast where it adds numbers, not rows.
    """

    @staticmethod
    def forward(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        return F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        table, rows, weights = ctx.saved_tensors
        corners = [row.long() for row in rows.unbind(1)]
        table_gradient = weight_gradient = None
        if ctx.needs_input_grad[0]:
            table_gradient = gradient.new_zeros(table.shape)
            for place, column in enumerate(gradient.unbind(1)):
                for row, weight in zip(corners, weights.unbind(1), strict=True):
                    table_gradient[:, place].index_add_(0, row, weight * column)
        if ctx.needs_input_grad[2]:
            weight_gradient = torch.stack([(table[row] * gradient).sum(1) for row in corners], dim=1)
        return table_gradient, None, weight_gradient

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        table, rows, weights = ctx.saved_tensors
        of_table, _, of_weights = tangents
        parts = [] if of_table is None else [WeightedRows.apply(of_table, rows, weights)]
        parts += [] if of_weights is None else [WeightedRows.apply(table, rows, of_weights)]
        return sum(parts[1:], parts[0])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Tensor, int]:
        size = info.batch_size
        table, rows, weights = (
            each.expand(size, *each.shape) if dim is None else each.movedim(dim, 0)
            for each, dim in zip(inputs, in_dims, strict=True)
        )
        starts = torch.arange(size, device=rows.device)[:, None, None] * table.shape[1]
        sums = WeightedRows.apply(*(each.flatten(0, 1) for each in (table, rows + starts, weights)))
        return sums.unflatten(0, (size, -1)), 0


@cache
def fused_grid(config: HashGridConfig, in_features: int, device: torch.device) -> nn.Module | None:
    """tiny-cuda-nn's kernel for this grid, None where it cannot be imported; its own parameters are not used."""
    try:
        tinycudann = import_module("tinycudann")
    except (ImportError, OSError):
        return None
    options = {
        "otype": "HashGrid",
        "n_levels": config.levels,
        "n_features_per_level": config.level_features,
        "log2_hashmap_size": config.table_log2,
        "base_resolution": config.base_resolution,
        "per_level_scale": config.growth,
        "interpolation": "Linear",
    }
    with torch.cuda.device(device):
        return tinycudann.Encoding(in_features, options, dtype=torch.float32)
