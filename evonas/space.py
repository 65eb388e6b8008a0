"""The search space: which networks there are, and how genes describe them.

Four stages (any number of them) of blocks, each stage with options of its own and each block there or not; all lengths,
bounds and counts follow from the config. A genome is a tuple of whole numbers: the option genes, each an index into the
choices of one option of one stage, then a gene 0 or 1 for each block. EvoNAS (arXiv 2603.19563): 28 genes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import yaml

from evonas.genomes import Genes, Genome, GenomeSpace
from evos.errors import InputError

Kind = Literal["mixer", "attention"]
OPTIONS = ("mlp_ratio", "state", "expand")


@dataclass(frozen=True)
class Stage:
    """One stage of an architecture.

    Attributes:
        mlp_ratio: hidden features of each block's MLP over the stage's width.
        state: dimension N of the state space; 0 in a stage of attention, as ``expand``.
        expand: inner features of the state space over the stage's width.
        blocks: which of the supernet's blocks are there; at least one.
    """

    mlp_ratio: float
    state: int
    expand: float
    blocks: tuple[int, ...]


Architecture = tuple[Stage, ...]


@dataclass(frozen=True)
class SpaceConfig:
    """Options of the space; lists are written as in YAML."""

    depths: str = "[2, 4, 8, 4]"
    """Most blocks of each stage."""

    width: int = 64
    """Features of the first stage, at least 8 and a multiple of its heads; doubled from stage to stage."""

    heads: str = "[2, 4, 8, 16]"
    """Heads of each stage; each divides the stage's width."""

    attention_stages: int = 1
    """How many stages, the last ones, have self-attention instead of a state space, at least 0."""

    mlp_ratio: str = "[0.5, 1, 2, 3, 3.5, 4]"
    """Choices in every stage: hidden features of the MLP over the width."""

    state: str = "[16, 32, 48, 64]"
    """Choices in every stage with a state space: its dimension."""

    expand: str = "[0.5, 1, 2, 3, 4]"
    """Choices in every stage with a state space: its inner features over the width."""

    def __post_init__(self) -> None:
        Space(self)  # checks the rest


def read_numbers(name: str, text: str, kind: type = float) -> list:
    """The positive numbers of a list written as in YAML, in the order given.

    Raises:
        InputError: it is no list, is empty, or holds something else.
    """
    try:
        values = yaml.safe_load(text)
        numbers = [kind(value) for value in values]
        if not numbers or any(
            n <= 0 or n != float(v) or not math.isfinite(n) for n, v in zip(numbers, values, strict=True)
        ):
            raise ValueError
    except (yaml.YAMLError, TypeError, ValueError, OverflowError):
        allowed = "whole numbers above 0" if kind is int else "numbers above 0"
        raise InputError(name, text, f"a list of {allowed} such as [1, 2]") from None
    return numbers


def read_names(name: str, text: str, known: Sequence[str]) -> list[str]:
    """The names of a list written as in YAML, each once, all of them known; raises InputError otherwise."""
    try:
        names = yaml.safe_load(text)
    except yaml.YAMLError:
        names = None
    if not isinstance(names, list) or len(set(map(str, names))) < len(names) or not set(map(str, names)) <= set(known):
        raise InputError(name, text, f"a list of {', '.join(known)}, each once")
    return names


class Space(GenomeSpace):
    """All architectures that a config describes.

    Attributes:
        depths, widths, heads: of each stage.
        kinds: of each stage, ``mixer`` (a state space) or ``attention``.
        choices: for each option gene its stage, the option's name and the ascending choices.
    """

    objectives = ("error", "latency", "macs", "parameters")

    def __init__(self, config: SpaceConfig) -> None:
        """Raises InputError if the options don't fit together."""
        self.config = config
        self.depths: list[int] = read_numbers("depths", config.depths, int)
        self.heads: list[int] = read_numbers("heads", config.heads, int)
        count = len(self.depths)
        if len(self.heads) != count:
            raise InputError("heads", config.heads, f"{count} numbers, one a stage, as depths")
        if config.width < 8:
            raise InputError("width", config.width, "at least 8")
        if not 0 <= config.attention_stages <= count:
            raise InputError("attention_stages", config.attention_stages, f"0 to {count}")
        self.widths = [config.width * 2**i for i in range(count)]
        for width, heads in zip(self.widths, self.heads, strict=True):
            if width % heads:
                raise InputError("heads", heads, f"a divisor of the stage's width, {width}")
        mixers = count - config.attention_stages
        self.kinds: list[Kind] = ["mixer" if i < mixers else "attention" for i in range(count)]
        numbers = {
            "mlp_ratio": read_numbers("mlp_ratio", config.mlp_ratio),
            "state": read_numbers("state", config.state, int),
            "expand": read_numbers("expand", config.expand),
        }
        for name, values in numbers.items():
            if sorted(set(values)) != values:
                raise InputError(name, values, "ascending numbers, each once")
        self.choices: list[tuple[int, str, list]] = [
            (stage, name, numbers[name])
            for stage, kind in enumerate(self.kinds)
            for name in (OPTIONS if kind == "mixer" else OPTIONS[:1])
        ]
        for stage, name, values in self.choices:
            for value in values if name != "state" else []:
                if self.width_of(stage, name, value) < 1:
                    raise InputError(
                        name, value, f"at least one feature in stage {stage + 1} of width {self.widths[stage]}"
                    )

    def sizes(self, stage: int, own: Stage) -> tuple[int, int, int]:
        """Hidden features of the MLPs, inner features and dimension of the state spaces of an architecture's stage."""
        return self.width_of(stage, "mlp_ratio", own.mlp_ratio), self.width_of(stage, "expand", own.expand), own.state

    def width_of(self, stage: int, option: str, value: float) -> int:
        """Features for a ratio: a state space's are a multiple of the heads."""
        if option == "mlp_ratio":
            return int(value * self.widths[stage])
        heads = self.heads[stage]
        return heads * int(value * self.widths[stage] / heads)

    # ---- genomes ----

    @property
    def option_genes(self) -> int:
        """How many genes choose an option."""
        return len(self.choices)

    @cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Least and greatest value of each gene, both included."""
        high = [len(values) - 1 for _, _, values in self.choices] + [1] * sum(self.depths)
        return np.zeros(len(high), int), np.array(high)

    @property
    def identity(self) -> dict[str, Any]:
        """Widths, depths, heads and choices."""
        return {"widths": self.widths, "depths": self.depths, "heads": self.heads, "choices": self.choices}

    @property
    def count(self) -> int:
        """How many architectures there are: at least one block in each stage."""
        options = math.prod(len(values) for _, _, values in self.choices)
        return options * math.prod(2**depth - 1 for depth in self.depths)

    def stage_genes(self) -> Iterator[slice]:
        """Where the block genes of each stage are."""
        start = self.option_genes
        for depth in self.depths:
            yield slice(start, start + depth)
            start += depth

    def check(self, genome: Genes) -> Genome:
        """The genome as a tuple of whole numbers.

        Raises:
            InputError: it is of another space, or a stage has no block.
        """
        genes = super().check(genome)
        for stage, place in enumerate(self.stage_genes(), 1):
            if not any(genes[place]):
                raise InputError("genome", list(genome), f"at least one block in stage {stage}")
        return genes

    def decode(self, genome: Genes) -> Architecture:
        """The architecture of a genome; raises InputError as ``check``."""
        genes = self.check(genome)
        found: list[dict] = [{} for _ in self.depths]
        for gene, (stage, name, values) in zip(genes, self.choices, strict=False):
            found[stage][name] = values[gene]
        return tuple(
            Stage(
                options["mlp_ratio"],
                options.get("state", 0),
                options.get("expand", 0),
                tuple(i for i, on in enumerate(genes[place]) if on),
            )
            for options, place in zip(found, self.stage_genes(), strict=True)
        )

    def encode(self, architecture: Architecture) -> Genome:
        """The genome of an architecture; raises InputError if it is not of this space."""
        if len(architecture) != len(self.depths):
            raise InputError("architecture", f"{len(architecture)} stages", f"{len(self.depths)} stages")
        genes = []
        for stage, name, values in self.choices:
            value = getattr(architecture[stage], name)
            if value not in values:
                raise InputError(f"{name} of stage {stage + 1}", value, f"one of {values}")
            genes.append(values.index(value))
        for stage, (own, depth) in enumerate(zip(architecture, self.depths, strict=True), 1):
            if not set(own.blocks) <= set(range(depth)):
                raise InputError(f"blocks of stage {stage}", own.blocks, f"numbers from 0 to {depth - 1}")
            genes += [int(i in own.blocks) for i in range(depth)]
        return self.check(genes)

    def repair(self, genome: Genes) -> Genome:
        """The nearest genome of this space: genes within their bounds, and the first block of a stage without any."""
        low, high = self.bounds
        genes = np.clip(np.asarray(genome, int), low, high)
        for place in self.stage_genes():
            if not genes[place].any():
                genes[place.start] = 1
        return self.check(genes)

    def sample(self, generator: np.random.Generator, allowed: Sequence[Sequence[int]] | None = None) -> Genome:
        """A random genome: each gene uniform over its values, stages without a block drawn again.

        ``allowed`` restricts the values of each gene.
        """
        low, high = self.bounds
        values = [range(a, b + 1) for a, b in zip(low, high, strict=True)] if allowed is None else allowed
        genes = np.array([own[generator.integers(len(own))] for own in values])
        for place in self.stage_genes():
            while not genes[place].any():
                genes[place] = [own[generator.integers(len(own))] for own in values[place]]
        return self.check(genes)

    def describe(self, genome: Genes) -> str:
        """The architecture in words; raises InputError as ``check``."""
        return as_text(self.decode(genome))

    @property
    def largest(self) -> Genome:
        """Every option at its greatest, all blocks."""
        return tuple(self.bounds[1].tolist())

    @property
    def smallest(self) -> Genome:
        """Every option at its least, one block a stage."""
        return self.repair(self.bounds[0])


def as_text(architecture: Architecture) -> str:
    """An architecture in words, a stage after the other."""
    parts = []
    for own in architecture:
        mixer = f" N{own.state} E{own.expand:g}" if own.state else ""
        parts.append(f"{len(own.blocks)}×(M{own.mlp_ratio:g}{mixer})")
    return " ".join(parts)
