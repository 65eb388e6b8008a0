"""Two versions of this project in one run: each takes steps in a process of its own, from its own tree, in turn.

A script that measures steps calls ``serve`` where it is started with ``--serve``, and ``compare`` where it is given
another tree with ``--other DIR``. Only the protocol between the processes must be the same in both trees: a line with
"step NAME" is answered by the step's seconds, and one with "operations NAME" by numbers of operations by name.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from common import spread, synchronized_clock

from evos.runs import environment

ANSWER = "answer: "
"""Prefix of answers: other lines of the output are from libraries."""


def own_clock() -> float:
    """Seconds of this process alone where one CPU thread computes, which leave out what else runs; else the wall's."""
    if torch.cuda.is_available() or torch.get_num_threads() > 1:
        return synchronized_clock()
    return time.process_time()


def serve(
    steps: Mapping[str, Callable[[], object]],
    operations: Callable[[str], Mapping[str, float]],
    lines: Iterable[str] = sys.stdin,
) -> None:
    """Take steps and count operations as the lines say, until they end."""
    for line in lines:
        word, name = line.split()
        if word == "step":
            start = own_clock()
            steps[name]()
            answer: Any = own_clock() - start
        else:
            answer = operations(name)
        print(ANSWER + json.dumps(answer), flush=True)


class Tree:
    """The benchmark ``script`` of the tree at ``root``, serving."""

    def __init__(self, root: Path, script: str, words: Sequence[str]) -> None:
        self.root = root.resolve()
        command = [sys.executable, str(self.root / "benchmarks" / script), *words, "--serve"]
        paths = {"PYTHONPATH": str(self.root)}
        self.process = subprocess.Popen(
            command, cwd=self.root, env=os.environ | paths, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> "Tree":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()

    def ask(self, word: str, name: str) -> Any:
        """The answer to a word; RuntimeError where the process ended, whose own error is above it."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(f"{word} {name}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # read on: there is no answer
        for line in self.process.stdout:
            if line.startswith(ANSWER):
                return json.loads(line.removeprefix(ANSWER))
        raise RuntimeError(f"the benchmark of {self.root} ended without an answer to {word} {name}")

    def commit(self) -> str:
        """The tree's git commit, and whether files differ from it."""
        words = ["git", "-C", str(self.root), "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def compare(
    script: str,
    other: Path,
    sides: Sequence[tuple[str, str]],
    words_of: Callable[[Sequence[str]], Sequence[str]],
    *,
    repeats: int,
    warmup: int,
) -> dict[str, Any]:
    """This tree against another: seconds, their ratio round by round and in all, and operations of each pair of sides.

    Args:
        script: name of the benchmark in both trees.
        other: the other tree's root.
        sides: what is compared: the name here and the name there.
        words_of: the command line of the script for names of sides.
        repeats: rounds; in each, every side takes a step here and one there, and who is first changes.
        warmup: rounds before that are not counted.
    """
    here = Path(__file__).parents[1]
    names = list(zip(*sides, strict=True))
    with Tree(here, script, words_of(names[0])) as mine, Tree(other, script, words_of(names[1])) as theirs:
        trees = (mine, theirs)
        seconds: dict[tuple[str, str], tuple[list[float], list[float]]] = {pair: ([], []) for pair in sides}
        for number in range(warmup + repeats):
            for pair in sides:
                for place in (0, 1) if number % 2 else (1, 0):
                    taken = trees[place].ask("step", pair[place])
                    if number >= warmup:
                        seconds[pair][place].append(taken)
        counted = {
            pair: [tree.ask("operations", name) for tree, name in zip(trees, pair, strict=True)] for pair in sides
        }
        commits = {"here": mine.commit(), "other": theirs.commit()}
    found = {}
    for pair, (own, its) in seconds.items():
        found[" : ".join(dict.fromkeys(pair))] = {
            "ratio": spread([a / b for a, b in zip(own, its, strict=True)]),
            "ratio_of_sums": sum(own) / sum(its),
            "seconds": {"here": spread(own), "other": spread(its)},
            "operations": dict(zip(commits, counted[pair], strict=True)),
        }
    return {"commits": commits, "machine": environment()["processor"], "sides": found}


def summary(numbers: Mapping[str, Any]) -> str:
    """A line for each pair of sides."""
    lines = []
    for name, its in numbers["sides"].items():
        here, other = its["operations"]["here"], its["operations"]["other"]
        counts = ", ".join(f"{what} {here[what]:g} ({other[what]:g})" for what in here if what in other)
        ratio = its["ratio"]
        times = (
            f"time {ratio['median']:.3f} ({ratio['q1']:.3f} to {ratio['q3']:.3f}), in all {its['ratio_of_sums']:.3f}"
        )
        lines.append(f"{name}: {times}; operations here (other): {counts}")
    return "\n".join(lines)
