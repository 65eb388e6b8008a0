"""Tables of several runs."""

import csv
from pathlib import Path
from statistics import mean
from typing import Any

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
    (folder / "summary.md").write_text(markdown_table(list(COLUMNS), [*rows, means]))
    with (folder / "summary.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(results)
