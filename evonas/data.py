"""What the tasks' data have in common: options, and pictures kept in memory as bytes or read in every batch."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor

from evos.config import check_choices, check_range
from evos.errors import InputError
from evos.images import read_image

TEST_RATIO = 0.2
"""Held out for the test where a layout has no test split."""
SPLITS = ("train", "search", "test")


@dataclass(frozen=True)
class DataConfig:
    """Options of the data."""

    task: Literal["depth", "segmentation", "detection", "classification"] = "depth"
    """What is predicted."""

    layout: Literal["auto", "rgbd", "lists", "ade20k", "voc", "camvid", "coco", "folders"] = "auto"
    """How files are laid out. Depth: rgbd, or lists where train_list is given; segmentation: ade20k, voc or camvid, by
    the folders; detection: coco; classification: folders. auto: the one that fits."""

    root: str | None = None
    """Folder of the data set."""

    train_list: str | None = None
    """Of the layout lists: the file of training lines; of coco: the JSON of training boxes, none:
    annotations/instances_train*.json. Within ``root`` or a path."""

    test_list: str | None = None
    """The same for the test."""

    classes: int | None = None
    """Of segmentation: how many classes there are, at least 2; none: as many as the layout's data set has."""

    height: int = 96
    """Height in pixels that pictures are resized to, antialiased, at least 8."""

    width: int = 128
    """Width in pixels, at least 8."""

    depth_scale: float | None = None
    """Units of a depth file a metre, above 0; none: what dataset.json in ``root`` says, else 1000."""

    min_depth: float = 0.001
    """Least depth that counts, in metres, above 0."""

    max_depth: float = 10.0
    """Greatest depth that counts, in metres, above ``min_depth``."""

    crop: Literal["none", "eigen", "garg"] = "none"
    """Part of the picture that is evaluated: eigen (NYU v2), garg (KITTI) or all of it."""

    kb_crop: bool = False
    """Cut depth and its picture to KITTI's benchmark size first: the lowest 352 rows and the middle 1216 columns. The
    crop garg then stays where it is in the whole picture."""

    search_ratio: float = 0.1
    """Fraction of the training scenes held out for choosing, where the layout has no search split; in (0, 0.5]."""

    augment: bool = True
    """Mirror training pictures and change their brightness and colour."""

    in_memory: bool = True
    """Read all pictures at the start and keep them, as bytes, with their depth; false: read each batch from its files,
    which are then only checked when they are read."""

    depth_root: str | None = None
    """Of the layout lists: the folder of the depth files where it is not ``root``, as of KITTI's ground truth."""

    limit: int | None = None
    """Most pictures of a split, evenly spread over it, at least 1; none: all."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_range("classes", self.classes, 2)
        check_range("height", self.height, 8)
        check_range("width", self.width, 8)
        check_range("depth_scale", self.depth_scale, 0, open_low=True)
        check_range("min_depth", self.min_depth, 0, open_low=True)
        check_range("max_depth", self.max_depth, self.min_depth, open_low=True)
        check_range("search_ratio", self.search_ratio, 0, 0.5, open_low=True)
        check_range("limit", self.limit, 1)


@dataclass(frozen=True)
class InMemory:
    """A split that is kept: pictures as bytes, and the truth of each, whatever a task has for that."""

    pictures: UInt8[Tensor, "N H W 3"]
    truth: Shaped[Tensor, "N ..."]
    names: list[str]
    classes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        """How many pictures."""
        return len(self.names)

    def take(self, index: Int[Tensor, "B"]) -> tuple[UInt8[Tensor, "B H W 3"], Tensor]:
        """Pictures and their truth."""
        return self.pictures[index], self.truth[index]


@dataclass(frozen=True)
class OnDisk:
    """A split that is read when it is needed, by several threads: ``read`` gives a picture and its truth."""

    read: Callable[[int], tuple[UInt8[Tensor, "H W 3"], Tensor]]
    names: list[str]
    classes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        """How many pictures."""
        return len(self.names)

    def take(self, index: Int[Tensor, "B"]) -> tuple[UInt8[Tensor, "B H W 3"], Tensor]:
        """Pictures and their truth; raises InputError where one can't be read."""
        found = list(reader().map(self.read, index.tolist()))
        return torch.stack([picture for picture, _ in found]), torch.stack([truth for _, truth in found])


Data = InMemory | OnDisk


@cache
def reader() -> ThreadPoolExecutor:
    """The threads that read files; decoders let others run meanwhile."""
    return ThreadPoolExecutor(8)


def kept(data: OnDisk, config: DataConfig) -> Data:
    """All of it read, if ``in_memory`` says so."""
    if not config.in_memory:
        return data
    return InMemory(*data.take(torch.arange(len(data))), data.names, data.classes)


def augmented(
    pictures: Float[Tensor, "B H W 3"], generator: torch.Generator
) -> tuple[Float[Tensor, "B H W 3"], Bool[Tensor, "B"]]:
    """Pictures changed by draws from a generator on the CPU, and which of them are mirrored.

    Half of them are mirrored; gamma, brightness and each channel change by up to 10 %, as in BTS.
    """
    draws = torch.rand(len(pictures), 6, generator=generator).to(pictures.device)
    mirrored = draws[:, 0] < 0.5
    pictures = torch.where(mirrored[:, None, None, None], pictures.flip(2), pictures)
    gains = 0.9 + 0.2 * draws[:, 1:]
    pictures = pictures ** gains[:, None, None, :1] * gains[:, None, None, 1:2] * gains[:, None, None, 2:]
    return pictures.clamp(0, 1), mirrored


def random_crops(pictures: Float[Tensor, "B H W 3"], generator: torch.Generator) -> Float[Tensor, "B H W 3"]:
    """A part of each picture, anywhere in it and enlarged to its size, by draws from a generator on the CPU.

    The part has 8 to 100 % of the area, and 3/4 to 4/3 of the picture's aspect: Inception's, as ImageNet is trained on.
    """
    area, aspect, x, y = torch.rand(len(pictures), 4, generator=generator).to(pictures.device).unbind(1)
    area = 0.08 + 0.92 * area
    stretch = torch.exp((2 * aspect - 1) * math.log(4 / 3) / 2)
    width, height = ((area.sqrt() * factor).clamp(max=1) for factor in (stretch, 1 / stretch))
    zero = torch.zeros_like(width)
    # Coordinates of grid_sample: -1 to 1 over the picture.
    rows = [
        torch.stack((width, zero, (2 * x - 1) * (1 - width)), 1),
        torch.stack((zero, height, (2 * y - 1) * (1 - height)), 1),
    ]
    planes = pictures.permute(0, 3, 1, 2)
    grid = F.affine_grid(torch.stack(rows, 1), list(planes.shape), align_corners=False)
    found = F.grid_sample(planes, grid, padding_mode="border", align_corners=False)
    return found.permute(0, 2, 3, 1)


def data_root(config: DataConfig, option: str = "data.root") -> Path:
    """The folder; raises InputError, about ``option``, where there is none."""
    if config.root is None or not Path(config.root).is_dir():
        raise InputError(option, config.root, "the folder of a data set")
    return Path(config.root)


def limited(items: list, limit: int | None) -> list:
    """At most ``limit`` of them, evenly spread."""
    if limit is None or len(items) <= limit:
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


def held_out(items: list, ratio: float) -> tuple[list, list]:
    """The first ones and, held out, the last ones: neighbouring frames are near-copies."""
    count = max(1, round(ratio * len(items)))
    return items[:-count], items[-count:]


def read_colours(path: Path) -> Float[Tensor, "H W 3"]:
    """A picture as RGB, whatever it holds; transparency is left out."""
    pixels = read_image(path).pixels
    return pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., :1].expand(-1, -1, 3)


def resized(pixels: Float[Tensor, "h w 3"], config: DataConfig) -> UInt8[Tensor, "H W 3"]:
    """At the training size, antialiased, as bytes."""
    planes, size = pixels.permute(2, 0, 1)[None], (config.height, config.width)
    if planes.shape[-2:] != size:
        planes = F.interpolate(planes, size, mode="bilinear", antialias=True)
    return (255 * planes[0].permute(1, 2, 0).clamp(0, 1)).round().byte()
