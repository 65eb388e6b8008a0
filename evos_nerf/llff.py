"""LLFF scenes for nerfstudio: `ns-train METHOD llff-data --data FOLDER`.

A scene is a folder with poses_bounds.npy and its pictures in images, images_4 or images_8. Source: Mildenhall et al.,
"Local Light Field Fusion" (2019) for the format, "NeRF" (2020) for the average camera, the scale and the held-out
views. What differs: the average camera looks along +y with z up, as nerfstudio's viewer expects (NeRF: along -z with y
up; `NERF_AXES` turns one into the other), and a view's focal length follows the size its picture really has.
"""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.plugins.registry_dataparser import DataParserSpecification
from torch import Tensor

from evos.config import check_range
from evos.errors import InputError
from evos.images import list_images

LARGEST_SIDE = 1600  # nerfstudio's limit where no downscale factor is given
NERF_AXES = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
"""Turns our world (z up, looking along +y) into NeRF's (y up, looking along -z), the one its NDC are defined in."""


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


def image_size(path: Path, modes: tuple[str, ...] = ("L", "RGB", "RGBA")) -> tuple[int, int]:
    """Width and height in pixels, from the file's header.

    Raises InputError where the file is no image, or its mode (Pillow's name) is one that nerfstudio's loader misreads.
    """
    try:
        with PIL.Image.open(path) as image:
            size, mode = image.size, image.mode
    except OSError as error:
        raise InputError(str(path), "a file that is no image", "an image") from error
    if mode not in modes:
        raise InputError(str(path), f"an image of mode {mode}", ", ".join(modes))
    return size


def average_pose(poses: Float[Tensor, "N 3 4"]) -> Float[Tensor, "3 4"]:
    """The average camera: mean position, mean viewing direction, and the mean up vector orthogonalized against it."""
    back = F.normalize(poses[:, :, 2].sum(0), dim=0)
    right = F.normalize(torch.linalg.cross(poses[:, :, 1].sum(0), back), dim=0)
    return torch.stack([right, torch.linalg.cross(back, right), back, poses[:, :, 3].mean(0)], dim=-1)


def world_transform(poses: Float[Tensor, "N 3 4"]) -> Float[Tensor, "3 4"]:
    """The rigid motion that puts the average camera at the origin, looking along +y with z up."""
    middle = average_pose(poses)
    rotation = NERF_AXES.T @ middle[:, :3].T
    return torch.cat([rotation, -rotation @ middle[:, 3:]], dim=-1)


def apply_transform(
    transform: Float[Tensor, "3 4"], scale: float, poses: Float[Tensor, "N 3 4"]
) -> Float[Tensor, "N 3 4"]:
    """Apply a rigid transform of the world, then a scale, to camera-to-world matrices."""
    moved = transform[:, :3] @ poses
    moved[..., 3] = scale * (moved[..., 3] + transform[:, 3])
    return moved


@dataclass
class LlffDataParserConfig(DataParserConfig):
    """LLFF scenes: poses_bounds.npy beside images, images_4 or images_8."""

    _target: type = field(default_factory=lambda: LlffDataParser)
    data: Path = Path("data/nerf_llff_data/fern")
    """Folder of the scene."""
    downscale_factor: int | None = None
    """Image folder: 8 is images_8, 1 is images; none: the largest resolution without a side above 1600 pixels."""
    eval_interval: int = 8
    """Every eval_interval-th view, from the first, is held out for validation and test; at least 2."""
    nearest: float = 4 / 3
    """Distance of the nearest depth bound after scaling, above 0 (NeRF's 1 / 0.75)."""

    def __post_init__(self) -> None:
        check_range("downscale_factor", self.downscale_factor, 1)
        check_range("eval_interval", self.eval_interval, 2)
        check_range("nearest", self.nearest, 0, math.inf, open_low=True)


@dataclass
class LlffDataParser(DataParser):
    """Turns an LLFF scene into nerfstudio's cameras; `metadata["bounds"]` has each view's depth bounds, scaled.

    `metadata["ndc"]` defines normalised device coordinates (evos_nerf/rendering.py): the first view's focal
    lengths over half its width and height, and the distance of the near plane, NeRF's three quarters of `nearest`.
    """

    config: LlffDataParserConfig

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: Any) -> DataparserOutputs:
        scene = load_llff(self.config.data, self.config.downscale_factor)
        held_out = torch.arange(len(scene.images)) % self.config.eval_interval == 0
        chosen = (~held_out if split == "train" else held_out).nonzero()[:, 0]
        if not len(chosen):
            raise InputError(str(self.config.data), f"{len(scene.images)} views", "at least 2, one of them held out")
        transform, scale = world_transform(scene.poses), self.config.nearest / float(scene.bounds.min())
        poses, bounds = apply_transform(transform, scale, scene.poses), scale * scene.bounds
        width_height = torch.tensor([scene.width, scene.height])
        ndc = torch.cat([2 * scene.focal[0] / width_height, torch.tensor([0.75 * self.config.nearest])])
        reach = float(bounds.max() + poses[..., 3].norm(dim=-1).max())
        cameras = Cameras(
            camera_to_worlds=poses[chosen],
            fx=scene.focal[chosen, 0],
            fy=scene.focal[chosen, 1],
            cx=scene.width / 2,
            cy=scene.height / 2,
            width=scene.width,
            height=scene.height,
            camera_type=CameraType.PERSPECTIVE,
        )
        return DataparserOutputs(
            image_filenames=[scene.images[i] for i in chosen],
            cameras=cameras,
            scene_box=SceneBox(aabb=torch.tensor([[-reach] * 3, [reach] * 3])),
            metadata={"bounds": bounds[chosen], "ndc": ndc},
            dataparser_transform=transform,
            dataparser_scale=scale,
        )


def _common_size(images: list[Path]) -> tuple[int, int]:
    width, height = image_size(images[0])
    for path in images:
        if image_size(path) != (width, height):
            raise InputError(
                str(path), "{} x {} pixels".format(*image_size(path)), f"{width} x {height}, as {images[0].name}"
            )
    return height, width


llff_data = DataParserSpecification(config=LlffDataParserConfig(), description="LLFF scenes (poses_bounds.npy)")
