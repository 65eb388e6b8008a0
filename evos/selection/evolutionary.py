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

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from einops import reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor

from evos.config import check_choice, check_range
from evos.errors import InputError
from evos.fitness import high_fitness
from evos.schedules import MUTATION_SCHEDULES, default_key_intervals, is_key_step, mutation_share
from evos.selection.base import Evaluate, Pool, Selection, SelectorConfig
from evos.selection.cache import CachingSelector, Errors
from evos.selection.crossover import CROSSOVERS, Count, masked_mean

EVEN_SPREAD, CONCENTRATED_SPREAD = 0.3, 0.1
"""Effective sample sizes from which on ``adapt`` draws uniformly, and below which it selects as configured. Measured
under uniform batches (SIREN, initial weights doubled, Adam 1e-3 decayed, 25 % of 128² points, steps 30 to 100): photos
0.37 to 0.15, where selection gains nothing; text 0.09 to 0.05, where it gains 9 dB; speech 0.09 to 0.01, -0.9 to
+0.3 dB. Selection itself evens the error out (text: to 0.09 to 0.3), so the two must lie well apart."""

EVEN_TILES = 0.6
"""The same for a budget drawn from tiles: that of normal errors alike everywhere, squared and averaged over three
channels."""

TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class EvosConfig(SelectorConfig):
    """Options of EVOS; the defaults are the paper's."""

    name: ClassVar[str] = "evos"

    crossover: str = "select"
    """How value and Laplacian fitness are combined: none (value only), add (their sum) or select (the paper's)."""

    fitness: str = "error"
    """What value fitness is: error (squared) or update, the squared change of the field under the parameters' next
    step (NINT's score, evos/selection/kernel_teaching.py), scaled to the mean squared error. update needs dense key
    steps."""

    direction: str = "step"
    """With fitness update: whose step changes the field, step (the optimizer's) or gradient (the plain gradient's)."""

    draw: str = "top"
    """How survivors are taken: top (the fittest) or proportional (drawn anew in every step with odds in proportion to
    the root of fitness, which is an error; with crossover select as with add)."""

    laplacian_weight: float = 0.65
    """Weight of the squared Laplacian of the grey residual (or of the squared derivative residual, see frequency)
    against the squared value error, at least 0 (0.65 on [0, 1] = 1e-5 on 0-255)."""

    frequency: str = "laplacian"
    """What tells a cell's high-frequency error: laplacian (of the residual) or derivative (the residual of the
    derivatives, where a loop supervises them)."""

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

    adapt: bool = False
    """Let s = (Σe)² / (P·Σe²), the effective sample size of the squared error e averaged over channels, measured on
    key steps, say how hard to select. s of 0.3 or more: a uniform batch; 0.1 or less: as configured; in between, the
    mutation share follows log s. With evaluation streaming it costs next to nothing beside a uniform batch. With a
    budget, keep_ratio and mutation_share both become (s / 0.6)⁴, but no less than configured."""

    cache_momentum: float = 0.0
    """For cells that stand for several points, such as tiles: how much a visit counts against the next one, in
    [0, 0.99]; 0 keeps the last one alone."""

    cache_pooling: float = 0.0
    """For such cells: the weight, in visits, of the neighbourhood's error in a cell's own, at least 0; 0: a cell counts
    on its own visits, and unseen cells rank first."""

    importance_cap: float = 0.0
    """0: points count alike. Else, at least 1: they are weighted so that the expected gradient is that of uniform
    sampling, with weights bounded to [1 / cap, cap]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("crossover", self.crossover, CROSSOVERS)
        check_range("laplacian_weight", self.laplacian_weight, 0)
        check_choice("fitness", self.fitness, ("error", "update"))
        check_choice("direction", self.direction, ("step", "gradient"))
        check_choice("draw", self.draw, ("top", "proportional"))
        check_choice("frequency", self.frequency, ("laplacian", "derivative"))
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
        check_range("cache_pooling", self.cache_pooling, 0)
        check_range("importance_cap", self.importance_cap or 1.0, 1)
        if self.fitness == "update" and self.evaluation == "streaming":
            raise InputError("evaluation", "streaming", "dense with fitness update")
        if self.draw == "proportional" and self.budget is not None:
            raise InputError("draw", "proportional", "top with a budget")


class EvosSelector(CachingSelector[EvosConfig]):
    """The method.

    State: the residual cache; of each row's last ranking the order of its cells, the fittest first, and how evenly the
    error was spread (1: alike everywhere). Where derivatives tell the high frequencies (``needs_derivative``), also
    each cell's last squared derivative error; where updates are fitness (``needs_update``), its last squared update.
    """

    state = ("order", "derivative_error", "square_update", "spread")

    def __init__(self, config: EvosConfig, pool: Pool, **kwargs: Any) -> None:
        super().__init__(config, pool, **kwargs)
        start, end = default_key_intervals(self.total_steps)
        self.intervals = (config.key_interval or start, config.key_interval_end or end)
        self.needs_derivative = config.frequency == "derivative"
        self.needs_update = config.direction if config.fitness == "update" else None
        cells = pool.cells if self.needs_derivative else 0
        self.derivative_error: Float[Tensor, "R E"] = torch.zeros(pool.rows, cells, device=self.device)
        cells = pool.cells if self.needs_update else 0
        self.square_update: Float[Tensor, "R U"] = torch.zeros(pool.rows, cells, device=self.device)
        self.spread: Float[Tensor, "R 1"] = torch.ones(pool.rows, 1, device=self.device)
        usable = torch.ones(pool.rows, pool.cells, device=self.device) if self.valid is None else self.valid
        self.usable: Int[Tensor, "R 1"] = usable.sum(1, keepdim=True).long()
        # Until the first ranking every usable cell is as good as any other.
        chance = torch.rand(pool.rows, pool.cells, generator=self.generator, device=self.device)
        usable_first = chance if self.valid is None else chance.masked_fill(~self.valid, -1.0)
        self.order: Int[Tensor, "R P"] = usable_first.argsort(dim=1, descending=True)

    # ---- the three stages ----------------------------------------------------------------------------------

    def fitness(
        self, rows: Int[Tensor, " B"], errors: Errors | None = None
    ) -> tuple[Float[Tensor, "B P"], Float[Tensor, "B P"]]:
        """Low- and high-frequency fitness of every cell, from what is cached (``errors``, where they are at hand).

        Without crossover the latter counts for nothing: 0.
        """
        residual, square = self.cache.errors(rows) if errors is None else errors
        low, weight = 4 * square, self.config.laplacian_weight
        if self.needs_update:
            # In the error's units: the balance with the high frequencies must not follow the length of the step.
            update, counted = self.square_update[rows], None if self.valid is None else self.valid[rows]
            low = update * masked_mean(low, counted) / masked_mean(update, counted).clamp(min=TINY)
        if self.config.crossover == "none":
            return low, torch.zeros_like(low)
        if self.needs_derivative:
            return low, weight * self.derivative_error[rows]
        return low, high_fitness(residual, self.pool.shape, self.pool.axes, weight)

    def rank(self, step: int, rows: Int[Tensor, " B"]) -> None:
        """Crossover: put the cells of ``rows`` in order; unseen ones first, in random order, and masked ones last."""
        drawn_by_fitness = self.config.draw == "proportional"
        if drawn_by_fitness and not self.config.adapt:
            return  # no order to make, no spread to measure
        errors = self.cache.errors(rows)
        if self.config.adapt:
            self.spread[rows] = self.effective_share(rows, errors[1])
        if drawn_by_fitness:
            return
        low, high = self.fitness(rows, errors)
        fit = self.fit_count(step, rows)
        cross = CROSSOVERS[self.config.crossover]
        covers_all = self.config.evaluation == "dense" or self.config.cache_pooling > 0
        if covers_all and self.valid is None:
            self.order[rows] = cross(low, high, fit, None)
            return
        known, usable = self.known(rows), self.usable_cells(rows)
        # Below every fitness, which is at least 0: first the unseen in random order, then the masked.
        chance = -torch.rand(low.shape, generator=self.generator, device=self.device)
        filler = torch.where(usable, chance, -2.0)
        order = cross(torch.where(known, low, filler), torch.where(known, high, filler), fit, known)
        unseen_first = torch.where(known, 1, torch.where(usable, 0, 2)).gather(1, order)
        self.order[rows] = order.gather(1, unseen_first.argsort(dim=1, stable=True))

    def mutants(self, rows: Int[Tensor, " B"], fit: int, count: int) -> Int[Tensor, "B M"]:
        """``count`` distinct cells drawn uniformly from all but the first ``fit`` of the order."""
        rest = self.order[rows, fit:]
        keys = torch.rand(rest.shape, generator=self.generator, device=self.device)
        if self.valid is not None:
            keys = keys.masked_fill(~self.valid[rows].gather(1, rest), -1.0)
        return rest.gather(1, keys.topk(count, dim=1, sorted=False).indices)

    def fill(self, rows: Int[Tensor, " B"], fit: Count, count: int) -> Int[Tensor, "B K"]:
        """The first ``fit`` of the order, and distinct cells drawn uniformly from the rest up to ``count``."""
        order = self.order[rows]
        keys = torch.rand(order.shape, generator=self.generator, device=self.device)
        if self.valid is not None:
            keys = keys.masked_fill(~self.valid[rows].gather(1, order), -1.0)
        keys = torch.where(torch.arange(self.pool.cells, device=self.device) < fit, 2.0, keys)
        return order.gather(1, keys.topk(count, dim=1).indices)

    def odds(self, step: int, rows: Int[Tensor, " B"]) -> Float[Tensor, "B P"]:
        """Odds of every cell, 1 for a mean one: a uniform draw by the mutants' share, one by error by the survivors'.

        The size of the loss's gradient at a point is that of its error, the root of its fitness. Unseen cells are mean.
        """
        low, high = self.fitness(rows)
        error = (low + high).sqrt()
        known = self.known(rows)
        relative = error / masked_mean(error, known).clamp(min=TINY)
        share = self.fit_count(step, rows) / self.keep_count(step)
        return torch.where(known, 1 - share + share * relative, 1.0).clamp(min=TINY)

    # ---- how hard to select --------------------------------------------------------------------------------

    def usable_cells(self, rows: Int[Tensor, " B"]) -> Bool[Tensor, "B P"]:
        """Which cells are not masked."""
        return torch.ones_like(self.cache.seen[rows]) if self.valid is None else self.valid[rows]

    def known(self, rows: Int[Tensor, " B"]) -> Bool[Tensor, "B P"]:
        """Which usable cells have an error to go by: those seen; pooled estimates cover the others, too."""
        if self.config.cache_pooling > 0:
            return self.usable_cells(rows)
        seen = self.cache.seen[rows]
        return seen if self.valid is None else seen & self.valid[rows]

    def effective_share(self, rows: Int[Tensor, " B"], square: Float[Tensor, "B P"]) -> Float[Tensor, "B 1"]:
        """s, the effective sample size of the squared errors, as a share of the cells known; 1 without any error."""
        known = self.known(rows)
        error = square * known
        total, squares = error.sum(1, keepdim=True), error.square().sum(1, keepdim=True)
        share = total.square() / squares.clamp(min=TINY) / known.sum(1, keepdim=True).clamp(min=1)
        return torch.where(squares > 0, share, 1.0)

    # ---- the selector's protocol ---------------------------------------------------------------------------

    def counts(self, step: int) -> tuple[int, int]:
        """How many of the kept cells are survivors and how many are mutants at ``step``."""
        config, keep = self.config, self.keep_count(step)
        share = mutation_share(
            config.mutation_schedule, step, self.total_steps, config.mutation_share, config.mutation_share_end
        )
        mutants = int(share * config.keep_ratio * self.valid_cells + 1e-6)
        if config.budget is not None and share > 0:
            mutants = max(1, mutants)  # however few the cells: without any mutant no other cell would ever be seen
        mutants = min(keep, mutants)
        return keep - mutants, mutants

    def fit_count(self, step: int, rows: Int[Tensor, " B"]) -> Count:
        """How many cells of each row survive: as many as configured, fewer where ``adapt`` finds the error spread."""
        if self.config.budget is not None:
            return self.budget_counts(step, rows)[0]
        fit, _ = self.counts(step)
        return (fit * pressure(self.spread[rows])).long() if self.config.adapt else fit

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
        if self.config.budget is not None:
            fit, survivors = self.budget_counts(step, rows)
            index = self.draw_budget(rows, fit, survivors)
            return Selection(rows, index, self.weights(rows, fit, survivors, self.config.budget), key, step)
        if self.config.draw == "proportional":
            odds = self.odds(step, rows)
            index = self.draw(odds.log(), rows, self.keep_count(step))
            weight = self.capped(1 / odds.gather(1, index)) if self.config.importance_cap else None
            return Selection(rows, index, weight, key, step)
        fit, mutants = self.counts(step)
        keep = fit + mutants
        if self.config.adapt:
            fit = self.fit_count(step, rows)
            index = self.fill(rows, fit, keep)
        else:
            index = torch.cat((self.order[rows, :fit], self.mutants(rows, fit, mutants)), dim=1)
        return Selection(rows, index, self.weights(rows, fit, fit, keep), key, step)

    def weights(self, rows: Int[Tensor, " B"], fit: Count, survivors: Count, count: int) -> Float[Tensor, "B K"] | None:
        """Bounded importance weights, survivors first: a group's share of the cells over its share of the points."""
        if self.config.importance_cap == 0:
            return None
        share = torch.as_tensor(fit / self.usable[rows])
        drawn = torch.as_tensor(survivors / count, device=self.device)
        survives = torch.arange(count, device=self.device) < survivors
        weight = torch.where(survives, share / drawn, (1 - share) / (1 - drawn))
        # A group of which nothing is drawn cannot be weighed against the other.
        weight = torch.where((drawn == 0) | (drawn == 1), 1.0, weight).float().expand(len(rows), count)
        return self.capped(weight)

    def capped(self, weight: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """Importance weights within [1 / cap, cap]."""
        return weight.clamp(1 / self.config.importance_cap, self.config.importance_cap)

    def budget_counts(self, step: int, rows: Int[Tensor, " B"]) -> tuple[Count, Count]:
        """How many cells of each row are fit, and how many of the ``budget`` draws go to them."""
        budget = self.config.budget
        assert budget is not None
        fit, mutants = self.counts(step)
        keep = fit + mutants
        if not self.config.adapt:
            return fit, round(budget * fit / keep)
        share = (self.spread[rows] / EVEN_TILES).pow(4).clamp(max=1)
        kept, mutated = share.clamp(min=keep / self.valid_cells), share.clamp(min=mutants / keep)
        return (kept * (1 - mutated) * self.usable[rows]).round().long(), (budget * (1 - mutated)).round().long()

    def draw_budget(self, rows: Int[Tensor, " B"], fit: Count, survivors: Count) -> Int[Tensor, "B K"]:
        """``budget`` draws (repeats possible): ``survivors`` of them among the fit, the others among the rest."""
        budget = self.config.budget
        assert budget is not None
        # float64: float32 has too few values to address every cell of a large pool.
        chance = torch.rand(len(rows), budget, generator=self.generator, device=self.device, dtype=torch.float64)
        survives = torch.arange(budget, device=self.device) < survivors
        place = torch.where(survives, chance * fit, fit + chance * (self.usable[rows] - fit))
        return self.order[rows[:, None], place.long()]

    def observe(
        self,
        selection: Selection,
        residual: Float[Tensor, "B K C"],
        *,
        coord_grad: Float[Tensor, "B K D"] | None = None,
        derivative_residual: Float[Tensor, "B K C D"] | None = None,
        update: Float[Tensor, "B P C"] | None = None,
    ) -> None:
        """Cache the residuals: dense, of key steps, and breed the survivors; streaming, of every step.

        ``derivative_residual``: signed errors of the derivatives, in [0, 1] units a cell, which ``frequency``
        derivative ranks by their square, averaged over channels and summed over axes. ``update``: how the step just
        taken changes the field at every cell, to first order, on key steps with ``fitness`` update. Raises InputError
        where they are missing.
        """
        dense = self.config.evaluation == "dense"
        if self.needs_derivative and derivative_residual is None:
            raise InputError("frequency", "derivative", "laplacian, in a training that supervises no derivatives")
        if dense and not selection.is_key:
            return
        self.cache.write(selection, residual)
        if self.needs_update and update is None:
            raise InputError("fitness", "update", "error, in a training that does not follow the field's change")
        if update is not None:
            self.square_update[selection.rows] = update.float().square().sum(-1)
        if self.needs_derivative and derivative_residual is not None:
            error = reduce(derivative_residual.detach().float().square(), "b k c d -> b k d", "mean").sum(-1)
            rows = selection.rows
            self.derivative_error[rows if selection.index is None else (rows[:, None], selection.index)] = error
        if dense:
            self.rank(selection.step, selection.rows)


def pressure(spread: Float[Tensor, "B 1"]) -> Float[Tensor, "B 1"]:
    """0 for errors spread evenly, 1 for concentrated ones, linear in the logarithm of the spread in between."""
    return ((EVEN_SPREAD / spread).log() / math.log(EVEN_SPREAD / CONCENTRATED_SPREAD)).clamp(0, 1)
