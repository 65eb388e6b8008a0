"""Caches of signed residuals, one map per row, from which fitness is computed."""

from abc import ABC, abstractmethod
from math import prod
from typing import Any, ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from evos.errors import InputError
from evos.fitness import mean_square
from evos.selection.base import ConfigT, Pool, Selection, Selector

TINY = torch.finfo(torch.float32).tiny
"""The least error that is told from none."""
LARGEST = 1e6
"""Cached residuals are clamped to ± this, in [0, 1] units: fitness summed over ten million cells stays finite."""

Errors: TypeAlias = tuple[Float[Tensor, "B P C"], Float[Tensor, "B P"]]
"""Residual of every cell, and its square averaged over channels."""


class Cache(ABC):
    """What is known of the residual of each cell, as ``maps`` of the pool.

    Residuals that are not finite are ignored: the cell keeps its value. So are those of masked cells, which read 0 like
    cells outside the grid. All others are clamped to ±1e6.
    """

    maps: ClassVar[tuple[str, ...]]
    """Names of the tensors, "R P" or "R P C"; those that are None are allocated at the first write, which determines
    C."""

    has_signs: ClassVar[bool] = True
    """Whether residuals are kept with their signs and channels, or only their size."""

    def __init__(self, pool: Pool, device: torch.device) -> None:
        self.pool, self.device = pool, device
        self.valid = None if pool.mask is None else pool.mask.to(device)

    @abstractmethod
    def write(self, selection: Selection, residual: Float[Tensor, "B K C"]) -> None:
        """Take the residuals of the selected cells."""

    @abstractmethod
    def errors(self, rows: Int[Tensor, " B"]) -> Errors:
        """Residual of every cell, 0 at unseen ones, and its square averaged over channels."""

    def read(self, rows: Int[Tensor, " B"]) -> Float[Tensor, "B P C"]:
        """Residual of every cell, 0 at unseen ones."""
        return self.errors(rows)[0]

    def mean_square(self, rows: Int[Tensor, " B"]) -> Float[Tensor, "B P"]:
        """Squared residuals averaged over channels."""
        return self.errors(rows)[1]

    def accepted(
        self, selection: Selection, residual: Float[Tensor, "B K C"]
    ) -> tuple[Float[Tensor, "B K C"], Bool[Tensor, "B K"]]:
        """Clamped residuals in single precision, and which of them may be written."""
        residual = residual.detach().float()
        return residual.clamp(-LARGEST, LARGEST), self.writable(selection, residual.abs().amax(-1))

    def writable(self, selection: Selection, error: Float[Tensor, "B K"]) -> Bool[Tensor, "B K"]:
        """Which of the selected cells may be written: those of finite error that are not masked."""
        finite = error < torch.inf  # false for nan, too
        if self.valid is None:
            return finite
        valid = self.valid[selection.rows]
        return finite & (valid if selection.index is None else valid.gather(1, selection.index))

    def forget(self, rows: Int[Tensor, " B"]) -> None:
        """Reset some rows, which hold another signal from now on."""
        for values in self.state_dict().values():
            if values is not None:
                values[rows] = 0

    def forget_masked(self) -> None:
        """Reset masked cells, which a restored cache may know from a time when they were not."""
        for values in self.state_dict().values():
            if values is not None and self.valid is not None:
                values[~self.valid] = 0

    def state_dict(self) -> dict[str, Tensor | None]:
        """The maps themselves, by name."""
        return {name: getattr(self, name) for name in self.maps}


class ResidualCache(Cache):
    """The last residual of each cell, and which cells were seen."""

    maps = ("residual", "seen")

    def __init__(self, pool: Pool, device: torch.device) -> None:
        super().__init__(pool, device)
        self.residual: Float[Tensor, "R P C"] | None = None
        self.seen: Bool[Tensor, "R P"] = torch.zeros(pool.rows, pool.cells, dtype=torch.bool, device=device)

    def write(self, selection: Selection, residual: Float[Tensor, "B K C"]) -> None:
        """Overwrite the residuals of the selected cells; a cell selected twice keeps one of its new residuals."""
        residual, taken = self.accepted(selection, residual)
        if self.residual is None:
            self.residual = residual.new_zeros(self.pool.rows, self.pool.cells, residual.shape[-1])
        rows, index = selection.rows, selection.index
        cells = rows if index is None else (repeat(rows, "b -> b k", k=index.shape[1]), index)
        self.residual[cells] = torch.where(taken[..., None], residual, self.residual[cells])
        self.seen[cells] |= taken

    def read(self, rows: Int[Tensor, " B"]) -> Float[Tensor, "B P C"]:
        """Residual maps of some rows, zero at unseen cells; a view, not a copy, where the pool has one row."""
        if self.residual is None:
            return torch.zeros(len(rows), self.pool.cells, 1, device=self.device)
        return self.residual if self.pool.rows == 1 else self.residual[rows]

    def errors(self, rows: Int[Tensor, " B"]) -> Errors:
        """Residual of every cell, and its square averaged over channels."""
        residual = self.read(rows)
        return residual, mean_square(residual)


class ErrorCache(Cache):
    """The last error of each cell, the root of the residual's square averaged over channels; 0 at unseen cells.

    For strategies that need neither sign nor channels: less to write in each step, and less to read.
    """

    maps = ("error",)
    has_signs = False

    def __init__(self, pool: Pool, device: torch.device) -> None:
        super().__init__(pool, device)
        self.error: Float[Tensor, "R P"] = torch.zeros(pool.rows, pool.cells, device=device)

    def write(self, selection: Selection, residual: Float[Tensor, "B K C"]) -> None:
        """Overwrite the errors of the selected cells; a cell selected twice keeps one of its new errors."""
        error = mean_square(residual.detach().float()).sqrt()
        taken = self.writable(selection, error)
        rows, index = selection.rows, selection.index
        cells = rows if index is None else (rows[:, None], index)
        # A seen cell's error is above 0.
        self.error[cells] = torch.where(taken, error.clamp(TINY, LARGEST), self.error[cells])

    def read_error(self, rows: Int[Tensor, " B"]) -> Float[Tensor, "B P"]:
        """Error of every cell of some rows, 0 at unseen ones; a view, not a copy, where the pool has one row."""
        return self.error if self.pool.rows == 1 else self.error[rows]

    def errors(self, rows: Int[Tensor, " B"]) -> Errors:
        """Size of the residual, in place of its channels, and its square."""
        error = self.read_error(rows)
        return error[..., None], error.square()


class RunningCache(Cache):
    """Running means of the residual and of its square, for cells that contain several points, such as tiles.

    Each visit has ``momentum`` times the weight of the next; visits written together have the same. Estimates are
    smoothed over a pyramid of levels: that of a cell is the mean over its own visits and ``pooling`` pseudo-visits with
    the estimate of the 2 × 2 block around it, which is formed from the next coarser level in the same way, up to the
    mean of the row. Small cells can therefore be ranked from the first step on, coarsely at first, and by their own
    errors as visits accumulate.
    """

    maps = ("sums", "visits")

    def __init__(self, pool: Pool, device: torch.device, momentum: float, pooling: float) -> None:
        super().__init__(pool, device)
        self.momentum, self.pooling = momentum, pooling
        # Weighted by age: sums of residuals, of their mean squares and of ones (visits): S = C + 2, in one tensor.
        # Every residual taken is a visit, also a cell's second one in a step. These do not age: at a momentum of 0.7,
        # aged ones would stay below 3.4 in a cell that is drawn once between two writes.
        self.visits: Int[Tensor, "R P"] = torch.zeros(pool.rows, pool.cells, dtype=torch.int32, device=device)
        self.sums: Float[Tensor, "R P S"] | None = None

    def write(self, selection: Selection, residual: Float[Tensor, "B K C"]) -> None:
        """Decay the sums of the selected cells and add their residuals; a cell selected twice adds both."""
        residual, taken = self.accepted(selection, residual)
        rows, cells = self.pool.rows, self.pool.cells
        if self.sums is None:
            self.sums = residual.new_zeros(rows, cells, residual.shape[-1] + 2)
        index = torch.arange(cells, device=self.device)[None] if selection.index is None else selection.index
        place, taken = (selection.rows[:, None] * cells + index).flatten(), taken.flatten()
        visit = torch.cat([residual, mean_square(residual)[..., None], torch.ones_like(residual[..., :1])], dim=-1)
        visit = torch.where(taken[:, None], visit.flatten(0, 1), 0.0)
        flat = self.sums.view(rows * cells, -1)
        flat[place] = self.momentum * flat[place]
        flat.index_add_(0, place, visit)
        self.visits.view(-1).index_add_(0, place, taken.int())

    def errors(self, rows: Int[Tensor, " B"]) -> Errors:
        """Smoothed mean residual and mean squared residual of each cell, in one pass."""
        if self.sums is None:
            nothing = torch.zeros(len(rows), self.pool.cells, 1, device=self.device)
            return nothing, nothing[..., 0]
        means = self.means(self.sums[rows])
        return means[..., :-1], means[..., -1]

    def means(self, sums: Float[Tensor, "B P S"]) -> Float[Tensor, "B P E"]:
        """Smoothed means of all summed quantities but the visits (E = S - 1)."""
        shape, axes = self.pool.shape, self.pool.grid_axes
        grids = (prod(shape[:-axes]), *([1] * (2 - axes)), *shape[-axes:])
        maps = rearrange(sums, "b p s -> b s p").unflatten(-1, grids)
        found = pooled_means(maps, self.pooling)
        return rearrange(found.flatten(2), "b e p -> b p e")


def pooled_means(sums: Float[Tensor, "B S G *N"], strength: float) -> Float[Tensor, "B E G *N"]:
    """Means, i.e. sums over visits (the last channel), each smoothed by ``strength`` pseudo-visits at its block's mean.

    N: the two or three axes along which cells are neighbours; G independent grids; E = S - 1. Blocks are two cells wide
    along each axis, then two blocks wide, until one is left, which is smoothed towards the mean over all grids. 0 where
    nothing was seen.
    """
    pool = F.avg_pool3d if sums.ndim == 6 else F.avg_pool2d
    total, count = split_visits(reduce(sums, "b s ... -> b s", "sum"))
    levels = [rearrange(sums, "b s g ... -> (b g) s ...")]
    while max(levels[-1].shape[2:]) > 1:
        width = [min(2, size) for size in levels[-1].shape[2:]]
        levels.append(pool(levels[-1], width, ceil_mode=True, divisor_override=1))
    mean = repeat(total / count.clamp(min=1e-12), "b e -> (b g) e", g=sums.shape[2])
    mean = mean.reshape(*mean.shape, *[1] * (sums.ndim - 3))
    for level in reversed(levels):
        total, count = split_visits(level)
        mean = F.interpolate(mean, scale_factor=2)
        for axis, size in enumerate(level.shape[2:], 2):
            mean = mean.narrow(axis, 0, size)
        mean = torch.add(total, mean, alpha=strength) / (count + strength)
    return rearrange(mean, "(b g) e ... -> b e g ...", b=len(sums))


def split_visits(sums: Float[Tensor, "B S *M"]) -> tuple[Float[Tensor, "B E *M"], Float[Tensor, "B 1 *M"]]:
    """The sums without the last channel, and the last channel, the visits."""
    return sums[:, :-1], sums[:, -1:]


class CachingSelector(Selector[ConfigT]):
    """A selector whose state includes a cache of residuals."""

    cache: Cache

    def __init__(self, config: ConfigT, pool: Pool, **kwargs: Any) -> None:
        super().__init__(config, pool, **kwargs)
        self.cache = self.make_cache()

    def make_cache(self) -> Cache:
        """An empty cache; by default of last residuals."""
        return ResidualCache(self.pool, self.device)

    def forget(self, rows: Int[Tensor, " B"]) -> None:
        """Reset the cache of some rows."""
        self.cache.forget(rows)

    def state_dict(self) -> dict[str, Any]:
        """The selector's state with its cache."""
        return {**super().state_dict(), **self.cache.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the selector and its cache."""
        super().load_state_dict(state)
        shape = (self.pool.rows, self.pool.cells)
        for name in self.cache.maps:
            if name not in state:
                raise InputError(f"selector state {name}", "nothing", "what this version saved")
            saved = state[name]
            channels = saved.shape[2:] if saved is not None else ()
            setattr(self.cache, name, None if saved is None else self.restored(name, state, (*shape, *channels)))
        self.cache.forget_masked()
