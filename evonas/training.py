"""Progressive training of a supernet (EvoNAS's PST), and training of a single network: one class for both.

A plan says how many steps there are and which architectures each of them trains. That of a supernet goes through
phases: each frees values of some options, and all values freed stay so; a step trains a few random architectures of
those that are free. They are drawn from a generator seeded by (seed, step), so that all processes agree, and a resumed
run goes on with the same ones.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from evonas.distillation import Distillation
from evonas.space import OPTIONS, Genome, Space
from evonas.supernet import Network, load_weights
from evonas.tasks import Task
from evos.config import check_choice, check_range
from evos.distributed import World
from evos.errors import InputError
from evos.runs import EventLog, Trainable
from evos.seeding import mixed_seed
from evos.training_options import OptimizerOptions

PAPER_LR = 5e-5
PROBES = 4
"""Random architectures among those that say how good a supernet is, beside the smallest and the largest."""

PAPER_PHASES = (
    {"epochs": 40},
    {"epochs": 5, "state": "[48, 64]"},
    {"epochs": 20, "state": "all"},
    {"epochs": 5, "subnets": 2, "mlp_ratio": "[3, 3.5, 4]"},
    {"epochs": 20, "subnets": 2, "mlp_ratio": "all"},
    {"epochs": 5, "subnets": 4, "expand": "[2, 3, 4]"},
    {"epochs": 20, "subnets": 4, "expand": "all"},
    {"epochs": 25, "subnets": 4, "blocks": "all"},
)
"""The paper's progressive training on NYU v2 and KITTI; the default."""


@dataclass(frozen=True)
class TrainConfig(OptimizerOptions):
    """Options of a training; the optimizer is AdamW."""

    batch: int = 8
    """Pictures a step over all processes together, at least 1 and a multiple of their number."""

    steps: int | None = None
    """Training steps of a single network, at least 1; none: as many as ``epochs`` take."""

    epochs: float = 40
    """Passes over the training pictures of a single network, above 0."""

    weight_decay: float = 0.01
    """Decoupled weight decay, at least 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("batch", self.batch, 1)
        check_range("steps", self.steps, 1)
        check_range("epochs", self.epochs, 0, open_low=True)
        check_range("weight_decay", self.weight_decay, 0)
        if self.optimizer != "adam":
            raise InputError("optimizer", self.optimizer, "adam")
        if self.ema or self.clip_ratio:
            raise InputError("ema" if self.ema else "clip_ratio", self.ema or self.clip_ratio, "clip; no average")

    def steps_over(self, pictures: int) -> int:
        """Steps of a single network over so many training pictures."""
        return self.steps or math.ceil(self.epochs * pictures / self.batch)

    def lr_at(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 1, of ``steps``."""
        return (self.lr or PAPER_LR) * self.lr_factor(step, steps)


@dataclass(frozen=True)
class Phase:
    """Steps that train ``subnets`` architectures each, of the values that ``allowed`` has of each gene."""

    steps: int
    subnets: int
    allowed: tuple[tuple[int, ...], ...]


class Plan:
    """What is trained in each step; of a network that is not a supernet its one architecture in every step."""

    def __init__(self, space: Space, phases: Sequence[Phase]) -> None:
        self.space, self.phases = space, phases
        self.steps = sum(phase.steps for phase in phases)

    def genomes(self, seed: int, step: int) -> list[Genome]:
        """The architectures of a step, counted from 1."""
        for number, phase in enumerate(self.phases):  # noqa: B007 - the one that the loop ends at
            if step <= phase.steps:
                break
            step -= phase.steps
        generator = np.random.default_rng([mixed_seed(seed, 1), number, step])
        return [self.space.sample(generator, phase.allowed) for _ in range(phase.subnets)]


def single_plan(space: Space, genome: Sequence[int], steps: int) -> Plan:
    """One architecture in every step."""
    return Plan(space, [Phase(steps, 1, tuple((gene,) for gene in genome))])


def read_phases(space: Space, entries: Sequence[Any], pictures: int, batch: int) -> Plan:
    """The plan that a list of phases describes, for so many training pictures.

    A phase is a mapping: ``epochs`` or ``steps``, ``subnets`` (1), and what it frees: ``mlp_ratio``, ``state``,
    ``expand``: a list of values or ``all``; ``blocks``: ``all``. Before that only the largest value is free.

    Raises:
        InputError: an unknown or wrong entry, values that the space does not have, no step.
    """
    allowed: list[tuple[int, ...]] = [(gene,) for gene in space.largest]
    phases = []
    for number, entry in enumerate(entries):
        name = f"train.phases[{number}]"
        if not isinstance(entry, Mapping):
            raise InputError(name, entry, "a mapping such as {epochs: 5, subnets: 2, state: all}")
        for key, value in entry.items():
            if key in OPTIONS:
                allowed = freed(space, allowed, key, value, f"{name}.{key}")
            elif key == "blocks":
                if value != "all":
                    raise InputError(f"{name}.blocks", value, "all")
                allowed[space.option_genes :] = [(0, 1)] * sum(space.depths)
            elif key not in ("epochs", "steps", "subnets"):
                raise InputError(f"{name}.{key}", value, f"epochs, steps, subnets, {', '.join(OPTIONS)} or blocks")
        if ("epochs" in entry) == ("steps" in entry):
            raise InputError(name, json.dumps(dict(entry)), "either epochs or steps")
        subnets = number_of(entry.get("subnets", 1), f"{name}.subnets", whole=True)
        if "epochs" in entry:
            steps = math.ceil(number_of(entry["epochs"], f"{name}.epochs") * pictures / batch)
        else:
            steps = int(number_of(entry["steps"], f"{name}.steps", whole=True))
        phases.append(Phase(steps, int(subnets), tuple(allowed)))
    if not phases:
        raise InputError("train.phases", "[]", "at least one phase")
    return Plan(space, phases)


def number_of(text: Any, name: str, *, whole: bool = False) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 < value < math.inf or (whole and value % 1):
        raise InputError(name, text, f"a {'whole ' if whole else ''}number above 0")
    return value


def freed(space: Space, allowed: list, option: str, value: Any, name: str) -> list:
    """``allowed`` with more values of an option."""
    found = list(allowed)
    try:
        wanted = (
            None if value == "all" else [float(v) for v in (json.loads(value) if isinstance(value, str) else value)]
        )
    except (TypeError, ValueError):
        raise InputError(name, value, "all, or a list of values such as [48, 64]") from None
    for gene, (_, own, values) in enumerate(space.choices):
        if own == option:
            if wanted is not None and not set(wanted) <= set(values):
                raise InputError(name, value, f"values of {values}, or all")
            chosen = range(len(values)) if wanted is None else [values.index(v) for v in wanted]
            found[gene] = tuple(sorted(set(chosen)))
    return found


def probes(space: Space, count: int = PROBES) -> list[Genome]:
    """Architectures that say how good a supernet is, always the same: smallest, largest and random ones."""
    generator = np.random.default_rng(0)
    return [space.smallest, space.largest, *(space.sample(generator) for _ in range(count))]


class Training(Trainable):
    """A network in training; keeps the weights of its best evaluation.

    "Best" is by the mean error over ``judges`` (fixed architectures of a supernet) on the search split, which is
    neither trained on nor reported.
    """

    def __init__(
        self,
        network: Network,
        task: Task,
        plan: Plan,
        config: TrainConfig,
        *,
        seed: int,
        device: torch.device,
        world: World | None = None,
        precision: str = "fp32",
        distillation: Distillation | None = None,
    ) -> None:
        """``precision`` is that of the forward pass: fp32, tf32 or bf16; ``distillation`` adds its losses.

        Raises:
            InputError: another precision; the batch is no multiple of the number of processes.
        """
        self.network, self.task, self.plan, self.config = network.to(device), task, plan, config
        self.seed, self.device, self.world = seed, device, world or World()
        if config.batch % self.world.size:
            raise InputError("train.batch", config.batch, f"a multiple of the {self.world.size} processes")
        check_choice("precision", precision, ("fp32", "tf32", "bf16"))
        if precision == "tf32":
            torch.set_float32_matmul_precision("high")
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
        self.judges = probes(network.space) if network.is_supernet else [network.genome]
        self.distillation = distillation
        self.trained = [*network.parameters(), *(distillation.projector.parameters() if distillation else ())]
        self.optimizer = torch.optim.AdamW(self.trained, weight_decay=config.weight_decay)
        self.clip = config.build_clip(device)
        self.best: dict[str, Any] = {"error": math.inf, "step": 0, "weights": {}}

    def indices(self, step: int) -> Tensor:
        """The training pictures of a step, counted from 1: of a random order of its own in each epoch."""
        count, batch = self.task.size("train"), self.config.batch
        places = torch.arange((step - 1) * batch, step * batch)
        own = places[self.world.rank :: self.world.size].tolist()
        return torch.stack([epoch_order(self.seed, place // count, count)[place % count] for place in own])

    def step(self, step: int) -> Float[Tensor, ""]:
        """Train the step's architectures on one batch; the mean of their losses."""
        index = self.indices(step)
        generator = torch.Generator().manual_seed(mixed_seed(mixed_seed(self.seed, step), self.world.rank))
        pictures, truth = self.task.batch("train", index, self.device, generator)
        genomes = self.plan.genomes(self.seed, step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr_at(step, self.plan.steps)
        self.optimizer.zero_grad()
        total, teacher = torch.zeros((), device=self.device), None
        if self.distillation:
            with self.autocast:
                teacher = self.distillation.answer(pictures)
        for genome in genomes:
            if self.network.is_supernet:
                self.network.activate(genome)
            with self.autocast:
                pyramid, output = self.network.both(pictures)
                loss = self.task.loss(output, truth)
                if self.distillation and teacher:
                    loss = loss + self.distillation.loss(pyramid, output, teacher)
                loss = loss / len(genomes)
            loss.backward()
            total += loss.detach()
        self.average_gradients()
        if self.clip is not None:
            self.clip(self.trained)
        self.optimizer.step()
        if self.distillation:
            self.distillation.follow(step)
        return total

    def average_gradients(self) -> None:
        """The mean over all processes, in one message: which weights have a gradient is the same in all of them."""
        if self.world.size == 1:
            return
        gradients = [weight.grad for weight in self.trained if weight.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        parts = (flat / self.world.size).split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def evaluate(self, step: int, events: EventLog | None, *, final: bool) -> dict[str, Any]:
        """Errors of the judges on the search split and their mean, which decides whether the weights are the best."""
        found = self.task.evaluate(self.network, self.judges, "search", self.device)
        errors = [self.task.error(entry) for entry in found]
        error = sum(errors) / len(errors)
        if error < self.best["error"]:
            weights = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
            self.best = {"error": error, "step": step, "weights": weights}
        named = {f"error/{i}": value for i, value in enumerate(errors)} if len(errors) > 1 else {}
        return {"error": error, **named}

    def parameters(self) -> Iterable[Tensor]:
        """The network's weights."""
        return self.network.parameters()

    def scalars(self, step: int) -> dict[str, float]:
        """The learning rate, and how many architectures a step trains."""
        return {"lr": self.config.lr_at(step, self.plan.steps), "subnets": len(self.plan.genomes(self.seed, step))}

    def state_dict(self) -> dict[str, Any]:
        """Everything that training continues from; alike on all processes."""
        state = {"weights": self.network.state_dict(), "optimizer": self.optimizer.state_dict(), "best": self.best}
        return state | ({"distillation": self.distillation.state_dict()} if self.distillation else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict``."""
        load_weights(self.network, state["weights"], "checkpoint")
        self.optimizer.load_state_dict(state["optimizer"])
        if self.distillation:
            self.distillation.load_state_dict(state["distillation"])
        self.best = state["best"]


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, count: int) -> Int[Tensor, "count"]:
    """A random order of so many training pictures."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(mixed_seed(seed, 2 + epoch)))
