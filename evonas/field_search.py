"""Search for a neural field of your own signals; ends in config files that image_regression runs.

    python evonas/main.py fields --config configs/evonas/field.yaml input=photo.png out=runs/field
    python image_regression/main.py --config runs/field/fields/error.txt --out runs/photo

Writes into ``out``: archive.jsonl (all that was measured), front.csv, pareto.png, hypervolume.png, and in fields/ a
config file each of the field of least error, of the one at the knee and of the fastest.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from evonas.evolution import SearchConfig
from evonas.field_evaluation import FieldEvaluator, Measuring
from evonas.field_space import FieldSpace, FieldSpaceConfig
from evonas.field_training import RECIPE, FieldTrainConfig
from evonas.genomes import Genome
from evonas.search import PICKS, Result, pick, search, write_report
from evos.command_line import Program, read_command_line, read_list, write_config
from evos.config import build_groups, check_range
from evos.errors import InputError
from evos.runs import Stopper, open_run, replace_file, resolve_device
from evos.runs.outputs import make_folder
from evos.signals import Signal, find_inputs, load
from evos.training_options import RunOptions

FREE = ("out", "resume", "overwrite", "quiet", "device", "save_every", "eval_every", "workers")


@dataclass(frozen=True)
class FieldRunConfig(RunOptions):
    """Options of a run as such."""

    out: str = "runs/field"
    """Folder the search is written to."""

    input: str | None = None
    """Picture, sound or folder of them, or a list of such in brackets; a field's error is its mean over all of them."""

    longer_side: int | None = None
    """Downscale pictures first, antialiased, so that their longer side has this many pixels; none: original size."""

    workers: int = 1
    """Processes that train fields, each with one thread, at least 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("longer_side", self.longer_side, 1)
        check_range("workers", self.workers, 1)
        if self.precision != "fp32":
            raise InputError("precision", self.precision, "fp32")


@dataclass(frozen=True)
class FieldSearchConfig(SearchConfig):
    """Options of the search: those of architectures, with defaults for fields."""

    population: int = 18
    """Genomes kept, and new genomes a generation, at least 4."""

    generations: int = 20
    """Generations, the first, random one included, at least 1."""

    mutation: float = 0.9
    """Probability that an offspring mutates, 0 to 1; each of its genes then does with one over their number."""

    objectives: str = "[error, seconds, parameters]"
    """What is minimised: error (root mean square error at the mean PSNR), seconds (of one CPU thread, that training
    takes) and parameters; error and at least one of the others."""


@dataclass(frozen=True)
class FieldOptions:
    """All options."""

    run: FieldRunConfig = field(default_factory=FieldRunConfig)
    space: FieldSpaceConfig = field(default_factory=FieldSpaceConfig)
    train: FieldTrainConfig = field(default_factory=FieldTrainConfig)
    search: FieldSearchConfig = field(default_factory=FieldSearchConfig)

    def __post_init__(self) -> None:
        FieldSpace.check_objectives(self.search.names)


GROUPS = {"": FieldRunConfig, "space": FieldSpaceConfig, "train": FieldTrainConfig, "search": FieldSearchConfig}
PROGRAM = Program("python evonas/main.py fields", "Search for a neural field of your own signals.", GROUPS)


def parse(argv: Sequence[str]) -> FieldOptions:
    """The options that a command line and its config files describe.

    Raises:
        InputError: unknown option (names the nearest), value of the wrong kind or out of range.
    """
    given = read_command_line(PROGRAM, argv)
    with given.naming_files():
        built = build_groups(GROUPS, given.texts)
        return FieldOptions(built.pop(""), **built)


def read_signals(run: FieldRunConfig) -> list[Signal]:
    """The signals that ``input`` names; raises InputError where there are none, or pictures and sounds together."""
    if run.input is None:
        raise InputError("input", None, "a picture, a sound, or a folder of them")
    names = read_list("input", run.input) if run.input.startswith("[") else [run.input]
    paths = [path for name in names for path in find_inputs(str(name)).values()]
    signals = [load(path, run.longer_side) for path in paths]
    if not signals or {len(each.shape) for each in signals} not in ({1}, {2}):
        raise InputError("input", run.input, "pictures, or sounds, and at least one")
    return signals


def search_fields(options: FieldOptions, stopper: Stopper) -> Result:
    """Search in ``out``, or go on, and write the report and the config files."""
    run, out = options.run, Path(options.run.out)
    device, signals = resolve_device(run.device), read_signals(run)
    if device.type != "cpu" and run.workers > 1:
        raise InputError("workers", run.workers, "1 on a GPU, which trains many fields at once")
    try:
        space = FieldSpace(options.space, len(signals[0].shape), max(each.values.shape[-1] for each in signals))
    except InputError as error:
        raise InputError(f"space.{error.argument}", error.got, error.allowed) from None
    groups = {"space": asdict(options.space), "train": asdict(options.train), "search": asdict(options.search)}
    recorded = {"input": run.input, "longer_side": run.longer_side, "seed": run.seed, **groups}
    open_run(out, recorded, resume=run.resume, overwrite=run.overwrite, free=FREE)
    setting = Measuring(space, signals, options.train, options.search.names, run.seed, device)
    with FieldEvaluator(setting, out, workers=run.workers, stopped=lambda: stopper.exit_code) as evaluate:
        found = search(space, options.search, evaluate, out, quiet=run.quiet, stopped=lambda: stopper.exit_code)
    write_report(found, space, out)
    make_folder(out / "fields")
    for name in PICKS:
        genome = pick(found.front, name)
        text = as_config_file(space, genome, found.evaluated[genome], run, name)
        replace_file(out / "fields" / f"{name}.txt", text.encode())
    return found


def as_config_file(space: FieldSpace, genome: Genome, values: dict[str, float], run: FieldRunConfig, name: str) -> str:
    """A config file for image_regression that trains a field as the search did, to its full length."""
    alone = run.input is not None and not run.input.startswith("[") and not Path(run.input).is_dir()
    own = {
        "recipe": "fast",
        **({"input": run.input} if alone else {}),
        **({} if run.longer_side is None else {"longer_side": run.longer_side}),
        **space.decode(genome).values(),
        "selector.keep_ratio": RECIPE["selector.keep_ratio"],  # which the recipe would suit to a grid
        "decay": 1.0,  # whose length is not known when it begins, a search trains at constant rates
        "steps": int(values["steps"]),
        **({"seed": run.seed} if run.seed else {}),
    }
    title = f"# Found by a search of fields ({name} of its front): {space.describe(genome)}."
    program = "python image_regression/main.py --config FILE --out FOLDER" + ("" if alone else " --input SIGNAL")
    return f"{title}\n# {program}\n{write_config(own, yaml=False)}"


def main(argv: Sequence[str], stopper: Stopper) -> None:
    """The stage ``fields``: search and say what was found."""
    options = parse(argv)
    found = search_fields(options, stopper)
    best = found.front[0][1]
    file = Path(options.run.out) / "fields" / "error.txt"
    print(
        f"{len(found.evaluated)} fields; the best in {best['seconds']:.2g} s a signal: {best['parameters']:,.0f} "
        f"parameters, root mean square error {best['error']:.4f}\n"
        f"train it: {Path(sys.executable).name} image_regression/main.py --config {file}"
    )
