"""What a run on a video measures, logs and writes; pictures.py has the same functions for pictures."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from evos.fitted import FittedField
from evos.metrics import psnr, ssim
from evos.runs import EventLog, Run
from evos.runs.files import save_figure
from evos.videos import VideoFormat, write_video
from image_regression.grids import (
    colours,
    held_out_psnr,
    in_proportion,
    log_panel,
    montage,
    visit_ratio,
    write_panel,
)
from image_regression.report import Panel, Plot
from image_regression.trainer import Fit

SHOWN = 4
"""Frames in a picture of a video."""


def measure(fit: Fit, values: Float[Tensor, "P C"], with_lpips: bool) -> dict[str, float | None]:
    """PSNR of all pixels, the mean and least of the frames'; where not all are trained on, PSNR of the others."""
    frames = frame_psnr(fit, values)
    quality: dict[str, float | None] = {"psnr": psnr(values[None], fit.values[None])}
    quality |= {"frame_psnr_mean": frames.mean().item(), "frame_psnr_min": frames.min().item()}
    return quality | held_out_psnr(fit, values)


def final_metrics(fit: Fit, values: Float[Tensor, "P C"]) -> dict[str, Any]:
    """The mean SSIM of the frames, and a number a frame: PSNR, motion, and points drawn a step and training pixel."""
    pairs = zip(fit.signal.block(values), fit.signal.block(fit.values), strict=True)
    similar = [ssim(frame, truth) for frame, truth in pairs]
    return {
        "ssim": sum(similar) / len(similar),
        "frame_psnr": frame_psnr(fit, values).tolist(),
        "frame_motion": motion(fit).tolist(),
        "frame_visits": frame_visits(fit).tolist(),
    }


def log(events: EventLog, fit: Fit, step: int, values: Float[Tensor, "P C"]) -> None:
    """Some frames of the reconstruction, and the selection, for TensorBoard."""
    log_panel(events, step, panel(fit, values)[1])


def write(run: Run, fit: Fit, values: Float[Tensor, "P C"]) -> None:
    """The reconstruction at the rate of its source, some of its frames, and a plot of numbers a frame."""
    form = fit.signal.form
    assert isinstance(form, VideoFormat)
    write_video(run.images / f"reconstruction.{form.extension}", fit.signal.block(values), form.rate)
    write_panel(run, "frames.png", panel(fit, values)[1])
    write_curves(run.images / "frame_curves.png", fit, values)


def panel(fit: Fit, values: Float[Tensor, "P C"]) -> tuple[Float[Tensor, "H W C"], Panel]:
    """Some frames of the truth, and the run's part of the report."""
    blocks = fit.signal.block(fit.values), fit.signal.block(values)
    chosen = torch.linspace(0, len(blocks[0]) - 1, min(SHOWN, len(blocks[0]))).round().long().tolist()
    truth, prediction = (montage([colours(block[index]) for index in chosen]) for block in blocks)
    visits = visit_ratio(fit)
    looked = montage([visits[index // fit.options.run.factor] for index in chosen], ground=0)
    return truth, Panel(f"{fit.options.run.selector} selector", prediction, looked, draws_plot(fit))


def resized(shape: tuple[int, ...], size: int | None, frames: int | None) -> tuple[int, ...]:
    """A grid with frames of another size, and so many of them over the same time."""
    return frames or shape[0], *in_proportion(shape[1:], size)


def render(
    path: Path, fitted: FittedField, shape: tuple[int, ...], start: tuple[int, ...], size: tuple[int, ...]
) -> None:
    """Write a fitted video, as long as it was."""
    values = fitted.window(shape, start, size)
    form = fitted.form
    assert isinstance(form, VideoFormat)
    write_video(path, values, form.rate * len(values) / fitted.shape[0])


# ---- frame by frame


def frame_visits(fit: Fit) -> Float[Tensor, " t"]:
    """How often the pixels of each training frame were drawn, on average."""
    return fit.visits.view(fit.pool.shape[0], -1).double().mean(1)


def frame_psnr(fit: Fit, values: Float[Tensor, "P C"]) -> Float[Tensor, " T"]:
    """PSNR of each frame in dB."""
    error = fit.signal.block(values.clamp(0, 1)).double() - fit.signal.block(fit.values).double()
    return -10 * error.square().flatten(1).mean(1).log10()


def motion(fit: Fit) -> Float[Tensor, " t"]:
    """Mean absolute difference of each training frame from the one before; the first has the second's."""
    frames = fit.source.trained.unflatten(0, fit.pool.shape)
    change = frames.diff(dim=0).abs().flatten(1).mean(1)
    return torch.cat([change[:1], change]) if len(change) else frames.new_zeros(1)


def draws_plot(fit: Fit) -> Plot | None:
    """Points drawn from each frame against its motion; None where all were in every step."""
    visits = frame_visits(fit)
    if not float(visits.max()):
        return None
    return Plot(
        "points drawn, frame by frame",
        "motion: mean change from the frame before",
        "draws a pixel",
        motion(fit).tolist(),
        visits.tolist(),
    )


def write_curves(path: Path, fit: Fit, values: Float[Tensor, "P C"]) -> None:
    """PSNR, motion, and draws a pixel over the frames."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 1, figsize=(10, 8), sharex=True, layout="constrained")
    factor = fit.options.run.factor
    trained = range(0, fit.signal.shape[0], factor)
    axes[0].plot(frame_psnr(fit, values).tolist())
    axes[1].plot(trained, motion(fit).tolist())
    axes[2].plot(trained, frame_visits(fit).tolist())
    for axis, label in zip(axes, ("PSNR (dB)", "motion", "draws a pixel"), strict=True):
        axis.set(ylabel=label)
        axis.grid(alpha=0.3)
    axes[-1].set(xlabel="frame")
    save_figure(figure, path)
    plt.close(figure)
