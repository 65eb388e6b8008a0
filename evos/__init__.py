"""evos: train neural fields for a fraction of the compute.

The names below are the public ones of everyday use; they are imported on first access, so that ``import evos`` itself
is quick. Public, too, are the names without an underscore in the modules listed in ``PUBLIC_MODULES``.

What is public follows semantic versioning: before 1.0 a minor release may change it, with a line in CHANGELOG.md that
names the new form; a patch release never does. The same holds for the options of the programs, for the files of a
run, and for ``evos_nerf.methods.evos_method``. ``evos.runs``, ``evos.distributed`` and the other packages' modules
serve the programs of this project, and may change in any release.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evos.coords import grid
    from evos.derivatives import value_and_jacobian
    from evos.errors import InputError
    from evos.fields import FIELDS, Field, FieldConfig, build_field, field_config
    from evos.fitted import FittedField, load
    from evos.losses import cross_frequency_loss, derivative_loss, value_loss
    from evos.selection import (
        SELECTORS,
        ErrorConfig,
        EvosConfig,
        Feedback,
        Pool,
        Selection,
        Selector,
        SelectorConfig,
        TilesConfig,
        UniformConfig,
        build_selector,
    )

__version__ = "0.1.0"

PUBLIC_MODULES = (
    "config",
    "coords",
    "derivatives",
    "errors",
    "fields",
    "fitness",
    "fitted",
    "images",
    "losses",
    "metrics",
    "optimizers",
    "schedules",
    "selection",
    "sounds",
    "transforms",
)
"""Modules of ``evos`` whose public names are stable."""

__all__ = [
    "FIELDS",
    "SELECTORS",
    "ErrorConfig",
    "EvosConfig",
    "Feedback",
    "Field",
    "FieldConfig",
    "FittedField",
    "InputError",
    "Pool",
    "Selection",
    "Selector",
    "SelectorConfig",
    "TilesConfig",
    "UniformConfig",
    "build_field",
    "build_selector",
    "cross_frequency_loss",
    "derivative_loss",
    "field_config",
    "grid",
    "load",
    "value_and_jacobian",
    "value_loss",
]

_HOMES = ("selection", "fields", "coords", "losses", "derivatives", "errors", "fitted")


def __getattr__(name: str) -> Any:
    if name in PUBLIC_MODULES:
        return import_module(f"evos.{name}")
    if name in __all__:
        for module in map(import_module, (f"evos.{home}" for home in _HOMES)):
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module 'evos' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *PUBLIC_MODULES})
