"""Nonparametric teaching of neural fields (INT, ICML 2024): the cells of largest error, updated at intervals."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from jaxtyping import Int
from torch import Tensor

from evos.errors import InputError
from evos.schedules import teaching_interval
from evos.selection.base import Evaluate, Pool, Selection, Selector, SelectorConfig


@dataclass(frozen=True)
class IntConfig(SelectorConfig):
    """Options of nonparametric teaching."""

    name: ClassVar[str] = "int"

    variant: Literal["incremental", "reverse-incremental", "dense", "dense2"] = "incremental"
    """How often the whole signal is evaluated: incremental (at growing intervals), reverse-incremental (at
    shrinking ones), dense (each step) or dense2 (each second)."""


class IntSelector(Selector[IntConfig]):
    """Greedy selection: the K cells of largest absolute error, kept until the next evaluation."""

    needs = frozenset({"evaluate"})
    state = ("chosen",)

    def __init__(self, config: IntConfig, pool: Pool, **kwargs: Any) -> None:
        super().__init__(config, pool, **kwargs)
        self.chosen: Int[Tensor, "R K"] = self.uniform(self.all_rows, self.keep_count(1))

    def choose(self, step: int, rows: Int[Tensor, " B"] | None, evaluate: Evaluate | None) -> Selection:
        """The cells chosen at the last evaluation; on evaluation steps the whole signal is evaluated first."""
        all_rows = rows is None
        rows = self.all_rows if rows is None else rows
        keep = self.keep_count(step)
        interval = teaching_interval(self.config.variant, step, self.total_steps)
        if (step - 1) % interval and all_rows:
            return self.selection(rows, self.chosen[rows], step)
        if keep >= self.pool.cells:
            return self.all_cells(rows, step)
        if evaluate is None:
            raise InputError("selector", "int", "a strategy that needs no look at the whole signal before it selects")
        error = evaluate(rows).abs().sum(-1).nan_to_num(0.0, 0.0)  # what is not finite must not rank first
        if self.valid is not None:
            error = error.masked_fill(~self.valid[rows], -1.0)
        index = error.topk(keep, dim=1, sorted=False).indices
        if all_rows:
            self.chosen = index
        return replace(self.selection(rows, index, step), is_key=True)

    def forget(self, rows: Int[Tensor, " B"]) -> None:
        """Uniform cells until the next evaluation."""
        self.chosen[rows] = self.uniform(rows, self.chosen.shape[1])

    def restored(self, name: str, state: dict[str, Any], shape: Sequence[int]) -> Tensor:
        """As for all selectors, but the number of chosen cells may have grown with the keep ratio."""
        chosen = super().restored(name, state, (self.pool.rows, *state.get(name, self.chosen).shape[1:]))
        if int(chosen.max()) >= self.pool.cells:
            raise InputError(f"selector state {name}", f"cell {int(chosen.max())}", f"cells below {self.pool.cells}")
        return chosen
