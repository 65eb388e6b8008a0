"""Tiny data, tiny models, and a program in several processes."""

import json
from collections.abc import Callable
from math import cos, pi, sin
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import soundfile

from generalizable.main import main

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    *("--quiet", "device=cpu", "data.size=8", "train.batch=4", "train.steps=6", "train.pictures=2"),
    *("model.hidden_features=8", "model.features=8", "model.frequency=4"),
]
HYPER = ["model.width=8", "model.blocks=1", "model.heads=2", "model.patch=4", "model.rank=4"]


def make_picture(path: Path, seed: int, size: tuple[int, int] = (12, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[: size[0], : size[1]]
    chance = np.random.default_rng(seed)
    waves = [np.sin(chance.uniform(0.1, 1) * x + chance.uniform(0.1, 1) * y + chance.uniform(0, 6)) for _ in range(3)]
    PIL.Image.fromarray(((np.stack(waves, -1) + 1) * 127).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A folder of 12 pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(12):
        make_picture(folder / f"{i:02}.png", i)
    return folder


@pytest.fixture(scope="session")
def sounds(tmp_path_factory) -> Path:
    """A folder of 6 tones of 0.25 s at 8 kHz."""
    folder = tmp_path_factory.mktemp("sounds")
    for i in range(6):
        wave = 0.5 * np.sin(2 * pi * (200 + 50 * i) * np.arange(2000) / 8000)
        soundfile.write(folder / f"{i}.wav", wave, 8000)
    return folder


def make_pose(angle: float, distance: float = 4.0) -> list[list[float]]:
    """A camera on a circle around the y axis that looks at the origin."""
    c, s = cos(angle), sin(angle)
    return [[c, 0, s, distance * s], [0, 1, 0, 0], [-s, 0, c, distance * c], [0, 0, 0, 1]]


def make_scene(folder: Path, colour: tuple[int, int, int], views: int = 6, size: int = 8) -> Path:
    """A scene: an opaque square on nothing, the same from everywhere."""
    folder.mkdir(parents=True)
    image = np.zeros((size, size, 4), np.uint8)
    image[size // 4 : -size // 4, size // 4 : -size // 4] = (*colour, 255)
    frames = []
    for i in range(views):
        PIL.Image.fromarray(image).save(folder / f"r_{i}.png")
        frames.append({"file_path": f"./r_{i}", "transform_matrix": make_pose(2 * pi * i / views)})
    (folder / "transforms.json").write_text(json.dumps({"camera_angle_x": 0.6, "frames": frames}))
    return folder


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """A folder of 6 scenes."""
    folder = tmp_path_factory.mktemp("scenes")
    for i in range(6):
        make_scene(folder / f"scene_{i}", (40 * i, 255 - 40 * i, 90))
    return folder


@pytest.fixture(scope="session")
def write_picture() -> Callable[..., Path]:
    """write_picture(path, seed, size=(height, width)): waves of the seed's own."""
    return make_picture


@pytest.fixture(scope="session")
def write_scene() -> Callable[..., Path]:
    """write_scene(folder, colour, views=6, size=8)"""
    return make_scene


@pytest.fixture(scope="session")
def pose() -> Callable[..., list[list[float]]]:
    """pose(angle, distance=4): a camera-to-world matrix."""
    return make_pose


@pytest.fixture
def tiny() -> list[str]:
    """Options of a run that takes a fraction of a second, but for data.root and out."""
    return [*TINY, *HYPER]


@pytest.fixture
def program() -> Callable[[list[str]], None]:
    """What ``refused`` runs."""
    return main
