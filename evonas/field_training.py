"""Training many fields by the recipe ``fast``, those of equal shapes as one, and successive halving on steps.

Each member of a batch is a field, a signal, a selector and an optimizer of its own, as in image_regression; only layers
and clipping are shared. So a field gets the same weights whatever its company, but for rounding. Letters: M members,
K points of each in a step, P cells of a signal, D axes, C channels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import process_time
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evonas.evolution import non_dominated
from evonas.field_space import Candidate
from evos import coords
from evos.config import build_config, check_range
from evos.fields import build_field
from evos.fields.fused import Fused
from evos.fields.stacked import StackedFields, alike, stack_size
from evos.metrics import psnr
from evos.optimizers import RunningClip, build_optimizer, evaluation_weights
from evos.recipes import RECIPES
from evos.selection import SELECTORS, Feedback, Pool, build_selector
from evos.signals import Signal
from evos.transforms import MinMaxConfig, fit_transform

RECIPE = RECIPES["fast"]
ROWWISE = ("adam", "schedule_free")
"""Optimizers that treat each number by itself, for which a field may be one row of numbers."""
TIMED, UNTIMED = 10, 2
"""Steps whose mean time counts, SOAP's tenth among them, and steps before them."""


@dataclass(frozen=True)
class FieldTrainConfig:
    """How long each field is trained on each signal."""

    steps: int = 2000
    """Most steps, at least 1."""

    seconds: float | None = 2.0
    """Most seconds of one CPU thread, by the time that a step takes, above 0; none: only ``steps`` count."""

    rungs: int = 3
    """Successive halving: how often a bracket is evaluated, the end included, at least 1; 1: all are trained to the
    end."""

    reduction: float = 3.0
    """Of how many candidates one goes on from a rung, to as many times the steps, above 1."""

    bracket: int = 9
    """Candidates that are compared with each other, at least 1."""

    def __post_init__(self) -> None:
        check_range("steps", self.steps, 1)
        check_range("seconds", self.seconds, 0, open_low=True)
        check_range("rungs", self.rungs, 1)
        check_range("reduction", self.reduction, 1, open_low=True)
        check_range("bracket", self.bracket, 1)

    def rung_steps(self, steps: int) -> list[int]:
        """The steps at which a run of so many steps is compared, ascending; the last is its end."""
        parts = [self.reduction ** (rung - self.rungs + 1) for rung in range(self.rungs)]
        return [max(1, min(steps, math.ceil(steps * part))) for part in parts]


class Target:
    """A signal as a field is fitted to it."""

    def __init__(self, signal: Signal, device: torch.device) -> None:
        self.signal, self.values = signal, signal.values.to(device)
        self.coords = coords.grid(signal.shape, device)
        self.transform = fit_transform(MinMaxConfig(), self.values)
        self.target = self.transform.forward(self.values)
        self.pool = Pool(1, signal.shape)
        self.selector = build_config(SELECTORS[RECIPE["selector"]][0], {"keep_ratio": RECIPE["selector.keep_ratio"]})

    @property
    def points(self) -> int:
        """K, how many points a step takes."""
        return max(1, int(RECIPE["selector.keep_ratio"] * self.pool.cells + 1e-6))

    def psnr(self, values: Float[Tensor, "P C"]) -> float:
        """PSNR in dB of predicted values, a picture's clamped to [0, 1] as in image_regression; not finite ones: 0."""
        if not values.isfinite().all():
            return 0.0
        if self.signal.sound is None:
            return max(0.0, psnr(values[None], self.values[None]))
        error = (values.double() - self.values.double()).square().mean()
        return max(0.0, (-10 * error.log10()).item())


class Row(nn.Module):
    """All numbers of a field as one parameter."""

    def __init__(self, numbers: Float[Tensor, " W"], gradient: Float[Tensor, " W"]) -> None:
        super().__init__()
        self.numbers = nn.Parameter(numbers)
        self.bind(numbers, gradient)

    def bind(self, numbers: Float[Tensor, " W"], gradient: Float[Tensor, " W"]) -> None:
        """Be these numbers from now on."""
        self.numbers.data, self.numbers.grad = numbers, gradient


class FieldBatch:
    """Fits of candidates that are alike to signals of as many points a step, trained together.

    Attributes:
        step: how many steps have been taken.
    """

    def __init__(
        self, fits: Sequence[tuple[Candidate, Target]], *, total_steps: int, seed: int, device: torch.device
    ) -> None:
        self.device, self.step = device, 0
        self.targets = [target for _, target in fits]
        sizes = [(target.coords.shape[-1], target.values.shape[-1]) for target in self.targets]
        fields = [
            build_field(candidate.field, *size, seed=seed, device=device)
            for (candidate, _), size in zip(fits, sizes, strict=True)
        ]
        self.stack = StackedFields(fields)
        self.trained: list[nn.Module] = [
            Row(numbers, gradient) if candidate.optimizer in ROWWISE else field
            for (candidate, _), field, numbers, gradient in zip(
                fits, self.stack.fields, self.stack.weights, self.stack.gradients, strict=True
            )
        ]
        self.optimizers: list[Any] = [
            build_optimizer(candidate.optimizer, module, candidate.lr)
            for (candidate, _), module in zip(fits, self.trained, strict=True)
        ]
        self.selectors = [
            build_selector(target.selector, target.pool, total_steps=total_steps, device=device, seed=seed)
            for target in self.targets
        ]
        self.clip = RunningClip(RECIPE["clip_ratio"], device)

    def __len__(self) -> int:
        return len(self.targets)

    def take_step(self) -> None:
        """One step of every member."""
        self.step += 1
        selections = [selector.select(self.step) for selector in self.selectors]
        pairs = list(zip(selections, self.targets, strict=True))
        prediction = self.stack(torch.cat([selection.gather(target.coords) for selection, target in pairs]))
        error = prediction - torch.cat([selection.gather(target.target) for selection, target in pairs])
        self.stack.backward(error.square().mean((1, 2)).sum())
        self.clip.rows(self.stack.gradients)
        for optimizer in self.optimizers:
            optimizer.step()
        for selector, (selection, target), own in zip(self.selectors, pairs, error.detach(), strict=True):
            selector.observe(selection, Feedback(own[None] / (target.transform.derivative or 2.0)))

    def keep(self, members: Sequence[int]) -> None:
        """Go on with some of the members, as they are."""
        for name in ("targets", "trained", "optimizers", "selectors"):
            setattr(self, name, [getattr(self, name)[i] for i in members])
        self.stack.keep(members)
        self.clip.mean = self.clip.mean[list(members)] if self.clip.mean.ndim else self.clip.mean
        for module, numbers, gradient in zip(self.trained, self.stack.weights, self.stack.gradients, strict=True):
            if isinstance(module, Row):
                module.bind(numbers, gradient)

    @torch.no_grad()
    def psnrs(self) -> list[float]:
        """PSNR in dB of each member's whole signal, by the weights that its optimizer evaluates."""
        found = []
        for field, module, optimizer, target in zip(
            self.stack.fields, self.trained, self.optimizers, self.targets, strict=True
        ):
            with evaluation_weights(module, optimizer):
                found.append(target.psnr(target.transform.inverse(Fused(field)(target.coords))))
        return found


Kind = tuple[Any, ...]
"""What fits share that are trained together: config but for what may differ, optimizer, channels, points of a step."""


def kind_of(candidate: Candidate, target: Target) -> Kind:
    """The kind of a fit."""
    return alike(candidate.field), candidate.optimizer, target.values.shape[-1], target.points


class StepTimes:
    """Seconds of one CPU thread that a step of one fit takes by itself, measured once of each kind."""

    def __init__(self, clock: Callable[[], float] = process_time) -> None:
        self.clock = clock
        self.known: dict[Kind, float] = {}

    def __call__(self, candidate: Candidate, target: Target, device: torch.device) -> float:
        """Mean over a few steps."""
        kind = kind_of(candidate, target)
        if kind not in self.known:
            batch, start = FieldBatch([(candidate, target)], total_steps=UNTIMED + TIMED, seed=0, device=device), 0.0
            for step in range(UNTIMED + TIMED):
                start = self.clock() if step == UNTIMED else start
                batch.take_step()
            self.known[kind] = (self.clock() - start) / TIMED
        return self.known[kind]


@dataclass
class Fitting:
    """A candidate in a bracket: on each signal its steps, the seconds that they take, and the PSNR last measured."""

    candidate: Candidate
    steps: list[int]
    seconds: list[float]
    psnrs: list[float]

    @property
    def error(self) -> float:
        """Root mean square error at the mean PSNR over the signals, 0 to 1."""
        return 10 ** (-sum(self.psnrs) / len(self.psnrs) / 20)


def survivors(costs: Sequence[tuple[float, ...]], count: int) -> list[int]:
    """Which ``count`` candidates go on, by place: those that no other dominates first, among them those of least error.

    ``costs``: of each its error, then what else is minimised.
    """
    import numpy as np

    left, order = list(range(len(costs))), []
    while left:
        kept = non_dominated(np.array([costs[i] for i in left], float))
        front = [i for i, keep in zip(left, kept, strict=True) if keep]
        order += sorted(front, key=lambda i: (costs[i][0], i))
        left = [i for i in left if i not in front]
    return sorted(order[:count])


def train_bracket(
    candidates: Sequence[Candidate],
    costs: Callable[[int, float], Sequence[float]],
    targets: Sequence[Target],
    config: FieldTrainConfig,
    *,
    seed: int,
    device: torch.device,
    times: StepTimes,
    poll: Callable[[], None] = lambda: None,
) -> list[Fitting]:
    """Successive halving (Jamieson and Talwalkar 2016) on steps: after each rung but the last the best go on.

    Those that don't keep the error that they had there. Learning rates are constant, so that a rung is what a shorter
    run would have come to.

    Args:
        costs: from a candidate's place and its mean seconds, what is minimised besides the error.
        poll: called after every step; may raise to stop.
    """
    fittings = []
    for candidate in candidates:
        each = [times(candidate, target, device) for target in targets]
        limit = config.seconds or math.inf
        steps = [max(1, min(config.steps, int(min(limit / max(t, 1e-9), 1e9)))) for t in each]
        # Not the steps' own seconds, which a whole number of steps leaves a little below the limit, by chance.
        fittings.append(Fitting(candidate, steps, [min(limit, config.steps * t) for t in each], []))
    batches = []
    for own, count in grouped(fittings, targets, device):
        fits = [(fittings[i].candidate, targets[j]) for i, j in own]
        batches.append((FieldBatch(fits, total_steps=count, seed=seed, device=device), own, count))
    alive = list(range(len(fittings)))
    for rung in range(config.rungs):
        found: dict[tuple[int, int], float] = {}
        for batch, own, steps in batches:
            while batch.step < config.rung_steps(steps)[rung]:
                batch.take_step()
                poll()
            found |= dict(zip(own, batch.psnrs(), strict=True))
        for i in alive:
            fittings[i].psnrs = [found[i, j] for j in range(len(targets))]
        if rung < config.rungs - 1:
            table = [(fittings[i].error, *costs(i, sum(fittings[i].seconds) / len(targets))) for i in alive]
            count = math.ceil(len(alive) / config.reduction)
            alive = [alive[place] for place in survivors(table, count)]
            batches = remaining(batches, alive)
    return fittings


Places = list[tuple[int, int]]
"""Of each member of a batch: which candidate, which signal."""


def grouped(fittings: Sequence[Fitting], targets: Sequence[Target], device: torch.device) -> list[tuple[Places, int]]:
    """Which fits are trained together, and for how many steps."""
    groups: dict[Any, Places] = {}
    for i, fitting in enumerate(fittings):
        for j, target in enumerate(targets):
            groups.setdefault((kind_of(fitting.candidate, target), fitting.steps[j]), []).append((i, j))
    found = []
    for ((config, *_, points), steps), places in groups.items():
        size = stack_size(config.hidden_features, points, device)
        found += [(places[start : start + size], steps) for start in range(0, len(places), size)]
    return found


def remaining(
    batches: Sequence[tuple[FieldBatch, Places, int]], alive: Sequence[int]
) -> list[tuple[FieldBatch, Places, int]]:
    """The batches with the candidates alone that are still in the race."""
    found = []
    for batch, own, steps in batches:
        members = [m for m, (i, _) in enumerate(own) if i in alive]
        if members and len(members) < len(own):
            batch.keep(members)
        if members:
            found.append((batch, [own[m] for m in members], steps))
    return found
