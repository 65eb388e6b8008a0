"""Strategies × schedules × seeds on anybody's pictures, as in EVOS Table 1.

    python image_regression/compare.py --config configs/image_regression/table1.txt --input FOLDER --out runs/table1

Every run is a folder of its own, so the same command given again goes on where a comparison stopped. With several GPUs
(``--devices cuda:0,cuda:1``, or auto) it runs one process a device. Writes table.md, table.csv and psnr_over_time.png.
"""

import multiprocessing
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from math import gcd
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from evos.config import check_choice
from evos.errors import InputError, exit_on_input_error
from evos.runs import Stopper, open_run, resolve_device
from evos.runs.files import replace_file
from evos.selection import EvosConfig
from image_regression.options import Options, RegressionConfig, from_values, parse
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
    """Every run; seeds vary slowest, so that a stopped comparison has whole tables of the first seeds."""
    own = {option.name for option in RegressionConfig.__dataclass_fields__.values()}
    shared = {name: value for name, value in asdict(options.run).items() if name in own}
    steps = listed_steps(config)
    shared |= {
        "eval_every": config.eval_every or gcd(*steps, max(1, config.steps // 20)),
        "resume": not config.overwrite,
    }
    parts = {
        f"{part}.{name}": value
        for part in ("field", "transform")
        for name, value in asdict(getattr(options, part)).items()
    }
    jobs = []
    for seed in numbers("seeds", config.seeds):
        for path in find_inputs(config.input):
            for schedule in words(config.schedules):
                for strategy in words(config.strategies):
                    if schedule != "constant" and strategy in CONSTANT_ONLY:
                        continue
                    picture = "astronaut" if path is None else folder_name(path)
                    folder = Path(config.out, picture, f"{strategy}-{schedule}-{seed}")
                    values = shared | parts | SCHEDULES[schedule] | STRATEGIES[strategy]
                    values |= {"seed": seed, "out": str(folder), "input": None if path is None else str(path)}
                    names = {"selector": values["selector"], "field": config.field, "transform": config.transform}
                    made = from_values(values, names)
                    jobs.append(Job(strategy, schedule, seed, values["input"], str(folder), made))
    if not jobs:
        names = f"{config.strategies} with {config.schedules}, seeds {config.seeds}"
        raise InputError("--strategies", names, "at least one run; full and soft have no schedule but constant")
    return jobs


def run_job(job: Job, device: str, stopper: Stopper, lpips_steps: tuple[int, ...]) -> dict[str, Any]:
    """The metrics of one run, from its folder if it is complete; raises Stopped if a signal came."""
    if stopper.requested:
        raise Stopped(stopper.exit_code)
    options = replace(job.options, run=replace(job.options.run, device=device))
    signal = load(None if job.picture is None else Path(job.picture), options.run.size)
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
        "seconds": "{:.1f}",
        "points": "{:,}",
        "time_to_full": "{:.2f}",
    }
    return forms.get(name.split("@")[0].removesuffix("_spread"), "{}")


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
    lines = dict(zip(SCHEDULES, ("-", "--"), strict=True))
    for key in dict.fromkeys((job.strategy, job.schedule) for job in jobs):
        curves = [
            result["curve"] for job, result in zip(jobs, results, strict=True) if (job.strategy, job.schedule) == key
        ]
        points = list(zip(*curves, strict=True))
        seconds = [mean(entry["seconds"] for entry in column) for column in points]
        psnrs = [mean(entry["psnr"] for entry in column) for column in points]
        axis.plot(seconds, psnrs, lines[key[1]], color=colours[key[0]], label=" ".join(key))
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
    options = parse(argv, CompareConfig)
    config = options.run
    assert isinstance(config, CompareConfig)
    if config.selector != RegressionConfig.selector or options.selector != EvosConfig():
        raise InputError("--selector", config.selector, "--strategies and --schedules in a comparison")
    jobs, devices = make_jobs(config, options), all_devices(config.devices)
    # Given again, the same comparison goes on; another one in the same folder is refused.
    resume = Path(config.out).exists() and not config.overwrite
    free = ("devices", "device", "resume", "overwrite", "quiet", "out", "save_every")
    run = open_run(Path(config.out), options.resolved(), resume=resume, overwrite=config.overwrite, free=free)
    lpips_steps = tuple(listed_steps(config)) if config.lpips else ()
    with Stopper() as stopper:
        try:
            results = run_jobs(jobs, devices, stopper, lpips_steps)
        except Stopped as stopped:
            print("stopped; the same command goes on", file=sys.stderr)
            raise SystemExit(stopped.exit_code) from None
    write_tables(run.path, table_rows(config, jobs, results))
    plot(run.path, jobs, results)
    print((run.path / "table.md").read_text())


if __name__ == "__main__":
    main()
