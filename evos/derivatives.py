"""Derivatives of fields by forward mode, carried beside the values, and finite-difference targets to train them on.

One pass gives values and Jacobian, and one reverse pass through it the parameters' gradients: the gradients of the
Sobolev loss (ECCV 2022, arXiv 2207.10395) for less than differentiating one reverse pass per channel. Fields know the
rules of their layers (evos/fields/base.py); any other module goes through torch.func.

Letters: N points, D coordinate axes, C channels, K tangents, H and O features, S spatial axes.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Inexact
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call, jvp, vmap

from evos.config import check_choice
from evos.fields import MLPField, RealMLPField
from evos.fields.fused import Layers, product, scaled_weights

CPU_POINTS = 8192
"""Points that a CPU carries through all layers at a time, so that what a layer works on stays in the cache."""

SMOOTHING = {"diff": (0.0, 1.0, 0.0), "sobel": (0.25, 0.5, 0.25), "scharr": (3 / 16, 10 / 16, 3 / 16)}
"""Weights of three neighbours across the direction of the difference, for each operator; they add up to 1."""


def value_and_jacobian(
    field: nn.Module, coords: Float[Tensor, "N D"]
) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N C D"]]:
    """A field's values and their derivatives by each coordinate, differentiable in its parameters.

    Args:
        field: any module of which a point's values depend on that point alone.
        coords: in [-1, 1]; the Jacobian is per unit of these (times evos.coords.spacing: per pixel).
    """
    directions = torch.eye(coords.shape[-1], dtype=coords.dtype, device=coords.device)
    values, derivatives = value_and_tangents(field, coords, directions[:, None])
    return values, rearrange(derivatives, "d n c -> n c d")


def value_and_tangents(
    field: nn.Module, coords: Float[Tensor, "N D"], tangents: Float[Tensor, "K #N D"]
) -> tuple[Float[Tensor, "N C"], Float[Tensor, "K N C"]]:
    """A field's values and their derivatives along K directions, of each point its own or the same for all.

    Differentiable in parameters, coordinates and tangents; once where the field is a RealMLPField, whose gradient is
    written by hand.
    """
    tangents = tangents.expand(-1, *coords.shape)
    if not isinstance(field, MLPField):
        return forward_mode(field, coords, tangents)
    values, tangents = encode(field.encoding, coords, tangents)
    points = CPU_POINTS if coords.device.type == "cpu" else max(1, len(coords))
    layers = scaled_weights(field)
    parts = [
        carry(field, layers, some_values, some_tangents)
        for some_values, some_tangents in zip(values.split(points), tangents.split(points, dim=1), strict=True)
    ]
    return torch.cat([part for part, _ in parts]).real, torch.cat([part for _, part in parts], dim=1).real


def forward_mode(
    field: nn.Module, coords: Float[Tensor, "N D"], tangents: Float[Tensor, "K N D"]
) -> tuple[Float[Tensor, "N C"], Float[Tensor, "K N C"]]:
    """A module's values and their derivatives along the tangents, by torch.func: for modules without rules of ours."""
    out_dims: Any = (None, 0)  # the values are the same for every tangent
    derivative: Any = vmap(lambda tangent: jvp(field, (coords,), (tangent,)), out_dims=out_dims)
    return derivative(tangents)


def change_along(
    field: nn.Module, coords: Float[Tensor, "N D"], weights: Mapping[str, Tensor], direction: Mapping[str, Tensor]
) -> Float[Tensor, "N C"]:
    """The derivative of a field's values by its parameters, at ``weights``, along a ``direction`` of these.

    Along the gradient of a loss it is the tangent kernel times the loss's gradient by the values. Both are named as in
    ``named_parameters``. FINER's scale counts as a constant, as in its gradient.
    """
    return jvp(lambda weights: functional_call(field, weights, (coords,)), (dict(weights),), (dict(direction),))[1]


def laplacian_of(field: nn.Module, coords: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
    """The sum of a field's second derivatives by each coordinate, differentiable in its parameters.

    A RealMLPField without encoding carries values, first derivatives and Laplacian together: of a(z) the Laplacian is
    a'(z) lap z + a''(z) |grad z|². Any other field takes a forward mode inside another. FINER's scale counts as a
    constant here as it does in its gradient; piecewise linear fields have Laplacian 0.
    """
    basis = torch.eye(coords.shape[-1], dtype=coords.dtype, device=coords.device)
    directions = basis[:, None].expand(-1, *coords.shape)
    if not isinstance(field, RealMLPField) or not isinstance(field.encoding, nn.Identity):

        def second(direction: Tensor) -> Tensor:
            return jvp(lambda x: jvp(field, (x,), (direction,))[1], (coords,), (direction,))[1]

        return vmap(second)(directions).sum(0)
    *hidden, last = scaled_weights(field)
    z, derivatives = coords, torch.cat([directions, torch.zeros_like(coords)[None]])
    for index, layer in enumerate(hidden):
        z, derivatives = linear(z, derivatives, *layer)
        value, slope = field.activation_with_slope(z, index)
        curvature = field.activation_curvature(z, value, slope, index)
        bend = curvature * derivatives[:-1].square().sum(0)
        z, derivatives = value, torch.cat([slope * derivatives[:-1], (slope * derivatives[-1] + bend)[None]])
    return linear(z, derivatives, *last)[1][-1]


# ---- carrying tangents through layers


def encode(
    encoding: nn.Module, coords: Float[Tensor, "N D"], tangents: Float[Tensor, "K N D"]
) -> tuple[Float[Tensor, "N E"], Float[Tensor, "K N E"]]:
    """Values and tangents of an encoding: by its own rule, or forward mode where it has none."""
    if isinstance(encoding, nn.Identity):
        return coords, tangents
    rule: Any = getattr(encoding, "with_tangents", None)
    return forward_mode(encoding, coords, tangents) if rule is None else rule(coords, tangents)


def linear(
    values: Inexact[Tensor, "N H"],
    tangents: Inexact[Tensor, "K N H"],
    weight: Inexact[Tensor, "O H"],
    bias: Inexact[Tensor, "O"],
) -> tuple[Inexact[Tensor, "N O"], Inexact[Tensor, "K N O"]]:
    """A linear layer; the bias moves the values only."""
    return F.linear(values, weight, bias), tangents @ weight.T


def carry(
    field: MLPField, layers: Layers, values: Float[Tensor, "N H"], tangents: Float[Tensor, "K N H"]
) -> tuple[Inexact[Tensor, "N C"], Inexact[Tensor, "K N C"]]:
    """Values and tangents through all layers."""
    first, *others = layers
    values, tangents = linear(values, tangents, *first)
    for index, (weight, bias) in enumerate(others):
        if isinstance(field, RealMLPField):
            values, tangents = ActivateThenLinear.apply(values, tangents, weight, bias, field, index)
        else:
            values, tangents = linear(*field.activation_tangents(values, tangents, index), weight, bias)
    return values, tangents


class ActivateThenLinear(torch.autograd.Function):
    """An activation and the linear layer after it, with the gradient written by hand.

    Saves the pre-activations z and their tangents, the activation and its slope; the tangents after the activation are
    made again from them. The values have a product of their own, F.linear as in the field, to be rounded like the
    field's: a Gauss network's float32 gradients change by 1e-5 where its sums are taken in another order.
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, tangents: Tensor, weight: Tensor, bias: Tensor, field: RealMLPField, index: int
    ) -> tuple[Tensor, Tensor]:
        value, slope = field.activation_with_slope(z, index)
        ctx.save_for_backward(z, tangents, value, slope, weight)
        ctx.field, ctx.index = field, index
        return F.linear(value, weight, bias), product(slope * tangents, weight.T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values_gradient, tangents_gradient = gradients
        z, tangents, value, slope, weight = ctx.saved_tensors
        flat = tangents_gradient.flatten(0, 1)
        weight_gradient = product(values_gradient.T, value) + product(flat.T, (slope * tangents).flatten(0, 1))
        z_gradient, tangents_gradient = product(values_gradient, weight), product(tangents_gradient, weight)
        # The slope that the tangents were multiplied with depends on z, too.
        bend = torch.zeros_like(value)
        for gradient, tangent in zip(tangents_gradient, tangents, strict=True):
            bend.addcmul_(gradient, tangent)
        z_gradient.mul_(slope).addcmul_(bend, ctx.field.activation_curvature(z, value, slope, ctx.index))
        return z_gradient, tangents_gradient.mul_(slope), weight_gradient, values_gradient.sum(0), None, None


# ---- finite differences


def spatial_gradient(signal: Float[Tensor, "B C *S"], operator: str = "sobel") -> Float[Tensor, "B C D *S"]:
    """Derivatives along each axis of a sampled signal (D axes: 1 for sound, 2 for images), per sample.

    A central difference (f[i+1] - f[i-1]) / 2 along the axis, smoothed with SMOOTHING along the others; edge samples
    are repeated outwards. So a ramp of slope s gives s, and s / 2 on the first and the last sample of its axis. For
    images, diff and sobel equal kornia's ``spatial_gradient(order=1, normalized=True)`` but for the order of D: the
    signal's own, row y before column x, as in evos/coords.py. In 1-D the three operators are the same.

    Args:
        signal: at least one sample along each axis.
        operator: diff (no smoothing), sobel or scharr (a rounder response).

    Raises:
        InputError: unknown operator.
    """
    check_choice("operator", operator, SMOOTHING)
    axes = range(2, signal.ndim)
    smooth = SMOOTHING[operator]

    def derivative(along: int) -> Tensor:
        result = signal
        for axis in axes:
            result = correlate(result, (-0.5, 0.0, 0.5) if axis == along else smooth, axis)
        return result

    return torch.stack([derivative(axis) for axis in axes], dim=2)


def spatial_hessian(signal: Float[Tensor, "B C *S"]) -> Float[Tensor, "B C D D *S"]:
    """Second derivatives of a sampled signal, per sample², in the axis order of ``spatial_gradient``.

    f[i+1] - 2 f[i] + f[i-1] along one axis and the central difference of the central difference for two: exact on
    quadratics but for the samples at the edges, which are repeated outwards.
    """
    axes = range(2, signal.ndim)
    central = (-0.5, 0.0, 0.5)

    def derivative(a: int, b: int) -> Tensor:
        if a == b:
            return correlate(signal, (1.0, -2.0, 1.0), a)
        return correlate(correlate(signal, central, a), central, b)

    rows = [torch.stack([derivative(a, b) for b in axes], dim=2) for a in axes]
    return torch.stack(rows, dim=2)


def correlate(signal: Tensor, weights: tuple[float, float, float], axis: int) -> Tensor:
    """Each sample's neighbours before, at and after it along an axis, weighted; edge samples are repeated."""
    size = signal.shape[axis]
    before = torch.cat([signal.narrow(axis, 0, 1), signal.narrow(axis, 0, size - 1)], axis)
    after = torch.cat([signal.narrow(axis, 1, size - 1), signal.narrow(axis, size - 1, 1)], axis)
    return weights[0] * before + weights[1] * signal + weights[2] * after
