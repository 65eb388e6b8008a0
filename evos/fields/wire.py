"""WIRE: complex Gabor wavelets (Saragadam et al., "WIRE: Wavelet Implicit Neural Representations", CVPR 2023)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Complex, Float, Inexact
from torch import Tensor

from evos.config import check_range
from evos.fields.base import Field, FieldConfig, MLPField, ScaledLinear, scale_weights


@dataclass(frozen=True)
class WireConfig(FieldConfig):
    """Options of WIRE; layers are hidden_features / sqrt(2) wide, so that complex weights are as many real numbers."""

    name: ClassVar[str] = "wire"
    default_lr: ClassVar[float] = 5e-3

    omega: float = 20.0
    """Frequency of the hidden layers' wavelets; above 0."""
    first_omega: float = 20.0
    """Frequency of the first layer's wavelets; above 0."""
    scale: float = 10.0
    """Inverse width of the wavelets' Gaussian envelope; above 0."""
    init_scale: float = 1.0
    """Factor on the initial weights of all but the last layer (weight-scaling initialisation); above 0, 1 is off."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("omega", "first_omega", "scale", "init_scale"):
            check_range(option, getattr(self, option), 0, 1e4, open_low=True)

    def build(self, in_features: int, out_features: int) -> Field:
        """A WIRE with fresh weights."""
        return Wire(self, in_features, out_features)


class Wire(MLPField):
    """exp(i omega z - |scale z|^2) with z = W x + b; the field is the real part of the linear last layer.

    The first layer's weights are real, all others complex, with PyTorch's initial weights as in the released code: real
    and imaginary parts U(+-1/sqrt(n)) for n inputs. Their precision is the default dtype's at construction:
    nn.Module.double() converts the real ones only.
    """

    def __init__(self, config: WireConfig, in_features: int, out_features: int) -> None:
        width = max(1, int(config.hidden_features / math.sqrt(2)))
        dtype = torch.get_default_dtype().to_complex()
        layers = [
            ScaledLinear(in_features, width, config.first_omega),
            *(ScaledLinear(width, width, config.omega, dtype) for _ in range(config.hidden_layers)),
            ScaledLinear(width, out_features, 1.0, dtype),
        ]
        scale_weights(layers, config.init_scale)
        super().__init__(layers)
        self.scale = config.scale

    def activation(self, z: Inexact[Tensor, "*N H"], layer_index: int) -> Complex[Tensor, "*N H"]:
        """Gabor wavelet, given omega z."""
        envelope = (self.scale / self.gains[layer_index]) ** 2
        if layer_index == 0:
            return wavelet(-envelope * z.square(), z)
        # exp(i (a + ib) - c (a^2 + b^2)) by modulus and phase: cheaper than a complex exponential and a complex |z|.
        a, b = z.real, z.imag
        return wavelet(-b - envelope * (a.square() + b.square()), a)

    def activation_tangents(
        self, z: Inexact[Tensor, "N H"], tangents: Inexact[Tensor, "K N H"], layer_index: int
    ) -> tuple[Complex[Tensor, "N H"], Complex[Tensor, "K N H"]]:
        """Gabor wavelet w and w (i t - 2 c Re(conj(z) t)) per tangent t, c the envelope: |z|² is not holomorphic."""
        value = self.activation(z, layer_index)
        inward = -2 * (self.scale / self.gains[layer_index]) ** 2
        if layer_index == 0:
            return value, value * torch.complex(inward * z * tangents, tangents)
        radial = inward * (z.real * tangents.real + z.imag * tangents.imag)
        return value, value * torch.complex(radial - tangents.imag, tangents.real)


def wavelet(exponent: Float[Tensor, "*N H"], phase: Float[Tensor, "*N H"]) -> Complex[Tensor, "*N H"]:
    """exp(exponent + i phase), of a modulus that is at least the smallest normal number.

    The gradient of ``torch.polar`` divides by the modulus: below that it overflows with the instructions of some CPUs.
    """
    return torch.polar(exponent.exp().clamp(min=torch.finfo(exponent.dtype).tiny), phase)
