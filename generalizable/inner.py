"""Meta-learning's two loops as pure functions: the inner one adapts patterns, the outer one is judged by the result.

``refine`` goes on with the first of them when a model is used: to a signal's best pattern, or its best in few bits.

Source: algorithm 1 of Kim et al., "Generalizable Implicit Neural Representations via Instance Pattern Composers" (CVPR
2023), MAML on patterns. The inner gradients come from ``torch.func``, so the same code serves first order, second order
and evaluation under ``torch.no_grad``. Letters as in ``generalizable.base``.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from generalizable.base import Data, Decoder, Model, Patterns
from generalizable.quantised import Steps, rounded
from generalizable.rendering import render


def predictor(model: Model, coords: Float[Tensor, "_ K D"]) -> Decoder:
    """From patterns to the signal's values at ``coords``; see ``predict``."""
    task = model.task
    if not task.is_rendered:
        return model.decoder(coords)
    return lambda patterns: render(
        lambda points: model.decode(patterns, points),
        coords,
        task.near,
        task.far,
        model.config.samples,
        jitter=model.training,
        white_background=task.white_background,
    )


def predict(model: Model, patterns: Patterns, coords: Float[Tensor, "_ K D"]) -> Float[Tensor, "B K C"]:
    """The signal's values: the field's for images and sounds; for views, colours of the rays ``coords`` "B K 6".

    Points along rays are jittered in training. One row of ``coords`` serves all instances.
    """
    return predictor(model, coords)(patterns)


def inner_step(
    loss: Callable[[Patterns], Float[Tensor, " B"]],
    patterns: Patterns,
    rate: float | Float[Tensor, " B"],
    *,
    first_order: bool = False,
) -> Patterns:
    """One step of gradient descent on every instance's patterns.

    Args:
        loss: each instance's loss, which depends on its own patterns alone.
        patterns: "B ..." each; weights ("B I R") step by the rate × their squared length, others by the rate.
        rate: of all instances, or of each.
        first_order: keep no graph of the gradient.

    The factor makes a rate mean the same for weights of any length, as the field normalises them (their gradient falls
    with the inverse of the length): it is the paper's code's.
    """
    with torch.set_grad_enabled(torch.is_grad_enabled() and not first_order):
        gradients = torch.func.grad(lambda at: loss(at).sum())(patterns)
    stepped = {}
    for name, pattern in patterns.items():
        step = rate.reshape(-1, *[1] * (pattern.ndim - 1)) if isinstance(rate, Tensor) else rate
        if pattern.ndim == 3:
            step = step * pattern.square().sum((1, 2), keepdim=True)
        stepped[name] = pattern - step * gradients[name]
    return stepped


def inner_loop(model: Model, initial: Patterns, data: Mapping[str, Tensor], inner_steps: int | None = None) -> Patterns:
    """Patterns after the inner steps from ``initial`` on the points of ``data`` (see ``Model.encode``)."""
    values = predictor(model, data["coords"])
    rate = model.config.inner_lr * data["rate"] if "rate" in data else model.config.inner_lr

    def loss(patterns: Patterns) -> Float[Tensor, " B"]:
        error = (values(patterns) - data["target"]).square().mean(-1)
        return (error * data["weight"] if "weight" in data else error).mean(1)

    patterns = initial
    for _ in range(model.inner_steps if inner_steps is None else inner_steps):
        patterns = inner_step(loss, patterns, rate, first_order=model.config.first_order)
    return patterns


def refine(
    model: Model,
    patterns: Patterns,
    points: Callable[[], Mapping[str, Tensor]],
    steps: int,
    rate: float,
    levels: Mapping[str, Steps] | None = None,
) -> Patterns:
    """Patterns after ``steps`` of Adam on every instance's error: an encoder's guess, fitted to the signal itself.

    Args:
        patterns: "B ..." each, where to begin.
        points: called for every step, the points that it takes (coords and target of ``Model.encode``).
        steps: at least 0.
        rate: of the first step, in standard deviations of the instance's numbers of a part; it falls on a cosine to 0.
        levels: of each part: the error is that of the pattern as a file of so few bits holds it; None: as it is.
    """
    axes = {name: tuple(range(1, pattern.ndim)) for name, pattern in patterns.items()}
    spread = {name: patterns[name].std(axes[name], correction=0, keepdim=True) for name in patterns}
    moved = {name: torch.zeros_like(pattern, requires_grad=True) for name, pattern in patterns.items()}
    optimizer = torch.optim.Adam(moved.values(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))

    def now() -> Patterns:
        return {name: pattern + spread[name] * moved[name] for name, pattern in patterns.items()}

    for _ in range(steps):
        with torch.enable_grad():
            at = now() if levels is None else {name: levels[name].rounded(pattern) for name, pattern in now().items()}
            data = points()
            error = (predict(model, at, data["coords"]) - data["target"]).square().mean((1, 2)).sum()
            gradients = torch.autograd.grad(error, tuple(moved.values()))
        for each, gradient in zip(moved.values(), gradients, strict=True):
            each.grad = gradient
        optimizer.step()
        schedule.step()
    return {name: pattern.detach() for name, pattern in now().items()}


def outer_loss(
    model: Model,
    data: Data,
    coords: Float[Tensor, "_ K D"],
    target: Float[Tensor, "B K C"],
    weight: Float[Tensor, "B K"] | None = None,
    bits: int | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, "B K C"]]:
    """The outer step's loss, differentiable through the inner one, and the signed residual (prediction - target).

    Args:
        data: what the patterns are made from.
        coords: the points that the patterns are judged at; one row of them serves all instances.
        target: the signal there, in its own units.
        weight: of each point; the loss is the mean of weight × squared error.
        bits: of each number of the patterns, as if they came from a file of so many; None: as they are.
    """
    patterns = model.encode(data)
    if bits is not None:
        patterns = {name: rounded(pattern, bits) for name, pattern in patterns.items()}
    residual = predict(model, patterns, coords) - target
    error = residual.square().mean(-1)
    return (error if weight is None else error * weight).mean(), residual.detach()
