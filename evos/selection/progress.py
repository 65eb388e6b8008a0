"""How fast errors still fall: the exponent of a learning curve.

The error of a neural field falls roughly as a power of the step, error ~ step^-a, with a falling to 0 where nothing is
learned any more. The exponent a is the slope of the line through log error over log step, fitted by least squares with
weights (step of the point / step of the last point)²: what happened in about the second half of the steps so far
counts, whatever their number. The sums of the fit are all that is kept. Pure functions with static shapes that do not
wait for the host.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SUMS = 6
"""Numbers kept of each curve (S): log step of its last point, and the weighted sums of 1, x, y, x² and xy with x = log
step and y = log error."""

LEAST_WEIGHT = 3.0
"""Sum of the weights from which on the exponent is known: that of nine points at equal distances."""


def empty_curves(rows: int, device: torch.device) -> Float[Tensor, "R S"]:
    """Learning curves without a point."""
    return torch.zeros(rows, SUMS, device=device)


def with_point(curve: Float[Tensor, "B S"], step: int, error: Float[Tensor, "B 1"]) -> Float[Tensor, "B S"]:
    """The curves with one more point each: the ``error`` at ``step``, at least 1.

    Errors that are not finite and above 0 are ignored.
    """
    x, y = math.log(step), error.log()
    point = torch.cat([torch.ones_like(y), torch.full_like(y, x), y, torch.full_like(y, x * x), x * y], dim=1)
    decayed = (2 * (curve[:, :1] - x)).exp() * curve[:, 1:]
    extended = torch.cat([point[:, 1:2], decayed + point], dim=1)
    return torch.where(y.isfinite(), extended, curve)


def learning_exponent(curve: Float[Tensor, "B S"]) -> Float[Tensor, "B 1"]:
    """The exponent a, negative where errors rise; infinite as long as it is not known."""
    _, weight, sum_x, sum_y, sum_xx, sum_xy = curve.split(1, dim=1)
    spread = weight * sum_xx - sum_x.square()
    return torch.where((weight >= LEAST_WEIGHT) & (spread > 0), (sum_x * sum_y - weight * sum_xy) / spread, torch.inf)


def mean_of_two_groups(
    values: Float[Tensor, "B K"], in_first: Bool[Tensor, "B K"], share: Float[Tensor, "B 1"]
) -> Float[Tensor, "B 1"]:
    """Mean over a population of two groups, from draws of both that need not be in proportion (stratified sampling).

    The first group is a ``share`` of the population, in [0, 1]. Values that are not finite are ignored; of draws from
    one group alone it is their mean.
    """
    finite = values.isfinite()
    first, others = in_first & finite, ~in_first & finite
    of_first = share / first.sum(1, keepdim=True).clamp(min=1)
    weight = torch.where(first, of_first, others * (1 - share) / others.sum(1, keepdim=True).clamp(min=1))
    return (weight * torch.where(finite, values, 0.0)).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
