"""Graceful stop between two steps on Ctrl-C or SIGTERM, and the command that goes on."""

import shlex
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any


class Stopped(Exception):
    """A signal ended the run after a finished step and a saved checkpoint; exit with `exit_code`."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


class Stopper:
    """Turns Ctrl-C (SIGINT) and SIGTERM into a request, so that the loop can finish its step and write a checkpoint.

    Use as a context manager around the loop. After a request, another SIGINT raises KeyboardInterrupt at once. The
    previous handlers are restored at the end. Off the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has arrived."""
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


def resume_command(program: str, words: Sequence[str], *, overwrite: bool) -> str:
    """The command that goes on with a run of the script ``program`` that was started with ``words``, in any shell.

    ``overwrite``: whether the run was to replace one; the last occurrence of an option wins, also over a config file.
    """
    return shlex.join([sys.executable, program, *words, "--resume", *(["overwrite=false"] if overwrite else [])])
