"""A coordinate network for a whole data set: its layers are shared, but one or more have weights per instance.

Source: Kim et al., "Generalizable Implicit Neural Representations via Instance Pattern Composers" (CVPR 2023), section
3. ReLU layers on Fourier features; layer ``m`` of instance n is W_n = V_n U, with a pattern V_n of its own and a factor
U that all share; every weight vector (the weights into one unit) is scaled to length 1, as in TransINR (ECCV 2022).

The shared layers are plain linear ones on the points of all instances together. It is not in FIELDS, because it takes
patterns as well as coordinates. Letters: B instances, K points of each, D axes, I inputs and O outputs of a layer, R
rank, C channels.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Literal, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from evos.config import check_range
from evos.errors import InputError

InitialWeights = Literal["inputs", "outputs", "normal"]
"""See ``InstanceMLP``."""


class LogFourierFeatures(nn.Module):
    """Cosine and sine of every coordinate times each of the frequencies, which are spaced evenly in their logarithm.

    As in TransINR; the axes don't mix. ``features`` is the number of frequencies over all axes, rounded down to a
    multiple of the axes; ``lowest`` and ``highest`` are in radians per coordinate unit.
    """

    frequencies: Tensor

    def __init__(self, in_features: int, features: int, lowest: float, highest: float) -> None:
        super().__init__()
        check_range("features", features, in_features)
        count = features // in_features
        self.out_features = 2 * count * in_features
        # In float64: at the top of the range float32 powers are off by a visible part of a period.
        spaced = lowest * (highest / lowest) ** torch.linspace(0, 1, count, dtype=torch.float64)
        self.register_buffer("frequencies", spaced.to(torch.get_default_dtype()), persistent=False)

    def forward(self, coords: Float[Tensor, "*N D"]) -> Float[Tensor, "*N E"]:
        """The encoded coordinates: cosines, sines."""
        angles = rearrange(coords[..., None] * self.frequencies, "... d f -> ... (d f)")
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


def composing_is_cheaper(points: int, inputs: int, rank: int, outputs: int) -> bool:
    """Whether x (V U) takes fewer multiplications than (x V) U, for ``points`` points of an instance."""
    return inputs * rank * outputs + points * inputs * outputs < points * rank * (inputs + outputs)


def column_norms(pattern: Float[Tensor, "B I R"], factor: Float[Tensor, "R O"]) -> Float[Tensor, "B 1 O"]:
    """Lengths of the columns of V U, without V U: the square roots of the diagonal of Uᵀ (Vᵀ V) U."""
    gram = pattern.mT @ pattern
    return (factor * (gram @ factor)).sum(1, keepdim=True).clamp_min(1e-24).sqrt()


def instance_linear(
    x: Float[Tensor, "#B K I"],
    pattern: Float[Tensor, "B I R"],
    factor: Float[Tensor, "R O"] | None,
    bias: Float[Tensor, "#B O"],
    normalize: bool,
) -> Float[Tensor, "B K O"]:
    """x W_n + b with W_n = V_n U (V_n itself without a factor), for every instance n.

    Evaluated as (x V) U or x (V U), whichever takes fewer multiplications at this shape. ``normalize`` scales the
    columns of W_n to length 1. One row of ``x`` serves all instances: then x (V U) is one product with all weights side
    by side, and the values lie in memory with all instances of a point together.
    """
    instances, inputs, rank = pattern.shape
    bias = bias.expand(instances, -1)
    if factor is not None and not composing_is_cheaper(x.shape[1], inputs, rank, factor.shape[1]):
        y = (x @ pattern) @ factor
        return y / column_norms(pattern, factor) + bias[:, None] if normalize else y + bias[:, None]
    weight = pattern if factor is None else pattern @ factor
    weight = F.normalize(weight, dim=1) if normalize else weight
    if len(x) < instances:
        y = torch.addmm(bias.flatten(), x[0], rearrange(weight, "b i o -> i (b o)"))
        return rearrange(y, "k (b o) -> b k o", b=instances)
    return torch.baddbmm(bias[:, None], x, weight)


def shared_linear(
    x: Float[Tensor, "B K I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"]
) -> Float[Tensor, "B K O"]:
    """x Wᵀ + b as one product over all instances' points, in the order in which they lie in memory."""
    if x.is_contiguous():
        return F.linear(x, weight, bias)
    return F.linear(x.transpose(0, 1), weight, bias).transpose(0, 1)


class InstanceMLP(nn.Module):
    """ReLU layers on Fourier features; which of them have weights per instance is chosen at each call.

    Args:
        encoding: from D coordinates to its ``out_features``.
        hidden_features: width of all layers but the last.
        layers: their number, the last, linear one included; at least 2.
        out_features: C.
        ranks: layers whose weights are V U, and the rank of each; such a layer holds U.
        initial: of the layers' first weights: inputs (uniform in ±1 / √I, as PyTorch's), outputs (±1 / √O) or normal
            (N(0, 1 / I)).
        normalize: scale the weights into each unit to length 1.
        output_bias: constant added to the values, what they start at: 0.5 for images.

    Biases start at 0, factors U as N(0, 1 / (I R)), so that W has variance 1 / I if V has 1.
    """

    def __init__(
        self,
        encoding: LogFourierFeatures,
        hidden_features: int,
        layers: int,
        out_features: int,
        *,
        ranks: Mapping[int, int] | None = None,
        initial: InitialWeights = "inputs",
        normalize: bool = True,
        output_bias: float = 0.0,
    ) -> None:
        super().__init__()
        check_range("layers", layers, 2)
        self.encoding, self.ranks = encoding, dict(ranks or {})
        self.normalize, self.output_bias = normalize, output_bias
        if any(not 0 <= index < layers for index in self.ranks):
            raise InputError("ranks", list(self.ranks), f"a layer from 0 to {layers - 1}")
        self.widths = [encoding.out_features, *[hidden_features] * (layers - 1), out_features]
        self.layers = nn.ModuleList()
        for index, (inputs, outputs) in enumerate(pairwise(self.widths)):
            layer = nn.Linear(self.ranks.get(index, inputs), outputs)
            nn.init.zeros_(layer.bias)
            if index in self.ranks:
                nn.init.normal_(layer.weight, std=(inputs * self.ranks[index]) ** -0.5)
            elif initial == "outputs":
                nn.init.uniform_(layer.weight, -(outputs**-0.5), outputs**-0.5)
            elif initial == "normal":
                nn.init.normal_(layer.weight, std=inputs**-0.5)
            self.layers.append(layer)

    def layer(self, index: int) -> nn.Linear:
        """A layer: its bias, and its weights, or their factor U where it has a rank."""
        return cast(nn.Linear, self.layers[index])

    def lift(self, coords: Float[Tensor, "_ K D"], layers: int) -> Float[Tensor, "_ K I"]:
        """The encoded coordinates after the first ``layers`` layers, all of them shared."""
        x = self.encoding(coords)
        for index in range(layers):
            x = torch.relu(self.shared_layer(index, x))
        return x

    def shared_layer(self, index: int, x: Float[Tensor, "_ K I"]) -> Float[Tensor, "_ K O"]:
        """A layer with its own weights."""
        layer = self.layer(index)
        return shared_linear(x, F.normalize(layer.weight, dim=1) if self.normalize else layer.weight, layer.bias)

    def forward(
        self,
        x: Float[Tensor, "_ K I"],
        weights: Mapping[int, Float[Tensor, "B _ _"]],
        biases: Mapping[int, Float[Tensor, "B _"]] | None = None,
    ) -> Float[Tensor, "B K C"]:
        """Every instance's values at its points, or at the same points of all if ``x`` has one row.

        Args:
            x: what ``lift`` made of the coordinates, with as many layers as come before the first of ``weights``.
            weights: by layer, each instance's pattern V "B I R" where the layer has a rank, else its weights "B I O".
            biases: by layer, each instance's bias, for layers of ``weights``; without it biases are shared.
        """
        for index in range(min(weights), len(self.layers)):
            if index in weights:
                layer = self.layer(index)
                factor = layer.weight.mT if index in self.ranks else None
                bias = layer.bias[None] if biases is None else biases[index]
                x = instance_linear(x, weights[index], factor, bias, self.normalize)
            else:
                x = self.shared_layer(index, x)
            if index < len(self.layers) - 1:
                x = torch.relu(x)
        return x + self.output_bias
