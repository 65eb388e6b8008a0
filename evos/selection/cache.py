"""The cache of signed residuals, one map a row: all the state that fitness needs."""

from typing import Any

import torch
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from evos.selection.base import ConfigT, Pool, Selection, Selector


class ResidualCache:
    """The residual at every cell, and which cells were seen; allocated at the first write, which tells C.

    With ``momentum`` (in [0, 1)) a cell seen again keeps that share of its old estimate. That is for cells that stand
    for several points, such as tiles of pixels; signed residuals average out, so ``power`` keeps the mean square.
    """

    def __init__(self, pool: Pool, device: torch.device, momentum: float = 0.0) -> None:
        self.pool, self.device, self.momentum = pool, device, momentum
        self.power: Float[Tensor, "R P"] | None = None
        self.residual: Float[Tensor, "R P C"] | None = None
        self.seen: Bool[Tensor, "R P"] = torch.zeros(pool.rows, pool.cells, dtype=torch.bool, device=device)

    def write(self, selection: Selection, residual: Float[Tensor, "B K C"]) -> None:
        """Renew the residuals of the selected cells; of a cell drawn twice, one of its new residuals counts."""
        residual = residual.detach().float()
        if self.residual is None:
            self.residual = residual.new_zeros(self.pool.rows, self.pool.cells, residual.shape[-1])
            if self.momentum > 0:
                self.power = residual.new_zeros(self.pool.rows, self.pool.cells)
        if selection.index is None:
            cells = (selection.rows,)
        else:
            cells = (repeat(selection.rows, "b -> b k", k=selection.index.shape[1]), selection.index)
        if self.power is not None:
            kept = self.momentum * self.seen[cells]
            power = residual.square().mean(-1)
            self.power[cells] = power + kept * (self.power[cells] - power)
            residual = residual + kept[..., None] * (self.residual[cells] - residual)
        self.residual[cells] = residual
        self.seen[cells] = True

    def read(self, rows: Int[Tensor, " B"]) -> Float[Tensor, "B P C"]:
        """Residual maps of some rows, zero where nothing was seen; a view, not a copy, where the pool has one row."""
        if self.residual is None:
            return torch.zeros(len(rows), self.pool.cells, 1, device=self.device)
        return self.residual if self.pool.rows == 1 else self.residual[rows]


class CachingSelector(Selector[ConfigT]):
    """A selector whose state includes a residual cache."""

    def __init__(self, config: ConfigT, pool: Pool, **kwargs: Any) -> None:
        super().__init__(config, pool, **kwargs)
        self.cache = ResidualCache(pool, self.device, getattr(config, "cache_momentum", 0.0))

    def state_dict(self) -> dict[str, Any]:
        """The selector's state with its cache."""
        return {
            **super().state_dict(),
            "residual": self.cache.residual,
            "power": self.cache.power,
            "seen": self.cache.seen,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the selector and its cache."""
        super().load_state_dict(state)
        self.cache.seen = self.restored("seen", state, self.cache.seen.shape)
        residual = state["residual"]
        shape = (*self.cache.seen.shape, 0 if residual is None else residual.shape[-1])
        self.cache.residual = None if residual is None else self.restored("residual", state, shape)
        power = state["power"]
        self.cache.power = None if power is None else self.restored("power", state, self.cache.seen.shape)
