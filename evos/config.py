"""Options: one frozen dataclass field is one option, for every front end.

A field's docstring (the string literal under it) is its help text; its range is checked in ``__post_init__``.
ConfigArgParse, tyro and OmegaConf only parse into these classes.
"""

import ast
import inspect
import math
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar

from evos.errors import InputError, unknown_name

T = TypeVar("T")


def check_range(
    name: str,
    value: float | int | None,
    low: float | int = -math.inf,
    high: float | int = math.inf,
    *,
    open_low: bool = False,
) -> None:
    """Raise InputError unless ``value`` is None or lies in [low, high] (or (low, high])."""
    if value is None or (low < value <= high if open_low else low <= value <= high):
        return
    left = f"{'above' if open_low else 'at least'} {low:g}" if low > -math.inf else ""
    right = f"at most {high:g}" if high < math.inf else ""
    raise InputError(name, value, " and ".join(filter(None, (left, right))) or "a number")


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise InputError, with the nearest right name, unless ``value`` is one of ``choices``."""
    if value not in set(choices):
        raise unknown_name(name, value, choices)


@dataclass(frozen=True)
class Option:
    """One option as a front end sees it: ``kind`` is the scalar type, ``optional`` says that None is allowed."""

    name: str
    kind: type
    optional: bool
    default: Any
    help: str


@cache
def options(cls: type) -> tuple[Option, ...]:
    """The options of a config dataclass, in order, those of its bases first."""
    hints, docs, found = typing.get_type_hints(cls), field_docs(cls), []
    for entry in fields(cls):
        kinds = [k for k in typing.get_args(hints[entry.name]) if k is not type(None)]
        union = isinstance(hints[entry.name], types.UnionType)
        default = entry.default_factory() if entry.default_factory is not MISSING else entry.default
        kind = kinds[0] if union else hints[entry.name]
        found.append(Option(entry.name, kind, union, default, docs.get(entry.name, "")))
    return tuple(found)


@cache
def field_docs(cls: type) -> dict[str, str]:
    """Docstrings of a dataclass's fields: the string literals under them, base classes included."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        except (OSError, TypeError):
            continue
        statements = getattr(body, "body", [])
        for above, below in pairwise(statements):
            if isinstance(above, ast.AnnAssign) and isinstance(above.target, ast.Name) and isinstance(below, ast.Expr):
                docs[above.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return docs


def parse_value(argument: str, option: Option, text: Any) -> Any:
    """A value from its text (or an already typed value), or InputError saying what the option takes."""
    if option.optional and (text is None or (isinstance(text, str) and text.lower() == "none")):
        return None
    if text is None:
        raise InputError(argument, text, "a value")
    if option.kind is bool:
        truths = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if str(text).lower() in truths:
            return truths[str(text).lower()]
        raise InputError(argument, text, "true or false")
    if option.kind in (int, float):
        try:
            value = option.kind(text)
            # int(2.7) is 2, and float(True) is 1.
            if math.isfinite(value) and not isinstance(text, bool) and not (isinstance(text, float) and value != text):
                return value
        except (TypeError, ValueError, OverflowError):
            pass
        allowed = "a whole number" if option.kind is int else "a number"
        raise InputError(argument, text, allowed + (" or none" if option.optional else ""))
    return option.kind(text)


def build_config(cls: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """An instance of a config dataclass from named values (texts or typed), every error named ``prefix + option``."""
    known = {option.name: option for option in options(cls)}
    parsed = {}
    for name, value in values.items():
        if name not in known:
            raise unknown_name("option", prefix + name, [prefix + k for k in known])
        parsed[name] = parse_value(prefix + name, known[name], value)
    try:
        return cls(**parsed)
    except InputError as error:
        raise InputError(prefix + error.argument, error.got, error.allowed) from None
