"""Random Fourier features (Tancik et al., "Fourier Features Let Networks Learn High Frequency ...", NeurIPS 2020)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from evos.config import check_range
from evos.fields.base import Field, FieldConfig
from evos.fields.mlp import ReluField


class FourierFeatures(nn.Module):
    """cos(pi B x), sin(pi B x) with B drawn from N(0, sigma^2) and kept (equation 5).

    The paper's 2 pi B on [0, 1] is pi B on [-1, 1]: the same sigma gives the same frequencies, in cycles per side.
    """

    frequencies: Tensor

    def __init__(self, in_features: int, features: int, sigma: float) -> None:
        super().__init__()
        self.out_features = 2 * features
        self.register_buffer("frequencies", math.pi * sigma * torch.randn(features, in_features))

    def forward(self, coords: Float[Tensor, "*N D"]) -> Float[Tensor, "*N E"]:
        """The encoded coordinates: cosines, sines."""
        angles = F.linear(coords, self.frequencies)
        return torch.cat([angles.cos(), angles.sin()], dim=-1)

    def forward_with_tangents(
        self, coords: Float[Tensor, "N D"], tangents: Float[Tensor, "K N D"]
    ) -> tuple[Float[Tensor, "N E"], Float[Tensor, "K N E"]]:
        """The encoded coordinates, and their derivatives along each tangent."""
        angles, rates = F.linear(coords, self.frequencies), F.linear(tangents, self.frequencies)
        cosines, sines = angles.cos(), angles.sin()
        return torch.cat([cosines, sines], dim=-1), torch.cat([-sines * rates, cosines * rates], dim=-1)


@dataclass(frozen=True)
class FourierConfig(FieldConfig):
    """Options of the ReLU network on random Fourier features."""

    name: ClassVar[str] = "fourier"
    default_lr: ClassVar[float] = 1e-3

    features: int = 256
    """Random frequencies, each giving a cosine and a sine; at least 1."""
    sigma: float = 10.0
    """Standard deviation of the frequencies, in cycles per side of the signal; above 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("features", self.features, 1)
        check_range("sigma", self.sigma, 0, 1e4, open_low=True)

    def build(self, in_features: int, out_features: int) -> Field:
        """A ReLU network on fresh Fourier features, with fresh weights."""
        encoding = FourierFeatures(in_features, self.features, self.sigma)
        return ReluField(self, encoding.out_features, out_features, encoding)
