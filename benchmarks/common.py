"""Shared by the benchmarks: interleaved timing with warm-up, and a result file with machine, versions and command."""

import argparse
import hashlib
import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from evos.runs import environment

RESULTS = Path(__file__).parent / "results"


def synchronized_clock() -> float:
    """Seconds on a clock, after waiting for the work queued on a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def alternate(sides: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int = 3) -> dict[str, list[float]]:
    """Seconds of each side, measured in turn so that a noisy machine disturbs all sides alike."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(warmup + repeats):
        for name, run in sides.items():
            start = synchronized_clock()
            run()
            end = synchronized_clock()
            if round_ >= warmup:
                times[name].append(end - start)
    return times


def spread(values: list[float]) -> dict[str, float]:
    """Median, quartiles and count."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"median": middle, "q1": low, "q3": high, "n": len(values)}


def mean_and_deviation(values: list[float]) -> dict[str, float]:
    """Mean, standard deviation and count."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(statistics.mean(values), 4), "std": round(deviation, 4), "n": len(values)}


def ratio(times: Mapping[str, list[float]], side: str, against: str) -> dict[str, float]:
    """Median and quartiles of the ratio of two sides, round by round."""
    return spread([a / b for a, b in zip(times[side], times[against], strict=True)])


def peak_mib(run: Callable[[], object]) -> float:
    """MiB by which a run raises the resident set at its highest (Linux); warm up on a tiny problem before."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = resident_mib("VmRSS")
    run()
    return resident_mib("VmHWM") - before


def resident_mib(field: str) -> float:
    """A line of /proc/self/status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def write_result(name: str, numbers: Mapping[str, Any]) -> None:
    """Write results/NAME.json and show it."""
    command = "python " + shlex.join([f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    text = json.dumps({"command": command, **environment(), "results": numbers}, indent=2, default=str)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(json.dumps(numbers, indent=2, default=str))


def code_hash(paths: Iterable[Path], *settings: object) -> str:
    """A short text that tells two states of files, and of what else matters, apart."""
    texts = (repr(setting).encode() for setting in settings)
    return hashlib.sha256(b"".join([*(path.read_bytes() for path in paths), *texts])).hexdigest()[:12]


def run_jobs(jobs: Sequence[str], cache: Path, workers: int) -> dict[str, Any]:
    """What this script prints, as JSON in its last line, when it is called again with ``--one JOB``; kept in ``cache``.

    So many at a time, each in a process of its own. The option ``--one`` goes to the end of the command line.
    """

    def work(job: str) -> Any:
        kept = cache / f"{job.replace(' ', '_')}.json"
        if not kept.exists():
            words = [sys.executable, *sys.argv, "--one", job]
            done = subprocess.run(words, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{job}: {done.stderr[-2000:]}")
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(done.stdout.splitlines()[-1])
        text = kept.read_text()
        print(job, text[:60], flush=True)
        return json.loads(text)

    with ThreadPoolExecutor(workers) as pool:
        return dict(zip(jobs, pool.map(work, jobs), strict=True))


def job_options(parser: argparse.ArgumentParser, name: str, cache: str) -> None:
    """The options of a benchmark by ``run_jobs``."""
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time")
    parser.add_argument("--cache", type=Path, default=Path(cache), help="folder of finished trainings")
    parser.add_argument("--name", default=name, help="name of the result")
    parser.add_argument("--one", help=argparse.SUPPRESS)


def two_command_lines(parser: argparse.ArgumentParser) -> tuple[list[str], argparse.Namespace]:
    """The words before ``--``, which are another program's, and this one's own options after it."""
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    return words[:split], parser.parse_args(words[split + 1 :])


class Kernels(TorchDispatchMode):
    """Counts operations within the context, views excluded: on a GPU about the number of kernels that the host
    launches."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func``, and count it unless what it returns is a view."""
        self.count += not any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        return func(*args, **(kwargs or {}))

    def __call__(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """``run`` with its operations counted."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            with self:
                return run(*args, **kwargs)

        return counted
