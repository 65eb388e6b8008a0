"""Rays in normalised device coordinates (NDC) and volume rendering, with derivatives by pixel carried along.

Everything is a value and its tangents, the derivatives along K directions: for K = 2, the pixel's row and column. One
forward pass gives colour and its derivatives, differentiable once in the field's parameters; with K = 0 it is plain
rendering. Source: Mildenhall et al., "NeRF" (ECCV 2020), equation 3 and appendix C. The world is the one of
evos_nerf/llff.py: the average camera looks along +y, z is up.

Letters: N rays, S samples of a ray, K tangents. Lengths are in the world's unit, or in NDC where it says so.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class Carried(NamedTuple):
    """A tensor and its derivatives along K directions."""

    value: Float[Tensor, "..."]
    tangents: Float[Tensor, "K ..."]

    def map(self, linear: Callable[[Tensor], Tensor]) -> "Carried":
        """The image under a linear function of the last axes."""
        return Carried(linear(self.value), linear(self.tangents))

    @classmethod
    def constant(cls, value: Tensor) -> "Carried":
        """A value without directions (K = 0)."""
        return cls(value, value.new_empty(0, *value.shape))


class Rays(NamedTuple):
    """Rays in NDC, where depths from 0 to 1 go from the near plane to infinity, and where they look in the world."""

    origins: Carried
    """Where they begin, "N 3", in NDC: on the near plane."""
    directions: Carried
    """From there to the vanishing point, "N 3", in NDC."""
    views: Carried
    """Unit directions "N 3" in the world."""


Field = Callable[[Carried, Carried], Carried]
"""Raw colours and densities "N S 4" at points "N S 3" (NDC) seen in directions "N 3" (world, unit)."""


def pinhole_tangents(rotations: Float[Tensor, "N 3 3"], focal: Float[Tensor, "N 2"]) -> Float[Tensor, "2 N 3"]:
    """How a pinhole camera's ray turns as its pixel moves by one row, and by one column.

    Args:
        rotations: camera to world, OpenGL's axes: x right, y up, looking along -z.
        focal: lengths (fx, fy) in pixels.

    Exact: the direction ((x - cx) / fx, (cy - y) / fy, -1), not normalised, is affine in the pixel.
    """
    right, up, _ = rotations.unbind(-1)
    return torch.stack([-up / focal[:, 1:], right / focal[:, :1]])


def to_ndc(origins: Float[Tensor, "N 3"], directions: Carried, ndc: Float[Tensor, "3"]) -> Rays:
    """Rays in normalised device coordinates: each goes from where it meets the near plane to its vanishing point.

    Args:
        origins: camera centres, behind the near plane; they don't move with the pixel.
        directions: "N 3" of any length, forward component above 0.
        ndc: focal lengths over half the picture's width and height, and the near plane's distance.

    NeRF's equations 25 and 26, with its third coordinate from -1 (near) to 1 (infinity).
    """
    scale, near = ndc[:2], ndc[2]
    slope = quotient(directions.map(lambda x: x[..., 0::2]), directions.map(lambda x: x[..., 1:2]))
    reach = near - origins[:, 1:2]
    entry = Carried((origins[:, 0::2] + reach * slope.value) / near, reach * slope.tangents / near)
    starts = Carried(F.pad(scale * entry.value, (0, 1), value=-1.0), F.pad(scale * entry.tangents, (0, 1)))
    way = Carried(slope.value - entry.value, slope.tangents - entry.tangents).map(lambda x: scale * x)
    ways = Carried(F.pad(way.value, (0, 1), value=2.0), F.pad(way.tangents, (0, 1)))
    return Rays(starts, ways, quotient(directions, length(directions)))


def points_along(rays: Rays, depths: Float[Tensor, "N S"]) -> Carried:
    """Points "N S 3" in NDC at the given depths, which stay as they are while the pixel moves."""
    pairs = zip(rays.origins, rays.directions, strict=True)
    return Carried(*(a[..., None, :] + depths[..., None] * b[..., None, :] for a, b in pairs))


def render(field: Field, rays: Rays, depths: Float[Tensor, "N S"]) -> tuple[Carried, Float[Tensor, "N S"]]:
    """The colours "N 3" of rays and the weight of each sample, from samples at ascending depths in [0, 1)."""
    steps = depths.diff(dim=-1)
    return composite(field(points_along(rays, depths), rays.views), length(rays.directions).map(lambda x: steps * x))


def composite(raw: Carried, lengths: Carried) -> tuple[Carried, Float[Tensor, "N S"]]:
    """Colours "N 3" of rays, in [0, 1], and the weights of their samples, which add up to 1.

    Args:
        raw: "N S 4"; sigmoid makes the colour, softplus the density.
        lengths: "N S-1", from each sample to the next.

    As in NeRF's code a sample fills the ray up to the next one, and the last, to infinity: nothing is seen behind it.
    Softplus instead of its ReLU: at about every other seed a network without any density begins, and stays so.
    """
    colour = torch.sigmoid(raw.value[..., :3])
    colour_tangents = colour * (1 - colour) * raw.tangents[..., :3]
    solid, solid_tangents = raw.value[..., :-1, 3], raw.tangents[..., :-1, 3]
    density = F.softplus(solid)
    thickness = density * lengths.value
    thickness_tangents = torch.sigmoid(solid) * solid_tangents * lengths.value + density * lengths.tangents
    light = torch.exp(-thickness.cumsum(-1))
    light_tangents = -light * thickness_tangents.cumsum(-1)
    # What a sample takes of the light: all of it reaches the first, none leaves the last.
    weights = -F.pad(F.pad(light, (1, 0), value=1.0), (0, 1)).diff(dim=-1)
    weights_tangents = -F.pad(light_tangents, (1, 1)).diff(dim=-1)
    value = (weights[..., None] * colour).sum(-2)
    tangents = (weights_tangents[..., None] * colour + weights[..., None] * colour_tangents).sum(-2)
    return Carried(value, tangents), weights


def quotient(a: Carried, b: Carried) -> Carried:
    """a / b."""
    value = a.value / b.value
    return Carried(value, (a.tangents - value * b.tangents) / b.value)


def length(a: Carried) -> Carried:
    """Euclidean length along the last axis, which stays as one of size 1."""
    value = a.value.norm(dim=-1, keepdim=True)
    return Carried(value, (a.value * a.tangents).sum(-1, keepdim=True) / value)
