"""The programs as processes, tiny runs, tiny pictures."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import trimesh

from evos.signals import Signal, astronaut
from evos.videos import write_video
from image_regression.main import main
from image_regression.options import parse
from image_regression.trainer import Fit

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--quiet", "--longer_side", "16", "--field.hidden_features", "16", "--device", "cpu", "--lpips", "false"]


@dataclass
class Program:
    """A program that runs in a process of its own."""

    server: subprocess.Popen[str]
    pid: int
    output: Path

    def wait(self) -> int:
        """Its exit status: minus the number of the signal that killed it."""
        return ask(self.server, {"wait": self.pid})

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    @property
    def stderr(self) -> str:
        return (self.output / "stderr").read_text()


def ask(server: subprocess.Popen[str], request: dict[str, Any]) -> int:
    assert server.stdin and server.stdout
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return int(server.stdout.readline())


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """What a program needs to run from this clone, on one thread and without a terminal's looks."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


@pytest.fixture(scope="session")
def fork_server(environment) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(Path(__file__).with_name("fork_server.py"))]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as server:
        yield server
        server.stdin.close()


@pytest.fixture
def start(fork_server, tmp_path) -> Callable[..., Program]:
    """start(*argv, program="main", kill_at=..., largest_file=...) -> Program, see fork_server.py."""

    def begin(*argv: str, program: str = "main", **request: Any) -> Program:
        request |= {"program": program, "argv": list(argv), "output": str(tmp_path)}
        return Program(fork_server, ask(fork_server, request), tmp_path)

    return begin


@pytest.fixture
def no_report(monkeypatch) -> None:
    """Leave out report.png, which takes longer than a tiny run."""
    monkeypatch.setattr("image_regression.run.write_report", lambda *args: None)


@pytest.fixture
def tiny() -> list[str]:
    """Options of a run that takes a fraction of a second, but for --steps and --out."""
    return list(TINY)


@pytest.fixture
def program() -> Callable[[list[str]], None]:
    """What ``refused`` runs."""
    return main


@pytest.fixture(scope="session")
def photo() -> Signal:
    return astronaut(16)


@pytest.fixture
def fit(photo) -> Callable[..., Fit]:
    """fit(*argv, signal=photo) -> a Fit that has not begun."""

    def build(*argv: str, signal: Signal = photo) -> Fit:
        return Fit(signal, parse([*TINY, *argv]), torch.device("cpu"))

    return build


@pytest.fixture
def picture(tmp_path) -> Callable[..., Path]:
    """picture(name, mode="RGB", size=(height, width)) -> a file with random pixels."""

    def write(name: str, mode: str = "RGB", size: tuple[int, int] = (12, 10)) -> Path:
        generator = np.random.default_rng(len(name))
        channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "P": 3, "I;16": 1}[mode]
        depth = np.uint16 if mode == "I;16" else np.uint8
        values = generator.integers(0, np.iinfo(depth).max, (*size, channels), depth, endpoint=True)
        image = PIL.Image.fromarray(values[..., 0] if channels == 1 else values)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (image.quantize(8) if mode == "P" else image).save(
            path, **({"lossless": True} if path.suffix == ".webp" else {})
        )
        return path

    return write


def moving_square(frames: int = 8, height: int = 12, width: int = 16) -> torch.Tensor:
    """A film "T H W 3": still for its first half, then a bright square moves from the left to the right."""
    film = torch.linspace(0.1, 0.5, width)[:, None].expand(frames, height, width, 3).clone()
    for index in range(frames):
        left = max(0, index - frames // 2)
        film[index, 3:7, left : left + 4] = torch.tensor([0.9, 0.7, 0.1])
    return film


def hill(shape: tuple[int, int, int] = (8, 10, 12)) -> np.ndarray:
    """A volume of whole numbers from 100 up to 1100."""
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    return (100 + 1000 * np.exp(-3 * sum(axis**2 for axis in axes))).astype(np.int16)


THREE_AXES: dict[str, Callable[[Path], Any]] = {
    "clip.mp4": lambda path: write_video(path, moving_square(), 12),
    "clip.gif": lambda path: write_video(path, moving_square(), 10),
    "hill.npy": lambda path: np.save(path, hill()),
    "box.ply": lambda path: trimesh.creation.box((4, 3, 2)).export(path),
}


@pytest.fixture(scope="session")
def three_axes(tmp_path_factory) -> Callable[[str], Path]:
    """three_axes(name) -> a small file of that name in THREE_AXES."""
    folder = tmp_path_factory.mktemp("signals")

    def write(name: str) -> Path:
        if not (folder / name).exists():
            THREE_AXES[name](folder / name)
        return folder / name

    return write
