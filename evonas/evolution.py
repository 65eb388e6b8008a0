"""What a search does in a generation, by pymoo: NSGA-II as in EvoNAS (arXiv 2603.19563), NSGA-III, and random search.

All randomness is one generator's, which the seed determines.
"""

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.algorithms.moo.nsga3 import NSGA3
from pymoo.core.crossover import Crossover
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.evaluator import Evaluator
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.repair import Repair
from pymoo.core.sampling import Sampling
from pymoo.core.termination import NoTermination
from pymoo.operators.mutation.pm import mut_pm
from pymoo.problems.static import StaticProblem
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting
from pymoo.util.ref_dirs import get_reference_directions

from evonas.genomes import Genome, GenomeSpace
from evonas.space import read_names
from evos.config import check_choices, check_range
from evos.errors import InputError

OBJECTIVES = ("error", "latency", "seconds", "macs", "parameters")
TRIES = 100
"""How often a new genome is looked for before a space counts as exhausted."""


@dataclass(frozen=True)
class SearchConfig:
    """Options of the search."""

    algorithm: Literal["nsga2", "nsga3", "random"] = "nsga2"
    """nsga2, nsga3, or random (as many evaluations, all of random genomes: what the others have to beat)."""

    population: int = 96
    """Genomes kept, and new genomes a generation, at least 4."""

    generations: int = 200
    """Generations, the first, random one included, at least 1."""

    crossover: float = 0.95
    """Probability that two parents exchange genes, 0 to 1."""

    mutation: float = 0.1
    """Probability that an offspring mutates, 0 to 1; each of its genes then does with one over their number, options
    and blocks counted apart."""

    eta: float = 1.0
    """Distribution index of the polynomial mutation of option genes, at least 0: the higher, the smaller its steps."""

    objectives: str = "[error, latency, macs]"
    """What is minimised: error and at least one of latency (seconds), macs and parameters; of fields, seconds (of
    training) and parameters."""

    seed: int = 0
    """Seed of the search, at least 0."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_range("population", self.population, 4)
        check_range("generations", self.generations, 1)
        check_range("crossover", self.crossover, 0, 1)
        check_range("mutation", self.mutation, 0, 1)
        check_range("eta", self.eta, 0)
        check_range("seed", self.seed, 0)
        if len(self.names) < 2 or "error" not in self.names:
            raise InputError("objectives", self.objectives, f"error and at least one of {', '.join(OBJECTIVES[1:])}")

    @property
    def names(self) -> list[str]:
        """``objectives`` as a list."""
        return read_names("objectives", self.objectives, OBJECTIVES)

    @property
    def partitions(self) -> int:
        """Of each axis for NSGA-III's reference directions (Das and Dennis 1998): the most that give at most
        ``population`` of them, which are C(partitions + M - 1, M - 1) for M objectives."""
        free = len(self.names) - 1
        return next(p for p in range(self.population, 0, -1) if math.comb(p + free, free) <= self.population)


# ---- operators on genomes of N genes: option genes first, then block genes


def fresh(space: GenomeSpace, count: int, generator: np.random.Generator, seen: Iterable[Genome] = ()) -> list[Genome]:
    """Random genomes, each once and none of those seen; fewer where the space has no more."""
    known, found = set(seen), []
    for _ in range(TRIES * count):
        genome = space.sample(generator)
        if genome not in known:
            known.add(genome)
            found.append(genome)
        if len(found) == count:
            break
    return found


def first_generation(space: GenomeSpace, count: int, generator: np.random.Generator) -> list[Genome]:
    """What the space begins with, and random genomes."""
    begun = space.start[:count]
    return begun + (fresh(space, count - len(begun), generator, begun) if count > len(begun) else [])


class FirstGenomes(Sampling):
    """The first generation."""

    def __init__(self, space: GenomeSpace) -> None:
        super().__init__()
        self.space = space

    def _do(self, problem, n_samples, *args, random_state: Any = None, **kwargs):
        return np.array(first_generation(self.space, n_samples, random_state))


Fill = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""``GenomeSpace.fill``."""


def unchanged(genes: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Of spaces all of whose genes mean something."""
    return genes


class GeneCrossover(Crossover):
    """Two children of two parents, which exchange the option genes between two cuts and each block gene by a coin."""

    def __init__(self, option_genes: int, probability: float, fill: Fill = unchanged) -> None:
        super().__init__(2, 2, prob=probability)
        self.option_genes, self.fill = option_genes, fill

    def _do(self, problem, X, *args, random_state, **kwargs):
        X = self.fill(X, random_state)
        _, matings, genes = X.shape
        # Two different cuts of those before, between and behind the option genes.
        cuts = np.sort(random_state.random((matings, self.option_genes + 1)).argsort(1)[:, :2], 1)
        places = np.arange(self.option_genes)
        between = (cuts[:, :1] <= places) & (places < cuts[:, 1:])
        coins = random_state.random((matings, genes - self.option_genes)) < 0.5
        return np.where(np.concatenate([between, coins], 1), X[::-1], X)


class GeneMutation(Mutation):
    """Changes an option gene by polynomial mutation (Deb and Goyal 1996), flips a block gene."""

    def __init__(self, option_genes: int, probability: float, eta: float, fill: Fill = unchanged) -> None:
        super().__init__(prob=probability)
        self.option_genes, self.eta, self.fill = option_genes, eta, fill

    def _do(self, problem, X, *args, random_state, **kwargs):
        X = self.fill(X, random_state)
        n, blocks = self.option_genes, X.shape[1] - self.option_genes
        low, high = problem.xl[:n], problem.xu[:n]
        # Half a step wider on both sides, so that each whole number stands for an interval of the same length.
        moved = mut_pm(
            X[:, :n].astype(float),
            low - 0.5,
            high + 0.5,
            np.full(len(X), self.eta),
            np.full(len(X), 1 / n),
            at_least_once=False,
            random_state=random_state,
        )
        options = np.clip(np.rint(moved), low, high).astype(int)
        flips = random_state.random((len(X), blocks)) < 1 / max(blocks, 1)
        return np.concatenate([options, np.where(flips, 1 - X[:, n:], X[:, n:])], 1)


class SpaceRepair(Repair):
    """Back into the space; so there are no constraints, with which pymoo's NSGA-III draws unseeded (its issue 794)."""

    def __init__(self, space: GenomeSpace) -> None:
        super().__init__()
        self.space = space

    def _do(self, problem, X, **kwargs):
        return np.array([self.space.repair(genome) for genome in X]).reshape(X.shape)


class OnlyNew(DuplicateElimination):
    """Lets no genome through that the search had before, so that algorithms compare at equal evaluations."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[Genome] = set()

    def do(self, pop, *others, **kwargs):
        """The new ones of a population, each once and none of the others."""
        known = self.seen.union(*(genomes_of(other) for other in others))
        kept = [i for i, genome in enumerate(genomes_of(pop)) if not (genome in known or known.add(genome))]
        return pop[kept]


def genomes_of(population: Population) -> list[Genome]:
    """The genomes of a population of pymoo's."""
    return [tuple(one.X.tolist()) for one in population]


# ---- algorithms: ask for the genomes of a generation, tell their objectives


class Evolution:
    """NSGA-II (Deb et al. 2002) or NSGA-III (Deb and Jain 2014) with the operators above.

    Objectives are divided by their range in the first generation: pymoo's NSGA-III takes differences below 1e-3 for
    none, and its hyperplane needs comparable axes.
    """

    def __init__(self, space: GenomeSpace, config: SearchConfig) -> None:
        low, high = space.bounds
        self.problem, self.new = Problem(n_var=len(space), n_obj=len(config.names), xl=low, xu=high), OnlyNew()
        own: dict[str, Any] = {
            "pop_size": config.population,
            "sampling": FirstGenomes(space),
            "crossover": GeneCrossover(space.option_genes, config.crossover, space.fill),
            "mutation": GeneMutation(space.option_genes, config.mutation, config.eta, space.fill),
            "repair": SpaceRepair(space),
            "eliminate_duplicates": self.new,
        }
        if config.algorithm == "nsga2":
            self.algorithm: Any = NSGA2(**own)
        else:
            directions = get_reference_directions("das-dennis", len(config.names), n_partitions=config.partitions)
            self.algorithm = NSGA3(directions, **own)
        self.algorithm.setup(self.problem, seed=config.seed, termination=NoTermination())
        self.scale: Any = None

    def ask(self) -> list[Genome]:
        """New genomes; none: the space is exhausted."""
        self.asked: Any = self.algorithm.ask()
        genomes = [] if self.asked is None else genomes_of(self.asked)
        self.new.seen.update(genomes)
        return genomes

    def tell(self, F: Float[np.ndarray, "G M"]) -> None:
        """The objectives of the genomes asked for, in their order."""
        if self.scale is None:
            spread = np.ptp(F, axis=0)
            self.scale = np.where(spread > 0, spread, 1)
        Evaluator().eval(StaticProblem(self.problem, F=F / self.scale), self.asked)
        with warnings.catch_warnings():  # NSGA-III silences all warnings, for good
            self.algorithm.tell(infills=self.asked)

    @property
    def population(self) -> list[Genome]:
        """Those that survived."""
        return genomes_of(self.algorithm.pop)

    @property
    def generator(self) -> np.random.Generator:
        """All randomness."""
        return self.algorithm.random_state


class RandomSearch:
    """New random genomes in each generation; those not dominated survive. The first generation is Evolution's."""

    def __init__(self, space: GenomeSpace, config: SearchConfig) -> None:
        self.space, self.count, self.generator = space, config.population, np.random.default_rng(config.seed)
        self.seen: list[Genome] = []
        self.population: list[Genome] = []
        self.F = np.empty((0, len(config.names)))

    def ask(self) -> list[Genome]:
        """As Evolution's."""
        self.asked = (
            fresh(self.space, self.count, self.generator, self.seen)
            if self.seen
            else first_generation(self.space, self.count, self.generator)
        )
        self.seen += self.asked
        return self.asked

    def tell(self, F: Float[np.ndarray, "G M"]) -> None:
        """As Evolution's."""
        genomes, F = self.population + self.asked, np.concatenate([self.F, F])
        kept = non_dominated(F)
        self.population, self.F = [g for g, keep in zip(genomes, kept, strict=True) if keep], F[kept]


def non_dominated(F: Float[np.ndarray, "G M"]) -> Bool[np.ndarray, "G"]:
    """Which points no other dominates, i.e. is nowhere worse and somewhere better; equal points stand together."""
    kept = np.zeros(len(F), bool)
    if len(F):
        kept[NonDominatedSorting().do(F, only_non_dominated_front=True)] = True
    return kept
