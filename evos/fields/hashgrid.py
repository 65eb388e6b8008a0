"""Multiresolution hash grid, small ReLU network (Müller et al., "Instant Neural Graphics Primitives", SIGGRAPH 2022).

Letters: L levels, V = 2^D corners of a cell, F features per level, T rows of a hashed level's table.
"""

import math
from dataclasses import dataclass
from functools import cache, reduce
from importlib import import_module
from itertools import product
from typing import ClassVar

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from evos.config import check_range
from evos.fields.base import Field, FieldConfig
from evos.fields.mlp import ReluField

PRIMES = (1, 2654435761, 805459861, 3674653429, 2097192037, 1434869437, 2165219737)


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

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("levels", self.levels, 1, 32)
        check_range("table_log2", self.table_log2, 3, 24)
        check_range("level_features", self.level_features, 1, 8)
        check_range("base_resolution", self.base_resolution, 2)
        check_range("finest_resolution", self.finest_resolution, self.base_resolution, 2**20)

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

    def table_sizes(self, in_features: int) -> list[int]:
        """Rows that each level would have in the table if none were hashed: its vertices, rounded up to eights."""
        return [math.ceil((math.ceil(n) + 1) ** in_features / 8) * 8 for n in self.cells]

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
        config: levels, table_log2, level_features and resolutions are used.
        in_features: D, 1 to 7 (the hash has seven primes).

    Raises:
        InputError: more than 7 axes.
    """

    cells: Tensor
    corners: Tensor
    strides: Tensor
    dense_sizes: Tensor
    primes: Tensor
    offsets: Tensor

    def __init__(self, config: HashGridConfig, in_features: int) -> None:
        super().__init__()
        check_range("in_features", in_features, 1, len(PRIMES))
        self.config = config
        self.out_features = config.levels * config.level_features

        cells = config.cells
        resolutions = [math.ceil(n) + 1 for n in cells]
        limit = 2**config.table_log2
        sizes = torch.tensor([min(size, limit) for size in config.table_sizes(in_features)])
        dense = [r for r in resolutions if r**in_features <= limit]

        self.table = nn.Parameter(torch.empty(int(sizes.sum()), config.level_features))
        nn.init.uniform_(self.table, -1e-4, 1e-4)  # section 4
        self.mask = limit - 1
        constants = {
            "cells": torch.tensor(cells),
            "corners": torch.tensor(list(product((0, 1), repeat=in_features))),
            "strides": torch.tensor(dense, dtype=torch.long).view(-1, 1, 1) ** torch.arange(in_features),
            "dense_sizes": sizes[: len(dense), None],
            "primes": torch.tensor(PRIMES[:in_features]),
            "offsets": (sizes.cumsum(0) - sizes)[:, None],
        }
        for name, constant in constants.items():
            self.register_buffer(name, constant, persistent=False)

    def forward(self, coords: Float[Tensor, "*N D"]) -> Float[Tensor, "*N E"]:
        """The features at coordinates in [-1, 1], level by level."""
        unit = (coords + 1) / 2
        fusible = coords.is_cuda and self.table.dtype == torch.float32
        fused = fused_grid(self.config, coords.shape[-1], coords.device) if fusible else None
        if fused is None:
            return self.interpolate(unit)
        features = functional_call(fused, {"params": self.table.flatten()}, (unit.reshape(-1, coords.shape[-1]),))
        return features.view(*coords.shape[:-1], -1)

    def interpolate(self, unit: Float[Tensor, "*N D"]) -> Float[Tensor, "*N E"]:
        """The features at coordinates in [0, 1], in plain PyTorch."""
        per_axis, features = self.corner_weights(unit)
        # Not prod, whose gradient looks for zeros among the factors and so waits for the host.
        weights = reduce(torch.mul, per_axis.unbind(-1))
        return rearrange(einsum(weights, features, "... l v, ... l v f -> ... l f"), "... l f -> ... (l f)")

    def forward_with_tangents(
        self, coords: Float[Tensor, "N D"], tangents: Float[Tensor, "K N D"]
    ) -> tuple[Float[Tensor, "N E"], Float[Tensor, "K N E"]]:
        """The features, and their derivatives along each tangent; tiny-cuda-nn has no forward mode."""
        stacked, features = self.corner_weights((coords + 1) / 2)
        per_axis = stacked.unbind(-1)
        weights = reduce(torch.mul, per_axis)
        # A weight is a product of one factor per axis, each linear in its coordinate with derivative +-cells / 2.
        signs = (2 * self.corners - 1).to(stacked.dtype)
        weight_derivatives = torch.stack(
            [
                reduce(torch.mul, per_axis[:axis] + per_axis[axis + 1 :], signs[:, axis].expand_as(weights))
                for axis in range(len(per_axis))
            ]
        )
        jacobian = einsum(weight_derivatives, features, self.cells / 2, "d n l v, n l v f, l -> d n l f")
        return (
            rearrange(einsum(weights, features, "n l v, n l v f -> n l f"), "n l f -> n (l f)"),
            rearrange(einsum(tangents, jacobian, "k n d, d n l f -> k n l f"), "k n l f -> k n (l f)"),
        )

    def corner_weights(
        self, unit: Float[Tensor, "*N D"]
    ) -> tuple[Float[Tensor, "*N L V D"], Float[Tensor, "*N L V F"]]:
        """Each corner's interpolation weight along each axis (its weight is their product), and its features."""
        position = unit[..., None, :] * self.cells[:, None] + 0.5
        cell = position.floor()
        fraction = (position - cell)[..., None, :]
        per_axis = torch.where(self.corners == 1, fraction, 1 - fraction)
        return per_axis, self.table[self.rows(cell.long()[..., None, :] + self.corners)]

    def rows(self, vertices: Int[Tensor, "*N L V D"]) -> Int[Tensor, "*N L V"]:
        """The rows of the table that hold the given vertices (section 3, equation 4)."""
        dense, hashed = vertices.tensor_split([len(self.dense_sizes)], dim=-3)
        dense_rows = (dense * self.strides).sum(-1) % self.dense_sizes
        hashed_rows = reduce(torch.bitwise_xor, (hashed * self.primes).unbind(-1)) & self.mask
        return torch.cat([dense_rows, hashed_rows], dim=-2) + self.offsets


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
