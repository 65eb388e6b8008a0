"""Options of architecture search, and how evos/command_line.py reads them.

    python evonas/main.py STAGE --config configs/evonas/rooms.yaml out=runs/rooms search.generations=20

Each stage is a run in a folder of its own below ``out`` and records the options that bear on it (``recorded``).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from evonas.data import DataConfig
from evonas.distillation import LIBRARIES, DistillConfig
from evonas.engines import EngineConfig
from evonas.search import PICKS, SearchConfig
from evonas.space import Space, SpaceConfig, read_names
from evonas.training import PAPER_PHASES, TrainConfig
from evos.command_line import Program, read_command_line, read_list
from evos.config import build_groups, check_range
from evos.errors import InputError, unknown_name
from evos.training_options import RunOptions

STAGES = ("pretrain", "train", "search", "retrain", "evaluate", "predict", "points", "export", "run")
FIELDS = "fields"
"""The word for the search of fields, which is a program by itself."""
FREE = ("out", "resume", "overwrite", "quiet", "device", "save_every", "eval_every")


@dataclass(frozen=True)
class NasConfig(RunOptions):
    """Options of a run as such."""

    out: str = "runs/nas"
    """Folder of all stages."""

    network: str | None = None
    """Of evaluate, predict, points and export: a network.pt, or the folder that holds one; none: the knee's in ``out``,
    of evaluate all of them."""

    input: str | None = None
    """Of predict: a picture or a folder of pictures."""

    scene: str | None = None
    """Of points: an LLFF scene with sparse points, or a folder with a transforms.json that has a ply_file_path."""

    points: int = 100_000
    """Of points: most points of the cloud, at least 1."""

    output: str | None = None
    """Of predict, points and export: a folder to write, one that is there with ``overwrite`` alone; none: that of the
    stage's name in ``out``, whose files are replaced."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("points", self.points, 1)


@dataclass(frozen=True)
class PretrainConfig(TrainConfig):
    """Options of the training as a classifier, which only the largest network goes through."""

    root: str | None = None
    """Folder of the classes (train/CLASS/* and val/CLASS/* as ImageNet, or CLASS/*); none: no pretraining."""

    teacher: str | None = None
    """Whose features the network follows, by the weights of distill: timm:NAME, transformers:NAME or
    efficientnet-lite0; none: no distillation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher is not None and self.teacher.partition(":")[0] not in LIBRARIES:
            raise InputError("teacher", self.teacher, "timm:NAME, transformers:NAME or efficientnet-lite0")


@dataclass(frozen=True)
class RetrainConfig(TrainConfig):
    """Options of the training of the networks found."""

    weights: Literal["inherited", "scratch"] = "inherited"
    """Where they start: inherited from the supernet, or from scratch; ``from=scratch`` is the same."""

    picks: str = "[error, knee, fast]"
    """Which networks of the front: the one with the least error, the one at the knee, the fastest."""

    genome: str | None = None
    """One network by its genes instead, a list of whole numbers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.names:
            raise InputError("picks", self.picks, f"a list of {', '.join(PICKS)}")

    @property
    def names(self) -> list[str]:
        """``picks`` as a list."""
        return read_names("picks", self.picks, PICKS)


@dataclass(frozen=True)
class Options:
    """All options; ``phases`` are those of progressive training, none: the paper's."""

    run: NasConfig = field(default_factory=NasConfig)
    space: SpaceConfig = field(default_factory=SpaceConfig)
    data: DataConfig = field(default_factory=DataConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    phases: tuple[Any, ...] = PAPER_PHASES
    distill: DistillConfig = field(default_factory=DistillConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    retrain: RetrainConfig = field(default_factory=RetrainConfig)

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            check_range(f"data.{name}", getattr(self.data, name), 2 ** (len(Space(self.space).depths) + 1))
        Space.check_objectives(self.search.names)

    def recorded(self, *groups: str) -> dict[str, Any]:
        """What a stage's config.json holds: the run's seed and precision, and these groups."""
        values = {"seed": self.run.seed, "precision": self.run.precision}
        for name in groups:
            value = getattr(self, name)
            values[name] = list(map(dict, value)) if name == "phases" else asdict(value)
        return values

    @property
    def classification(self) -> DataConfig:
        """The data of pretraining: as the task's own, but for where and what it is."""
        return replace(self.data, task="classification", layout="folders", root=self.pretrain.root, crop="none")


GROUPS = {
    "": NasConfig,
    "space": SpaceConfig,
    "data": DataConfig,
    "pretrain": PretrainConfig,
    "train": TrainConfig,
    "distill": DistillConfig,
    "search": SearchConfig,
    "engine": EngineConfig,
    "retrain": RetrainConfig,
}
PROGRAM = Program(
    "python evonas/main.py STAGE",
    f"Evolve networks for dense prediction. STAGE is one of {', '.join(STAGES)}; or {FIELDS} (see {FIELDS} --help).",
    GROUPS,
    lists={"train.phases": "Phases of progressive training: [{epochs: 5, subnets: 2, mlp_ratio: [3, 4]}, ...]."},
)


def stage_word(words: Sequence[str]) -> str | None:
    """The first word, if it is neither an option nor its value."""
    return words[0] if words and not words[0].startswith("-") and "=" not in words[0] else None


def parse(argv: Sequence[str]) -> tuple[str, Options]:
    """The stage and the options that a command line and its config files describe.

    Raises:
        InputError: unknown stage or option (names the nearest), value of the wrong kind or out of range.
    """
    words = ["retrain.weights=" + word.partition("=")[2] if word.startswith("from=") else word for word in argv]
    stage = stage_word(words)
    words = words[stage is not None :]
    if stage is None and not {"-h", "--help"} & set(words):
        raise InputError("STAGE", None, f"one of {', '.join((*STAGES, FIELDS))}, first on the command line")
    if stage is not None and stage not in STAGES:
        raise unknown_name("STAGE", stage, (*STAGES, FIELDS))
    given = read_command_line(PROGRAM, words)
    with given.naming_files():
        texts = dict(given.texts)
        phases = texts.pop("train.phases", None)
        built = build_groups(GROUPS, texts)
        found = PAPER_PHASES if phases is None else tuple(read_list("train.phases", phases))
        return stage or "run", Options(built.pop(""), **built, phases=found)
