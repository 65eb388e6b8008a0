"""Options of meta-learning, and how evos/command_line.py reads them.

    python generalizable/main.py --config FILE.yaml data.root=DIR train.steps=1000 model=transinr selector=error

The command line beats the config file. ``model=NAME`` and ``selector=NAME`` choose a part, ``model.rank=64`` sets one
of its options; in a file a part is its name or a mapping with ``name``. ``--resume`` stands for ``resume=true``, and so
for every switch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from evos.command_line import Program, Texts, read_command_line, read_list, write_config
from evos.config import build_config, check_choice, check_choices, check_range, options, parse_value
from evos.errors import InputError
from evos.renamed_options import unknown_option
from evos.runs import read_json
from evos.selection import SELECTORS, SelectorConfig
from evos.training_options import OptimizerOptions, RunOptions
from generalizable.instances import Resize
from generalizable.models import MODELS, ModelConfig
from generalizable.quantised import MOST_BITS

Layout = Literal[
    "auto",
    "folder",
    "celeba",
    "ffhq",
    "imagenette",
    "librispeech",
    "librispeech100",
    "learnit",
    "blender",
    "shards",
]
PAPER_LR = 1e-4
"""Adam's learning rate in the papers of all models."""
USABLE = ("full", "uniform", "error")
"""Selectors that need neither the whole data set at once nor gradients of coordinates."""
FREE = ("out", "resume", "overwrite", "quiet", "device", "eval", "lpips", "workers", "in_memory", "save_every")
"""Options that may differ between a run and its resumption."""
GROWING = ("train.steps",)
"""Options that may be larger on resumption."""
OF_EVALUATION = (
    *("out", "resume", "eval", "lpips", "quiet", "device", "train.chunk", "train.batch", "train.pictures"),
    *(f"data.{name}" for name in ("root", "layout", "sources", "test_ratio", "pieces", "eval_support_views")),
    *("data.workers", "data.in_memory"),
)
"""Options that --eval takes; all others are the run's own."""


@dataclass(frozen=True)
class RunConfig(RunOptions):
    """Options of a run as such."""

    out: str = "runs/meta"
    """Folder the run is written to."""

    eval: bool = False
    """Only evaluate the run in ``out``, by its own options, into ``out``/eval; data, device and chunk may be given."""

    lpips: bool = False
    """Measure LPIPS of pictures in the last evaluation (AlexNet's weights are downloaded once); where they can't be
    loaded, one warning says so."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.overwrite and self.eval:
            raise InputError("overwrite", True, "either --overwrite, or --resume, or --eval")


@dataclass(frozen=True)
class SourceConfig:
    """Options of one data set among several (``data.sources``)."""

    root: str = ""
    """Folder of the data set; for shards also a pattern such as shards-{000..099}.tar."""

    name: str | None = None
    """What metrics call it; none: the folder's name."""

    layout: Layout = "auto"
    """auto (by what the folder holds), folder, celeba, ffhq, imagenette, librispeech, librispeech100 (of it
    train-clean-100 and test-clean alone), learnit, blender or shards."""

    weight: float = 1.0
    """Its share of the training draws relative to the other sources', at least 0; 0: only evaluated (held out)."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_range("weight", self.weight, 0)
        if not self.root:
            raise InputError("root", self.root, "a folder of pictures, recordings or scenes")

    @property
    def title(self) -> str:
        """What metrics call it."""
        return self.name or Path(self.root).name.strip(".") or Path(self.root).resolve().name or "data"


@dataclass(frozen=True)
class DataConfig:
    """Options of the data."""

    task: Literal["image", "sound", "views"] = "image"
    """What an instance is: image, sound or views."""

    root: str | None = None
    """Folder of the one data set; for several there is data.sources."""

    layout: Layout = "auto"
    """Layout of ``root``; the same as a source's: auto, folder, celeba, ffhq, imagenette, librispeech, librispeech100,
    learnit, blender or shards."""

    size: int = 178
    """Side of a picture or view in pixels: the middle square is cut out and resized, antialiased; at least 8."""

    fine: int = 1
    """Training values of a picture come from one so many times as fine along each side: of the pixels within each cell
    one, drawn at random, is trained on in a step, while patterns are made from the picture at ``size``. For decoding at
    higher resolutions; at least 1, images only."""

    seconds: float = 1.0
    """Length of a sound, above 0; shorter recordings end in silence."""

    rate: int = 16000
    """Sampling rate sounds are resampled to, in Hz, at least 1000."""

    augment: bool = False
    """Training draws show a random window of the picture, mirrored or not, or a random stretch of the recording; not
    with selectors that remember errors by place."""

    pieces: Literal["first", "all"] = "first"
    """first: a recording gives its first ``seconds``; all: every whole piece of that length is an instance."""

    views: int = 25
    """Views of a scene that are used, at least 2; scenes with fewer are skipped."""

    support_views: int = 1
    """Views that patterns are made from in training, below ``views``."""

    eval_support_views: int = 3
    """Evaluation takes 1, 2, ... up to this number of support views, below ``views``; the others are held out."""

    near: float = 2.0
    """Where a scene begins: distance from the camera (or depth, with rays=depth), in its own units, at least 0."""

    far: float = 6.0
    """Where a scene ends, above ``near``."""

    rays: Literal["distance", "depth"] = "distance"
    """What rays are measured in: distance (directions of length 1), or depth along the camera's axis (directions as
    long as a unit of depth is along the ray: the code of instance pattern composers)."""

    resize: Resize = "bicubic"
    """How pictures and views are resized, antialiased: bicubic or bilinear (the code of instance pattern composers)."""

    centres: Literal["cell", "corner"] = "cell"
    """Where coordinates of images and sounds lie: cell (the middle of each cell: the same place at any resolution), or
    corner (the outermost at -1 and 1; decoding at another resolution shifts)."""

    test_ratio: float = 0.1
    """Ratio of the instances held out where a data set has no test part of its own, in (0, 0.5]."""

    limit: int | None = None
    """Most training instances of a source, at least 1; none: all."""

    in_memory: bool = False
    """Keep what was decoded once (for sets that fit in memory)."""

    workers: int = 0
    """Processes that decode beside each training process, at least 0."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_range("size", self.size, 8)
        check_range("fine", self.fine, 1)
        if self.fine > 1 and self.task != "image":
            raise InputError("fine", self.fine, f"1, for {self.task}")
        check_range("seconds", self.seconds, 0, open_low=True)
        check_range("rate", self.rate, 1000)
        check_range("views", self.views, 2)
        check_range("support_views", self.support_views, 1, self.views - 1)
        check_range("eval_support_views", self.eval_support_views, 1)
        if self.task == "views":
            check_range("eval_support_views", self.eval_support_views, 1, self.views - 1)
        check_range("near", self.near, 0)
        check_range("far", self.far, self.near, open_low=True)
        check_range("test_ratio", self.test_ratio, 0, 0.5, open_low=True)
        check_range("limit", self.limit, 1)
        check_range("workers", self.workers, 0)

    @property
    def samples(self) -> int:
        """T, the number of samples of a sound."""
        return max(1, round(self.seconds * self.rate))

    @property
    def shape(self) -> tuple[int, ...]:
        """The grid of an instance: (H, W), (T,) or (V, H, W), of all its views."""
        grids = {
            "image": (self.size, self.size),
            "sound": (self.samples,),
            "views": (self.views, self.size, self.size),
        }
        return grids[self.task]


@dataclass(frozen=True)
class TrainConfig(OptimizerOptions):
    """Options of the training."""

    init: str | None = None
    """Folder of a run whose weights the training begins with (fine-tuning), and, where none are named, the model's
    options come from; none: new weights."""

    steps: int = 100000
    """Training steps, at least 1."""

    batch: int = 16
    """Instances a step over all processes together, a multiple of their number: a run's result doesn't depend on it."""

    coord_noise: float = 0.0
    """Width of the uniform noise on training coordinates in cells, at least 0 (images and sounds); the paper's is 1 on
    ImageNette, 0 elsewhere."""

    bits: int | None = None
    """Bits of each number of the patterns, 1 to 8: they are rounded in training as by ``bits`` of evos encode; none:
    they are trained as 32-bit floats."""

    inner_points: Literal["all", "selected"] = "all"
    """Support points of the inner loop in training: all, or selected (those that the selector chose for the loss; not
    for views, whose support and target are different pixels)."""

    inner_rays: int = 1024
    """Rays of the support views in each inner step's loss, at least 1."""

    cache_rows: int = 4096
    """Most instances whose errors a process keeps for the selector, at least 1; beyond that the instance not seen for
    longest is forgotten and, when it comes again, treated as new."""

    chunk: int = 65536
    """Most points in one pass of an evaluation, at least 1."""

    eval_instances: int | None = 64
    """Test instances of each source in the evaluations on the way, at least 1; the last one takes all. none: all."""

    pictures: int = 4
    """Test instances of each source that are shown, at least 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "batch", "inner_rays", "cache_rows", "chunk", "eval_instances", "pictures"):
            check_range(name, getattr(self, name), 1)
        if self.optimizer not in ("adam", "muon"):
            raise InputError("optimizer", self.optimizer, "adam or muon")
        check_range("coord_noise", self.coord_noise, 0)
        check_range("bits", self.bits, 1, MOST_BITS)

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, counted from 1."""
        return (PAPER_LR if self.lr is None else self.lr) * self.lr_factor(step, self.steps)


@dataclass(frozen=True)
class Options:
    """A run's options with those of its parts."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    sources: tuple[SourceConfig, ...] = ()
    train: TrainConfig = field(default_factory=TrainConfig)
    model: ModelConfig = field(default_factory=lambda: MODELS["pattern_composer"][0]())
    selector: SelectorConfig = field(default_factory=lambda: SELECTORS["full"][0]())

    def __post_init__(self) -> None:
        check_choice("selector", self.selector.name, USABLE)
        titles = [source.title for source in self.sources]
        for title in titles:
            if titles.count(title) > 1:
                raise InputError("data.sources", f"two named {title}", "a name of its own for each source")
        if self.sources and not any(source.weight for source in self.sources):
            raise InputError("data.sources", "weights that are all 0", "a source to train on, of weight above 0")
        if self.data.augment and self.selector.name == "error":
            raise InputError("data.augment", True, "false with the error selector, which remembers errors by place")
        if self.data.augment and self.data.task == "views":
            raise InputError("data.augment", True, "false, for views")
        if self.data.fine > 1 and self.train.coord_noise > 0:
            raise InputError("train.coord_noise", self.train.coord_noise, "0 with data.fine, which knows what is there")
        if getattr(self.model, "view_places", False):
            check_range("data.eval_support_views", self.data.eval_support_views, 1, self.data.support_views)
        if self.train.inner_points == "selected" and self.data.task == "views":
            raise InputError("train.inner_points", "selected", "all, for views")

    def resolved(self) -> dict[str, Any]:
        """Every option as a config file names it; ``from_values`` builds the same options from it."""
        data = asdict(self.data) | {"sources": [asdict(source) for source in self.sources]}
        del data["root"], data["layout"]
        parts = {name: {"name": part.name, **asdict(part)} for name, part in self.parts.items()}
        return {**asdict(self.run), "data": data, "train": asdict(self.train), **parts}

    @property
    def parts(self) -> dict[str, Any]:
        """The exchangeable parts by name."""
        return {"model": self.model, "selector": self.selector}


PARTS: dict[str, tuple[Mapping[str, Any], str, dict[str, Any]]] = {
    "model": ({name: config for name, (config, _) in MODELS.items()}, "pattern_composer", {}),
    "selector": ({name: SELECTORS[name][0] for name in USABLE}, "full", {}),
}
"""Of each exchangeable part: the configs by name, the default name, and defaults of this application's own."""


SWITCH = next(option for option in options(RunConfig) if option.name == "eval")
"""How the text of a switch is read."""


def choose(texts: Texts) -> Mapping[str, str]:
    """The parts where nothing names others."""
    return {part: default for part, (_, default, _) in PARTS.items()}


PROGRAM = Program(
    "python generalizable/main.py",
    "Train one network that represents whole data sets, each instance as a small pattern.",
    {"": RunConfig, "data": DataConfig, "train": TrainConfig},
    {part: table for part, (table, _, _) in PARTS.items()},
    choose,
    {"data.sources": "Several data sets: [{root: DIR}, {root: DIR2, name: N, layout: L, weight: 2}]."},
)


def parse(argv: Sequence[str] | None = None) -> Options:
    """The options that a command line (None: that of this process) and its config files describe.

    Raises:
        InputError: unknown option (names the nearest), value of the wrong kind or out of range, unreadable file.
    """
    given = read_command_line(PROGRAM, argv)
    nested: dict[str, Any] = {part: {"name": name} for part, name in given.parts.items()}
    for name, text in given.texts.items():
        group, dot, option = name.partition(".")
        if dot:
            nested.setdefault(group, {})[option] = text
        elif name not in PARTS:
            nested[name] = text
    with given.naming_files():
        if parse_value("eval", SWITCH, given.texts.get("eval", "false")):
            return for_evaluation(given.texts)
        if (init := nested.get("train", {}).get("init", "none")).lower() != "none":
            named = any(name.partition(".")[0] == "model" for name in given.texts)
            own = Path(given.texts.get("out", RunConfig.out))
            resumes = parse_value("resume", SWITCH, given.texts.get("resume", "false"))
            # A resumption needs the run that it began with no more.
            began = own if resumes and (own / "checkpoint.pt").exists() else Path(init)
            return for_fine_tuning(nested, began, model_given=named)
        return from_values(nested)


def for_fine_tuning(nested: dict[str, Any], folder: Path, *, model_given: bool) -> Options:
    """Options of a run that begins with the weights of the run in ``folder``.

    Raises:
        InputError: there is no such run, or its model is of other options, kind of signal or coordinates.
    """
    if not (folder / "checkpoint.pt").exists():
        raise InputError("train.init", str(folder), "the folder of a run with a checkpoint")
    recorded = recorded_options(folder, "train.init")
    found = from_values(nested if model_given else nested | {"model": recorded["model"]})
    old, new = (flattened(each.resolved()) for each in (from_values(recorded), found))
    for name in (*(name for name in new if name.startswith("model.")), "data.task", "data.centres"):
        if new[name] != old.get(name):
            raise InputError(name, new[name], f"{old.get(name)}, as {folder}/config.json has it, with train.init")
    return found


def for_evaluation(texts: Texts) -> Options:
    """The options by which the run in ``out`` is evaluated: its own, with those of ``OF_EVALUATION`` as given.

    Raises:
        InputError: there is no such run, or another option is given and differs from the run's.
    """
    folder = Path(texts.get("out", RunConfig.out))
    if not (folder / "checkpoint.pt").exists():
        raise InputError("out", str(folder), "the folder of a run with a checkpoint, for --eval")
    recorded = recorded_options(folder, "out") | {"out": str(folder), "eval": True, "resume": False, "overwrite": False}
    run = from_values(recorded)
    of_the_run = f"as {folder}/config.json has it: an evaluation takes the run's own options"
    merged = {name: dict(value) if isinstance(value, dict) else value for name, value in recorded.items()}
    if "data.root" in texts:
        merged["data"].pop("sources", None)
    for name, text in texts.items():
        group, dot, option = name.partition(".")
        if name in PARTS:
            if text != run.parts[name].name:
                raise InputError(name, text, f"{run.parts[name].name}, {of_the_run}")
        elif dot:
            merged.setdefault(group, {})[option] = text
        else:
            merged[name] = text
    found = from_values(merged)
    old, new = (flattened(each.resolved()) for each in (run, found))
    for name in texts:
        if name not in (*OF_EVALUATION, *PARTS) and new[name] != old[name]:
            raise InputError(name, texts[name], f"{old[name]}, {of_the_run}")
    return found


def recorded_options(folder: Path, argument: str) -> dict[str, Any]:
    """The options in the config.json of a run of this program, as ``Options.resolved`` gave them.

    Raises:
        InputError: there is no such file, or it is that of another program or an earlier version.
    """
    recorded = read_json(folder / "config.json")
    found = recorded.get("options") if isinstance(recorded, dict) else None
    if not isinstance(found, dict) or not isinstance(found.get("data"), dict) or "model" not in found:
        raise InputError(argument, str(folder), "the folder of a run of generalizable/main.py")
    if "centres" not in found["data"]:
        raise InputError(argument, f"{folder}, recorded without data.centres", "a run of this version: train it again")
    return found


def flattened(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of two levels by dotted name."""
    groups = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    inner = {f"{group}.{name}": value for group, mapped in groups.items() for name, value in mapped.items()}
    return {key: value for key, value in values.items() if key not in groups} | inner


def from_values(values: Mapping[str, Any]) -> Options:
    """Options from nested plain values, such as ``Options.resolved`` gives.

    Raises:
        InputError: as ``parse``.
    """
    groups = ("data", "train", *PARTS)
    own = {key: value for key, value in values.items() if key not in groups}
    known = [option.name for option in options(RunConfig)]
    for key in own:
        if key not in known:
            raise unknown_option(key, [*known, *groups])
    data = mapping("data", values.get("data"))
    sources = read_sources(data)
    built = {name: build_part(name, mapping(name, values.get(name))) for name in PARTS}
    return Options(
        build_config(RunConfig, own),
        build_config(DataConfig, {key: value for key, value in data.items() if key != "sources"}, "data."),
        sources,
        build_config(TrainConfig, mapping("train", values.get("train")), "train."),
        **built,
    )


def build_part(part: str, values: dict[str, Any]) -> Any:
    """The config of an exchangeable part from its name and options."""
    table, default, defaults = PARTS[part]
    name = values.get("name", default)
    check_choice(part, name, table)
    given = {key: value for key, value in values.items() if key != "name"}
    return build_config(table[name], defaults.get(name, {}) | given, f"{part}.")


def read_sources(data: Mapping[str, Any]) -> tuple[SourceConfig, ...]:
    """``data.sources``, or the one that ``data.root`` and ``data.layout`` name."""
    listed = data.get("sources") or []
    listed = read_list("data.sources", listed) if isinstance(listed, str) else listed
    if not isinstance(listed, list):
        raise InputError("data.sources", listed, "a list such as [{root: DIR}, {root: DIR2, weight: 2}]")
    if data.get("root") is not None:
        if listed:
            raise InputError("data.root", data["root"], "either data.root or data.sources")
        listed = [{"root": data["root"], "layout": data.get("layout", "auto")}]
    entries = [{"root": entry} if isinstance(entry, str) else entry for entry in listed]
    return tuple(
        build_config(SourceConfig, mapping(f"data.sources[{i}]", entry), f"data.sources[{i}].")
        for i, entry in enumerate(entries)
    )


def mapping(name: str, value: Any) -> dict[str, Any]:
    """A group of options, which may be absent."""
    if not isinstance(value, dict | None):
        raise InputError(name, value, f"options such as {name}.NAME=VALUE")
    return value or {}


def as_yaml(options_: Options) -> str:
    """The options that differ from their defaults, as a config file that repeats the run."""
    values: dict[str, Any] = {}
    groups = {"": options_.run, "data.": options_.data, "train.": options_.train}
    for prefix, config in [*groups.items(), *((f"{name}.", part) for name, part in options_.parts.items())]:
        if prefix.removesuffix(".") in PARTS:
            values[prefix.removesuffix(".")] = config.name
        for entry in fields(config):
            value = getattr(config, entry.name)
            if value != entry.default and entry.name not in ("resume", "overwrite", "eval", "root", "layout"):
                values[prefix + entry.name] = value
    if options_.sources:
        values["data.sources"] = [
            {name: value for name, value in asdict(source).items() if value is not None} for source in options_.sources
        ]
    return write_config(values, yaml=True)
