"""Strategies × schedules × seeds on anybody's pictures, as in EVOS Table 1; or config files × inputs × seeds.

    python image_regression/compare.py --config configs/image_regression/table1.txt --input FOLDER --out runs/a
    python image_regression/compare.py --config configs/image_regression/sobolev_set5.txt --inputs FOLDER --out runs/b

With ``--configs`` a run has the options of one of these files, and those given to the comparison beat it; the table has
a column for each input.

Every run is a folder of its own, so the same command given again goes on where a comparison stopped. With several GPUs
(``--devices cuda:0,cuda:1``, or auto) it runs one process a device. Writes table.md, table.csv and psnr_over_time.png.
"""

import multiprocessing
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from itertools import product
from math import gcd
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from evos.config import check_choice
from evos.errors import InputError, exit_on_input_error
from evos.runs import Stopper, open_run, resolve_device
from evos.runs.files import replace_file
from image_regression.options import PARTS, Options, RegressionConfig, from_values, given_values
from image_regression.report import save_figure
from image_regression.run import Stopped, fit_signal
from image_regression.signals import find_inputs, folder_name, load
from image_regression.summary import cell, markdown_table, write_csv

STRATEGIES: dict[str, dict[str, Any]] = {
    "full": {"selector": "full"},
    "full_cfs": {"selector": "full", "cfs_weight": 0.65},
    "uniform": {"selector": "uniform"},
    "uniform_cfs": {"selector": "uniform", "cfs_weight": 0.65},
    "egra": {"selector": "egra"},
    "expansive": {"selector": "expansive"},
    "soft": {"selector": "soft"},
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
    """Pictures, sounds and folders of them, separated by commas, in place of --input."""

    configs: str | None = None
    """Config files to compare, separated by commas, in place of strategies and schedules."""

    strategies: str = "full,uniform,evos_no_cfs,evos"
    """Strategies to compare, separated by commas (see STRATEGIES in compare.py)."""

    schedules: str = "constant"
    """Keep-ratio schedules, separated by commas: constant (0.5) and step (0.2 to 0.92)."""

    seeds: str = "0"
    """Seeds, separated by commas; with several, the table gives their spread."""

    at_steps: str = "1000,2000,5000"
    """Steps at which quality is listed, separated by commas; those beyond the run are left out."""

    devices: str = "auto"
    """Devices separated by commas, one process each; auto: every GPU, or the CPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.input is not None and self.inputs is not None:
            raise InputError("inputs", self.inputs, "either --input or --inputs")
        for name in words(self.strategies):
            check_choice("strategies", name, STRATEGIES)
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
    """Every run of the strategies; seeds vary slowest, so that a stopped comparison has whole tables of the first."""
    own = {option.name for option in RegressionConfig.__dataclass_fields__.values()}
    shared = {name: value for name, value in asdict(config).items() if name in own}
    steps = listed_steps(config)
    shared["eval_every"] = config.eval_every or gcd(*steps, max(1, config.steps // 20))
    shared |= {
        f"{part}.{name}": value
        for part in ("field", "transform")
        for name, value in asdict(getattr(options, part)).items()
    }
    jobs = []
    for seed, path in product(numbers("seeds", config.seeds), all_inputs(config)):
        for schedule, strategy in product(words(config.schedules), words(config.strategies)):
            if schedule != "constant" and strategy in CONSTANT_ONLY:
                continue
            values = shared | SCHEDULES[schedule] | STRATEGIES[strategy]
            names = {"selector": values["selector"], "field": config.field, "transform": config.transform}
            jobs.append(make_job(config, strategy, schedule, seed, path, values, names))
    if not jobs:
        names = f"{config.strategies} with {config.schedules}, seeds {config.seeds}"
        raise InputError("--strategies", names, "at least one run; full and soft have no schedule but constant")
    return jobs


def without_recipe(config: CompareConfig, given: Mapping[str, str]) -> CompareConfig:
    """A recipe's options as if they were given, but for its selection, which is what the strategies vary."""
    return replace(config, recipe="none", cfs_weight=config.cfs_weight if "cfs_weight" in given else None)


def make_config_jobs(config: CompareConfig, given: Mapping[str, str], parts: Mapping[str, str]) -> list[Job]:
    """Every run of the config files, whose options those ``given`` to the comparison beat; seeds vary slowest."""
    own = {option.name for option in RegressionConfig.__dataclass_fields__.values()}
    beats = {name: value for name, value in given.items() if "." in name or name in own}
    files = {}
    for path in words(config.configs or ""):
        if Path(path).stem in files:
            raise InputError("--configs", path, "files of different names")
        values, names = given_values(["--config", path])
        files[Path(path).stem] = (values | beats, names | {part: parts[part] for part in PARTS if part in given})
    jobs = [
        make_job(config, stem, "", seed, path, values, names)
        for seed, path in product(numbers("seeds", config.seeds), all_inputs(config))
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
    path: Path | None,
    values: Mapping[str, Any],
    names: Mapping[str, str],
) -> Job:
    """One run, in a folder of its own, which goes on from what is there."""
    column = "astronaut" if path is None else folder_name(path)
    folder = str(Path(config.out, column, "-".join(filter(None, (strategy, schedule, str(seed))))))
    picture = None if path is None else str(path)
    own = {"seed": seed, "out": folder, "input": picture, "resume": not config.overwrite, "overwrite": config.overwrite}
    return Job(strategy, schedule, seed, column, picture, folder, from_values({**values, **own}, names))


def all_inputs(config: CompareConfig) -> list[Path | None]:
    """The inputs compared; those of several folders must differ in their names."""
    found = [each for name in words(config.inputs or "") for each in find_inputs(name)] or find_inputs(config.input)
    names = [folder_name(path) for path in found if path is not None]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError("--inputs", ", ".join(sorted(twice)), "inputs of different names")
    return found


def run_job(job: Job, device: str, stopper: Stopper, lpips_steps: tuple[int, ...]) -> dict[str, Any]:
    """The metrics of one run, from its folder if it is complete; raises Stopped if a signal came."""
    if stopper.requested:
        raise Stopped(stopper.exit_code)
    options = replace(job.options, run=replace(job.options.run, device=device))
    signal = load(None if job.picture is None else Path(job.picture), options.run.size, options.run.factor)
    return fit_signal(signal, options, Path(job.folder), stopper, lpips_steps=lpips_steps)


class Worker:
    """A process of its own for one device; a signal stops its present job and all that would follow."""

    device: str
    stopper: Stopper

    @classmethod
    def start(cls, queue: Any) -> None:
        """Claim a device, once in a process."""
        cls.stopper = Stopper().__enter__()
        cls.device = queue.get()

    @classmethod
    def run(cls, job: Job, lpips_steps: tuple[int, ...]) -> dict[str, Any]:
        """One job on that device."""
        return run_job(job, cls.device, cls.stopper, lpips_steps)


def run_jobs(
    jobs: list[Job], devices: list[str], stopper: Stopper, lpips_steps: tuple[int, ...]
) -> list[dict[str, Any]]:
    """The metrics of all jobs, in order, one process a device; raises Stopped if a signal came."""
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


def seconds_to(psnr: float, curve: Iterable[Mapping[str, float]]) -> float | None:
    """Training seconds at which a curve first reaches ``psnr``, interpolated; None if it never does."""
    before = {"seconds": 0.0, "psnr": None}
    for entry in curve:
        if entry["psnr"] >= psnr:
            if before["psnr"] is None:
                return entry["seconds"]
            share = (psnr - before["psnr"]) / (entry["psnr"] - before["psnr"])
            return before["seconds"] + share * (entry["seconds"] - before["seconds"])
        before = dict(entry)
    return None


def table_rows(config: CompareConfig, jobs: list[Job], results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each strategy and schedule: means over pictures and seeds, spread of the final PSNR over seeds."""
    done = list(zip(jobs, results, strict=True))
    full = {(job.picture, job.seed): result for job, result in done if job.strategy == "full"}
    rows = []
    for schedule in words(config.schedules):
        for strategy in words(config.strategies):
            mine = [(job, result) for job, result in done if (job.strategy, job.schedule) == (strategy, schedule)]
            if not mine:
                continue
            row: dict[str, Any] = {"strategy": strategy, "schedule": schedule}
            row["cfs"] = "yes" if mine[0][0].options.cfs_weight > 0 else "no"
            for step in listed_steps(config):
                entries = [entry for _, result in mine for entry in result["curve"] if entry["step"] == step]
                for key in ("psnr", "ssim", "lpips"):
                    values = [entry[key] for entry in entries if entry.get(key) is not None]
                    row[f"{key}@{step}"] = mean(values) if values else None
            seeds = sorted({job.seed for job, _ in mine})
            of_seed = [mean(result["psnr"] for job, result in mine if job.seed == seed) for seed in seeds]
            row["psnr_spread"] = stdev(of_seed) if len(of_seed) > 1 else None
            row["seconds"] = mean(result["train_seconds"] for _, result in mine)
            row["points"] = round(mean(result["points_evaluated"] for _, result in mine))
            shares = [reach_full(result, full.get((job.picture, job.seed))) for job, result in mine]
            row["reached_full"] = f"{sum(share is not None for share in shares)}/{len(shares)}" if full else None
            reached = [share for share in shares if share is not None]
            row["time_to_full"] = mean(reached) if reached and len(reached) == len(shares) else None
            rows.append(row)
    return rows


def reach_full(result: Mapping[str, Any], full: Mapping[str, Any] | None) -> float | None:
    """Seconds to the full run's final PSNR as a share of the full run's seconds."""
    seconds = None if full is None else seconds_to(full["psnr"], result["curve"])
    return None if seconds is None or full is None else seconds / full["train_seconds"]


def form_of(name: str) -> str:
    """How a column's numbers are written."""
    forms = {
        "psnr": "{:.2f}",
        "ssim": "{:.4f}",
        "lpips": "{:.4f}",
        "snr": "{:.2f}",
        "seconds": "{:.1f}",
        "points": "{:,}",
        "time_to_full": "{:.2f}",
    }
    return forms.get(name.split("@")[0].removeprefix("held_out_").removesuffix("_spread"), "{}")


def measures(results: list[dict[str, Any]]) -> list[str]:
    """The measures of a table with a column for each input: those not trained on, where there are any."""
    prefix = "held_out_" if any("held_out_psnr" in result for result in results) else ""
    names = [f"{prefix}{name}" for name in ("psnr", "ssim", "snr")]
    return [name for name in names if any(result.get(name) is not None for result in results)]


def input_rows(jobs: list[Job], results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each config and input: means and standard deviations over seeds of each measure, mean seconds."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for job, result in zip(jobs, results, strict=True):
        groups.setdefault((job.strategy, job.column), []).append(result)
    rows = []
    for (config, column), runs in groups.items():
        row: dict[str, Any] = {"config": config, "input": column, "runs": len(runs)}
        for name in measures(results):
            values = [run[name] for run in runs if run.get(name) is not None]
            row[name] = mean(values) if values else None
            row[f"{name}_spread"] = stdev(values) if len(values) > 1 else None
        rows.append(row | {"seconds": mean(run["train_seconds"] for run in runs)})
    return rows


def write_input_tables(folder: Path, rows: list[dict[str, Any]], names: list[str]) -> None:
    """table.csv, and table.md with a line for each config and a column for each input."""
    cells = {(row["config"], row["input"]): row for row in rows}
    configs, inputs = (list(dict.fromkeys(row[key] for row in rows)) for key in ("config", "input"))

    def text(row: Mapping[str, Any]) -> str:
        parts = []
        for name in names:
            spread = row.get(f"{name}_spread")
            more = "" if spread is None else f" ± {cell(form_of(name), spread)}"
            parts.append(cell(form_of(name), row[name]) + more)
        return " / ".join(parts)

    lines = []
    for config in configs:
        mine = [cells[config, column] for column in inputs]
        known = {name: [row[name] for row in mine if row[name] is not None] for name in names}
        average = {name: mean(values) if values else None for name, values in known.items()}
        seconds = mean(row["seconds"] for row in mine)
        lines.append([config, *map(text, mine), text(average), f"{seconds:.1f}"])
    note = f"\n{' / '.join(names)}: means over seeds, ± their standard deviation; seconds of training of a run.\n"
    table = markdown_table(["config", *inputs, "mean", "seconds"], lines)
    replace_file(folder / "table.md", (table + note).encode())
    write_csv(folder / "table.csv", list(rows[0]), rows)


def write_tables(folder: Path, rows: list[dict[str, Any]]) -> None:
    """table.md and table.csv."""
    columns = list(rows[0])
    note = """
Means over pictures and seeds; psnr_spread: standard deviation over seeds; time_to_full: training seconds to the full
run's final PSNR as a share of the full run's (a dash where not every run got there; reached_full: how many did).
"""
    lines = [[cell(form_of(name), row[name]) for name in columns] for row in rows]
    replace_file(folder / "table.md", (markdown_table(columns, lines) + note).encode())
    write_csv(folder / "table.csv", columns, rows)


def plot(folder: Path, jobs: list[Job], results: list[dict[str, Any]]) -> None:
    """PSNR over training seconds, both averaged over pictures and seeds."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(9, 6), layout="constrained")
    colours = {name: f"C{place}" for place, name in enumerate(dict.fromkeys(job.strategy for job in jobs))}
    lines = {"step": "--"}
    for key in dict.fromkeys((job.strategy, job.schedule) for job in jobs):
        curves = [
            result["curve"] for job, result in zip(jobs, results, strict=True) if (job.strategy, job.schedule) == key
        ]
        points = list(zip(*curves, strict=True))
        seconds = [mean(entry["seconds"] for entry in column) for column in points]
        psnrs = [mean(entry["psnr"] for entry in column) for column in points]
        axis.plot(seconds, psnrs, lines.get(key[1], "-"), color=colours[key[0]], label=" ".join(key).strip())
    axis.set(xlabel="training seconds", ylabel="PSNR (dB)")
    axis.grid(alpha=0.3)
    axis.legend()
    save_figure(figure, folder / "psnr_over_time.png")
    plt.close(figure)


def all_devices(text: str) -> list[str]:
    """The devices named, or every GPU, or the CPU."""
    if text != "auto":
        return [str(resolve_device(name)) for name in words(text)] or ["cpu"]
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]


@exit_on_input_error
def main(argv: list[str] | None = None) -> None:
    """The program."""
    given, parts = given_values(argv, CompareConfig)
    options = from_values(given, parts, CompareConfig)
    config = options.run
    assert isinstance(config, CompareConfig)
    if config.configs is not None:
        if tables := {"strategies", "schedules", "at_steps"} & set(given):
            raise InputError("--configs", config.configs, f"no --{tables.pop()} beside it")
        jobs = make_config_jobs(config, given, parts)
    elif named := next((name for name in given if name.partition(".")[0] == "selector"), None):
        raise InputError(f"--{named}", given[named], "--strategies and --schedules in a comparison")
    else:
        jobs = make_jobs(without_recipe(config, given), options)
    devices = all_devices(config.devices)
    # Given again, the same comparison goes on; another one in the same folder is refused.
    resume = Path(config.out).exists() and not config.overwrite
    free = ("devices", "device", "resume", "overwrite", "quiet", "out", "save_every")
    run = open_run(Path(config.out), options.resolved(), resume=resume, overwrite=config.overwrite, free=free)
    lpips_steps = tuple(listed_steps(config)) if config.lpips and config.configs is None else ()
    with Stopper() as stopper:
        try:
            results = run_jobs(jobs, devices, stopper, lpips_steps)
        except Stopped as stopped:
            print("stopped; the same command goes on", file=sys.stderr)
            raise SystemExit(stopped.exit_code) from None
    if config.configs is None:
        write_tables(run.path, table_rows(config, jobs, results))
    else:
        write_input_tables(run.path, input_rows(jobs, results), measures(results))
    plot(run.path, jobs, results)
    print((run.path / "table.md").read_text())


if __name__ == "__main__":
    main()
