"""The two baselines: everything, and a uniform random subset."""

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

    def select(
        self, step: int, rows: Int[Tensor, " B"] | None = None, *, evaluate: Evaluate | None = None
    ) -> Selection:
        """All cells."""
        return self.everything(self.all_rows if rows is None else rows, step)


@dataclass(frozen=True)
class UniformConfig(SelectorConfig):
    """Train on a fresh uniform random subset in every step."""

    name: ClassVar[str] = "uniform"


class UniformSelector(Selector[UniformConfig]):
    """Uniform sampling without replacement."""

    def select(
        self, step: int, rows: Int[Tensor, " B"] | None = None, *, evaluate: Evaluate | None = None
    ) -> Selection:
        """``keep_ratio`` of the cells, all equally likely."""
        rows = self.all_rows if rows is None else rows
        return Selection(rows, self.uniform(rows, self.keep_count(step)), step=step)
