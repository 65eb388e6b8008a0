"""What depends on the kind of signal: images, sounds, and views of scenes, each a class.

A task knows how its files become instances, how an instance becomes cells with coordinates (or rays) and values, what
patterns are made from, on what scale errors are measured, and how results are shown and written. No other module asks
which kind of signal it deals with. Letters: B instances, P cells of an instance, K of them, D axes of a coordinate (6
numbers of a ray), C channels.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from evos import coords, metrics
from evos.errors import InputError
from evos.images import read_image, write_image
from evos.runs import on_device
from evos.sounds import read_header, read_stretch, write_sound
from generalizable.base import Data, Task
from generalizable.forms import (
    Form,
    corners,
    count_corners,
    join_squares,
    join_stretches,
    length_at,
    reduced_shape,
    stretches,
)
from generalizable.instances import (
    Instance,
    colours,
    count_pieces,
    on_white,
    pixel_rays,
    resampled,
    resized,
    scene,
    sound,
    square,
)
from generalizable.layouts import SUFFIXES, find_signals
from generalizable.options import DataConfig

LOUDEST = 1.25
"""Amplitude up to which a decoded sound is clipped to 16 bits: a reconstruction overshoots a little."""


def take(values: Float[Tensor, "B P C"], index: Int[Tensor, "B K"] | None) -> Float[Tensor, "B _ C"]:
    """The values at the chosen cells of each instance; None: all."""
    return values if index is None else values[torch.arange(len(values), device=values.device)[:, None], index]


class SignalTask(ABC):
    """One kind of signal with the options of its data."""

    name: ClassVar[str]
    """What ``data.task`` calls it."""
    lowest: ClassVar[float] = 0.0
    """Values lie in [lowest, 1]."""
    extension: ClassVar[str] = "png"
    """Of the files that decoded signals are written to."""
    cell_name: ClassVar[str] = "pixels"
    """What its cells are."""
    sample_rate: int | None = None
    """Samples a second of what can be listened to."""
    support_view_counts: tuple[int | None, ...] = (None,)
    """From how many support views an evaluation makes patterns; the count that training uses comes last."""

    def __init__(self, config: DataConfig) -> None:
        self.config = config

    # ---- files -----------------------------------------------------------------------------------------------

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Extensions of files that hold one instance; none for scenes, which are folders."""
        return tuple(SUFFIXES.get(self.name, ()))

    @abstractmethod
    def load(self, path: Path, piece: int = 0, generator: np.random.Generator | None = None) -> Instance:
        """The instance in a file, or the ``piece``-th of a recording; with a ``generator``, augmented by its draws.

        Raises:
            InputError: the file is missing, damaged, or holds no such instance.
        """

    def count_instances(self, path: Path) -> int:
        """How many instances a file holds."""
        return 1

    def find_signals(self, root: Path) -> list[Path]:
        """The files (scenes: folders) of instances in a folder, at any depth."""
        return find_signals(root, self.name)

    # ---- whole signals ---------------------------------------------------------------------------------------

    @abstractmethod
    def cut(self, path: Path, *, crop: bool = False) -> tuple[Form, list[Instance]]:
        """What a file holds, and all of it as instances to encode; with ``crop``, one as ``load`` gives it.

        Of scenes: their first support views.

        Raises:
            InputError: as ``load``.
        """

    @property
    @abstractmethod
    def instance_form(self) -> Form:
        """The form of a signal that is one instance."""

    @abstractmethod
    def count_parts(self, form: Form) -> int:
        """How many instances a signal of a form is cut into."""

    @abstractmethod
    def count_cells(self, form: Form) -> int:
        """How many pixels or samples (of scenes: of their support views) are decoded at the training resolution."""

    @abstractmethod
    def join(self, values: Float[Tensor, "N P C"], form: Form, scale: int) -> Float[Tensor, "*S C"]:
        """A signal from the decoded values of its instances: a picture "H W C", a sound "T C", views "H (V W) C"."""

    # ---- cells -----------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """The grid of an instance's cells: (H, W), (T,) or (V, H, W)."""
        return self.config.shape

    @property
    def model_task(self) -> Task:
        """What a model is built for."""
        return Task(self.name, self.shape)

    @abstractmethod
    def prepare(self, device: torch.device) -> None:
        """Make on a device what each step needs, so that no step waits for it."""

    @abstractmethod
    def cells(self, signal: Float[Tensor, "B *S"]) -> Float[Tensor, "B P C"]:
        """The values of all cells, in C order over the grid."""

    @abstractmethod
    def points(
        self, instance: Instance, index: Int[Tensor, "B K"] | None = None, noise: float = 0.0
    ) -> Float[Tensor, "_ K D"]:
        """Coordinates (views: rays) of the chosen cells, or with None of all; one row where all instances share them.

        ``noise``: width, in cells, of uniform noise around the centres; rays have none.
        """

    def training_points(
        self, instance: Instance, index: Int[Tensor, "B K"] | None, noise: float
    ) -> tuple[Float[Tensor, "_ K D"], Float[Tensor, "B K C"]]:
        """What a step trains on in the chosen cells, or with None in all: ``points``, and the values there."""
        return self.points(instance, index, noise), take(self.cells(instance.signal), index)

    @abstractmethod
    def decoding_points(
        self, instance: Instance | None, views: Sequence[int], scale: int, batch: int, count: int, device: torch.device
    ) -> Iterator[Float[Tensor, "_ K D"]]:
        """The points of every cell of a grid ``scale`` times as fine, at most ``count`` of an instance at a time.

        Args:
            instance: B posed scenes, for views; else ignored.
            views: which of the scenes' views, for views; else ignored.
        """

    # ---- support ---------------------------------------------------------------------------------------------

    def draw_support_views(self) -> list[int]:
        """The support views of a training step, drawn from PyTorch's generator; none for images and sounds."""
        return []

    def support_views(self, count: int | None) -> list[int]:
        """The support views of an evaluation: the first ``count``."""
        return list(range(count or 0))

    @abstractmethod
    def support_signal(self, instance: Instance, views: Sequence[int]) -> Data:
        """What a hypernetwork makes patterns from."""

    @abstractmethod
    def support_points(self, instance: Instance, views: Sequence[int], most: int, noise: float) -> dict[str, Tensor]:
        """The points that an inner loop adapts patterns to: {"coords": "_ N D", "target": "B N C"}.

        ``most``: how many rays of scenes at the most; images and sounds give all cells.
        """

    # ---- error -----------------------------------------------------------------------------------------------

    @property
    def evaluation_views(self) -> list[int]:
        """The views that an evaluation decodes: those no evaluation makes patterns from."""
        return []

    @property
    def all_views(self) -> list[int]:
        """All views of a scene that are used; none for images and sounds."""
        return []

    def evaluation_target(self, instance: Instance) -> Float[Tensor, "B P C"]:
        """The values that an evaluation compares with."""
        return self.cells(instance.signal)

    def relative(self, residual: Float[Tensor, "B K C"]) -> Float[Tensor, "B K C"]:
        """A residual in units of the values' range, as every selector takes it."""
        return residual / (1 - self.lowest)

    def psnr(self, prediction: Float[Tensor, "B P C"], target: Float[Tensor, "B P C"]) -> Float[Tensor, " B"]:
        """PSNR of each instance in dB, of values clamped to their range, at most 120.

        The peak is 1, of sounds too, as in Kim et al. (CVPR 2023).
        """
        error = (prediction.clamp(self.lowest, 1.0) - target).double().square().mean((1, 2))
        return -10 * torch.log10(error.clamp(min=1e-12))

    def similarity(
        self, prediction: Float[Tensor, "B P C"], target: Float[Tensor, "B P C"], with_lpips: bool = False
    ) -> dict[str, Float[Tensor, " B"]]:
        """How alike each instance is to look at: ``ssim``, and ``lpips`` where asked for and to be had, the means over
        its pictures."""
        size = self.config.size
        a, b = (rearrange(values, "b (v h w) c -> b v h w c", h=size, w=size) for values in (prediction, target))
        found = {}
        for name in ("ssim", "lpips") if with_lpips else ("ssim",):
            measure = getattr(metrics, name)
            values = [[measure(*pair) for pair in zip(x, y, strict=True)] for x, y in zip(a, b, strict=True)]
            if values[0][0] is not None:
                found[name] = torch.tensor(values, device=prediction.device).mean(1)
        return found

    # ---- results ---------------------------------------------------------------------------------------------

    @abstractmethod
    def true_pictures(self, instance: Instance, scale: int) -> Float[Tensor, "B C H W"]:
        """The truth to look at, in [0, 1]: (the first evaluated view of) each instance, enlarged bicubically."""

    @abstractmethod
    def pictures(self, values: Float[Tensor, "B P C"], scale: int) -> Float[Tensor, "B C H W"]:
        """Decoded values (of one view) to look at, in [0, 1]."""

    def write(self, path: Path, values: Float[Tensor, "*S C"], scale: int) -> None:
        """Write a signal that ``join`` returned to a file of this task's ``extension``."""
        write_image(path, values)


class GridTask(SignalTask):
    """Signals on a grid whose cells have coordinates that all instances share."""

    def __init__(self, config: DataConfig) -> None:
        super().__init__(config)
        self.centres: coords.Centres = config.centres
        self._grids: dict[tuple[torch.device, int], tuple[Tensor, Tensor]] = {}

    def prepare(self, device: torch.device) -> None:
        """Make the grids."""
        self.grid(device)
        self.grid(device, self.config.fine)

    def grid(self, device: torch.device, scale: int = 1) -> tuple[Float[Tensor, "P D"], Float[Tensor, " D"]]:
        """Coordinates of all cells of a grid ``scale`` times as fine, and the distances between neighbours; made once
        for a device."""
        if (device, scale) not in self._grids:
            shape = tuple(scale * side for side in self.shape)
            spacing = torch.tensor(coords.spacing(shape, centres=self.centres), device=device)
            self._grids[device, scale] = coords.grid(shape, device, centres=self.centres), spacing
        return self._grids[device, scale]

    def points(
        self, instance: Instance, index: Int[Tensor, "B K"] | None = None, noise: float = 0.0
    ) -> Float[Tensor, "_ K D"]:
        """See ``SignalTask.points``."""
        grid, spacing = self.grid(instance.signal.device)
        centres = grid[None] if index is None else grid[index]
        if noise == 0:
            return centres
        return centres + noise * spacing * (torch.rand_like(centres) - 0.5)

    def decoding_points(
        self, instance: Instance | None, views: Sequence[int], scale: int, batch: int, count: int, device: torch.device
    ) -> Iterator[Float[Tensor, "_ K D"]]:
        """See ``SignalTask.decoding_points``."""
        fine = tuple(scale * side for side in self.shape)
        yield from coords.grid(fine, device, centres=self.centres)[None].split(count, dim=1)

    def support_signal(self, instance: Instance, views: Sequence[int]) -> Data:
        """The signal itself."""
        return instance.signal

    def support_points(self, instance: Instance, views: Sequence[int], most: int, noise: float) -> dict[str, Tensor]:
        """All cells."""
        return {"coords": self.points(instance, noise=noise), "target": self.cells(instance.signal)}


class ImageTask(GridTask):
    """Square pictures, RGB in [0, 1]."""

    name: ClassVar[str] = "image"

    def load(self, path: Path, piece: int = 0, generator: np.random.Generator | None = None) -> Instance:
        """The middle square of a picture, or an augmented window of it."""
        size, fine, resize = self.config.size, self.config.fine, self.config.resize
        pixels = colours(path, fine * size, generator)
        finer = square(pixels, fine * size, resize) if fine > 1 else None
        return Instance(square(pixels, size, resize), finer=finer)

    def training_points(
        self, instance: Instance, index: Int[Tensor, "B K"] | None, noise: float
    ) -> tuple[Float[Tensor, "_ K D"], Float[Tensor, "B K C"]]:
        """See ``SignalTask.training_points``; of finer pictures a random pixel within each cell."""
        if instance.finer is None:
            return super().training_points(instance, index, noise)
        device, size, fine = instance.signal.device, self.config.size, self.config.fine
        cells = torch.arange(size**2, device=device)[None] if index is None else index
        inside = torch.randint(fine, (2, *cells.shape), device=device)
        pixels = (fine * (cells // size) + inside[0]) * fine * size + fine * (cells % size) + inside[1]
        values = take(self.cells(instance.finer), pixels.expand(len(instance.signal), -1))
        return self.grid(device, fine)[0][pixels], values

    def cells(self, signal: Float[Tensor, "B C H W"]) -> Float[Tensor, "B P C"]:
        """Pixels, row by row."""
        return rearrange(signal, "b c h w -> b (h w) c")

    def true_pictures(self, instance: Instance, scale: int) -> Float[Tensor, "B C H W"]:
        """The pictures."""
        return enlarge(instance.signal, scale)

    def pictures(self, values: Float[Tensor, "B P C"], scale: int) -> Float[Tensor, "B C H W"]:
        """The decoded pictures."""
        return rearrange(values, "b (h w) c -> b c h w", h=self.config.size * scale).clamp(0, 1)

    def cut(self, path: Path, *, crop: bool = False) -> tuple[Form, list[Instance]]:
        """Squares that cover the picture, its shorter side reduced to theirs."""
        pixels, size, resize = on_white(read_image(path).pixels), self.config.size, self.config.resize
        form = Form(tuple(pixels.shape[:2]))
        if crop:
            return form, [Instance(square(pixels, size, resize))]
        shape = reduced_shape(form, size)
        whole = resized(pixels, shape, resize)
        return form, [
            Instance(whole[:, top : top + size, left : left + size].contiguous()) for top, left in corners(shape, size)
        ]

    @property
    def instance_form(self) -> Form:
        """A square."""
        return Form((self.config.size, self.config.size))

    def count_parts(self, form: Form) -> int:
        """The squares."""
        return count_corners(reduced_shape(form, self.config.size), self.config.size)

    def count_cells(self, form: Form) -> int:
        """Pixels."""
        return math.prod(reduced_shape(form, self.config.size))

    def join(self, values: Float[Tensor, "N P C"], form: Form, scale: int) -> Float[Tensor, "H W C"]:
        """A picture."""
        size = self.config.size
        return join_squares(rearrange(values, "n (h w) c -> n h w c", h=size * scale), form, size, scale)


class SoundTask(GridTask):
    """Recordings of one length, mono, in [-1, 1]."""

    name: ClassVar[str] = "sound"
    lowest: ClassVar[float] = -1.0
    extension: ClassVar[str] = "wav"
    cell_name: ClassVar[str] = "samples"

    def __init__(self, config: DataConfig) -> None:
        super().__init__(config)
        self.sample_rate = config.rate

    def load(self, path: Path, piece: int = 0, generator: np.random.Generator | None = None) -> Instance:
        """The ``piece``-th stretch of a recording, or one from anywhere in it."""
        return Instance(sound(path, piece, self.config.samples, self.config.rate, generator))

    def count_instances(self, path: Path) -> int:
        """The whole stretches of a recording, with ``data.pieces=all``."""
        return count_pieces(path, self.config.samples, self.config.rate) if self.config.pieces == "all" else 1

    def similarity(
        self, prediction: Float[Tensor, "B P C"], target: Float[Tensor, "B P C"], with_lpips: bool = False
    ) -> dict[str, Float[Tensor, " B"]]:
        """How alike each instance sounds: ``stft_distance``, NaN of silent ones."""
        pairs = zip(prediction.clamp(self.lowest, 1.0), target, strict=True)
        found = [metrics.stft_distance(*pair) for pair in pairs]
        return {"stft_distance": torch.tensor([math.nan if each is None else each for each in found])}

    def cells(self, signal: Float[Tensor, "B C T"]) -> Float[Tensor, "B T C"]:
        """Samples in time."""
        return rearrange(signal, "b c t -> b t c")

    def true_pictures(self, instance: Instance, scale: int) -> Float[Tensor, "B C H W"]:
        """The waveforms."""
        return torch.stack([waveform(wave) for wave in instance.signal[:, 0]])

    def pictures(self, values: Float[Tensor, "B P C"], scale: int) -> Float[Tensor, "B C H W"]:
        """The decoded waveforms."""
        return torch.stack([waveform(wave) for wave in values[..., 0]])

    def cut(self, path: Path, *, crop: bool = False) -> tuple[Form, list[Instance]]:
        """Every stretch of every channel, resampled as a whole."""
        samples, rate, header = self.config.samples, self.config.rate, read_header(path)
        if crop:
            return Form((header.frames, header.channels), header.rate), [self.load(path)]
        values, peak = read_stretch(path, 0, header.frames)
        form = Form((header.frames, header.channels), header.rate, peak)
        whole = resampled(values, header.rate, rate).T
        whole = F.pad(whole, (0, stretches(form, samples, rate) * samples - whole.shape[1]))
        return form, [Instance(part[None]) for channel in whole for part in channel.split(samples)]

    @property
    def instance_form(self) -> Form:
        """A stretch of one channel."""
        return Form((self.config.samples, 1), self.config.rate)

    def count_parts(self, form: Form) -> int:
        """The stretches of all channels."""
        return form.shape[1] * stretches(form, self.config.samples, self.config.rate)

    def count_cells(self, form: Form) -> int:
        """Samples of all channels."""
        return form.shape[1] * length_at(form, self.config.rate)

    def join(self, values: Float[Tensor, "N P 1"], form: Form, scale: int) -> Float[Tensor, "T C"]:
        """A sound."""
        return join_stretches(values, form, self.config.rate, scale)

    def write(self, path: Path, values: Float[Tensor, "T C"], scale: int) -> None:
        """A 16-bit WAV file; of floats, where amplitudes lie well beyond 1."""
        beyond = float(values.abs().max()) > LOUDEST
        write_sound(path, values, self.config.rate * scale, "FLOAT" if beyond else "PCM_16")


class ViewTask(SignalTask):
    """Posed views of scenes, RGB in [0, 1]; a cell is a pixel of a view, its point the ray through the pixel."""

    name: ClassVar[str] = "views"

    def __init__(self, config: DataConfig) -> None:
        super().__init__(config)
        counts = range(1, config.eval_support_views + 1)
        self.support_view_counts = (*(n for n in counts if n != config.support_views), config.support_views)

    def load(self, path: Path, piece: int = 0, generator: np.random.Generator | None = None) -> Instance:
        """The first views of a scene folder."""
        return scene(path, self.config.views, self.config.size, self.config.resize)

    def prepare(self, device: torch.device) -> None:
        """Nothing: rays depend on the instance."""

    @property
    def model_task(self) -> Task:
        """What a model is built for: its support are the support views alone."""
        config = self.config
        return Task(self.name, (config.support_views, config.size, config.size), near=config.near, far=config.far)

    def cells(self, signal: Float[Tensor, "B V C H W"]) -> Float[Tensor, "B P C"]:
        """Pixels of one view after another, row by row."""
        return rearrange(signal, "b v c h w -> b (v h w) c")

    def points(
        self, instance: Instance, index: Int[Tensor, "B K"] | None = None, noise: float = 0.0
    ) -> Float[Tensor, "B K 6"]:
        """Rays (origin, direction) through the centres of the chosen pixels."""
        if index is None:
            index = self.pixels(self.all_views, len(instance.signal), 1, instance.signal.device)
        return self.rays(instance, index, 1)

    def rays(self, instance: Instance, index: Int[Tensor, "B K"], scale: int) -> Float[Tensor, "B K 6"]:
        """Rays through pixels of views ``scale`` times as fine."""
        assert instance.poses is not None and instance.focal is not None
        size, normalized = self.config.size * scale, self.config.rays == "distance"
        return pixel_rays(instance.poses, instance.focal * scale, size, index, normalized=normalized)

    def pixels(self, views: Sequence[int], batch: int, scale: int, device: torch.device) -> Int[Tensor, "B K"]:
        """The numbers of all pixels of some views, the same for each instance of a batch."""
        count = (self.config.size * scale) ** 2
        first = on_device(list(views), device)[:, None] * count
        return rearrange(first + torch.arange(count, device=device), "v p -> 1 (v p)").expand(batch, -1)

    def decoding_points(
        self, instance: Instance | None, views: Sequence[int], scale: int, batch: int, count: int, device: torch.device
    ) -> Iterator[Float[Tensor, "B K 6"]]:
        """See ``SignalTask.decoding_points``."""
        assert instance is not None
        for part in self.pixels(views, batch, scale, device).split(count, dim=1):
            yield self.rays(instance, part, scale)

    def draw_support_views(self) -> list[int]:
        """As many views of a scene as training makes patterns from."""
        return torch.randperm(self.config.views)[: self.config.support_views].tolist()

    def support_signal(self, instance: Instance, views: Sequence[int]) -> dict[str, Tensor]:
        """The support views, with the rays through their pixels."""
        index = self.pixels(views, len(instance.signal), 1, instance.signal.device)
        shape = {"v": len(views), "h": self.config.size}
        rays = rearrange(self.rays(instance, index, 1), "b (v h w) (two c) -> two b v c h w", two=2, **shape)
        images = instance.signal[:, on_device(list(views), instance.signal.device)]
        return {"images": images, "origins": rays[0], "directions": rays[1]}

    def support_points(self, instance: Instance, views: Sequence[int], most: int, noise: float) -> dict[str, Tensor]:
        """At most ``most`` pixels of the support views, drawn from PyTorch's generator."""
        index = self.pixels(views, len(instance.signal), 1, instance.signal.device)
        chosen = torch.randperm(index.shape[1], device=index.device)[: min(most, index.shape[1])]
        index = index[:, chosen]
        return {"coords": self.rays(instance, index, 1), "target": take(self.cells(instance.signal), index)}

    @property
    def evaluation_views(self) -> list[int]:
        """See ``SignalTask.evaluation_views``."""
        return list(range(max(self.config.support_views, self.config.eval_support_views), self.config.views))

    @property
    def all_views(self) -> list[int]:
        """See ``SignalTask.all_views``."""
        return list(range(self.config.views))

    def evaluation_target(self, instance: Instance) -> Float[Tensor, "B P C"]:
        """The pixels of the views held out."""
        return self.cells(instance.signal[:, self.evaluation_views])

    def true_pictures(self, instance: Instance, scale: int) -> Float[Tensor, "B C H W"]:
        """The first view held out."""
        return enlarge(instance.signal[:, self.evaluation_views[0]], scale)

    def pictures(self, values: Float[Tensor, "B P C"], scale: int) -> Float[Tensor, "B C H W"]:
        """One decoded view."""
        return rearrange(values, "b (h w) c -> b c h w", h=self.config.size * scale).clamp(0, 1)

    def cut(self, path: Path, *, crop: bool = False) -> tuple[Form, list[Instance]]:
        """The support views."""
        return self.instance_form, [scene(path, self.config.support_views, self.config.size, self.config.resize)]

    @property
    def instance_form(self) -> Form:
        """A scene's."""
        return Form(())

    def count_parts(self, form: Form) -> int:
        """A scene is one instance."""
        return 1

    def count_cells(self, form: Form) -> int:
        """Pixels of the support views."""
        return self.config.support_views * self.config.size**2

    def join(self, values: Float[Tensor, "N P C"], form: Form, scale: int) -> Float[Tensor, "H VW C"]:
        """The views of a scene, side by side."""
        side = self.config.size * scale
        return rearrange(values[0], "(v h w) c -> h (v w) c", h=side, w=side)


def enlarge(pictures: Float[Tensor, "B C H W"], scale: int) -> Float[Tensor, "B C HH WW"]:
    """Bicubic enlargement, clamped to [0, 1]."""
    if scale == 1:
        return pictures
    return F.interpolate(pictures, scale_factor=float(scale), mode="bicubic", align_corners=False).clamp(0, 1)


def waveform(wave: Float[Tensor, " T"], height: int = 64, width: int = 256) -> Float[Tensor, "1 H W"]:
    """A sound as a picture: in every column, dark from its lowest to its highest value, 1 at the top."""
    mirrored = torch.stack([wave, -wave]).clamp(-1, 1)
    highest, lowest = F.adaptive_max_pool1d(mirrored, width) * torch.tensor([[1.0], [-1.0]], device=wave.device)
    level = torch.linspace(1, -1, height, device=wave.device)[:, None]
    step = 2 / (height - 1)
    inside = (level <= highest + step / 2) & (level >= lowest - step / 2)
    return 1 - inside.float()[None]


TASKS: dict[str, type[SignalTask]] = {task.name: task for task in (ImageTask, SoundTask, ViewTask)}


def build_task(config: DataConfig) -> SignalTask:
    """The task of some data.

    Raises:
        InputError: no such task.
    """
    if config.task not in TASKS:
        raise InputError("data.task", config.task, ", ".join(TASKS))
    return TASKS[config.task](config)
