"""Strategies that use the target's edges as a prior: EGRA and expansive supervision."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from evos.config import check_range
from evos.selection.base import Evaluate, Pool, Selection, Selector, SelectorConfig
from evos.selection.draws import weighted_draw
from evos.selection.edges import canny_edges, gradient_magnitude


@dataclass(frozen=True)
class EgraConfig(SelectorConfig):
    """EGRA-NeRF, edge-guided ray allocation, as EVOS compares with it."""

    name: ClassVar[str] = "egra"

    edge_odds: float = 0.0025
    """Extra probability p of a cell at an edge, in [0, 1]; every cell has (1 - p) × base_odds."""

    base_odds: float = 0.0064
    """Probability of a cell anywhere, above 0 (the paper's 4,096 rays of an 800×800 view)."""

    radius_low: int = 6
    """Smallest shift of an edge cell along the scan line, in cells."""

    radius_high: int = 9
    """Largest shift of an edge cell along the scan line, in cells."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("edge_odds", self.edge_odds, 0, 1)
        check_range("base_odds", self.base_odds, 0, 1, open_low=True)
        check_range("radius_low", self.radius_low, 0)
        check_range("radius_high", self.radius_high, self.radius_low)


class EgraSelector(Selector[EgraConfig]):
    """Draws cells without replacement, with higher odds near Canny edges (thresholds 30 and 40 of 255).

    Each edge cell is shifted anew at every step by a random number of cells, so that its neighbourhood is covered.
    """

    needs = frozenset({"target"})

    def __init__(self, config: EgraConfig, pool: Pool, *, target: Float[Tensor, "R P C"], **kwargs: Any) -> None:
        super().__init__(config, pool, **kwargs)
        self.edges = canny_edges(target.to(self.device), pool, 30 / 255, 40 / 255)

    def choose(self, step: int, rows: Int[Tensor, " B"] | None, evaluate: Evaluate | None) -> Selection:
        """``keep_ratio`` of the cells, drawn with the odds of the shifted edge map."""
        rows = self.all_rows if rows is None else rows
        edges, cells, config = self.edges[rows], self.pool.cells, self.config
        shift = torch.randint(
            config.radius_low, config.radius_high + 1, edges.shape, generator=self.generator, device=self.device
        )
        moved = (torch.arange(cells, device=self.device) + shift) % cells
        near = torch.zeros_like(edges).scatter_reduce(1, moved, edges, "amax")
        odds = config.edge_odds * near + (1 - config.edge_odds) * config.base_odds
        # With edge_odds 1 cells off the edges have no odds; tiny ones keep them ahead of masked cells.
        odds = odds.clamp(min=torch.finfo(odds.dtype).tiny)
        if self.valid is not None:
            odds = odds.masked_fill(~self.valid[rows], -1.0)
        return self.selection(rows, weighted_draw(odds, self.keep_count(step), self.generator), step)


@dataclass(frozen=True)
class ExpansiveConfig(SelectorConfig):
    """Expansive supervision (arXiv 2409.08056)."""

    name: ClassVar[str] = "expansive"

    anchor_ratio: float = 0.5
    """Fraction of the initially kept cells that are anchors: the target's strongest edges, in every step; in [0, 1]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("anchor_ratio", self.anchor_ratio, 0, 1)


class ExpansiveSelector(Selector[ExpansiveConfig]):
    """A fixed anchor set on the target's edges, and a uniform sample of the other cells.

    The paper searches Canny thresholds until edges cover about the wanted fraction, dilates them, and drops the surplus
    at random. Here edges are ranked by gradient magnitude after a 2×2 dilation and cut at exactly that fraction: no
    search, the same count on every signal.
    """

    needs = frozenset({"target"})
    state = ("anchors",)

    def __init__(self, config: ExpansiveConfig, pool: Pool, *, target: Float[Tensor, "R P C"], **kwargs: Any) -> None:
        super().__init__(config, pool, **kwargs)
        strength = gradient_magnitude(target.to(self.device), pool).unflatten(-1, pool.shape)
        for axis in range(1, pool.grid_axes + 1):
            # F.pad counts axes from the last, and a negative pad crops.
            strength = torch.maximum(strength, F.pad(strength, (0, 0) * (axis - 1) + (1, -1)))
        # Flat regions tie at zero: break ties at random, or the anchors would fill from the first line down.
        jitter = torch.rand(pool.rows, pool.cells, generator=self.generator, device=self.device)
        strength = strength.flatten(1) + 1e-6 * jitter
        if self.valid is not None:
            strength = strength.masked_fill(~self.valid, -1.0)
        count = min(int(config.anchor_ratio * config.keep_ratio * self.usable_cells + 1e-6), self.fewest_usable)
        self.anchors: Int[Tensor, "R A"] = strength.topk(count, dim=1).indices

    def choose(self, step: int, rows: Int[Tensor, " B"] | None, evaluate: Evaluate | None) -> Selection:
        """The anchors, and a uniform sample of the other cells."""
        rows = self.all_rows if rows is None else rows
        keep, anchors = self.keep_count(step), self.anchors[rows]
        anchors = anchors[:, :keep]
        odds = torch.ones(len(rows), self.pool.cells, device=self.device)
        if self.valid is not None:
            odds = odds.masked_fill(~self.valid[rows], -1.0)  # they may pad rows with few usable cells, anchors never
        others = weighted_draw(odds.scatter(1, anchors, -1e30), keep - anchors.shape[1], self.generator)
        return self.selection(rows, torch.cat((anchors, others), dim=1), step)
