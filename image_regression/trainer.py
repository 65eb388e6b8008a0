"""Fit one signal with one field on the points that a selector chooses: training step, evaluation and state.

The whole signal is evaluated, or of a picture on disk a sample (sources.py); with a ``factor`` above 1 the training
grid, the pool that the selector chooses from, is every factor-th cell of it along each axis. Derivatives are per cell
of the signal's grid, so targets made of the whole signal go with any factor (Sobolev training, ECCV 2022, arXiv
2207.10395).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from evos import coords
from evos.derivatives import parameter_jvp, value_and_jacobian
from evos.errors import InputError
from evos.fields import build_field
from evos.fields.fused import Fused, compiled
from evos.losses import cross_frequency_loss, derivative_loss, value_loss
from evos.metrics import psnr
from evos.optimizers import (
    RunningClip,
    build_optimizer,
    evaluation_weights,
    polisher,
    replace_weights,
    update_average,
)
from evos.rasters import Raster
from evos.selection import Feedback, ResidualCache, Selection, build_selector
from evos.signals import Signal
from image_regression.options import Options
from image_regression.sources import PIECE, SOURCES, Points

CPU_NUMBERS = 2**21
"""Numbers of a layer in one pass, on a CPU, where a batch is split: more take more memory, and no less time."""


@dataclass
class Work:
    """Cost of training so far, in points passed through the network."""

    evaluated: int = 0
    trained: int = 0


class Fit:
    """A field being fitted to a signal: ``step`` trains, ``predict`` evaluates, the state dict resumes exactly."""

    def __init__(self, signal: Signal | Raster, options: Options, device: torch.device) -> None:
        kind: Any = SOURCES[type(signal)]
        options = kind.options(signal, options)
        self.options, self.device = options, device
        self.signal: Any = signal
        run = options.run
        self.source: Any = kind(signal, options, device)
        self.pool, self.transform = self.source.pool, self.source.transform
        self.values, self.grid = self.source.values, self.source.grid  # what is evaluated
        self.cell = torch.tensor(coords.spacing(signal.shape), device=device)
        self.supervises_derivatives = run.supervision != "val"
        channels = self.values.shape[-1]
        self.field = build_field(options.field, len(signal.shape), channels, seed=run.seed, device=device)
        self.network = Fused(self.field, compile=run.compile)
        derive = partial(value_and_jacobian, self.field)
        self.derive = compiled(derive) if run.compile else derive
        self.optimizer = build_optimizer(run.optimizer, self.field, options.lr)
        self.polishing = False
        self.clip = run.build_clip(device)
        self.average = [weight.detach().clone() for weight in self.field.parameters()] if run.ema > 0 else None
        self.selector = build_selector(
            options.selector,
            self.pool,
            total_steps=run.steps,
            device=device,
            seed=run.seed,
            target=None if self.source.trained is None else self.source.trained[None],
        )
        self.cfs_steps = math.floor(run.cfs_ratio * run.steps)
        # Cross-frequency supervision needs residuals of cells not selected, which not every selector keeps.
        cached = self.selector.cache
        self.own_cache = None if cached is not None and cached.has_signs else ResidualCache(self.pool, device)
        self.work, self.train_seconds = Work(), 0.0
        self.visits = torch.zeros(self.pool.cells, dtype=torch.int32, device=device)
        # What is split is split as finely as costs no time: a pass keeps every layer's activations.
        fine = CPU_NUMBERS // options.field.hidden_features if device.type == "cpu" else run.chunk
        self.piece = max(1, min(run.chunk, fine))
        if run.precision == "tf32":
            torch.set_float32_matmul_precision("high")

    # ---- one step --------------------------------------------------------------------------------------------

    def step(self, step: int) -> Tensor:
        """Select points, update the weights, report to the selector; returns the loss, still on the device."""
        if step > self.options.run.steps - self.options.run.polish:
            return self.polish(step)
        self.set_learning_rate(step)
        selection = self.selector.select(step, count=self.source.count, evaluate=self.evaluate)
        count = self.pool.cells if selection.index is None else selection.index.shape[1]
        self.work.trained += count
        self.work.evaluated += count
        if selection.index is not None:
            self.visits.index_add_(0, selection.index[0], torch.ones_like(selection.index[0], dtype=torch.int32))

        points = self.source.points(selection)
        coordinates = points.coords
        # With derivatives in the loss, its gradient by coordinate is no longer that of the value error.
        if "coord_grad" in self.selector.needs and not self.supervises_derivatives:
            coordinates = coordinates.detach().requires_grad_()
        self.optimizer.zero_grad(set_to_none=True)
        selection, loss, residual = self.backward(points, coordinates)
        if self.clip is not None:
            self.clip(self.field.parameters())
        follows_update = selection.is_key and "update" in self.selector.needs
        before = self.weights() if follows_update else None
        self.optimizer.step()

        update = None if before is None else self.update(before)
        self.selector.observe(selection, Feedback(residual, coord_grad=coordinates.grad, update=update))
        if self.own_cache is not None and self.supervises_frequencies(selection):
            self.own_cache.write(selection, residual)
        if self.average is not None:
            update_average(self.average, self.field.parameters(), self.options.run.ema, step)
        return loss

    def polish(self, step: int) -> Tensor:
        """Ten iterations of L-BFGS on all points; returns the loss before them. Waits for the device."""
        if not self.polishing:
            with evaluation_weights(self.field, self.optimizer, self.average):
                measured = [weight.detach().clone() for weight in self.field.parameters()]
            replace_weights(self.field, measured)
            self.begin_polish()
        selection = self.selector.all_cells(self.selector.all_rows, step)

        def closure() -> Tensor:
            self.work.trained += self.pool.cells
            self.work.evaluated += self.pool.cells
            self.optimizer.zero_grad()
            points = self.source.points(selection)
            return self.backward(points, points.coords)[1]

        optimizer: Any = self.optimizer  # torch declares losses as floats
        loss: Tensor = optimizer.step(closure)
        return loss

    def begin_polish(self) -> None:
        """Switch to L-BFGS; from here on the field's own weights are evaluated, not an average."""
        self.polishing, self.optimizer, self.average = True, polisher(self.field), None

    def backward(
        self, points: Points, coordinates: Float[Tensor, "B K D"]
    ) -> tuple[Selection, Float[Tensor, ""], Float[Tensor, "B K C"]]:
        """Gradient of the loss; returns the selection as weighed, the loss and the residual, both without gradient."""
        if coordinates.shape[1] <= self.options.run.chunk:
            selection, loss, residual = self.loss(points, *self.outputs(coordinates))
            loss.backward()
            return selection, loss.detach(), residual
        # Too large for one pass: first the loss's gradient with respect to the outputs, then the network in pieces.
        pieces = [piece.detach() for piece in coordinates.split(self.piece, dim=1)]
        with torch.no_grad():
            outputs = joined((self.outputs(piece) for piece in pieces), coordinates.shape[1])
        for output in outputs:
            output.requires_grad_()
        selection, loss, residual = self.loss(points, *outputs)
        # With derivative supervision alone the values have no gradient.
        output_grads = torch.autograd.grad(loss, outputs, allow_unused=True, materialize_grads=True)
        piece_grads = zip(*(grad.split(self.piece, dim=1) for grad in output_grads), strict=True)
        point_grads = []
        for piece, piece_grad in zip(pieces, piece_grads, strict=True):
            piece.requires_grad_(coordinates.requires_grad)
            torch.autograd.backward(self.outputs(piece), piece_grad)
            point_grads.append(piece.grad)
        if coordinates.requires_grad:
            coordinates.grad = torch.cat(point_grads, dim=1)
        return selection, loss.detach(), residual

    def weights(self) -> dict[str, Tensor]:
        """A copy of the field's parameters."""
        return {name: parameter.detach().clone() for name, parameter in self.field.named_parameters()}

    @torch.no_grad()
    def update(self, before: dict[str, Tensor]) -> Float[Tensor, "B P C"]:
        """First-order change of the field at every cell along the loss's gradient by parameters, in [0, 1] units.

        ``before``: the weights at which the gradient was taken, before the optimizer's step.
        """
        self.work.evaluated += self.pool.cells
        parameters = self.field.named_parameters()
        direction = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in parameters}
        pieces = self.source.coords.split(self.piece)
        change = torch.cat([parameter_jvp(self.field, piece, before, direction) for piece in pieces])
        return change[None] / (self.transform.derivative or 2.0)

    def outputs(self, coordinates: Float[Tensor, "B K D"]) -> tuple[Tensor, ...]:
        """Inputs of the loss: predictions and, where they are supervised, their derivatives "B K C D" per cell."""
        if not self.supervises_derivatives:
            return (self.forward(coordinates),)
        # In float32 whatever the run's precision: differences of neighbours are below what bfloat16 resolves.
        values, jacobian = self.derive(coordinates.flatten(0, 1))
        size = coordinates.shape[:2]
        return values.unflatten(0, size), (jacobian * self.cell).unflatten(0, size)

    def loss(
        self, points: Points, prediction: Float[Tensor, "B K C"], jacobian: Float[Tensor, "B K C D"] | None = None
    ) -> tuple[Selection, Float[Tensor, ""], Float[Tensor, "B K C"]]:
        """Value and derivative loss on the transformed target, plus cross-frequency supervision if due.

        The residual, in the signal's [0, 1] units, is without gradient.
        """
        run, target, cfs = self.options.run, points.target, self.supervises_frequencies(points.selection)
        with torch.set_grad_enabled(cfs):
            residual = self.residual(self.aligned(prediction, prediction, target), points)
        selection = points.selection
        selection = self.selector.weigh(selection, residual.detach())
        loss = prediction.new_zeros(())
        if run.supervision != "der":
            loss = value_loss(prediction, target, selection)
        if jacobian is not None and points.derivatives is not None:
            derivatives = points.derivatives.view_as(jacobian)
            loss = loss + run.lambda_der * derivative_loss(jacobian, derivatives, selection.weight)
        if cfs and (cache := self.own_cache or self.selector.cache) is not None:
            cached = cache.read(selection.rows)
            loss = loss + self.options.cfs_weight * cross_frequency_loss(cached, selection, residual, self.pool)
        return selection, loss, residual.detach()

    def supervises_frequencies(self, selection: Selection) -> bool:
        """Whether a step has cross-frequency supervision: the first ``cfs_ratio`` of the steps, every dense key step.

        The latter as in EVOS' released code; leaving it out costs 0.6 dB (benchmarks/photo_128.py's setting).
        """
        dense_key = selection.is_key and selection.index is None
        return self.options.cfs_weight > 0 and (selection.step <= self.cfs_steps or dense_key)

    def residual(self, prediction: Float[Tensor, "B K C"], points: Points) -> Float[Tensor, "B K C"]:
        """Signed error in the signal's [0, 1] units."""
        if self.transform.derivative is not None:
            return (prediction - points.target) / self.transform.derivative
        return self.transform.inverse(prediction) - points.values

    def aligned(
        self, prediction: Float[Tensor, "*N P C"], known: Float[Tensor, "*N K C"], target: Float[Tensor, "*N K C"]
    ) -> Float[Tensor, "*N P C"]:
        """Predictions shifted by the constant that gives ``known`` the mean of its target.

        Derivative supervision leaves that constant undetermined; where values are supervised, nothing is shifted.
        """
        if self.options.run.supervision != "der":
            return prediction
        return prediction + (target - known).mean(-2, keepdim=True)

    @torch.no_grad()
    def shift(self) -> Float[Tensor, " C"] | None:
        """What ``aligned`` adds to the predictions of the evaluation weights; None where nothing is shifted."""
        if self.options.run.supervision != "der":
            return None
        with evaluation_weights(self.field, self.optimizer, self.average):
            return (self.source.target - self.evaluate_at(self.source.coords)).mean(-2)

    def forward(self, coordinates: Float[Tensor, "*N D"]) -> Float[Tensor, "*N C"]:
        """The field's prediction of the transformed target, in the run's precision."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.run.precision == "bf16"):
            return self.network(coordinates).float()

    def set_learning_rate(self, step: int) -> None:
        """The learning rate of a step, the same for all weights."""
        run = self.options.run
        rate = self.options.lr * run.lr_factor(step, run.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    # ---- evaluation ------------------------------------------------------------------------------------------

    def predict(self) -> Float[Tensor, "P C"]:
        """The whole signal predicted with the evaluation weights (averaged, if any), in [0, 1] units, unclamped."""
        with evaluation_weights(self.field, self.optimizer, self.average):
            output = self.evaluate_at(self.grid)
        if self.options.run.supervision == "der":
            output = self.aligned(output, self.source.on_training_grid(output), self.source.target)
        for piece in output.split(PIECE):
            piece.copy_(self.transform.inverse(piece))
        return output

    @torch.no_grad()
    def evaluate_at(self, coordinates: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
        """Predictions of the transformed target, a chunk at a time."""
        output = coordinates.new_empty(len(coordinates), self.values.shape[-1])
        for part, piece in zip(output.split(self.piece), coordinates.split(self.piece), strict=True):
            part.copy_(self.forward(piece[None])[0])
        return output

    def evaluate(self, rows: Tensor) -> Float[Tensor, "B P C"]:
        """Residuals on the whole training grid, for strategies that evaluate all cells before they select."""
        self.work.evaluated += self.pool.cells
        output, source = self.evaluate_at(self.source.coords), self.source
        return (self.transform.inverse(self.aligned(output, output, source.target)) - source.trained)[None]

    def psnr(self) -> float:
        """PSNR of the whole signal in dB."""
        return psnr(self.predict()[None], self.values[None])

    # ---- state -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The state to resume from; ``average``: the evaluation weights, where they are not the field's own."""
        with evaluation_weights(self.field, self.optimizer, self.average) as averaged:
            average = {name: weight.clone() for name, weight in self.field.state_dict().items()} if averaged else None
        return {
            "field": self.field.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "polishing": self.polishing,
            "gradient_norm": self.clip.mean if isinstance(self.clip, RunningClip) else None,
            "average": average,
            "selector": self.selector.state_dict(),
            "transform": self.transform.state_dict(),
            "residual": None if self.own_cache is None else self.own_cache.residual,
            "visits": self.visits,
            "mean": self.source.mean,
            "source": self.source.state_dict(),
            "work": [self.work.evaluated, self.work.trained],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` returned; raises InputError where it doesn't fit the options."""
        try:
            same_shape = state["visits"].shape == self.visits.shape
            if not (same_shape and math.isclose(state["mean"], self.source.mean, abs_tol=1e-6)):
                raise ValueError("one of another signal")
            self.field.load_state_dict(state["field"])
            if state["polishing"]:
                self.begin_polish()
            self.optimizer.load_state_dict(state["optimizer"])
            if isinstance(self.clip, RunningClip):
                self.clip.mean = state["gradient_norm"].to(self.device, copy=True)
            for (name, _), mine in zip(self.field.named_parameters(), self.average or (), strict=False):
                mine.copy_(state["average"][name])
            self.selector.load_state_dict(state["selector"])
            self.source.load_state_dict(state["source"])
            if self.own_cache is not None and state["residual"] is not None:
                self.own_cache.residual = state["residual"].to(self.device, copy=True)
            self.visits = state["visits"].to(self.device, copy=True)
            self.work = Work(*state["work"])
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            reason = f"one without {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
            raise InputError("checkpoint", reason, "one of the same signal and options") from None


def joined(pieces: Iterable[tuple[Tensor, ...]], count: int) -> list[Tensor]:
    """Tensors "B K *V" of ``count`` points from pieces of them, of which no two are held at a time."""
    whole, first = [], 0
    for piece in pieces:
        whole = whole or [part.new_empty(len(part), count, *part.shape[2:]) for part in piece]
        last = first + piece[0].shape[1]
        for mine, part in zip(whole, piece, strict=True):
            mine[:, first:last] = part
        first = last
    return whole
