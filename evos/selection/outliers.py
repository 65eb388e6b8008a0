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


def largest_errors(error: Float[Tensor, "B P"], eligible: Bool[Tensor, "B P"], count: int) -> Bool[Tensor, "B P"]:
    """The ``count`` largest errors (at least 0) of each row's ``eligible`` cells; all of them where there are fewer."""
    largest = torch.where(eligible, error, -1.0).topk(min(count, error.shape[1]), dim=1, sorted=False).indices
    return torch.zeros_like(eligible).scatter_(1, largest, True) & eligible


def trimmed(fitness: Float[Tensor, "B P"], outliers: Bool[Tensor, "B P"]) -> Float[Tensor, "B P"]:
    """``fitness`` with next to nothing left of it where there are ``outliers``."""
    return torch.where(outliers, TRIMMED_FITNESS * fitness, fitness)
