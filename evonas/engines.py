"""Errors of many networks: in this process, or by a pool of workers.

The pool is EvoNAS's (arXiv 2603.19563, DMMPE): workers with a device of their own, several networks a worker in one
pass over the data, asynchronous. A worker that dies or hangs is replaced, and its networks are evaluated again.
"""

import logging
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from evonas.space import Genome
from evos.config import check_choices, check_range
from evos.errors import InputError

Evaluate = Callable[[Sequence[Genome]], list[float]]
"""The errors of several networks, in one pass over the data; the same for a network whatever its company."""
Make = Callable[[], Evaluate]
"""Loads supernet and data once, in the worker; can be pickled."""

OBJECT_STORE = 200 * 2**20
"""Bytes of shared memory that a Ray of our own takes; genomes and numbers are small."""
CONNECT_SECONDS = 5.0


@dataclass(frozen=True)
class EngineConfig:
    """Options of what evaluates networks."""

    engine: Literal["local", "ray"] = "local"
    """In this process (local), or in a pool of processes, on one machine or several (ray)."""

    workers: int = 2
    """Processes of the pool, at least 1."""

    models: int = 4
    """Networks that a worker evaluates in one pass over the data, at least 1."""

    time_limit: float = 600.0
    """Seconds that a worker may take to start, or for one pass, before it is taken for hung; above 0."""

    retries: int = 3
    """How often a network may be tried again after its worker died or hung, at least 0."""

    address: str | None = None
    """A running Ray to join: auto (the one on this machine) or HOST:PORT; none: start one on this machine."""

    threads: int = 1
    """CPU threads of each worker, at least 1."""

    gpus_per_worker: float = 0.0
    """GPUs of each worker, at least 0; a half lets two workers share one."""

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("workers", "models", "threads"):
            check_range(name, getattr(self, name), 1)
        check_range("time_limit", self.time_limit, 0, open_low=True)
        check_range("retries", self.retries, 0)
        check_range("gpus_per_worker", self.gpus_per_worker, 0)


def chunks(genomes: Sequence[Genome], size: int) -> Iterator[list[Genome]]:
    """The genomes in groups of ``size``, the last of them what is left."""
    for start in range(0, len(genomes), size):
        yield list(genomes[start : start + size])


class LocalEngine:
    """Evaluates in this process; within the context torch has ``threads`` threads, as in a worker."""

    def __init__(self, make: Make, config: EngineConfig) -> None:
        self.make, self.config = make, config

    def __enter__(self) -> "LocalEngine":
        self._threads = torch.get_num_threads()
        torch.set_num_threads(self.config.threads)
        self._function = self.make()
        return self

    def __exit__(self, *reason: object) -> None:
        torch.set_num_threads(self._threads)

    def evaluate(self, genomes: Sequence[Genome]) -> Iterator[tuple[Genome, float]]:
        """Each genome with its error, as they come."""
        for group in chunks(genomes, self.config.models):
            yield from zip(group, map(float, self._function(group)), strict=True)


class Worker:
    """What runs in a process of the pool."""

    def __init__(self, make: Make, threads: int) -> None:
        self.make, self.threads = make, threads

    def start(self) -> None:
        """Load what the evaluations need; here and not before, so that its errors come back as they are."""
        torch.set_num_threads(self.threads)
        self.function = self.make()

    def evaluate(self, genomes: list[Genome]) -> list[float]:
        """Their errors."""
        return [float(error) for error in self.function(genomes)]


@dataclass
class Slot:
    """A worker's place in the pool: what is there, and what it does."""

    actor: Any = None
    future: Any = None
    task: list[Genome] | None = None
    """What it evaluates; None while it starts."""
    since: float = 0.0

    def wait_for(self, future: Any, task: list[Genome] | None) -> None:
        """It has begun something."""
        self.future, self.task, self.since = future, task, time.monotonic()


class RayEngine:
    """Evaluates in a pool of Ray actors, each a process with a device or core of its own."""

    def __init__(self, make: Make, config: EngineConfig) -> None:
        self.make, self.config = make, config
        self.slots = [Slot() for _ in range(config.workers)]
        self._failures = 0

    def __enter__(self) -> "RayEngine":
        """Start or join Ray; raises InputError if nobody answers at ``address``, or there are too few CPUs or GPUs."""
        import ray

        self._owns = not ray.is_initialized()
        if self._owns:
            connect(self.config)
        try:
            check_resources(self.config)
        except InputError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *reason: object) -> None:
        """End the workers, and Ray if it was started or joined here."""
        import ray

        for slot in self.slots:
            self._end(slot)
        if self._owns:
            ray.shutdown()

    def evaluate(self, genomes: Sequence[Genome]) -> Iterator[tuple[Genome, float]]:
        """Each genome with its error, as they come, in any order.

        Raises:
            RuntimeError: workers don't start, or a genome's worker died or hung more than ``retries`` times. What an
                evaluation itself raises comes as it is.
        """
        import ray

        tasks, tries, left = deque(chunks(genomes, self.config.models)), Counter(), len(genomes)
        try:
            # A worker that still starts is waited for, too: nothing may run beside what comes next, such as latencies.
            while left or any(slot.future is not None for slot in self.slots):
                for slot in self.slots:
                    if slot.actor is None and left:
                        self._begin(slot)
                    elif slot.actor is not None and slot.future is None and tasks:
                        task = tasks.popleft()
                        slot.wait_for(slot.actor.evaluate.remote(task), task)
                busy = [slot for slot in self.slots if slot.future is not None]
                futures = [slot.future for slot in busy]
                patience = min(slot.since for slot in busy) + self.config.time_limit - time.monotonic()
                ray.wait(futures, timeout=max(patience, 0))
                ready, _ = ray.wait(futures, num_returns=len(futures), timeout=0)
                for slot in busy:
                    task = slot.task
                    if slot.future in ready:
                        trouble, errors = self._collect(slot)
                    elif time.monotonic() - slot.since >= self.config.time_limit:
                        trouble, errors = f"was silent for {self.config.time_limit:g} s", None
                    else:
                        continue
                    slot.future = slot.task = None
                    if trouble is not None:
                        self._end(slot)
                        self._count(task, trouble, tries)
                        # One by one, so that a network that ends its worker takes no others with it.
                        tasks.extendleft([genome] for genome in reversed(task or []))
                    elif task is not None and errors is not None:
                        left -= len(task)
                        yield from zip(task, errors, strict=True)
        finally:
            for slot in self.slots:  # left early: what still runs is of no use
                if slot.task is not None:
                    self._end(slot)

    def _collect(self, slot: Slot) -> tuple[str | None, list[float] | None]:
        """What went wrong with the worker, and what it answered."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            answer = ray.get(slot.future)
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None
        except RayError:
            return "died", None
        self._failures = 0
        return None, answer

    def _count(self, task: list[Genome] | None, trouble: str, tries: Counter) -> None:
        """Count a failure; raises RuntimeError if it was one too many."""
        if task is None:
            self._failures += 1
            if self._failures > self.config.retries:
                raise RuntimeError(f"the pool doesn't start: the last of {self._failures} workers {trouble}")
        for genome in task or []:
            tries[genome] += 1
            if tries[genome] > self.config.retries:
                raise RuntimeError(f"genome {list(genome)}: its worker {trouble}, {tries[genome]} times")

    def _begin(self, slot: Slot) -> None:
        import ray

        kind = ray.remote(num_cpus=self.config.threads, num_gpus=self.config.gpus_per_worker)(Worker)
        slot.actor = kind.remote(self.make, self.config.threads)
        slot.wait_for(slot.actor.start.remote(), None)

    @staticmethod
    def _end(slot: Slot) -> None:
        import ray

        if slot.actor is not None and ray.is_initialized():
            ray.kill(slot.actor)
        slot.actor = slot.future = slot.task = None


def connect(config: EngineConfig) -> None:
    """Join the Ray at ``address``, or start one on this machine that ends with this process, even if that is killed.

    Raises:
        InputError: nobody answers there, or Ray does not start.
    """
    import ray

    quiet: dict[str, Any] = {"include_dashboard": False, "logging_level": logging.ERROR, "log_to_driver": False}
    handler, is_main = signal.getsignal(signal.SIGTERM), threading.current_thread() is threading.main_thread()
    try:
        if config.address is None:
            slots = {"num_cpus": config.workers * config.threads, "object_store_memory": OBJECT_STORE}
            # Not None, for which RAY_ADDRESS would do.
            ray.init("local", **slots, **quiet)
        else:
            if config.address != "auto":
                host, _, port = config.address.rpartition(":")
                socket.create_connection((host, int(port)), CONNECT_SECONDS).close()  # Ray itself waits for minutes
            ray.init(config.address, **{name: value for name, value in quiet.items() if name != "include_dashboard"})
    except Exception as error:  # Ray raises bare ones, as on a machine that is too busy for it to start in time
        if config.address is None:
            raise InputError("engine.engine", f"ray, which does not start ({error})", "local, or ray again") from error
        allowed = "auto or HOST:PORT of a running Ray (ray start --head)"
        raise InputError("engine.address", f"{config.address} ({error})", allowed) from error
    finally:
        if is_main:  # Ray sets one of its own, which would exit in the middle of a generation
            signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)


def check_resources(config: EngineConfig) -> None:
    """Raise InputError unless Ray has the CPUs and GPUs that the workers need."""
    import ray

    resources = ray.cluster_resources()
    for kind, each in (("CPU", config.threads), ("GPU", config.gpus_per_worker)):
        if each * config.workers > resources.get(kind, 0) + 1e-6:
            there = f"{each:g} {kind} each, and Ray has {resources.get(kind, 0):g}"
            raise InputError("engine.workers", config.workers, f"as many as there is room for: they take {there}")


def build_engine(config: EngineConfig, make: Make) -> LocalEngine | RayEngine:
    """The engine that a config names."""
    return (LocalEngine if config.engine == "local" else RayEngine)(make, config)
