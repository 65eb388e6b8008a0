"""The two baselines: the full batch, and a uniform random subset."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from evos.selection.base import Evaluate, Selection, Selector, SelectorConfig


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
    """Uniform sampling without replacement."""

    def choose(self, step: int, rows: Int[Tensor, " B"] | None, evaluate: Evaluate | None) -> Selection:
        """``keep_ratio`` of the cells, all equally likely."""
        rows = self.all_rows if rows is None else rows
        return self.selection(rows, self.uniform(rows, self.keep_count(step)), step)
