"""The report picture: truth, and for each run its reconstruction, error and selection, with PSNR over time."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from evos.images import reduce_image
from evos.runs.files import save_figure

LARGEST = 1024
"""Longer side in pixels that a picture is reduced to: it is shown smaller."""


@dataclass(frozen=True)
class Plot:
    """Points of a diagram, such as a number for each frame of a video against another."""

    title: str
    x_label: str
    y_label: str
    x: list[float]
    y: list[float]


@dataclass(frozen=True)
class Panel:
    """One run's pictures: its reconstruction, how often each training cell was selected (0 to 1), perhaps a plot."""

    title: str
    reconstruction: Float[Tensor, "H W C"]
    selection: Float[Tensor, "h w 1"] | None = None
    plot: Plot | None = None


@dataclass(frozen=True)
class Curve:
    """One run's evaluations: entries with step, seconds and psnr."""

    title: str
    entries: list[dict[str, Any]]


def shown(pixels: Float[Tensor, "H W C"]) -> np.ndarray:
    """Pixels that matplotlib can show, no more than can be seen: grey, RGB or RGBA in [0, 1]."""
    small = reduce_image(pixels.detach(), LARGEST).cpu().clamp(0, 1).numpy()
    return small[..., 0] if small.shape[-1] <= 2 else small


def write_report(path: Path, truth: Float[Tensor, "H W C"], panels: list[Panel], curves: list[Curve]) -> None:
    """Write the picture; errors are shown on one scale for all runs, whose end is the largest 99th percentile."""
    import matplotlib.pyplot as plt

    errors = [shown(panel.reconstruction.sub(truth).abs_().mean(-1, keepdim=True)) for panel in panels]
    scale = max(float(np.percentile(error, 99)) for error in errors) or 1.0
    rows = len(panels) + 1
    columns = 3 + any(panel.plot is not None for panel in panels)
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 4 * rows), squeeze=False, layout="constrained")
    axes[0, 0].imshow(shown(truth), cmap="gray", vmin=0, vmax=1)
    axes[0, 0].set_title("truth")
    for row, (panel, error) in enumerate(zip(panels, errors, strict=True), start=1):
        final = next((c.entries[-1]["psnr"] for c in curves if c.title == panel.title and c.entries), None)
        quality = "" if final is None else f", {final:.2f} dB"
        axes[row, 0].imshow(shown(panel.reconstruction), cmap="gray", vmin=0, vmax=1)
        axes[row, 0].set_title(f"{panel.title}{quality}")
        image = axes[row, 1].imshow(error, cmap="magma", vmin=0, vmax=scale)
        axes[row, 1].set_title(f"{panel.title}: absolute error")
        figure.colorbar(image, ax=axes[row, 1], shrink=0.8)
        if panel.selection is not None and float(panel.selection.max()) > 0:
            axes[row, 2].imshow(shown(panel.selection), cmap="viridis")
            axes[row, 2].set_title(f"{panel.title}: where it looked")
        else:
            axes[row, 2].text(
                0.5, 0.5, "all points in every step", ha="center", va="center", transform=axes[row, 2].transAxes
            )
    for axis in axes.flat:
        axis.axis("off")
    for row, panel in enumerate(panels, start=1):
        if (plot := panel.plot) is not None:
            axes[row, 3].axis("on")
            axes[row, 3].plot(plot.x, plot.y, ".")
            axes[row, 3].set(title=plot.title, xlabel=plot.x_label, ylabel=plot.y_label)
            axes[row, 3].grid(alpha=0.3)
    for column, key, label in ((1, "seconds", "training seconds"), (2, "step", "step")):
        axes[0, column].axis("on")
        for curve in curves:
            xs = [entry[key] for entry in curve.entries]
            axes[0, column].plot(xs, [entry["psnr"] for entry in curve.entries], marker=".", label=curve.title)
        axes[0, column].set(xlabel=label, ylabel="PSNR (dB)", title=f"PSNR over {label}")
        axes[0, column].grid(alpha=0.3)
        axes[0, column].legend()
    save_figure(figure, path)
    plt.close(figure)
