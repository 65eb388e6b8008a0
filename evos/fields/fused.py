"""The values of a field for training: the numbers of ``field(coords)``, faster, and differentiable once.

Where the time of a training step goes is measured by benchmarks/step_time.py. Against the field's own forward:

- On a CPU, matrix products go to oneDNN (``matmul``), which is twice as fast as PyTorch's default.
- An activation returns its derivative with its value, which is all that the backward pass needs. Compiled, sine and
  cosine are one pass over memory.
- On a CPU, no more points go through the layers at a time than its cache holds.
- Under autocast the layers between hidden features are computed in its precision, the first and the last in float32:
  coordinates and colours need more digits than bfloat16 has, and these layers cost next to nothing.

Letters: N points, D coordinate axes, C channels, I inputs and O outputs of a layer, H hidden features.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float, Inexact
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from evos.fields.base import Field, MLPField, RealMLPField, ScaledLinear

CACHED_NUMBERS = 2**19
"""Numbers of one layer that a CPU thread works on at a time: 2 MB in float32, what its cache holds."""

ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise")
"""Whether PyTorch has oneDNN's linear layer, which its compiler uses, for tensors of the usual layout."""

ONEDNN_WORK = 2**21
"""Multiply-adds below which calling oneDNN costs more than it saves."""

Layers = Sequence[tuple[Tensor, Tensor]]

ActivationAndDerivative = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""``RealMLPField.activation_and_derivative``, or the same compiled."""


class Fused:
    """A field's values at coordinates, differentiable once in its parameters and the coordinates.

    Fields whose activation has no closed-form derivative (WIRE) are evaluated as they are.

    Args:
        field: whose parameters are used, as they are at each call.
        compile: with torch.compile; on a CPU the encoding and the activations, elsewhere the whole.
    """

    def __init__(self, field: Field, *, compile: bool = False) -> None:
        self.evaluate: Callable[[Tensor], Tensor] = field
        if isinstance(field, RealMLPField):
            on_cpu = next(field.parameters()).device.type == "cpu"
            encode, activation = field.encoding, field.activation_and_derivative
            if compile and on_cpu:
                # One kernel for batches of any size: compiled whole, each size of a batch would take its own minute.
                activation = torch.compile(activation, dynamic=True)
                encode = encode if isinstance(encode, nn.Identity) else compiled(encode)
            self.evaluate = partial(evaluate, field, encode, activation)
            compile = compile and not on_cpu
        if compile:
            self.evaluate = compiled(self.evaluate)

    def __call__(self, coords: Float[Tensor, "*N D"]) -> Float[Tensor, "*N C"]:
        """The values at coordinates in [-1, 1]."""
        return self.evaluate(coords)


def compiled(function: Callable[..., Any]) -> Any:
    """A function compiled once per batch size: a selector has a few, all of them static."""
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(function, dynamic=False)


def evaluate(
    field: RealMLPField,
    encode: Callable[[Tensor], Tensor],
    activation: ActivationAndDerivative,
    coords: Float[Tensor, "*N D"],
) -> Float[Tensor, "*N C"]:
    """A field's values, by its encoding and activation or their compiled forms."""
    device = coords.device.type
    hidden_dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else coords.dtype
    layers, points = scaled_weights(field), coords.reshape(-1, coords.shape[-1])
    with torch.autocast(device, enabled=False):
        pieces = points.split(points_at_a_time(points, width=max(len(bias) for _, bias in layers)))
        values = torch.cat([forward_layers(field, layers, encode(piece), activation, hidden_dtype) for piece in pieces])
    return values.view(*coords.shape[:-1], values.shape[-1])


def points_at_a_time(points: Float[Tensor, "N D"], width: int) -> int:
    """How many points go through layers of a width together; on a GPU all."""
    if points.device.type != "cpu":
        return max(1, len(points))
    return max(1, CACHED_NUMBERS // width) * torch.get_num_threads()


def scaled_weights(field: MLPField) -> Layers:
    """Weight and bias of every layer, times its gain."""
    layers = cast(list[ScaledLinear], list(field.layers))
    return [(layer.gain * layer.weight, layer.gain * layer.bias) for layer in layers]


def forward_layers(
    field: RealMLPField,
    layers: Layers,
    x: Float[Tensor, "N I"],
    activation: ActivationAndDerivative,
    hidden_dtype: torch.dtype,
) -> Float[Tensor, "N C"]:
    """The values after all layers; those from hidden to hidden features run in ``hidden_dtype``."""
    first, *hidden, last = layers
    x = Linear.apply(x, *first)
    for index, layer in enumerate(hidden):
        x = Linear.apply(activate(field, x, activation, index).to(hidden_dtype), *layer)
    return Linear.apply(activate(field, x.to(last[0].dtype), activation, len(hidden)), *last)


def activate(
    field: RealMLPField, z: Inexact[Tensor, "N H"], activation: ActivationAndDerivative, index: int
) -> Inexact[Tensor, "N H"]:
    """An activation, which keeps its derivative where gradients are enabled."""
    return Activation.apply(z, activation, index) if torch.is_grad_enabled() else field.activation(z, index)


class Linear(torch.autograd.Function):
    """``x Wᵀ + b`` in the precision of x, by ``matmul``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        weight = weight.to(x.dtype)
        ctx.save_for_backward(x, weight)
        return matmul(x, weight.T, bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        x_gradient = matmul(gradient, weight) if ctx.needs_input_grad[0] else None
        # The multiplication with fewer rows is the faster one: a first layer has two inputs, a last one three outputs.
        outputs, inputs = weight.shape
        weight_gradient = (x.T @ gradient).T if inputs < outputs else gradient.T @ x
        return x_gradient, weight_gradient, gradient.sum(0)


class Activation(torch.autograd.Function):
    """An activation that saves its derivative for the backward pass, instead of its input."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, activation: ActivationAndDerivative, index: int) -> Tensor:
        value, derivative = activation(z, index)
        ctx.save_for_backward(derivative)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (derivative,) = ctx.saved_tensors
        return gradients[0] * derivative, None, None


def matmul(
    a: Inexact[Tensor, "*N I"], b: Inexact[Tensor, "I O"], bias: Inexact[Tensor, " O"] | None = None
) -> Inexact[Tensor, "*N O"]:
    """``a @ b + bias``, of float32 on a CPU by oneDNN: MKL, behind ``@``, has half its speed on AMD's AVX-512."""
    onednn = ONEDNN and a.device.type == "cpu" and a.dtype == torch.float32
    if onednn and a.numel() * b.shape[-1] >= ONEDNN_WORK:
        # The compiler takes oneDNN's own operator only with weights that never change.
        linear = torch.ops.evos.linear if torch.compiler.is_compiling() else onednn_linear
        return linear(a, b.T, bias)
    return a @ b if bias is None else torch.addmm(bias, a, b)


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x Wᵀ + b`` by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


operators = torch.library.Library("evos", "DEF")
operators.define("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
operators.impl("linear", onednn_linear, "CPU")
torch.library.register_fake(
    "evos::linear", lambda x, weight, bias: x.new_empty(*x.shape[:-1], len(weight)), lib=operators
)
