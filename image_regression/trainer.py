"""The training loop: fit one signal with one field on the points that a selector chooses."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from evos import coords
from evos.errors import InputError
from evos.fields import build_field
from evos.losses import cross_frequency_loss, value_loss
from evos.metrics import psnr
from evos.selection import Pool, ResidualCache, Selection, build_selector
from evos.transforms import fit_transform
from image_regression.options import Options
from image_regression.signals import Signal


@dataclass
class Work:
    """What training has cost so far, in points passed through the network."""

    evaluated: int = 0
    trained: int = 0


class Fit:
    """A field being fitted to a signal: ``step`` trains, ``predict`` evaluates, the state dict resumes exactly."""

    def __init__(self, signal: Signal, options: Options, device: torch.device) -> None:
        self.signal, self.options, self.device = signal, options, device
        run = options.run
        self.values = signal.values.to(device)
        self.transform = fit_transform(options.transform, self.values)
        self.target = self.transform.forward(self.values)
        self.mean = float(signal.values.double().mean())  # what a checkpoint knows its picture by
        self.coords = coords.grid(signal.shape, device)
        self.pool = Pool(1, signal.shape)

        channels = signal.values.shape[-1]
        self.field = build_field(options.field, len(signal.shape), channels, seed=run.seed, device=device)
        self.network = compiled(self.field) if run.compile else self.field
        parameters = list(self.field.parameters())
        # The fused kernel has no complex numbers, which WIRE's weights are.
        fused = not any(parameter.is_complex() for parameter in parameters)
        self.optimizer = torch.optim.Adam(parameters, lr=options.lr, fused=fused)
        self.selector = build_selector(
            options.selector,
            self.pool,
            total_steps=run.steps,
            device=device,
            seed=run.seed,
            target=self.values[None],
        )
        self.cfs_steps = math.floor(run.cfs_share * run.steps)
        # EVOS keeps the residuals that cross-frequency supervision needs; for any other strategy they are kept here.
        self.cache = getattr(self.selector, "cache", None) or ResidualCache(self.pool, device)
        self.work = Work()
        self.visits = torch.zeros(self.pool.cells, dtype=torch.int32, device=device)
        self.first_bad = torch.zeros((), dtype=torch.int64, device=device)
        if run.precision == "tf32":
            torch.set_float32_matmul_precision("high")

    # ---- one step --------------------------------------------------------------------------------------------

    def step(self, step: int) -> Tensor:
        """Select, train, and tell the selector; returns the loss without waiting for it."""
        self.set_learning_rate(step)
        selection = self.selector.select(step, evaluate=self.evaluate)
        points = self.pool.cells if selection.index is None else selection.index.shape[1]
        self.work.trained += points
        self.work.evaluated += points
        if selection.index is not None:
            self.visits.index_add_(0, selection.index[0], torch.ones_like(selection.index[0], dtype=torch.int32))

        coordinates = selection.gather(self.coords)
        if self.selector.needs_coord_grad:
            coordinates = coordinates.detach().requires_grad_()
        self.optimizer.zero_grad(set_to_none=True)
        selection, loss, residual = self.backward(selection, coordinates)
        self.optimizer.step()

        self.selector.observe(selection, residual, coord_grad=coordinates.grad)
        if self.supervises_frequencies(selection) and self.cache is not getattr(self.selector, "cache", None):
            self.cache.write(selection, residual)
        self.first_bad = torch.where((self.first_bad == 0) & ~loss.isfinite(), step, self.first_bad)
        return loss

    def backward(
        self, selection: Selection, coordinates: Float[Tensor, "B K D"]
    ) -> tuple[Selection, Float[Tensor, ""], Float[Tensor, "B K C"]]:
        """Gradient of the loss; returns the selection as weighed, the loss and the residuals, both without gradient."""
        if coordinates.shape[1] <= self.options.run.chunk:
            prediction = self.forward(coordinates)
            selection, loss, residual = self.loss(selection, prediction)
            loss.backward()
            return selection, loss.detach(), residual.detach()
        # Too large for one pass: first the loss's gradient with respect to the predictions, then the network in pieces.
        pieces = [piece.detach() for piece in coordinates.split(self.options.run.chunk, dim=1)]
        with torch.no_grad():
            prediction = torch.cat([self.forward(piece) for piece in pieces], dim=1)
        prediction.requires_grad_()
        selection, loss, residual = self.loss(selection, prediction)
        (slope,) = torch.autograd.grad(loss, prediction)
        slopes = slope.split(self.options.run.chunk, dim=1)
        point_grads = []
        for piece, piece_slope in zip(pieces, slopes, strict=True):
            piece.requires_grad_(self.selector.needs_coord_grad)
            self.forward(piece).backward(piece_slope)
            point_grads.append(piece.grad)
        if self.selector.needs_coord_grad:
            coordinates.grad = torch.cat(point_grads, dim=1)
        return selection, loss.detach(), residual.detach()

    def loss(
        self, selection: Selection, prediction: Float[Tensor, "B K C"]
    ) -> tuple[Selection, Float[Tensor, ""], Float[Tensor, "B K C"]]:
        """Value loss on the transformed target, plus cross-frequency supervision where it is due."""
        target, cfs = selection.gather(self.target), self.supervises_frequencies(selection)
        with torch.set_grad_enabled(cfs):
            residual = self.residual(prediction, target, selection)
        selection = self.selector.weigh(selection, residual.detach())
        loss = value_loss(prediction, target, selection)
        if cfs:
            cached = self.cache.read(selection.rows)
            loss = loss + self.options.cfs_weight * cross_frequency_loss(cached, selection, residual, self.pool)
        return selection, loss, residual

    def supervises_frequencies(self, selection: Selection) -> bool:
        """Whether a step has cross-frequency supervision: the first ``cfs_share`` of the steps, every dense key step.

        The latter as in EVOS' released code; leaving it out costs 0.6 dB (benchmarks/photo_128.py's setting).
        """
        dense_key = selection.is_key and selection.index is None
        return self.options.cfs_weight > 0 and (selection.step <= self.cfs_steps or dense_key)

    def residual(
        self, prediction: Float[Tensor, "B K C"], target: Float[Tensor, "B K C"], selection: Selection
    ) -> Float[Tensor, "B K C"]:
        """Signed error in the signal's [0, 1] units."""
        if self.transform.slope is not None:
            return (prediction - target) / self.transform.slope
        return self.transform.inverse(prediction) - selection.gather(self.values)

    def forward(self, coordinates: Float[Tensor, "*N D"]) -> Float[Tensor, "*N C"]:
        """The field's prediction of the transformed target, in the run's precision."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.run.precision == "bf16"):
            return self.network(coordinates).float()

    def set_learning_rate(self, step: int) -> None:
        """Geometric decay from the first step to the last."""
        if self.options.run.lr_decay < 1:
            decay = self.options.run.lr_decay ** ((step - 1) / max(1, self.options.run.steps - 1))
            self.optimizer.param_groups[0]["lr"] = self.options.lr * decay

    # ---- evaluation ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self) -> Float[Tensor, "P C"]:
        """The whole signal as the field has it, in [0, 1] units, unclamped."""
        return torch.cat([self.transform.inverse(part) for part in self.pieces()])

    def pieces(self) -> Iterator[Float[Tensor, "N C"]]:
        """Predictions of the transformed target over the whole grid, a chunk at a time."""
        for piece in self.coords.split(self.options.run.chunk):
            yield self.forward(piece[None])[0]

    def evaluate(self, rows: Tensor) -> Float[Tensor, "B P C"]:
        """Residuals of the whole signal, for strategies that look before they choose."""
        self.work.evaluated += self.pool.cells
        return (self.predict() - self.values)[None]

    def psnr(self) -> float:
        """PSNR of the whole signal in dB."""
        return float(psnr(self.signal.picture(self.predict()), self.signal.picture(self.values)))

    def bad_step(self, step: int) -> int:
        """The first of the steps up to ``step`` that gave a loss or weights that are not finite, 0 without one.

        Waits for the device. Weights count because the loss of a step tells nothing of the weights it leaves, and these
        are what a checkpoint keeps.
        """
        finite = all(bool(parameter.isfinite().all()) for parameter in self.field.parameters())
        return int(self.first_bad) or (0 if finite else step)

    # ---- state -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that training continues from."""
        return {
            "field": self.field.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "selector": self.selector.state_dict(),
            "transform": self.transform.state_dict(),
            "residual": self.cache.residual,
            "visits": self.visits,
            "mean": self.mean,
            "work": [self.work.evaluated, self.work.trained],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` returned; raises InputError where it doesn't fit the options."""
        try:
            same_shape = state["visits"].shape == self.visits.shape
            if not (same_shape and math.isclose(state["mean"], self.mean, abs_tol=1e-6)):
                raise ValueError("one of another picture")
            self.field.load_state_dict(state["field"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.selector.load_state_dict(state["selector"])
            self.cache.residual = None if state["residual"] is None else state["residual"].to(self.device, copy=True)
            self.visits = state["visits"].to(self.device, copy=True)
            self.work = Work(*state["work"])
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            reason = f"one without {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
            raise InputError("checkpoint", reason, "one of the same picture and options") from None


def compiled(field: torch.nn.Module) -> Any:
    """The field compiled for each batch size it meets: a strategy has a few, all of them static."""
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(field, dynamic=False)
