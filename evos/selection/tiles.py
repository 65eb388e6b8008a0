"""EVOS where a cell contains many points, as a tile of a training image contains many rays.

Four things differ from the method on single points (``evos.py``). Nothing is evaluated for selection alone: each tile
has a running mean of the errors of the points trained on, smoothed by its neighbourhood while it has few visits
(``RunningCache``). A step trains on ``count`` points drawn from the selected population. The selection pressure follows
the concentration of the error and the learning curve (``progress.py``): evenly distributed errors give uniform points,
concentrated errors the configured fractions of fittest tiles and mutants, as long as the mean error falls fast enough.
Where it hardly does, the most wrong points teach little but noise. And the most wrong of the tiles that were visited
often enough, and the tiles of views that are far more wrong than the others, leave the fittest (``outliers.py``): what
is still that wrong cannot be learned.
"""

from dataclasses import dataclass
from itertools import count as counting
from math import prod
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from evos.config import check_range
from evos.fitness import high_fitness, mean_square
from evos.schedules import is_key_step
from evos.selection.base import Evaluate, Feedback, Pool, Selection, SelectorConfig
from evos.selection.cache import CachingSelector, RunningCache
from evos.selection.crossover import CROSSOVERS, fittest_first
from evos.selection.draws import (
    cells_within,
    draw_from_two_groups,
    effective_sample_fraction,
    random_order,
)
from evos.selection.outliers import largest_errors, outlying_grids, trimmed
from evos.selection.progress import empty_curves, learning_exponent, mean_of_two_groups, with_point

Counts = Int[Tensor, "B 1"]
"""One number a row."""

EVEN_ERROR = 0.6
"""Effective sample fraction of evenly distributed errors: that of i.i.d. normal errors, squared and averaged over three
channels."""


@dataclass(frozen=True)
class TilesConfig(SelectorConfig):
    """Options of EVOS over tiles; the defaults are for radiance fields."""

    name: ClassVar[str] = "tiles"

    keep_ratio: float = 0.15
    """Fraction of the tiles in the selected population while the error is concentrated, in (0, 1]."""

    mutation_ratio: float = 0.1
    """Fraction of the points drawn from the other tiles while the error is concentrated, in [0, 1]."""

    full_exponent: float = 0.6
    """Exponent of the learning curve, error ~ step^-exponent, from which on the pressure is full, at least 0; it falls
    with the fourth power below. 0: it is always full."""

    crossover: Literal["none", "add", "select"] = "select"
    """How value and Laplacian fitness are combined: none (value only), add (their sum) or select (the paper's)."""

    laplacian_weight: float = 0.65
    """Weight of the squared Laplacian of the tiles' grey residuals against their squared value error, at least 0."""

    rank_interval: int = 16
    """Steps between rankings, at least 1."""

    warmup_steps: int = 50
    """Initial steps with uniform points, whose errors are cached, before selection begins, at least 0: until the
    learning curve is known."""

    momentum: float = 0.7
    """Weight of a visit to a tile relative to the next visit, in [0, 0.99]."""

    pooling: float = 2.0
    """Weight, in visits, of the neighbourhood's error in a tile's estimate, above 0."""

    trim_ratio: float = 0.02
    """Fraction of the tiles that leave the fit as outliers, the most wrong of those visited often enough, in [0, 1]."""

    trim_visits: int = 4
    """Visits before a tile can be an outlier, at least 1."""

    trim_views: float = 3.0
    """Views whose mean error is so many robust standard deviations above the median view's leave the fit as a whole, at
    least 0; 0: none. Three are needed, and at most half can leave."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("mutation_ratio", self.mutation_ratio, 0, 1)
        check_range("full_exponent", self.full_exponent, 0)
        check_range("laplacian_weight", self.laplacian_weight, 0)
        check_range("rank_interval", self.rank_interval, 1)
        check_range("warmup_steps", self.warmup_steps, 0)
        check_range("momentum", self.momentum, 0, 0.99)
        check_range("pooling", self.pooling, 0, open_low=True)
        check_range("trim_ratio", self.trim_ratio, 0, 1)
        check_range("trim_visits", self.trim_visits, 1)
        check_range("trim_views", self.trim_views, 0)


class TilesSelector(CachingSelector[TilesConfig]):
    """EVOS over tiles.

    Its state is the running cache, the learning curve of each row and, from each row's last ranking, the order of the
    tiles, fittest first, how little the choice has to go by (0 for full pressure, 1 for none), and the outliers.
    """

    state = ("order", "evenness", "outlying", "curve")
    cache: RunningCache

    def __init__(self, config: TilesConfig, pool: Pool, **kwargs: Any) -> None:
        super().__init__(config, pool, **kwargs)
        self.usable: Int[Tensor, "R 1"] = self.count_usable()
        self.order: Int[Tensor, "R P"] = random_order(self.all_rows, pool.cells, self.generator, self.valid)
        self.evenness: Float[Tensor, "R 1"] = torch.ones(pool.rows, 1, device=self.device)
        self.outlying: Bool[Tensor, "R P"] = torch.zeros(pool.rows, pool.cells, dtype=torch.bool, device=self.device)
        self.curve: Float[Tensor, "R S"] = empty_curves(pool.rows, self.device)
        self.trim_count = round(config.trim_ratio * self.usable_cells)
        self.views = prod(pool.shape[: -pool.grid_axes])
        self.zero = torch.zeros((), device=self.device)
        self.ratios = {"survivor_ratio": self.zero, "mutant_ratio": 1 - self.zero}

    def make_cache(self) -> RunningCache:
        """Running means instead of last values."""
        return RunningCache(self.pool, self.device, self.config.momentum, self.config.pooling)

    def count_usable(self) -> Int[Tensor, "R 1"]:
        """How many tiles of each row are not masked; of tiles with weights, how many points these have."""
        if self.weight is not None:
            return self.weight.sum(1, keepdim=True)
        if self.valid is None:
            return torch.full((self.pool.rows, 1), self.pool.cells, device=self.device)
        return self.valid.sum(1, keepdim=True)

    def select(
        self,
        step: int,
        rows: Int[Tensor, " B"] | None = None,
        *,
        count: int | None = None,
        evaluate: Evaluate | None = None,
    ) -> Selection:
        """``count`` draws with replacement, from the fittest tiles and from the others; None: as many as are kept."""
        # Where a step has some of the rows, these are ranked now: they may not be present in key steps.
        is_key = self.ranks_at(step)
        if step > self.config.warmup_steps and (is_key or rows is not None):
            self.rank(step, self.all_rows if rows is None else rows)
        rows = self.all_rows if rows is None else rows
        count = self.keep_count(step) if count is None else count
        fittest, survivors = self.group_sizes(step, rows, count)
        survivor_ratio = (self.zero + survivors / count).mean()
        self.ratios = {"survivor_ratio": survivor_ratio, "mutant_ratio": 1 - survivor_ratio}
        order, weight = self.order[rows], self.weight_in(rows)
        index = draw_from_two_groups(order, fittest, survivors, self.usable[rows], count, self.generator, weight)
        return Selection(rows, index, is_key=is_key, step=step)

    def choose(self, step: int, rows: Int[Tensor, " B"] | None, evaluate: Evaluate | None) -> Selection:
        """As ``select``."""
        return self.select(step, rows)

    def observe(self, selection: Selection, feedback: Feedback) -> None:
        """Add the errors of the points just trained on to their tiles' running means and to the learning curves."""
        if self.config.full_exponent > 0:
            error = self.mean_error(selection, feedback.residual)
            self.curve[selection.rows] = with_point(self.curve[selection.rows], max(1, selection.step), error)
        self.cache.write(selection, feedback.residual)

    def mean_error(self, selection: Selection, residual: Float[Tensor, "B K C"]) -> Float[Tensor, "B 1"]:
        """Mean squared error of all tiles but the outliers, estimated from the residuals of the selected points.

        The fit and the others count as much as there are of them, however many points each has.
        """
        rows, index, square = selection.rows, selection.index, mean_square(residual.detach().float())
        if index is None:
            return square.mean(1, keepdim=True)
        square = square.masked_fill(self.outlying[rows].gather(1, index), torch.nan)
        order, weight = self.order[rows], self.weight_in(rows)
        fittest, _ = self.group_sizes(selection.step, rows, 1)
        # Place of each cell in the order; with weights, of its first point.
        points = torch.ones_like(order) if weight is None else weight.gather(1, order)
        place = torch.empty_like(order).scatter_(1, order, points.cumsum(1) - points)
        return mean_of_two_groups(square, place.gather(1, index) < fittest, fittest / self.usable[rows])

    def group_sizes(self, step: int, rows: Int[Tensor, " B"], count: int) -> tuple[Counts, Counts]:
        """Number of fittest tiles of each row (points, if they have weights), and how many of ``count`` draws go there.

        The evenness is the fraction of the tiles in the population, and that of the draws that are mutants: each at
        least the configured ratio.
        """
        keep = self.keep_count(step) / self.usable_cells
        evenness = self.evenness[rows]
        kept, mutants = evenness.clamp(min=keep), evenness.clamp(min=self.config.mutation_ratio)
        # At least one mutant, however few the draws: otherwise the other tiles would never be visited again.
        most = count - 1 if self.config.mutation_ratio > 0 and count > 1 else count
        survivors = (count * (1 - mutants)).round().clamp(max=most)
        return (kept * (1 - mutants) * self.usable[rows]).round().long(), survivors.long()

    def rank(self, step: int, rows: Int[Tensor, " B"]) -> None:
        """Measure how much there is to choose by, and put the tiles of ``rows`` in order, masked ones last."""
        residual, square = self.cache.errors(rows)
        valid, weight = self.valid_in(rows), self.weight_in(rows)
        counted = valid if weight is None else weight
        self.evenness[rows] = self.measured_evenness(rows, square, counted)
        low, high = 4 * square, torch.zeros_like(square)
        if self.config.crossover != "none":
            high = high_fitness(residual, self.pool.shape, self.pool.grid_axes, self.config.laplacian_weight)
        if (outliers := self.outliers(rows, square, counted)) is not None:
            low, high = trimmed(low, outliers), trimmed(high, outliers)
            self.outlying[rows] = outliers
        if valid is not None:
            low, high = low.masked_fill(~valid, -1.0), high.masked_fill(~valid, -1.0)
        fittest, _ = self.group_sizes(step, rows, 1)
        if weight is not None:
            fittest = cells_within(fittest_first(low), self.usable[rows].minimum(fittest), weight)
        self.order[rows] = CROSSOVERS[self.config.crossover](low, high, fittest, counted)

    def measured_evenness(
        self, rows: Int[Tensor, " B"], error: Float[Tensor, "B P"], weight: Shaped[Tensor, "B P"] | None
    ) -> Float[Tensor, "B 1"]:
        """The larger one of (s / 0.6)⁴ and, with the default ``full_exponent``, 1 - (a / 0.6)⁴, in [0, 1].

        s is the effective sample fraction of the errors, a the exponent of the learning curve.
        """
        evenness = (effective_sample_fraction(error, weight) / EVEN_ERROR).pow(4).clamp(max=1)
        if self.config.full_exponent == 0:
            return evenness
        learning = (learning_exponent(self.curve[rows]).clamp(min=0) / self.config.full_exponent).pow(4)
        return evenness.maximum(1 - learning.clamp(max=1))

    def outliers(
        self, rows: Int[Tensor, " B"], error: Float[Tensor, "B P"], weight: Shaped[Tensor, "B P"] | None
    ) -> Bool[Tensor, "B P"] | None:
        """The tiles that are too wrong to be learned, by themselves or with their whole view; None: no trimming."""
        found = None
        if self.trim_count > 0:
            found = largest_errors(error, self.cache.visits[rows] >= self.config.trim_visits, self.trim_count)
        if self.config.trim_views > 0 and self.views > 2:
            views = outlying_grids(
                error, None if weight is None else weight.float(), self.views, self.config.trim_views
            )
            found = views if found is None else found | views
        return found

    def ranks_at(self, step: int) -> bool:
        """Whether the tiles are ranked at ``step``."""
        interval = float(self.config.rank_interval)
        return is_key_step(step, self.total_steps, interval, interval)

    def steps_alike(self, step: int) -> int:
        """Steps up to the next ranking or the end of the warm-up."""
        warmup = self.config.warmup_steps
        later = (n for n in counting(step + 1) if n == warmup + 1 or (n > warmup and self.ranks_at(n)))
        return next(later) - step

    def forget(self, rows: Int[Tensor, " B"]) -> None:
        """Uniform points until the next ranking."""
        super().forget(rows)
        self.order[rows] = random_order(rows, self.pool.cells, self.generator, self.valid_in(rows))
        self.evenness[rows] = 1.0
        self.outlying[rows] = False
        self.curve[rows] = 0.0

    def metrics(self) -> dict[str, Tensor]:
        """Fractions of the last draws that went to survivors and to mutants."""
        return self.ratios
