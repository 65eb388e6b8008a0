"""The ray tracer against a slow search along the ray, and light and shadow against closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F

from evos.ray_tracing import Box, Cylinder, Sphere, Thing, Torus, first_hit, frame_along, rod, trace
from evos.textures import plain

SHAPES = {
    "sphere": (Sphere(0.5), lambda p: p.norm(dim=-1) - 0.5),
    "box": (Box(0.4), lambda p: p.abs().amax(-1) - 0.4),
    "disc": (Cylinder(0.6, 0.1), lambda p: torch.maximum(p[..., :2].norm(dim=-1) - 0.6, p[..., 2].abs() - 0.1)),
    "rod": (Cylinder(0.1, 0.7), lambda p: torch.maximum(p[..., :2].norm(dim=-1) - 0.1, p[..., 2].abs() - 0.7)),
    "torus": (Torus(0.4, 0.15), lambda p: torch.hypot(p[..., :2].norm(dim=-1) - 0.4, p[..., 2]) - 0.15),
}
"""Each shape with a function that is negative inside and positive outside."""


def rays(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rays from a sphere of radius 2 to points near the centre."""
    origin = 2 * F.normalize(torch.randn(count, 3), dim=-1)
    return origin, F.normalize(0.5 * torch.randn(count, 3) - origin, dim=-1)


@pytest.mark.parametrize("name", SHAPES)
def test_a_hit_is_where_a_fine_search_first_enters(name):
    shape, outside = SHAPES[name]
    origin, direction = rays(300)
    t = torch.linspace(0, 4, 8001)
    signs = outside(origin[:, None] + t[:, None] * direction[:, None]) < 0
    slow = torch.where(signs.any(1), t[signs.int().argmax(1)], math.inf)
    fast = shape.hit(origin, direction)
    both = slow.isfinite() & fast.isfinite()
    assert 0.1 < both.float().mean() < 0.95
    torch.testing.assert_close(fast[both], slow[both], atol=1e-2, rtol=0)
    # Rays that graze the surface between two steps of the search may be missed by it.
    assert (slow.isfinite() != fast.isfinite()).sum() <= 3


@pytest.mark.parametrize("name", SHAPES)
def test_normals_are_the_gradient_of_the_distance(name):
    shape, outside = SHAPES[name]
    origin, direction = rays(300)
    distance = shape.hit(origin, direction)
    hit = distance.isfinite()
    point = (origin + distance[:, None] * direction)[hit].requires_grad_()
    outside(point).sum().backward()
    torch.testing.assert_close(shape.normal(point.detach()), F.normalize(point.grad, dim=-1), atol=2e-3, rtol=0)


def test_things_behind_the_camera_are_not_seen():
    origin = torch.tensor([[0.0, 0.0, 3.0]])
    for shape, _ in SHAPES.values():
        assert shape.hit(origin, torch.tensor([[0.0, 0.6, 0.8]])).isinf().all()


def test_a_moved_and_turned_shape_is_hit_where_it_went():
    thing = Thing(
        Cylinder(0.1, 1.0), plain("ffffff"), torch.tensor([0.0, 2.0, 0.0]), frame_along(torch.tensor([1.0, 0, 0]))
    )
    colour, distance = trace(
        [thing], torch.tensor([[0.9, 2.0, 3.0], [0.0, 2.5, 3.0]]), torch.tensor([[0.0, 0.0, -1.0]] * 2)
    )
    hit = distance.isfinite()
    assert hit.tolist() == [True, False]
    assert colour[0].min() > 0.3
    assert colour[1].tolist() == [0.0, 0.0, 0.0]


def test_light_is_lamberts_and_a_shadow_leaves_the_sky():
    ground = Thing(Cylinder(2.0, 0.5), plain("ffffff"), torch.tensor([0.0, 0.0, -0.5]))
    light = F.normalize(torch.tensor([0.5, -0.35, 0.9]), dim=0)
    ball = Thing(Sphere(0.2), plain("ffffff"), 2 * light)
    origin, down = torch.tensor([[0.0, 0.0, 1.0], [1.0, 1.0, 1.0]]), torch.tensor([[0.0, 0.0, -1.0]] * 2)
    colour, _ = trace([ground, ball], origin, down)
    assert colour[0].tolist() == pytest.approx([0.5] * 3, abs=1e-5)
    assert colour[1].tolist() == pytest.approx([min(1.0, 0.5 + 0.7 * float(light[2]))] * 3, abs=1e-5)


def test_another_light_throws_its_shadow_elsewhere():
    ground = Thing(Cylinder(3.0, 0.5), plain("ffffff"), torch.tensor([0.0, 0.0, -0.5]))
    ball = Thing(Sphere(0.2), plain("ffffff"), torch.tensor([0.0, 0.0, 1.0]))
    origin, down = torch.tensor([[-1.0, 0.0, 0.5], [1.0, 0.0, 0.5]]), torch.tensor([[0.0, 0.0, -1.0]] * 2)
    lit = min(1.0, 0.5 + 0.7 * math.sqrt(0.5))
    for light, expected in [((2.0, 0.0, 2.0), [0.5, lit]), ((-3.0, 0.0, 3.0), [lit, 0.5])]:
        colour, _ = trace([ground, ball], origin, down, light=light)
        assert colour[:, 0].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_the_first_hit_is_that_of_every_shape_tried_on_every_ray(scale):
    things = [
        Thing(Box(0.3 * scale), plain("ffffff"), scale * torch.tensor([4.0, -3.0, 1.0])),
        Thing(Sphere(0.2 * scale), plain("ffffff"), scale * torch.tensor([-2.0, 3.0, 0.5])),
        Thing(Torus(0.4 * scale, 0.1 * scale), plain("ffffff"), scale * torch.tensor([1.0, 1.0, 2.0])),
        rod((5.0 * scale, 5.0 * scale, 0.0), (4.0 * scale, 5.0 * scale, 3.0 * scale), 0.01 * scale, "ffffff"),
    ]
    # Rays to the rims of the balls around the shapes, where leaving out a hit would show first.
    aims = [t.centre + t.shape.reach * F.normalize(torch.randn(500, 3), dim=-1) for t in things]
    ends = torch.cat([*aims, *(t.centre + 0.5 * t.shape.reach * torch.randn(100, 3) for t in things)])
    origin = scale * 5 * torch.randn(len(ends), 3)
    direction = F.normalize(ends - origin, dim=-1)
    alone = [t.shape.hit(t.inside(origin), t.inside(direction, is_point=False)) for t in things]
    expected, number = torch.stack(alone).nan_to_num(math.inf, math.inf).min(0)
    found, which = first_hit(things, origin, direction)
    assert 100 < expected.isfinite().sum() < 1500
    assert torch.equal(found.isfinite(), expected.isfinite())
    hit = found.isfinite()
    torch.testing.assert_close(found[hit], expected[hit], rtol=1e-5, atol=1e-5 * scale)
    assert torch.equal(which[hit], number[hit])


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_reaches_to_its_farthest_point_and_no_farther(name):
    shape, outside = SHAPES[name]
    directions = F.normalize(torch.randn(20000, 3), dim=-1)
    assert (outside(1.001 * shape.reach * directions) > 0).all()
    assert (outside(0.95 * shape.reach * directions) < 0).any()


def test_no_rays_hit_nothing():
    colour, distance = trace(
        [Thing(Sphere(1.0), plain("ffffff"), torch.zeros(3))], torch.zeros(0, 3), torch.zeros(0, 3)
    )
    hit = distance.isfinite()
    assert colour.shape == (0, 3) and hit.tolist() == []
