"""Inside the training loop: stopping on a signal, counting training seconds, noticing divergence."""

import math
import signal
import threading
from time import perf_counter
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor

from evos.errors import InputError


class TrainingDiverged(InputError):
    """The loss became inf or nan: front ends print one line and exit with status 2, as for bad input."""


def non_finite(loss_value: float | Tensor, step: int) -> None:
    """Stop the run if the loss is no longer a finite number; reads the value, so a CUDA tensor makes the host wait.

    Raises:
        TrainingDiverged: the loss is inf or nan; the message names the step.
    """
    value = float(loss_value)
    if not math.isfinite(value):
        raise TrainingDiverged("loss", f"{value} at step {step}", "finite values; a checkpoint of earlier steps stays")


class Stopper:
    """Turns Ctrl-C (SIGINT) and SIGTERM into a request, so that the loop can finish its step and write a checkpoint.

    Use as a context manager around the loop. After a request, another SIGINT raises KeyboardInterrupt at once. The old
    handlers are put back at the end. Off the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self._received is not None

    @property
    def exit_code(self) -> int:
        """The status to exit with: 128 + the first signal's number (130 for SIGINT, 143 for SIGTERM), 0 without one."""
        return 0 if self._received is None else 128 + self._received

    def __enter__(self) -> "Stopper":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: it was set outside Python

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            self._received = number
        elif number == signal.SIGINT:
            raise KeyboardInterrupt


class Clock:
    """Counts training seconds only: pause it around evaluation, logging and checkpoints."""

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self._device = torch.device(device)
        self._counted = 0.0
        self._started: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds between each start and pause so far, the running stretch included."""
        return self._counted + (0.0 if self._started is None else perf_counter() - self._started)

    def start(self) -> None:
        """Count from now on; no change if it runs already."""
        if self._started is None:
            self._started = perf_counter()

    def pause(self) -> None:
        """Stop counting once the work queued on a CUDA device is done; no change if it is paused already."""
        if self._started is None:
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._counted, self._started = self.seconds, None

    def state_dict(self) -> dict[str, float]:
        """The seconds so far, for a checkpoint."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from the seconds in `state`, paused."""
        self._counted, self._started = float(state["seconds"]), None
