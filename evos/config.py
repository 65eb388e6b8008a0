"""Options: one frozen dataclass field is one option, for every front end.

A field's docstring (the string literal under it) is its help text; its range is checked in ``__post_init__``. A field
with a fixed set of names is a ``Literal``, which parser, help, type checker and ``check_choices`` read. ConfigArgParse
and tyro only parse into these classes.
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
from typing import Any, Literal, TypeVar

from evos.errors import InputError, unknown_name
from evos.renamed_options import unknown_option

T = TypeVar("T")
LARGEST = 2**63 - 1
"""Integers of larger magnitude exceed int64 and are refused."""


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


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise InputError, suggesting the closest valid name, unless ``value`` is one of ``choices``."""
    # A value from a file may have any type, a list included.
    if not isinstance(value, str) or value not in set(choices):
        raise unknown_name(name, str(value), choices)


def check_choices(config: Any) -> None:
    """Raise InputError unless every Literal field of a config dataclass holds one of its choices (or an allowed None).

    To be called in ``__post_init__``.
    """
    for name, (choices, optional) in literal_fields(type(config)).items():
        value = getattr(config, name)
        if not (optional and value is None):
            check_choice(name, value, choices)


@cache
def literal_fields(cls: type) -> dict[str, tuple[tuple[str, ...], bool]]:
    """Of each Literal field of a dataclass: its choices, and whether it may be None."""
    found = {}
    for name, hint in field_types(cls).items():
        kind, optional = strip_none(hint)
        if typing.get_origin(kind) is Literal:
            found[name] = (typing.get_args(kind), optional)
    return found


def field_types(cls: type) -> dict[str, Any]:
    """The annotation of each field of a dataclass, in order, those of its bases first."""
    hints = typing.get_type_hints(cls)
    return {entry.name: hints[entry.name] for entry in fields(cls)}


def strip_none(hint: Any) -> tuple[Any, bool]:
    """The kind in ``kind | None``, and whether None is allowed."""
    if typing.get_origin(hint) not in (types.UnionType, typing.Union):
        return hint, False
    kinds = typing.get_args(hint)
    return next(kind for kind in kinds if kind is not types.NoneType), types.NoneType in kinds


@dataclass(frozen=True)
class Option:
    """One option as a front end sees it.

    ``kind`` is the scalar type, ``optional`` says that None is allowed, ``choices`` are the names a Literal allows.
    """

    name: str
    kind: type
    optional: bool
    default: Any
    help: str
    choices: tuple[str, ...] = ()

    @property
    def values(self) -> str:
        """The accepted values as shown by --help: the choices, or the scalar type."""
        taken = "{" + ",".join(self.choices) + "}" if self.choices else self.kind.__name__
        return f"{taken}|none" if self.optional else taken


@cache
def options(cls: type) -> tuple[Option, ...]:
    """The options of a config dataclass, in order, those of its bases first."""
    hints, docs, literals, found = field_types(cls), field_docs(cls), literal_fields(cls), []
    for entry in fields(cls):
        kind, optional = strip_none(hints[entry.name])
        choices, _ = literals.get(entry.name, ((), False))
        default = entry.default_factory() if entry.default_factory is not MISSING else entry.default
        found.append(Option(entry.name, str if choices else kind, optional, default, docs.get(entry.name, ""), choices))
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
    """The value of an option from text, or from a typed value; raises InputError naming what the option accepts."""
    if option.optional and (text is None or (isinstance(text, str) and text.lower() == "none")):
        return None
    if text is None:
        raise InputError(argument, text, "a value")
    if isinstance(text, list | tuple | dict):
        allowed = {bool: "true or false", int: "a whole number", float: "a number"}.get(option.kind, "a single value")
        raise InputError(argument, text, allowed + (" or none" if option.optional else ""))
    if option.kind is bool:
        truths = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if str(text).lower() in truths:
            return truths[str(text).lower()]
        raise InputError(argument, text, "true or false")
    if option.kind in (int, float):
        try:
            value = option.kind(expanded(text) if option.kind is int else text)
            if option.kind is int and abs(value) > LARGEST:
                raise InputError(argument, text, f"a whole number from -{LARGEST} to {LARGEST}")
            # int(2.7) is 2, and float(True) is 1.
            if math.isfinite(value) and not isinstance(text, bool) and not (isinstance(text, float) and value != text):
                return value
        except InputError:
            raise
        except (TypeError, ValueError, OverflowError):
            pass
        allowed = "a whole number" if option.kind is int else "a number"
        raise InputError(argument, text, allowed + (" or none" if option.optional else ""))
    return option.kind(text)


def expanded(text: Any) -> Any:
    """A whole number's text with its unit written out: 200k is 200000, 2M and 2G as well; anything else as it is."""
    zeros = {"k": "000", "M": "000000", "G": "000000000"}
    if isinstance(text, str) and text[:-1].isdecimal() and text[-1] in zeros:
        return text[:-1] + zeros[text[-1]]
    return text


def build_config(cls: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """An instance of a config dataclass from named values (texts or typed), errors name ``prefix + option``."""
    known = {option.name: option for option in options(cls)}
    parsed = {}
    for name, value in values.items():
        if name not in known:
            dashes = "--" if prefix.startswith("--") else ""
            full = (prefix + name).removeprefix(dashes)
            raise unknown_option(full, [(prefix + k).removeprefix(dashes) for k in known], dashes=dashes)
        parsed[name] = parse_value(prefix + name, known[name], value)
    try:
        return cls(**parsed)
    except InputError as error:
        raise InputError(prefix + error.argument, error.got, error.allowed) from None


def build_groups(groups: Mapping[str, type], texts: Mapping[str, Any]) -> dict[str, Any]:
    """The config of each group from values by dotted name, without a dot those of group "": see build_config."""
    found: dict[str, dict[str, Any]] = {name: {} for name in groups}
    for name, text in texts.items():
        group, _, option = name.rpartition(".")
        found[group][option] = text
    return {name: build_config(cls, found[name], f"{name}." if name else "") for name, cls in groups.items()}
