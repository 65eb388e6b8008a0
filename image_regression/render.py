"""Write a fitted picture or sound at any resolution, from a finished run.

    evos render runs/photo --size 2048 --out big.png
    evos render run=runs/speech out=speech.wav

A picture's new pixels lie between the corners of the old ones: its first and last keep their places.
"""

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


@dataclass(frozen=True)
class RenderConfig:
    """Options of rendering."""

    run: str = ""
    """Folder of the finished run, or its field.safetensors."""

    out: str = ""
    """File to write: a picture (png jpg tiff webp bmp) or a sound (wav flac ogg)."""

    size: int | None = None
    """Longer side in pixels, or number of samples, at least 2; none: the signal's own."""

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
    values = fitted.sample(shape)
    if fitted.rate is None:
        write_image(config.out, values)
    else:
        assert fitted.peak is not None
        # As long as the sound was, so at a rate in proportion.
        rate = round(fitted.rate * shape[0] / fitted.shape[0])
        write_sound(config.out, (2 * values - 1) * fitted.peak, rate, "PCM_16")
    print(f"{fitted.name}: {' x '.join(map(str, shape))} -> {config.out}")


if __name__ == "__main__":
    main()
