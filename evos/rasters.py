"""Pictures that stay on disk: pixels gathered from a memory-mapped file, whatever its size.

A TIFF (by tifffile) that is not compressed, in tiles or strips, and a NumPy array (.npy) are mapped as they are. Other
files are decoded once, to a temporary file without a name: it is gone when the process ends, however it ends. Mapped
pages count as memory of the process although the system may take them back at any time; ``gather`` gives them back
itself before they exceed a limit.

Letters: K pixels, C channels.
"""

import math
import mmap
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from evos.errors import InputError
from evos.images import quiet_decoders
from evos.raster_files import NPY, TIFF, Layout, decode_picture, decode_tiff, described, npy_layout, tiff_layout

SCANNED = 2**22
"""Numbers that are looked at at a time."""
GATHERED = 2**11
"""Pixels that are gathered at a time: the system maps up to 64 kB around each, 128 MB together."""
SLACK_BYTES = 2**28
"""What a process may grow by between two looks at its size."""
STATM = Path("/proc/self/statm")
"""Where Linux says how many pages of a process are resident: its second number."""


@dataclass(frozen=True, eq=False)
class Raster:
    """A picture on disk; made by ``open_raster``.

    Attributes:
        name: the file's, without its extension.
        layout: where its samples are.
        mapping: of the whole file that has them.
        limit: bytes that the process may have; None: as the system likes.
        ends: the smallest and the largest value, in [0, 1].
    """

    name: str
    layout: Layout
    mapping: mmap.mmap
    limit: int | None = None
    ends: list[float] = field(default_factory=list)
    sound: None = None
    form: None = None
    kind: ClassVar[str] = "huge"

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.layout.shape

    @property
    def channels(self) -> int:
        """C."""
        return self.layout.channels

    @property
    def bits(self) -> int:
        """Depth of a sample: 8, 16, or 32 for floats."""
        return 32 if self.layout.dtype.kind == "f" else 8 * self.layout.dtype.itemsize

    def gather(self, y: Int[Tensor, " K"], x: Int[Tensor, " K"]) -> Float[Tensor, "K C"]:
        """The values of pixels, in [0, 1]."""
        layout, item = self.layout, self.layout.dtype.itemsize
        rows, columns = y.numpy(), x.numpy()
        height, width = layout.block
        start = layout.starts[rows // height, columns // width]
        first = start // item + (rows % height * width + columns % width) * layout.channels
        index = first[:, None] + np.arange(layout.channels)
        samples = self.samples(int(layout.starts.flat[0]) % item)
        values = np.empty(index.shape, layout.dtype.newbyteorder("="))
        for begin in range(0, len(index), GATHERED):
            part = slice(begin, begin + GATHERED)
            values[part] = samples[index[part]]
            self.release()
        return self.floats(values)

    def samples(self, shift: int = 0) -> np.ndarray:
        """All of the file's bytes from ``shift`` on as samples."""
        count = (len(self.mapping) - shift) // self.layout.dtype.itemsize
        return np.frombuffer(self.mapping, self.layout.dtype, count, shift)

    def floats(self, values: np.ndarray) -> Tensor:
        """Samples as float32 in [0, 1]."""
        if values.dtype.kind == "f":
            return torch.from_numpy(values.astype(np.float32))
        return torch.from_numpy(values.astype(np.float32)).div_(float(np.iinfo(values.dtype).max))

    def window(self, top: int, left: int, height: int, width: int) -> Float[Tensor, "h w C"]:
        """The pixels of a rectangle that lies within the picture."""
        y, x = torch.arange(top, top + height), torch.arange(left, left + width)
        return self.gather(*pairs(y, x)).unflatten(0, (height, width))

    def release(self) -> None:
        """Give all mapped pages back where the process has grown beyond ``limit``; they stay in the file."""
        if self.limit is None or not hasattr(mmap, "MADV_DONTNEED") or not STATM.exists():
            return
        if int(STATM.read_text().split()[1]) * mmap.PAGESIZE > self.limit - SLACK_BYTES:
            self.mapping.madvise(mmap.MADV_DONTNEED)

    def pieces(self) -> Iterator[np.ndarray]:
        """All samples once, a piece of a block at a time, without padding."""
        layout = self.layout
        height, width = layout.block
        rows = max(1, SCANNED // (width * layout.channels))
        for (down, across), start in np.ndenumerate(layout.starts):
            inside = (min(height, layout.shape[0] - down * height), min(width, layout.shape[1] - across * width))
            for top in range(0, inside[0], rows):
                size = (min(rows, inside[0] - top), width, layout.channels)
                first = int(start) + top * width * layout.stride
                yield np.frombuffer(self.mapping, layout.dtype, math.prod(size), first).reshape(size)[:, : inside[1]]
                self.release()

    def scan(self, path: Path) -> None:
        """Find the smallest and the largest value; raise InputError where values are not finite or not in [0, 1]."""
        low, high = math.inf, -math.inf
        for piece in self.pieces():
            low, high = min(low, float(piece.min())), max(high, float(piece.max()))
            if not math.isfinite(float(piece.min()) + float(piece.max())):
                raise InputError(str(path), "values that are not finite", "finite values in [0, 1]")
        largest = 1.0 if self.layout.dtype.kind == "f" else float(np.iinfo(self.layout.dtype).max)
        if low < 0 or high > largest:
            raise InputError(str(path), f"values from {low:g} to {high:g}", "values in [0, 1]")
        self.ends[:] = [low / largest, high / largest]


def pairs(y: Int[Tensor, " a"], x: Int[Tensor, " b"]) -> tuple[Int[Tensor, " a*b"], Int[Tensor, " a*b"]]:
    """Every y with every x, x varying fastest."""
    return y.repeat_interleave(len(x)), x.repeat(len(y))


def open_raster(path: str | Path, folder: Path, memory: int | None = None) -> Raster:
    """Open a picture for gathering pixels, and read it once from end to end.

    Args:
        path: a TIFF, .npy, or any other picture (these are decoded as a whole).
        folder: where the temporary file is, if the picture must be decoded.
        memory: bytes that this process may have, mapped pages included.

    Raises:
        InputError: missing, unreadable, truncated or damaged file, another kind of samples, values that are not finite
            or outside [0, 1], a disk without room for the decoded pixels, or a file that can only be decoded in more
            memory.
    """
    path = Path(path)
    with described(path), quiet_decoders():
        extension = path.suffix[1:].lower()
        layout = npy_layout(path) if extension == NPY else tiff_layout(path) if extension in TIFF else None
        # A mapping keeps its file open by itself, and the temporary one, which has no name, in being.
        if layout is not None:
            if (size := path.stat().st_size) < layout.end:
                raise InputError(str(path), f"a truncated file of {size} bytes", f"a whole one of {layout.end}")
            with path.open("rb") as file:
                mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        else:
            with tempfile.TemporaryFile(dir=folder) as file:
                layout = decode_tiff(path, file) if extension in TIFF else decode_picture(path, file, memory)
                mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    raster = Raster(path.stem, layout, mapping, memory)
    raster.scan(path)
    if hasattr(mmap, "MADV_RANDOM"):
        mapping.madvise(mmap.MADV_RANDOM)  # from here on a page read is one page
    return raster
