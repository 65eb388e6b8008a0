"""Outliers: cells whose error is not reducible, as far as their errors alone can tell.

What can never be learned (somebody who walked through the picture, a wrong exposure) stays wrong and would be fittest
for ever. As in robust statistics the largest errors are trimmed: those of the cells that were tried often enough.
RobustNeRF (Sabour et al. 2023) does it in the loss. Pure functions with static shapes that do not wait for the host.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

TRIMMED_FITNESS = 1e-3
"""What the fitness of a trimmed cell is multiplied by: the order among the trimmed stays, behind all cells of note."""


def far_above(
    error: Float[Tensor, "B P"], count: int, threshold: float, eligible: Bool[Tensor, "B P"]
) -> Bool[Tensor, "B P"]:
    """Which ``eligible`` cells have an error above ``threshold`` times the median of the ``count`` largest.

    Errors are at least 0. The median stays where it is while fewer than half of those ``count`` cells are outliers, and
    cells without an error (an empty background) do not move it. Errors of one kind have few cells far above it, so few
    are trimmed.
    """
    median = error.topk((count + 1) // 2, dim=1).values[:, -1:]
    return eligible & (error > threshold * median)


def trimmed(fitness: Float[Tensor, "B P"], outliers: Bool[Tensor, "B P"]) -> Float[Tensor, "B P"]:
    """``fitness`` with next to nothing left of it where there are ``outliers``."""
    return torch.where(outliers, TRIMMED_FITNESS * fitness, fitness)
