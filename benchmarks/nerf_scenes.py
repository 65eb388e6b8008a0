"""Scenes beside the public ones: three objects, two of them white on white, and a room that fills every pixel.

    python benchmarks/nerf_scenes.py OUT [--views 60] [--size 128]

OUT/orrery, OUT/porcelain and OUT/plaster are Blender scenes (transparent background), OUT/room a nerfstudio scene whose
cameras stand inside textured walls. They are made of the parts of evos/ray_tracing.py, and rendered again only where a
file is missing. No default was chosen on them; porcelain served to find out why EVOS can be below the host.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from einops import reduce
from torch import Tensor

from evos.images import write_image
from evos.ray_tracing import Box, Cylinder, Sphere, Thing, Torus, frame_along, rod, trace
from evos.textures import bricks, globe_checks, marble, plain, ring_checks, stripes
from evos_nerf.scene import CAMERA_ANGLE_X, SAMPLES, camera_poses, camera_rays, render

WALL = 5.0  # half the room's side; the cameras stand at 4 from its centre


def at(*place: float) -> Tensor:
    """A place as a tensor."""
    return torch.tensor(place)


def orrery(generator: torch.Generator) -> list[Thing]:
    """A sun with planets on rods around it, and rings in several planes."""
    planets = [
        (0.0, 0.60, 0.12, globe_checks("f2d16b", "304f8f", 12)),
        (1.3, 0.85, 0.17, marble("dfe6d5", "7b2d43", 0.17, generator)),
        (2.9, 0.95, 0.10, plain("39a9a3")),
        (4.4, 0.75, 0.20, globe_checks("efe7dd", "3a6b35", 20)),
        (5.5, 1.00, 0.08, plain("e4572e")),
    ]
    things = [Thing(Sphere(0.3), marble("ffd166", "d1495b", 0.3, generator), at(0, 0, 0), gloss=0.5)]
    for angle, distance, radius, texture in planets:
        place = (distance * math.cos(angle), distance * math.sin(angle), 0.25 * math.sin(3 * angle))
        things += [Thing(Sphere(radius), texture, at(*place), gloss=0.6), rod((0, 0, 0), place, 0.01, "50514f")]
    for tilt, radius in (((0.2, 0.1, 1.0), 0.55), ((0.9, 0.2, 0.5), 0.45)):
        things.append(Thing(Torus(radius, 0.03), stripes("247ba0", "f3ffbd", 24), at(0, 0, 0), frame_along(at(*tilt))))
    return [*things, rod((0, 0, -0.3), (0, 0, -1.0), 0.04, "3d2c2e")]


def porcelain(generator: torch.Generator) -> list[Thing]:
    """White things on a white table: only shading, shadows and thin blue lines tell them apart."""
    floor, white = -0.5, "fdfdfc"
    things = [
        Thing(Cylinder(1.1, 0.04), plain("ffffff"), at(0, 0, floor - 0.04)),
        Thing(Sphere(0.32), plain(white), at(-0.4, -0.35, floor + 0.32), gloss=0.6),
        Thing(Box(0.25), plain(white), at(0.45, 0.4, floor + 0.25), gloss=0.2),
        Thing(Torus(0.26, 0.08), plain(white), at(-0.4, 0.5, floor + 0.3), frame_along(at(0.8, 0.4, 0.3)), gloss=0.6),
        Thing(Cylinder(0.16, 0.35), plain(white), at(0.45, -0.45, floor + 0.35), gloss=0.4),
        Thing(Sphere(0.16), globe_checks(white, "e3e9f5", 10), at(0.45, -0.45, floor + 0.8), gloss=0.6),
    ]
    return [*things, *[rod((-0.9, y, floor), (-0.9, y, floor + 0.7), 0.012, "6f8fd0") for y in (-0.3, 0.0, 0.3)]]


def plaster(generator: torch.Generator) -> list[Thing]:
    """White casts that stand free before white: no table, steps, a column, and a face of spheres."""
    white = "fcfcfa"
    things = [Thing(Cylinder(0.75 - 0.2 * i, 0.1), plain(white), at(0, 0, -0.8 + 0.2 * i)) for i in range(3)]
    things.append(Thing(Cylinder(0.14, 0.4), plain(white), at(0, 0, 0.1)))
    things.append(Thing(Sphere(0.34), plain(white), at(0, 0, 0.7)))
    for angle in (0.0, 2.1, 4.2):
        place = (0.3 * math.cos(angle), 0.3 * math.sin(angle), 0.78)
        things.append(Thing(Sphere(0.07), plain("f3f4f7"), at(*place), gloss=0.6))
        things.append(Thing(Torus(0.16, 0.03), plain(white), at(*place), frame_along(at(place[0], place[1], 0.2))))
    things.append(rod((0.55, 0.0, -0.7), (0.55, 0.0, 0.5), 0.02, "c9b37c"))
    return [*things, rod((-0.4, 0.45, -0.7), (-0.1, 0.5, 0.6), 0.02, "9aa7a0")]


def furniture(generator: torch.Generator) -> list[Thing]:
    """What stands in the room."""
    return [
        Thing(Cylinder(0.9, 0.05), ring_checks("c9b79c", "54442b", 0.15, 16), at(0, 0, -0.55)),
        Thing(Box(0.35), bricks("8f5d46", "ded3c4", 0.15), at(-0.3, 0.3, -0.15), gloss=0.1),
        Thing(Sphere(0.3), globe_checks("f4f1ea", "2a6f97", 14), at(0.4, -0.3, -0.2), gloss=0.7),
        Thing(Sphere(0.18), marble("f6e7cb", "5f0f40", 0.18, generator), at(0.3, 0.45, -0.32), gloss=0.5),
        rod((0, 0, -0.6), (0, 0, -3.0), 0.08, "2d3142"),
        rod((0.8, 0.8, -3.0), (0.8, 0.8, 1.2), 0.03, "bf8b2e"),
    ]


def walls(origin: Tensor, direction: Tensor) -> Tensor:
    """Colours where rays from inside meet the room's walls: checks, bricks and stripes, darker towards the corners."""
    distance = ((WALL * direction.sign() - origin) / direction).nan_to_num(math.inf, math.inf, math.inf).amin(-1)
    point = origin + distance[:, None] * direction
    face = point.abs().argmax(-1)
    side = 2 * face + (point.gather(1, face[:, None])[:, 0] > 0)
    u, v = point.roll(-1, 1).gather(1, face[:, None])[:, 0], point.roll(-2, 1).gather(1, face[:, None])[:, 0]
    colours = torch.tensor(
        [
            [[0.85, 0.80, 0.70], [0.45, 0.30, 0.25]],
            [[0.75, 0.82, 0.88], [0.20, 0.35, 0.50]],
            [[0.88, 0.75, 0.72], [0.55, 0.20, 0.25]],
            [[0.80, 0.88, 0.76], [0.25, 0.45, 0.25]],
            [[0.70, 0.66, 0.60], [0.35, 0.30, 0.28]],
            [[0.95, 0.95, 0.92], [0.75, 0.75, 0.80]],
        ]
    )
    checks = ((u / 1.25).floor() + (v / 1.25).floor()).remainder(2)
    fine = ((u + 0.5 * v) / 0.35).remainder(1).gt(0.6).float()
    pattern = torch.where(side < 2, checks, torch.where(side < 4, fine, (checks + fine).remainder(2))).long()
    return colours[side, pattern] * (1.1 - 0.5 * (point / WALL).square().sum(-1, keepdim=True) / 3)


def room_view(things: Sequence[Thing], pose: Tensor, size: int) -> Tensor:
    """One view of the room, RGB."""
    origin, direction = camera_rays(pose, size)
    colour, distance = trace(things, origin, direction)
    seen = torch.where(distance.isfinite()[:, None], colour, walls(origin, direction)).clamp(0, 1)
    return reduce(seen, "(h i w j) c -> h w c", "mean", h=size, w=size, i=SAMPLES, j=SAMPLES)


def write_objects(out: Path, things: list[Thing], views: int, size: int, generator: torch.Generator) -> None:
    """A Blender scene."""
    for split, count in {"train": views, "val": views // 4, "test": views // 4}.items():
        (out / split).mkdir(parents=True, exist_ok=True)
        frames = []
        for i, pose in enumerate(camera_poses(split, count, generator)):
            write_image(out / split / f"r_{i}.png", render(things, pose, size))
            frames.append({"file_path": f"./{split}/r_{i}", "transform_matrix": pose.tolist()})
        text = json.dumps({"camera_angle_x": CAMERA_ANGLE_X, "frames": frames})
        (out / f"transforms_{split}.json").write_text(text)


def write_room(out: Path, views: int, size: int, generator: torch.Generator) -> None:
    """A nerfstudio scene."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    things, frames = furniture(generator), []
    for i, pose in enumerate(camera_poses("train", views, generator)):
        write_image(out / "images" / f"r_{i:03d}.png", room_view(things, pose, size))
        frames.append({"file_path": f"images/r_{i:03d}.png", "transform_matrix": pose.tolist()})
    focal = 0.5 * size / math.tan(0.5 * CAMERA_ANGLE_X)
    camera = {"fl_x": focal, "fl_y": focal, "cx": size / 2, "cy": size / 2, "w": size, "h": size}
    (out / "transforms.json").write_text(json.dumps({**camera, "camera_model": "OPENCV", "frames": frames}))


def main() -> None:
    """Write the four scenes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--views", type=int, default=60)
    parser.add_argument("--size", type=int, default=128)
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    for name, build in {"orrery": orrery, "porcelain": porcelain}.items():
        if not (args.out / name / "transforms_test.json").exists():
            write_objects(args.out / name, build(generator), args.views, args.size, generator)
    if not (args.out / "room" / "transforms.json").exists():
        write_room(args.out / "room", args.views, args.size, generator)
    if not (args.out / "plaster" / "transforms_test.json").exists():
        generator = torch.Generator().manual_seed(1)
        write_objects(args.out / "plaster", plaster(generator), args.views, args.size, generator)


if __name__ == "__main__":
    main()
