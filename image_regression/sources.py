"""Where the points of a fit come from: the pool that a selector chooses from, and the values at what it chose.

A signal in memory is a grid of cells that are points (``GridSource``). A picture on disk is a grid of tiles that are
many pixels each: a step trains on one random pixel of each tile drawn, gathered from the file (``TileSource``). The fit
knows neither from the other.

Letters: P points of the whole signal, p points or tiles to select from, K points of a step, C channels, D axes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from evos import coords
from evos.derivatives import spatial_gradient
from evos.errors import InputError
from evos.fields import FieldConfig
from evos.fields.hashgrid import HashGridConfig
from evos.rasters import Raster
from evos.recipes import LARGEST_TABLE_LOG2
from evos.seeding import mixed_seed
from evos.selection import Pool, Selection, SelectorConfig, TileErrorConfig, TilesConfig
from evos.signals import Signal, subsample
from evos.transforms import Transform, fit_transform
from image_regression.options import Options

PIECE = 2**18
"""Points of a large signal that elementwise work is done on at a time: its intermediate results take little memory."""
SAMPLE = 2**18
"""Pixels of a picture on disk that evaluations look at."""
MOST_TILES = 2**18
"""Tiles of a picture on disk: ranking them takes a few hundredths of a second."""
SMALLEST_TILE = 8
"""Least side of a tile in pixels."""
POINTS = 2**15
"""Points of a step on a picture on disk where none are given: as many as the recipe fast takes of 2048²."""
PROGRAM_BYTES = 900 * 2**20
"""What the program itself takes: PyTorch and the libraries, most of it mapped from their files."""
WEIGHT_BYTES = 44
"""Memory of a parameter: itself, its gradient and a column of it, Adam's two averages, a copy to evaluate, and a
checkpoint on its way to disk."""
SAMPLE_STREAM, TRAIN_STREAM = 1, 2
"""Numbers of the random streams of one seed, as ranks are: the sample that is evaluated, and the pixels of a step."""


@dataclass(frozen=True, eq=False)
class Points:
    """The points of one step."""

    selection: Selection
    coords: Float[Tensor, "B K D"]
    target: Float[Tensor, "B K C"]
    """The transformed values."""
    gather_values: Callable[[], Float[Tensor, "B K C"]]
    derivatives: Float[Tensor, "B K V"] | None = None
    """Of the target, channels and axes flattened, where they are supervised."""

    @property
    def values(self) -> Float[Tensor, "B K C"]:
        """In [0, 1]; most transforms do without."""
        return self.gather_values()


class Source(ABC):
    """The points of a signal.

    Attributes:
        pool: what the selector chooses from.
        grid: coordinates of the points that are evaluated.
        values: in [0, 1], of those.
        trained: the values of all cells of the pool, where they are points.
        transform: fitted to the values.
        mean: of the values; identifies the signal in a checkpoint.
        count: points to draw from what the selector selected; None: all of it.
        is_whole: whether all points are evaluated, or a random sample.
    """

    pool: Pool
    grid: Float[Tensor, "P D"]
    values: Float[Tensor, "P C"]
    trained: Float[Tensor, "p C"] | None = None
    transform: Transform
    mean: float
    count: int | None = None
    is_whole: ClassVar[bool] = True

    @staticmethod
    @abstractmethod
    def options(signal: Any, options: Options) -> Options:
        """A run's options with what follows from the signal; raises InputError for what doesn't go with it."""

    @abstractmethod
    def points(self, selection: Selection) -> Points:
        """The points to train on."""

    def state_dict(self) -> dict[str, Any]:
        """What a run needs to go on with the same points."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - most have none
        """Continue from ``state_dict``."""


# ---- in memory -----------------------------------------------------------------------------------------------


class GridSource(Source):
    """A signal in memory; with a ``factor`` above 1 every factor-th cell along each axis is trained on."""

    def __init__(self, signal: Signal, options: Options, device: torch.device) -> None:
        self.signal, run = signal, options.run
        self.factor = run.factor
        self.values = signal.values.to(device)
        self.grid = coords.grid(signal.shape, device)
        self.transform = fit_transform(options.transform, self.values)
        self.mean = signal.values.mean(dtype=torch.float64).item()
        # On the training grid: coordinates, values, targets, and derivative targets with channels and axes flattened.
        whole = torch.cat([self.transform.forward(piece) for piece in self.values.split(PIECE)])
        self.coords, self.target = self.on_training_grid(self.grid), self.on_training_grid(whole)
        self.trained: Float[Tensor, "p C"] = self.on_training_grid(self.values)
        shape = tuple(len(range(0, size, run.factor)) for size in signal.shape)
        self.pool = Pool(1, shape, axes=len(shape))
        self.derivatives: Float[Tensor, "p V"] | None = None
        if run.supervision != "val":
            maps = rearrange(whole.unflatten(0, signal.shape), "... c -> 1 c ...")
            derivatives = spatial_gradient(maps, run.der_operator)
            self.derivatives = self.on_training_grid(rearrange(derivatives, "1 c d ... -> (...) (c d)"))

    @staticmethod
    def options(signal: Signal, options: Options) -> Options:
        """What a recipe leaves open, sized to the signal."""
        return options.sized_to(signal.shape, signal.values.shape[-1])

    def on_training_grid(self, values: Float[Tensor, "P V"]) -> Float[Tensor, "p V"]:
        """The values at the cells of the training grid."""
        return subsample(values, self.signal.shape, self.factor)

    def points(self, selection: Selection) -> Points:
        """The selected cells."""
        gather, trained, derivatives = selection.gather, self.trained, self.derivatives
        return Points(
            selection,
            gather(self.coords),
            gather(self.target),
            lambda: gather(trained),
            None if derivatives is None else gather(derivatives),
        )


# ---- on disk -------------------------------------------------------------------------------------------------

OVER_TILES: dict[str, Callable[[Any], SelectorConfig]] = {
    "uniform": lambda config: config,
    "error": lambda config: TileErrorConfig(uniform_ratio=config.uniform_ratio),
    # Of a photo, unlike of a scene with passers-by, nothing is so wrong that it cannot be learned.
    "evos": lambda config: TilesConfig(
        keep_schedule=config.keep_schedule,
        crossover=config.crossover,
        laplacian_weight=config.laplacian_weight,
        trim_ratio=0.0,
        full_exponent=0.0,
        warmup_steps=16,
    ),
}
"""The selectors that go with tiles, each as it is over tiles; the fractions are those of the method over tiles."""


class TileSource(Source):
    """A picture on disk. Evaluations look at a random sample of its pixels, the same throughout a run."""

    is_whole = False

    def __init__(self, raster: Raster, options: Options, device: torch.device) -> None:
        self.raster, self.device, run = raster, device, options.run
        self.side = tile_side(raster.shape)
        self.axes = [coords.axis(size, "corner") for size in raster.shape]
        heights, widths = (extents(size, self.side) for size in raster.shape)
        self.heights, self.widths = heights, widths
        weight = (heights[:, None] * widths).view(1, -1)
        self.pool = Pool(1, (len(heights), len(widths)), tile=self.side, weight=weight)
        self.count = points_of(raster.shape, run.points)
        self.generator = torch.Generator().manual_seed(mixed_seed(run.seed, TRAIN_STREAM))
        pixels = math.prod(raster.shape)
        generator = torch.Generator().manual_seed(mixed_seed(run.seed, SAMPLE_STREAM))
        sample = torch.randint(pixels, (min(SAMPLE, pixels),), generator=generator).sort().values
        y, x = sample // raster.shape[1], sample % raster.shape[1]
        values = raster.gather(y, x)
        self.mean = values.mean(dtype=torch.float64).item()
        # With the ends, which the sample may miss, and beyond which some transforms have no inverse.
        self.transform = fit_transform(options.transform, torch.cat([values.flatten(), torch.tensor(raster.ends)]))
        self.values, self.grid = values.to(device), self.places(y, x).to(device)

    @staticmethod
    def options(signal: Raster, options: Options) -> Options:
        """The selector over tiles, and the grid that a recipe sizes, its tables as large as memory allows."""
        check_for_disk(options)
        over_tiles = OVER_TILES[options.run.selector]
        memory, sized = options.run.memory, options
        for table_log2 in range(LARGEST_TABLE_LOG2, LARGEST_TABLE_LOG2 - 5, -1):
            sized = options.sized_to(signal.shape, signal.channels, table_log2, on_disk=True)
            if memory is None or not options.sized or needed_bytes(sized, signal) <= memory:
                break
        if memory is not None and (needed := needed_bytes(sized, signal)) > memory:
            raise InputError("--memory", f"{memory:,} bytes", f"at least {needed:,} for this field and its points")
        return replace(sized, run=replace(sized.run, cfs_weight=0.0), selector=over_tiles(sized.selector))

    def points(self, selection: Selection) -> Points:
        """A uniformly random pixel of each tile drawn."""
        assert selection.index is not None
        cells = selection.index[0].cpu()
        inside = torch.rand(2, len(cells), generator=self.generator)
        tiles = cells // self.pool.shape[1], cells % self.pool.shape[1]
        y, x = (
            tile * self.side + (part * extent[tile]).long().minimum(extent[tile] - 1)
            for tile, part, extent in zip(tiles, inside, (self.heights, self.widths), strict=True)
        )
        values = self.raster.gather(y, x).to(self.device)[None]
        place = self.places(y, x).to(self.device)[None]
        return Points(selection, place, self.transform.forward(values), lambda: values)

    def places(self, y: Int[Tensor, " K"], x: Int[Tensor, " K"]) -> Float[Tensor, "K D"]:
        """Coordinates of pixels."""
        return torch.stack([self.axes[0][y], self.axes[1][x]], dim=-1)

    def state_dict(self) -> dict[str, Any]:
        """The generator that draws pixels."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict``."""
        self.generator.set_state(state["generator"].cpu())


def check_for_disk(options: Options) -> None:
    """Raise InputError for options that do not go with a picture on disk."""
    run, why = options.run, "for a picture that is larger than --memory"
    if run.selector not in OVER_TILES:
        raise InputError("--selector", run.selector, f"uniform, error or evos {why}")
    defaults = {"factor": 1, "supervision": "val", "polish": 0, "longer_side": None}
    for name, default in defaults.items():
        if (got := getattr(run, name)) != default:
            raise InputError(f"--{name}", got, f"{'none' if default is None else default} {why}")
    if run.cfs_weight:
        raise InputError("--cfs_weight", run.cfs_weight, f"0 {why}")


def points_of(shape: tuple[int, int], points: int | None) -> int:
    """Points of a step: those asked for, at most as many as there are."""
    return min(POINTS if points is None else points, math.prod(shape))


def tile_side(shape: tuple[int, int]) -> int:
    """The smallest power of two, at least 8, that cuts a picture into at most 2^18 tiles."""
    side = SMALLEST_TILE
    while math.prod(-(-size // side) for size in shape) > MOST_TILES:
        side *= 2
    return side


def extents(size: int, side: int) -> Int[Tensor, " n"]:
    """Lengths of the tiles along an axis: ``side``, but the last, which has what is left."""
    starts = torch.arange(0, size, side)
    return (size - starts).clamp(max=side)


def needed_bytes(options: Options, raster: Raster) -> int:
    """An estimate of the memory that training on a picture on disk takes, without mapped pages."""
    weights = field_parameters(options.field, raster.channels) * WEIGHT_BYTES
    passed = min(points_of(raster.shape, options.run.points), options.run.chunk)
    tiles = math.prod(-(-size // tile_side(raster.shape)) for size in raster.shape)
    return PROGRAM_BYTES + weights + passed * point_bytes(options.field) + 400 * tiles + 100 * SAMPLE


def field_parameters(config: FieldConfig, channels: int) -> int:
    """How many numbers a field has, roughly where it is no grid."""
    if isinstance(config, HashGridConfig):
        return config.parameters(2, channels)
    return config.hidden_features**2 * (config.hidden_layers + 1)


def point_bytes(config: FieldConfig) -> int:
    """Memory that a point takes in a training step."""
    layers = 12 * config.hidden_features * (config.hidden_layers + 1)
    return layers + (160 * config.levels if isinstance(config, HashGridConfig) else 0)


SOURCES: dict[type, type[Source]] = {Signal: GridSource, Raster: TileSource}
"""By the kind of signal."""
