"""A progress bar on a terminal, plain lines elsewhere, nothing when quiet."""

import sys
from time import perf_counter
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress
from torch import Tensor

SECONDS_PER_REDRAW = 0.1
SECONDS_PER_LINE = 5.0


class Progress:
    """Shows steps done, metrics and time left on standard output.

    On a terminal a bar is redrawn at most ten times a second. Elsewhere a plain line is printed after five seconds or a
    further tenth of the steps, and always for the last step. In between, `update` only checks the clock and reads no
    tensors, so call it each step.
    """

    def __init__(self, total: int, label: str, *, start: int = 0, quiet: bool = False) -> None:
        """Show progress from `start` steps done (where a run resumes) to `total`."""
        self._total, self._label, self._start = total, label, start
        self._quiet = quiet
        self._began = self._shown_at = perf_counter()
        self._shown = start
        self._latest: tuple[int, dict[str, float | Tensor]] = (start, {})
        self._bar: RichProgress | None = None
        # Not rich's word alone: FORCE_COLOR makes it take a log file for a terminal.
        if not quiet and sys.stdout.isatty() and (console := Console()).is_interactive:
            # Redrawn from `update`, not from a thread that would take turns with the training.
            columns = (BarColumn(bar_width=24), TextColumn("{task.description}", markup=False))
            bar = RichProgress(*columns, console=console, auto_refresh=False)
            self._task = bar.add_task(f"{label} {start}/{total}", total=total, completed=start)
            bar.start()
            self._bar = bar

    def update(self, step: int, **metrics: float | Tensor) -> None:
        """Report that `step` steps are done; `metrics` are numbers or one-element tensors."""
        self._latest = (step, metrics)
        if not self._quiet and (step >= self._total or self._is_due(step)):
            self._show()

    def close(self) -> None:
        """Show the last update, unless it was shown, and leave the bar where it is; safe to call twice."""
        if not self._quiet and self._latest[0] != self._shown:
            self._show()
        if self._bar:
            self._bar.stop()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _is_due(self, step: int) -> bool:
        waited = perf_counter() - self._shown_at
        if self._bar:
            return waited >= SECONDS_PER_REDRAW
        return waited >= SECONDS_PER_LINE or 10 * step // self._total > 10 * self._shown // self._total

    def _show(self) -> None:
        step, metrics = self._latest
        text = self._text(step, metrics)
        self._shown, self._shown_at = step, perf_counter()
        if self._bar:
            self._bar.update(self._task, completed=step, description=text, refresh=True)
        else:
            print(text, flush=True)

    def _text(self, step: int, metrics: dict[str, float | Tensor]) -> str:
        percent = f"{100 * step // max(self._total, 1)}%"
        values = [f"{name} {float(value):.4g}" for name, value in metrics.items()]
        seconds = perf_counter() - self._began
        if step >= self._total:
            time = f"took {_duration(seconds)}"
        elif step > self._start:
            time = f"left {_duration(seconds / (step - self._start) * (self._total - step))}"
        else:
            time = "starting"
        return "  ".join([f"{self._label} {step}/{self._total}", percent, *values, time])


def _duration(seconds: float) -> str:
    """`seconds` as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
