"""Sampling by error where a cell stands for many points, as a tile of a large picture stands for its pixels.

The method of ``error_sampling.py``: a uniform part, and the rest in proportion to the error. What is known of a tile is
the running mean of the squared errors of the points trained on in it, smoothed by its neighbourhood while it has few
visits (``RunningCache``). Draws are with replacement, one from each of as many equal parts of the odds, so that a tile
has as many points as its odds say, up to one.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evos.config import check_range
from evos.selection.base import Evaluate, Feedback, Pool, Selection, SelectorConfig
from evos.selection.cache import TINY, CachingSelector, RunningCache
from evos.selection.draws import stratified_draw, widest_float


@dataclass(frozen=True)
class TileErrorConfig(SelectorConfig):
    """Options of sampling by error over tiles."""

    name: ClassVar[str] = "tile_error"

    keep_ratio: float = 0.1
    """Points of a step as a fraction of the tiles, where the step doesn't ask for a number, in (0, 1]."""

    uniform_ratio: float = 0.5
    """Uniform fraction of a point's odds, in [0, 1]; the rest is in proportion to the error of its tile."""

    odds_interval: int = 16
    """Steps between two looks at the errors, at least 1."""

    momentum: float = 0.7
    """Weight of a visit to a tile relative to the next visit, in [0, 0.99]."""

    pooling: float = 2.0
    """Weight, in visits, of the neighbourhood's error in a tile's estimate, above 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("uniform_ratio", self.uniform_ratio, 0, 1)
        check_range("odds_interval", self.odds_interval, 1)
        check_range("momentum", self.momentum, 0, 0.99)
        check_range("pooling", self.pooling, 0, open_low=True)


class TileErrorSelector(CachingSelector[TileErrorConfig]):
    """Draws points with odds uniform_ratio + (1 - uniform_ratio) · error of the tile / mean error.

    Its state is the running cache and, for each row, the sums of the tiles' odds at the last look.
    """

    state = ("bounds",)
    cache: RunningCache

    def __init__(self, config: TileErrorConfig, pool: Pool, **kwargs: Any) -> None:
        super().__init__(config, pool, **kwargs)
        self.bounds: Float[Tensor, "R P"] = self.odds(self.all_rows).cumsum(1)

    def make_cache(self) -> RunningCache:
        """Running means instead of last values."""
        return RunningCache(self.pool, self.device, self.config.momentum, self.config.pooling)

    def select(
        self,
        step: int,
        rows: Int[Tensor, " B"] | None = None,
        *,
        count: int | None = None,
        evaluate: Evaluate | None = None,
    ) -> Selection:
        """``count`` draws with replacement, in the order of the tiles; None: ``keep_ratio`` of the tiles."""
        # Where a step has some of the rows, their odds are as of now: they may not be present at the next look.
        if step % self.config.odds_interval == 0 or rows is not None:
            looked = self.all_rows if rows is None else rows
            self.bounds[looked] = self.odds(looked).cumsum(1)
        rows = self.all_rows if rows is None else rows
        count = self.keep_count(step) if count is None else count
        return Selection(rows, stratified_draw(self.bounds[rows], count, self.generator), step=step)

    def choose(self, step: int, rows: Int[Tensor, " B"] | None, evaluate: Evaluate | None) -> Selection:
        """As ``select``."""
        return self.select(step, rows)

    def odds(self, rows: Int[Tensor, " B"]) -> Float[Tensor, "B P"]:
        """Odds of a draw from each tile: of a point at the mean error 1, times the tile's points; masked tiles 0."""
        error = self.cache.mean_square(rows).sqrt()
        weight, valid = self.weight_in(rows), self.valid_in(rows)
        points = torch.ones_like(error) if weight is None else weight.to(error.dtype)
        points = points if valid is None else points * valid
        # Before the first visit all errors are 0, and so are the odds in proportion to them.
        known = (error * points).sum(1, keepdim=True)
        relative = torch.where(known > 0, error * points.sum(1, keepdim=True) / known.clamp(min=TINY), 1.0)
        uniform = self.config.uniform_ratio
        return ((uniform + (1 - uniform) * relative) * points).to(widest_float(self.device))

    def observe(self, selection: Selection, feedback: Feedback) -> None:
        """Add the errors of the points just trained on to their tiles' running means."""
        self.cache.write(selection, feedback.residual)

    def steps_alike(self, step: int) -> int:
        """Steps up to the next look at the errors."""
        return self.config.odds_interval - step % self.config.odds_interval

    def forget(self, rows: Int[Tensor, " B"]) -> None:
        """Uniform points until the next look."""
        super().forget(rows)
        self.bounds[rows] = self.odds(rows).cumsum(1)
