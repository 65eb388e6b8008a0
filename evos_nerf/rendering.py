"""Rays in normalised device coordinates (NDC) and volume rendering, with forward-mode derivatives by pixel.

Each quantity is a value with its tangents, the derivatives along K directions (K = 2: the pixel's row and column). One
forward pass gives the colour and its derivatives, which can be backpropagated to the field's parameters; K = 0 is plain
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


class WithTangents(NamedTuple):
    """A tensor and its derivatives along K directions."""

    value: Float[Tensor, "..."]
    tangents: Float[Tensor, "K ..."]

    def map(self, linear: Callable[[Tensor], Tensor]) -> "WithTangents":
        """Apply a function that is linear in the last axes."""
        return WithTangents(linear(self.value), linear(self.tangents))

    @classmethod
    def constant(cls, value: Tensor) -> "WithTangents":
        """A value without tangents (K = 0)."""
        return cls(value, value.new_empty(0, *value.shape))


class Rays(NamedTuple):
    """Rays in NDC, from the near plane (depth 0) to infinity (depth 1), and their viewing directions in the world."""

    origins: WithTangents
    """Origins "N 3" on the near plane, in NDC."""
    directions: WithTangents
    """Vectors "N 3" from the origin to the vanishing point, in NDC."""
    views: WithTangents
    """Unit viewing directions "N 3" in the world."""


Field = Callable[[WithTangents, WithTangents], WithTangents]
"""Raw colours and densities "N S 4" at points "N S 3" (NDC) seen in directions "N 3" (world, unit)."""


def pinhole_tangents(rotations: Float[Tensor, "N 3 3"], focal: Float[Tensor, "N 2"]) -> Float[Tensor, "2 N 3"]:
    """Derivatives of a pinhole camera's ray directions with respect to the pixel's row and column.

    Args:
        rotations: camera to world, OpenGL's axes: x right, y up, looking along -z.
        focal: lengths (fx, fy) in pixels.

    Exact: the direction ((x - cx) / fx, (cy - y) / fy, -1), not normalised, is affine in the pixel.
    """
    right, up, _ = rotations.unbind(-1)
    return torch.stack([-up / focal[:, 1:], right / focal[:, :1]])


def to_ndc(origins: Float[Tensor, "N 3"], directions: WithTangents, ndc: Float[Tensor, "3"]) -> Rays:
    """Rays in normalised device coordinates: from the intersection with the near plane to the vanishing point.

    Args:
        origins: camera centres, behind the near plane; the same for all pixels of a camera.
        directions: "N 3" of any length, forward component above 0.
        ndc: focal lengths over half the picture's width and height, and the near plane's distance.

    NeRF's equations 25 and 26, with its third coordinate from -1 (near) to 1 (infinity).
    """
    scale, near = ndc[:2], ndc[2]
    projected = quotient(directions.map(lambda x: x[..., 0::2]), directions.map(lambda x: x[..., 1:2]))
    reach = near - origins[:, 1:2]
    entry = WithTangents((origins[:, 0::2] + reach * projected.value) / near, reach * projected.tangents / near)
    starts = WithTangents(F.pad(scale * entry.value, (0, 1), value=-1.0), F.pad(scale * entry.tangents, (0, 1)))
    way = WithTangents(projected.value - entry.value, projected.tangents - entry.tangents).map(lambda x: scale * x)
    ways = WithTangents(F.pad(way.value, (0, 1), value=2.0), F.pad(way.tangents, (0, 1)))
    return Rays(starts, ways, quotient(directions, length(directions)))


def points_along(rays: Rays, depths: Float[Tensor, "N S"]) -> WithTangents:
    """Points "N S 3" in NDC at the given depths, which do not depend on the pixel."""
    pairs = zip(rays.origins, rays.directions, strict=True)
    return WithTangents(*(a[..., None, :] + depths[..., None] * b[..., None, :] for a, b in pairs))


def render(field: Field, rays: Rays, depths: Float[Tensor, "N S"]) -> tuple[WithTangents, Float[Tensor, "N S"]]:
    """The colours "N 3" of rays and the weight of each sample, from samples at ascending depths in [0, 1)."""
    steps = depths.diff(dim=-1)
    return composite(field(points_along(rays, depths), rays.views), length(rays.directions).map(lambda x: steps * x))


def composite(raw: WithTangents, lengths: WithTangents) -> tuple[WithTangents, Float[Tensor, "N S"]]:
    """Colours "N 3" of rays, in [0, 1], and the weights of their samples, which add up to 1.

    Args:
        raw: "N S 4"; sigmoid makes the colour, softplus the density.
        lengths: "N S-1", from each sample to the next.

    As in NeRF's code a sample fills the ray up to the next one, and the last, which extends to infinity, is opaque.
    Softplus instead of its ReLU, with which about half of the seeds start at zero density everywhere and stay there.
    """
    colour = torch.sigmoid(raw.value[..., :3])
    colour_tangents = colour * (1 - colour) * raw.tangents[..., :3]
    raw_density, raw_density_tangents = raw.value[..., :-1, 3], raw.tangents[..., :-1, 3]
    density = F.softplus(raw_density)
    thickness = density * lengths.value
    thickness_tangents = torch.sigmoid(raw_density) * raw_density_tangents * lengths.value + density * lengths.tangents
    transmittance = torch.exp(-thickness.cumsum(-1))
    transmittance_tangents = -transmittance * thickness_tangents.cumsum(-1)
    # Differences of the transmittance, which is 1 before the first sample and 0 behind the last.
    weights = -F.pad(F.pad(transmittance, (1, 0), value=1.0), (0, 1)).diff(dim=-1)
    weights_tangents = -F.pad(transmittance_tangents, (1, 1)).diff(dim=-1)
    value = (weights[..., None] * colour).sum(-2)
    tangents = (weights_tangents[..., None] * colour + weights[..., None] * colour_tangents).sum(-2)
    return WithTangents(value, tangents), weights


def quotient(a: WithTangents, b: WithTangents) -> WithTangents:
    """The quotient a / b."""
    value = a.value / b.value
    return WithTangents(value, (a.tangents - value * b.tangents) / b.value)


def length(a: WithTangents) -> WithTangents:
    """Euclidean length along the last axis, which stays as one of size 1."""
    value = a.value.norm(dim=-1, keepdim=True)
    return WithTangents(value, (a.value * a.tangents).sum(-1, keepdim=True) / value)
