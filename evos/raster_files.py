"""Where a picture's file has its samples: found in the file, or made by decoding it to another one.

A TIFF (by tifffile) that is not compressed, in tiles or strips, and a NumPy array (.npy) have them as they are; any
other picture is decoded, a TIFF tile by tile.
"""

import errno
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import tifffile

from evos.errors import InputError
from evos.images import quiet_decoders, read_samples

TIFF = ("tif", "tiff")
NPY = "npy"
DECODED_BYTES = 10
"""Memory that decoding a PNG, JPEG, WebP or BMP takes a pixel: it is decoded as a whole."""
KINDS = "8- or 16-bit unsigned samples, or floats in [0, 1]"


@dataclass(frozen=True)
class Header:
    """What a picture's file says of it before its pixels are read."""

    shape: tuple[int, int]
    """(H, W)."""
    channels: int
    """C, 1 to 4."""

    @property
    def pixels(self) -> int:
        """How many there are."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """Where a file has its samples: blocks of pixels, row by row, each pixel's channels together."""

    shape: tuple[int, int]
    channels: int
    dtype: np.dtype[Any]
    block: tuple[int, int]
    """Rows and columns of a block; all are of this size, those at the edge padded."""
    starts: np.ndarray
    """First byte of each block, "rows columns" of blocks."""

    @property
    def stride(self) -> int:
        """Bytes of a pixel."""
        return self.channels * self.dtype.itemsize

    @property
    def end(self) -> int:
        """Bytes that the file must have; the last block may lack its padding where that is whole rows."""
        padding = max(0, len(self.starts) * self.block[0] - self.shape[0]) * self.block[1] * self.stride
        last = int(self.starts[-1].max()) + math.prod(self.block) * self.stride
        return max(last - padding, int(self.starts.max()))


def read_header(path: str | Path) -> Header:
    """The size of a picture, from the first bytes of its file.

    Raises InputError where the file is missing, unreadable or not a picture.
    """
    path = Path(path)
    with described(path), quiet_decoders():
        if path.suffix[1:].lower() == NPY:
            layout = npy_layout(path)
            return Header(layout.shape, layout.channels)
        if path.suffix[1:].lower() in TIFF:
            with tifffile.TiffFile(path) as file:
                page = file.pages.first
                return Header((page.imagelength, page.imagewidth), page.samplesperpixel)
        with PIL.Image.open(path) as image:
            return Header((image.height, image.width), len(image.getbands()))


def holds_picture(path: Path) -> bool:
    """Whether a NumPy array in a file has the axes of a picture; others, and damaged files, are for others to read."""
    try:
        shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
    except (OSError, ValueError, EOFError):
        return False
    return is_picture_shape(shape)


def is_picture_shape(shape: tuple[int, ...]) -> bool:
    """Whether these are (H, W), or (H, W, C) of 1 to 4 channels."""
    return len(shape) == 2 or (len(shape) == 3 and 1 <= shape[2] <= 4)


def npy_layout(path: Path) -> Layout:
    """Of a NumPy array (H, W) or (H, W, C)."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not is_picture_shape(array.shape) or 0 in array.shape:
        raise InputError(str(path), f"an array of {array.shape}", "(H, W), or (H, W, C) of 1 to 4 channels")
    check_kind(path, array.dtype)
    if not array.flags.c_contiguous:
        raise InputError(str(path), "an array in Fortran's order", "one in C's order")
    channels = array.shape[2] if array.ndim == 3 else 1
    return Layout(array.shape[:2], channels, array.dtype, array.shape[:2], np.full((1, 1), array.offset))  # pyright: ignore[reportAttributeAccessIssue]


def tiff_layout(path: Path) -> Layout | None:
    """Of a TIFF whose samples lie in the file as they are; None where they must be decoded."""
    with tifffile.TiffFile(path) as file:
        page = checked_page(path, file)
        block = block_of(page)
        starts = np.array(page.dataoffsets, dtype=np.int64).reshape(blocks_of(page))
        dtype = page.dtype.newbyteorder(file.byteorder)
        plain = page.compression == 1 and page.predictor == 1 and page.fillorder == 1
        is_aligned = bool(((starts - starts.flat[0]) % dtype.itemsize == 0).all())
        if not plain or not is_aligned or not starts.all():
            return None
        return Layout((page.imagelength, page.imagewidth), page.samplesperpixel, dtype, block, starts)


def checked_page(path: Path, file: tifffile.TiffFile) -> Any:
    """The first page, if it is one that can be read by blocks."""
    page: Any = file.pages.first
    check_kind(path, page.dtype if page.dtype is None or page.bitspersample == 8 * page.dtype.itemsize else "packed")
    photometric = tifffile.PHOTOMETRIC(page.photometric).name
    if page.samplesperpixel > 4:
        raise InputError(str(path), f"{page.samplesperpixel} bands", "1 to 4 bands")
    if photometric not in ("MINISBLACK", "RGB", "YCBCR") or page.axes not in ("YX", "YXS"):
        got = f"a {photometric} TIFF with axes {page.axes}"
        raise InputError(str(path), got, "grey or RGB, a pixel's channels together, for a picture read from disk")
    if page.tags.valueof("Orientation", default=1) != 1:
        raise InputError(str(path), "a rotated TIFF", "an upright one, for a picture read from disk")
    return page


def check_kind(path: Path, dtype: Any) -> None:
    """Raise InputError for samples of another kind."""
    if not isinstance(dtype, np.dtype) or not (dtype.kind == "f" or (dtype.kind == "u" and dtype.itemsize <= 2)):
        raise InputError(str(path), f"{dtype} samples", KINDS)


def block_of(page: Any) -> tuple[int, int]:
    """Rows and columns of a page's tiles or strips."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return min(page.rowsperstrip, page.imagelength), page.imagewidth


def blocks_of(page: Any) -> tuple[int, int]:
    """How many tiles or strips there are down and across."""
    height, width = block_of(page)
    return -(-page.imagelength // height), -(-page.imagewidth // width)


def decode_tiff(path: Path, out: Any) -> Layout:
    """Decode a TIFF, a tile or strip at a time, to a file of the same blocks."""
    with tifffile.TiffFile(path) as file:
        page = checked_page(path, file)
        (height, width), channels, blocks = block_of(page), page.samplesperpixel, blocks_of(page)
        dtype = page.dtype.newbyteorder("=")
        size = height * width * channels * dtype.itemsize
        starts = np.arange(math.prod(blocks), dtype=np.int64).reshape(blocks) * size
        reserve(out, int(starts.size) * size)
        for samples, (_, _, top, left, _), _ in page.segments(maxworkers=1):
            block = np.zeros((height, width, channels), dtype)
            if samples is not None:
                block[: samples.shape[1], : samples.shape[2]] = samples[0]
            out.seek(int(starts[top // height, left // width]))
            out.write(block.tobytes())
        out.flush()
        return Layout((page.imagelength, page.imagewidth), channels, dtype, (height, width), starts)


def decode_picture(path: Path, out: Any, memory: int | None) -> Layout:
    """Decode any other picture as a whole, to a file of its rows."""
    needed = DECODED_BYTES * read_header(path).pixels
    if memory is not None and needed > memory:
        got = f"{memory:,} bytes, of which decoding {path} takes {needed:,}"
        raise InputError("--memory", got, "more memory, or the picture as a TIFF or .npy, which is read from disk")
    array = read_samples(path).array
    reserve(out, array.nbytes)
    out.write(array.data if array.flags.c_contiguous else array.tobytes())
    out.flush()
    shape: Any = array.shape
    return Layout(shape[:2], shape[2], array.dtype, shape[:2], np.zeros((1, 1), np.int64))


@contextmanager
def described(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a file is read into an InputError that names it."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        if error.errno == errno.ENOSPC:
            allowed = "free space for its decoded pixels, or a TIFF without compression, which is read as it is"
            raise InputError(str(path), "no space left on device", allowed) from error
        reason = (error.strerror or "a truncated or damaged file, or none that is an image").lower()
        raise InputError(str(path), reason, "a picture that can be read") from error
    except Exception as error:  # damage makes decoders raise nearly anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        allowed = "a whole picture" + (", or the package imagecodecs" if "imagecodecs" in reason else "")
        raise InputError(str(path), f"a truncated, damaged or unsupported file ({reason})", allowed) from error


def reserve(file: Any, size: int) -> None:
    """Reserve a file's bytes on disk, so that a full disk shows now: writing to a mapped page would end the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)
