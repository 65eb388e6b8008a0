"""Soft mining (arXiv 2312.00075): points follow the error by Langevin Monte Carlo, with importance weights."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from evos.config import check_range
from evos.errors import InputError
from evos.fitness import mean_square
from evos.selection.base import Evaluate, Feedback, Pool, Selection, SelectorConfig
from evos.selection.cache import CachingSelector, ResidualCache
from evos.selection.draws import widest_float
from evos.selection.edges import gradient_magnitude


def cumulative(odds: Shaped[Tensor, "R P"]) -> Float[Tensor, "R P"]:
    """Cumulative distribution of each row's cells, in float64 where the device has it: there may be millions."""
    odds = odds.to(widest_float(odds.device)).cumsum(1)
    return odds / odds[:, -1:]


@dataclass(frozen=True)
class SoftConfig(SelectorConfig):
    """Options of soft mining; the defaults are those EVOS compares with."""

    name: ClassVar[str] = "soft"

    alpha: float = 0.6
    """Softness in [0, 1]: the loss is divided by error^alpha; 0 trains on the biased sample, 1 corrects it fully."""

    correction_warmup: float = 0.2
    """Fraction of training over which the exponent rises towards 1, capped at alpha; in (0, 1] (1,000 of 5,000
    steps)."""

    step_size: float = 20.0
    """Length a of the walk along the gradient of the log error, at least 0."""

    noise: float = 0.02
    """Standard deviation b of the walk's noise, in units of the whole signal's extent, at least 0."""

    uniform_ratio: float = 0.1
    """Fraction of the points redrawn uniformly in every step, in [0, 1]."""

    restart_ratio: float = 0.1
    """Fraction of the points, those of least error, restarted at the target's edges in every step, in [0, 1]."""

    pixel_gradient: bool = False
    """Walk along the gradient per cell in place of that per unit of a coordinate in [-1, 1], as the "raw" form in the
    code of EVOS does: steps are shorter by half the number of cells along an axis."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("alpha", self.alpha, 0, 1)
        check_range("correction_warmup", self.correction_warmup, 0, 1, open_low=True)
        check_range("step_size", self.step_size, 0)
        check_range("noise", self.noise, 0)
        check_range("uniform_ratio", self.uniform_ratio, 0, 1)
        check_range("restart_ratio", self.restart_ratio, 0, 1)
        if self.keep_schedule != "constant":
            raise InputError("keep_schedule", self.keep_schedule, "constant (the walking points are a fixed set)")


class SoftSelector(CachingSelector[SoftConfig]):
    """A fixed set of points that walk over the signal: x <- x + a ∇log error + b η.

    They are rounded to cells and may coincide. Points that leave the signal (a masked cell is outside) and those of
    least error, restart at cells drawn in proportion to the target's edges. With weights, a move to a cell of lower
    weight is accepted with the ratio of the two. The loss of a point is multiplied by 1 / error^r, bounded to [0.2,
    mean + standard deviation], where r rises to ``alpha``.
    """

    needs = frozenset({"target", "coord_grad"})
    state = ("points", "log_error_grad", "error", "observed")
    cache: ResidualCache

    def __init__(self, config: SoftConfig, pool: Pool, *, target: Float[Tensor, "R P C"], **kwargs: Any) -> None:
        super().__init__(config, pool, **kwargs)
        axes = len(pool.shape)
        self.last_cell = torch.tensor([size - 1.0 for size in pool.shape], device=self.device)
        self.extent = self.last_cell.clamp(min=1)
        self.sizes = torch.tensor(pool.shape, device=self.device)
        self.strides = torch.tensor([torch.Size(pool.shape[d + 1 :]).numel() for d in range(axes)], device=self.device)
        self.odds = self.valid if self.weight is None else self.weight
        edges = gradient_magnitude(target.to(self.device), pool).clamp(min=1e-5)
        self.edge_cdf = cumulative(edges if self.odds is None else edges * self.odds)
        self.uniform_cdf = None if self.odds is None else cumulative(self.odds)
        self.set_points(self.keep_count(1))

    def set_points(self, count: int) -> None:
        """``count`` fresh points a row."""
        self.count = count
        # The last points of the set are drawn anew in every step: which ones does not matter, the walk has no order.
        walking = count - int(self.config.uniform_ratio * count)
        self.walks: Bool[Tensor, " K"] = torch.arange(count, device=self.device) < walking
        self.points: Float[Tensor, "R K D"] = self.uniform_points(self.all_rows)
        self.log_error_grad: Float[Tensor, "R K D"] = torch.zeros_like(self.points)
        self.error: Float[Tensor, "R K"] = torch.zeros(self.pool.rows, count, device=self.device)
        self.observed: Bool[Tensor, " R"] = torch.zeros(self.pool.rows, dtype=torch.bool, device=self.device)

    def rand(self, *shape: int) -> Float[Tensor, "..."]:
        """Uniform numbers in [0, 1) from this selector's generator."""
        return torch.rand(*shape, generator=self.generator, device=self.device)

    def uniform_points(self, rows: Int[Tensor, " B"]) -> Float[Tensor, "B K D"]:
        """Points at cells drawn uniformly; where there is a mask, or weights, in proportion to these."""
        if self.uniform_cdf is not None:
            return self.points_by(self.uniform_cdf[rows])
        return (self.rand(len(rows), self.count, len(self.strides)) * self.sizes).floor() / self.extent

    def edge_points(self, rows: Int[Tensor, " B"]) -> Float[Tensor, "B K D"]:
        """Points at cells drawn in proportion to the target's gradient, times their weights."""
        return self.points_by(self.edge_cdf[rows])

    def points_by(self, cdf: Float[Tensor, "B P"]) -> Float[Tensor, "B K D"]:
        """Points at cells drawn by a cumulative distribution."""
        uniform = self.rand(len(cdf), self.count).to(cdf.dtype)
        cells = torch.searchsorted(cdf, uniform, right=True)  # below P, as the last entry of each row is exactly 1
        return (cells[..., None] // self.strides % self.sizes) / self.extent

    def nearest_cells(self, points: Float[Tensor, "B K D"]) -> Int[Tensor, "B K"]:
        """The cell that each point lies in."""
        return ((points * self.last_cell).round().long() * self.strides).sum(-1)

    def walk(self, rows: Int[Tensor, " B"]) -> Float[Tensor, "B K D"]:
        """One Langevin step of the points of ``rows``."""
        config, points = self.config, self.points[rows]
        noise = torch.randn(len(rows), self.count, len(self.strides), generator=self.generator, device=self.device)
        moved = points + config.step_size * self.log_error_grad[rows] + config.noise * noise
        error = self.error[rows]
        least = error.kthvalue(max(1, int(config.restart_ratio * self.count)), dim=1, keepdim=True).values
        outside = (moved != moved.clamp(0, 1)).any(-1)  # true of a position that is not finite, too
        if self.odds is not None:
            # Metropolis' rule: with equal errors a cell of half the points gets half the draws.
            before = self.odds[rows[:, None], self.nearest_cells(points)]
            after = self.odds[rows[:, None], self.nearest_cells(moved.nan_to_num().clamp(0, 1))]
            accepted = after > self.rand(len(rows), self.count) * before
            moved = torch.where(accepted[..., None], moved, points)
            outside |= after == 0
        restart = outside | (error <= least) if config.restart_ratio > 0 else outside
        moved = torch.where(self.walks[:, None], moved, self.uniform_points(rows))
        moved = torch.where((restart & self.walks)[..., None], self.edge_points(rows), moved)
        # Points without an observed error stay in place.
        return torch.where(self.observed[rows, None, None], moved, points)

    def select(
        self,
        step: int,
        rows: Int[Tensor, " B"] | None = None,
        *,
        count: int | None = None,
        evaluate: Evaluate | None = None,
    ) -> Selection:
        """As for all selectors, but ``count`` sets the number of walking points, in place of keep_ratio."""
        if count is not None and count != self.count:
            if bool(self.observed.any()):
                raise InputError("selector", "soft", f"a number of points a step that stays {self.count}, not {count}")
            self.set_points(count)
        return super().select(step, rows, evaluate=evaluate)

    def choose(self, step: int, rows: Int[Tensor, " B"] | None, evaluate: Evaluate | None) -> Selection:
        """The cells nearest to the walking points, after a step of the walk; ``weigh`` adds the importance weights."""
        rows = self.all_rows if rows is None else rows
        points = self.walk(rows) if step > 1 else self.points[rows]
        self.points[rows] = points
        return Selection(rows, self.nearest_cells(points), step=step)

    def weigh(self, selection: Selection, residual: Float[Tensor, "B K C"]) -> Selection:
        """Importance correction 1 / error^r by the L1 error of [-1, 1] targets; r rises with the step up to alpha."""
        exponent = min(selection.step / (self.config.correction_warmup * self.total_steps), self.config.alpha)
        error = 2 * residual.abs().mean(-1)
        weight = error.clamp(min=torch.finfo(torch.float16).eps).pow(-exponent)
        # Bounds are per row, so that a batch of rows equals its rows one by one.
        bound = weight.mean(1, keepdim=True) + weight.std(1, keepdim=True, correction=0)
        return replace(selection, weight=weight.clamp(min=0.2).minimum(bound))

    def observe(self, selection: Selection, feedback: Feedback) -> None:
        """Take the gradient of the log error from the loss's gradient with respect to the points' coordinates.

        Without one (rays, fields that are not differentiable in space) it is the central difference of the last
        errors seen.
        """
        self.cache.write(selection, feedback.residual)
        error, grad = mean_square(feedback.residual.float()), feedback.coord_grad
        if grad is None:
            log_error_grad = self.cached_gradient(selection) / self.count
        else:
            # The loss is the mean of weight · (2 residual)²: dividing leaves ∇ log error / K, as in the released code.
            weight = 1.0 if selection.weight is None else selection.weight
            log_error_grad = len(selection.rows) / 4 * grad / (weight * error + 2.5e-13)[..., None]
        if self.config.pixel_gradient:
            log_error_grad = 2 * log_error_grad / self.sizes
        self.log_error_grad[selection.rows] = log_error_grad.float()
        self.error[selection.rows] = error
        self.observed[selection.rows] = True

    def forget(self, rows: Int[Tensor, " B"]) -> None:
        """Restart the points of ``rows`` uniformly. Restarts at edges still use the target given at construction."""
        super().forget(rows)
        self.points[rows] = self.uniform_points(rows)
        self.log_error_grad[rows], self.error[rows], self.observed[rows] = 0, 0, False

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As for all selectors; the number of points is that of the saved state."""
        saved = state.get("error")
        if isinstance(saved, Tensor) and saved.ndim == 2 and saved.shape[1] != self.count:
            self.set_points(saved.shape[1])
        super().load_state_dict(state)

    def cached_gradient(self, selection: Selection) -> Float[Tensor, "B K D"]:
        """Central difference of the cached log error at the points, per unit of a coordinate in [-1, 1].

        A neighbour that does not exist or was never seen counts as equal to the point itself.
        """
        assert selection.index is not None
        log_error = self.cache.read(selection.rows).square().mean(-1).clamp(min=1e-8).log()
        seen = self.cache.seen[selection.rows]
        base = selection.index[..., None]
        place = base // self.strides % self.sizes

        def neighbours(shift: Int[Tensor, "B K D"]) -> Float[Tensor, "B K D"]:
            cells = (base + shift).flatten(1)
            cells = torch.where(seen.gather(1, cells), cells, base.expand_as(shift).flatten(1))
            return log_error.gather(1, cells).view(shift.shape)

        ahead, behind = self.strides * (place < self.sizes - 1), self.strides * (place > 0)
        return (neighbours(ahead) - neighbours(-behind)) * self.last_cell / 4
