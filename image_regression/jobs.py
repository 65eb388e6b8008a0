"""The runs of a comparison: which there are, and running them, one process a device."""

import multiprocessing
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from itertools import product
from math import gcd
from pathlib import Path
from typing import Any

from evos.config import check_choice
from evos.errors import InputError
from evos.runs import Stopped, Stopper
from evos.signals import find_inputs, load
from image_regression.options import PARTS, Options, RegressionConfig, from_values, given_values
from image_regression.run import fit_signal

STRATEGIES: dict[str, dict[str, Any]] = {
    "full": {"selector": "full"},
    "full_cfs": {"selector": "full", "cfs_weight": 0.65},
    "uniform": {"selector": "uniform"},
    "uniform_cfs": {"selector": "uniform", "cfs_weight": 0.65},
    "egra": {"selector": "egra"},
    "expansive": {"selector": "expansive"},
    "soft": {"selector": "soft"},
    "soft_raw": {"selector": "soft", "selector.pixel_gradient": True},
    "nint": {"selector": "nint"},
    "int": {"selector": "int"},
    "int_reverse": {"selector": "int", "selector.variant": "reverse-incremental"},
    "int_dense": {"selector": "int", "selector.variant": "dense"},
    "int_dense2": {"selector": "int", "selector.variant": "dense2"},
    "evos": {"selector": "evos"},
    "evos_no_cfs": {"selector": "evos", "cfs_weight": 0.0},
}
"""Rows of the table: options that make a strategy."""

SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {"selector.keep_ratio": 0.5},
    "step": {"selector.keep_ratio": 0.2, "selector.keep_schedule": "step"},
}
"""Columns of the paper's table: how many points are kept."""

CONSTANT_ONLY = ("full", "full_cfs", "soft")
"""Strategies without a keep-ratio schedule."""


@dataclass(frozen=True)
class CompareConfig(RegressionConfig):
    """Options of a comparison, besides those of every run in it."""

    out: str = "runs/compare"
    """Folder the comparison is written to."""

    inputs: str | None = None
    """Signals and folders of them, separated by commas, in place of --input."""

    configs: str | None = None
    """Config files to compare, separated by commas, in place of strategies and schedules."""

    strategies: str = "full,uniform,evos_no_cfs,evos"
    """Strategies to compare, separated by commas (see STRATEGIES in image_regression/jobs.py); evos:crossover=add is
    one with another option of its selector or the run, and more may follow, each after a colon."""

    schedules: str = "constant"
    """Keep-ratio schedules, separated by commas: constant (0.5) and step (0.2 to 0.92)."""

    seeds: str = "0"
    """Seeds, separated by commas; with several, the table gives standard deviations."""

    at_steps: str = "1000,2000,5000"
    """Steps at which quality is listed, separated by commas; those beyond the run are left out."""

    devices: str = "auto"
    """Devices separated by commas, one process each; auto: every GPU, or the CPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.input is not None and self.inputs is not None:
            raise InputError("inputs", self.inputs, "either --input or --inputs")
        for name in words(self.strategies):
            strategy_options(name)
        for name in words(self.schedules):
            check_choice("schedules", name, SCHEDULES)
        numbers("seeds", self.seeds)
        numbers("at_steps", self.at_steps)


@dataclass(frozen=True)
class Job:
    """One run of the comparison."""

    strategy: str
    schedule: str
    seed: int
    column: str
    picture: str | None
    folder: str
    options: Options


def words(text: str) -> list[str]:
    """The parts of a list separated by commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def strategy_options(text: str) -> dict[str, Any]:
    """The options of ``NAME`` or ``NAME:OPTION=VALUE:...``.

    Raises:
        InputError: unknown strategy.
    """
    name, *more = text.split(":")
    check_choice("strategies", name, STRATEGIES)
    return STRATEGIES[name] | own_or_of_selector(more)


def own_or_of_selector(pairs: Iterable[str]) -> dict[str, str]:
    """Options from ``OPTION=VALUE`` (``OPTION`` alone is a switch); what is none of the run's is its selector's."""
    own, found = RegressionConfig.__dataclass_fields__, {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        found[key if key in own or "." in key else f"selector.{key}"] = value if equals else "true"
    return found


def numbers(name: str, text: str) -> list[int]:
    """A list of whole numbers separated by commas."""
    try:
        return [int(word) for word in words(text)]
    except ValueError:
        raise InputError(name, text, "whole numbers separated by commas") from None


def listed_steps(config: CompareConfig) -> list[int]:
    """The steps at which quality is listed, the last step among them."""
    return sorted({step for step in numbers("at_steps", config.at_steps) if step < config.steps} | {config.steps})


def make_jobs(config: CompareConfig, options: Options) -> list[Job]:
    """Every run of the strategies; seeds vary slowest, so that a stopped comparison is complete for the first."""
    own = {option.name for option in RegressionConfig.__dataclass_fields__.values()}
    shared = {name: value for name, value in asdict(config).items() if name in own}
    steps = listed_steps(config)
    shared["eval_every"] = config.eval_every or gcd(*steps, max(1, config.steps // 20))
    shared |= {
        f"{part}.{name}": value
        for part in ("field", "transform")
        for name, value in asdict(getattr(options, part)).items()
    }
    # What the recipe takes from the signal's shape; the fraction of points is a schedule's here.
    sized = [name for name in options.sized if name.startswith("field.")]
    jobs = []
    for seed, (column, path) in product(numbers("seeds", config.seeds), all_inputs(config).items()):
        for schedule, strategy in product(words(config.schedules), words(config.strategies)):
            if schedule != "constant" and strategy.partition(":")[0] in CONSTANT_ONLY:
                continue
            values, sizes = shared | SCHEDULES[schedule] | strategy_options(strategy), sized
            names = {part: values[part] for part in PARTS}
            if names["field"] != config.field:  # the strategy's own, with its defaults
                values = {name: value for name, value in values.items() if not name.startswith("field.")}
                sizes = []
            job = make_job(config, strategy, schedule, seed, column, path, values, names)
            jobs.append(replace(job, options=job.options.sized_by(options.run.recipe, options.run.parameters, sizes)))
    if not jobs:
        names = f"{config.strategies} with {config.schedules}, seeds {config.seeds}"
        raise InputError("--strategies", names, "at least one run; full and soft have no schedule but constant")
    return jobs


def without_recipe(config: CompareConfig, given: Mapping[str, str]) -> CompareConfig:
    """The config with a recipe's options as if they were given, except its selector, which the strategies vary."""
    cfs_weight = config.cfs_weight if "cfs_weight" in given else None
    return replace(config, recipe="none", parameters=None, cfs_weight=cfs_weight)


def make_config_jobs(config: CompareConfig, given: Mapping[str, str], parts: Mapping[str, str]) -> list[Job]:
    """Every run of the config files; options ``given`` to the comparison override theirs; seeds vary slowest."""
    own = {option.name for option in RegressionConfig.__dataclass_fields__.values()}
    beats = {name: value for name, value in given.items() if "." in name or name in own}
    recipe = ["--recipe", given["recipe"]] if "recipe" in given else []  # it may name parts that the file does not
    files = {}
    for path in words(config.configs or ""):
        if Path(path).stem in files:
            raise InputError("--configs", path, "files of different names")
        values, names = given_values(["--config", path, *recipe])
        files[Path(path).stem] = (values | beats, names | {part: parts[part] for part in PARTS if part in given})
    jobs = [
        make_job(config, stem, "", seed, column, path, values, names)
        for seed, (column, path) in product(numbers("seeds", config.seeds), all_inputs(config).items())
        for stem, (values, names) in files.items()
    ]
    if not jobs:
        raise InputError("--configs", f"{config.configs} with seeds {config.seeds}", "at least one run")
    return jobs


def make_job(
    config: CompareConfig,
    strategy: str,
    schedule: str,
    seed: int,
    column: str,
    path: Path | None,
    values: Mapping[str, Any],
    names: Mapping[str, str],
) -> Job:
    """One run in a folder of its own; it resumes what is there."""
    folder = str(Path(config.out, column, "-".join(filter(None, (strategy, schedule, str(seed))))))
    picture = None if path is None else str(path)
    own = {"seed": seed, "out": folder, "input": picture, "resume": not config.overwrite, "overwrite": config.overwrite}
    return Job(strategy, schedule, seed, column, picture, folder, from_values({**values, **own}, names))


def all_inputs(config: CompareConfig) -> dict[str, Path | None]:
    """The inputs compared by name; those of several folders must differ in their names."""
    kind = config.kind
    given = [find_inputs(name, "--inputs", kind) for name in words(config.inputs or "")]
    given = given or [find_inputs(config.input, kind=kind)]
    names = [name for found in given for name in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError("--inputs", ", ".join(sorted(twice)), "inputs of different names")
    return {name: path for found in given for name, path in found.items()}


# ---- running them


Outcome = dict[str, Any] | InputError
"""The metrics of a run, or why there are none."""


def run_job(job: Job, device: str, stopper: Stopper, lpips_steps: tuple[int, ...]) -> Outcome:
    """The outcome of one run, from its folder if it is complete; raises Stopped if a signal came.

    An InputError is returned: a damaged picture must not cost the runs on the others.
    """
    if stopper.requested:
        raise Stopped(stopper.exit_code)
    options = replace(job.options, run=replace(job.options.run, device=device))
    try:
        run, path = options.run, None if job.picture is None else Path(job.picture)
        signal = load(path, run.longer_side, run.factor, kind=run.kind, frames=run.frames)
        return fit_signal(signal, options, Path(job.folder), stopper, lpips_steps=lpips_steps)
    except InputError as error:
        return error


class Worker:
    """A process of its own for one device; a signal stops its present job and all that would follow."""

    device: str
    stopper: Stopper

    @classmethod
    def start(cls, queue: Any) -> None:
        """Claim a device, once in a process."""
        warnings.filterwarnings("ignore", "LPIPS is left out")  # said once, before the workers started
        cls.stopper = Stopper().__enter__()
        cls.device = queue.get()

    @classmethod
    def run(cls, job: Job, lpips_steps: tuple[int, ...]) -> Outcome:
        """One job on that device."""
        return run_job(job, cls.device, cls.stopper, lpips_steps)


def run_jobs(jobs: list[Job], devices: list[str], stopper: Stopper, lpips_steps: tuple[int, ...]) -> list[Outcome]:
    """The outcomes of all jobs, in order, one process a device; raises Stopped if a signal came."""
    if len(devices) == 1:
        return [run_job(job, devices[0], stopper, lpips_steps) for job in jobs]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    for device in devices:
        queue.put(device)
    with ProcessPoolExecutor(len(devices), context, Worker.start, (queue,)) as pool:
        futures = [pool.submit(Worker.run, job, lpips_steps) for job in jobs]
        try:
            waiting = set(futures)
            while waiting and not stopper.requested:
                done, waiting = wait(waiting, timeout=0.5)
                for future in done:
                    future.result()  # an error ends the comparison now, not when the last job is done
            if waiting:
                stop_workers()
            return [future.result() for future in futures]
        except BrokenProcessPool:  # a worker that was still starting
            if stopper.requested:
                raise Stopped(stopper.exit_code) from None
            raise
        finally:
            stop_workers()
            pool.shutdown(cancel_futures=True)


def stop_workers() -> None:
    """Have the workers end their job after its present step: a SIGTERM to this process alone does not reach them."""
    for process in multiprocessing.active_children():
        process.terminate()
