"""Tables of several runs."""

import csv
import io
from pathlib import Path
from statistics import mean
from typing import Any

from evos.runs.files import replace_file

COLUMNS = {
    "name": "{}",
    "psnr": "{:.2f}",
    "ssim": "{:.4f}",
    "lpips": "{:.4f}",
    "snr": "{:.2f}",
    "held_out_psnr": "{:.2f}",
    "held_out_ssim": "{:.4f}",
    "held_out_snr": "{:.2f}",
    "train_seconds": "{:.1f}",
    "points_evaluated": "{:,}",
}


SOME = ("snr", "held_out_psnr", "held_out_ssim", "held_out_snr")
"""Columns of sounds, and of runs not trained on everything: left out where no run has them."""


def sentence(result: dict[str, Any], out: Path) -> str:
    """What a run has come to, in one line."""
    silent = "SNR undefined (silent)" if "snr" in result and result["snr"] is None else None
    forms = {
        "psnr": "{:.2f} dB",
        "ssim": "SSIM {:.4f}",
        "snr": "SNR {:.2f} dB",
        "held_out_psnr": "not trained on: {:.2f} dB",
        "held_out_ssim": "SSIM {:.4f}",
        "held_out_snr": "SNR {:.2f} dB",
        "train_seconds": "{:.1f} s of training",
        "points_evaluated": "{:,} points evaluated",
    }
    parts = [form.format(result[key]) for key, form in forms.items() if result.get(key) is not None]
    return f"{result['name']}: {', '.join(filter(None, (*parts, silent)))} -> {out}"


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def cell(form: str, value: Any) -> str:
    """One value as text; a dash where there is none."""
    return "-" if value is None else form.format(value)


def write_summary(folder: Path, results: list[dict[str, Any]]) -> None:
    """Write summary.md and summary.csv: a line for each run and, of the numbers, the mean."""
    columns = {
        key: form
        for key, form in COLUMNS.items()
        if key not in SOME or any(result.get(key) is not None for result in results)
    }
    rows = [[cell(form, result.get(key)) for key, form in columns.items()] for result in results]
    means = ["mean"]
    for key, form in list(columns.items())[1:]:
        values = [result[key] for result in results if result.get(key) is not None]
        means.append(cell(form, round(mean(values)) if key == "points_evaluated" else mean(values)) if values else "-")
    replace_file(folder / "summary.md", markdown_table(list(columns), [*rows, means]).encode())
    write_csv(folder / "summary.csv", list(columns), results)


def write_csv(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    """Write the columns of a table's rows, at full precision; nothing where there is no value."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    replace_file(path, text.getvalue().encode())
