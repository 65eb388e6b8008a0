"""The command line and config files of image and sound regression: ConfigArgParse over the option dataclasses.

Options of the three exchangeable parts carry their part's name: ``--selector evos --selector.keep_ratio 0.25``,
``--field siren --field.omega 30``, ``--transform gamma --transform.gamma 2.2``. The command line beats the config file.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NoReturn

import configargparse

from evos.config import Option, build_config, check_choice, check_range, options
from evos.derivatives import SMOOTHING
from evos.errors import InputError, unknown_name
from evos.fields import FIELDS, FieldConfig
from evos.optimizers import OPTIMIZERS
from evos.schedules import LR_SCHEDULES
from evos.selection import SELECTORS, SelectorConfig
from evos.transforms import TRANSFORMS, TransformConfig

PARTS: dict[str, Mapping[str, Any]] = {
    "selector": {name: config for name, (config, _) in SELECTORS.items() if name != "tiles"},
    "field": FIELDS,
    "transform": TRANSFORMS,
}
RECIPES: dict[str, dict[str, Any]] = {
    "none": {},
    "paper": {"selector": "full", "lr": 1e-4},
    "fast": {
        "selector": "error",
        "selector.keep_ratio": 0.1,
        "cfs_weight": 0.0,
        "field": "siren",
        "field.init_scale": 1.5,
        "optimizer": "schedule_free",
        "lr": 1e-3,
        "clip_ratio": 1.05,
    },
}
"""Sets of defaults by name; options of a part (``field.init_scale``) count only with the part named there."""
FREE = ("recipe", "out", "resume", "overwrite", "save_every", "eval_every", "device", "quiet")
"""Options that may differ between a run and its resumption."""


@dataclass(frozen=True)
class RegressionConfig:
    """Options of one regression run."""

    recipe: str = "none"
    """Set of defaults, which config file and command line beat: none, paper (full batch, Adam 1e-4) or fast (the
    fastest that was measured)."""

    input: str | None = None
    """Picture (png jpg tiff webp bmp; any mode; 8 and 16 bit), sound (wav flac ogg) or folder of them to fit; none: the
    astronaut."""

    out: str = "runs/image"
    """Folder the run is written to."""

    size: int | None = None
    """Reduce the picture first, antialiased, so that its longer side has this many pixels; none: as it is."""

    factor: int = 1
    """Train on every factor-th pixel along each axis (or sample), from the first, and test on the others, at least 1;
    the signal is cropped to a multiple of it. 1: on every pixel."""

    supervision: str = "val"
    """What is trained on: val (the values), der (their derivatives, which leave the mean open: it is taken from the
    pixels trained on whenever values are needed) or val_der (both)."""

    lambda_der: float = 1.0
    """Weight of the derivative loss, at least 0."""

    der_operator: str = "sobel"
    """Finite differences of the whole signal that the derivatives are trained on, per pixel: sobel, diff or scharr."""

    selector: str = "evos"
    """Strategy that chooses the points of each step: full, uniform, egra, expansive, soft, int, nint, evos or
    error."""

    field: str = "siren"
    """Network: siren, finer, wire, gauss, relu, pemlp, fourier or hashgrid."""

    transform: str = "min_max"
    """Transform of the target before regression: min_max, z_score, sym_power, box_cox or gamma."""

    steps: int = 5000
    """Training steps, at least 1."""

    optimizer: str = "adam"
    """Optimizer: adam, muon (for the hidden matrices; Adam for the rest), soap or schedule_free."""

    lr: float | None = None
    """Learning rate, above 0, of the size that Adam's have; none: Adam's in the field's paper."""

    lr_schedule: str = "geometric"
    """How the learning rate gets to its end: geometric, cosine or linear."""

    lr_decay: float = 1.0
    """Learning rate at the last step as a share of the highest, in [0, 1], not 0 if geometric; 1: constant."""

    warmup: float = 0.0
    """Share of the steps, from the first, in which the learning rate climbs from 0, in [0, 1]."""

    ema: float = 0.0
    """Decay per step of an average of the weights, with which results are measured, in [0, 1); 0: off."""

    polish: int = 0
    """How many of the steps, the last ones, are ten iterations of L-BFGS on every point each, at least 0; they begin
    with the weights that results were measured with. Not in bf16."""

    clip_ratio: float | None = None
    """Largest norm of the gradient as a multiple of its running mean over about 50 steps, at least 1; none: any."""

    cfs_weight: float | None = None
    """Weight of cross-frequency supervision, at least 0; none: 0.65 with the evos selector, 0 with any other."""

    cfs_share: float = 0.3
    """Share of the steps, from the first, with cross-frequency supervision, in [0, 1]; dense key steps all have it."""

    seed: int = 0
    """Seed of the initial weights and of every draw, in [0, 2^32)."""

    device: str = "auto"
    """auto (cuda where there is one), cpu, cuda or cuda:n."""

    precision: str = "fp32"
    """fp32, tf32 (matrix products on CUDA) or bf16 (autocast; supervised derivatives stay fp32)."""

    compile: bool = False
    """Compile the field with torch.compile: slower start, faster steps."""

    chunk: int = 262144
    """Most points in one pass through the network; larger batches go in pieces with the same gradient. At least 1."""

    eval_every: int | None = None
    """Steps between evaluations of the whole signal, at least 1; none: a twentieth of the run."""

    save_every: int | None = None
    """Steps between checkpoints, at least 1; none: a tenth of the run."""

    lpips: bool = True
    """Measure LPIPS at the end (null where its weights can't be had)."""

    resume: bool = False
    """Go on from the run's checkpoint."""

    overwrite: bool = False
    """Replace an existing run of the same name."""

    quiet: bool = False
    """No progress bar."""

    def __post_init__(self) -> None:
        for part, table in PARTS.items():
            check_choice(part, getattr(self, part), table)
        for name in ("size", "factor", "steps", "chunk", "eval_every", "save_every"):
            check_range(name, getattr(self, name), 1)
        check_choice("recipe", self.recipe, RECIPES)
        check_choice("supervision", self.supervision, ("val", "der", "val_der"))
        check_range("lambda_der", self.lambda_der, 0)
        check_choice("der_operator", self.der_operator, SMOOTHING)
        check_range("lr", self.lr, 0, open_low=True)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("lr_schedule", self.lr_schedule, LR_SCHEDULES)
        check_range("lr_decay", self.lr_decay, 0, 1)
        if self.lr_decay == 0 and self.lr_schedule == "geometric":
            raise InputError(
                "lr_decay", self.lr_decay, "above 0 with --lr_schedule geometric; cosine and linear reach 0"
            )
        check_range("warmup", self.warmup, 0, 1)
        if not 0 <= self.ema < 1:
            raise InputError("ema", self.ema, "at least 0 and below 1")
        if self.ema > 0 and self.optimizer == "schedule_free":
            raise InputError("ema", self.ema, "0 with schedule_free, which keeps an average of its own")
        check_range("clip_ratio", self.clip_ratio, 1)
        check_range("polish", self.polish, 0, self.steps)
        if self.polish and self.precision == "bf16":
            raise InputError("polish", self.polish, "0 with --precision bf16, too coarse for a line search")
        check_range("cfs_weight", self.cfs_weight, 0)
        check_range("cfs_share", self.cfs_share, 0, 1)
        check_range("seed", self.seed, 0, 2**32 - 1)
        check_choice("precision", self.precision, ("fp32", "tf32", "bf16"))
        if self.resume and self.overwrite:
            raise InputError("overwrite", True, "either --resume or --overwrite")


@dataclass(frozen=True)
class Options:
    """A run's options with those of its parts."""

    run: RegressionConfig
    selector: SelectorConfig
    field: FieldConfig
    transform: TransformConfig

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


class ConfigFile(configargparse.DefaultConfigFileParser):
    """Lines `name = value`, every error of which is an InputError."""

    def parse(self, stream: Any) -> dict[str, str]:
        """The values by name."""
        try:
            values = super().parse(stream)
        except UnicodeDecodeError:
            raise InputError("--config", f"{stream.name} (no text)", "a text file of `name = value` lines") from None
        except configargparse.ConfigFileParserException as error:
            place = str(error).partition(" in ")[2]  # it counts lines from 0
            raise InputError("--config", place, "lines of the form `name = value`") from None
        for name, value in values.items():
            if isinstance(value, list):
                raise InputError(f"--{name}", f"the list {value}", "a single value")
        return values


class Parser(configargparse.ArgumentParser):
    """ConfigArgParse that reports what is wrong as an InputError."""

    def error(self, message: str) -> NoReturn:
        """Every error of the command line or config file is one line."""
        if found := re.fullmatch("Unable to open config file: (.*?)[.] Error: .*", message, re.DOTALL):
            raise InputError("--config", found[1], "a file that can be read")
        if found := re.fullmatch("argument (?:-c/)?(.*): expected one argument", message):
            raise InputError(found[1], "no value", f"a value; {found[1]}=VALUE where it begins with a dash")
        raise InputError("command line", message, "options as in --help")


def make_parser(parts: Mapping[str, str] | None, base: type = RegressionConfig) -> Parser:
    """The parser; with the names of the parts it knows their options too, and ``--help``."""
    parser = Parser(
        prog="python image_regression/main.py",
        description="Fit images and sounds with a neural field trained on the points that a selector chooses.",
        epilog="Options of another strategy, field or transform: name it before --help.",
        add_help=parts is not None,
        allow_abbrev=False,
        config_file_parser_class=ConfigFile,
        formatter_class=configargparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-c", "--config", is_config_file=True, help="File of `name = value` lines; the command line beats it."
    )
    groups = [("run", "", options(base))]
    groups += [(f"{part} {name}", f"{part}.", options(PARTS[part][name])) for part, name in (parts or {}).items()]
    for title, prefix, entries in groups:
        group = parser.add_argument_group(title)
        for entry in entries:
            add_option(group, prefix, entry)
    return parser


def add_option(group: Any, prefix: str, option: Option) -> None:
    """One option; its text is parsed later, so that every front end reports the same errors."""
    switch: dict[str, Any] = {"nargs": "?", "const": "true"} if option.kind is bool else {}
    default = str(option.default).lower() if option.kind is bool or option.default is None else option.default
    text = f"{option.help} (default: {default})".replace("%", "%%")
    group.add_argument(
        f"--{prefix}{option.name}",
        dest=prefix + option.name,
        default=None,
        metavar=option.kind.__name__,
        help=text,
        **switch,
    )


def parse(argv: Sequence[str] | None = None, base: type = RegressionConfig) -> Options:
    """The options that a command line and its config file describe.

    Args:
        argv: the command line without the program's name; None: that of this process.
        base: the dataclass of the run's own options.

    Raises:
        InputError: unknown option (names the nearest), value of the wrong kind or out of range, unreadable file.
    """
    return from_values(*given_values(argv, base), base)


def given_values(
    argv: Sequence[str] | None = None, base: type = RegressionConfig
) -> tuple[dict[str, str], dict[str, str]]:
    """The texts of the options that a command line or its config file names, and the names of the parts; see parse."""
    argv = list(sys.argv[1:] if argv is None else argv)
    first, _ = make_parser(None, base).parse_known_args([arg for arg in argv if arg not in ("-h", "--help")])
    names = {}
    defaults = {option.name: option.default for option in options(base)} | recipe_values(first.recipe or "none")
    for part, table in PARTS.items():
        names[part] = getattr(first, part) or defaults[part]
        check_choice("--" + part, names[part], table)
    parser = make_parser(names, base)
    found, unknown = parser.parse_known_args(argv)
    values = {name: value for name, value in vars(found).items() if value is not None and name != "config"}
    known = [entry for action in parser._actions for entry in action.option_strings if entry.startswith("--")]
    for word in unknown:
        raise (
            unknown_name("option", word.split("=")[0], known)
            if word.startswith("--")
            else InputError("command line", word, "options that start with --")
        )
    return values, names


def recipe_values(recipe: str, names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What a recipe sets; with the names of the parts chosen, without its options of other parts."""
    check_choice("--recipe", recipe, RECIPES)
    found = RECIPES[recipe]

    def counts(option: str) -> bool:
        part, dot, _ = option.partition(".")
        return not dot or names is None or names[part] == found[part]

    return {option: value for option, value in found.items() if counts(option)}


def from_values(values: Mapping[str, Any], names: Mapping[str, str], base: type = RegressionConfig) -> Options:
    """Options from values by their names on the command line, which beat those of the recipe among them.

    ``names`` says which parts they belong to.
    """
    values = {**recipe_values(values.get("recipe", "none"), names), **values}
    own = {name: value for name, value in values.items() if "." not in name}
    built = {}
    for part, name in names.items():
        mine = {key.split(".", 1)[1]: value for key, value in values.items() if key.startswith(part + ".")}
        built[part] = build_config(PARTS[part][name], mine, f"--{part}.")
    return Options(build_config(base, own, "--"), **built)


def as_config_file(options_: Options) -> str:
    """The options that differ from their defaults, a recipe's among them, as a config file that repeats the run."""
    lines = []
    for prefix, config in [("", options_.run), *((f"{part}.", getattr(options_, part)) for part in PARTS)]:
        for entry in fields(config):
            value = getattr(config, entry.name)
            if value != entry.default and prefix + entry.name not in ("recipe", "resume", "overwrite"):
                # Quoted where the parser would take a part of it for a comment.
                text = f'"{value}"' if re.search("[\\s#;'\"]", str(value)) else str(value)
                lines.append(f"{prefix}{entry.name} = {text.lower() if isinstance(value, bool) else text}")
    return "\n".join(lines) + "\n"
