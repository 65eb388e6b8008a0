"""SIREN: sine activations (Sitzmann et al., "Implicit Neural Representations with Periodic ...", NeurIPS 2020)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evos.config import check_range
from evos.fields.base import Field, FieldConfig, RealMLPField, linear_layers, scale_weights


@dataclass(frozen=True)
class SirenConfig(FieldConfig):
    """Options of SIREN."""

    name: ClassVar[str] = "siren"
    default_lr: ClassVar[float] = 1e-4

    omega: float = 30.0
    """Frequency factor of the hidden layers; above 0."""
    first_omega: float = 30.0
    """Frequency factor of the first layer: the highest frequency at initialisation grows with it; above 0."""
    init_scale: float = 1.0
    """Factor on the initial weights of all but the last layer (weight-scaling initialisation); above 0, 1 is off."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("omega", "first_omega", "init_scale"):
            check_range(option, getattr(self, option), 0, 1e4, open_low=True)

    def build(self, in_features: int, out_features: int) -> Field:
        """A SIREN with fresh weights."""
        return Siren(self, in_features, out_features)


@torch.no_grad()
def initialise_sine_layers(layers: Sequence[nn.Linear], omega: float) -> None:
    """Draw the weights from U(+-1/n) in the first layer and U(+-sqrt(6/n)/omega) in the others, n inputs each.

    Activations then keep their distribution from layer to layer (SIREN, section 3.2 and theorem 1.8). Biases keep
    PyTorch's U(+-1/sqrt(n)), as in the released code.
    """
    first, *others = layers
    first.weight.uniform_(-1 / first.in_features, 1 / first.in_features)
    for layer in others:
        bound = math.sqrt(6 / layer.in_features) / omega
        layer.weight.uniform_(-bound, bound)


class Siren(RealMLPField):
    """sin(omega (W x + b)), layer after layer."""

    def __init__(self, config: SirenConfig, in_features: int, out_features: int) -> None:
        widths = [in_features, *[config.hidden_features] * (config.hidden_layers + 1), out_features]
        layers = linear_layers(widths, config.first_omega, config.omega)
        initialise_sine_layers(layers, config.omega)
        scale_weights(layers, config.init_scale)
        super().__init__(layers)

    def activation(self, z: Float[Tensor, "*N H"], layer_index: int) -> Float[Tensor, "*N H"]:
        """Sine."""
        return torch.sin(z)

    def activation_and_derivative(
        self, z: Float[Tensor, "*N H"], layer_index: int
    ) -> tuple[Float[Tensor, "*N H"], Float[Tensor, "*N H"]]:
        """Sine and cosine."""
        return torch.sin(z), torch.cos(z)

    def activation_second_derivative(
        self,
        z: Float[Tensor, "*N H"],
        value: Float[Tensor, "*N H"],
        derivative: Float[Tensor, "*N H"],
        layer_index: int,
    ) -> Float[Tensor, "*N H"]:
        """Minus sine."""
        return -value
