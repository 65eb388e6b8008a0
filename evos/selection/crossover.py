"""Crossover: from two fitness maps to one order of the population, the fittest first (EVOS, section 3.2).

Pure functions on fitness maps. The first n cells of the order are the survivors. All shapes are static and nothing
leaves the device: the number of cells taken from each parent depends on the data and is applied by comparing ranks.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from evos.selection.draws import Count

Counted = Bool[Tensor, "B P"] | Int[Tensor, "B P"] | None
"""Which cells count, or how many times each does; None: all alike."""


def ranks(order: Int[Tensor, "B P"]) -> Int[Tensor, "B P"]:
    """The inverse of a permutation: the position of each cell in ``order``."""
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def fittest_first(fitness: Float[Tensor, "B P"]) -> Int[Tensor, "B P"]:
    """Cells by descending fitness, ties by index."""
    return fitness.argsort(dim=1, descending=True, stable=True)


def masked_mean(values: Float[Tensor, "B P"], counted: Counted) -> Float[Tensor, "B 1"]:
    """Mean of each row over the counted cells (None = all)."""
    if counted is None:
        return values.mean(1, keepdim=True)
    return (values * counted).sum(1, keepdim=True) / counted.sum(1, keepdim=True).clamp(min=1)


def cross_none(
    low: Float[Tensor, "B P"], high: Float[Tensor, "B P"], n: Count, counted: Counted = None
) -> Int[Tensor, "B P"]:
    """Order by the low-frequency fitness alone."""
    return fittest_first(low)


def cross_add(
    low: Float[Tensor, "B P"], high: Float[Tensor, "B P"], n: Count, counted: Counted = None
) -> Int[Tensor, "B P"]:
    """Order by the sum of the two fitnesses."""
    return fittest_first(low + high)


def cross_select(
    low: Float[Tensor, "B P"], high: Float[Tensor, "B P"], n: Count, counted: Counted = None
) -> Int[Tensor, "B P"]:
    """The paper's crossover, whose first ``n`` cells are the offspring.

    Parents are the ``n`` fittest of each map. The offspring are their intersection; of the places that remain, the
    fraction p = mean low / (mean low + mean high) goes to the fittest found by ``low`` alone, the rest to the fittest
    found by ``high`` alone. All other cells follow by descending ``low``. The means run over the ``counted`` cells.
    """
    low_order, high_order = fittest_first(low), fittest_first(high)
    # From here on, cells are numbered by their rank by ``low``: sums along a row count in that order.
    high_order = ranks(low_order).gather(1, high_order)
    high_rank = ranks(high_order)
    low_parent, high_parent = torch.arange(low.shape[1], device=low.device) < n, high_rank < n
    common = low_parent & high_parent
    only_low, only_high = low_parent ^ common, high_parent ^ common

    # Places take half the memory of indices, of which a large pool has several at once here.
    shared = common.sum(1, keepdim=True, dtype=torch.int32)
    open_places = (n - shared).int()
    mean_low, mean_high = masked_mean(low, counted), masked_mean(high, counted)
    p = mean_low / (mean_low + mean_high).clamp(min=torch.finfo(low.dtype).tiny)
    from_low = (open_places * p).int()

    # Places among the members of a group, and positions in the result, both from 1.
    place_low = only_low.cumsum(1, dtype=torch.int32)
    place_high = only_high.gather(1, high_order).cumsum(1, dtype=torch.int32).gather(1, high_rank)
    taken_low, taken_high = only_low & (place_low <= from_low), only_high & (place_high <= open_places - from_low)

    # Without a third sort: the intersection, those taken from low, those from high, all others.
    rest = ~(common | taken_low | taken_high)
    position = (shared + open_places) + rest.cumsum(1, dtype=torch.int32)
    position = torch.where(taken_high, shared + from_low + place_high, position)
    position = torch.where(taken_low, shared + place_low, position)
    position = torch.where(common, common.cumsum(1, dtype=torch.int32), position)
    return torch.empty_like(low_order).scatter_(1, (position - 1).long(), low_order)


CROSSOVERS = {"none": cross_none, "add": cross_add, "select": cross_select}
