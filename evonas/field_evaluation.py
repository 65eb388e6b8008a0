"""Measuring what a search of fields asks for: brackets of candidates, in this process or in several."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from time import process_time
from types import TracebackType
from typing import Any

import torch

from evonas.evaluation import synchronized_clock
from evonas.field_space import FieldSpace
from evonas.field_training import FieldTrainConfig, StepTimes, Target, train_bracket
from evonas.genomes import Genome
from evos.errors import InputError
from evos.runs import Stopped, keep_freed_memory
from evos.runs.files import append_line, whole_lines
from evos.signals import Signal

Values = dict[str, float]
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Measuring:
    """What it takes to measure a bracket; can be pickled."""

    space: FieldSpace
    signals: Sequence[Signal]
    config: FieldTrainConfig
    names: Sequence[str]
    """The objectives, which decide who goes on in a bracket."""
    seed: int
    device: torch.device


class Measurer:
    """Measures brackets in one process, with one thread."""

    def __init__(self, setting: Measuring, poll: Callable[[], None] = lambda: None) -> None:
        # The process's own time, which other processes don't lengthen; on a GPU there is only the wall's.
        clock = process_time if setting.device.type == "cpu" else synchronized_clock
        self.setting, self.poll, self.times = setting, poll, StepTimes(clock)
        self.targets = [Target(each, setting.device) for each in setting.signals]

    def __call__(self, genomes: Sequence[Genome]) -> list[Values]:
        """Of each genome ``error``, ``seconds``, ``parameters``, and the ``steps`` of its runs (their mean)."""
        setting, threads = self.setting, torch.get_num_threads()
        sizes = [float(setting.space.parameters(genome)) for genome in genomes]
        others = [name for name in setting.names if name != "error"]

        def costs(i: int, seconds: float) -> list[float]:
            return [{"seconds": seconds, "parameters": sizes[i]}[name] for name in others]

        torch.set_num_threads(1)
        try:
            found = train_bracket(
                [setting.space.decode(genome) for genome in genomes],
                costs,
                self.targets,
                setting.config,
                seed=setting.seed,
                device=setting.device,
                times=self.times,
                poll=self.poll,
            )
        finally:
            torch.set_num_threads(threads)
        count = len(self.targets)
        return [
            {
                "error": round(own.error, 7),  # the last bits depend on where tensors lie in memory
                "seconds": sum(own.seconds) / count,
                "parameters": size,
                "steps": float(round(sum(own.steps) / count)),
            }
            for own, size in zip(found, sizes, strict=True)
        ]


class Worker:
    """A process of its own."""

    measure: Measurer

    @classmethod
    def start(cls, setting: Measuring) -> None:
        """Prepare, once in a process; Ctrl-C is for the one that gives the work, which this one does not outlive."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=end_with_parent, daemon=True).start()
        torch.set_num_threads(1)
        keep_freed_memory(setting.device)
        cls.measure = Measurer(setting)

    @classmethod
    def run(cls, genomes: list[Genome]) -> list[Values]:
        """One bracket."""
        return cls.measure(genomes)


def end_with_parent() -> None:
    """Wait for the process that started this one to end, and end at once."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


class FieldEvaluator:
    """All objectives of genomes; to be used as a context.

    Who goes on in a bracket depends on its company. So a generation is kept in ``folder/brackets.jsonl`` as a whole,
    before any of it counts: one that was cut off is measured again as a whole.
    """

    def __init__(
        self, setting: Measuring, folder: str | Path, *, workers: int = 1, stopped: Callable[[], int] = lambda: 0
    ) -> None:
        """``stopped``: the status to exit with if the search is to stop, else 0; asked all the time.

        Raises InputError where the file can't be read or written, or is damaged before its last line.
        """
        self.setting, self.workers, self.stopped = setting, workers, stopped
        self.path = Path(folder) / "brackets.jsonl"
        self.known: dict[Genome, Values] = {}
        self.pool: ProcessPoolExecutor | None = None
        self.measure = Measurer(setting, self.poll) if workers == 1 else None
        lines = whole_lines(self.path)
        try:
            for line in lines:
                for entry in json.loads(line):
                    self.known[setting.space.check(entry.pop("genome"))] = entry
        except (ValueError, KeyError, AttributeError, TypeError):
            raise InputError(str(self.path), "a damaged line", "what a search of this space wrote, untouched") from None

    def __enter__(self) -> "FieldEvaluator":
        if self.workers > 1:
            self.pool = ProcessPoolExecutor(self.workers, get_context("spawn"), Worker.start, (self.setting,))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.pool is not None:
            for process in list((self.pool._processes or {}).values()) if kind is not None else []:
                process.terminate()  # what still runs is of no use
            self.pool.shutdown(cancel_futures=True)

    def poll(self) -> None:
        """Raise Stopped if the search is to stop."""
        if status := self.stopped():
            raise Stopped(status)

    def __call__(self, genomes: Sequence[Genome]) -> Iterator[tuple[Genome, Values]]:
        """Each genome with its objectives and ``steps``."""
        missing = [genome for genome in genomes if genome not in self.known]
        if missing:
            size = self.setting.config.bracket
            brackets = [missing[start : start + size] for start in range(0, len(missing), size)]
            found = dict(zip(missing, [values for own in self.run(brackets) for values in own], strict=True))
            append_line(self.path, json.dumps([{"genome": list(genome), **values} for genome, values in found.items()]))
            self.known |= found
        for genome in genomes:
            yield genome, self.known[genome]

    def run(self, brackets: Sequence[list[Genome]]) -> list[list[Values]]:
        """What was measured of each bracket."""
        if self.measure is not None:
            return [self.measure(own) for own in brackets]
        assert self.pool is not None, "the evaluator is a context"
        futures: list[Any] = [self.pool.submit(Worker.run, own) for own in brackets]
        waiting = set(futures)
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=POLL_SECONDS)
                self.poll()
                for future in done:
                    future.result()
        except BrokenProcessPool:
            raise RuntimeError("a worker of the search died; --resume goes on with the last whole generation") from None
        return [future.result() for future in futures]
