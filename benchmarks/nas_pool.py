"""The pool that evaluates networks: two workers against one, and searches whose processes are killed.

    python benchmarks/nas_pool.py [--repeats 5 --genomes 48] [--kills 20]
    python benchmarks/nas_pool.py --kills 0 --real --config configs/evonas/rooms.yaml data.root=DIR out=runs/rooms

Speed: seconds for the errors of the same networks in this process, by a pool of one worker and by one of two, in
turn, started before; and, as what the machine allows just then, by one and two plain processes that get half of them
each. An evaluation is matrix products for ``--seconds`` of CPU time; with ``--real``, the last option, that of the
supernet in ``out`` on the search split. Kills: a search by a pool of two, killed once at a random moment of its
evaluations, half of the times a worker, half of the times the process that searches, which is then started again; its
front has to be, to the byte, that of a search left alone.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import alternate, ratio, spread, write_result

from evonas.engines import EngineConfig, LocalEngine, Make, RayEngine
from evonas.evaluation import Evaluator
from evonas.search import SearchConfig, search, write_front
from evonas.space import Genome, Space, SpaceConfig

SPACE = SpaceConfig()
SEARCH = SearchConfig(population=16, generations=6, objectives="[error, macs]")
ENGINE = EngineConfig(engine="ray", workers=2, models=2)
PATIENCE = 300.0
"""Seconds in which a search must end, and a process that nobody needs any more."""


@dataclass(frozen=True)
class Toy:
    """Makes evaluators that multiply matrices for some seconds a network; its errors conflict with its MACs.

    ``log`` is a file in which each process writes its number when it starts, and a line for each network.
    """

    seconds: float
    log: str = os.devnull

    def __call__(self) -> Callable[[Sequence[Genome]], list[float]]:
        """In the worker."""
        self.note("start")
        high = Space(SPACE).bounds[1]
        matrix = torch.rand(192, 192)

        def error(genome: Genome) -> float:
            self.note(" ".join(map(str, genome)))
            end = time.thread_time() + self.seconds
            while time.thread_time() < end:
                torch.mm(matrix, matrix)
            missing = 1 - np.array(genome) / high
            return 0.1 + float((missing**2 * (1 + np.arange(len(genome)) % 5)).mean())

        return lambda genomes: [error(genome) for genome in genomes]

    def note(self, text: str) -> None:
        """A line with the number of this process."""
        with open(self.log, "a") as file:
            file.write(f"{os.getpid()} {text}\n")


def macs(genome: Genome) -> float:
    """Of a toy network."""
    return 1e6 * (1 + sum(genome))


def real(words: Sequence[str]) -> tuple[Make, Space]:
    """The evaluation of the supernet that a command line of evonas/main.py names."""
    from evonas.options import parse
    from evonas.stages import ErrorsOnSearch

    _, options = parse(["search", *words])
    return ErrorsOnSearch(options), Space(options.space)


# ---- speed

_evaluate: Callable[[Sequence[Genome]], list[float]]


def set_up(make: Make) -> None:
    """In a plain process."""
    global _evaluate
    torch.set_num_threads(1)
    _evaluate = make()


def errors(genomes: Sequence[Genome]) -> list[float]:
    """In a plain process."""
    return _evaluate(genomes)


def speed(make: Make, space: Space, count: int, repeats: int, models: int) -> dict[str, Any]:
    """Seconds of each side, and how much faster two are than one."""
    generator = np.random.default_rng(0)
    genomes = [space.sample(generator) for _ in range(count)]
    with ExitStack() as stack:
        stack.enter_context(RayEngine(make, replace(ENGINE, workers=3)))  # Ray, with room for both pools
        local = stack.enter_context(LocalEngine(make, EngineConfig(models=models)))
        sides: dict[str, Callable[[], list[float]]] = {"local": lambda: [error for _, error in local.evaluate(genomes)]}
        for workers in (1, 2):
            engine = stack.enter_context(RayEngine(make, replace(ENGINE, workers=workers, models=models)))
            plain = stack.enter_context(
                ProcessPoolExecutor(workers, get_context("spawn"), initializer=set_up, initargs=(make,))
            )
            parts = [genomes[i::workers] for i in range(workers)]
            sides[f"pool of {workers}"] = lambda engine=engine: [error for _, error in engine.evaluate(genomes)]
            sides[f"plain {workers}"] = lambda plain=plain, parts=parts: list(
                chain.from_iterable(plain.map(errors, parts))
            )
        found = [sorted(run()) for run in sides.values()]
        assert all(own == found[0] for own in found)
        times = alternate(sides, repeats=repeats, warmup=1)
    return {
        "networks": count,
        "seconds": {name: spread(own) for name, own in times.items()},
        "pool of 1 / pool of 2": ratio(times, "pool of 1", "pool of 2"),
        "plain 1 / plain 2": ratio(times, "plain 1", "plain 2"),
        "plain 2 / pool of 2": ratio(times, "plain 2", "pool of 2"),
    }


# ---- kills


def drive(folder: Path, seconds: float) -> None:
    """A whole search, in a process that may be killed."""
    with RayEngine(Toy(seconds, str(folder / "log")), ENGINE) as engine:
        found = search(Space(SPACE), SEARCH, Evaluator(engine, {"macs": macs}, folder), folder)
    write_front(folder / "front.csv", found.front, Space(SPACE))


def start(folder: Path, seconds: float) -> subprocess.Popen:
    """``drive`` in a process of its own."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, __file__, "--drive", str(folder), "--seconds", str(seconds)]
    with open(folder / "output", "ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=output)


def lines(folder: Path) -> list[tuple[int, str]]:
    """Process and text of what the workers noted."""
    rows = (folder / "log").read_text().splitlines() if (folder / "log").exists() else []
    return [(int(pid), text) for pid, text in (row.split(" ", 1) for row in rows)]


def wait(until: Callable[[], Any], what: str) -> None:
    """Wait for something; raises RuntimeError if it doesn't come."""
    end = time.monotonic() + PATIENCE
    while not until():
        if time.monotonic() > end:
            raise RuntimeError(f"{what}: not within {PATIENCE:g} s")
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie (Linux)."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def finish(process: subprocess.Popen, folder: Path) -> None:
    """Wait for the end of a search, and for that of its workers."""
    if process.wait(PATIENCE):
        raise RuntimeError((folder / "output").read_text()[-2000:])
    wait(lambda: not any(is_running(pid) for pid, _ in lines(folder)), "the end of the workers")


def has_begun(folder: Path) -> bool:
    """Whether a network is being evaluated."""
    return any(text != "start" for _, text in lines(folder))


def kill(folder: Path, whom: str, seconds: float, moment: float, generator: random.Random) -> dict[str, Any]:
    """Kill a worker, or the searching process, ``moment`` seconds after the first evaluation began."""
    process = start(folder, seconds)
    wait(lambda: has_begun(folder), "the first evaluation")
    time.sleep(moment)
    candidates = sorted({pid for pid, _ in lines(folder)}) if whom == "worker" else [process.pid]
    running = [pid for pid in candidates if is_running(pid)]
    if running:
        os.kill(generator.choice(running), signal.SIGKILL)
    done = sum(text != "start" for _, text in lines(folder))
    if whom == "driver":
        process.wait(PATIENCE)
        wait(lambda: not any(is_running(pid) for pid, _ in lines(folder)), "the end of the workers")
        process = start(folder, seconds)
    finish(process, folder)
    evaluated = [text for _, text in lines(folder) if text != "start"]
    again = len(evaluated) - len(set(evaluated))
    return {"killed": whom if running else None, "moment": moment, "begun before": done, "evaluated again": again}


def kills(count: int, seconds: float, seed: int) -> dict[str, Any]:
    """Searches killed once each, beside one left alone."""
    generator, entries = random.Random(seed), []
    with tempfile.TemporaryDirectory() as root:
        alone = Path(root) / "alone"
        process = start(alone, seconds)
        wait(lambda: has_begun(alone), "the first evaluation")
        began = time.monotonic()
        wait(lambda: (alone / "front.csv").exists() or process.poll(), "the front")
        whole = time.monotonic() - began
        finish(process, alone)
        front = (alone / "front.csv").read_bytes()
        evaluations = sum(text != "start" for _, text in lines(alone))
        for number in range(count):
            whom, entry, tries = ("worker", "driver")[number % 2], {"killed": None}, 0
            while entry["killed"] is None:  # a search may have ended before its moment
                folder, tries = Path(root) / f"{number}-{tries}", tries + 1
                entry = kill(folder, whom, seconds, generator.uniform(0, 0.9 * whole), generator)
                entry["same front"] = (folder / "front.csv").read_bytes() == front
            entries.append(entry)
            print(entry, flush=True)
    return {
        "evaluations": evaluations,
        "seconds of the evaluations of a search left alone": whole,
        "genomes of the front": front.count(b"\n") - 1,
        "kills": {whom: sum(entry["killed"] == whom for entry in entries) for whom in ("worker", "driver")},
        "same front": sum(entry["same front"] for entry in entries),
        "most evaluated again": max((entry["evaluated again"] for entry in entries), default=0),
        "searches": entries,
    }


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="rounds of the timing")
    parser.add_argument("--genomes", type=int, default=48, help="networks in each round")
    parser.add_argument("--models", type=int, default=4, help="networks given to a worker at once")
    parser.add_argument("--seconds", type=float, default=0.1, help="CPU seconds of a toy evaluation")
    parser.add_argument("--kills", type=int, default=20, help="searches that are killed")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--real", nargs=argparse.REMAINDER, help="options of evonas/main.py; without: the toy")
    args = parser.parse_args()
    if args.drive:
        drive(args.drive, args.seconds)
        return
    make, space = (Toy(args.seconds), Space(SPACE)) if args.real is None else real(args.real)
    numbers: dict[str, Any] = {"evaluation": "toy" if args.real is None else "real"}
    if args.repeats:
        numbers["speed"] = speed(make, space, args.genomes, args.repeats, args.models)
    if args.kills:
        numbers["kills"] = kills(args.kills, args.seconds, args.seed)
    write_result("nas_pool" if args.real is None else "nas_pool_real", numbers)


if __name__ == "__main__":
    main()
