"""EVOS: evolutionary selection of coordinates (CVPR 2025, arXiv 2412.10153).

Every coordinate (cell) is an individual, its fitness is the error the field still makes there, and only the fittest
are trained on:

1. Sparse fitness evaluation: the whole population is evaluated on key steps only; in between the cached residual
   serves.
2. Frequency-guided crossover: survivors are bred from the fittest by value error and the fittest by Laplacian error.
3. Augmented unbiased mutation: a share of the places goes to cells drawn uniformly from all that did not survive.

(The fourth part, cross-frequency supervision, is a loss: ``evos.losses.cross_frequency_loss``.)

Usage::

    selector = build_selector(EvosConfig(), Pool(1, (height, width)), total_steps=5000, device="cuda")
    for step in range(1, 5001):
        selection = selector.select(step)
        residual = field(selection.gather(coords)) - selection.gather(target)
        ...  # backward, optimizer step
        selector.observe(selection, residual)
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evos.config import check_choice, check_range
from evos.fitness import high_fitness, low_fitness
from evos.schedules import MUTATION_SCHEDULES, default_key_intervals, is_key_step, mutation_share
from evos.selection.base import Evaluate, Pool, Selection, SelectorConfig
from evos.selection.cache import CachingSelector
from evos.selection.crossover import CROSSOVERS


@dataclass(frozen=True)
class EvosConfig(SelectorConfig):
    """Options of EVOS; the defaults are the paper's."""

    name: ClassVar[str] = "evos"

    crossover: str = "select"
    """How value and Laplacian fitness are combined: none (value only), add (their sum) or select (the paper's)."""

    laplacian_weight: float = 0.65
    """Weight of the squared Laplacian of the grey residual against the squared value error, at least 0
    (0.65 on [0, 1] = 1e-5 on 0-255)."""

    mutation_share: float = 0.5
    """Share of the initially kept places that is filled at random, in [0, 1]; where scheduled, its start."""

    mutation_schedule: str = "constant"
    """How mutation_share changes over training: constant, linear or exp."""

    mutation_share_end: float = 0.5
    """Where the linear and exp schedules of mutation_share end, in [0, 1]."""

    key_schedule: str = "linear"
    """How the interval between key steps changes: linear (key_interval to key_interval_end) or fixed."""

    key_interval: float | None = None
    """Steps between key steps at the start, at least 1; none: min(100, steps / 30)."""

    key_interval_end: float | None = None
    """Steps between key steps at the end, at least 1; none: min(50, steps / 60)."""

    evaluation: str = "dense"
    """dense: on key steps every cell is evaluated and trained on. streaming: the errors of the points trained on keep
    the cache up to date, unseen cells rank first, and key steps only rank anew."""

    budget: int | None = None
    """Points drawn per row and step from the selected population, at least 1; none: all of it is trained on."""

    cache_momentum: float = 0.0
    """Share of its old estimate that a cell seen again keeps, in [0, 0.99]; for cells that stand for several points."""

    importance_cap: float = 0.0
    """0: points count alike. Else, at least 1: they are weighted so that the expected gradient is that of uniform
    sampling, with weights bounded to [1 / cap, cap]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("crossover", self.crossover, CROSSOVERS)
        check_range("laplacian_weight", self.laplacian_weight, 0)
        check_range("mutation_share", self.mutation_share, 0, 1)
        check_choice("mutation_schedule", self.mutation_schedule, MUTATION_SCHEDULES)
        check_range("mutation_share_end", self.mutation_share_end, 0, 1)
        if self.mutation_schedule == "exp":
            check_range("mutation_share", self.mutation_share, 0, 1, open_low=True)
            check_range("mutation_share_end", self.mutation_share_end, 0, 1, open_low=True)
        check_choice("key_schedule", self.key_schedule, ("linear", "fixed"))
        check_range("key_interval", self.key_interval, 1)
        check_range("key_interval_end", self.key_interval_end, 1)
        check_choice("evaluation", self.evaluation, ("dense", "streaming"))
        check_range("budget", self.budget, 1)
        check_range("cache_momentum", self.cache_momentum, 0, 0.99)
        check_range("importance_cap", self.importance_cap or 1.0, 1)


class EvosSelector(CachingSelector[EvosConfig]):
    """The method. State: the residual cache and each row's order of cells at its last ranking, the fittest first."""

    state = ("order",)

    def __init__(self, config: EvosConfig, pool: Pool, **kwargs: Any) -> None:
        super().__init__(config, pool, **kwargs)
        start, end = default_key_intervals(self.total_steps)
        self.intervals = (config.key_interval or start, config.key_interval_end or end)
        # Until the first ranking every usable cell is as good as any other.
        chance = torch.rand(pool.rows, pool.cells, generator=self.generator, device=self.device)
        usable_first = chance if self.valid is None else chance.masked_fill(~self.valid, -1.0)
        self.order: Int[Tensor, "R P"] = usable_first.argsort(dim=1, descending=True)

    # ---- the three stages ----------------------------------------------------------------------------------

    def fitness(self, rows: Int[Tensor, " B"]) -> tuple[Float[Tensor, "B P"], Float[Tensor, "B P"]]:
        """Low- and high-frequency fitness of every cell, from the cached residuals."""
        residual, power = self.cache.read(rows), self.cache.power
        high = high_fitness(residual, self.pool.shape, self.pool.axes, self.config.laplacian_weight)
        return low_fitness(residual) if power is None else 4 * power[rows], high

    def rank(self, step: int, rows: Int[Tensor, " B"]) -> None:
        """Crossover: put the cells of ``rows`` in order; unseen ones first, in random order, and masked ones last."""
        low, high = self.fitness(rows)
        fit, _ = self.counts(step)
        cross = CROSSOVERS[self.config.crossover]
        if self.config.evaluation == "dense" and self.valid is None:
            self.order[rows] = cross(low, high, fit, None)
            return
        seen = self.cache.seen[rows]
        usable = torch.ones_like(seen) if self.valid is None else self.valid[rows]
        counted = seen & usable
        # Below every fitness, which is at least 0: first the unseen in random order, then the masked.
        chance = -torch.rand(low.shape, generator=self.generator, device=self.device)
        filler = torch.where(usable, chance, -2.0)
        order = cross(torch.where(counted, low, filler), torch.where(counted, high, filler), fit, counted)
        unseen_first = torch.where(usable & ~seen, 0, torch.where(usable, 1, 2)).gather(1, order)
        self.order[rows] = order.gather(1, unseen_first.argsort(dim=1, stable=True))

    def mutants(self, rows: Int[Tensor, " B"], fit: int, count: int) -> Int[Tensor, "B M"]:
        """``count`` distinct cells drawn uniformly from all but the first ``fit`` of the order."""
        rest = self.order[rows, fit:]
        keys = torch.rand(rest.shape, generator=self.generator, device=self.device)
        if self.valid is not None:
            keys = keys.masked_fill(~self.valid[rows].gather(1, rest), -1.0)
        return rest.gather(1, keys.topk(count, dim=1, sorted=False).indices)

    # ---- the selector's protocol ---------------------------------------------------------------------------

    def counts(self, step: int) -> tuple[int, int]:
        """How many of the kept cells are survivors and how many are mutants at ``step``."""
        config, keep = self.config, self.keep_count(step)
        share = mutation_share(
            config.mutation_schedule, step, self.total_steps, config.mutation_share, config.mutation_share_end
        )
        mutants = min(keep, int(share * config.keep_ratio * self.valid_cells + 1e-6))
        return keep - mutants, mutants

    def is_key(self, step: int) -> bool:
        """Whether ``step`` is a key step."""
        return is_key_step(self.config.key_schedule, step, self.total_steps, *self.intervals)

    def select(
        self, step: int, rows: Int[Tensor, " B"] | None = None, *, evaluate: Evaluate | None = None
    ) -> Selection:
        """Everything on a key step (dense evaluation); else the survivors of the last crossover and fresh mutants."""
        everybody = rows is None
        rows = self.all_rows if rows is None else rows
        key = self.is_key(step)
        if key and self.config.evaluation == "dense":
            return self.everything(rows, step, is_key=True)
        # A row of a batch is ranked whenever it comes up: it was last ranked when it was last drawn.
        if self.config.evaluation == "streaming" and (key or not everybody):
            self.rank(step, rows)
        fit, mutants = self.counts(step)
        budget = self.config.budget
        if budget is not None:
            survivors = round(budget * fit / (fit + mutants))
            index = self.draw_budget(rows, fit, survivors, budget)
            return Selection(rows, index, self.weights(rows, fit, survivors, budget - survivors), key, step)
        index = torch.cat((self.order[rows, :fit], self.mutants(rows, fit, mutants)), dim=1)
        return Selection(rows, index, self.weights(rows, fit, fit, mutants), key, step)

    def weights(self, rows: Int[Tensor, " B"], fit: int, survivors: int, mutants: int) -> Float[Tensor, "B K"] | None:
        """Bounded importance weights, survivors first: a group's share of the cells over its share of the points."""
        cap = self.config.importance_cap
        if cap == 0 or 0 in (survivors, mutants):
            return None
        share = fit / self.valid_cells
        drawn = survivors / (survivors + mutants)
        bounded = [min(max(weight, 1 / cap), cap) for weight in (share / drawn, (1 - share) / (1 - drawn))]
        sizes = (survivors, mutants)
        groups = [torch.full((len(rows), n), w, device=self.device) for n, w in zip(sizes, bounded, strict=True)]
        return torch.cat(groups, dim=1)

    def draw_budget(self, rows: Int[Tensor, " B"], fit: int, survivors: int, budget: int) -> Int[Tensor, "B K"]:
        """``budget`` draws (repeats possible): ``survivors`` of them among the fit, the others among the rest."""
        # float64: float32 has too few values to address every cell of a large pool.
        chance = torch.rand(len(rows), budget, generator=self.generator, device=self.device, dtype=torch.float64)
        usable = self.pool.cells if self.valid is None else self.valid[rows].sum(1, keepdim=True)
        place = torch.cat((chance[:, :survivors] * fit, fit + chance[:, survivors:] * (usable - fit)), dim=1)
        return self.order[rows[:, None], place.long()]

    def observe(
        self,
        selection: Selection,
        residual: Float[Tensor, "B K C"],
        *,
        coord_grad: Float[Tensor, "B K D"] | None = None,
    ) -> None:
        """Cache the residuals: dense, of key steps, and breed the survivors; streaming, of every step."""
        dense = self.config.evaluation == "dense"
        if dense and not selection.is_key:
            return
        self.cache.write(selection, residual)
        if dense:
            self.rank(selection.step, selection.rows)
