"""Sampling by error: part of the points drawn uniformly, the rest in proportion to the error last seen.

What the recipe ``fast`` trains on. The size of the loss's gradient at a point is in proportion to the point's error, so
these are the odds of importance sampling (Katharopoulos and Fleuret 2018), here without the importance weights that
would undo them: the aim is to train more where the error is larger. The uniform part keeps the cached errors of all
cells up to date. No cell is evaluated without being trained on, so a step costs as much as a uniform batch. Stratified
draws cover the signal more evenly than independent ones, and cost less time than draws of distinct cells.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evos.config import check_range
from evos.fitness import mean_square
from evos.selection.base import Evaluate, Feedback, Selection, SelectorConfig
from evos.selection.cache import CachingSelector, ResidualCache
from evos.selection.draws import weighted_stratified_draw

TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class ErrorConfig(SelectorConfig):
    """Options of sampling by error."""

    name: ClassVar[str] = "error"

    keep_ratio: float = 0.1
    """Fraction of the cells trained on in a step, in (0, 1]; where a schedule changes it, its start."""

    uniform_ratio: float = 0.5
    """Uniform fraction of a cell's odds, in [0, 1]; the rest is in proportion to its error."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("uniform_ratio", self.uniform_ratio, 0, 1)


class ErrorSelector(CachingSelector[ErrorConfig]):
    """Draws cells with odds uniform_ratio + (1 - uniform_ratio) · error / mean error, one from each of K segments."""

    cache: ResidualCache

    def choose(self, step: int, rows: Int[Tensor, " B"] | None, evaluate: Evaluate | None) -> Selection:
        """``keep_ratio`` of the cells, drawn anew in every step."""
        rows = self.all_rows if rows is None else rows
        odds = self.odds(rows)
        if self.valid is not None:
            odds = odds.masked_fill(~self.valid[rows], 0.0)
        drawn = weighted_stratified_draw(odds, self.keep_count(step), self.generator)
        return self.selection(rows, drawn, step)

    def odds(self, rows: Int[Tensor, " B"]) -> Float[Tensor, "B P"]:
        """Odds of each cell, 1 at the mean error, which unseen cells are assumed to have."""
        error, seen = mean_square(self.cache.read(rows)).sqrt(), self.cache.seen[rows]
        uniform = self.config.uniform_ratio
        # Unseen cells have error 0. The mean over no cells is nan, but then nothing uses it.
        relative = error / (error.sum(1, keepdim=True) / seen.sum(1, keepdim=True)).clamp(min=TINY)
        return torch.where(seen, uniform + (1 - uniform) * relative, 1.0)

    def observe(self, selection: Selection, feedback: Feedback) -> None:
        """Cache the errors of the points just trained on."""
        self.cache.write(selection, feedback.residual)
