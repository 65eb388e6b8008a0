"""Write a fitted signal at any resolution, from a finished run.

    evos render runs/photo --size 2048 --out big.png
    evos render run=runs/speech out=speech.wav
    evos render runs/clip --size 512 --frames 240 --out slow.mp4
    evos render runs/bunny --size 256 --out bunny.obj
    evos render runs/huge --crop 4000,9000,1024,1024 --out part.png

New pixels, frames and voxels lie between the corners of the old grid: its first and last keep their places.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evos.command_line import parse_options
from evos.config import check_range
from evos.errors import InputError, exit_on_input_error
from evos.fitted import load
from evos.runs.outputs import check_new_file
from image_regression.media import MEDIA


@dataclass(frozen=True)
class RenderConfig:
    """Options of rendering."""

    run: str = ""
    """Folder of the finished run, or its field.safetensors."""

    out: str = ""
    """File to write: a picture (png jpg tiff webp bmp), a sound (wav flac ogg mp3), a video (mp4 mov mkv gif), a volume
    (npy tif nii nii.gz) or a mesh (obj ply stl off)."""

    size: int | None = None
    """Longer side in pixels (of each frame), number of samples, voxels along the longest axis or grid points along each
    axis of a shape, at least 2; none: the signal's own."""

    frames: int | None = None
    """Of a video, number of frames over the same time, at least 2; none: its own."""

    crop: str | None = None
    """Part to write of a picture of that size: top,left,height,width in pixels; none: all of it."""

    overwrite: bool = False
    """Replace a file that exists."""

    def __post_init__(self) -> None:
        check_range("size", self.size, 2)
        check_range("frames", self.frames, 2)
        for name in ("run", "out"):
            if not getattr(self, name):
                raise InputError(name, None, f"{name}=PATH")


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """The program; the run may be its first word."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and "=" not in words[0] and not words[0].startswith("-"):
        words[0] = f"run={words[0]}"
    config = parse_options(RenderConfig, words, "evos render", "Write a fitted signal at any resolution.")
    check_new_file(Path(config.out), config.overwrite)
    fitted = load(config.run)
    if config.frames is not None and fitted.kind != "video":
        raise InputError("frames", config.frames, f"none for a {fitted.kind}")
    if config.crop is not None and fitted.kind != "picture":
        raise InputError("crop", config.crop, f"none for a {fitted.kind}")
    medium = MEDIA[fitted.kind]
    shape = medium.resized(fitted.shape, config.size, config.frames)
    start, size = box_of(config.crop, shape)
    medium.render(Path(config.out), fitted, shape, start, size)
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


if __name__ == "__main__":
    main()
