"""Textures of ray-traced solids: points in a shape's own coordinates to colours in [0, 1]."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

Points = Float[Tensor, "N 3"]
Texture = Callable[[Points], Points]


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
