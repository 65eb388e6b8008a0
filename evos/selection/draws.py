"""Random draws of cells: pure functions of a generator, with static shapes and without waiting for the host.

B rows, P cells a row, K cells drawn of each.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Count = int | Int[Tensor, "B 1"]
"""A number of cells: the same for all rows, or one a row, on the device."""


def widest_float(device: torch.device) -> torch.dtype:
    """float64, which addresses every cell of a large pool and float32 does not; float32 where there is none (MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64


def weighted_draw(odds: Float[Tensor, "B P"], count: int, generator: torch.Generator) -> Int[Tensor, "B K"]:
    """``count`` distinct cells of each row in proportion to finite ``odds``; cells with negative odds come last.

    Equal in distribution to drawing one after the other without replacement: the largest odds / exponential numbers are
    taken (Efraimidis and Spirakis 2006). Without ``torch.multinomial``'s limit of 2^24 categories.
    """
    log_uniform = torch.rand(odds.shape, generator=generator, device=odds.device).log()  # - an exponential number
    return (odds / log_uniform).topk(count, dim=1, largest=False, sorted=False).indices


def capped_sums(odds: Float[Tensor, "B P"], count: int) -> Float[Tensor, "B P"]:
    """Running sums of a row's odds, for ``count`` stratified draws: see ``stratified_draw``.

    The odds, at least 0 and not all 0, are capped at one ``count``-th of their sum: a few cells would otherwise take
    most of the draws.
    """
    return odds.minimum(odds.sum(1, keepdim=True) / count).cumsum(1, dtype=widest_float(odds.device))


def stratified_draw(sums: Float[Tensor, "B P"], count: int, generator: torch.Generator) -> Int[Tensor, "B K"]:
    """One cell from each of ``count`` segments of a row, in the order of its cells, that have equal sums of odds.

    ``sums`` are the running sums of the odds. A cell is drawn ``count`` · odds / sum of all odds times on average; of
    odds that are capped, twice in a step only where it reaches into two segments. Draws spread more evenly over the row
    than those of ``weighted_draw``, and only the draws take random numbers, not all cells.
    """
    total = sums[:, -1:]
    uniform = torch.rand(len(sums), count, generator=generator, device=sums.device, dtype=sums.dtype)
    place = (torch.arange(count, device=sums.device) + uniform) * (total / count)
    # Cells of odds 0 end where the one before them does, and are passed over. The last place may be rounded up.
    return torch.searchsorted(sums, place.minimum(total.nextafter(torch.zeros_like(total))), right=True)


def uniform_draw(
    rows: Int[Tensor, " B"],
    cells: int,
    count: int,
    generator: torch.Generator,
    valid: Bool[Tensor, "B P"] | None = None,
) -> Int[Tensor, "B K"]:
    """``count`` distinct cells of each of ``rows``, all equally likely; those that are not ``valid`` come last."""
    keys = torch.rand(len(rows), cells, generator=generator, device=rows.device)
    return masked(keys, valid).topk(count, dim=1, sorted=False).indices


def spaced_draw(rows: Int[Tensor, " B"], cells: int, count: int, generator: torch.Generator) -> Int[Tensor, "B K"]:
    """``count`` distinct cells of each of ``rows``, all equally likely, one from each of ``count`` segments of a row.

    The segments are as equal as whole numbers of cells can be, and begin at a random cell, the first following the
    last. Unlike those of ``uniform_draw``, which sorts the row, draws cost no more where there are more cells.
    """
    starts = torch.arange(count + 1, device=rows.device) * cells // count
    lengths = starts.diff()
    uniform = torch.rand(len(rows), count, generator=generator, device=rows.device)
    turn = torch.randint(cells, (len(rows), 1), generator=generator, device=rows.device)
    return (starts[:-1] + (uniform * lengths).long().minimum(lengths - 1) + turn) % cells


def random_order(
    rows: Int[Tensor, " B"], cells: int, generator: torch.Generator, valid: Bool[Tensor, "B P"] | None = None
) -> Int[Tensor, "B P"]:
    """All cells of each row in random order, those that are not ``valid`` last."""
    keys = torch.rand(len(rows), cells, generator=generator, device=rows.device)
    return masked(keys, valid).argsort(dim=1, descending=True)


def survivors_and_mutants(
    order: Int[Tensor, "B P"],
    survivors: int,
    mutants: int,
    generator: torch.Generator,
    valid: Bool[Tensor, "B P"] | None = None,
) -> Int[Tensor, "B K"]:
    """The first ``survivors`` of ``order``, then ``mutants`` distinct cells drawn uniformly from the rest of it.

    Cells that are not ``valid`` are drawn when nothing else is left.
    """
    rest = order[:, survivors:]
    keys = torch.rand(rest.shape, generator=generator, device=rest.device)
    keys = masked(keys, None if valid is None else valid.gather(1, rest))
    drawn = rest.gather(1, keys.topk(mutants, dim=1, sorted=False).indices)
    return torch.cat((order[:, :survivors], drawn), dim=1)


def draw_from_two_groups(
    order: Int[Tensor, "B P"],
    fittest: Count,
    survivors: Count,
    usable: Count,
    count: int,
    generator: torch.Generator,
    weight: Int[Tensor, "B P"] | None = None,
) -> Int[Tensor, "B K"]:
    """``count`` uniform draws with replacement, from the fittest cells and from the others.

    The first ``survivors`` draws are from the first ``fittest`` cells of ``order``, the rest from cells ``fittest`` to
    ``usable``. With ``weight``, the number of points in each cell, a point is drawn and its cell returned: ``fittest``
    and ``usable`` then count points, and one cell may have points on both sides.
    """
    dtype = widest_float(order.device)
    uniform = torch.rand(len(order), count, generator=generator, device=order.device, dtype=dtype)
    survives = torch.arange(count, device=order.device) < survivors
    place = torch.where(survives, uniform * fittest, fittest + uniform * (usable - fittest)).long()
    if weight is not None:
        points = weight.gather(1, order).cumsum(1)
        place = torch.searchsorted(points, place.minimum(points[:, -1:] - 1), right=True)
    return order.gather(1, place.clamp(max=order.shape[1] - 1))


def cells_within(
    order: Int[Tensor, "B P"], points: Int[Tensor, "B 1"], weight: Int[Tensor, "B P"]
) -> Int[Tensor, "B 1"]:
    """How many of the first cells of ``order`` it takes to have that many ``points``, ``weight`` of them in each."""
    return torch.searchsorted(weight.gather(1, order).cumsum(1), points) + (points > 0)


def stratified(
    selected: Int[Tensor, "B K"], count: int, generator: torch.Generator, weight: Int[Tensor, "B K"] | None = None
) -> Int[Tensor, "B k"]:
    """``count`` of the ``selected`` cells, one at random from each of ``count`` equal segments.

    Each part of a selection (anchors, others) thus keeps its proportion. ``selected`` itself where it has ``count``
    cells. With ``weight``, the number of points in each cell, the segments are of equally many points.
    """
    if weight is None and selected.shape[1] == count:
        return selected
    dtype = widest_float(selected.device)
    uniform = torch.rand(count, generator=generator, device=selected.device, dtype=dtype)
    place = torch.arange(count, device=selected.device) + uniform
    if weight is None:
        place = (place * (selected.shape[1] / count)).long().clamp(max=selected.shape[1] - 1)
        return selected[:, place]
    points = weight.cumsum(1)
    place = (place * (points[:, -1:].to(dtype) / count)).long().minimum(points[:, -1:] - 1)
    return selected.gather(1, torch.searchsorted(points, place, right=True))


def effective_sample_fraction(
    error: Float[Tensor, "B P"], known: Bool[Tensor, "B P"] | Int[Tensor, "B P"] | None = None
) -> Float[Tensor, "B 1"]:
    """(Σe)² / (n Σe²) over the n ``known`` cells (None = all), whose errors e are at least 0.

    1 where all errors are equal, 1 / n where one cell has all the error (Kish's effective sample size over n). Numbers
    in ``known`` are how many points a cell has, each with the cell's error: n is then the number of points.
    """
    one = error if known is None else error * known
    count = error.shape[1] if known is None else known.sum(1, keepdim=True).clamp(min=1)
    total, squares = one.sum(1, keepdim=True), (one * error).sum(1, keepdim=True)
    fraction = total.square() / squares.clamp(min=torch.finfo(error.dtype).tiny) / count
    return torch.where(squares > 0, fraction, 1.0)


def masked(keys: Float[Tensor, "B P"], valid: Bool[Tensor, "B P"] | None) -> Float[Tensor, "B P"]:
    """``keys`` of at least 0, with -1 where a cell is not ``valid``."""
    return keys if valid is None else keys.masked_fill(~valid, -1.0)
