"""The modules that know one kind of signal each, by the names in evos/signals.py's KINDS, and what they share.

A picture that stays on disk is a kind of its own: huge.
"""

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from evos.fitted import FittedField
from evos.runs import EventLog, Run
from image_regression import huge, pictures, recordings, shapes, videos, volumes
from image_regression.report import Panel
from image_regression.trainer import Fit


class Medium(Protocol):
    """The functions of such a module; values "P C" are those of the whole signal as predicted, in [0, 1] units."""

    @staticmethod
    def measure(fit: Fit, values: Tensor, with_lpips: bool) -> dict[str, float | None]:
        """Quality by name, at every evaluation; psnr is among it."""
        ...

    @staticmethod
    def final_metrics(fit: Fit, values: Tensor) -> dict[str, Any]:
        """What metrics.json holds besides, measured once."""
        ...

    @staticmethod
    def log(events: EventLog, fit: Fit, step: int, values: Tensor) -> None:
        """Write to the event log, at every evaluation."""
        ...

    @staticmethod
    def write(run: Run, fit: Fit, values: Tensor) -> dict[str, Any] | None:
        """Write the reconstruction and pictures of it; returns metrics that this has measured better, if any."""
        ...

    @staticmethod
    def panel(fit: Fit, values: Tensor) -> tuple[Tensor, Panel]:
        """A picture "H W C" of the truth, and the run's part of the report."""
        ...

    @staticmethod
    def resized(shape: tuple[int, ...], size: int | None, frames: int | None) -> tuple[int, ...]:
        """The grid on which a fit of that shape is rendered at a size."""
        ...

    @staticmethod
    def render(
        path: Path, fitted: FittedField, shape: tuple[int, ...], start: tuple[int, ...], size: tuple[int, ...]
    ) -> None:
        """Write the part that begins at ``start`` and is of ``size``, of a fitted signal on a grid of ``shape``."""
        ...


MEDIA: dict[str, Medium] = {
    **{"picture": pictures, "huge": huge, "sound": recordings},
    **{"video": videos, "volume": volumes, "shape": shapes},
}
