"""What is fitted: a signal on a grid of cells, such as pixels of a picture or samples of a sound, values in [0, 1]."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from evos.errors import InputError
from evos.folders import find_files, natural_order
from evos.images import EXTENSIONS as PICTURES
from evos.images import list_images, read_image, reduce_image
from evos.raster_files import NPY, holds_picture
from evos.rasters import open_raster
from evos.shapes import EXTENSIONS as SHAPES
from evos.shapes import Mesh, ShapeFormat, is_shape, read_shape
from evos.sounds import EXTENSIONS as SOUNDS
from evos.sounds import Sound, is_sound, read_sound
from evos.videos import EXTENSIONS as VIDEOS
from evos.videos import VideoFormat, is_video, read_frames, read_video
from evos.volumes import EXTENSIONS as VOLUMES
from evos.volumes import VolumeFormat, extension_of, is_volume, read_slices, read_volume

READ = ", ".join(
    f"a {name} ({', '.join(extensions)})"
    for name, extensions in {
        **{"picture": PICTURES, "sound": SOUNDS, "video": VIDEOS},
        **{"volume": (*VOLUMES, "tif of several pages"), "shape": SHAPES},
    }.items()
)


@dataclass(frozen=True)
class SoundFormat:
    """How a sound is written: samples a second, libsndfile's kind of sample, extension, and amplitude of value 1."""

    kind: ClassVar[str] = "sound"
    rate: int
    subtype: str
    extension: str
    peak: float


Format: TypeAlias = SoundFormat | VideoFormat | VolumeFormat | ShapeFormat
FORMATS: dict[str, type[Format]] = {each.kind: each for each in (SoundFormat, VideoFormat, VolumeFormat, ShapeFormat)}


@dataclass(frozen=True)
class Signal:
    """P values of C channels in [0, 1] on a grid of ``shape``.

    The shape is a picture's (H, W), a sound's (T,), a video's (T, H, W), or (Z, Y, X) of a volume or a shape. ``bits``
    is the depth a picture's file has per channel; other signals have a format. ``mesh``: of a shape.
    """

    name: str
    values: Float[Tensor, "P C"]
    shape: tuple[int, ...]
    bits: int = 8
    form: Format | None = None
    mesh: Mesh | None = None

    @property
    def kind(self) -> str:
        """picture, sound, video, volume or shape: a name in KINDS."""
        return "picture" if self.form is None else self.form.kind

    @property
    def sound(self) -> SoundFormat | None:
        """A sound's format."""
        return self.form if isinstance(self.form, SoundFormat) else None

    def block(self, values: Float[Tensor, "P C"]) -> Float[Tensor, "*S C"]:
        """Values on this signal's grid."""
        return values.unflatten(0, self.shape)

    def picture(self, values: Float[Tensor, "P C"]) -> Float[Tensor, "H W C"]:
        """Values of this picture's grid as a picture."""
        return values.reshape(*self.shape, -1)

    def samples(self, values: Float[Tensor, "T C"]) -> Float[Tensor, "T C"]:
        """Values of this sound as amplitudes around 0: 0.5 is 0, 1 its peak."""
        assert self.sound is not None
        return (2 * values - 1) * self.sound.peak


def from_pixels(name: str, pixels: Float[Tensor, "H W C"], longer_side: int | None = None, bits: int = 8) -> Signal:
    """A picture as a signal, its longer side reduced to ``longer_side`` pixels where that is given."""
    pixels = pixels if longer_side is None else reduce_image(pixels, longer_side)
    return Signal(name, rearrange(pixels, "h w c -> (h w) c").contiguous(), tuple(pixels.shape[:2]), bits)


def from_sound(name: str, sound: Sound) -> Signal:
    """A sound as a signal: its largest amplitude, of either sign, becomes 1 or 0, silence 0.5."""
    peak = float(sound.samples.abs().max()) or 1.0
    form = SoundFormat(sound.rate, sound.subtype, sound.extension, peak)
    return Signal(name, (sound.samples / peak + 1) / 2, (len(sound.samples),), form=form)


def astronaut(longer_side: int | None = None) -> Signal:
    """The photo that ships with scikit-image (NASA, public domain)."""
    from skimage.data import astronaut as photo  # a heavy import that only the default input needs

    return from_pixels("astronaut", torch.from_numpy(photo()).float() / 255, longer_side)


def subsample(values: Float[Tensor, "P V"], shape: tuple[int, ...], factor: int) -> Float[Tensor, "p V"]:
    """Every ``factor``-th cell along each axis of a grid, from the first; no copy at factor 1."""
    grid = values.unflatten(0, shape)
    return grid[(slice(None, None, factor),) * len(shape)].flatten(0, -2)


def cropped(signal: Signal, factor: int) -> Signal:
    """The signal cropped at the end of each axis to a multiple of ``factor``, with a notice on stderr.

    Raises InputError where an axis is shorter than ``factor``.
    """
    if min(signal.shape) < factor:
        raise InputError("--factor", factor, f"at most {min(signal.shape)}, the shortest side of {signal.name}")
    shape = tuple(size - size % factor for size in signal.shape)
    if shape == signal.shape:
        return signal
    if signal.mesh is not None:  # whose box would no longer be that of its format
        raise InputError("--longer_side", signal.shape[0], f"a multiple of the factor, {factor}, for a shape")
    sides = [" x ".join(map(str, each)) for each in (signal.shape, shape)]
    print(f"notice: {signal.name}: cropped from {sides[0]} to {sides[1]}, for a factor of {factor}", file=sys.stderr)
    grid = signal.values.unflatten(0, signal.shape)[tuple(slice(size) for size in shape)]
    return replace(signal, values=grid.flatten(0, -2), shape=shape)


# ---- kinds of signals


def is_picture(path: Path) -> bool:
    """Whether a file is a picture by its extension and, of a TIFF or a NumPy array, by its axes."""
    if path.suffix[1:].lower() == NPY:
        return holds_picture(path)
    return path.suffix[1:].lower() in PICTURES and not is_volume(path)


def read_picture_signal(path: Path, longer_side: int | None, frames: int | None) -> Signal:
    """A picture; see ``load``."""
    if path.suffix[1:].lower() == NPY:
        raster = open_raster(path, path.parent)
        return from_pixels(path.stem, raster.window(0, 0, *raster.shape), longer_side, raster.bits)
    image = read_image(path)
    return from_pixels(path.stem, image.pixels, longer_side, image.bits)


def read_sound_signal(path: Path, longer_side: int | None, frames: int | None) -> Signal:
    """A sound; see ``load``."""
    if longer_side is not None:
        raise InputError("--longer_side", longer_side, f"none for a sound, which {path} is")
    sound = read_sound(path)
    if len(sound.samples) < 2:
        raise InputError(str(path), "a sound of 1 sample", "at least 2 samples")
    return from_sound(path.stem, sound)


def read_video_signal(path: Path, longer_side: int | None, frames: int | None) -> Signal:
    """A video, or a folder of its frames; see ``load``."""
    if path.is_dir():
        pixels, form = read_frames(list_images(path), longer_side, frames)
    else:
        pixels, form = read_video(path, longer_side, frames)
    name = path.resolve().name if path.is_dir() else path.stem
    return Signal(name, pixels.flatten(0, 2), tuple(pixels.shape[:3]), form=form)


def read_volume_signal(path: Path, longer_side: int | None, frames: int | None) -> Signal:
    """A volume, or a folder of its slices; see ``load``."""
    values, form = read_slices(list_images(path), longer_side) if path.is_dir() else read_volume(path, longer_side)
    name = path.resolve().name if path.is_dir() else path.name[: -len(extension_of(path)) - 1]
    return Signal(name, values.flatten(0, 2), tuple(values.shape[:3]), form=form)


def read_shape_signal(path: Path, longer_side: int | None, frames: int | None) -> Signal:
    """A mesh as signed distances; see ``load``."""
    values, form, mesh = read_shape(path, longer_side)
    return Signal(path.stem, values.reshape(-1, 1), tuple(values.shape), form=form, mesh=mesh)


@dataclass(frozen=True)
class Kind:
    """A kind of signal: which files are of it, and how one is read.

    ``is_one``: whether a file is of it. ``read``: path, --longer_side and --frames to a signal. ``from_folder``:
    whether the pictures of a folder may be one signal of it.
    """

    is_one: Callable[[Path], bool]
    read: Callable[[Path, int | None, int | None], Signal]
    extensions: tuple[str, ...]
    from_folder: bool = False


KINDS = {
    "video": Kind(is_video, read_video_signal, VIDEOS, from_folder=True),
    "sound": Kind(is_sound, read_sound_signal, SOUNDS),
    "picture": Kind(is_picture, read_picture_signal, PICTURES),
    "volume": Kind(is_volume, read_volume_signal, (*VOLUMES, "gz"), from_folder=True),
    "shape": Kind(is_shape, read_shape_signal, SHAPES),
}
"""By name, in the order in which files are tried."""


def kind_of(path: Path | None, kind: str = "auto") -> str:
    """The kind of signal that a file holds, by its content and extension, or the one given.

    None stands for the embedded photo. What is of no kind is taken for a picture: reading it says what is wrong.
    """
    if path is None or kind != "auto":
        return "picture" if path is None else kind
    return next((name for name, each in KINDS.items() if each.is_one(path)), "picture")


def format_values(form: Format | None) -> dict[str, Any] | None:
    """A format as a dict for JSON, its kind among it; None for a picture's."""
    return None if form is None else {"kind": form.kind, **asdict(form)}


def format_from(values: Mapping[str, Any]) -> Format:
    """The format that ``format_values`` wrote; raises KeyError or TypeError for anything else."""
    own: dict[str, Any] = {
        name: tuple(each) if isinstance(each, list) else each for name, each in values.items() if name != "kind"
    }
    return FORMATS[values["kind"]](**own)


# ---- inputs


def is_folder_of_signals(path: str | None, kind: str = "auto") -> bool:
    """Whether an input is a folder whose files are a signal each; with ``kind`` video or volume it is one itself."""
    return path is not None and Path(path).is_dir() and not (kind in KINDS and KINDS[kind].from_folder)


def find_inputs(path: str | None, argument: str = "--input", kind: str = "auto") -> dict[str, Path | None]:
    """The signals that ``--input`` names, those of subfolders too, by the name of each one's folder.

    None stands for the embedded photo. ``kind``: a name in KINDS, the only one taken; auto: any.

    Raises InputError where there is none, or where two have one name.
    """
    if path is None:
        return {"astronaut": None}
    given = Path(path)
    if not is_folder_of_signals(path, kind):
        if given.is_dir():
            list_images(given)
            return {given.resolve().name: given}
        if given.exists() and kind == "auto" and not any(each.is_one(given) for each in KINDS.values()):
            raise InputError(path, f"the extension {given.suffix or '(none)'}", READ)
        if kind_of(given, kind) == "picture" and given.suffix[1:].lower() != NPY:
            return {folder_name(Path(file.name)): file for file in list_images(given)}
        return {folder_name(Path(given.name)): given}
    taken = KINDS if kind == "auto" else {kind: KINDS[kind]}
    found = [
        file.relative_to(given)
        for name in sorted(taken)
        for file in sorted(find_files(given, taken[name].extensions), key=natural_order)
        if file.suffix.lower() != ".gz" or extension_of(file) in VOLUMES
    ]
    if not found:
        extensions = ", ".join(extension for each in taken.values() for extension in each.extensions)
        raise InputError(path, "a folder without images", f"a folder with {extensions} files")
    names = [folder_name(file) for file in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(argument, ", ".join(sorted(twice)), "inputs of different names")
    return {name: given / file for name, file in zip(names, found, strict=True)}


def folder_name(path: Path) -> str:
    """An input's name for its run's folder, its own among all inputs: cat.png and cat.jpg differ.

    ``path``: within the folder of inputs; its subfolders come first, joined by two underscores.
    """
    return "__".join((*path.parent.parts, f"{path.stem}_{path.suffix[1:]}"))


def load(
    path: Path | None, longer_side: int | None, factor: int = 1, *, kind: str = "auto", frames: int | None = None
) -> Signal:
    """The signal in a file, cropped to a multiple of ``factor``; None: the embedded photo.

    Args:
        path: a file, or a folder of frames or slices where ``kind`` is video or volume.
        longer_side: of a picture or each frame of a video in pixels, of a volume in voxels, where it is reduced; grid
            points along each axis of a shape (None: 64).
        factor: every which cell along an axis is trained on.
        kind: a name in KINDS; auto: by the file's content and extension.
        frames: of a video, how many are read, the first ones; None: all.

    Raises:
        InputError: a file that can't be read, a sound of one sample or with a ``longer_side``, ``frames`` of anything
            but a video, or a factor beyond the signal's sides.
    """
    found = kind_of(path, kind)
    if frames is not None and found != "video":
        raise InputError("--frames", frames, f"none for a {found}, which {path or 'the photo'} is")
    signal = astronaut(longer_side) if path is None else KINDS[found].read(path, longer_side, frames)
    return cropped(signal, factor)
