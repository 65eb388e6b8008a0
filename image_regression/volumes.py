"""What a run on a volume measures, logs and writes; pictures.py has the same functions for pictures."""

from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from evos.fitted import FittedField
from evos.metrics import psnr
from evos.runs import EventLog, Run
from evos.volumes import VolumeFormat, write_volume
from image_regression.grids import (
    colours,
    held_out_psnr,
    in_proportion,
    log_panel,
    montage,
    slices,
    visit_ratio,
    write_panel,
)
from image_regression.report import Panel
from image_regression.trainer import Fit


def measure(fit: Fit, values: Float[Tensor, "P C"], with_lpips: bool) -> dict[str, float | None]:
    """PSNR of all voxels, the volume's range as its peak; where not all are trained on, that of the others."""
    return {"psnr": psnr(values[None], fit.values[None])} | held_out_psnr(fit, values)


def final_metrics(fit: Fit, values: Float[Tensor, "P C"]) -> dict[str, Any]:
    """Nothing else."""
    return {}


def log(events: EventLog, fit: Fit, step: int, values: Float[Tensor, "P C"]) -> None:
    """The middle slices of the reconstruction, and the selection in them, for TensorBoard."""
    log_panel(events, step, panel(fit, values)[1])


def write(run: Run, fit: Fit, values: Float[Tensor, "P C"]) -> None:
    """The reconstruction with the format, range and type of its source, and its middle slices."""
    form = fit.signal.form
    assert isinstance(form, VolumeFormat)
    write_volume(run.images / f"reconstruction.{form.extension}", fit.signal.block(values), form)
    write_panel(run, "slices.png", panel(fit, values)[1])


def panel(fit: Fit, values: Float[Tensor, "P C"]) -> tuple[Float[Tensor, "H W C"], Panel]:
    """The truth's middle slices, and the run's part of the report."""
    blocks = fit.signal.block(fit.values), fit.signal.block(values)
    truth, prediction = (montage(slices(colours(block))) for block in blocks)
    looked = montage(slices(visit_ratio(fit)), ground=0)
    return truth, Panel(f"{fit.options.run.selector} selector", prediction, looked)


def resized(shape: tuple[int, ...], size: int | None, frames: int | None) -> tuple[int, ...]:
    """A grid with a longest axis of another size."""
    return in_proportion(shape, size)


def render(
    path: Path, fitted: FittedField, shape: tuple[int, ...], start: tuple[int, ...], size: tuple[int, ...]
) -> None:
    """Write a fitted volume between the same first and last voxels."""
    values = fitted.window(shape, start, size)
    form = fitted.form
    assert isinstance(form, VolumeFormat)
    write_volume(path, values, form.resized(fitted.shape, tuple(values.shape[:3])))
