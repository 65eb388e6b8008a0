"""What is fitted: a signal on a grid, with values in [0, 1]."""

from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from evos.images import list_images, read_image, reduce_image


@dataclass(frozen=True)
class Signal:
    """P values of C channels in [0, 1] on a grid of ``shape``; ``bits`` is the depth its file has per channel."""

    name: str
    values: Float[Tensor, "P C"]
    shape: tuple[int, ...]
    bits: int = 8

    def picture(self, values: Float[Tensor, "P C"]) -> Float[Tensor, "H W C"]:
        """Values of this signal's grid as a picture."""
        return values.reshape(*self.shape, -1)


def from_pixels(name: str, pixels: Float[Tensor, "H W C"], size: int | None = None, bits: int = 8) -> Signal:
    """A picture as a signal, its longer side reduced to ``size`` pixels where that is given."""
    pixels = pixels if size is None else reduce_image(pixels, size)
    return Signal(name, rearrange(pixels, "h w c -> (h w) c").contiguous(), tuple(pixels.shape[:2]), bits)


def astronaut(size: int | None = None) -> Signal:
    """The photo that ships with scikit-image (NASA, public domain)."""
    from skimage.data import astronaut as photo  # a heavy import that only the default input needs

    return from_pixels("astronaut", torch.from_numpy(photo()).float() / 255, size)


def find_inputs(path: str | None) -> list[Path | None]:
    """The pictures that ``--input`` names; None stands for the embedded photo."""
    return [None] if path is None else list(list_images(Path(path)))


def folder_name(path: Path) -> str:
    """A picture's name for its run's folder, its own among all pictures of a folder: cat.png and cat.jpg differ."""
    return f"{path.stem}_{path.suffix[1:]}"


def load(path: Path | None, size: int | None) -> Signal:
    """The signal in a file; None: the embedded photo. Raises InputError for what can't be read."""
    if path is None:
        return astronaut(size)
    image = read_image(path)
    return from_pixels(path.stem, image.pixels, size, image.bits)
