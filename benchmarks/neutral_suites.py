"""What neutral.py compares: recipes, strategies, suites of inputs, and the options that result."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from evos.config import expanded
from evos.errors import InputError, unknown_name
from evos.fields import FIELDS
from evos.signals import Signal, astronaut, from_pixels, from_sound, load
from evos.sounds import is_sound, read_sound
from image_regression.jobs import SCHEDULES, STRATEGIES, own_or_of_selector
from image_regression.options import (
    PARTS,
    Options,
    from_values,
    given_values,
    open_options,
    recipe_values,
)

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Contender:
    """What gets a learning-rate search of its own: an entrant of a contest, at one length of run."""

    recipe: str
    keep: str
    size: int
    field: str
    strategy: str
    steps: int

    def __str__(self) -> str:
        return f"{self.recipe} {self.keep} {self.size} {self.field} {self.strategy} {self.steps}"


# ---- what is compared ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """How a field is trained, whatever chooses the points: options of image_regression by name.

    ``lr``: the middle of the learning-rate search by field, else the rate of the field's paper; ``searched``: whether
    there is a search; ``sizes``: the recipe of image_regression that sizes the field, within a budget of
    ``parameters``.
    """

    values: Mapping[str, Any]
    lr: Mapping[str, float] = field(default_factory=dict)
    searched: bool = True
    sizes: str = "none"
    parameters: int | None = None


RECIPES = {
    "paper": Recipe({}, searched=False),
    "tuned": Recipe({"decay": 0.01}, {"siren": 1e-3, "finer": 1e-3}),
    "scaled": Recipe({"decay": 0.01, "field.init_scale": 2.0}, {"siren": 1e-3, "finer": 1e-3}),
}
"""Recipes by name: the papers' (Adam at a constant rate), and better ones. A config file is a recipe, too."""

VARIANTS = ("full_cfs", "uniform_cfs", "evos_no_cfs")
"""Strategies that are compared beside the selectors themselves where the command line names none."""


def strategies() -> dict[str, dict[str, Any]]:
    """Options of every strategy by name: all selectors of single signals, and variants of them."""
    return {name: {"selector": name} for name in PARTS["selector"]} | STRATEGIES


@dataclass(frozen=True)
class Suite:
    """Inputs with the settings that are used where the command line names none; ``values`` are options of SIREN's.

    ``inputs``: those reported; ``search``: others, for the search of the learning rate. Both are names of built-in
    pictures, or a pattern of files.
    """

    inputs: str
    search: str
    sizes: tuple[int, ...]
    steps: tuple[int, ...]
    recipes: tuple[str, ...] = ("paper", "tuned", "scaled")
    ratios: tuple[str, ...] = ("0.5", "0.25")
    at_steps: tuple[int, ...] = ()
    targets: tuple[float, ...] = (25, 30, 35, 40, 45)
    values: Mapping[str, Any] = field(default_factory=dict)
    fields: tuple[str, ...] = ("siren",)


SUITES = {
    "small": Suite("astronaut glyphs", "clouds other_glyphs", (64,), (25, 50, 100)),
    "photos": Suite("div2k/test_data/*.png", "div2k/train_data/*.png", (128,), (100, 200, 400)),
    "text": Suite("text/test_data/*.png", "text/train_data/*.png", (128,), (100, 200, 400)),
    "fields": Suite(
        "div2k/test_data/*.png",
        "div2k/train_data/*.png",
        (256,),
        (500,),
        ("fast", "compact"),
        ("recipe",),
        targets=(30, 35, 40, 45),
        fields=("siren", "hashgrid"),
    ),
    # Two photos and two pages of text.
    "pictures": Suite("*/test_data/0[01].png", "*/train_data/00.png", (96,), (100, 200, 400)),
    "sound": Suite(
        "libri_test_clean_121726/0[0-3].flac",
        "libri_test_clean_121726/0[4-7].flac",
        (32768,),
        (200, 400, 800),
        values={"field.first_omega": 3000.0},
    ),
    # EVOS (CVPR 2025), Table 1.
    "paper": Suite(
        "div2k/train_data/*.png", "div2k/test_data/*.png", (512,), (5000,), ("paper",), ("0.5", "step"), (1000, 2000)
    ),
    # NINT (CVPR 2026): SIREN 5×256, a fifth of the points.
    "nint": Suite(
        "div2k/test_data/*.png",
        "div2k/train_data/*.png",
        (512,),
        (5000,),
        ("paper",),
        ("0.2",),
        (250, 1000),
        (35,),
        {"field.hidden_layers": 4},
    ),
}


# ---- inputs ----------------------------------------------------------------------------------------------------------


def find(inputs: str, data: Path, most: int | None) -> list[str]:
    """A suite's inputs, the first ``most``: built-in pictures by name, or files; InputError where there are none."""
    if set(inputs.split()) <= set(BUILT_IN):
        return inputs.split()[:most]
    found = [str(path) for path in sorted(data.glob(inputs))][:most]
    if not found:
        raise InputError("--data", str(data), f"a folder with {inputs}; --suite small needs none")
    return found


@cache
def signal_of(name: str, size: int) -> Signal:
    """A picture of ``size`` pixels along its longer side, or the first ``size`` samples of a sound."""
    if name in BUILT_IN:
        return BUILT_IN[name](size)
    path = Path(name)
    if not is_sound(path):
        return load(path, size)
    sound = read_sound(path)
    return from_sound(path.stem, replace(sound, samples=sound.samples[:size]))


def glyphs(size: int, seed: int = 0) -> Signal:
    """A picture like a page of text: white, with rows of random dark glyphs of 3 × 5 dots in cells of 4 × 8."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = size // 8 + 1, size // 4 + 1
    page = torch.zeros(rows, 8, columns, 4)
    page[:, 1:6, :, :3] = (torch.rand(rows, 5, columns, 3, generator=generator) < 0.5).float()
    page *= (torch.rand(rows, 1, columns, 1, generator=generator) < 0.7).float()  # spaces between words
    return from_pixels("glyphs", 1 - page.flatten(2).flatten(0, 1)[:size, :size, None])


def clouds(size: int) -> Signal:
    """A picture with the spectrum of a photo: noise whose amplitude falls with the inverse of the frequency."""
    noise = torch.randn(size, size, 3, generator=torch.Generator().manual_seed(0))
    frequency = torch.hypot(torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)).clamp(min=1 / size)
    picture = torch.fft.irfft2(torch.fft.rfft2(noise, dim=(0, 1)) / frequency[..., None], (size, size), dim=(0, 1))
    low, high = picture.amin((0, 1)), picture.amax((0, 1))
    return from_pixels("clouds", (picture - low) / (high - low))


BUILT_IN = {"astronaut": astronaut, "glyphs": glyphs, "clouds": clouds, "other_glyphs": partial(glyphs, seed=1)}


# ---- options ---------------------------------------------------------------------------------------------------------


def strategy_options(text: str) -> dict[str, Any]:
    """Options of ``NAME`` or ``NAME:option=value,...``; an option that the run does not have is the selector's."""
    name, _, more = text.partition(":")
    if name not in strategies():
        raise unknown_name("--strategies", name, strategies())
    return strategies()[name] | own_or_of_selector(pair for pair in more.split(",") if pair)


def keep_options(text: str) -> dict[str, Any]:
    """Options of a fraction of points to keep, of a schedule of it (``step``: 0.2 to 0.92), or the ``recipe``'s own."""
    return {} if text == "recipe" else SCHEDULES.get(text, {"selector.keep_ratio": text})


def recipe_of(name: str, field: str | None = None) -> tuple[Recipe, dict[str, str]]:
    """A recipe for a field, and its target transform by part: one of the table, or a config file (``fast``: fast.txt).

    What a file says of its input, its length and its selection is left out: that is what the benchmark varies.
    """
    if name in RECIPES:
        return RECIPES[name], {}
    path = next((each for each in (Path(name), ROOT / f"configs/image_regression/{name}.txt") if each.is_file()), None)
    if path is None:
        raise unknown_name("--recipes", name, [*RECIPES, "a config file"])
    given, names = given_values(["--config", str(path)])
    sizes, budget = given.get("recipe", "none"), given.get("parameters")
    names |= {} if field is None else {"field": field}
    given = recipe_values(sizes, names) | given
    varied = {"recipe", "parameters", "input", "out", "longer_side", "steps", "seed", "device"}
    varied |= {"selector", "field", "lr", "cfs_weight", "cfs_ratio"}
    values = {key: value for key, value in given.items() if key not in varied and not key.startswith("selector.")}
    lr = {names["field"]: float(given["lr"])} if "lr" in given else {}
    return Recipe(values, lr, True, sizes, int(expanded(budget)) if budget else None), {"transform": names["transform"]}


def first_lr(contender: Contender) -> float:
    """The learning rate that the factors of a contender's search multiply; without a search the one it has."""
    return recipe_of(contender.recipe, contender.field)[0].lr.get(contender.field, FIELDS[contender.field].default_lr)


def options_of(contender: Contender, suite: Suite, lr: float, seed: int) -> Options:
    """The options of one run; raises InputError for those that do not go together."""
    recipe, names = recipe_of(contender.recipe, contender.field)
    strategy = strategy_options(contender.strategy)
    selector = strategy["selector"]
    values = {key: value for key, value in suite.values.items() if contender.field == "siren"}
    values |= {} if selector == "full" else keep_options(contender.keep)
    values |= {**recipe.values, **strategy, "field": contender.field, "steps": contender.steps, "lr": lr, "seed": seed}
    names = {"transform": "min_max", **names, "selector": selector, "field": contender.field}
    sized = open_options(recipe.sizes, names, values)
    sized += ("selector.keep_ratio",) if sized and contender.keep == "recipe" and selector != "full" else ()
    return from_values(values, names).sized_by(recipe.sizes, recipe.parameters, sized)
