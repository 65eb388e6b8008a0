"""The base classes of neural fields: a config that builds a module from coordinates to values, and the layer loop.

Coordinates lie in [-1, 1], one column per axis. Letters: N points, D coordinate axes, C channels, H hidden features,
K tangents (directions of derivatives) propagated with the values: see evos/derivatives.py.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Inexact
from torch import Tensor, nn

from evos.config import check_range


class Field(nn.Module, ABC):
    """A module from coordinates to values."""

    @abstractmethod
    def forward(self, coords: Float[Tensor, "*N D"]) -> Float[Tensor, "*N C"]:
        """The values at coordinates in [-1, 1]."""


@dataclass(frozen=True)
class FieldConfig(ABC):
    """Options of a neural field, and how to build it."""

    name: ClassVar[str]
    """Key in FIELDS."""
    default_lr: ClassVar[float]
    """Adam's learning rate in the paper of the family, or in EVOS where that trains the family."""

    hidden_features: int = 256
    """Width of the hidden layers; at least 1."""
    hidden_layers: int = 3
    """Layers from hidden to hidden; as in SIREN's code, a first and a linear last one come on top; at least 0."""

    def __post_init__(self) -> None:
        check_range("hidden_features", self.hidden_features, 1)
        check_range("hidden_layers", self.hidden_layers, 0)

    @abstractmethod
    def build(self, in_features: int, out_features: int) -> Field:
        """A field with fresh weights, drawn from PyTorch's global generator: see ``build_field`` for seeded ones."""


class ScaledLinear(nn.Linear):
    """``gain * (W x + b)`` at about the cost of ``W x + b``.

    The gain (SIREN's omega, Gauss's scale) multiplies the small weights instead of the N x H activations, which are
    then written once. W and b remain the paper's, and so do initialisations, learning rates and checkpoints.
    """

    def __init__(self, in_features: int, out_features: int, gain: float, dtype: torch.dtype | None = None) -> None:
        super().__init__(in_features, out_features, dtype=dtype)
        self.gain = gain

    def forward(self, input: Inexact[Tensor, "*N I"]) -> Inexact[Tensor, "*N O"]:
        """``gain * (W x + b)``."""
        if self.gain == 1:
            return super().forward(input)
        return F.linear(input, self.gain * self.weight, self.gain * self.bias)

    def extra_repr(self) -> str:
        """nn.Linear's, and the gain."""
        return f"{super().extra_repr()}, gain={self.gain:g}"


def linear_layers(widths: Sequence[int], first_gain: float = 1.0, gain: float = 1.0) -> list[ScaledLinear]:
    """Layers between the given widths, with PyTorch's initial weights; the last one, linear, has gain 1."""
    gains = [first_gain, *[gain] * (len(widths) - 3), 1.0]
    return [ScaledLinear(a, b, g) for (a, b), g in zip(pairwise(widths), gains, strict=True)]


@torch.no_grad()
def scale_weights(layers: Sequence[nn.Linear], factor: float) -> None:
    """Multiply the weights of all but the last layer: weight-scaling initialisation (ICLR 2025, arXiv 2410.04779)."""
    for layer in layers[:-1]:
        layer.weight.mul_(factor)


class MLPField(Field):
    """An encoding if any, layers with an elementwise activation in between, and a linear last layer.

    Args:
        layers: the linear layers, initialised.
        encoding: module from coordinates to the first layer's input; None for the coordinates themselves.
    """

    def __init__(self, layers: Sequence[ScaledLinear], encoding: nn.Module | None = None) -> None:
        super().__init__()
        self.encoding = nn.Identity() if encoding is None else encoding
        self.layers = nn.ModuleList(layers)
        self.gains = [layer.gain for layer in layers[:-1]]

    @abstractmethod
    def activation(self, z: Inexact[Tensor, "*N H"], layer_index: int) -> Inexact[Tensor, "*N H"]:
        """The nonlinearity after a layer, given ``z = gain * (W x + b)``, gain = ``self.gains[layer_index]``."""

    @abstractmethod
    def activation_tangents(
        self, z: Inexact[Tensor, "N H"], tangents: Inexact[Tensor, "K N H"], layer_index: int
    ) -> tuple[Inexact[Tensor, "N H"], Inexact[Tensor, "K N H"]]:
        """``activation`` at z, and its derivatives where z moves along each of the tangents."""

    def forward(self, coords: Float[Tensor, "*N D"]) -> Float[Tensor, "*N C"]:
        """The values at coordinates in [-1, 1]."""
        *hidden, last = self.layers
        x = self.encoding(coords)
        for index, layer in enumerate(hidden):
            x = self.activation(layer(x), index)
        return last(x).real  # a real tensor's .real is the tensor itself; WIRE computes in complex numbers


class RealMLPField(MLPField):
    """An MLPField whose activation is real and has its first two derivatives in closed form."""

    @abstractmethod
    def activation_and_derivative(
        self, z: Float[Tensor, "*N H"], layer_index: int
    ) -> tuple[Float[Tensor, "*N H"], Float[Tensor, "*N H"]]:
        """The activation and its derivative with respect to z."""

    @abstractmethod
    def activation_second_derivative(
        self,
        z: Float[Tensor, "*N H"],
        value: Float[Tensor, "*N H"],
        derivative: Float[Tensor, "*N H"],
        layer_index: int,
    ) -> Float[Tensor, "*N H"]:
        """The activation's second derivative, given what ``activation_and_derivative`` returned."""

    def activation_tangents(
        self, z: Float[Tensor, "N H"], tangents: Float[Tensor, "K N H"], layer_index: int
    ) -> tuple[Float[Tensor, "N H"], Float[Tensor, "K N H"]]:
        """``activation`` at z, and its derivative times each tangent."""
        value, derivative = self.activation_and_derivative(z, layer_index)
        return value, derivative * tangents


def build_field(
    config: FieldConfig, in_features: int, out_features: int, *, seed: int, device: torch.device | str = "cpu"
) -> Field:
    """A field whose initial weights follow from the seed on any device; the global generators are left as they were.

    Args:
        config: family and options.
        in_features: D, coordinate axes; at least 1.
        out_features: C, channels; at least 1.
        seed: seed of the initial weights.
        device: where the field goes once it is initialised (on the CPU).

    Raises:
        InputError: a number of features below 1, or more axes than the family takes.
    """
    check_range("in_features", in_features, 1)
    check_range("out_features", out_features, 1)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every GPU's generator as well
        field = config.build(in_features, out_features)
    return field.to(device)
