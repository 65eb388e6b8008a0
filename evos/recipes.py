"""How a field is trained, as sets of defaults by name: what image_regression offers and what evonas searches under.

``fast`` and ``compact`` train a hash grid whose sizes and draws follow from the signal's shape (``sized_options``): the
rule was fitted to measurements on other inputs than those reported in docs/results.md. Given another field by name they
are the best way measured for coordinate networks.
"""

import math
from bisect import bisect_right
from dataclasses import asdict, replace
from typing import Any

from evos.errors import InputError
from evos.fields.hashgrid import HashGridConfig

DRAWN = {"selector": "error", "selector.keep_ratio": 0.1, "cfs_weight": 0.0, "clip_ratio": 1.05}
GRID = {**DRAWN, "field": "hashgrid", "optimizer": "adam", "lr": 1.5e-2, "schedule": "cosine", "decay": 0.5}
NETWORK = {**DRAWN, "field": "siren", "field.init_scale": 1.5, "optimizer": "schedule_free", "lr": 1e-3}

RECIPES: dict[str, dict[str, Any]] = {
    "none": {},
    "paper": {"selector": "full", "lr": 1e-4},
    "fast": GRID,
    "compact": GRID,
}
"""Sets of defaults by name; options of a part (``field.init_scale``) apply only with the part that the recipe names."""

POINTS_PER_SIDE = 16
"""Points of a step over the square root of the signal's points: a sixteenth of 256²."""
MOST_POINTS = 0.25
"""Largest fraction of a small signal's points in a step."""
OVERSAMPLING = 1.6
"""Vertices of the finest level over points, along the longest axis of one or two."""
OVERSAMPLING_3D = 0.9
"""The same along the longest of three axes or more, where neighbours say more of a point."""
LARGEST_TABLE_LOG2 = 20
"""Levels of more than 2^20 vertices are hashed: at 512² none is."""
FEWEST_ROWS_LOG2 = 12
"""log2 of the rows that a level may have however small the signal is."""
ROWS_PER_POINT = 4
"""Most rows of a level over points, before rounding up to a power of two: a square picture's finest level has 2.6 times
as many vertices as points, but one of 2000 × 16 has 320 times as many, of which training sees a few."""
LEVELS = 6
"""Levels of a grid, but of a picture that stays on disk."""
COARSEST = 64
"""Most vertices of its coarsest level along an axis. Where all levels are hashed a picture of 16,384² has 15.7 dB after
40 s, with six levels of which one is not 22.9, with ten from 51 vertices on 25.9 (the same table, one thread)."""
BUDGET = 200_000
"""Parameters of ``compact`` where none are given: a SIREN of 3×256 has 198,915."""


def recipe_options(recipe: str, field: str | None = None) -> dict[str, Any]:
    """The defaults of a recipe in RECIPES, for the field that it names (None) or for another one."""
    found = RECIPES[recipe]
    return NETWORK if found is GRID and field not in (None, "hashgrid") else found


def sized_options(
    recipe: str,
    shape: tuple[int, ...],
    channels: int,
    parameters: int | None = None,
    table_log2: int = LARGEST_TABLE_LOG2,
    *,
    on_disk: bool = False,
) -> dict[str, Any]:
    """What a recipe makes of a signal's shape: the grid's sizes, the selector and its fraction of points in a step.

    Six levels of two features, each about twice as fine as the one before, and one hidden layer. With ``fast`` the
    finest has 1.6 times as many vertices along an axis as the longest one has points (0.9 times with three axes or
    more), with ``compact`` at most so many, and as many as the budget allows. A level of more rows than the signal's
    points can use is hashed: along the short side of a strip there are few. Points are drawn by error, but uniformly
    along one axis: choosing a sound's points by error takes more time than it saves.

    Args:
        recipe: fast or compact.
        shape: of the signal's grid, one to seven axes.
        channels: C.
        parameters: the budget of ``compact``, at least 1; None: 200,000.
        table_log2: log2 of the rows above which a level is hashed.
        on_disk: of a picture that stays on disk: as many levels as it takes from at most 64 vertices on.

    Raises:
        InputError: no grid is so small.
    """
    axes, points = len(shape), math.prod(shape)
    table_log2 = min(table_log2, max(FEWEST_ROWS_LOG2, math.ceil(math.log2(ROWS_PER_POINT * points))))
    oversampling = OVERSAMPLING if axes <= 2 else OVERSAMPLING_3D
    finest = min(max(round(oversampling * max(shape)), 16), 2**20)
    if recipe == "compact":
        budget = parameters or BUDGET
        resolutions = range(16, finest + 1)
        # The largest within the budget: their parameters grow with the resolution.
        fitting = bisect_right(
            resolutions, budget, key=lambda size: grid(size, axes, table_log2).parameters(axes, channels)
        )
        if fitting == 0:
            least = grid(16, axes, table_log2).parameters(axes, channels)
            raise InputError("--parameters", budget, f"at least {least} for {axes} axes and {channels} channels")
        finest = resolutions[fitting - 1]
    levels = max(LEVELS, 1 + math.ceil(math.log2(finest / COARSEST))) if on_disk and recipe == "fast" else LEVELS
    keep = min(MOST_POINTS, POINTS_PER_SIDE / math.sqrt(points))
    sizes = {f"field.{name}": value for name, value in asdict(grid(finest, axes, table_log2, levels)).items()}
    return sizes | {"selector": "uniform" if axes == 1 else "error", "selector.keep_ratio": round(keep, 6)}


def grid(finest: int, axes: int, table_log2: int = LARGEST_TABLE_LOG2, levels: int = LEVELS) -> HashGridConfig:
    """The recipes' grid of so many vertices along each axis at its finest level, at least 16."""
    largest = HashGridConfig(
        hidden_features=64,
        hidden_layers=0,
        levels=levels,
        level_features=2,
        base_resolution=max(16, finest // 2 ** (levels - 1)),
        finest_resolution=finest,
        table_log2=table_log2,
    )
    needed = math.ceil(math.log2(max(largest.table_sizes(axes))))
    return replace(largest, table_log2=min(needed, table_log2))


SIZED = tuple(sized_options("fast", (2,), 1))
"""Names of the options that ``sized_options`` gives."""
