"""Several fields of equal shapes as one: their weights in one matrix, their layers one batched product.

A small network spends its time in the overhead of each operation, which M of them then share. On a CPU that pays where
a step has few points or narrow layers. Letters: M fields, W numbers that each is made of, K points of each, D axes, C
channels, I inputs of a layer and O outputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from jaxtyping import Float, Inexact
from torch import Tensor, nn
from torch.func import functional_call, vmap

from evos.errors import InputError
from evos.fields.base import Field, FieldConfig, MLPField, RealMLPField
from evos.fields.fused import CACHED_NUMBERS, Activation

STACKED_NUMBERS = 2**20
"""Numbers of one layer, of all fields together, up to which stacking them pays on a CPU (benchmarks/field_batch.py)."""

MAY_DIFFER = {
    "siren": ("omega", "first_omega", "init_scale"),
    "finer": ("init_scale", "first_bias_scale"),
    "wire": ("init_scale",),
    "gauss": ("scale",),
    "fourier": ("sigma",),
}
"""Options of a family in which stacked fields may differ: those that act by weights, gains and frequencies alone."""


def alike(config: FieldConfig) -> FieldConfig:
    """The config with the options left at their defaults in which stacked fields may differ: equal ones go together."""
    defaults = {name: type(config).__dataclass_fields__[name].default for name in MAY_DIFFER.get(config.name, ())}
    return replace(config, **defaults)


def stack_size(width: int, points: int, device: torch.device) -> int:
    """How many fields of a width are best trained together on so many points each; at least 1."""
    return max(1, STACKED_NUMBERS // max(1, width * points)) if device.type == "cpu" else 64


class StackedFields:
    """M fields, evaluated as one.

    Attributes:
        fields: the fields themselves, by configs that are ``alike``, with their weights in ``weights`` and their
            gradients in ``gradients``: what changes one changes the other.
        weights, gradients: "M W". A family's complex weights are pairs of numbers; tensors begin at even places.
        leaves: the parameters of all fields by name, each "M ..."; what autograd differentiates by.
    """

    weights: Float[Tensor, "M W"]
    gradients: Float[Tensor, "M W"]

    def __init__(self, fields: Sequence[Field]) -> None:
        """Raises InputError unless there are fields, MLPs all, of the same shapes."""
        self.fields = list(fields)
        shapes = [[(n, p.shape, p.dtype) for n, p in field.named_parameters()] for field in fields]
        if not shapes or any(own != shapes[0] for own in shapes) or not isinstance(self.fields[0], MLPField):
            raise InputError("fields", f"{len(shapes)} of different shapes", "at least one, all of the same shapes")
        self.places: dict[str, tuple[slice, torch.Size, bool]] = {}
        end = 0
        for name, parameter in self.fields[0].named_parameters():
            count = parameter.numel() * (2 if parameter.is_complex() else 1)
            self.places[name] = (slice(end, end + count), parameter.shape, parameter.is_complex())
            end += count + count % 2
        first = next(self.fields[0].parameters())
        self.weights = torch.zeros(len(fields), end, device=first.device)
        for row, field in zip(self.weights, self.fields, strict=True):
            for name, parameter in field.named_parameters():
                self.view(row, name).copy_(parameter.detach())
        self.bind()

    def view(self, numbers: Float[Tensor, "*M W"], name: str) -> Inexact[Tensor, "..."]:
        """The numbers of one parameter, in its shape."""
        place, shape, is_complex = self.places[name]
        part = numbers[..., place].unflatten(-1, (*shape, 2) if is_complex else tuple(shape))
        return torch.view_as_complex(part) if is_complex else part

    def bind(self) -> None:
        """Make fields and leaves views of the matrix."""
        self.gradients = torch.zeros_like(self.weights)
        self.leaves: dict[str, Tensor] = {}
        for name in self.places:
            self.leaves[name] = self.view(self.weights, name).detach().requires_grad_()
        for field, row, gradient in zip(self.fields, self.weights, self.gradients, strict=True):
            for name, parameter in field.named_parameters():
                parameter.data, parameter.grad = self.view(row, name), self.view(gradient, name)
        layers = [cast(list[Any], list(cast(MLPField, field).layers)) for field in self.fields]
        self.gains = torch.tensor([[layer.gain for layer in own] for own in layers], device=self.weights.device)

    def keep(self, members: Sequence[int]) -> None:
        """Go on with some of the fields, as they are."""
        self.fields = [self.fields[i] for i in members]
        self.weights = self.weights[list(members)].clone()
        self.bind()

    def backward(self, loss: Float[Tensor, ""]) -> None:
        """Put the loss's gradients by all weights where ``gradients`` and the fields' parameters have them."""
        # Not loss.backward(): it warns of gradients that are no blocks of memory of their own.
        for name, gradient in zip(self.leaves, torch.autograd.grad(loss, list(self.leaves.values())), strict=True):
            self.view(self.gradients, name).copy_(gradient)

    def __call__(self, coords: Float[Tensor, "M K D"]) -> Float[Tensor, "M K C"]:
        """Each field's values at its own coordinates in [-1, 1]; see ``backward``."""
        first = cast(MLPField, self.fields[0])
        count = len(first.layers)
        layers = []
        for index in range(count):
            weight, bias = self.leaves[f"layers.{index}.weight"], self.leaves[f"layers.{index}.bias"]
            gain = self.gains[:, index, None]
            layers.append(((gain[..., None] * weight).mT, (gain * bias)[:, None]))
        width = max(bias.shape[-1] for _, bias in layers)
        points = coords.shape[1]
        if coords.device.type == "cpu":  # no more than its cache holds, as in fused.py
            points = max(1, CACHED_NUMBERS // (width * len(coords))) * torch.get_num_threads()
        encode = self.encoder()
        pieces = [self.forward(first, layers, encode(piece)) for piece in coords.split(points, dim=1)]
        return torch.cat(pieces, dim=1) if len(pieces) > 1 else pieces[0]

    def forward(
        self, field: MLPField, layers: Sequence[tuple[Tensor, Tensor]], x: Float[Tensor, "M K I"]
    ) -> Float[Tensor, "M K C"]:
        """The values after all layers."""
        *hidden, (last_weight, last_bias) = layers
        values: Tensor = x
        for index, (weight, bias) in enumerate(hidden):
            z = torch.baddbmm(bias, values, weight)
            if isinstance(field, RealMLPField) and torch.is_grad_enabled():
                values = Activation.apply(z, field.activation_and_derivative, index)
            else:
                values = field.activation(z, index)
        return torch.baddbmm(last_bias, values, last_weight).real

    def encoder(self) -> Callable[[Tensor], Tensor]:
        """The encodings of all fields as one function of coordinates "M K D"."""
        encodings = [cast(nn.Module, field.encoding) for field in self.fields]
        first = encodings[0]
        if isinstance(first, nn.Identity):
            return first
        tables = {n.removeprefix("encoding."): leaf for n, leaf in self.leaves.items() if n.startswith("encoding.")}
        axes: dict[str, int | None] = dict.fromkeys(tables, 0)
        for name, buffer in first.named_buffers():
            others = [encoding.get_buffer(name) for encoding in encodings]
            shared = all(torch.equal(buffer, other) for other in others)
            tables[name], axes[name] = (buffer, None) if shared else (torch.stack(others), 0)
        return lambda coords: vmap(lambda own, x: functional_call(first, own, (x,)), (axes, 0))(tables, coords)
