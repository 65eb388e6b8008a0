"""Measuring what a search asks for: errors by an engine, then latencies one by one where nothing else runs."""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from evonas.archive import Archive
from evonas.engines import LocalEngine, RayEngine
from evonas.space import Genome, Space
from evos.config import check_range
from evos.errors import InputError


@contextmanager
def one_core(core: int | None = None) -> Iterator[None]:
    """Within, this thread stays on one core and torch has one thread; None: the last core it may use.

    Raises:
        InputError: this process may not use the core. Without affinities (macOS, Windows) only torch's threads change.
    """
    threads, cores = torch.get_num_threads(), None
    if hasattr(os, "sched_setaffinity"):
        cores = os.sched_getaffinity(0)
        if core is not None and core not in cores:
            raise InputError("core", core, f"one of {sorted(cores)}")
        os.sched_setaffinity(0, {max(cores) if core is None else core})
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if cores is not None:
            os.sched_setaffinity(0, cores)


def synchronized_clock() -> float:
    """Seconds, after waiting for the work queued on a GPU."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def call_times(
    run: Callable[[], object],
    *,
    warmup: int = 5,
    repeats: int = 30,
    core: int | None = None,
    clock: Callable[[], float] = synchronized_clock,
) -> list[float]:
    """Seconds that each of ``repeats`` calls (at least 1) takes on one core or the GPU, after ``warmup`` others.

    Raises InputError as ``one_core``.
    """
    check_range("repeats", repeats, 1)
    times = []
    with one_core(core):
        for _ in range(warmup + repeats):
            start = clock()
            run()
            times.append(clock() - start)
    return times[warmup:]


def latency(run: Callable[[], object], **options: Any) -> dict[str, float]:
    """Seconds that a call takes: ``median``, and ``cv``, the coefficient of variation; options as ``call_times``.

    Only meaningful where nothing else runs.
    """
    times = call_times(run, **options)
    mean = statistics.fmean(times)
    return {"median": statistics.median(times), "cv": statistics.pstdev(times) / mean if mean else 0.0}


class Evaluator:
    """All objectives of genomes: errors by the engine as they come, then, while it is idle, the others one by one.

    Errors are kept in ``folder/errors.jsonl``, so that those of a generation survive a kill before its latencies.
    """

    def __init__(
        self,
        engine: LocalEngine | RayEngine,
        objectives: Mapping[str, Callable[[Genome], float]],
        folder: str | Path,
        space: Space | None = None,
    ) -> None:
        """``objectives`` are those besides ``error``; raises InputError as ``Archive``."""
        self.engine, self.objectives = engine, dict(objectives)
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.errors = Archive(Path(folder) / "errors.jsonl", space)

    def __call__(self, genomes: Sequence[Genome]) -> Iterator[tuple[Genome, dict[str, float]]]:
        """Each genome with its ``error`` alone, as it comes, and then each with all objectives."""
        known = self.errors.values
        for genome, error in self.engine.evaluate([genome for genome in genomes if genome not in known]):
            self.errors.add(genome, {"error": error})
            yield genome, {"error": error}
        for genome in genomes:
            yield genome, {**known[genome], **{name: float(of(genome)) for name, of in self.objectives.items()}}
