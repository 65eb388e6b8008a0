"""Pictures of kinds that nerfstudio's loader takes for something else: palettes, print colours, 16-bit grey, 1 bit, and
grey with alpha.

The loader takes the numbers in a file for 8-bit grey, RGB or RGBA, whatever they are: those of a palette become grey,
the fourth ink of print colours becomes alpha, and of 16 bits the lower eight are kept. ``evos.images`` reads the same
kinds, but turns them upright, which the loader does not: a scene's cameras are those of the picture as it is stored.
"""

from functools import partial
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import UInt8
from nerfstudio.data.datasets.base_dataset import InputDataset

from evos.images import READ_AS
from evos.llff import DEEP_GREY

READ_RIGHT = ("L", "RGB", "RGBA")
"""Pillow's names of what nerfstudio's loader reads as it is meant."""


class ReadsPictures:
    """Mixin for a host's data manager: its data sets read pictures of all kinds as they are meant."""

    def create_train_dataset(self) -> Any:
        """The host's."""
        return reading_all_kinds(super().create_train_dataset())  # type: ignore

    def create_eval_dataset(self) -> Any:
        """The host's."""
        return reading_all_kinds(super().create_eval_dataset())  # type: ignore


def reading_all_kinds(dataset: Any) -> Any:
    """The data set, whose pictures are now read by ``read_picture``, unless its class reads them in its own way."""
    if getattr(type(dataset), "get_numpy_image", None) is InputDataset.get_numpy_image:
        dataset.get_numpy_image = partial(read_picture, dataset, dataset.get_numpy_image)
    return dataset


def read_picture(dataset: InputDataset, as_host: Any, number: int) -> UInt8[np.ndarray, "H W C"]:
    """RGB or RGB + alpha of a picture of the data set: read ``as_host`` does where that is right, else converted."""
    with PIL.Image.open(dataset.image_filenames[number]) as opened:
        if opened.mode in READ_RIGHT:
            return as_host(number)
        picture = eight_bit(opened)
    if dataset.scale_factor != 1.0:
        size = [int(side * dataset.scale_factor) for side in picture.size]
        picture = picture.resize(size, resample=PIL.Image.Resampling.BILINEAR)
    return np.array(picture)


def eight_bit(picture: PIL.Image.Image) -> PIL.Image.Image:
    """A picture in 8-bit RGB, with alpha if it has any."""
    if picture.mode in DEEP_GREY:
        grey = np.asarray(picture).astype(np.float32) * (255 / 65535)
        picture = PIL.Image.fromarray(grey.round().astype(np.uint8))
    has_alpha = READ_AS[picture.mode].endswith("A") or "transparency" in picture.info
    return picture.convert("RGBA" if has_alpha else "RGB")
