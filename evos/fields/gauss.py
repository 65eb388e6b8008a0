"""Gauss: Gaussian activations (Ramasinghe and Lucey, "Beyond Periodicity", ECCV 2022)."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from evos.config import check_range
from evos.fields.base import Field, FieldConfig, RealMLPField, linear_layers


@dataclass(frozen=True)
class GaussConfig(FieldConfig):
    """Options of the Gaussian network."""

    name: ClassVar[str] = "gauss"
    default_lr: ClassVar[float] = 5e-3

    scale: float = 30.0
    """Inverse width of the Gaussian, 1 / (sqrt(2) sigma) in the paper's letters; above 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("scale", self.scale, 0, 1e4, open_low=True)

    def build(self, in_features: int, out_features: int) -> Field:
        """A Gaussian network with fresh weights."""
        return Gauss(self, in_features, out_features)


class Gauss(RealMLPField):
    """exp(-(scale (W x + b))^2), with PyTorch's initial weights U(+-1/sqrt(n)) as in WIRE's released comparison."""

    def __init__(self, config: GaussConfig, in_features: int, out_features: int) -> None:
        widths = [in_features, *[config.hidden_features] * (config.hidden_layers + 1), out_features]
        super().__init__(linear_layers(widths, config.scale, config.scale))

    def activation(self, z: Float[Tensor, "*N H"], layer_index: int) -> Float[Tensor, "*N H"]:
        """Gaussian bell."""
        return z.square().neg_().exp_()  # in place: a tenth of a training step on a CPU

    def activation_and_derivative(
        self, z: Float[Tensor, "*N H"], layer_index: int
    ) -> tuple[Float[Tensor, "*N H"], Float[Tensor, "*N H"]]:
        """The bell, and -2 z times it."""
        value = self.activation(z, layer_index)
        return value, -2 * z * value

    def activation_second_derivative(
        self,
        z: Float[Tensor, "*N H"],
        value: Float[Tensor, "*N H"],
        derivative: Float[Tensor, "*N H"],
        layer_index: int,
    ) -> Float[Tensor, "*N H"]:
        """(4 z² - 2) times the bell."""
        return -2 * (value + z * derivative)
