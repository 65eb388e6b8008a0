"""NINT: teaching guided by the neural tangent kernel (CVPR 2026, arXiv 2511.15487).

A cell's score is the norm of its row of K g, the tangent kernel K = J Jᵀ times the loss's gradient g by the field's
values. As Jᵀ g is the loss's gradient by the parameters, that row is the first-order change of the field along the
gradient: one forward pass with tangents (``evos.derivatives.parameter_jvp``) gives it without forming the kernel.

Key steps train on every cell and score it; until the next one the batch is the cells of highest score and a uniform
draw among the others. Ratio and interval are those of the released code, which differs from this in that it ranks by
error in the steps between, evaluating every cell in each of them, and shifts the weight of the score from the kernel
to the error within the first 30 steps.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Int
from torch import Tensor

from evos.config import check_range
from evos.errors import InputError
from evos.schedules import is_key_step
from evos.selection.base import Evaluate, Feedback, Pool, Selection, Selector, SelectorConfig
from evos.selection.crossover import fittest_first
from evos.selection.draws import random_order, survivors_and_mutants


@dataclass(frozen=True)
class NintConfig(SelectorConfig):
    """Options of NINT."""

    name: ClassVar[str] = "nint"

    uniform_ratio: float = 0.7
    """Fraction of the points drawn uniformly from those that are not the highest scored, in [0, 1]."""

    key_interval: float = 10.0
    """Steps between key steps, at least 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("uniform_ratio", self.uniform_ratio, 0, 1)
        check_range("key_interval", self.key_interval, 1)


class NintSelector(Selector[NintConfig]):
    """The cells where the field changes most along the loss's gradient, and a uniform draw among the others."""

    needs = frozenset({"update"})
    state = ("order",)

    def __init__(self, config: NintConfig, pool: Pool, **kwargs: Any) -> None:
        super().__init__(config, pool, **kwargs)
        self.order: Int[Tensor, "R P"] = random_order(self.all_rows, pool.cells, self.generator, self.valid)

    def choose(self, step: int, rows: Int[Tensor, " B"] | None, evaluate: Evaluate | None) -> Selection:
        """Every cell on a key step; else the highest scored of the last one and uniform draws."""
        rows, interval = self.all_rows if rows is None else rows, self.config.key_interval
        if is_key_step(step, self.total_steps, interval, interval):
            return self.all_cells(rows, step, is_key=True)
        keep = self.keep_count(step)
        drawn = min(keep, int(self.config.uniform_ratio * self.config.keep_ratio * self.usable_cells + 1e-6))
        order, valid = self.order[rows], self.valid_in(rows)
        return self.selection(rows, survivors_and_mutants(order, keep - drawn, drawn, self.generator, valid), step)

    def observe(self, selection: Selection, feedback: Feedback) -> None:
        """On a key step: put the cells in order of their squared update; InputError without one."""
        if not selection.is_key:
            return
        if feedback.update is None:
            raise InputError("selector", "nint", "another, in a training that does not follow the field's change")
        score = feedback.update.float().square().sum(-1).nan_to_num(0.0, 0.0)
        if self.valid is not None:
            score = score.masked_fill(~self.valid[selection.rows], -1.0)
        self.order[selection.rows] = fittest_first(score)

    def forget(self, rows: Int[Tensor, " B"]) -> None:
        """Reset the order of ``rows`` to a random one until their next key step."""
        self.order[rows] = random_order(rows, self.pool.cells, self.generator, self.valid_in(rows))
