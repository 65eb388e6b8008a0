"""What a run on a shape measures, logs and writes; pictures.py has the same functions for pictures."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from evos.fitted import FittedField
from evos.metrics import psnr
from evos.runs import EventLog, Run
from evos.shapes import FILLED, ShapeFormat, chamfer, has_surface, inside, iou, write_mesh
from image_regression.grids import (
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

LIGHT = (-0.6, -0.6, 0.55)
"""Where light comes from in shaded views, (z, y, x)."""


def measure(fit: Fit, values: Float[Tensor, "P C"], with_lpips: bool) -> dict[str, float | None]:
    """PSNR of the cut-off distances at all grid points, and IoU of what is inside."""
    quality: dict[str, float | None] = {"psnr": psnr(values[None], fit.values[None]), "iou": iou(values, fit.values)}
    return quality | held_out_psnr(fit, values)


def final_metrics(fit: Fit, values: Float[Tensor, "P C"]) -> dict[str, Any]:
    """Chamfer distance to the mesh that was read, as a fraction of its longest side; None without a surface."""
    assert fit.signal.mesh is not None
    found = chamfer(fit.signal.block(values)[..., 0], fit.signal.mesh)
    return {"chamfer": None if found is None else found / (2 * FILLED)}


def log(events: EventLog, fit: Fit, step: int, values: Float[Tensor, "P C"]) -> None:
    """A view of the reconstruction with its middle slices, and the selection in them, for TensorBoard."""
    log_panel(events, step, panel(fit, values)[1])


def write(run: Run, fit: Fit, values: Float[Tensor, "P C"]) -> None:
    """The surface as mesh.ply where there is one, a view of it with its middle slices, and the selection."""
    form, block = fit.signal.form, fit.signal.block(values)[..., 0]
    assert isinstance(form, ShapeFormat)
    if has_surface(block):
        write_mesh(run.images / "mesh.ply", block, form)
    write_panel(run, "slices.png", panel(fit, values)[1])


def panel(fit: Fit, values: Float[Tensor, "P C"]) -> tuple[Float[Tensor, "H W C"], Panel]:
    """The truth's middle slices with a view of it, and the run's part of the report."""
    blocks = fit.signal.block(fit.values), fit.signal.block(values)
    truth, prediction = (montage([view(block[..., 0]), *slices(block)]) for block in blocks)
    visits = visit_ratio(fit)
    looked = montage([visits.mean(0) / visits.mean(0).max().clamp(min=1e-12), *slices(visits)], ground=0)
    return truth, Panel(f"{fit.options.run.selector} selector", prediction, looked)


def resized(shape: tuple[int, ...], size: int | None, frames: int | None) -> tuple[int, ...]:
    """A grid of so many points along each axis."""
    return in_proportion(shape, size)


def render(
    path: Path, fitted: FittedField, shape: tuple[int, ...], start: tuple[int, ...], size: tuple[int, ...]
) -> None:
    """Write the surface of a fitted shape."""
    values = fitted.window(shape, start, size)
    form = fitted.form
    assert isinstance(form, ShapeFormat)
    write_mesh(path, values[..., 0], form)


def view(block: Float[Tensor, "Z Y X"]) -> Float[Tensor, "Y X 1"]:
    """The shape from the lower end of z, shaded by the direction of its surface; what is beside it is white."""
    within = inside(block)
    first = within.int().argmax(0, keepdim=True)
    slope = torch.stack([each.gather(0, first)[0] for each in torch.gradient(block)])
    light = slope.new_tensor(LIGHT)
    normal = slope / slope.norm(dim=0).clamp(min=1e-12)
    shade = 0.25 + 0.75 * (normal * light[:, None, None] / light.norm()).sum(0).clamp(min=0)
    return torch.where(within.any(0), shade, 1.0)[..., None]
