"""The results of a comparison: a table for each kind, and a plot of PSNR over seconds."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from evos.runs.files import replace_file, save_figure
from image_regression.jobs import CompareConfig, Job, listed_steps, words
from image_regression.summary import cell, form_of, markdown_table, write_csv


def seconds_to(psnr: float | int, curve: Iterable[Mapping[str, Any]]) -> float | None:
    """Training seconds at which a curve first reaches ``psnr``, interpolated; None if it never does."""
    before = {"seconds": 0.0, "psnr": None}
    for entry in curve:
        if entry["psnr"] >= psnr:
            if before["psnr"] is None or math.isinf(entry["psnr"]):  # between which nothing is known
                return entry["seconds"]
            fraction = (psnr - before["psnr"]) / (entry["psnr"] - before["psnr"])
            return before["seconds"] + fraction * (entry["seconds"] - before["seconds"])
        before = dict(entry)
    return None


def average(values: Iterable[float | None]) -> float | None:
    """The mean of the values there are; infinite with one of them (a perfect fit), None without any."""
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def spread(values: Iterable[float | None]) -> float | None:
    """The standard deviation of the values there are; None below two of them, or with an infinite one."""
    known = [value for value in values if value is not None]
    return stdev(known) if len(known) > 1 and all(map(math.isfinite, known)) else None


Done = list[tuple[Job, dict[str, Any]]]
"""Jobs with their metrics."""


def table_rows(config: CompareConfig, done: Done) -> list[dict[str, Any]]:
    """A row for each strategy and schedule: means over pictures and seeds, spread of the final PSNR over seeds."""
    full = {(job.picture, job.seed): result for job, result in done if job.strategy == "full"}
    rows = []
    for schedule in words(config.schedules):
        for strategy in words(config.strategies):
            mine = [(job, result) for job, result in done if (job.strategy, job.schedule) == (strategy, schedule)]
            if mine:
                rows.append({"strategy": strategy, "schedule": schedule} | table_row(config, mine, full))
    return rows


def table_row(config: CompareConfig, done: Done, full: Mapping[tuple[str | None, int], Any]) -> dict[str, Any]:
    """The numbers of one strategy and schedule, given the full runs by picture and seed."""
    row: dict[str, Any] = {"cfs": "yes" if done[0][0].options.cfs_weight > 0 else "no"}
    for step in listed_steps(config):
        entries = [entry for _, result in done for entry in result["curve"] if entry["step"] == step]
        row |= {f"{key}@{step}": average(entry.get(key) for entry in entries) for key in ("psnr", "ssim", "lpips")}
    seeds = sorted({job.seed for job, _ in done})
    row["psnr_spread"] = spread(mean(result["psnr"] for job, result in done if job.seed == seed) for seed in seeds)
    row["seconds"] = mean(result["train_seconds"] for _, result in done)
    row["points"] = round(mean(result["points_evaluated"] for _, result in done))
    times = [reach_full(result, full.get((job.picture, job.seed))) for job, result in done]
    reached = [time for time in times if time is not None]
    row["reached_full"] = f"{len(reached)}/{len(times)}" if full else None
    row["time_to_full"] = average(reached) if len(reached) == len(times) else None
    return row


def reach_full(result: Mapping[str, Any], full: Mapping[str, Any] | None) -> float | None:
    """Seconds to the full run's final PSNR as a fraction of the full run's seconds."""
    seconds = None if full is None else seconds_to(full["psnr"], result["curve"])
    return None if seconds is None or full is None else seconds / full["train_seconds"]


def measures(results: list[dict[str, Any]]) -> list[str]:
    """The measures of a table with a column for each input: those not trained on, where there are any."""
    prefix = "held_out_" if any("held_out_psnr" in result for result in results) else ""
    names = [f"{prefix}{name}" for name in ("psnr", "ssim", "snr")]
    return [name for name in names if any(result.get(name) is not None for result in results)]


def input_rows(done: Done) -> list[dict[str, Any]]:
    """A row for each config and input: means and standard deviations over seeds of each measure, mean seconds."""
    names = measures([result for _, result in done])
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for job, result in done:
        groups.setdefault((job.strategy, job.column), []).append(result)
    rows = []
    for (config, column), runs in groups.items():
        row: dict[str, Any] = {"config": config, "input": column, "runs": len(runs)}
        for name in names:
            values = [run.get(name) for run in runs]
            row |= {name: average(values), f"{name}_spread": spread(values)}
        rows.append(row | {"seconds": mean(run["train_seconds"] for run in runs)})
    return rows


def quality_text(row: Mapping[str, Any], names: list[str]) -> str:
    """The measures of a row, with their standard deviations where it has them."""
    parts = []
    for name in names:
        deviation = row.get(f"{name}_spread")
        more = "" if deviation is None else f" ± {cell(form_of(name), deviation)}"
        parts.append(cell(form_of(name), row.get(name)) + more)
    return " / ".join(parts)


def write_input_tables(folder: Path, done: Done) -> None:
    """table.csv, and table.md with a line for each config and a column for each input."""
    rows, names = input_rows(done), measures([result for _, result in done])
    configs, inputs = (list(dict.fromkeys(row[key] for row in rows)) for key in ("config", "input"))
    lines = []
    for config in configs:
        mine = {row["input"]: row for row in rows if row["config"] == config}
        averages = {name: average(row[name] for row in mine.values()) for name in names}
        cells = [quality_text(mine.get(column, {}), names) for column in inputs]
        lines.append(
            [config, *cells, quality_text(averages, names), f"{mean(r['seconds'] for r in mine.values()):.1f}"]
        )
    note = f"\n{' / '.join(names)}: means over seeds, ± their standard deviation; seconds of training of a run.\n"
    table = markdown_table(["config", *inputs, "mean", "seconds"], lines)
    replace_file(folder / "table.md", (table + note).encode())
    write_csv(folder / "table.csv", list(rows[0]), rows)


def write_tables(folder: Path, config: CompareConfig, done: Done) -> None:
    """table.md and table.csv, with a line for each strategy and schedule."""
    rows = table_rows(config, done)
    columns = list(rows[0])
    note = """
Means over pictures and seeds; psnr_spread: standard deviation over seeds; time_to_full: training seconds to the full
run's final PSNR as a fraction of the full run's (a dash where not every run got there; reached_full: how many did).
"""
    lines = [[cell(form_of(name), row[name]) for name in columns] for row in rows]
    replace_file(folder / "table.md", (markdown_table(columns, lines) + note).encode())
    write_csv(folder / "table.csv", columns, rows)


def plot(folder: Path, done: Done) -> None:
    """PSNR over training seconds, both averaged over pictures and seeds."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(9, 6), layout="constrained")
    colours = {name: f"C{place}" for place, name in enumerate(dict.fromkeys(job.strategy for job, _ in done))}
    lines = {"step": "--"}
    for key in dict.fromkeys((job.strategy, job.schedule) for job, _ in done):
        curves = [result["curve"] for job, result in done if (job.strategy, job.schedule) == key]
        points = list(zip(*curves, strict=True))
        seconds = [mean(entry["seconds"] for entry in column) for column in points]
        psnrs = [mean(entry["psnr"] for entry in column) for column in points]
        axis.plot(seconds, psnrs, lines.get(key[1], "-"), color=colours[key[0]], label=" ".join(key).strip())
    axis.set(xlabel="training seconds", ylabel="PSNR (dB)")
    axis.grid(alpha=0.3)
    axis.legend()
    save_figure(figure, folder / "psnr_over_time.png")
    plt.close(figure)
