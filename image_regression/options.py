"""Options of regression, and how evos/command_line.py reads them.

Options of the three exchangeable parts are prefixed with its name: ``--selector evos --selector.keep_ratio 0.25``,
``--field siren --field.omega 30``, ``--transform gamma --transform.gamma 2.2``. The command line overrides files.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from evos.command_line import Given, Program, read_command_line, write_config
from evos.config import build_config, check_choice, check_range, options
from evos.errors import InputError
from evos.fields import FIELDS, FieldConfig
from evos.recipes import LARGEST_TABLE_LOG2, RECIPES, SIZED, recipe_options, sized_options
from evos.selection import SELECTORS, SelectorConfig, TileErrorConfig, TilesConfig
from evos.training_options import OptimizerOptions, RunOptions
from evos.transforms import TRANSFORMS, TransformConfig

OF_TILES = (TilesConfig, TileErrorConfig)
"""Selectors of cells that are many points each: what evos and error become on a picture that stays on disk."""
COMMON = tuple(entry.name for entry in fields(SelectorConfig))
"""Options that every selector has."""
PARTS: dict[str, Mapping[str, Any]] = {
    "selector": {name: config for name, (config, _) in SELECTORS.items() if config not in OF_TILES},
    "field": FIELDS,
    "transform": TRANSFORMS,
}
FREE = (
    *("recipe", "parameters", "out", "resume", "overwrite", "save_every", "eval_every", "device", "quiet"),
    *("whole_seconds", "animate"),
)
"""Options that may differ between a run and its resumption."""
GROWING = ("steps",)
"""Options that may be larger on resumption."""


@dataclass(frozen=True)
class RegressionConfig(OptimizerOptions, RunOptions):
    """Options of one regression run."""

    recipe: Literal["none", "paper", "fast", "compact"] = "none"
    """Set of defaults, overridden by config file and command line: none, paper (full batch, Adam 1e-4), fast (the
    fastest measured: a hash grid of sizes that suit the signal) or compact (the best grid of so many --parameters)."""

    parameters: int | None = None
    """Budget of parameters for --recipe compact, at least 1 (200k is 200000); none: 200000."""

    input: str | None = None
    """Picture (png jpg tiff webp bmp; any mode; 8 and 16 bit), sound (wav flac ogg), video (mp4 gif mov mkv webm and
    others), volume (npy, TIFF of several pages, nii, nii.gz), closed mesh (obj ply stl off) or folder of them to fit;
    none: the astronaut."""

    kind: Literal["auto", "picture", "sound", "video", "volume", "shape"] = "auto"
    """What the input is: picture, sound, video, volume or shape; auto: what its content and extension say. With video
    or volume, the pictures of a folder are the frames or slices of one."""

    frames: int | None = None
    """Number of frames of a video to fit, the first ones, at least 2; none: all."""

    out: str = "runs/image"
    """Folder the run is written to."""

    memory: int | None = None
    """Bytes of memory that the run may take (4G is 4,000,000,000), at least 1; a picture that doesn't fit stays on
    disk: see docs/regression.md. none: all that it takes."""

    points: int | None = None
    """Points of a step on a picture that stays on disk, at least 1; none: 32768."""

    whole_seconds: float | None = None
    """Seconds that the end of a run on a picture that stays on disk may take to evaluate all pixels and to write them,
    at least 0; none: as many as it trained."""

    longer_side: int | None = None
    """Downscale a picture, each frame of a video or a volume first, antialiased, so that its longest side has this many
    pixels or voxels; none: original size. Of a shape, the grid points along each axis; none: 64."""

    factor: int = 1
    """Train on every factor-th pixel along each axis (or sample), from the first, and test on the others, at least 1;
    the signal is cropped to a multiple of it. 1: on every pixel."""

    supervision: Literal["val", "der", "val_der"] = "val"
    """Targets: val (values), der (their derivatives, which determine values up to a constant; predictions are shifted
    to the mean of the training pixels) or val_der (both)."""

    lambda_der: float = 1.0
    """Weight of the derivative loss, at least 0."""

    der_operator: Literal["sobel", "diff", "scharr"] = "sobel"
    """Finite difference of the whole signal, per pixel, that is the target of derivatives: sobel, diff or scharr."""

    selector: str = "evos"
    """Strategy that chooses the points of each step: full, uniform, egra, expansive, soft, int, nint, evos or
    error; uniform, evos or error for a picture that stays on disk."""

    field: Literal["siren", "finer", "wire", "gauss", "relu", "pemlp", "fourier", "hashgrid"] = "siren"
    """Network: siren, finer, wire, gauss, relu, pemlp, fourier or hashgrid."""

    transform: Literal["min_max", "z_score", "sym_power", "box_cox", "gamma"] = "min_max"
    """Transform of the target before regression: min_max, z_score, sym_power, box_cox or gamma."""

    steps: int = 5000
    """Training steps, at least 1."""

    polish: int = 0
    """Number of final steps that are ten iterations of L-BFGS on all points each, at least 0; they start from the
    weights used for evaluation (averaged ones, if any). Not in bf16."""

    cfs_weight: float | None = None
    """Weight of cross-frequency supervision, at least 0; none: 0.65 with the evos selector, 0 with any other
    and for a picture that stays on disk."""

    cfs_ratio: float = 0.3
    """Fraction of the steps, from the first, with cross-frequency supervision, in [0, 1]; dense key steps always have
    it."""

    animate: bool = False
    """Draw the training at 24 steps, evenly in their logarithm (truth, fit, error × 10, where the selector looked), and
    write animation.gif at the end."""

    compile: bool = False
    """Compile the field with torch.compile: slower start, faster steps."""

    chunk: int = 262144
    """Maximum number of points per pass through the network, at least 1; larger batches are split, with the same
    gradient."""

    lpips: bool = True
    """Measure LPIPS at the end; where its weights can't be loaded, one warning before training says so (null)."""

    def __post_init__(self) -> None:
        RunOptions.__post_init__(self)
        OptimizerOptions.__post_init__(self)
        for part, table in PARTS.items():
            check_choice(part, getattr(self, part), table)
        for name in ("longer_side", "factor", "steps", "chunk", "memory", "points"):
            check_range(name, getattr(self, name), 1)
        check_range("frames", self.frames, 2)
        check_range("lambda_der", self.lambda_der, 0)
        check_range("whole_seconds", self.whole_seconds, 0)
        check_range("polish", self.polish, 0, self.steps)
        if self.precision == "fp16":
            raise InputError("precision", self.precision, "fp32, tf32 or bf16, which needs no loss scaling")
        if self.polish and self.precision == "bf16":
            raise InputError("polish", self.polish, "0 with --precision bf16, too coarse for a line search")
        check_range("parameters", self.parameters, 1)
        if self.parameters is not None and self.recipe != "compact":
            raise InputError("parameters", self.parameters, "none without --recipe compact")
        check_range("cfs_weight", self.cfs_weight, 0)
        check_range("cfs_ratio", self.cfs_ratio, 0, 1)


@dataclass(frozen=True)
class Options:
    """A run's options with those of its parts.

    Attributes:
        sized: names of the options whose values the recipe takes from the signal's shape; see ``sized_to``.
    """

    run: RegressionConfig
    selector: SelectorConfig
    field: FieldConfig
    transform: TransformConfig
    sized: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    def sized_by(self, recipe: str, parameters: int | None, names: Sequence[str]) -> "Options":
        """The same, those of the given names left for a recipe to size to the signal."""
        return replace(self, run=replace(self.run, recipe=recipe, parameters=parameters), sized=tuple(names))

    def sized_to(
        self,
        shape: tuple[int, ...],
        channels: int,
        table_log2: int = LARGEST_TABLE_LOG2,
        *,
        on_disk: bool = False,
    ) -> "Options":
        """The options for a signal of this shape, nothing left open; raises InputError where a budget is too small.

        ``table_log2`` and ``on_disk``: see ``sized_options``.
        """
        if not self.sized:
            return self
        run = self.run
        found = sized_options(run.recipe, shape, channels, run.parameters, table_log2, on_disk=on_disk)
        parts: dict[str, Any] = {"field": self.field, "selector": self.selector}
        if "selector" in self.sized:
            run = replace(run, selector=found["selector"])
            common = {name: value for name, value in asdict(self.selector).items() if name in COMMON}
            parts["selector"] = build_config(PARTS["selector"][run.selector], common, "--selector.")
        for part, config in parts.items():
            values = {name.partition(".")[2]: found[name] for name in self.sized if name.startswith(f"{part}.")}
            parts[part] = build_config(type(config), asdict(config) | values, f"--{part}.")
        return replace(self, run=run, **parts, sized=())

    def resolved(self) -> dict[str, Any]:
        """Every option by its name on the command line."""
        values = asdict(self.run)
        for part in PARTS:
            values |= {f"{part}.{name}": value for name, value in asdict(getattr(self, part)).items()}
        return values

    @property
    def cfs_weight(self) -> float:
        """The weight of cross-frequency supervision, with its default resolved."""
        default = 0.65 if self.run.selector == "evos" else 0.0
        return default if self.run.cfs_weight is None else self.run.cfs_weight

    @property
    def lr(self) -> float:
        """The learning rate, with its default resolved."""
        return self.field.default_lr if self.run.lr is None else self.run.lr


def program(base: type = RegressionConfig) -> Program:
    """The command-line specification of a program with these options."""

    def choose(texts: Mapping[str, str]) -> Mapping[str, str]:
        defaults = {option.name: option.default for option in options(base)}
        defaults |= recipe_values(texts.get("recipe", "none"))
        return {part: str(defaults[part]) for part in PARTS}

    return Program(
        "python image_regression/main.py",
        "Fit a signal with a neural field trained on the points that a selector chooses.",
        {"": base},
        PARTS,
        choose,
    )


def parse(argv: Sequence[str] | None = None, base: type = RegressionConfig) -> Options:
    """The options that a command line and its config file describe.

    Args:
        argv: the command line without the program's name; None: that of this process.
        base: the dataclass of the run's own options.

    Raises:
        InputError: unknown option (names the nearest), value of the wrong kind or out of range, unreadable file.
    """
    given = read(argv, base)
    with given.naming_files():
        return from_values(given.texts, given.parts, base)


def read(argv: Sequence[str] | None = None, base: type = RegressionConfig) -> Given:
    """The texts of the options that a command line or its config file names; see parse."""
    return read_command_line(program(base), argv)


def given_values(
    argv: Sequence[str] | None = None, base: type = RegressionConfig
) -> tuple[dict[str, str], dict[str, str]]:
    """The texts of the options that a command line or its config file names, and the names of the parts; see parse."""
    given = read(argv, base)
    return given.texts, given.parts


def recipe_values(recipe: str, names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The defaults that a recipe sets; given the parts chosen, without its options of other parts."""
    check_choice("--recipe", recipe, RECIPES)
    found = recipe_options(recipe, None if names is None else names["field"])

    def counts(option: str) -> bool:
        part, dot, _ = option.partition(".")
        return not dot or names is None or names[part] == found[part]

    return {option: value for option, value in found.items() if counts(option)}


def from_values(values: Mapping[str, Any], names: Mapping[str, str], base: type = RegressionConfig) -> Options:
    """Options from values by command-line name; they override those of the recipe that they name.

    ``names``: the chosen name of each part.
    """
    recipe = values.get("recipe", "none")
    sized = open_options(recipe, names, values)
    values = {**recipe_values(recipe, names), **values}
    own = {name: value for name, value in values.items() if "." not in name}
    built = {}
    for part, name in names.items():
        mine = {key.split(".", 1)[1]: value for key, value in values.items() if key.startswith(part + ".")}
        built[part] = build_config(PARTS[part][name], mine, f"--{part}.")
    return Options(build_config(base, own, "--"), **built, sized=sized)


def open_options(recipe: str, names: Mapping[str, str], given: Collection[str]) -> tuple[str, ...]:
    """The options that a recipe takes from the signal's shape, given the parts chosen and the options given."""
    chosen = RECIPES.get(recipe, {})
    if chosen.get("field") != "hashgrid" or names["field"] != "hashgrid":
        return ()
    mine = [part for part in ("field", "selector") if names[part] == chosen[part]]
    # Options of its own mean the selector that the recipe names.
    named = any(n.startswith("selector.") and n.partition(".")[2] not in COMMON for n in given)
    closed = {*given, "selector"} if named else given
    return tuple(n for n in SIZED if n.partition(".")[0] in mine and n not in closed)


def as_config_file(options_: Options) -> str:
    """The options that differ from their defaults, a recipe's among them, as a config file that repeats the run."""
    values = {}
    for prefix, config in [("", options_.run), *((f"{part}.", getattr(options_, part)) for part in PARTS)]:
        for entry in fields(config):
            value = getattr(config, entry.name)
            if value != entry.default and prefix + entry.name not in ("recipe", "parameters", "resume", "overwrite"):
                values[prefix + entry.name] = value
    return write_config(values, yaml=False)
