"""What is fitted: a signal on a grid of cells, pixels of a picture or samples of a sound, with values in [0, 1]."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from evos.errors import InputError
from evos.folders import find_files, natural_order
from evos.images import EXTENSIONS as PICTURES
from evos.images import list_images, read_image, reduce_image
from evos.rasters import open_raster
from evos.sounds import EXTENSIONS as SOUNDS
from evos.sounds import Sound, first_bytes, is_sound, read_sound

VIDEOS = ("mp4", "m4v", "mov", "avi", "mkv", "webm", "mpg", "mpeg", "wmv", "flv", "ogv")
ARRAYS = ("npy",)
"""NumPy's arrays: pictures (H, W) or (H, W, C)."""
READ = f"a picture ({', '.join((*PICTURES, *ARRAYS))}) or a sound ({', '.join(SOUNDS)})"


@dataclass(frozen=True)
class SoundFormat:
    """How a sound is written: samples a second, libsndfile's kind of sample, extension, and amplitude of value 1."""

    rate: int
    subtype: str
    extension: str
    peak: float


@dataclass(frozen=True)
class Signal:
    """P values of C channels in [0, 1] on a grid of ``shape``: a picture's (H, W), or a sound's (T,).

    ``bits`` is the depth a picture's file has per channel; a sound has its ``sound`` format instead.
    """

    name: str
    values: Float[Tensor, "P C"]
    shape: tuple[int, ...]
    bits: int = 8
    sound: SoundFormat | None = None

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
    return Signal(name, (sound.samples / peak + 1) / 2, (len(sound.samples),), sound=form)


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
    sides = [" x ".join(map(str, each)) for each in (signal.shape, shape)]
    print(f"notice: {signal.name}: cropped from {sides[0]} to {sides[1]}, for a factor of {factor}", file=sys.stderr)
    grid = signal.values.unflatten(0, signal.shape)[tuple(slice(size) for size in shape)]
    return replace(signal, values=grid.flatten(0, -2), shape=shape)


def find_inputs(path: str | None, argument: str = "--input") -> dict[str, Path | None]:
    """The pictures and sounds that ``--input`` names, those of subfolders too, by the name of each one's folder.

    None stands for the embedded photo.

    Raises InputError where there is none, or where two have one name.
    """
    if path is None:
        return {"astronaut": None}
    given = Path(path)
    if not given.is_dir():
        if is_video(given):
            raise InputError(path, "a video", READ)
        if is_sound(given):
            return {folder_name(Path(given.name)): given}
        if given.exists() and not is_picture(given):
            raise InputError(path, f"the extension {given.suffix or '(none)'}", READ)
        if given.suffix[1:].lower() in ARRAYS and given.exists():
            return {folder_name(Path(given.name)): given}
        return {folder_name(Path(file.name)): file for file in list_images(given)}
    found = [
        file.relative_to(given)
        for extensions in (PICTURES, SOUNDS)
        for file in sorted(find_files(given, extensions), key=natural_order)
    ]
    if not found:
        raise InputError(path, "a folder without images", f"a folder with {', '.join((*PICTURES, *SOUNDS))} files")
    names = [folder_name(file) for file in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(argument, ", ".join(sorted(twice)), "inputs of different names")
    return {name: given / file for name, file in zip(names, found, strict=True)}


def is_picture(path: Path) -> bool:
    """Whether a file is a picture by its extension."""
    return path.suffix[1:].lower() in (*PICTURES, *ARRAYS)


def is_video(path: Path) -> bool:
    """Whether a file is a video by its extension or its first bytes (MP4 and QuickTime, AVI, Matroska and WebM)."""
    start = first_bytes(path)
    mp4 = start[4:8] == b"ftyp" and start[8:11] in (b"iso", b"mp4", b"avc", b"M4V", b"qt ")
    by_content = mp4 or start[8:] == b"AVI " or start[:4] == b"\x1aE\xdf\xa3"
    return by_content or path.suffix[1:].lower() in VIDEOS


def folder_name(path: Path) -> str:
    """An input's name for its run's folder, its own among all inputs: cat.png and cat.jpg differ.

    ``path``: within the folder of inputs; its subfolders come first, joined by two underscores.
    """
    return "__".join((*path.parent.parts, f"{path.stem}_{path.suffix[1:]}"))


def load(path: Path | None, longer_side: int | None, factor: int = 1) -> Signal:
    """The signal in a file, cropped to a multiple of ``factor``; None: the embedded photo.

    Raises InputError for what can't be read, a sound of one sample or with a ``longer_side``, or a factor beyond the
    signal's sides.
    """
    if path is None:
        signal = astronaut(longer_side)
    elif is_sound(path):
        if longer_side is not None:
            raise InputError("--longer_side", longer_side, f"pictures only, and {path} is a sound")
        sound = read_sound(path)
        if len(sound.samples) < 2:
            raise InputError(str(path), "a sound of 1 sample", "at least 2 samples")
        signal = from_sound(path.stem, sound)
    elif path.suffix[1:].lower() in ARRAYS:
        raster = open_raster(path, path.parent)
        signal = from_pixels(path.stem, raster.window(0, 0, *raster.shape), longer_side, raster.bits)
    else:
        image = read_image(path)
        signal = from_pixels(path.stem, image.pixels, longer_side, image.bits)
    return cropped(signal, factor)
