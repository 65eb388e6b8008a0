"""What a run on a picture measures, logs and writes; media.py lists the modules of other signals."""

import math
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from evos.fitted import FittedField
from evos.images import write_image
from evos.metrics import held_out_metrics, image_metrics
from evos.runs import EventLog, Run
from evos.tiled_tiff import TILE, write_tiled
from image_regression.grids import colours, in_proportion, visit_ratio
from image_regression.report import Panel
from image_regression.trainer import Fit

STREAMED = 2**24
"""Pixels above which a TIFF is written tile by tile."""


def measure(fit: Fit, values: Float[Tensor, "P C"], with_lpips: bool) -> dict[str, float | None]:
    """PSNR, SSIM and perhaps LPIPS of all pixels; where not all are trained on, those of held_out_metrics as well."""
    prediction, truth = fit.signal.picture(values), fit.signal.picture(fit.values)
    quality = image_metrics(prediction, truth, with_lpips)
    factor = fit.options.run.factor
    return quality | (held_out_metrics(prediction, truth, factor) if factor > 1 else {})


def final_metrics(fit: Fit, values: Float[Tensor, "P C"]) -> dict[str, Any]:
    """Nothing else."""
    return {}


def log(events: EventLog, fit: Fit, step: int, values: Float[Tensor, "P C"]) -> None:
    """Reconstruction, error and selection for TensorBoard."""
    prediction = fit.signal.picture(values)
    events.image(step, "reconstruction", colours(prediction))
    events.image(step, "error_x10", error_map(fit, prediction))
    events.image(step, "selection", visit_ratio(fit))


def write(run: Run, fit: Fit, values: Float[Tensor, "P C"]) -> None:
    """The reconstruction in the depth of its source (16 bits for floats), and the maps."""
    prediction = fit.signal.picture(values)
    write_image(run.images / "reconstruction.png", prediction, bits=min(16, fit.signal.bits))
    write_image(run.images / "error_x10.png", error_map(fit, prediction))
    write_image(run.images / "selection.png", visit_ratio(fit))


def panel(fit: Fit, values: Float[Tensor, "P C"]) -> tuple[Float[Tensor, "H W C"], Panel]:
    """The truth, and the run's part of the report."""
    prediction = fit.signal.picture(values)
    return fit.signal.picture(fit.values), Panel(f"{fit.options.run.selector} selector", prediction, visit_ratio(fit))


def resized(shape: tuple[int, ...], size: int | None, frames: int | None) -> tuple[int, ...]:
    """A grid with a longer side of another size."""
    return in_proportion(shape, size)


def render(
    path: Path, fitted: FittedField, shape: tuple[int, ...], start: tuple[int, ...], size: tuple[int, ...]
) -> None:
    """Write a part of a fitted picture; to a TIFF tile by tile where it is large."""
    if path.suffix.lower() not in (".tif", ".tiff") or math.prod(size) <= STREAMED:
        write_image(path, fitted.window(shape, start, size))
        return
    bottom, right = (first + count for first, count in zip(start, size, strict=True))
    boxes = (
        ((top, left), (min(TILE, bottom - top), min(TILE, right - left)))
        for top in range(start[0], bottom, TILE)
        for left in range(start[1], right, TILE)
    )
    write_tiled(path, (fitted.window(shape, *box).numpy() for box in boxes), (size[0], size[1]), fitted.channels)


def error_map(fit: Fit, prediction: Float[Tensor, "H W C"]) -> Float[Tensor, "H W 1"]:
    """Absolute error averaged over channels, times 10 so that it can be seen."""
    return ((prediction - fit.signal.picture(fit.values)).abs().mean(-1, keepdim=True) * 10).clamp(0, 1)
