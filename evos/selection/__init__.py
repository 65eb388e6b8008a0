"""Selection: which points a field is trained on in each step."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from evos.errors import InputError, unknown_name
from evos.selection.base import Feedback, Pool, Selection, Selector, SelectorConfig
from evos.selection.baselines import FullConfig, FullSelector, UniformConfig, UniformSelector
from evos.selection.cache import ResidualCache
from evos.selection.edge_priors import EgraConfig, EgraSelector, ExpansiveConfig, ExpansiveSelector
from evos.selection.error_sampling import ErrorConfig, ErrorSelector
from evos.selection.evos import EvosConfig, EvosSelector
from evos.selection.nint import NintConfig, NintSelector
from evos.selection.nonparametric import IntConfig, IntSelector
from evos.selection.soft_mining import SoftConfig, SoftSelector
from evos.selection.tile_error import TileErrorConfig, TileErrorSelector
from evos.selection.tiles import TilesConfig, TilesSelector

SELECTORS: dict[str, tuple[type[SelectorConfig], type[Selector[Any]]]] = {
    "full": (FullConfig, FullSelector),
    "uniform": (UniformConfig, UniformSelector),
    "egra": (EgraConfig, EgraSelector),
    "expansive": (ExpansiveConfig, ExpansiveSelector),
    "soft": (SoftConfig, SoftSelector),
    "int": (IntConfig, IntSelector),
    "nint": (NintConfig, NintSelector),
    "evos": (EvosConfig, EvosSelector),
    "error": (ErrorConfig, ErrorSelector),
    "tiles": (TilesConfig, TilesSelector),
    "tile_error": (TileErrorConfig, TileErrorSelector),
}
"""The strategies by name. To add one, write its config and selector in a file of its own and name them here."""


def build_selector(
    config: SelectorConfig,
    pool: Pool,
    *,
    total_steps: int,
    device: torch.device | str,
    seed: int = 0,
    rank: int = 0,
    target: Float[Tensor, "R P C"] | None = None,
) -> Selector[Any]:
    """The selector that a config describes.

    Args:
        config: one of the classes in ``SELECTORS``.
        pool: the cells to select from.
        total_steps: length of the training, for the schedules.
        device: device of its state.
        seed: seed of its own generator, together with ``rank``.
        rank: of this process among those that train together.
        target: the signal in [0, 1], for strategies that use its edges.

    Raises:
        InputError: a strategy with edge priors and no target; an unknown strategy.
    """
    if config.name not in SELECTORS:
        raise unknown_name("selector", config.name, SELECTORS)
    selector = SELECTORS[config.name][1]
    kwargs: dict[str, Any] = {"total_steps": total_steps, "device": device, "seed": seed, "rank": rank}
    if "target" in selector.needs:
        if target is None:
            raise InputError("target", None, f"the signal itself, whose edges the {config.name} strategy uses")
        kwargs["target"] = target
    return selector(config, pool, **kwargs)


__all__ = [
    "SELECTORS",
    "EgraConfig",
    "ErrorConfig",
    "EvosConfig",
    "ExpansiveConfig",
    "Feedback",
    "FullConfig",
    "IntConfig",
    "NintConfig",
    "Pool",
    "ResidualCache",
    "Selection",
    "Selector",
    "SelectorConfig",
    "SoftConfig",
    "TileErrorConfig",
    "TilesConfig",
    "UniformConfig",
    "build_selector",
]
