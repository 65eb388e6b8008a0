"""An embedded ray-traced scene: textured solids and thin rods with highlights, shadows and a transparent background.

    python -m evos_nerf.scene --out DIR --views 40 --size 100

Files are in the Blender format of NeRF-synthetic: transforms_{train,val,test}.json, RGBA PNGs whose background is
transparent, camera-to-world matrices in OpenGL's axes (x right, y up, looking along -z), the world's z up.
"""

import math
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from evos.command_line import parse_options
from evos.config import check_range
from evos.errors import InputError, exit_on_input_error
from evos.images import write_image
from evos.runs.files import read_json, write_json
from evos.runs.outputs import check_folder
from evos.runs.progress import Progress

CAMERA_ANGLE_X = 0.6911112070083618  # NeRF-synthetic's field of view, radians
RADIUS = 4.0  # of the sphere the cameras stand on; the objects lie within 1.25 of its centre
SAMPLES = 2  # rays along each side of a pixel
GENERATOR = "evos_nerf.scene"  # written into the JSON files; --overwrite replaces only scenes that have it
FILES = ("transforms_*.json", "train/r_*.png", "val/r_*.png", "test/r_*.png")

Points = Float[Tensor, "N 3"]
Texture = Callable[[Points], Points]


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


# Shapes, each in coordinates of its own.


class Shape(ABC):
    """A solid around the origin of its own coordinates; rays are origin + t * direction, the direction of length 1."""

    @abstractmethod
    def hit(self, origin: Points, direction: Points) -> Float[Tensor, "N"]:
        """Distance along each ray to where it enters the solid, inf where it misses; rays start outside."""

    @abstractmethod
    def normal(self, point: Points) -> Points:
        """Outward unit normal at points of the surface."""


@dataclass(frozen=True)
class Sphere(Shape):
    """A ball of the given radius."""

    radius: float

    def hit(self, origin: Points, direction: Points) -> Float[Tensor, "N"]:
        return _entry(*_quadratic(origin, direction, self.radius))

    def normal(self, point: Points) -> Points:
        return F.normalize(point, dim=-1)


@dataclass(frozen=True)
class Box(Shape):
    """A cube of the given half side."""

    half: float

    def hit(self, origin: Points, direction: Points) -> Float[Tensor, "N"]:
        near, far = _slab(origin, direction, self.half)
        return _entry(near.amax(-1), far.amin(-1))

    def normal(self, point: Points) -> Points:
        face = F.one_hot(point.abs().argmax(-1), 3)
        return face * point.sign()


@dataclass(frozen=True)
class Cylinder(Shape):
    """A closed cylinder around the z axis: a disc when flat, a rod when thin."""

    radius: float
    half: float

    def hit(self, origin: Points, direction: Points) -> Float[Tensor, "N"]:
        near, far = _quadratic(origin[:, :2], direction[:, :2], self.radius)
        bottom, top = _slab(origin[:, 2], direction[:, 2], self.half)
        return _entry(torch.maximum(near, bottom), torch.minimum(far, top))

    def normal(self, point: Points) -> Points:
        on_cap = (point[:, 2:].abs() - self.half).abs() < (point[:, :2].norm(dim=-1, keepdim=True) - self.radius).abs()
        cap = point.sign() * point.new_tensor([0.0, 0.0, 1.0])
        return torch.where(on_cap, cap, F.normalize(point * point.new_tensor([1.0, 1.0, 0.0]), dim=-1))


@dataclass(frozen=True)
class Torus(Shape):
    """A ring around the z axis; found by sphere tracing, since its quartic is ill-conditioned in float32."""

    radius: float
    tube: float

    def hit(self, origin: Points, direction: Points) -> Float[Tensor, "N"]:
        near, far = _quadratic(origin, direction, self.radius + self.tube)
        result = torch.full_like(near, math.inf)
        candidates = _entry(near, far).isfinite().nonzero()[:, 0]
        t, far = near[candidates].clamp(min=0), far[candidates]
        for _ in range(64):
            distance = self._distance(origin[candidates] + t[:, None] * direction[candidates])
            t = t + distance
        result[candidates] = torch.where((distance.abs() < 1e-3) & (t < far), t, math.inf)
        return result

    def normal(self, point: Points) -> Points:
        ring = self.radius * F.normalize(point * point.new_tensor([1.0, 1.0, 0.0]), dim=-1)
        return F.normalize(point - ring, dim=-1)

    def _distance(self, point: Points) -> Float[Tensor, "N"]:
        return torch.hypot(point[:, :2].norm(dim=-1) - self.radius, point[:, 2]) - self.tube


def _quadratic(
    origin: Float[Tensor, "N D"], direction: Float[Tensor, "N D"], radius: float
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """Where rays enter and leave a ball, or in 2-D an endless cylinder; nan where they miss it."""
    # Not 0 along the axis of a cylinder, which such a ray never enters or never leaves.
    a, b = direction.square().sum(-1).clamp(min=1e-12), (origin * direction).sum(-1)
    # From the point nearest the centre, not b² - ac: that difference cancels for a thin rod far away.
    nearest = origin - (b / a)[:, None] * direction
    half = ((radius**2 - nearest.square().sum(-1)) / a).sqrt()
    return -b / a - half, -b / a + half


def _slab(
    origin: Float[Tensor, "*N"], direction: Float[Tensor, "*N"], half: float
) -> tuple[Float[Tensor, "*N"], Float[Tensor, "*N"]]:
    """Where rays enter and leave the space between -half and half along one axis."""
    direction = torch.where(direction.abs() < 1e-9, 1e-9, direction)
    middle, width = -origin / direction, half / direction.abs()
    return middle - width, middle + width


def _entry(near: Float[Tensor, "N"], far: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
    """Distance to the entry into a convex solid; inf for rays that miss it (nan) or have it behind them."""
    return torch.where((near < far) & (far > 0), near, math.inf)


# Textures: points in a shape's own coordinates to colours in [0, 1].


def rgb(code: str) -> Float[Tensor, "3"]:
    """The colour of a six-digit hexadecimal code."""
    return torch.tensor(list(bytes.fromhex(code))) / 255


def plain(colour: str) -> Texture:
    """One colour."""
    return lambda point: rgb(colour).expand_as(point)


def _mix(fraction: Float[Tensor, "N"], first: str, second: str) -> Points:
    return torch.lerp(rgb(first), rgb(second), fraction[:, None])


def globe_checks(first: str, second: str, count: int) -> Texture:
    """Checks between circles of latitude and longitude, `count` of them around the equator."""

    def texture(point: Points) -> Points:
        longitude = torch.atan2(point[:, 1], point[:, 0]) / (2 * math.pi) * count
        latitude = torch.asin(F.normalize(point, dim=-1)[:, 2]) / math.pi * (count / 2)
        return _mix((longitude.floor() + latitude.floor()).remainder(2), first, second)

    return texture


def ring_checks(first: str, second: str, side: float, count: int) -> Texture:
    """Checks between rings `side` wide and `count` spokes, seen from above."""

    def texture(point: Points) -> Points:
        ring = (point[:, :2].norm(dim=-1) / side).floor()
        spoke = (torch.atan2(point[:, 1], point[:, 0]) / (2 * math.pi) * count).floor()
        return _mix((ring + spoke).remainder(2), first, second)

    return texture


def bricks(stone: str, mortar: str, height: float) -> Texture:
    """Courses of bricks around the upright faces, tiles on the others."""

    def texture(point: Points) -> Points:
        top = point[:, 2].abs() > point[:, :2].abs().amax(-1)
        along = torch.where(point[:, 0].abs() > point[:, 1].abs(), point[:, 1], point[:, 0])
        row, column = torch.where(top, point[:, 1], point[:, 2]) / height, torch.where(top, point[:, 0], along) / height
        column = column / 2 + 0.5 * row.floor().remainder(2)
        gap = torch.minimum(row - row.floor(), 2 * (column - column.floor())) < 0.18
        shade = 0.75 + 0.25 * (row.floor() * 3 + column.floor() * 5).remainder(4)[:, None] / 3
        return torch.where(gap[:, None], rgb(mortar), rgb(stone) * shade)

    return texture


def stripes(first: str, second: str, count: int) -> Texture:
    """Stripes winding around a ring."""

    def texture(point: Points) -> Points:
        turn = torch.atan2(point[:, 1], point[:, 0]) / (2 * math.pi) * count
        return _mix((turn + 4 * point[:, 2]).remainder(1).gt(0.5).float(), first, second)

    return texture


def marble(first: str, second: str, radius: float, generator: torch.Generator) -> Texture:
    """Veins: a wave bent by four octaves of noise."""
    lattices = [torch.rand(2 ** (k + 2), 2 ** (k + 2), 2 ** (k + 2), generator=generator) for k in range(4)]

    def texture(point: Points) -> Points:
        where = rearrange(point / radius, "N D -> 1 N 1 1 D")
        octaves = [
            F.grid_sample(rearrange(grid, "X Y Z -> 1 1 X Y Z"), where, align_corners=True).flatten() / 2**k
            for k, grid in enumerate(lattices)
        ]
        wave = torch.sin(6 * point[:, 0] / radius + 9 * torch.stack(octaves).sum(0))
        return _mix(1 - wave.abs().sqrt(), first, second)

    return texture


# The scene.


@dataclass(frozen=True)
class Thing:
    """A shape with its position, orientation and texture."""

    shape: Shape
    texture: Texture
    centre: Float[Tensor, "3"]
    axes: Float[Tensor, "3 3"] = field(default_factory=lambda: torch.eye(3))
    """Columns: the shape's own axes in the world's coordinates."""
    gloss: float = 0.0
    """Strength of the highlight, 0 to 1."""

    def inside(self, vector: Points, is_point: bool = True) -> Points:
        """The world's points, or directions, in the shape's own coordinates."""
        return (vector - self.centre if is_point else vector) @ self.axes


def frame_along(axis: Float[Tensor, "3"]) -> Float[Tensor, "3 3"]:
    """Three orthonormal columns, the last along `axis`."""
    z = F.normalize(axis, dim=0)
    helper = torch.eye(3)[int(z.abs().argmin())]
    x = F.normalize(torch.linalg.cross(helper, z), dim=0)
    return torch.stack([x, torch.linalg.cross(z, x), z], dim=1)


def rod(start: Sequence[float], end: Sequence[float], radius: float, colour: str) -> Thing:
    """A thin glossy cylinder between two points."""
    a, b = torch.tensor(start), torch.tensor(end)
    shape = Cylinder(radius, float((b - a).norm()) / 2)
    return Thing(shape, plain(colour), (a + b) / 2, frame_along(b - a), gloss=0.4)


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


def first_hit(
    things: Sequence[Thing], origin: Points, direction: Points
) -> tuple[Float[Tensor, "N"], Int[Tensor, "N"]]:
    """Distance to the first object on each ray, inf where there is none, and its index in ``things``."""
    distances = [
        thing.shape.hit(thing.inside(origin), thing.inside(direction, is_point=False)).nan_to_num(math.inf, math.inf)
        for thing in things
    ]
    distance, number = torch.stack(distances).min(0)
    return distance, number


def trace(things: Sequence[Thing], origin: Points, direction: Points) -> tuple[Points, Bool[Tensor, "N"]]:
    """Colours in [0, 1] along rays that start outside all objects, 0 where they hit none, and whether they hit one.

    One distant light from above with hard shadows, light from the sky that falls off with the normal's tilt, and a
    white highlight (Blinn's half vector).
    """
    colour = torch.zeros_like(origin)
    distance, number = first_hit(things, origin, direction)
    point = origin + distance[:, None] * direction
    to_light = F.normalize(torch.tensor([0.5, -0.35, 0.9]), dim=0)
    for i, thing in enumerate(things):
        mine = ((number == i) & distance.isfinite()).nonzero()[:, 0]
        own = thing.inside(point[mine])
        normal = thing.shape.normal(own) @ thing.axes.T
        # Offset from the surface beyond float32 rounding, so that an object does not shadow itself.
        start = point[mine] + 2e-3 * normal
        lit = first_hit(things, start, to_light.expand_as(start))[0].isinf()
        sun = (normal @ to_light).clamp(min=0) * lit
        sky = 0.35 + 0.15 * normal[:, 2]
        half = F.normalize(to_light - direction[mine], dim=-1)
        highlight = thing.gloss * (normal * half).sum(-1).clamp(min=0) ** 30 * lit
        colour[mine] = thing.texture(own) * (sky + 0.7 * sun)[:, None] + 0.8 * highlight[:, None]
    return colour.clamp(0, 1), distance.isfinite()


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
    side = size * samples
    focal = 0.5 * side / math.tan(0.5 * CAMERA_ANGLE_X)
    across = (torch.arange(side) + 0.5 - side / 2) / focal
    y, x = torch.meshgrid(-across, across, indexing="ij")
    direction = rearrange(torch.stack([x, y, -torch.ones_like(x)]), "D H W -> (H W) D")
    direction = F.normalize(direction @ pose[:3, :3].T, dim=-1)
    return repeat(pose[:3, 3], "D -> N D", N=len(direction)), direction


def render(things: Sequence[Thing], pose: Float[Tensor, "4 4"], size: int) -> Float[Tensor, "H W 4"]:
    """One view as straight RGBA: the colour is the mean over the rays that hit, alpha the fraction that hit."""
    colour, hit = trace(things, *camera_rays(pose, size))
    pattern = "(H i W j) C -> H W C"
    colour, alpha = (
        reduce(values, pattern, "mean", H=size, W=size, i=SAMPLES, j=SAMPLES)
        for values in (colour, hit[:, None].float())
    )
    return torch.cat([colour / alpha.clamp(min=1 / SAMPLES**2), alpha], dim=-1)


def write_scene(config: SceneConfig, quiet: bool = False) -> Path:
    """Render all splits into a folder that appears only once complete; the same seed gives the same files.

    Raises InputError where the folder exists (unless it is a scene of ours and `overwrite` is set) or can't be written.
    """
    out = Path(config.out)
    check_scene_folder(out, config.overwrite)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        _write_splits(temporary, config, quiet)
        if out.exists():
            shutil.rmtree(out)
        temporary.rename(out)
    except OSError as error:
        raise InputError("--out", f"{out} ({error.strerror})", "a folder that can be written") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
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
    check_folder(out, FILES, overwrite, "--out")
    if out.exists() and any(out.iterdir()):
        try:
            generator = read_json(out / "transforms_train.json")["generator"]
        except (InputError, TypeError, KeyError):
            generator = None
        if generator != GENERATOR:
            raise InputError("--out", str(out), "a scene that this program wrote")


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """The program."""
    config = parse_options(SceneConfig, argv, "python -m evos_nerf.scene", __doc__ or "", "--")
    print(f"scene: {write_scene(config)}")


if __name__ == "__main__":
    main()
