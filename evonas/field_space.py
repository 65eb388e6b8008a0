"""The space of neural fields: family, sizes, frequencies, initial weights, optimizer and learning rate as genes.

A genome is a tuple of whole numbers, each an index into the choices of one option. Options that a genome's family does
not have, or that change nothing of its field, are 0: that is its canonical form, the only one that counts as a genome,
so that no field has two.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, cached_property
from typing import Any, cast

import numpy as np
from jaxtyping import Bool, Int

from evonas.genomes import Genes, Genome, GenomeSpace
from evonas.space import read_names, read_numbers
from evos.command_line import read_list
from evos.config import check_choice, check_range
from evos.errors import InputError
from evos.fields import FIELDS, FieldConfig, build_field
from evos.fields.hashgrid import HashGridConfig
from evos.optimizers import OPTIMIZERS
from evos.runs import count_parameters

WHOLE = frozenset({"hidden_layers", "hidden_features", "frequencies", "features", "base_resolution"})
WHOLE |= {"finest_resolution", "levels", "level_features", "table_log2"}
"""Options that are whole numbers."""
SIZES = ("table_log2", "level_features", "levels", "features", "frequencies", "hidden_features", "hidden_layers")
"""Options that make a field smaller, for ``max_parameters``."""


@dataclass(frozen=True)
class FieldSpaceConfig:
    """Options of the space of fields: the choices of each gene, as lists in YAML, numbers ascending."""

    family: str = "[siren, finer, wire, gauss, relu, pemlp, fourier, hashgrid]"
    """Families of fields."""

    hidden_layers: str = "[1, 2, 3, 4]"
    """Layers from hidden to hidden features."""

    hidden_features: str = "[16, 24, 32, 48, 64, 96, 128, 192, 256]"
    """Width of the hidden layers."""

    first_omega: str = "[10, 20, 30, 45, 60, 90, 120]"
    """Frequency factor of the first layer (siren, finer, wire)."""

    omega: str = "[10, 20, 30, 45, 60]"
    """Frequency factor of the hidden layers (siren, finer, wire)."""

    init_scale: str = "[0.5, 1, 1.5, 2, 3]"
    """Factor on the initial weights of all but the last layer (siren, finer, wire)."""

    first_bias_scale: str = "[0.7, 2, 5, 10, 20]"
    """Range of the first layer's initial biases (finer)."""

    scale: str = "[3, 5, 10, 20, 30]"
    """Inverse width of the Gaussians (gauss, wire)."""

    frequencies: str = "[4, 6, 8, 10]"
    """Octaves of the positional encoding (pemlp)."""

    features: str = "[32, 64, 128, 256]"
    """Random frequencies (fourier)."""

    sigma: str = "[2, 5, 10, 20, 40]"
    """Standard deviation of the frequencies, in cycles per side (fourier)."""

    base_resolution: str = "[4, 8, 16, 32]"
    """Vertices per axis of the coarsest level (hashgrid)."""

    finest_resolution: str = "[32, 64, 128, 256, 512]"
    """Vertices per axis of the finest level (hashgrid)."""

    levels: str = "[2, 4, 6, 8, 12, 16]"
    """Resolutions (hashgrid)."""

    level_features: str = "[1, 2, 4, 8]"
    """Learned features per vertex (hashgrid)."""

    table_log2: str = "[8, 9, 10, 11, 12, 13, 14, 15]"
    """log2 of the rows of a level's table (hashgrid)."""

    optimizer: str = "[adam, soap, schedule_free]"
    """Optimizers; wire, whose weights are complex, takes adam alone."""

    lr: str = "[0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05]"
    """Learning rates, on Adam's scale."""

    start: str = (
        "[{family: siren, hidden_features: 256, init_scale: 1.5, optimizer: schedule_free, lr: 0.001},"
        " {family: hashgrid, lr: 0.01}, {family: hashgrid, table_log2: 12, lr: 0.01}]"
    )
    """Fields that the first generation holds, each as near as the lists above come to it, with its family's defaults
    for what is not said; []: it is all random. By default those that ship."""

    max_parameters: int | None = None
    """Most numbers that a field may be made of, at least 1; larger ones are made smaller; none: no limit."""

    def __post_init__(self) -> None:
        check_range("max_parameters", self.max_parameters, 1)
        read_choices(self)


def read_choices(config: FieldSpaceConfig) -> dict[str, list[Any]]:
    """The choices of each gene, in the order of the genes; raises InputError for lists that are none."""
    found: dict[str, list[Any]] = {}
    known = {"family": list(FIELDS), "optimizer": list(OPTIMIZERS)}
    for entry in fields(config):
        name, text = entry.name, getattr(config, entry.name)
        if name in known:
            found[name] = read_names(name, text, known[name])
            if not found[name]:
                raise InputError(name, text, f"a list of {', '.join(known[name])}")
        elif name not in ("start", "max_parameters"):
            found[name] = read_numbers(name, text, int if name in WHOLE else float)
            if sorted(set(found[name])) != found[name]:
                raise InputError(name, text, "ascending numbers, each once")
    if "wire" in found["family"] and "adam" not in found["optimizer"]:
        raise InputError("optimizer", config.optimizer, "adam among them, which family wire needs")
    return found


@dataclass(frozen=True)
class Candidate:
    """A field and how it is trained."""

    field: FieldConfig
    optimizer: str
    lr: float

    def values(self) -> dict[str, Any]:
        """The options of image_regression that make it."""
        own = {f"field.{entry.name}": getattr(self.field, entry.name) for entry in fields(self.field)}
        own = {name: value for name, value in own.items() if value is not None}
        return {"field": self.field.name, **own, "optimizer": self.optimizer, "lr": self.lr}


@cache
def field_parameters(config: FieldConfig, axes: int, channels: int) -> int:
    """Numbers that a field is made of."""
    if isinstance(config, HashGridConfig):
        return config.parameters(axes, channels)  # tables may be large
    return count_parameters(build_field(config, axes, channels, seed=0).parameters())


class FieldSpace(GenomeSpace):
    """All fields that a config describes, for signals of so many axes and channels.

    Attributes:
        choices: of each gene, by name, in the order of the genes.
    """

    objectives = ("error", "seconds", "parameters")

    def __init__(self, config: FieldSpaceConfig, axes: int = 2, channels: int = 3) -> None:
        """Raises InputError where no field of a family is small enough, or an option is out of its family's range."""
        self.config, self.axes, self.channels = config, axes, channels
        self.choices = read_choices(config)
        self.names = list(self.choices)
        for family in self.choices["family"]:
            self.check_family(family)
        _ = self.start  # bad ones are refused now

    @cached_property
    def start(self) -> list[Genome]:
        """The config's fields, each once, without those of families that this space leaves out.

        Raises:
            InputError: it is no list of fields.
        """
        found = []
        for values in read_list("start", self.config.start):
            family = str(values.get("family")) if isinstance(values, dict) else ""
            if family not in FIELDS or not values.keys() <= {"family", "optimizer", "lr"} | options_of(family):
                allowed = f"a mapping of family ({', '.join(FIELDS)}), its options, optimizer, lr"
                raise InputError("start", values, allowed)
            if family in self.choices["family"]:
                found.append(self.nearest(values))
        return list(dict.fromkeys(found))

    def nearest(self, values: Mapping[str, Any]) -> Genome:
        """The genome whose choices are the nearest to a field's options, numbers by their ratio.

        ``values``: options by name, texts or numbers; raises InputError for one that should be a number and is none,
        and for an unknown optimizer.
        """
        family = FIELDS[values["family"]]
        defaults = {entry.name: getattr(family(), entry.name) for entry in fields(family)}
        wanted = {"optimizer": "adam", "lr": family.default_lr} | defaults | dict(values)
        check_choice("start optimizer", wanted["optimizer"], OPTIMIZERS)
        genes = []
        for name, choices in self.choices.items():
            if name not in wanted:
                genes.append(0)
            elif isinstance(choices[0], str):
                genes.append(choices.index(wanted[name]) if wanted[name] in choices else 0)
            else:
                try:
                    goal = math.log(float(wanted[name]))
                except (TypeError, ValueError):
                    raise InputError(f"start {name}", wanted[name], "a number above 0") from None
                genes.append(min(range(len(choices)), key=lambda i: abs(math.log(choices[i]) - goal)))
        return self.repair(genes)

    def check_family(self, family: str) -> None:
        """Raise InputError where its options are out of range, or none of its fields is small enough."""
        own = {name: self.choices[name] for name in self.choices if name in options_of(family)}
        if family == "hashgrid" and own["base_resolution"][0] > own["finest_resolution"][-1]:
            allowed = f"one of at least {own['base_resolution'][0]}, the least base_resolution, among them"
            raise InputError("finest_resolution", own["finest_resolution"], allowed)
        for end in (0, -1):
            FIELDS[family](**{name: values[end] for name, values in own.items() if not name.endswith("_resolution")})
        smallest = self.parameters(self.smallest(family))
        if self.config.max_parameters is not None and smallest > self.config.max_parameters:
            allowed = f"at least {smallest}, which the smallest {family} has, or a space without it"
            raise InputError("max_parameters", self.config.max_parameters, allowed)

    def smallest(self, family: str) -> Genome:
        """The field of a family with the least of every option."""
        return self.canonical([self.choices["family"].index(family), *[0] * (len(self) - 1)])

    # ---- what a search needs

    @cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Least and greatest value of each gene, both included."""
        high = np.array([len(values) - 1 for values in self.choices.values()])
        return np.zeros_like(high), high

    @property
    def option_genes(self) -> int:
        """All of them."""
        return len(self.choices)

    @property
    def identity(self) -> dict[str, Any]:
        """The choices, the largest size and the signals' axes and channels."""
        own = {"choices": self.choices, "max_parameters": self.config.max_parameters}
        return {**own, "axes": self.axes, "channels": self.channels}

    def check(self, genome: Genes) -> Genome:
        """The genome as a tuple of whole numbers.

        Raises:
            InputError: it is of another space, or not in canonical form.
        """
        genes = super().check(genome)
        if genes != (canonical := self.repair(genes)):
            raise InputError("genome", list(genes), f"its canonical form {list(canonical)}")
        return genes

    def repair(self, genome: Genes) -> Genome:
        """The nearest genome of this space: genes within their bounds, a size within the limit, in canonical form."""
        low, high = self.bounds
        genes = self.canonical(np.clip(np.asarray(genome, int), low, high).tolist())
        limit = self.config.max_parameters
        while limit is not None and self.parameters(genes) > limit:
            # One step down in the option that is left with the most parameters: the least change that helps.
            smaller = []
            for place in (self.names.index(name) for name in SIZES):
                if genes[place] > 0:
                    smaller.append(self.canonical([gene - (i == place) for i, gene in enumerate(genes)]))
            fewer = [own for own in smaller if self.parameters(own) < self.parameters(genes)]
            smallest = self.smallest(self.choices["family"][genes[0]])
            genes = max(fewer or smaller or [smallest], key=lambda own: (self.parameters(own), own))
        return genes

    def fill(self, genes: Int[np.ndarray, "*N G"], generator: np.random.Generator) -> Int[np.ndarray, "*N G"]:
        """The genomes with the genes that their families don't have drawn anew, uniformly.

        In canonical form these are 0, the least of each option: a child that takes a family from one parent, or gets it
        by mutation, would always begin with its least field.
        """
        drawn = generator.integers(0, self.bounds[1] + 1, size=genes.shape)
        return np.where(self.has_gene[genes[..., 0]], genes, drawn)

    @cached_property
    def has_gene(self) -> Bool[np.ndarray, "F G"]:
        """Which genes each family has."""
        always = {"family", "optimizer", "lr"}
        return np.array([[n in always | options_of(f) for n in self.names] for f in self.choices["family"]])

    def sample(self, generator: np.random.Generator) -> Genome:
        """A random genome: each gene uniform over its choices, then ``repair``."""
        return self.repair(generator.integers(0, self.bounds[1] + 1))

    def describe(self, genome: Genes) -> str:
        """The field in words; raises InputError as ``check``."""
        own = self.decode(genome)
        size = f"{own.field.name} {own.field.hidden_layers}×{own.field.hidden_features}"
        others = [n for n in self.used(own.field.name) if n not in ("hidden_layers", "hidden_features")]
        options = "".join(f" {name} {getattr(own.field, name):g}" for name in others)
        return f"{size}{options} {own.optimizer} {own.lr:g}"

    # ---- genomes and fields

    def used(self, family: str) -> list[str]:
        """The genes that a family has, without family, optimizer and rate."""
        return [name for name in self.names if name in options_of(family)]

    def canonical(self, genes: Sequence[int]) -> Genome:
        """The one genome of the field that genes within their bounds describe."""
        own = dict(zip(self.names, genes, strict=True))
        family = self.choices["family"][own["family"]]
        used = {"family", "optimizer", "lr", *self.used(family)}
        own = {name: gene if name in used else 0 for name, gene in own.items()}
        if family == "wire":
            own["optimizer"] = self.choices["optimizer"].index("adam")
        if family == "hashgrid":
            base, finest = self.choices["base_resolution"], self.choices["finest_resolution"]
            while finest[own["finest_resolution"]] < base[own["base_resolution"]]:
                if own["finest_resolution"] < len(finest) - 1:
                    own["finest_resolution"] += 1
                else:
                    own["base_resolution"] -= 1
            if self.choices["levels"][own["levels"]] == 1:  # the base alone
                own["finest_resolution"] = next(i for i, n in enumerate(finest) if n >= base[own["base_resolution"]])
            # No more rows than the levels need: where none is hashed, a larger table is the same one.
            grid = cast(HashGridConfig, self.candidate(own).field)
            needed = math.log2(max(grid.table_sizes(self.axes)))
            enough = [i for i, size in enumerate(self.choices["table_log2"]) if size >= needed]
            own["table_log2"] = min([own["table_log2"], *enough])
        return tuple(own[name] for name in self.names)

    def candidate(self, genes: dict[str, int]) -> Candidate:
        """The field of genes by name."""
        value = {name: self.choices[name][gene] for name, gene in genes.items()}
        options = {name: value[name] for name in self.used(value["family"])}
        return Candidate(FIELDS[value["family"]](**options), value["optimizer"], value["lr"])

    def decode(self, genome: Genes) -> Candidate:
        """The field of a genome; raises InputError as ``check``."""
        return self.candidate(dict(zip(self.names, self.check(genome), strict=True)))

    def encode(self, candidate: Candidate) -> Genome:
        """The genome of a field; raises InputError if it is not of this space."""
        value: dict[str, Any] = {"family": candidate.field.name, "optimizer": candidate.optimizer, "lr": candidate.lr}
        value |= {n: getattr(candidate.field, n) for n in options_of(candidate.field.name) if n in self.choices}
        genes = []
        for name, choices in self.choices.items():
            if name in value and value[name] not in choices:
                raise InputError(name, value[name], f"one of {choices}")
            genes.append(choices.index(value[name]) if name in value else 0)
        canonical = self.repair(genes)
        if self.parameters(canonical) != field_parameters(candidate.field, self.axes, self.channels):
            raise InputError("field", candidate.field.name, f"one of at most {self.config.max_parameters} parameters")
        return canonical

    def parameters(self, canonical: Genome) -> int:
        """Numbers that the field of a genome in canonical form is made of."""
        return field_parameters(
            self.candidate(dict(zip(self.names, canonical, strict=True))).field, self.axes, self.channels
        )


@cache
def options_of(family: str) -> frozenset[str]:
    """The options of a family."""
    return frozenset(entry.name for entry in fields(FIELDS[family]))
