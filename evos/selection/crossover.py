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
    low_rank, high_rank = ranks(low_order), ranks(high_order)
    low_parent, high_parent = low_rank < n, high_rank < n
    common = low_parent & high_parent

    open_places = n - common.sum(1, keepdim=True)
    mean_low, mean_high = masked_mean(low, counted), masked_mean(high, counted)
    p = mean_low / (mean_low + mean_high).clamp(min=torch.finfo(low.dtype).tiny)
    from_low = (open_places * p).long()

    only_low = low_parent & ~high_parent
    only_high = high_parent & ~low_parent
    place_low = place_among(only_low, low_order, low_rank)
    place_high = place_among(only_high, high_order, high_rank)
    taken_low, taken_high = only_low & (place_low < from_low), only_high & (place_high < open_places - from_low)

    # Positions, without a third sort: the intersection, those taken from low, those from high, all others.
    rest = ~(common | taken_low | taken_high)
    after_common = n - open_places
    position = n + place_among(rest, low_order, low_rank)
    position = torch.where(taken_high, after_common + from_low + place_high, position)
    position = torch.where(taken_low, after_common + place_low, position)
    position = torch.where(common, place_among(common, low_order, low_rank), position)
    return ranks(position)


def place_among(
    members: Bool[Tensor, "B P"], order: Int[Tensor, "B P"], rank: Int[Tensor, "B P"]
) -> Int[Tensor, "B P"]:
    """For each member, the number of members before it in ``order`` (whose inverse is ``rank``)."""
    return (members.gather(1, order).cumsum(1) - 1).gather(1, rank)


CROSSOVERS = {"none": cross_none, "add": cross_add, "select": cross_select}
