"""Write a picture larger than memory: a tiled TIFF, tile by tile."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import tifffile

from evos.errors import InputError
from evos.runs.files import temporary_path

TILE = 256
"""Side of a tile in pixels."""


def write_tiled(
    path: str | Path, tiles: Iterable[np.ndarray], shape: tuple[int, int], channels: int, bits: int = 8
) -> None:
    """Write tiles, clamped to [0, 1] and rounded, by way of a temporary file in the same folder.

    Args:
        path: the file; replaced in one step or left as it was.
        tiles: of 256 x 256 pixels (h, w, C), row by row; those at the right and the lower edge smaller.
        shape: (H, W) of the picture.
        channels: C, 1 to 4.
        bits: 8 or 16.

    Raises InputError where the file can't be written or the disk is full: no part of it remains.
    """
    path = Path(path)
    temporary = temporary_path(path)
    dtype = np.dtype(f"u{bits // 8}")

    def padded() -> Iterator[np.ndarray]:
        for tile in tiles:
            whole = np.zeros((TILE, TILE, channels), dtype)
            whole[: tile.shape[0], : tile.shape[1]] = np.rint(tile.clip(0, 1) * (2**bits - 1))
            yield whole[..., 0] if channels == 1 else whole

    try:
        with tifffile.TiffWriter(temporary, bigtiff=True) as file:
            file.write(
                padded(),
                shape=shape if channels == 1 else (*shape, channels),
                dtype=dtype,
                tile=(TILE, TILE),
                photometric="rgb" if channels >= 3 else "minisblack",
                planarconfig=None if channels == 1 else "contig",
                extrasamples=["unassalpha"] if channels in (2, 4) else None,
                compression="zlib",
                compressionargs={"level": 1},
                metadata=None,
            )
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(str(path), error.strerror or str(error), "a writable folder with free space") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
