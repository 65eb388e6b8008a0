"""The models' formulas written out, for tests and benchmarks to compare with: nothing here is clever.

Weights of every layer exist once for each instance, shared or not, with the bias as one more row; layers are batched
matmuls; attention is softmax(QKᵀ/√d)V; the inner loop is a loop of ``torch.autograd.grad``. Parameters are those of a
model of ``generalizable.models``, by name, so that values and gradients can be compared; none of its code is run.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def fourier(coords: Tensor, frequencies: Tensor) -> Tensor:
    """cos(f x), sin(f x) for every axis and frequency."""
    angles = torch.cat([coords[..., axis : axis + 1] * frequencies for axis in range(coords.shape[-1])], dim=-1)
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)


def field(model: Any, coords: Tensor, weights: dict[int, Tensor], biases: dict[int, Tensor]) -> Tensor:
    """The field with weights "B I O" and biases "B O" of some layers given, the others repeated for each instance."""
    count, layers = len(coords), model.field.layers
    x = fourier(coords, model.field.encoding.frequencies)
    for index, layer in enumerate(layers):
        weight = weights[index] if index in weights else layer.weight.T[None].repeat(count, 1, 1)
        weight = weight / weight.square().sum(1, keepdim=True).sqrt()
        bias = biases[index] if index in biases else layer.bias[None].repeat(count, 1)
        ones = torch.ones(*x.shape[:-1], 1)
        x = torch.bmm(torch.cat([x, ones], dim=-1), torch.cat([weight, bias[:, None]], dim=1))
        if index < len(layers) - 1:
            x = torch.relu(x)
    return x + model.field.output_bias


def patterns_of(model: Any, pattern: Tensor) -> dict[int, Tensor]:
    """V_n U for every instance: the composers' weights."""
    factor = model.field.layers[model.config.modulated].weight.T[None].repeat(len(pattern), 1, 1)
    return {model.config.modulated: torch.bmm(pattern, factor)}


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """x Wᵀ + b."""
    return F.linear(x, layer.weight, layer.bias)


def layer_norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    """Each token to mean 0 and variance 1, then scaled and shifted."""
    return F.layer_norm(x, x.shape[-1:], layer.weight, layer.bias, layer.eps)


def attention(x: Tensor, block: Any) -> Tensor:
    """Self-attention, all heads in one batched matmul."""
    count, length, width = x.shape
    q, k, v = (
        part.reshape(count, length, block.heads, -1).transpose(1, 2).reshape(count * block.heads, length, -1)
        for part in linear(x, block.qkv).chunk(3, dim=-1)
    )
    weights = torch.softmax(torch.bmm(q, k.mT) / math.sqrt(q.shape[-1]), dim=-1)
    heads = torch.bmm(weights, v).reshape(count, block.heads, length, -1)
    return linear(heads.transpose(1, 2).reshape(count, length, width), block.out)


def transformer(model: Any, patches: Tensor) -> Tensor:
    """The learned tokens after all blocks, from patches "B N F"."""
    hyper = model.hypernetwork
    places = (
        hyper.places
        if len(hyper.places) > patches.shape[1]
        else hyper.places.repeat(patches.shape[1] // len(hyper.places), 1)
    )
    x = linear(patches, hyper.embed) + places[None, : patches.shape[1]]
    x = torch.cat([x, hyper.queries[None].repeat(len(x), 1, 1)], dim=1)
    for block in hyper.blocks:
        x = x + attention(layer_norm(x, block.norms[0]), block)
        x = x + linear(F.gelu(linear(layer_norm(x, block.norms[1]), block.widen)), block.narrow)
    return x[:, -len(hyper.queries) :]


def unfolded(model: Any, images: Tensor) -> Tensor:
    """Patches "B N F" of images "B C H W", zero-padded evenly to whole ones."""
    side = model.hypernetwork.side
    rows, columns = (-size % side for size in images.shape[-2:])
    images = F.pad(images, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
    return F.unfold(images, side, stride=side).mT


def pattern_composer(model: Any, patches: Tensor, coords: Tensor) -> Tensor:
    """Values of the transformer's composer."""
    norm, out = model.head
    pattern = linear(layer_norm(transformer(model, patches), norm), out).mT
    return field(model, coords, patterns_of(model, pattern), {})


def transinr(model: Any, patches: Tensor, coords: Tensor) -> Tensor:
    """Values of TransINR."""
    found, start, weights = transformer(model, patches), 0, {}
    for index, (layer, (norm, out)) in enumerate(zip(model.field.layers, model.heads, strict=True)):
        groups = model.groups[index]
        modulation = linear(layer_norm(found[:, start : start + groups], norm), out).mT
        repeats = layer.weight.shape[0] // groups
        weights[index] = layer.weight.T[None].repeat(len(found), 1, 1) * modulation.repeat(1, 1, repeats)
        start += groups
    return field(model, coords, weights, {})


def locality_aware(model: Any, patches: Tensor, coords: Tensor) -> Tensor:
    """Values of the locality-aware model: one instance after the other, one head after the other."""
    its, (norm, out) = model.field, model.head
    latents, values = linear(layer_norm(transformer(model, patches), norm), out), []
    for points, tokens in zip(coords, latents, strict=True):
        queries = linear(F.relu(linear(fourier(points, its.query_encoding.frequencies), its.lift_query)), its.query)
        keys, contents = linear(tokens, its.key_value).chunk(2, dim=-1)
        found, size = [], queries.shape[-1] // its.heads
        for start in range(0, queries.shape[-1], size):
            part = slice(start, start + size)
            weights = torch.softmax(queries[:, part] @ keys[:, part].T / math.sqrt(size), dim=-1)
            found.append(weights @ contents[:, part])
        modulation = linear(torch.cat(found, dim=-1), its.gathered)
        total, coarser = torch.zeros(len(points), its.outputs[0].out_features) + its.output_bias, None
        for level, encoding in enumerate(its.band_encodings):
            features = F.relu(linear(fourier(points, encoding.frequencies), its.lift_bands[level]))
            x = F.relu(features + linear(modulation, its.shifts[level]))
            coarser = x if coarser is None else F.relu(linear(x + coarser, its.compose[level - 1]))
            total = total + linear(coarser, its.outputs[level])
        values.append(total)
    return torch.stack(values)


def meta_pattern_composer(model: Any, inner: tuple[Tensor, Tensor], coords: Tensor) -> Tensor:
    """Values of the optimisation-based composer after its inner loop on the points and target ``inner``."""
    points, target = inner
    pattern = model.pattern[None].repeat(len(points), 1, 1)
    for _ in range(model.inner_steps):
        error = field(model, points, patterns_of(model, pattern), {}) - target
        loss = error.square().flatten(1).mean(1).sum()
        (slope,) = torch.autograd.grad(loss, pattern, create_graph=not model.config.first_order)
        pattern = pattern - model.config.inner_lr * pattern.square().sum((1, 2), keepdim=True) * slope
    return field(model, coords, patterns_of(model, pattern), {})


def learned_init(model: Any, inner: tuple[Tensor, Tensor], coords: Tensor) -> Tensor:
    """Values of Learned Init after its inner loop on the points and target ``inner``."""
    points, target = inner
    layers = range(len(model.field.layers))
    weights = [model.field.layers[i].weight.T[None].repeat(len(points), 1, 1) for i in layers]
    biases = [model.field.layers[i].bias[None].repeat(len(points), 1) for i in layers]
    rate = model.config.inner_lr
    adapted = weights + biases if model.config.adapt_biases else weights
    for _ in range(model.inner_steps):
        error = field(model, points, dict(enumerate(weights)), dict(enumerate(biases))) - target
        loss = error.square().flatten(1).mean(1).sum()
        gradients = torch.autograd.grad(loss, adapted, create_graph=not model.config.first_order)
        weights = [
            w - rate * w.square().sum((1, 2), keepdim=True) * s
            for w, s in zip(weights, gradients[: len(weights)], strict=True)
        ]
        if model.config.adapt_biases:
            biases = [b - rate * s for b, s in zip(biases, gradients[len(weights) :], strict=True)]
        adapted = weights + biases if model.config.adapt_biases else weights
    return field(model, coords, dict(enumerate(weights)), dict(enumerate(biases)))
