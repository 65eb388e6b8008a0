"""A tiny space and a task of pictures made on the spot."""

from collections.abc import Callable

import pytest
import torch

from evonas.data import DataConfig, InMemory
from evonas.space import Space, SpaceConfig
from evonas.tasks import DepthTask

TINY = {
    "depths": "[1, 2]",
    "heads": "[2, 2]",
    "width": 8,
    "mlp_ratio": "[1, 2]",
    "state": "[4, 8]",
    "expand": "[0.5, 1]",
}


@pytest.fixture
def program() -> Callable[[list[str]], None]:
    """What ``refused`` runs."""
    from evonas.main import main

    return main


@pytest.fixture
def tiny_space() -> Space:
    """96 networks of two stages."""
    return Space(SpaceConfig(**TINY))


class Slopes(DepthTask):
    """Depth is 1 + 4 · brightness: 12 pictures of 16×16 to train on, 6 to search on and to test on."""

    def load(self, split: str) -> InMemory:
        count = 12 if split == "train" else 6
        generator = torch.Generator().manual_seed(len(split))
        small = torch.rand(count, 1, 3, 3, generator=generator)
        brightness = torch.nn.functional.interpolate(small, (16, 16), mode="bilinear")[:, 0]
        pictures = (255 * brightness[..., None].expand(-1, -1, -1, 3)).round().byte()
        return InMemory(pictures, 1 + 4 * brightness, [str(i) for i in range(count)])


@pytest.fixture
def slopes() -> DepthTask:
    """A task with all its splits."""
    return Slopes(DataConfig(height=16, width=16, augment=False), ["train", "search", "test"])
