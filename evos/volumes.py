"""Volumes: NumPy arrays, TIFF stacks, NIfTI files, and pictures as slices; axes z, y, x."""

import gzip
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tifffile
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from evos.errors import InputError
from evos.images import read_image
from evos.runs.files import replace_file
from evos.videos import MOST

ARRAYS = ("npy",)
NIFTI = ("nii", "nii.gz")
EXTENSIONS = (*ARRAYS, *NIFTI)
STACKS = ("tif", "tiff")
"""Extensions that pictures have, too: a volume is a file of several pages alike."""

_WHOLE = f"a whole volume ({', '.join((*EXTENSIONS, 'tif'))})"
_AXES = "3 axes (z, y, x), or 4, the last of them 1 to 4 channels"


@dataclass(frozen=True)
class VolumeFormat:
    """How a volume is written.

    Attributes:
        extension: npy, tif, nii or nii.gz.
        dtype: NumPy's name of the values' type.
        low: the value that is 0 in the signal.
        span: from there to the one that is 1.
        affine: of a NIfTI, the 16 numbers from voxels (x, y, z) to millimetres.
    """

    kind: ClassVar[str] = "volume"
    extension: str
    dtype: str
    low: float
    span: float
    affine: tuple[float, ...] | None = None

    def resized(self, old: tuple[int, ...], new: tuple[int, ...]) -> "VolumeFormat":
        """The format of the volume on another grid between the same first and last voxels; shapes are (z, y, x)."""
        if self.affine is None:
            return self
        scale = [(a - 1) / (b - 1) if b > 1 else 1.0 for a, b in zip(old[::-1], new[::-1], strict=True)]
        return self.moved(scale, [0.0] * 3)

    def moved(self, scale: Sequence[float], shift: Sequence[float]) -> "VolumeFormat":
        """The format where a voxel v (x, y, z) lies at voxel scale · v + shift of this one."""
        if self.affine is None:
            return self
        change = np.eye(4)
        change[:3, :3], change[:3, 3] = np.diag(scale), shift
        return replace(self, affine=tuple((np.reshape(self.affine, (4, 4)) @ change).ravel().tolist()))


def extension_of(path: Path) -> str:
    """The extension in lower case, ``nii.gz`` as one."""
    return "nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix[1:].lower()


def is_volume(path: Path) -> bool:
    """Whether a file is a volume by its extension, or a TIFF of several pages alike, or of which pages are missing."""
    if extension_of(path) in EXTENSIONS:
        return True
    if extension_of(path) not in STACKS or not path.is_file():
        return False
    try:
        with complaints() as found, tifffile.TiffFile(path) as file:
            return len(file.series[0].pages) > 1 or bool(found)
    except Exception:  # damaged: reading it as a picture says how
        return False


def read_volume(path: Path, longer_side: int | None = None) -> tuple[Float[Tensor, "Z Y X C"], VolumeFormat]:
    """A volume, its range taken to [0, 1], and its format.

    Args:
        path: npy, tif, nii or nii.gz.
        longer_side: voxels to which its longest axis is reduced, antialiased; None: it is not.

    Raises:
        InputError: missing, unreadable, empty, truncated or damaged file; other axes or types of values; values that
            are not finite; too many voxels.
    """
    extension = extension_of(path)
    readers = {"npy": _read_array, **dict.fromkeys(NIFTI, _read_nifti), **dict.fromkeys(STACKS, _read_stack)}
    if extension not in readers:
        raise InputError(str(path), f"the extension {path.suffix or '(none)'}", f"{', '.join(readers)} for a volume")
    try:
        if not path.stat().st_size:
            raise InputError(str(path), "an empty file", _WHOLE)
        array, affine = readers[extension](path)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(str(path), "no such file or folder", _WHOLE) from None
    except Exception as error:  # damage makes readers raise nearly anything
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(str(path), f"a truncated, damaged or unsupported volume ({reason})", _WHOLE) from None
    written = "tif" if extension in STACKS else extension
    return _scaled(array, affine, written, path, longer_side)


def read_slices(files: Sequence[Path], longer_side: int | None = None) -> tuple[Float[Tensor, "Z Y X C"], VolumeFormat]:
    """Pictures as the slices of a volume, to be written as a TIFF; raises InputError where their sizes differ."""
    slices = []
    for file in files:
        image = read_image(file)
        pixels = image.pixels.numpy()
        if image.bits < 32:
            pixels = (pixels * (2**image.bits - 1)).round().astype(f"u{image.bits // 8}")
        if slices and pixels.shape != slices[0].shape:
            raise InputError(str(file), f"a picture of {pixels.shape}", f"{slices[0].shape}, as {files[0]} has")
        slices.append(pixels)
    return _scaled(np.stack(slices), None, "tif", files[0].parent, longer_side)


def write_volume(path: str | Path, values: Float[Tensor, "Z Y X C"], form: VolumeFormat) -> None:
    """Write values in [0, 1], clamped, with the range, type and geometry of ``form``, atomically.

    Raises:
        InputError: another extension, values that are not finite, or a file that can't be written.
    """
    path = Path(path)
    extension = extension_of(path)
    if not values.isfinite().all():
        raise InputError("values", "values that are not finite", "finite values")
    array = values.detach().cpu().double().clamp(0, 1).numpy() * form.span + form.low
    dtype = np.dtype(form.dtype)
    array = (array.round() if dtype.kind in "iub" else array).astype(dtype)
    array = array[..., 0] if array.shape[-1] == 1 else array
    if extension == "npy":
        buffer = BytesIO()
        np.save(buffer, array)
        replace_file(path, buffer.getbuffer())
    elif extension in STACKS:
        buffer, plain = BytesIO(), array.astype(np.uint8) if dtype.kind == "b" else array
        kind = "rgb" if array.ndim == 4 and array.shape[-1] >= 3 else "minisblack"
        planes = "contig" if array.ndim == 4 else None
        tifffile.imwrite(buffer, plain, photometric=kind, planarconfig=planes)
        replace_file(path, buffer.getbuffer())
    elif extension in NIFTI:
        plain = array.astype(np.uint8) if dtype.kind == "b" else array
        affine = np.eye(4) if form.affine is None else np.reshape(form.affine, (4, 4))
        image = _nibabel().Nifti1Image(plain.T, affine, dtype=plain.dtype)
        data = image.to_bytes()
        replace_file(path, gzip.compress(data, mtime=0) if extension == "nii.gz" else data)
    else:
        allowed = ", ".join((*EXTENSIONS, *STACKS))
        raise InputError(str(path), f"the extension {path.suffix or '(none)'}", allowed)


def _read_array(path: Path) -> tuple[np.ndarray, None]:
    array = np.load(path, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise ValueError("an archive of arrays")
    return array, None


def _read_stack(path: Path) -> tuple[np.ndarray, None]:
    with complaints() as found, tifffile.TiffFile(path) as file:
        series = file.series[0]
        # With samples of colour, an axis more.
        if len(series.shape) != 3 + series.axes.endswith("S"):
            raise InputError(str(path), f"a TIFF with axes {series.axes}", _AXES)
        array = series.asarray()
    if found:
        raise ValueError(found[0])
    return array, None


@contextmanager
def complaints() -> Iterator[list[str]]:
    """What tifffile logs as errors, such as pages that are missing: it reads the others."""
    log, found = logging.getLogger("tifffile"), []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: found.append(record.getMessage())
    before, log.propagate = log.propagate, False
    log.addHandler(handler)
    try:
        yield found
    finally:
        log.removeHandler(handler)
        log.propagate = before


def _read_nifti(path: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    if path.name.lower().endswith(".gz"):
        with gzip.open(path) as file:  # to its checksum, which nibabel does not read
            while file.read(2**24):
                pass
    image: Any = _nibabel().load(path)
    array = np.asanyarray(image.dataobj)
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim > 3:
        raise InputError(str(path), f"axes of {array.shape}", "3 axes: one volume, not a series")
    return array.T, tuple(image.affine.ravel().tolist())


def _scaled(
    array: np.ndarray, affine: tuple[float, ...] | None, extension: str, path: Path, longer_side: int | None
) -> tuple[Float[Tensor, "Z Y X C"], VolumeFormat]:
    """The array as values in [0, 1], reduced where that is asked for, and its format."""
    if array.dtype.kind not in "buif":
        raise InputError(str(path), f"values of type {array.dtype}", "whole numbers, floats or truth values")
    if not (array.ndim == 3 or (array.ndim == 4 and 1 <= array.shape[-1] <= 4)) or 0 in array.shape:
        raise InputError(str(path), f"an array of {array.shape}", _AXES)
    grid = array if array.ndim == 4 else array[..., None]
    if grid[..., 0].size > MOST:
        raise InputError(str(path), f"{grid[..., 0].size:,} voxels", f"at most {MOST:,}")
    if not np.isfinite(grid).all():
        raise InputError(str(path), "values that are not finite", "finite values")
    low, high = float(grid.min()), float(grid.max())
    span = high - low
    form = VolumeFormat(extension, array.dtype.newbyteorder("=").str, low, span, affine)
    # In double precision: the span of a 32-bit integer has more digits than a float.
    values = torch.from_numpy(((grid.astype(np.float64) - low) / (span or 1.0)).astype(np.float32))
    old = values.shape[:3]
    if longer_side is None or max(old) <= longer_side:
        return values, form
    new = tuple(max(1, round(side * longer_side / max(old))) for side in old)
    small = rearrange(reduced(rearrange(values, "z y x c -> c z y x"), new), "c z y x -> z y x c").contiguous()
    scale = [a / b for a, b in zip(old[::-1], new[::-1], strict=True)]
    return small, form.moved(scale, [(each - 1) / 2 for each in scale])


def reduced(volume: Float[Tensor, "C Z Y X"], shape: tuple[int, ...]) -> Float[Tensor, "C z y x"]:
    """A smaller volume, interpolated linearly after averaging over the new voxels, one axis after another."""
    for axis, size in enumerate(shape, start=1):
        moved = volume.movedim(axis, -1)
        lines = moved.reshape(1, -1, 1, moved.shape[-1])
        lines = F.interpolate(lines, (1, size), mode="bilinear", align_corners=False, antialias=True)
        volume = lines.reshape(*moved.shape[:-1], size).movedim(-1, axis)
    return volume


def _nibabel() -> Any:
    """The nibabel package, imported late: other signals don't need it."""
    try:
        import nibabel
    except ImportError as error:
        raise InputError("nibabel", f"not installed ({error})", "pip install nibabel, for NIfTI files") from None
    return nibabel
