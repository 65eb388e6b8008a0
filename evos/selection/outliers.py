"""Outliers: cells whose error is not reducible, as far as their errors alone can tell.

What can never be learned (somebody who walked through the picture, a wrong exposure) stays wrong and would be fittest
for ever. As in robust statistics the largest errors are trimmed: those of the cells that were tried often enough, and
those of whole grids (the views of a scene) that are as a whole more wrong than the others. RobustNeRF (Sabour et al.
2023) does it in the loss. Pure functions with static shapes that do not wait for the host.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

TRIMMED_FITNESS = 1e-3
"""What the fitness of a trimmed cell is multiplied by: the order among the trimmed stays, behind all cells of note."""


def largest_errors(error: Float[Tensor, "B P"], eligible: Bool[Tensor, "B P"], count: int) -> Bool[Tensor, "B P"]:
    """The ``count`` largest errors (at least 0) of each row's ``eligible`` cells; all of them where there are fewer."""
    largest = torch.where(eligible, error, -1.0).topk(min(count, error.shape[1]), dim=1, sorted=False).indices
    return torch.zeros_like(eligible).scatter_(1, largest, True) & eligible


def outlying_grids(
    error: Float[Tensor, "B P"], weight: Float[Tensor, "B P"] | None, grids: int, deviations: float
) -> Bool[Tensor, "B P"]:
    """All cells of the grids whose mean error lies far above the median grid's: a wrong pose, another exposure.

    Args:
        error: of each cell; the P cells of a row are ``grids`` grids of the same size, one after the other.
        weight: of each cell in the mean of its grid, 0 for masked ones; None: all the same.
        grids: at least 1.
        deviations: how far: in multiples, at least 0, of 1.4826 times the median absolute deviation of the grids' means
            from their median, which is a standard deviation where they are normally distributed. A median of an even
            number is the lower one of the middle two.

    Returns:
        True for every cell of such a grid. Of one or two grids there is none, nor where half or more are equal.
    """
    maps = error.unflatten(1, (grids, -1))
    share = torch.ones_like(maps) if weight is None else weight.unflatten(1, (grids, -1))
    mean = (maps * share).sum(2) / share.sum(2)  # not a number in a grid that is masked, which then counts for nothing
    above = mean - mean.nanmedian(dim=1, keepdim=True).values
    scale = 1.4826 * above.abs().nanmedian(dim=1, keepdim=True).values
    return ((above > deviations * scale) & (scale > 0)).repeat_interleave(maps.shape[2], dim=1)


def trimmed(fitness: Float[Tensor, "B P"], outliers: Bool[Tensor, "B P"]) -> Float[Tensor, "B P"]:
    """``fitness`` with next to nothing left of it where there are ``outliers``."""
    return torch.where(outliers, TRIMMED_FITNESS * fitness, fitness)
