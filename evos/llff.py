"""LLFF scenes: a folder with poses_bounds.npy, and pictures in images, images_4 or images_8.

Source: Mildenhall et al., "Local Light Field Fusion" (2019).
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from evos.errors import InputError
from evos.images import READ_AS, list_images

DEEP_GREY = ("I;16", "I;16L", "I;16B")
"""Pillow's names of 16-bit grey."""

LARGEST_SIDE = 1600  # nerfstudio's limit where no downscale factor is given


@dataclass(frozen=True)
class LlffScene:
    """An LLFF scene as stored in its files, views sorted by image name."""

    images: list[Path]
    """The pictures, all of one size."""
    height: int
    """Of the pictures, in pixels."""
    width: int
    """Of the pictures, in pixels."""
    poses: Float[Tensor, "N 3 4"]
    """Camera-to-world matrices in OpenGL's axes: x right, y up, looking along -z; world coordinates as in the file."""
    focal: Float[Tensor, "N 2"]
    """Focal lengths along x and y, in pixels of the pictures."""
    bounds: Float[Tensor, "N 2"]
    """Nearest and farthest depth in view, in the file's unit."""


def load_llff(folder: Path, downscale_factor: int | None = None) -> LlffScene:
    """Read a scene with its images downscaled by ``downscale_factor`` (None: see `image_folder`).

    Raises InputError where a file is missing or unreadable, poses_bounds.npy has another shape than N x 17 or values
    that are not finite, focal lengths or bounds are invalid, or the poses don't match the images in number or size.
    """
    folder = Path(folder)
    poses, shape_focal, bounds = read_poses_bounds(folder / "poses_bounds.npy")
    pictures = image_folder(folder, downscale_factor)
    # LLFF sorts names as plain strings: 10.png comes before 2.png.
    images = sorted(list_images(pictures), key=lambda path: path.name)
    if len(images) != len(poses):
        raise InputError(str(pictures), f"{len(images)} images", f"{len(poses)}, as many as poses_bounds.npy has poses")
    height, width = _common_size(images)
    scale = torch.tensor([width, height]) / shape_focal[:, [1, 0]]
    wrong = (scale * factor_of(pictures) - 1).abs().amax(-1) > 0.02
    if wrong.any():
        first = int(wrong.int().argmax())
        full = "{1:g} x {0:g}".format(*shape_focal[first].tolist())
        raise InputError(
            str(images[first]),
            f"{width} x {height} pixels",
            f"{full}, as poses_bounds.npy has it, / {factor_of(pictures)}",
        )
    return LlffScene(images, height, width, poses, shape_focal[:, 2:] * scale, bounds)


def read_poses_bounds(path: Path) -> tuple[Float[Tensor, "N 3 4"], Float[Tensor, "N 3"], Float[Tensor, "N 2"]]:
    """OpenGL camera-to-world matrices, (height, width, focal length) in pixels, and depth bounds of all views.

    A row of the file holds a 3 x 5 matrix, whose columns are the camera's down, right and backward axes, its position
    and (height, width, focal), then the two bounds. Raises InputError as `load_llff`.
    """
    try:
        rows = np.load(path)
    except OSError as error:
        raise InputError(
            str(path), error.strerror or "a file that can't be read", "the poses of an LLFF scene"
        ) from error
    except (ValueError, EOFError) as error:
        raise InputError(str(path), "a file that is no array", "the poses of an LLFF scene") from error
    if rows.ndim != 2 or rows.shape[1] != 17 or not len(rows) or rows.dtype.kind not in "fiu":
        raise InputError(str(path), f"{rows.dtype} array of shape {rows.shape}", "numbers of shape (views, 17)")
    if not np.isfinite(rows).all():
        first = int((~np.isfinite(rows)).any(1).argmax())
        raise InputError(str(path), f"row {first} with values that are not finite", "finite values")
    matrices = rearrange(torch.from_numpy(rows[:, :15]).float(), "N (row column) -> N row column", column=5)
    down, right, back, position, shape_focal = matrices.unbind(-1)
    bounds = torch.from_numpy(rows[:, 15:]).float()
    if (shape_focal <= 0).any():
        raise InputError(str(path), "a height, width or focal length not above 0", "sizes in pixels")
    if (bounds[:, 0] <= 0).any() or (bounds[:, 1] <= bounds[:, 0]).any():
        raise InputError(str(path), "depth bounds out of order", "0 < nearest < farthest in each row")
    return torch.stack([right, -down, back, position], dim=-1), shape_focal, bounds


def image_folder(folder: Path, downscale_factor: int | None) -> Path:
    """The folder of images downscaled by the factor: images (1), images_4, images_8, ...

    None: the largest resolution without a side above 1600 pixels, else the smallest available.
    """
    found = {factor_of(path): path for path in folder.glob("images*") if path.is_dir() and factor_of(path)}
    if not found:
        raise InputError(str(folder), "no folder of pictures", "a folder with images, images_4 or images_8")
    if downscale_factor is not None:
        if downscale_factor not in found:
            there = ", ".join(str(factor) for factor in sorted(found))
            raise InputError("downscale_factor", downscale_factor, f"{there}: the folders that {folder} has")
        return found[downscale_factor]
    for factor in sorted(found):
        if max(image_size(list_images(found[factor])[0])) <= LARGEST_SIDE:
            return found[factor]
    return found[max(found)]


def factor_of(pictures: Path) -> int:
    """The downscale factor stated by a folder's name; 0 if it is not the name of an image folder."""
    match = re.fullmatch(r"images(?:_([1-9]\d*))?", pictures.name)
    return int(match[1] or 1) if match else 0


def image_size(path: Path, modes: tuple[str, ...] = (*READ_AS, *DEEP_GREY)) -> tuple[int, int]:
    """Width and height in pixels, from the file's header.

    Raises InputError where the file is no image, or its mode (Pillow's name) is not among ``modes``.
    """
    try:
        with PIL.Image.open(path) as image:
            size, mode = image.size, image.mode
    except OSError as error:
        reason = (error.strerror or "a file that is no image").lower()
        raise InputError(str(path), reason, "an image") from error
    if mode not in modes:
        raise InputError(str(path), f"an image of mode {mode}", ", ".join(modes))
    return size


def _common_size(images: list[Path]) -> tuple[int, int]:
    width, height = image_size(images[0])
    for path in images:
        if image_size(path) != (width, height):
            raise InputError(
                str(path), "{} x {} pixels".format(*image_size(path)), f"{width} x {height}, as {images[0].name}"
            )
    return height, width
