"""FINER: sines whose frequency grows with their input (Liu et al., "FINER: Flexible Spectral-bias ...", CVPR 2024)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evos.config import check_range
from evos.fields.base import Field
from evos.fields.siren import Siren, SirenConfig


@dataclass(frozen=True)
class FinerConfig(SirenConfig):
    """Options of FINER: SIREN's and the range of the first biases."""

    name: ClassVar[str] = "finer"
    default_lr: ClassVar[float] = 5e-4

    first_bias_scale: float | None = None
    """k of the first layer's initial biases U(-k, k), larger for higher frequencies; above 0; none: U(+-1/sqrt(D))."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("first_bias_scale", self.first_bias_scale, 0, 1e4, open_low=True)

    def build(self, in_features: int, out_features: int) -> Field:
        """A FINER with fresh weights."""
        return Finer(self, in_features, out_features)


class Finer(Siren):
    """sin(omega (|z| + 1) z) with z = W x + b and SIREN's initial weights.

    The factor |z| + 1 counts as a constant in the gradient, the default of the released code.
    """

    def __init__(self, config: FinerConfig, in_features: int, out_features: int) -> None:
        super().__init__(config, in_features, out_features)
        if config.first_bias_scale is not None:
            nn.init.uniform_(self.get_parameter("layers.0.bias"), -config.first_bias_scale, config.first_bias_scale)

    def activation(self, z: Float[Tensor, "*N H"], layer_index: int) -> Float[Tensor, "*N H"]:
        """Sine of the angle."""
        return torch.sin(self.angle(z, layer_index))

    def activation_and_derivative(
        self, z: Float[Tensor, "*N H"], layer_index: int
    ) -> tuple[Float[Tensor, "*N H"], Float[Tensor, "*N H"]]:
        """Sine of the angle and its derivative, q cos(angle)."""
        angle = self.angle(z, layer_index)
        return torch.sin(angle), self.factor(z, layer_index) * torch.cos(angle)

    def activation_second_derivative(
        self,
        z: Float[Tensor, "*N H"],
        value: Float[Tensor, "*N H"],
        derivative: Float[Tensor, "*N H"],
        layer_index: int,
    ) -> Float[Tensor, "*N H"]:
        """Minus q² sin(angle)."""
        return -self.factor(z, layer_index).square() * value

    def angle(self, z: Float[Tensor, "*N H"], layer_index: int) -> Float[Tensor, "*N H"]:
        """``z + |z| z / omega``, that is q z: the paper's argument written in z = omega (W x + b)."""
        return torch.addcmul(z, z.detach().abs(), z, value=1 / self.gains[layer_index])

    def factor(self, z: Float[Tensor, "*N H"], layer_index: int) -> Float[Tensor, "*N H"]:
        """The paper's |W x + b| + 1, q for short: a constant in the gradient."""
        return 1 + z.detach().abs() / self.gains[layer_index]
