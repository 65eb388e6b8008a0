"""What checks the annotations while the tests run, for every function and dataclass of the packages (jaxtyping's hook).

beartype, where an int is a float, too, as PEP 484 says. The values of a config's fields come from users: its own
``__post_init__`` checks them and answers in one line, which a check of its annotations would forestall.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from beartype import BeartypeConf, beartype

Function = TypeVar("Function", bound=Callable[..., Any])

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Function) -> Function:
    """The function with its arguments and results checked."""
    return function if function.__qualname__.endswith("Config.__init__") else _check(function)
