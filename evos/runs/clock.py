"""Seconds spent training, without those of evaluations, logging and checkpoints."""

from time import perf_counter

import torch


class Clock:
    """Counts training seconds only: pause it around evaluations, logging and checkpoints."""

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self._device = torch.device(device)
        self._counted = 0.0
        self._started: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds counted so far, including those since the last start."""
        return self._counted + (0.0 if self._started is None else perf_counter() - self._started)

    def start(self) -> None:
        """Start counting; no effect if it is running."""
        if self._started is None:
            self._started = perf_counter()

    def pause(self) -> None:
        """Stop counting once the work queued on a CUDA device is done; no effect if it is paused."""
        if self._started is None:
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._counted, self._started = self.seconds, None

    def state_dict(self) -> dict[str, float]:
        """The seconds so far, for a checkpoint."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from the seconds in `state`, paused."""
        self._counted, self._started = float(state["seconds"]), None
