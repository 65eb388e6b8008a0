"""EVOS: evolutionary selection of coordinates (CVPR 2025, arXiv 2412.10153).

Every coordinate (cell) is an individual, its fitness is the error the field still makes there, and only the fittest
are trained on:

1. Sparse fitness evaluation (section 3.1): on key steps every cell is trained on and its error is cached; until the
   next key step the cached errors are used.
2. Frequency-guided crossover (3.2): survivors are bred from the fittest by value error and by Laplacian error.
3. Augmented unbiased mutation (3.3): part of the batch is drawn uniformly from the cells that did not survive.

The fourth part, cross-frequency supervision (3.4), is a loss: ``evos.losses.cross_frequency_loss``.

Usage::

    selector = build_selector(EvosConfig(), Pool(1, (height, width)), total_steps=5000, device="cuda")
    for step in range(1, 5001):
        selection = selector.select(step)
        residual = field(selection.gather(coords)) - selection.gather(target)
        ...  # backward, optimizer step
        selector.observe(selection, Feedback(residual.detach()))
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evos.config import check_range
from evos.fitness import high_fitness, low_fitness
from evos.schedules import default_key_intervals, is_key_step, mutation_ratio
from evos.selection.base import Evaluate, Feedback, Pool, Selection, SelectorConfig
from evos.selection.cache import CachingSelector
from evos.selection.crossover import CROSSOVERS
from evos.selection.draws import random_order, survivors_and_mutants


@dataclass(frozen=True)
class EvosConfig(SelectorConfig):
    """Options of EVOS; the defaults are the paper's."""

    name: ClassVar[str] = "evos"

    crossover: Literal["none", "add", "select"] = "select"
    """How value and Laplacian fitness are combined: none (value only), add (their sum) or select (the paper's)."""

    laplacian_weight: float = 0.65
    """Weight of the squared Laplacian of the grey residual against the squared value error, at least 0 (0.65 on [0, 1]
    is the paper's 1e-5 on 0-255)."""

    mutation_ratio: float = 0.5
    """Random cells (mutants) per initially kept cell, in [0, 1]; where a schedule changes it, its start."""

    mutation_schedule: Literal["constant", "linear", "exp"] = "constant"
    """How mutation_ratio changes over training."""

    mutation_ratio_end: float = 0.5
    """Where the linear and exp schedules of mutation_ratio end, in [0, 1]."""

    key_interval: float | None = None
    """Steps between key steps at the start, at least 1; none: min(100, steps / 30)."""

    key_interval_end: float | None = None
    """Steps between key steps at the end, at least 1; none: min(50, steps / 60)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("laplacian_weight", self.laplacian_weight, 0)
        geometric = self.mutation_schedule == "exp"  # which cannot start from 0 or reach it
        check_range("mutation_ratio", self.mutation_ratio, 0, 1, open_low=geometric)
        check_range("mutation_ratio_end", self.mutation_ratio_end, 0, 1, open_low=geometric)
        check_range("key_interval", self.key_interval, 1)
        check_range("key_interval_end", self.key_interval_end, 1)


class EvosSelector(CachingSelector[EvosConfig]):
    """EVOS. Its state is the residual cache and each row's order of cells from its last crossover."""

    state = ("order",)

    def __init__(self, config: EvosConfig, pool: Pool, **kwargs: Any) -> None:
        super().__init__(config, pool, **kwargs)
        start, end = default_key_intervals(self.total_steps)
        self.intervals = (config.key_interval or start, config.key_interval_end or end)
        # Until the first crossover the order is random.
        self.order: Int[Tensor, "R P"] = random_order(self.all_rows, pool.cells, self.generator, self.valid)

    def choose(self, step: int, rows: Int[Tensor, " B"] | None, evaluate: Evaluate | None) -> Selection:
        """Every cell on a key step; else the survivors of the last crossover and fresh mutants."""
        rows = self.all_rows if rows is None else rows
        if is_key_step(step, self.total_steps, *self.intervals):
            return self.all_cells(rows, step, is_key=True)
        survivors, mutants = self.counts(step)
        order, valid = self.order[rows], self.valid_in(rows)
        return self.selection(rows, survivors_and_mutants(order, survivors, mutants, self.generator, valid), step)

    def observe(self, selection: Selection, feedback: Feedback) -> None:
        """On a key step: cache the residuals and breed the survivors."""
        if selection.is_key:
            self.cache.write(selection, feedback.residual)
            self.breed(selection.step, selection.rows)

    def counts(self, step: int) -> tuple[int, int]:
        """How many of the kept cells are survivors and how many are mutants at ``step``."""
        config, keep = self.config, self.keep_count(step)
        ends = config.mutation_ratio, config.mutation_ratio_end
        ratio = mutation_ratio(config.mutation_schedule, step, self.total_steps, *ends)
        mutants = min(keep, int(ratio * config.keep_ratio * self.usable_cells + 1e-6))
        return keep - mutants, mutants

    def fitness(self, rows: Int[Tensor, " B"]) -> tuple[Float[Tensor, "B P"], Float[Tensor, "B P"]]:
        """Low- and high-frequency fitness of every cell, from the cached residuals; -1 at masked cells."""
        residual, config = self.cache.read(rows), self.config
        low = low_fitness(residual)
        if config.crossover == "none":
            high = torch.zeros_like(low)
        else:
            high = high_fitness(residual, self.pool.shape, self.pool.grid_axes, config.laplacian_weight)
        if self.valid is not None:
            masked = ~self.valid[rows]
            low, high = low.masked_fill(masked, -1.0), high.masked_fill(masked, -1.0)
        return low, high

    def breed(self, step: int, rows: Int[Tensor, " B"]) -> None:
        """Crossover: put the cells of ``rows`` in order, the survivors first."""
        survivors, _ = self.counts(step)
        self.order[rows] = CROSSOVERS[self.config.crossover](*self.fitness(rows), survivors, self.valid_in(rows))

    def forget(self, rows: Int[Tensor, " B"]) -> None:
        """Reset the cache of ``rows``, and their order to a random one, until their next key step."""
        super().forget(rows)
        self.order[rows] = random_order(rows, self.pool.cells, self.generator, self.valid_in(rows))
