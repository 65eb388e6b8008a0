"""Seconds spent training, without those of evaluations, logging and checkpoints."""

from time import perf_counter

import torch


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
