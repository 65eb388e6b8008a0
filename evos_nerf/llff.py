"""LLFF scenes for nerfstudio: `ns-train METHOD llff-data --data FOLDER`.

A scene is a folder with poses_bounds.npy and its pictures in images, images_4 or images_8. Source: Mildenhall et al.,
"Local Light Field Fusion" (2019) for the format, "NeRF" (2020) for the average camera, the scale and the held-out
views. What differs: the average camera looks along +y with z up, as nerfstudio's viewer expects (NeRF: along -z with y
up; `NERF_AXES` turns one into the other), and a view's focal length follows the size its picture really has.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.plugins.registry_dataparser import DataParserSpecification
from torch import Tensor

from evos.config import check_range
from evos.errors import InputError
from evos.llff import load_llff

NERF_AXES = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
"""Turns our world (z up, looking along +y) into NeRF's (y up, looking along -z), the one its NDC are defined in."""


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


llff_data = DataParserSpecification(config=LlffDataParserConfig(), description="LLFF scenes (poses_bounds.npy)")
