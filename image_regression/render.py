"""Write a fitted picture or sound at any resolution, from a finished run.

    evos render runs/photo --size 2048 --out big.png
    evos render run=runs/speech out=speech.wav
    evos render runs/huge --crop 4000,9000,1024,1024 --out part.png

A picture's new pixels lie between the corners of the old ones: its first and last keep their places.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evos.command_line import parse_options
from evos.config import check_range
from evos.errors import InputError, exit_on_input_error
from evos.fitted import FittedField, load
from evos.images import write_image
from evos.runs.outputs import check_absent
from evos.sounds import write_sound
from evos.tiled_tiff import TILE, write_tiled

STREAMED = 2**24
"""Pixels above which a TIFF is written tile by tile."""


@dataclass(frozen=True)
class RenderConfig:
    """Options of rendering."""

    run: str = ""
    """Folder of the finished run, or its field.safetensors."""

    out: str = ""
    """File to write: a picture (png jpg tiff webp bmp) or a sound (wav flac ogg)."""

    size: int | None = None
    """Longer side in pixels, or number of samples, at least 2; none: the signal's own."""

    crop: str | None = None
    """Part to write of a picture of that size: top,left,height,width in pixels; none: all of it."""

    overwrite: bool = False
    """Replace a file that exists."""

    def __post_init__(self) -> None:
        check_range("size", self.size, 2)
        for name in ("run", "out"):
            if not getattr(self, name):
                raise InputError(name, None, f"{name}=PATH")


def shape_of(fitted: FittedField, size: int | None) -> tuple[int, ...]:
    """The signal's grid with its longer side of ``size``, the other in proportion and at least 1."""
    longest = max(fitted.shape)
    return tuple(max(1, round(side * (size or longest) / longest)) for side in fitted.shape)


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """The program; the run may be its first word."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and "=" not in words[0] and not words[0].startswith("-"):
        words[0] = f"run={words[0]}"
    config = parse_options(RenderConfig, words, "evos render", "Write a fitted signal at any resolution.")
    check_absent([Path(config.out)], config.overwrite)
    fitted = load(config.run)
    shape = shape_of(fitted, config.size)
    start, size = box_of(config.crop, shape)
    if fitted.rate is None:
        write_picture(Path(config.out), fitted, shape, start, size)
    else:
        assert fitted.peak is not None
        # As long as the sound was, so at a rate in proportion.
        rate = round(fitted.rate * shape[0] / fitted.shape[0])
        values = fitted.window(shape, start, size)
        write_sound(config.out, (2 * values - 1) * fitted.peak, rate, "PCM_16")
    print(f"{fitted.name}: {' x '.join(map(str, size))} -> {config.out}")


def box_of(crop: str | None, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Start and size of the part of a grid that is written.

    Raises InputError where the crop is not four whole numbers of a rectangle within the picture.
    """
    if crop is None:
        return (0,) * len(shape), shape
    allowed = f"top,left,height,width of a part of {' x '.join(map(str, shape))} pixels"
    try:
        top, left, height, width = (int(part) for part in crop.split(","))
    except ValueError:
        raise InputError("crop", crop, allowed) from None
    inside = len(shape) == 2 and min(top, left) >= 0 and top + height <= shape[0] and left + width <= shape[-1]
    if not inside or min(height, width) < 1:
        raise InputError("crop", crop, allowed)
    return (top, left), (height, width)


def write_picture(
    path: Path, fitted: FittedField, shape: tuple[int, ...], start: tuple[int, ...], size: tuple[int, ...]
) -> None:
    """Write a part of a picture; to a TIFF tile by tile where it is large."""
    if path.suffix.lower() not in (".tif", ".tiff") or math.prod(size) <= STREAMED:
        write_image(path, fitted.window(shape, start, size))
        return
    bottom, right = (first + count for first, count in zip(start, size, strict=True))
    boxes = (
        ((top, left), (min(TILE, bottom - top), min(TILE, right - left)))
        for top in range(start[0], bottom, TILE)
        for left in range(start[1], right, TILE)
    )
    write_tiled(path, (fitted.window(shape, *box).numpy() for box in boxes), (size[0], size[1]), fitted.channels)


if __name__ == "__main__":
    main()
