"""What a run on a picture that stays on disk measures, logs and writes: previews, and all pixels as a stream.

It has the same functions as pictures.py. Evaluations look at a random sample of the pixels (``TileSource``).
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from evos.images import write_image
from evos.metrics import psnr, squared_error
from evos.optimizers import evaluation_weights
from evos.raster_files import read_header
from evos.rasters import Raster, open_raster, pairs
from evos.runs import EventLog, Run
from evos.runs.folder import check_run_folder
from evos.signals import Signal, kind_of, load
from evos.tiled_tiff import TILE, write_tiled
from image_regression.grids import colours, visit_ratio
from image_regression.options import Options
from image_regression.pictures import final_metrics as final_metrics
from image_regression.pictures import render as render
from image_regression.pictures import resized as resized
from image_regression.report import Panel
from image_regression.sources import check_for_disk
from image_regression.trainer import Fit

SIDE = 340
"""Longer side of a level of the pyramid in pixels: three beside each other are about 1024."""
LEVELS = 3
"""Levels of the pyramid: the whole picture, its middle part enlarged, and single pixels."""
PROBES = 64
"""Places of which the one with the most detail is enlarged."""
PROGRAM_BYTES, POINT_BYTES = 800 * 2**20, 64
"""What a run on a picture in memory takes at least, and for each pixel and number: measured at 2048², three channels,
by benchmarks/large_photo.py, where the recipe fast takes 47 bytes and EVOS 61."""


# ---- which way -----------------------------------------------------------------------------------------------


def load_signal(path: Path | None, options: Options, folder: Path) -> Signal | Raster:
    """The signal in a file; a picture whose ordinary fit would take more than ``--memory`` stays on disk.

    Says in one line which way is taken. Raises InputError as ``load`` and ``open_raster``, and for options that do not
    go with a picture on disk.
    """
    run = options.run

    def in_memory() -> Signal:
        return load(path, run.longer_side, run.factor, kind=run.kind, frames=run.frames)

    if run.memory is None or path is None or kind_of(path, run.kind) != "picture":
        return in_memory()
    header = read_header(path)
    needed = ordinary_bytes(header.pixels, header.channels)
    size = f"{path.stem}: {header.shape[0]} x {header.shape[1]} pixels take about {needed / 1e9:.1f} GB in memory"
    if needed <= run.memory:
        print_unless(run.quiet, f"{size}, within --memory: the ordinary way")
        return in_memory()
    print_unless(run.quiet, f"{size}, more than --memory: read from disk, by tiles")
    check_for_disk(options)
    check_run_folder(folder, resume=run.resume, overwrite=run.overwrite)  # before what may take minutes
    return open_raster(path, next(each for each in folder.absolute().parents if each.is_dir()), run.memory)


def ordinary_bytes(pixels: int, channels: int) -> int:
    """An estimate of the peak memory of a run on a picture that is in memory."""
    return PROGRAM_BYTES + pixels * channels * POINT_BYTES


def print_unless(quiet: bool, line: str) -> None:
    """Print a line, unless the run is quiet."""
    if not quiet:
        print(line)


# ---- as pictures.py ------------------------------------------------------------------------------------------


def measure(fit: Fit, values: Float[Tensor, "P C"], with_lpips: bool) -> dict[str, float | None]:
    """PSNR of the sample, and of how many pixels it is."""
    return {"psnr": psnr(values[None], fit.values[None]), "psnr_pixels": len(values)}


def log(events: EventLog, fit: Fit, step: int, values: Float[Tensor, "P C"]) -> None:
    """The pyramid for TensorBoard, without alpha, and the selection."""
    truth, shown = panel(fit, values)
    events.image(step, "pyramid", colours(torch.cat([truth, shown.reconstruction], dim=1)))
    assert shown.selection is not None
    events.image(step, "selection", shown.selection)


def write(run: Run, fit: Fit, values: Float[Tensor, "P C"]) -> dict[str, Any]:
    """The selection; within ``whole_seconds`` all pixels as a tiled TIFF, and their PSNR in place of the sample's."""
    write_image(run.images / "selection.png", visit_ratio(fit))
    seconds = fit.options.run.whole_seconds
    budget = fit.train_seconds if seconds is None else seconds
    expected = seconds_a_pixel(fit) * fit.signal.shape[0] * fit.signal.shape[1]
    if expected > budget:
        why = f"all pixels would take {expected:.0f} s, more than {budget:.0f}: the PSNR is that of {len(values):,}"
        print_unless(fit.options.run.quiet, f"{fit.signal.name}: {why}; evos render writes any part")
        return {}
    error, raster = 0.0, fit.signal
    assert isinstance(raster, Raster)

    def tiles() -> Iterator[np.ndarray]:
        nonlocal error
        for top in range(0, raster.shape[0], TILE):
            for left in range(0, raster.shape[1], TILE):
                box = (top, left, min(TILE, raster.shape[0] - top), min(TILE, raster.shape[1] - left))
                found, truth = rendered(fit, box), raster.window(*box)
                error += squared_error(found.cpu(), truth)
                yield found.cpu().numpy()

    write_tiled(run.images / "reconstruction.tif", tiles(), raster.shape, raster.channels, min(16, raster.bits))
    count = raster.shape[0] * raster.shape[1]
    mean = error / (count * raster.channels)
    return {"psnr": -10 * float(np.log10(mean)) if mean > 0 else float("inf"), "psnr_pixels": count}


def panel(fit: Fit, values: Float[Tensor, "P C"]) -> tuple[Float[Tensor, "H W C"], Panel]:
    """The truth and the run's part of the report: levels of the pyramid, one below the other."""
    truth, found = [], []
    for y, x in levels(fit):
        truth.append(fit.signal.gather(*pairs(y, x)).unflatten(0, (len(y), len(x))))
        found.append(predicted(fit, y, x).cpu())
    return torch.cat(truth), Panel(f"{fit.options.run.selector} selector", torch.cat(found), visit_ratio(fit))


# ---- parts of the picture ------------------------------------------------------------------------------------


def levels(fit: Fit) -> list[tuple[Tensor, Tensor]]:
    """Rows and columns of the pixels of each level, from the whole picture to single pixels around one place."""
    height, width = fit.signal.shape
    coarsest = max(1.0, max(height, width) / SIDE)
    rows, columns = (max(1, int(side / coarsest)) for side in (height, width))
    centre, found = place_of_detail(fit), []
    for level in range(LEVELS):
        step = coarsest ** (1 - level / (LEVELS - 1))
        axes = []
        for middle, count, size in zip(centre, (rows, columns), (height, width), strict=True):
            reach = min(size, int(count * step))
            first = min(max(0, middle - reach // 2), size - reach)
            axes.append(first + (torch.arange(count) * (reach / count)).long())
        found.append((axes[0], axes[1]))
    return found


def place_of_detail(fit: Fit) -> tuple[int, int]:
    """The middle of that of 64 windows, the same in every run, whose pixels differ most."""
    height, width = fit.signal.shape
    side = min(SIDE // 4, height, width)
    generator = torch.Generator().manual_seed(0)
    tops = torch.randint(height - side + 1, (PROBES,), generator=generator).tolist()
    lefts = torch.randint(width - side + 1, (PROBES,), generator=generator).tolist()
    detail = [float(fit.signal.window(y, x, side, side).std()) for y, x in zip(tops, lefts, strict=True)]
    best = int(np.argmax(detail))
    return tops[best] + side // 2, lefts[best] + side // 2


def rendered(fit: Fit, box: tuple[int, int, int, int]) -> Float[Tensor, "h w C"]:
    """The fit at the pixels of a rectangle (top, left, height, width)."""
    top, left, height, width = box
    return predicted(fit, torch.arange(top, top + height), torch.arange(left, left + width))


def predicted(fit: Fit, y: Tensor, x: Tensor) -> Float[Tensor, "h w C"]:
    """The fit at rows and columns of pixels, in [0, 1] units."""
    places = fit.source.places(*pairs(y, x)).to(fit.device)
    with evaluation_weights(fit.field, fit.optimizer, fit.average):
        output = fit.evaluate_at(places)
    return fit.transform.inverse(output).unflatten(0, (len(y), len(x)))


def seconds_a_pixel(fit: Fit) -> float:
    """How long the evaluation of a pixel takes, by that of one tile."""
    side = min(TILE, *fit.signal.shape)
    start = time.perf_counter()
    rendered(fit, (0, 0, side, side))
    return (time.perf_counter() - start) / side**2
