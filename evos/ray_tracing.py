"""Ray tracing of textured solids with highlights and shadows, in plain PyTorch: scenes that the project makes itself.

Rays are batches of N origins and unit directions; a ``Thing`` is a shape with a place, an orientation and a texture.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from evos.textures import Points, Texture, plain

LIGHT = (0.5, -0.35, 0.9)
"""Direction to the light where none is given."""

# Shapes, each in coordinates of its own.


class Shape(ABC):
    """A solid around the origin of its own coordinates; rays are origin + t * direction, the direction of length 1."""

    @abstractmethod
    def hit(self, origin: Points, direction: Points) -> Float[Tensor, "N"]:
        """Distance along each ray to where it enters the solid, inf where it misses; rays start outside."""

    @abstractmethod
    def normal(self, point: Points) -> Points:
        """Outward unit normal at points of the surface."""

    @property
    @abstractmethod
    def reach(self) -> float:
        """Distance from the origin to the solid's farthest point: rays that pass it by are not tried."""


@dataclass(frozen=True)
class Sphere(Shape):
    """A ball of the given radius."""

    radius: float

    def hit(self, origin: Points, direction: Points) -> Float[Tensor, "N"]:
        return _entry(*_quadratic(origin, direction, self.radius))

    def normal(self, point: Points) -> Points:
        return F.normalize(point, dim=-1)

    @property
    def reach(self) -> float:
        return self.radius


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

    @property
    def reach(self) -> float:
        return math.sqrt(3) * self.half


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

    @property
    def reach(self) -> float:
        return math.hypot(self.radius, self.half)


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

    @property
    def reach(self) -> float:
        return self.radius + self.tube

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


# Things.


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


def first_hit(
    things: Sequence[Thing], origin: Points, direction: Points
) -> tuple[Float[Tensor, "N"], Int[Tensor, "N"]]:
    """Distance to the first object on each ray, inf where there is none, and its index in ``things``."""
    if not len(origin):
        return origin.new_empty(0), torch.empty(0, dtype=torch.long)
    # One axis after the other: products with a vector are several times faster so.
    start, ahead = origin.T.contiguous(), direction.T.contiguous()
    along, away = (start * ahead).sum(0), start.square().sum(0)
    distances = torch.full((len(things), len(origin)), math.inf)
    for thing, row in zip(things, distances, strict=True):
        tried = _near(thing, start, ahead, along, away).nonzero()[:, 0]
        if len(tried):
            own = thing.inside(origin[tried]), thing.inside(direction[tried], is_point=False)
            row[tried] = thing.shape.hit(*own).nan_to_num(math.inf, math.inf)
    distance, number = distances.min(0)
    return distance, number


def _near(
    thing: Thing,
    origin: Float[Tensor, "3 N"],
    direction: Float[Tensor, "3 N"],
    along: Float[Tensor, "N"],
    away: Float[Tensor, "N"],
) -> Bool[Tensor, "N"]:
    """Which rays may hit a thing: the few that come near the ball around it.

    ``along``: origin · direction; ``away``: |origin|².
    """
    centre = thing.centre.to(direction.dtype)  # it may be of whole numbers
    square = centre.square().sum()
    # More than what float32 loses in the difference of squares, so that no hit is.
    reach = thing.shape.reach + 2e-3 * (square.sqrt() + away.max().sqrt())
    nearest = centre @ direction - along
    distance = away - 2 * (centre @ origin) + square
    return (distance - nearest.square() <= reach.square()) & (nearest >= -reach)


def trace(
    things: Sequence[Thing], origin: Points, direction: Points, *, light: Sequence[float] = LIGHT
) -> tuple[Points, Float[Tensor, "N"]]:
    """Colours in [0, 1] along rays that start outside all objects, 0 where they hit none, and ``first_hit``'s distance.

    One distant ``light`` (the direction to it) with hard shadows, light from the sky that falls off with the normal's
    tilt, and a white highlight (Blinn's half vector).
    """
    colour = torch.zeros_like(origin)
    distance, number = first_hit(things, origin, direction)
    point = origin + distance[:, None] * direction
    to_light = F.normalize(torch.tensor(light), dim=0)
    seen = [((number == i) & distance.isfinite()).nonzero()[:, 0] for i in range(len(things))]
    own = [thing.inside(point[mine]) for thing, mine in zip(things, seen, strict=True)]
    normals = [thing.shape.normal(where) @ thing.axes.T for thing, where in zip(things, own, strict=True)]
    # Offset from the surface beyond float32 rounding, so that an object does not shadow itself.
    start = point[torch.cat(seen)] + 2e-3 * torch.cat(normals)
    in_light = first_hit(things, start, to_light.expand_as(start))[0].isinf().split([len(mine) for mine in seen])
    for thing, mine, where, normal, lit in zip(things, seen, own, normals, in_light, strict=True):
        sun = (normal @ to_light).clamp(min=0) * lit
        sky = 0.35 + 0.15 * normal[:, 2]
        half = F.normalize(to_light - direction[mine], dim=-1)
        highlight = thing.gloss * (normal * half).sum(-1).clamp(min=0) ** 30 * lit
        colour[mine] = thing.texture(where) * (sky + 0.7 * sun)[:, None] + 0.8 * highlight[:, None]
    return colour.clamp(0, 1), distance


# Cameras.


def camera_rays(
    pose: Float[Tensor, "4 4"], height: int, width: int, angle: float, samples: int
) -> tuple[Points, Points]:
    """Origins and unit directions of samples × samples rays a pixel, row by row.

    Args:
        pose: camera to world in OpenGL's axes: x right, y up, looking along -z.
        angle: horizontal field of view in radians.
    """
    focal = 0.5 * width * samples / math.tan(0.5 * angle)
    x = (torch.arange(width * samples) + 0.5 - width * samples / 2) / focal
    y = (torch.arange(height * samples) + 0.5 - height * samples / 2) / focal
    down, across = torch.meshgrid(y, x, indexing="ij")
    direction = rearrange(torch.stack([across, -down, -torch.ones_like(across)]), "D H W -> (H W) D")
    direction = F.normalize(direction @ pose[:3, :3].T, dim=-1)
    return pose[:3, 3].expand(len(direction), 3), direction
