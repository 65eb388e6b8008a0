"""The selector's protocol: a pool of cells, a selection of cells, and the selector that chooses it.

R rows, each a grid of P cells ranked by itself; B rows in this step; K points kept of each; C channels of the signal; D
coordinate axes.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from evos.config import check_choices, check_range
from evos.errors import InputError
from evos.schedules import keep_ratio
from evos.seeding import mixed_seed
from evos.selection.draws import stratified, uniform_draw

if TYPE_CHECKING:
    from evos.selection.cache import Cache

Evaluate = Callable[[Tensor], Tensor]
"""(rows "B") -> signed residual "B P C" of every cell of those rows, without gradient."""


@dataclass(frozen=True, eq=False)
class Pool:
    """The cells to select from: ``rows`` grids of ``shape``, with neighbours along the last ``axes`` of its axes.

    ``tile``: side of a cell in pixels, for pools of pixel tiles. ``mask``: boolean, False where a cell is never drawn.
    ``weight``: of how many points a cell is made, 0 where it is masked, for pools whose points, not cells, are to be
    drawn alike, where a step draws a given number of them; None: all of the same number.
    ``axes``: 1 to the number of axes of ``shape``; None: the last two, or the only one.

    Raises:
        InputError: no row or cell; more axes than the shape has; a mask that is not boolean, of another shape, or
            without a usable cell in some row; weights that are not int64, of another shape, or not above 0 just where
            a cell is usable.
    """

    rows: int
    shape: tuple[int, ...]
    tile: int = 1
    mask: Shaped[Tensor, "R P"] | None = None
    axes: int | None = None
    weight: Shaped[Tensor, "R P"] | None = None

    def __post_init__(self) -> None:
        if self.rows < 1 or not self.shape or min(self.shape) < 1:
            got = f"{self.rows} rows of {self.shape}"
            raise InputError("pool", got, "at least one row and one cell along every axis")
        if self.axes is not None and not 1 <= self.axes <= len(self.shape):
            raise InputError("axes", self.axes, f"1 to {len(self.shape)}, the axes of {self.shape}, or none")
        self.check_mask()
        self.check_weight()

    def check_mask(self) -> None:
        """Raise InputError for a mask of another kind or shape, or one that leaves nothing of a row."""
        if self.mask is None:
            return
        if self.mask.dtype != torch.bool:
            raise InputError("mask", str(self.mask.dtype), "torch.bool")
        if tuple(self.mask.shape) != (self.rows, self.cells):
            raise InputError("mask", tuple(self.mask.shape), f"one truth value a cell: {(self.rows, self.cells)}")
        if not bool(self.mask.any(1).all()):
            raise InputError("mask", "a row without a single usable cell", "at least one usable cell in every row")

    def check_weight(self) -> None:
        """Raise InputError for weights of another kind or shape, or that contradict the mask."""
        if self.weight is None:
            return
        if self.weight.dtype != torch.int64 or tuple(self.weight.shape) != (self.rows, self.cells):
            got = f"{self.weight.dtype} of {tuple(self.weight.shape)}"
            raise InputError("weight", got, f"one torch.int64 a cell: {(self.rows, self.cells)}")
        usable = torch.ones_like(self.weight, dtype=torch.bool) if self.mask is None else self.mask
        if not bool(((self.weight > 0) == usable).all() and (self.weight >= 0).all()):
            raise InputError("weight", "others", "above 0 where a cell is usable, and 0 where it is masked")

    @property
    def cells(self) -> int:
        """P, the number of cells in a row."""
        return int(torch.Size(self.shape).numel())

    @property
    def grid_axes(self) -> int:
        """Number of last axes along which cells are neighbours: ``axes``, with its default resolved."""
        return min(2, len(self.shape)) if self.axes is None else self.axes


@dataclass(frozen=True, eq=False)
class Selection:
    """The points of ``step``: ``index`` into each of ``rows`` (None = all P cells), with optional loss weights."""

    rows: Int[Tensor, " B"]
    index: Int[Tensor, "B K"] | None
    weight: Float[Tensor, "B K"] | None = None
    is_key: bool = False
    step: int = 0

    def gather(self, values: Float[Tensor, "R P C"] | Float[Tensor, "P C"]) -> Float[Tensor, "B K C"]:
        """The selected rows and points of ``values``, with a row axis of their own or shared by all rows."""
        if values.ndim == 2 or values.shape[0] == 1:
            # One grid: plain indexing, and no copy where all cells are selected.
            flat = values.reshape(-1, values.shape[-1])
            return flat.expand(len(self.rows), -1, -1) if self.index is None else flat[self.index]
        if self.index is None:
            return values[self.rows]
        return values[self.rows[:, None], self.index]

    def reduce(self, error: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
        """The mean of a point-wise error, weighted where there are weights."""
        return (error if self.weight is None else error * self.weight).mean()


@dataclass(frozen=True, eq=False)
class Feedback:
    """What a training step reports on the selected points, all without gradient.

    The optional parts are given where the selector ``needs`` them.
    """

    residual: Float[Tensor, "B K C"]
    """Signed error, prediction - target, in [0, 1] units."""

    coord_grad: Float[Tensor, "B K D"] | None = None
    """Gradient of the loss with respect to the points' coordinates; None where it is not available (rays)."""

    update: Float[Tensor, "B P C"] | None = None
    """On key steps: first-order change of the field at every cell along the loss's gradient by its parameters."""


KeepSchedule = Literal["constant", "linear", "step", "cosine", "reverse-cosine"]
"""Names of evos.schedules.KEEP_SCHEDULES."""


@dataclass(frozen=True)
class SelectorConfig:
    """Options that every strategy has."""

    name: ClassVar[str] = ""

    keep_ratio: float = 0.5
    """Fraction of the cells trained on in a step, in (0, 1]; where a schedule changes it, its start."""

    keep_schedule: KeepSchedule = "constant"
    """How keep_ratio changes over training."""

    def __post_init__(self) -> None:
        check_range("keep_ratio", self.keep_ratio, 0, 1, open_low=True)
        check_choices(self)


ConfigT = TypeVar("ConfigT", bound=SelectorConfig)


class Selector(ABC, Generic[ConfigT]):
    """Chooses the points of each training step, and updates its state from their residuals.

    Not an ``nn.Module``: like an optimizer it keeps its own state, its own generator (seeded by ``seed`` and ``rank``),
    and is saved and restored through ``state_dict``. The number of points follows from the config and the step alone,
    never from data, so shapes are static and no step waits for the host.

    Where a mask leaves rows of different sizes, K follows from their mean size. A row with fewer than K
    usable cells selects all of them, with larger weights, and is padded with masked cells of weight 0.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    """Required inputs: "target" at construction; "evaluate" in ``select``; "coord_grad" and "update" in ``observe``
    (see ``Feedback``)."""

    state: ClassVar[tuple[str, ...]] = ()
    """Names of the tensors that make up the state, besides the generator."""

    cache: "Cache | None" = None
    """The cached residuals of the cells, for strategies that cache any."""

    def __init__(
        self, config: ConfigT, pool: Pool, *, total_steps: int, device: torch.device | str, seed: int = 0, rank: int = 0
    ) -> None:
        self.config, self.pool, self.total_steps = config, pool, total_steps
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(mixed_seed(seed, rank))
        self.all_rows = torch.arange(pool.rows, device=self.device)
        # Counted once, on the host, so that no later count has to wait for the device.
        self.valid = None if pool.mask is None else pool.mask.to(self.device)
        self.weight = None if pool.weight is None else pool.weight.to(self.device)
        sizes = [pool.cells] if pool.mask is None else pool.mask.sum(1).tolist()
        self.usable_cells, self.fewest_usable = sum(sizes) / len(sizes), min(sizes)

    # ---- the protocol --------------------------------------------------------------------------------------

    def select(
        self,
        step: int,
        rows: Int[Tensor, " B"] | None = None,
        *,
        count: int | None = None,
        evaluate: Evaluate | None = None,
    ) -> Selection:
        """The points to train on at ``step`` (counted from 1) in ``rows`` (None = all).

        Args:
            step: from 1; past the run's length, schedules stay where they ended.
            rows: the rows of this step.
            count: number of points to draw per row from the selected ones, in proportion to the cells' weights where
                they have any; None: all selected.
            evaluate: called by strategies that evaluate all cells before they select.

        Raises:
            InputError: ``evaluate`` is required and missing, or ``count`` is given in a step on all cells.
        """
        selection = self.choose(step, rows, evaluate)
        if count is None:
            return selection
        if selection.index is None:
            raise InputError("selector", self.config.name, "one that does not train on every cell in some steps")
        index = selection.index
        weight = None if self.weight is None else self.weight[selection.rows[:, None], index]
        return replace(selection, index=stratified(index, count, self.generator, weight), weight=None)

    @abstractmethod
    def choose(self, step: int, rows: Int[Tensor, " B"] | None, evaluate: Evaluate | None) -> Selection:
        """All cells that the strategy selects at ``step``; see ``select``."""

    def weigh(self, selection: Selection, residual: Float[Tensor, "B K C"]) -> Selection:
        """The selection with the loss weights of its points, given their residuals (without gradient)."""
        return selection

    def observe(self, selection: Selection, feedback: Feedback) -> None:
        """Update the state from the residuals of the points just trained on."""
        return None

    def forget(self, rows: Int[Tensor, " B"]) -> None:
        """Reset the state of ``rows``, which hold other signals from now on."""
        return None

    def steps_alike(self, step: int) -> int:
        """Number of steps from ``step`` on whose odds do not depend on what is observed in between, at least 1."""
        return 1

    def metrics(self) -> dict[str, Tensor]:
        """Scalars worth logging, on the device."""
        return {}

    # ---- for strategies ------------------------------------------------------------------------------------

    def keep_count(self, step: int) -> int:
        """K, the number of points kept of each row at ``step``, at least 1."""
        ratio = keep_ratio(self.config.keep_schedule, step, self.total_steps, self.config.keep_ratio)
        return max(1, int(ratio * self.usable_cells + 1e-6))

    def valid_in(self, rows: Int[Tensor, " B"]) -> Bool[Tensor, "B P"] | None:
        """Which cells of ``rows`` are not masked; None = all."""
        return None if self.valid is None else self.valid[rows]

    def weight_in(self, rows: Int[Tensor, " B"]) -> Int[Tensor, "B P"] | None:
        """Of how many points each cell of ``rows`` is made; None = all alike."""
        return None if self.weight is None else self.weight[rows]

    def all_cells(self, rows: Int[Tensor, " B"], step: int, *, is_key: bool = False) -> Selection:
        """All cells of ``rows``; masked ones with weight 0."""
        return Selection(rows, None, self.unmasked_weight(rows, None), is_key, step)

    def selection(self, rows: Int[Tensor, " B"], index: Int[Tensor, "B K"], step: int) -> Selection:
        """The selection of the cells ``index``, with weight 0 for masked cells that pad rows with few usable ones."""
        weight = self.unmasked_weight(rows, index) if index.shape[1] > self.fewest_usable else None
        return Selection(rows, index, weight, step=step)

    def unmasked_weight(self, rows: Int[Tensor, " B"], index: Int[Tensor, "B K"] | None) -> Float[Tensor, "B K"] | None:
        """Weights of mean 1 in each row: 0 for masked cells, equal for the others. None without a mask."""
        if self.valid is None:
            return None
        valid = self.valid[rows]
        weight = (valid if index is None else valid.gather(1, index)).float()
        return weight / weight.mean(1, keepdim=True)

    def uniform(self, rows: Int[Tensor, " B"], count: int) -> Int[Tensor, "B K"]:
        """``count`` distinct cells of each row, uniformly at random; masked ones last."""
        return uniform_draw(rows, self.pool.cells, count, self.generator, self.valid_in(rows))

    # ---- state ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The state from which a run resumes exactly."""
        tensors = {name: getattr(self, name) for name in self.state}
        return {"name": self.config.name, "version": 2, "generator": self.generator.get_state(), **tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned; InputError for the state of another strategy, version or pool.

        Generator states are specific to a type of device; on another type the generator is seeded with a hash of it.
        """
        if (state.get("name"), state.get("version")) != (self.config.name, 2):
            got = f"{state.get('name')} version {state.get('version')}"
            raise InputError("selector state", got, f"{self.config.name} version 2")
        for name in self.state:
            setattr(self, name, self.restored(name, state, getattr(self, name).shape))
        saved = state["generator"].cpu()
        if saved.shape == self.generator.get_state().shape:
            self.generator.set_state(saved)
        else:
            digest = hashlib.sha256(saved.numpy().tobytes()).digest()
            self.generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def restored(self, name: str, state: dict[str, Any], shape: Sequence[int]) -> Tensor:
        """A copy of the saved tensor ``name``, which must have ``shape``."""
        saved = state.get(name)
        if saved is None or saved.shape != shape:
            got = None if saved is None else tuple(saved.shape)
            raise InputError(f"selector state {name}", got, str(tuple(shape)))
        return saved.to(self.device, copy=True)
