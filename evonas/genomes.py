"""What a search needs of a space, whatever its genomes describe: networks (space.py) or fields (field_space.py)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int

from evos.errors import InputError

Genome = tuple[int, ...]
Genes = Sequence[Any] | np.ndarray
"""What may be a genome."""


class GenomeSpace(ABC):
    """A space of genomes, tuples of whole numbers: first genes that choose an option, then genes 0 or 1 ("blocks")."""

    objectives: ClassVar[tuple[str, ...]]
    """What can be measured of a genome, ``error`` first."""

    @property
    @abstractmethod
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Least and greatest value of each gene, both included."""

    @property
    @abstractmethod
    def option_genes(self) -> int:
        """How many genes choose an option."""

    @property
    def start(self) -> list[Genome]:
        """Genomes that the first generation holds, each once; the others are random."""
        return []

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What a genome's meaning depends on, for the header of an archive."""

    @abstractmethod
    def repair(self, genome: Genes) -> Genome:
        """The nearest genome of this space."""

    @abstractmethod
    def sample(self, generator: np.random.Generator) -> Genome:
        """A random genome."""

    @abstractmethod
    def describe(self, genome: Genes) -> str:
        """What a genome stands for, in words; raises InputError as ``check``."""

    def fill(self, genes: Int[np.ndarray, "*N G"], generator: np.random.Generator) -> Int[np.ndarray, "*N G"]:
        """The genomes with genes that mean nothing drawn anew, for crossover and mutation, which may give them a
        meaning; here all genes mean something."""
        return genes

    def __len__(self) -> int:
        """Genes of a genome."""
        return len(self.bounds[0])

    def check(self, genome: Genes) -> Genome:
        """The genome as a tuple of whole numbers.

        Raises:
            InputError: it is of another space.
        """
        low, high = self.bounds
        genes = np.asarray(genome)
        if genes.shape != low.shape or genes.dtype.kind not in "iu":
            raise InputError("genome", list(genome), f"{len(self)} whole numbers, as this space has")
        if (genes < low).any() or (genes > high).any():
            raise InputError("genome", list(genome), f"genes from 0 to {high.tolist()}")
        return tuple(int(gene) for gene in genes)

    @classmethod
    def check_objectives(cls, names: Sequence[str]) -> None:
        """Raise InputError where an objective can't be measured of this space's genomes."""
        if not set(names) <= set(cls.objectives):
            raise InputError("search.objectives", f"[{', '.join(names)}]", ", ".join(cls.objectives))
