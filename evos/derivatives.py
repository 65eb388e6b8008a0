"""Derivatives of fields by forward-mode differentiation, and finite-difference targets to train them on.

One forward pass gives values and Jacobian, and one backward pass through it the gradient of the Sobolev loss (ECCV
2022, arXiv 2207.10395), for less than a double backward per channel. Fields define the forward-mode rules of their
layers (evos/fields/base.py); any other module goes through torch.func.

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
from evos.fields.fused import Layers, matmul, scaled_weights

CPU_POINTS = 8192
"""Points that go through all layers at a time on a CPU, so that what a layer works on stays in the cache."""

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
    values, tangents = encode_with_tangents(field.encoding, coords, tangents)
    points = CPU_POINTS if coords.device.type == "cpu" else max(1, len(coords))
    layers = scaled_weights(field)
    parts = [
        forward_with_tangents(field, layers, some_values, some_tangents)
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


def parameter_jvp(
    field: nn.Module, coords: Float[Tensor, "N D"], weights: Mapping[str, Tensor], direction: Mapping[str, Tensor]
) -> Float[Tensor, "N C"]:
    """The derivative of a field's values with respect to its parameters, at ``weights``, along a ``direction``.

    Along the gradient of a loss it is the tangent kernel times the loss's gradient by the values. Both are named as in
    ``named_parameters``. FINER's scale counts as a constant, as in its gradient.
    """
    return jvp(lambda weights: functional_call(field, weights, (coords,)), (dict(weights),), (dict(direction),))[1]


def laplacian_of(field: nn.Module, coords: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
    """The sum of a field's second derivatives by each coordinate, differentiable in its parameters.

    A RealMLPField without encoding propagates values, first derivatives and Laplacian together: the Laplacian of a(z)
    is a'(z) lap z + a''(z) |grad z|². Any other field takes forward mode nested in forward mode. FINER's
    scale counts as a constant here as it does in its gradient; piecewise linear fields have Laplacian 0.
    """
    basis = torch.eye(coords.shape[-1], dtype=coords.dtype, device=coords.device)
    directions = basis[:, None].expand(-1, *coords.shape)
    if not isinstance(field, RealMLPField) or not isinstance(field.encoding, nn.Identity):

        def second_derivative(direction: Tensor) -> Tensor:
            return jvp(lambda x: jvp(field, (x,), (direction,))[1], (coords,), (direction,))[1]

        return vmap(second_derivative)(directions).sum(0)
    *hidden, last = scaled_weights(field)
    z, derivatives = coords, torch.cat([directions, torch.zeros_like(coords)[None]])
    for index, layer in enumerate(hidden):
        z, derivatives = linear_with_tangents(z, derivatives, *layer)
        value, first = field.activation_and_derivative(z, index)
        second = field.activation_second_derivative(z, value, first, index)
        from_first_order = second * derivatives[:-1].square().sum(0)
        laplacian = first * derivatives[-1] + from_first_order
        z, derivatives = value, torch.cat([first * derivatives[:-1], laplacian[None]])
    return linear_with_tangents(z, derivatives, *last)[1][-1]


# ---- forward mode, layer by layer


def encode_with_tangents(
    encoding: nn.Module, coords: Float[Tensor, "N D"], tangents: Float[Tensor, "K N D"]
) -> tuple[Float[Tensor, "N E"], Float[Tensor, "K N E"]]:
    """Values and tangents of an encoding: by its own rule, or forward mode where it has none."""
    if isinstance(encoding, nn.Identity):
        return coords, tangents
    rule: Any = getattr(encoding, "forward_with_tangents", None)
    return forward_mode(encoding, coords, tangents) if rule is None else rule(coords, tangents)


def linear_with_tangents(
    values: Inexact[Tensor, "N H"],
    tangents: Inexact[Tensor, "K N H"],
    weight: Inexact[Tensor, "O H"],
    bias: Inexact[Tensor, "O"],
) -> tuple[Inexact[Tensor, "N O"], Inexact[Tensor, "K N O"]]:
    """A linear layer; its bias has no effect on the tangents."""
    return F.linear(values, weight, bias), tangents @ weight.T


def forward_with_tangents(
    field: MLPField, layers: Layers, values: Float[Tensor, "N H"], tangents: Float[Tensor, "K N H"]
) -> tuple[Inexact[Tensor, "N C"], Inexact[Tensor, "K N C"]]:
    """The values and tangents after all layers."""
    first, *others = layers
    values, tangents = linear_with_tangents(values, tangents, *first)
    for index, (weight, bias) in enumerate(others):
        if isinstance(field, RealMLPField):
            values, tangents = ActivateThenLinear.apply(values, tangents, weight, bias, field, index)
        else:
            values, tangents = linear_with_tangents(*field.activation_tangents(values, tangents, index), weight, bias)
    return values, tangents


class ActivateThenLinear(torch.autograd.Function):
    """An activation and the linear layer after it, with the gradient written by hand.

    Saves the pre-activations z and their tangents, the activation and its derivative, and recomputes the tangents after
    the activation from them. The values go through F.linear, as in the field, to be rounded as they are there: a Gauss
    network's float32 gradients change by 1e-5 where the order of summation differs.
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, tangents: Tensor, weight: Tensor, bias: Tensor, field: RealMLPField, index: int
    ) -> tuple[Tensor, Tensor]:
        value, derivative = field.activation_and_derivative(z, index)
        ctx.save_for_backward(z, tangents, value, derivative, weight)
        ctx.field, ctx.index = field, index
        return F.linear(value, weight, bias), matmul(derivative * tangents, weight.T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values_gradient, tangents_gradient = gradients
        z, tangents, value, derivative, weight = ctx.saved_tensors
        flat = tangents_gradient.flatten(0, 1)
        weight_gradient = matmul(values_gradient.T, value) + matmul(flat.T, (derivative * tangents).flatten(0, 1))
        z_gradient, tangents_gradient = matmul(values_gradient, weight), matmul(tangents_gradient, weight)
        # The derivative that multiplied the tangents depends on z as well.
        through_derivative = torch.zeros_like(value)
        for gradient, tangent in zip(tangents_gradient, tangents, strict=True):
            through_derivative.addcmul_(gradient, tangent)
        z_gradient.mul_(derivative).addcmul_(
            through_derivative, ctx.field.activation_second_derivative(z, value, derivative, ctx.index)
        )
        return z_gradient, tangents_gradient.mul_(derivative), weight_gradient, values_gradient.sum(0), None, None


# ---- finite differences


def spatial_gradient(signal: Float[Tensor, "B C *S"], operator: str = "sobel") -> Float[Tensor, "B C D *S"]:
    """Derivatives along each axis of a sampled signal (D axes: 1 for sound, 2 for images), per sample.

    A central difference (f[i+1] - f[i-1]) / 2 along the axis, smoothed with SMOOTHING along the others, edge samples
    repeated outwards: so a ramp of slope s gives s, and s / 2 on the first and the last sample of its axis. For images,
    diff and sobel equal kornia's ``spatial_gradient(order=1, normalized=True)`` but for the order of D: the signal's
    own, row y before column x, as in evos/coords.py. In 1-D the three operators are the same.

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
