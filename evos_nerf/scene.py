"""An embedded ray-traced scene: textured solids and thin rods with highlights, shadows and a transparent background.

    python -m evos_nerf.scene --out DIR --views 40 --size 100

Files are in the Blender format of NeRF-synthetic: transforms_{train,val,test}.json, RGBA PNGs whose background is
transparent, camera-to-world matrices in OpenGL's axes (x right, y up, looking along -z), the world's z up.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from evos import ray_tracing
from evos.command_line import parse_options
from evos.config import check_range
from evos.errors import exit_on_input_error
from evos.images import write_image
from evos.ray_tracing import Box, Cylinder, Points, Sphere, Thing, Torus, frame_along, rod, trace
from evos.runs.files import write_json
from evos.runs.outputs import check_generated, whole_folder
from evos.runs.progress import Progress
from evos.textures import bricks, globe_checks, marble, plain, ring_checks, stripes

CAMERA_ANGLE_X = 0.6911112070083618  # NeRF-synthetic's field of view, radians
RADIUS = 4.0  # of the sphere the cameras stand on; the objects lie within 1.25 of its centre
SAMPLES = 2  # rays along each side of a pixel
GENERATOR = "evos_nerf.scene"  # written into the JSON files; --overwrite replaces only scenes that have it
FILES = ("transforms_*.json", "train/r_*.png", "val/r_*.png", "test/r_*.png")


@dataclass(frozen=True)
class SceneConfig:
    """Options of the scene."""

    out: str = "runs/scene"
    """Folder to write."""

    views: int = 40
    """Training views, at least 1; validation and test have a quarter as many each, at least 2."""

    size: int = 100
    """Side of the square pictures in pixels, 8 to 2048."""

    seed: int = 0
    """Seed of the camera positions and of the textures' noise, at least 0."""

    overwrite: bool = False
    """Replace a scene that this program wrote."""

    def __post_init__(self) -> None:
        check_range("views", self.views, 1)
        check_range("size", self.size, 8, 2048)
        check_range("seed", self.seed, 0, 2**63 - 1)


# The scene.


def build_scene(generator: torch.Generator) -> list[Thing]:
    """A table with a checkered ball, a marble, a brick and a striped ring under a tripod of rods with a pendulum."""
    floor = -0.52

    def ball(x: float, y: float, radius: float) -> Float[Tensor, "3"]:
        return torch.tensor([x, y, floor + radius])

    turn = math.radians(25)
    turned = torch.tensor(
        [[math.cos(turn), -math.sin(turn), 0.0], [math.sin(turn), math.cos(turn), 0.0], [0.0, 0.0, 1.0]]
    )
    table = Cylinder(1.1, 0.05)
    things = [
        Thing(table, ring_checks("d9c7a3", "6f5a3e", 0.165, 18), torch.tensor([0.0, 0.0, floor - 0.05])),
        Thing(Sphere(0.36), globe_checks("f4f1ea", "c8342c", 16), ball(-0.45, -0.42, 0.36), turned, gloss=0.8),
        Thing(Sphere(0.27), marble("e8eef5", "1f4f8f", 0.27, generator), ball(0.52, -0.46, 0.27), gloss=0.6),
        Thing(Box(0.27), bricks("b5533c", "e6dccb", 0.13), ball(0.36, 0.46, 0.27), turned),
        Thing(
            Torus(0.27, 0.09),
            stripes("2f9e6e", "f2c14e", 12),
            torch.tensor([-0.5, 0.45, floor + 0.35]),
            frame_along(torch.tensor([0.8, 0.5, 0.25])),
            gloss=0.7,
        ),
        Thing(Sphere(0.1), plain("8d5fd3"), torch.tensor([0.0, 0.0, 0.18]), gloss=1.0),
    ]
    apex = (0.0, 0.0, 1.05)
    feet = [(math.cos(a), math.sin(a), floor) for a in (0.3, 0.3 + 2 * math.pi / 3, 0.3 + 4 * math.pi / 3)]
    waists = [tuple(0.55 * a + 0.45 * f for a, f in zip(apex, foot, strict=True)) for foot in feet]
    things += [rod(foot, apex, 0.018, "3a4250") for foot in feet]
    things += [rod(waists[i], waists[i - 1], 0.012, "e07b39") for i in range(3)]
    return [*things, rod((0.0, 0.0, 0.25), apex, 0.008, "20242c")]


# Cameras and files.


def look_at_centre(position: Float[Tensor, "3"]) -> Float[Tensor, "4 4"]:
    """Camera-to-world matrix (OpenGL axes) of an upright camera that looks at the world's origin."""
    back = F.normalize(position, dim=0)
    right = F.normalize(torch.linalg.cross(torch.tensor([0.0, 0.0, 1.0]), back), dim=0)
    pose = torch.eye(4)
    pose[:3] = torch.stack([right, torch.linalg.cross(back, right), back, position], dim=1)
    return pose


def on_sphere(azimuth: Float[Tensor, "N"], height: Float[Tensor, "N"]) -> Points:
    """Positions at `RADIUS` from the centre; height is the sine of the elevation."""
    across = (1 - height.square()).sqrt()
    return RADIUS * torch.stack([across * azimuth.cos(), across * azimuth.sin(), height], dim=-1)


def camera_poses(split: str, count: int, generator: torch.Generator) -> Float[Tensor, "N 4 4"]:
    """Random positions, uniform over the upper hemisphere; for the test split an orbit that rises from 10° to 60°."""
    if split == "test":
        turn = torch.linspace(0, 1, count)
        positions = on_sphere(2 * math.pi * turn, torch.sin(torch.deg2rad(10 + 50 * turn)))
    else:
        draws = torch.rand(count, 2, generator=generator)
        # Not the pole itself, where upright is not defined.
        positions = on_sphere(2 * math.pi * draws[:, 0], 0.05 + 0.94 * draws[:, 1])
    return torch.stack([look_at_centre(position) for position in positions])


def camera_rays(pose: Float[Tensor, "4 4"], size: int, samples: int = SAMPLES) -> tuple[Points, Points]:
    """Origins and unit directions of samples × samples rays for each pixel, ordered as an image (size·samples)²."""
    return ray_tracing.camera_rays(pose, size, size, CAMERA_ANGLE_X, samples)


def render(things: Sequence[Thing], pose: Float[Tensor, "4 4"], size: int) -> Float[Tensor, "H W 4"]:
    """One view as straight RGBA: the colour is the mean over the rays that hit, alpha the fraction that hit."""
    colour, distance = trace(things, *camera_rays(pose, size))
    pattern = "(H i W j) C -> H W C"
    colour, alpha = (
        reduce(values, pattern, "mean", H=size, W=size, i=SAMPLES, j=SAMPLES)
        for values in (colour, distance.isfinite()[:, None].float())
    )
    return torch.cat([colour / alpha.clamp(min=1 / SAMPLES**2), alpha], dim=-1)


def write_scene(config: SceneConfig, quiet: bool = False) -> Path:
    """Render all splits into a folder that appears only once complete; the same seed gives the same files.

    Raises InputError where the folder exists (unless it is a scene of ours and `overwrite` is set) or can't be written.
    """
    out = Path(config.out)
    check_scene_folder(out, config.overwrite)
    with whole_folder(out, "--out") as folder:
        _write_splits(folder, config, quiet)
    return out


def _write_splits(folder: Path, config: SceneConfig, quiet: bool) -> None:
    generator = torch.Generator().manual_seed(config.seed)
    things = build_scene(generator)
    held_out = max(2, config.views // 4)
    counts = {"train": config.views, "val": held_out, "test": held_out}
    with Progress(sum(counts.values()), "views", quiet=quiet) as progress:
        done = 0
        for split, count in counts.items():
            (folder / split).mkdir(parents=True)
            frames = []
            for i, pose in enumerate(camera_poses(split, count, generator)):
                write_image(folder / split / f"r_{i}.png", render(things, pose, config.size))
                frames.append({"file_path": f"./{split}/r_{i}", "transform_matrix": pose})
                progress.update(done := done + 1)
            content = {"generator": GENERATOR, "camera_angle_x": CAMERA_ANGLE_X, "frames": frames}
            write_json(folder / f"transforms_{split}.json", content)


def check_scene_folder(out: Path, overwrite: bool) -> None:
    """Raise InputError unless ``out`` is new or empty, or a scene of this program alone and ``overwrite`` is true."""
    check_generated(
        out, FILES, overwrite, about="transforms_train.json", generator=GENERATOR, what="a scene", argument="--out"
    )


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """The program."""
    config = parse_options(SceneConfig, argv, "python -m evos_nerf.scene", __doc__ or "", "--")
    print(f"scene: {write_scene(config)}")


if __name__ == "__main__":
    main()
