"""ReLU networks: plain, and with NeRF's positional encoding (Mildenhall et al., "NeRF", ECCV 2020, section 5.1)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from evos.config import check_range
from evos.fields.base import Field, FieldConfig, RealMLPField, linear_layers


class ReluField(RealMLPField):
    """max(0, W x + b), with PyTorch's initial weights U(+-1/sqrt(n)) as in FINER's released comparison.

    Args:
        config: hidden_features and hidden_layers are used.
        in_features: D, or the encoding's out_features.
        out_features: C.
        encoding: module from coordinates to in_features, or None.
    """

    def __init__(
        self, config: FieldConfig, in_features: int, out_features: int, encoding: nn.Module | None = None
    ) -> None:
        widths = [in_features, *[config.hidden_features] * (config.hidden_layers + 1), out_features]
        super().__init__(linear_layers(widths), encoding)

    def activation(self, z: Float[Tensor, "*N H"], layer_index: int) -> Float[Tensor, "*N H"]:
        """ReLU."""
        return torch.relu(z)

    def activation_and_derivative(
        self, z: Float[Tensor, "*N H"], layer_index: int
    ) -> tuple[Float[Tensor, "*N H"], Float[Tensor, "*N H"]]:
        """ReLU and a step, 0 at 0 as in PyTorch."""
        value = torch.relu(z)
        return value, value.sign()  # several times faster than a comparison made a float

    def activation_second_derivative(
        self,
        z: Float[Tensor, "*N H"],
        value: Float[Tensor, "*N H"],
        derivative: Float[Tensor, "*N H"],
        layer_index: int,
    ) -> Float[Tensor, "*N H"]:
        """0."""
        return torch.zeros_like(z)


@dataclass(frozen=True)
class ReluConfig(FieldConfig):
    """Options of the plain ReLU network."""

    name: ClassVar[str] = "relu"
    default_lr: ClassVar[float] = 1e-3

    def build(self, in_features: int, out_features: int) -> Field:
        """A ReLU network with fresh weights."""
        return ReluField(self, in_features, out_features)


class PositionalEncoding(nn.Module):
    """x, sin(2^k x), cos(2^k x) for k = 0 .. frequencies - 1.

    Without NeRF's factor pi and with x itself, as in the PEMLP that FINER and EVOS compare with.
    """

    octaves: Tensor

    def __init__(self, in_features: int, frequencies: int) -> None:
        super().__init__()
        self.out_features = in_features * (1 + 2 * frequencies)
        self.register_buffer("octaves", 2.0 ** torch.arange(frequencies), persistent=False)

    def forward(self, coords: Float[Tensor, "*N D"]) -> Float[Tensor, "*N E"]:
        """The encoded coordinates: identity, sines, cosines."""
        angles = rearrange(coords[..., None] * self.octaves, "... d k -> ... (d k)")
        return torch.cat([coords, angles.sin(), angles.cos()], dim=-1)

    def forward_with_tangents(
        self, coords: Float[Tensor, "N D"], tangents: Float[Tensor, "K N D"]
    ) -> tuple[Float[Tensor, "N E"], Float[Tensor, "K N E"]]:
        """The encoded coordinates, and their derivatives along each tangent."""
        angles, rates = (rearrange(x[..., None] * self.octaves, "... d k -> ... (d k)") for x in (coords, tangents))
        sines, cosines = angles.sin(), angles.cos()
        return (
            torch.cat([coords, sines, cosines], dim=-1),
            torch.cat([tangents, cosines * rates, -sines * rates], dim=-1),
        )


@dataclass(frozen=True)
class PemlpConfig(FieldConfig):
    """Options of the ReLU network with positional encoding."""

    name: ClassVar[str] = "pemlp"
    default_lr: ClassVar[float] = 1e-3

    frequencies: int = 10
    """Octaves of the positional encoding; 1 to 32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("frequencies", self.frequencies, 1, 32)

    def build(self, in_features: int, out_features: int) -> Field:
        """A ReLU network with positional encoding and fresh weights."""
        encoding = PositionalEncoding(in_features, self.frequencies)
        return ReluField(self, encoding.out_features, out_features, encoding)
