"""What nerfstudio finds when it looks for plugins: our methods and our data parser, each made when asked for.

The host loads every plugin in every ``ns-*`` command and stops at the first error. So none leaves this module: where
ours do not work with the nerfstudio at hand, the reason is one warning, and all other methods are there.
"""

from functools import cache
from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module("evos_nerf.llff" if name == "llff_data" else "evos_nerf.methods"), name)
    except Exception as error:
        warn_of_error(f"{type(error).__name__}: {error}")
        return None


@cache
def warn_of_error(reason: str) -> None:
    """Say once why the methods are missing."""
    from nerfstudio.utils.rich_utils import CONSOLE

    CONSOLE.print("[bold yellow]Warning: EVOS doesn't work with this nerfstudio, its methods are left out.", end=" ")
    CONSOLE.print(reason, markup=False)
