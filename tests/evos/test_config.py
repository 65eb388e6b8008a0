"""Options: docs, values and errors are the same for every front end."""

from dataclasses import dataclass
from typing import Literal

import pytest

from evos.config import build_config, check_choice, check_choices, check_range, options, parse_value
from evos.errors import InputError
from evos.selection import SELECTORS


@dataclass(frozen=True)
class Base:
    size: int = 4
    """Number of cells,
    at least 1."""

    rate: float | None = None
    """Share in [0, 1]."""

    def __post_init__(self) -> None:
        check_range("size", self.size, 1)
        check_range("rate", self.rate, 0, 1)


@dataclass(frozen=True)
class Derived(Base):
    fast: bool = False
    """Whether it is fast."""

    name: str = "x"
    rate: float | None = 0.5
    """Share in [0, 1], here half."""


OPTIONS = {option.name: option for option in options(Derived)}


def parse(name: str, text):
    return parse_value(name, OPTIONS[name], text)


def test_options_come_in_order_with_the_docs_of_bases_unless_overridden():
    assert [(o.name, o.kind, o.optional, o.default) for o in options(Derived)] == [
        ("size", int, False, 4),
        ("rate", float, True, 0.5),
        ("fast", bool, False, False),
        ("name", str, False, "x"),
    ]
    docs = ["Number of cells, at least 1.", "Share in [0, 1], here half.", "Whether it is fast.", ""]
    assert [o.help for o in options(Derived)] == docs


@pytest.mark.parametrize("name", SELECTORS)
def test_every_option_of_every_selector_is_documented(name):
    config = SELECTORS[name][0]
    assert all(o.help.endswith(".") for o in options(config))
    assert build_config(config, {"keep_ratio": "0.25"}).keep_ratio == 0.25


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("size", "12", 12),
        ("size", 12.0, 12),
        ("rate", "1e-3", 0.001),
        ("rate", 1, 1.0),
        ("rate", "None", None),
        ("rate", "none", None),
        ("rate", None, None),
        ("fast", "yes", True),
        ("fast", "FALSE", False),
        ("fast", 0, False),
        ("fast", True, True),
        ("name", "none", "none"),
    ],
)
def test_a_value_is_what_its_text_says(name, text, value):
    parsed = parse(name, text)
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        ("size", "2.5", "a whole number"),
        ("size", 2.5, "a whole number"),
        ("size", "", "a whole number"),
        ("size", None, "a value"),
        ("size", True, "a whole number"),
        ("size", float("inf"), "a whole number"),
        ("size", "none", "a whole number"),
        ("rate", "nan", "a number or none"),
        ("rate", "inf", "a number or none"),
        ("rate", [1], "a number or none"),
        ("fast", "perhaps", "true or false"),
        ("fast", None, "a value"),
        ("name", None, "a value"),
    ],
)
def test_a_value_of_another_kind_is_refused_saying_what_is_allowed(name, text, allowed):
    with pytest.raises(InputError) as caught:
        parse(name, text)
    assert (caught.value.argument, caught.value.allowed) == (name, allowed)


def test_a_misspelt_option_is_refused_with_the_nearest_right_one():
    with pytest.raises(InputError, match=r"^option: got --rtae; allowed: did you mean --rate\?"):
        build_config(Derived, {"rtae": 1}, "--")


def test_errors_name_the_option_as_the_front_end_does():
    with pytest.raises(InputError, match=r"^--part\.size: got 0; allowed: at least 1$"):
        build_config(Derived, {"size": "0"}, "--part.")
    with pytest.raises(InputError, match=r"^--part\.rate: got x; allowed: a number or none$"):
        build_config(Derived, {"rate": "x"}, "--part.")


def test_ranges_are_named_in_words():
    for arguments, words in [((2, 0, 1), "at least 0 and at most 1"), ((-1, 0), "at least 0"), ((5,), None)]:
        if words is None:
            check_range("x", *arguments)
            continue
        with pytest.raises(InputError) as caught:
            check_range("x", *arguments)
        assert caught.value.allowed == words
    with pytest.raises(InputError, match="above 0 and at most 1"):
        check_range("x", 0, 0, 1, open_low=True)
    with pytest.raises(InputError):
        check_range("x", float("nan"))


@dataclass(frozen=True)
class Chosen:
    colour: Literal["red", "green"] = "red"
    """A colour."""

    shape: Literal["round", "square"] | None = None
    """A shape."""

    def __post_init__(self) -> None:
        check_choices(self)


def test_a_literal_is_a_text_with_choices():
    found = [(o.kind, o.optional, o.choices, o.values) for o in options(Chosen)]
    assert found == [
        (str, False, ("red", "green"), "{red,green}"),
        (str, True, ("round", "square"), "{round,square}|none"),
    ]


def test_a_literal_is_checked_and_the_nearest_choice_named():
    assert build_config(Chosen, {"colour": "green", "shape": "none"}) == Chosen("green")
    with pytest.raises(InputError, match=r"^colour: got gren; allowed: did you mean green\?"):
        build_config(Chosen, {"colour": "gren"})
    with pytest.raises(InputError, match=r"^--shape: got None; allowed: one of round, square") as caught:
        check_choice("--shape", None, ("round", "square"))
    assert caught.value.got == "None"


def test_a_list_where_one_value_belongs_is_refused_not_hashed():
    with pytest.raises(InputError, match="one of green, red"):
        check_choice("colour", ["red"], ("red", "green"))
    with pytest.raises(InputError, match="a single value"):
        build_config(Chosen, {"colour": ["red"]})


@pytest.mark.parametrize("text", ["999999999999999999999", 10**30, "-" + "9" * 25])
def test_a_whole_number_that_fits_no_tensor_is_refused(text):
    with pytest.raises(InputError, match="a whole number from -9223372036854775807"):
        parse("size", text)
    assert parse("size", str(2**63 - 1)) == 2**63 - 1
