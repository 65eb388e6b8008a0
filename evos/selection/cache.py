"""The cache of signed residuals, one map a row: all the state that fitness needs."""

from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from evos.errors import InputError
from evos.selection.base import ConfigT, Pool, Selection, Selector

Errors: TypeAlias = tuple[Float[Tensor, "B P C"], Float[Tensor, "B P"]]
"""Residual of every cell, and its square averaged over channels."""


class ResidualCache:
    """The last residual at every cell, and which cells were seen; allocated at the first write, which tells C."""

    maps = ("residual",)

    def __init__(self, pool: Pool, device: torch.device) -> None:
        self.pool, self.device = pool, device
        self.residual: Float[Tensor, "R P C"] | None = None
        self.seen: Bool[Tensor, "R P"] = torch.zeros(pool.rows, pool.cells, dtype=torch.bool, device=device)

    def write(self, selection: Selection, residual: Float[Tensor, "B K C"]) -> None:
        """Renew the residuals of the selected cells; of a cell drawn twice, one of its new residuals counts."""
        residual = residual.detach().float()
        if self.residual is None:
            self.residual = residual.new_zeros(self.pool.rows, self.pool.cells, residual.shape[-1])
        if selection.index is None:
            cells = (selection.rows,)
        else:
            cells = (repeat(selection.rows, "b -> b k", k=selection.index.shape[1]), selection.index)
        self.residual[cells] = residual
        self.seen[cells] = True

    def read(self, rows: Int[Tensor, " B"]) -> Float[Tensor, "B P C"]:
        """Residual maps of some rows, zero where nothing was seen; a view, not a copy, where the pool has one row."""
        if self.residual is None:
            return torch.zeros(len(rows), self.pool.cells, 1, device=self.device)
        return self.residual if self.pool.rows == 1 else self.residual[rows]

    def errors(self, rows: Int[Tensor, " B"]) -> Errors:
        """Residual of every cell, and its square averaged over channels."""
        residual = self.read(rows)
        return residual, reduce(residual.square(), "b p c -> b p", "mean")

    def mean_square(self, rows: Int[Tensor, " B"]) -> Float[Tensor, "B P"]:
        """Squared residuals averaged over channels."""
        return self.errors(rows)[1]

    def forget(self, rows: Int[Tensor, " B"]) -> None:
        """Forget what is known of some rows, which are to stand for another signal."""
        for name in (*self.maps, "seen"):
            if (values := getattr(self, name)) is not None:
                values[rows] = 0

    def state_dict(self) -> dict[str, Tensor | None]:
        """The maps, and which cells were seen."""
        return {name: getattr(self, name) for name in (*self.maps, "seen")}


class RunningCache(ResidualCache):
    """Running means of the residual and of its square, for cells that stand for several points, as tiles do.

    Each visit counts ``momentum`` times as much as the next one, visits written together alike. A cell of which little
    is known borrows from its neighbours: its estimate is the mean over its own visits and ``pooling`` visits with the
    estimate of the 2 × 2 block around it, which is made alike from the block of blocks, and so on up to the mean of the
    row. So fine cells are ranked from the first step on: at first like coarse ones, and by their own errors as visits
    come in.
    """

    maps = ("sums",)

    def __init__(self, pool: Pool, device: torch.device, momentum: float, pooling: float) -> None:
        super().__init__(pool, device)
        self.momentum, self.pooling = momentum, pooling
        # By age: sums of residuals, of their mean squares, of ones (the visits): S = C + 2, in one tensor for one pass.
        self.sums: Float[Tensor, "R P S"] | None = None

    def write(self, selection: Selection, residual: Float[Tensor, "B K C"]) -> None:
        """Age what is known of the selected cells and add their residuals, all of them where a cell is drawn twice."""
        residual = residual.detach().float().flatten(0, 1)
        rows, cells = self.pool.rows, self.pool.cells
        if self.sums is None:
            self.sums = residual.new_zeros(rows, cells, residual.shape[-1] + 2)
        index = torch.arange(cells, device=self.device)[None] if selection.index is None else selection.index
        place = (selection.rows[:, None] * cells + index).flatten()
        power = reduce(residual.square(), "n c -> n 1", "mean")
        flat = self.sums.view(rows * cells, -1)
        flat[place] = self.momentum * flat[place]
        flat.index_add_(0, place, torch.cat([residual, power, torch.ones_like(power)], dim=1))
        self.seen.view(-1)[place] = True

    def read(self, rows: Int[Tensor, " B"]) -> Float[Tensor, "B P C"]:
        """Mean residual of every cell, with what it borrows."""
        return super().read(rows) if self.sums is None else self.errors(rows)[0]

    def errors(self, rows: Int[Tensor, " B"]) -> Errors:
        """Mean residual and mean squared residual of every cell, with what they borrow: one pass for both."""
        if self.sums is None:
            return super().errors(rows)
        means = self.means(self.sums[rows])
        return means[..., :-1], means[..., -1]

    def means(self, sums: Float[Tensor, "B P S"]) -> Float[Tensor, "B P E"]:
        """The other sums over the visits (E = S - 1), each cell drawn to its neighbourhood."""
        if self.pooling == 0:
            return sums[..., :-1] / sums[..., -1:].clamp(min=torch.finfo(sums.dtype).tiny)
        shape, axes = self.pool.shape, self.pool.axes
        grid = (*shape[:-axes], *([1] * (2 - axes)), *shape[-axes:])
        maps = rearrange(sums, "b p c -> b c p").unflatten(-1, grid)
        found = pooled_means(maps, self.pooling)
        return rearrange(found.flatten(2), "b c p -> b p c")


def pooled_means(sums: Float[Tensor, "B S *G H W"], strength: float) -> Float[Tensor, "B E *G H W"]:
    """All sums but the last, the visits, over these, each cell drawn to the block around it by ``strength`` visits.

    To the block's mean: blocks are of 2 × 2 cells, then of 2 × 2 blocks, until one is left; it is drawn to the mean of
    all. Nothing seen: 0. E = S - 1.
    """
    total, count = split_visits(reduce(sums, "b c ... -> b c", "sum"))
    levels = [rearrange(sums, "b c ... h w -> (b ...) c h w")]
    while max(levels[-1].shape[-2:]) > 1:
        levels.append(F.avg_pool2d(levels[-1], 2, ceil_mode=True, divisor_override=1))
    grids = len(levels[0]) // len(sums)
    mean = repeat(total / count.clamp(min=1e-12), "b c -> (b g) c 1 1", g=grids)
    for level in reversed(levels):
        total, count = split_visits(level)
        mean = F.interpolate(mean, scale_factor=2)[..., : level.shape[-2], : level.shape[-1]]
        mean = torch.add(total, mean, alpha=strength) / (count + strength)
    return rearrange(mean, "(b g) c h w -> b c g h w", g=grids).reshape(len(sums), -1, *sums.shape[2:])


def split_visits(sums: Float[Tensor, "B S *M"]) -> tuple[Float[Tensor, "B E *M"], Float[Tensor, "B 1 *M"]]:
    """The sums, and the last of them, the visits, apart."""
    return sums[:, :-1], sums[:, -1:]


class CachingSelector(Selector[ConfigT]):
    """A selector whose state includes a residual cache; a running one where its options ask for means."""

    def __init__(self, config: ConfigT, pool: Pool, **kwargs: Any) -> None:
        super().__init__(config, pool, **kwargs)
        momentum, pooling = getattr(config, "cache_momentum", 0.0), getattr(config, "cache_pooling", 0.0)
        running = momentum > 0 or pooling > 0
        self.cache = RunningCache(pool, self.device, momentum, pooling) if running else ResidualCache(pool, self.device)

    def state_dict(self) -> dict[str, Any]:
        """The selector's state with its cache."""
        return {**super().state_dict(), **self.cache.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the selector and its cache."""
        super().load_state_dict(state)
        shape = self.cache.seen.shape
        self.cache.seen = self.restored("seen", state, shape)
        for name in self.cache.maps:
            if name not in state:
                raise InputError(f"selector state {name}", "nothing", "what this version saved")
            saved = state[name]
            channels = saved.shape[2:] if saved is not None else ()
            setattr(self.cache, name, None if saved is None else self.restored(name, state, (*shape, *channels)))
