"""The two baselines: the full batch, and a uniform random subset."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from evos.selection.base import Evaluate, Selection, Selector, SelectorConfig
from evos.selection.draws import draw_from_two_groups, spaced_draw


@dataclass(frozen=True)
class FullConfig(SelectorConfig):
    """Train on every cell in every step; keep_ratio has no effect."""

    name: ClassVar[str] = "full"


class FullSelector(Selector[FullConfig]):
    """The full batch."""

    def choose(self, step: int, rows: Int[Tensor, " B"] | None, evaluate: Evaluate | None) -> Selection:
        """All cells."""
        return self.all_cells(self.all_rows if rows is None else rows, step)


@dataclass(frozen=True)
class UniformConfig(SelectorConfig):
    """Train on a fresh uniform random subset in every step."""

    name: ClassVar[str] = "uniform"


class UniformSelector(Selector[UniformConfig]):
    """Uniform sampling without replacement; of cells with weights, ``count`` of their points with replacement."""

    def select(
        self,
        step: int,
        rows: Int[Tensor, " B"] | None = None,
        *,
        count: int | None = None,
        evaluate: Evaluate | None = None,
    ) -> Selection:
        """As every selector's; a point of any cell is as likely as one of another, whatever keep_ratio."""
        if count is None or self.weight is None:
            return super().select(step, rows, count=count, evaluate=evaluate)
        rows = self.all_rows if rows is None else rows
        weight, anyhow = self.weight[rows], torch.arange(self.pool.cells, device=self.device).expand(len(rows), -1)
        points = weight.sum(1, keepdim=True)
        return Selection(rows, draw_from_two_groups(anyhow, 0, 0, points, count, self.generator, weight), step=step)

    def choose(self, step: int, rows: Int[Tensor, " B"] | None, evaluate: Evaluate | None) -> Selection:
        """``keep_ratio`` of the cells, all equally likely."""
        rows, count = self.all_rows if rows is None else rows, self.keep_count(step)
        if self.valid is None:
            return self.selection(rows, spaced_draw(rows, self.pool.cells, count, self.generator), step)
        return self.selection(rows, self.uniform(rows, count), step)
