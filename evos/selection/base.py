"""The selector's protocol: a pool of cells, a selection of them, and the selector that chooses.

R rows, each a grid of P cells ranked by itself; B rows in this step; K points kept of each; C channels of the signal.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from evos.config import check_choice, check_range
from evos.errors import InputError
from evos.schedules import KEEP_SCHEDULES, keep_ratio

Evaluate = Callable[[Tensor], Tensor]
"""(rows "B") -> signed residual "B P C" of every cell of those rows, without gradient."""


@dataclass(frozen=True)
class Pool:
    """What can be selected: ``rows`` grids of one ``shape``, the Laplacian over the last ``axes`` of its axes.

    ``tile``: side of a cell in pixels, for pools of pixel tiles. ``mask``: False where a cell must never be drawn.
    """

    rows: int
    shape: tuple[int, ...]
    tile: int = 1
    mask: Bool[Tensor, "R P"] | None = None
    axes: int = field(default=0)

    def __post_init__(self) -> None:
        if self.rows < 1 or not self.shape or min(self.shape) < 1:
            got = f"{self.rows} rows of {self.shape}"
            raise InputError("pool", got, "at least one row and one cell along every axis")
        if self.axes == 0:
            object.__setattr__(self, "axes", min(2, len(self.shape)))
        if self.mask is not None and tuple(self.mask.shape) != (self.rows, self.cells):
            raise InputError("mask", tuple(self.mask.shape), f"one truth value a cell: {(self.rows, self.cells)}")

    @property
    def cells(self) -> int:
        """P, the number of cells in a row."""
        return int(torch.Size(self.shape).numel())


@dataclass(frozen=True)
class Selection:
    """The points of ``step``: ``index`` into each of ``rows`` (None = all P cells), weighted in the loss or not."""

    rows: Int[Tensor, " B"]
    index: Int[Tensor, "B K"] | None
    weight: Float[Tensor, "B K"] | None = None
    is_key: bool = False
    step: int = 0

    def gather(self, values: Float[Tensor, "R P C"] | Float[Tensor, "P C"]) -> Float[Tensor, "B K C"]:
        """The selected rows and points of ``values``, which have a row axis of their own or serve every row."""
        if values.ndim == 2 or values.shape[0] == 1:
            # One grid: plain row indexing, and no copy where everything is kept.
            flat = values.reshape(-1, values.shape[-1])
            return flat.expand(len(self.rows), -1, -1) if self.index is None else flat[self.index]
        if self.index is None:
            return values[self.rows]
        return values[self.rows[:, None], self.index]

    def reduce(self, error: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
        """The mean of a point-wise error, weighted where there are weights."""
        return (error if self.weight is None else error * self.weight).mean()


@dataclass(frozen=True)
class SelectorConfig:
    """Options that every strategy has."""

    name: ClassVar[str] = ""

    keep_ratio: float = 0.5
    """Share of the cells trained on in a step, in (0, 1]; where a schedule changes it, its start."""

    keep_schedule: str = "constant"
    """How keep_ratio changes over training: constant, linear, step, cosine or reverse-cosine."""

    def __post_init__(self) -> None:
        check_range("keep_ratio", self.keep_ratio, 0, 1, open_low=True)
        check_choice("keep_schedule", self.keep_schedule, KEEP_SCHEDULES)


ConfigT = TypeVar("ConfigT", bound=SelectorConfig)


class Selector(ABC, Generic[ConfigT]):
    """Chooses the points of every step, and learns from the errors they had.

    Not an ``nn.Module``: like an optimizer it keeps its own state, its own generator (seeded ``seed + rank``), and is
    saved and restored through ``state_dict``. The number of points follows from the config and the step alone, never
    from data, so shapes are static and no step waits for the host.
    """

    needs_coord_grad: ClassVar[bool] = False
    """Whether ``observe`` wants the gradient of the loss with respect to the points' coordinates."""

    needs_target: ClassVar[bool] = False
    """Whether it is built with the target, whose edges it uses."""

    needs_update: str | None = None
    """Whether ``observe`` wants to know, on key steps, how the field changes along a direction: that of the loss's
    "gradient" or of the optimizer's "step"."""

    state: ClassVar[tuple[str, ...]] = ()
    """Names of the tensors that make up the state, besides the generator."""

    def __init__(
        self, config: ConfigT, pool: Pool, *, total_steps: int, device: torch.device | str, seed: int = 0, rank: int = 0
    ) -> None:
        self.config, self.pool, self.total_steps = config, pool, total_steps
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed + rank)
        self.all_rows = torch.arange(pool.rows, device=self.device)
        # Counted once, on the host: every count of the run follows from it. Unequal rows share the smallest count.
        self.valid = None if pool.mask is None else pool.mask.to(self.device)
        self.valid_cells = pool.cells if self.valid is None else int(self.valid.sum(1).min())
        if self.valid_cells == 0:
            raise InputError("mask", "a row without a single usable cell", "at least one usable cell in every row")

    def keep_count(self, step: int) -> int:
        """K, the number of points kept of each row at ``step``, at least 1."""
        ratio = keep_ratio(self.config.keep_schedule, step, self.total_steps, self.config.keep_ratio)
        return max(1, int(ratio * self.valid_cells + 1e-6))

    def everything(self, rows: Int[Tensor, " B"], step: int, *, is_key: bool = False) -> Selection:
        """All cells of ``rows``; masked ones with weight 0."""
        weight = None
        if self.valid is not None:
            valid = self.valid[rows].float()
            weight = valid / valid.mean(1, keepdim=True)
        return Selection(rows, None, weight, is_key, step)

    @abstractmethod
    def select(
        self, step: int, rows: Int[Tensor, " B"] | None = None, *, evaluate: Evaluate | None = None
    ) -> Selection:
        """The points to train on at ``step`` (counted from 1) in ``rows`` (None = all).

        ``evaluate`` is called by the strategies that look at every cell before they choose.
        """

    def weigh(self, selection: Selection, residual: Float[Tensor, "B K C"]) -> Selection:
        """The selection with the weights its points get in the loss, given their errors (without gradient)."""
        return selection

    def observe(
        self,
        selection: Selection,
        residual: Float[Tensor, "B K C"],
        *,
        coord_grad: Float[Tensor, "B K D"] | None = None,
    ) -> None:
        """Take note of the signed errors (prediction - target, in [0, 1] units) of the points just trained on."""
        return None

    def uniform(self, rows: Int[Tensor, " B"], count: int) -> Int[Tensor, "B K"]:
        """``count`` distinct cells of each row, uniformly at random and never masked."""
        return self.draw(None, rows, count)

    def draw(self, log_odds: Float[Tensor, "B P"] | None, rows: Int[Tensor, " B"], count: int) -> Int[Tensor, "B K"]:
        """``count`` distinct cells of each row with odds exp(log_odds) (None = equal), by the Gumbel top-k trick.

        Equal in distribution to drawing one after the other without replacement (Efraimidis and Spirakis 2006), with
        a static shape and without ``torch.multinomial``'s limit of 2^24 categories.
        """
        keys = torch.rand(len(rows), self.pool.cells, generator=self.generator, device=self.device)
        if log_odds is not None:
            keys = log_odds - torch.log(-torch.log(keys.clamp(1e-12, 1 - 1e-7)))
        if self.valid is not None:
            keys = keys.masked_fill(~self.valid[rows], -torch.inf)
        return keys.topk(count, dim=1, sorted=False).indices

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on exactly as if it had not stopped."""
        tensors = {name: getattr(self, name) for name in self.state}
        return {"name": self.config.name, "version": 1, "generator": self.generator.get_state(), **tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned; InputError for the state of another strategy, version or pool."""
        if (state.get("name"), state.get("version")) != (self.config.name, 1):
            got = f"{state.get('name')} version {state.get('version')}"
            raise InputError("selector state", got, f"{self.config.name} version 1")
        for name in self.state:
            setattr(self, name, self.restored(name, state, getattr(self, name).shape))
        self.generator.set_state(state["generator"].cpu())

    def restored(self, name: str, state: dict[str, Any], shape: Sequence[int]) -> Tensor:
        """A copy of the saved tensor ``name``, which must have ``shape``."""
        saved = state.get(name)
        if saved is None or saved.shape != shape:
            got = None if saved is None else tuple(saved.shape)
            raise InputError(f"selector state {name}", got, str(tuple(shape)))
        return saved.to(self.device, copy=True)
