"""Scalars, images and audio for TensorBoard."""

import os
import socket
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from evos.errors import InputError


class EventLog:
    """Writes event files into the run folder, where ``tensorboard --logdir runs`` finds them.

    Without the tensorboard package it warns once and writes nothing. Every method raises InputError where the folder
    can't be written or is full. torch's SummaryWriter writes in a thread, whose errors come late and as a traceback.
    """

    def __init__(self, folder: str | Path, *, purge_step: int | None = None) -> None:
        """Log into `folder`; on resume, what an earlier process logged from `purge_step` on is hidden."""
        # TensorBoard reads event files in the order of their names, which must therefore begin with the time.
        self._path = Path(folder, f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}")
        self._records: Any = None
        try:
            from tensorboard.compat.proto import event_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
            from torch.utils.tensorboard import summary
        except ImportError:
            warnings.warn("no event files: the tensorboard package is not installed", stacklevel=2)
            return
        self._protocol: Any = event_pb2
        self._summary = summary
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._records = RecordWriter(self._path.open("wb"))
        except OSError as error:
            raise self._error(error) from error
        self._write(0, file_version="brain.Event:2")
        if purge_step is not None:
            kind = self._protocol.SessionLog
            self._write(purge_step, session_log=kind(status=kind.START))

    def scalars(self, step: int, values: Mapping[str, float | int | Tensor]) -> None:
        """Log one number per name."""
        if self._records:
            for name, value in values.items():
                self._write(step, summary=self._summary.scalar(name, float(value)))

    def image(self, step: int, name: str, image: Float[Tensor, "H W C"]) -> None:
        """Log an image of 1 or 3 channels; values outside [0, 1] are clipped."""
        if self._records:
            pixels = image.detach().float().clamp(0, 1).cpu().numpy()
            self._write(step, summary=self._summary.image(name, pixels, dataformats="HWC"))

    def audio(self, step: int, name: str, samples: Float[Tensor, "T C"], rate: int) -> None:
        """Log the mean over channels, at `rate` samples a second; amplitudes outside [-1, 1] are clipped.

        torch's audio summary holds a single channel.
        """
        if self._records:
            clipped = samples.detach().float().mean(-1).clamp(-1, 1).cpu().numpy()
            self._write(step, summary=self._summary.audio(name, clipped, sample_rate=rate))

    def close(self) -> None:
        """Close the file; safe to call twice."""
        if self._records:
            records, self._records = self._records, None
            try:
                records.close()
            except OSError as error:  # closing retries the write that failed
                raise self._error(error) from error

    def _write(self, step: int, **content: Any) -> None:
        event = self._protocol.Event(wall_time=time.time(), step=step, **content)
        try:
            self._records.write(event.SerializeToString())
            self._records.flush()
        except OSError as error:
            raise self._error(error) from error

    def _error(self, error: OSError) -> InputError:
        return InputError(str(self._path), error.strerror or str(error), "a writable folder with free space")
