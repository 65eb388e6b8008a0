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
    "train_seconds": "{:.1f}",
    "points_evaluated": "{:,}",
}


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def cell(form: str, value: Any) -> str:
    """One value as text; a dash where there is none."""
    return "-" if value is None else form.format(value)


def write_summary(folder: Path, results: list[dict[str, Any]]) -> None:
    """Write summary.md and summary.csv: a line for each run and, of the numbers, the mean."""
    rows = [[cell(form, result.get(key)) for key, form in COLUMNS.items()] for result in results]
    means = ["mean"]
    for key, form in list(COLUMNS.items())[1:]:
        values = [result[key] for result in results if result.get(key) is not None]
        means.append(cell(form, round(mean(values)) if key == "points_evaluated" else mean(values)) if values else "-")
    replace_file(folder / "summary.md", markdown_table(list(COLUMNS), [*rows, means]).encode())
    write_csv(folder / "summary.csv", list(COLUMNS), results)


def write_csv(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    """Write the columns of a table's rows, at full precision; nothing where there is no value."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    replace_file(path, text.getvalue().encode())
