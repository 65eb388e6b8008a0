"""Tables of several runs, in markdown and as CSV."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from evos.errors import InputError
from evos.runs.files import replace_file

COLUMNS = (
    *("name", "psnr", "ssim", "lpips", "snr", "stft_distance", "frame_psnr_mean", "frame_psnr_min", "iou", "chamfer"),
    *("held_out_psnr", "held_out_ssim", "held_out_snr"),
    *("train_seconds", "points_evaluated", "parameters", "bytes", "bits_per_value"),
)

WHOLE = ("points_evaluated", "parameters", "bytes")
"""Columns of whole numbers, whose mean is rounded."""

OPTIONAL_COLUMNS = (
    *("snr", "stft_distance", "frame_psnr_mean", "frame_psnr_min", "iou", "chamfer"),
    *("held_out_psnr", "held_out_ssim", "held_out_snr"),
    *("parameters", "bytes", "bits_per_value"),
)
"""Columns of some signals, of runs not trained on everything, of this version: left out where no run has them."""

FORMS = {
    "psnr": "{:.2f}",
    "ssim": "{:.4f}",
    "lpips": "{:.4f}",
    "snr": "{:.2f}",
    "stft_distance": "{:.3f}",
    "frame_psnr_mean": "{:.2f}",
    "frame_psnr_min": "{:.2f}",
    "iou": "{:.4f}",
    "chamfer": "{:.5f}",
    "seconds": "{:.1f}",
    "train_seconds": "{:.1f}",
    "points": "{:,}",
    "points_evaluated": "{:,}",
    "parameters": "{:,}",
    "bytes": "{:,}",
    "bits_per_value": "{:.2f}",
    "time_to_full": "{:.2f}",
}
"""How the numbers of a measure are written."""


def sentence(result: dict[str, Any], out: Path) -> str:
    """The result of a run in one line."""
    silent = "SNR undefined (silent)" if "snr" in result and result["snr"] is None else None
    forms = {
        "psnr": "{:.2f} dB",
        "ssim": "SSIM {:.4f}",
        "snr": "SNR {:.2f} dB",
        "stft_distance": "STFT distance {:.3f}",
        "frame_psnr_min": "worst frame {:.2f} dB",
        "iou": "IoU {:.4f}",
        "chamfer": "chamfer distance {:.5f}",
        "held_out_psnr": "not trained on: {:.2f} dB",
        "held_out_ssim": "SSIM {:.4f}",
        "held_out_snr": "SNR {:.2f} dB",
        "train_seconds": "{:.1f} s of training",
        "points_evaluated": "{:,} points evaluated",
        "parameters": "{:,} parameters",
        "bytes": "{:,} bytes",
        "bits_per_value": "{:.2f} bits a value",
    }
    parts = [form.format(result[key]) for key, form in forms.items() if result.get(key) is not None]
    return f"{result['name']}: {', '.join(filter(None, (*parts, silent)))} -> {out}"


def form_of(name: str) -> str:
    """How a column's numbers are written, ``held_out_psnr``, ``psnr@1000`` and ``psnr_spread`` as ``psnr``."""
    return FORMS.get(name.split("@")[0].removeprefix("held_out_").removesuffix("_spread"), "{}")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table; what would end a cell or a line within a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    cells = ([" ".join(cell.replace("|", "\\|").split()) for cell in line] for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in cells) + "\n"


def cell(form: str, value: Any) -> str:
    """One value as text; a dash where there is none."""
    return "-" if value is None else form.format(value)


def check_summary(folder: Path) -> None:
    """Raise InputError where ``write_summary`` would replace a file that it did not write."""
    for name, start in (("summary.md", "| name | psnr |"), ("summary.csv", "name,psnr,")):
        try:
            with (folder / name).open(encoding="utf-8", errors="replace") as file:
                is_ours = file.readline().startswith(start)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise InputError("--out", f"{folder / name} ({error.strerror})", "a folder that can be written") from None
        if not is_ours:
            raise InputError("--out", f"{folder}, whose {name} is not of this program", "another folder")


def write_summary(folder: Path, results: list[dict[str, Any]]) -> None:
    """Write summary.md and summary.csv: a line for each run and, of the numbers, the mean."""
    check_summary(folder)

    def values(name: str) -> list[Any]:
        return [result[name] for result in results if result.get(name) is not None]

    columns = [name for name in COLUMNS if name not in OPTIONAL_COLUMNS or values(name)]
    rows = [[cell(form_of(name), result.get(name)) for name in columns] for result in results]
    means = ["mean"]
    for name in columns[1:]:
        average = mean(values(name)) if values(name) else None
        means.append(cell(form_of(name), round(average) if name in WHOLE and average else average))
    replace_file(folder / "summary.md", markdown_table(columns, [*rows, means]).encode())
    write_csv(folder / "summary.csv", columns, results)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the columns of a table's rows, at full precision; empty where there is no value."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    replace_file(path, text.getvalue().encode())
