"""Rays and volume rendering: values against NeRF's formulas, tangents against forward and reverse mode in float64."""

import math

import pytest
import torch
from torch.func import functional_call, jvp

pytest.importorskip("nerfstudio.configs.method_configs", reason="needs the nerf extra")

from evos.losses import derivative_loss
from evos_nerf.llff import NERF_AXES
from evos_nerf.rendering import Rays, WithTangents, composite, pinhole_tangents, points_along, render, to_ndc
from evos_nerf.tiny_nerf import TinyNerf

pytestmark = pytest.mark.nerf

NDC = torch.tensor([1.3, 1.7, 0.9], dtype=torch.float64)


@pytest.fixture(autouse=True)
def double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def cameras(count):
    """Rotations near the one that looks along +y with z up, centres near the origin, focal lengths."""
    forward = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    turn = torch.linalg.matrix_exp(torch.linalg.cross(torch.eye(3).expand(count, 3, 3), 0.1 * torch.randn(count, 1, 3)))
    return turn @ forward, 0.1 * torch.randn(count, 3), 40 + 10 * torch.rand(count, 2)


def directions_of(pixels, rotations, focal):
    """A pinhole camera, by the book; pixels are (row, column) from the principal point."""
    y, x = pixels.unbind(-1)
    return (rotations @ torch.stack([x / focal[:, 0], -y / focal[:, 1], -torch.ones_like(x)], -1)[..., None])[..., 0]


class Problem:
    """Random rays of 5 pixels, 6 samples each, and a small field."""

    def __init__(self, activation, width=8):
        self.rotations, self.origins, self.focal = cameras(5)
        self.pixels = 10 * torch.randn(5, 2)
        self.depths = (torch.arange(6) + torch.rand(5, 6)) / 6
        self.field = TinyNerf(activation, 2, width).double()
        self.colours, self.derivatives = torch.rand(5, 3), 0.1 * torch.randn(5, 3, 2)

    def colour(self, pixels):
        """Plain rendering, no tangents."""
        directions = WithTangents.constant(directions_of(pixels, self.rotations, self.focal))
        return render(self.field, to_ndc(self.origins, directions, NDC), self.depths)[0].value

    def carried(self):
        directions = directions_of(self.pixels, self.rotations, self.focal)
        rays = to_ndc(self.origins, WithTangents(directions, pinhole_tangents(self.rotations, self.focal)), NDC)
        return render(self.field, rays, self.depths)[0]

    def loss(self, colour, jacobian):
        return (colour - self.colours).square().mean() + derivative_loss(jacobian, self.derivatives)


def test_ndc_are_those_of_nerf():
    rotations, origins, focal = cameras(5)
    directions = directions_of(10 * torch.randn(5, 2), rotations, focal)
    rays = to_ndc(origins, WithTangents.constant(directions), NDC)
    (o, d), near = ((x @ NERF_AXES.double().T).unbind(-1) for x in (origins, directions)), NDC[2]
    t = -(near + o[2]) / d[2]  # to the near plane; then equations 25 and 26
    o = [a + t * b for a, b in zip(o, d, strict=True)]
    start = torch.stack([-NDC[0] * o[0] / o[2], -NDC[1] * o[1] / o[2], 1 + 2 * near / o[2]], -1)
    way = [-NDC[0] * (d[0] / d[2] - o[0] / o[2]), -NDC[1] * (d[1] / d[2] - o[1] / o[2]), -2 * near / o[2]]
    torch.testing.assert_close(rays.origins.value, start)
    torch.testing.assert_close(rays.directions.value, torch.stack(way, -1))
    torch.testing.assert_close(rays.views.value, torch.nn.functional.normalize(directions, dim=-1))


def test_a_point_and_its_ndc_lie_at_the_same_place():
    origins, directions = torch.tensor([[0.2, -0.1, 0.3]]), torch.tensor([[0.1, 1.0, -0.2]])
    rays = to_ndc(origins, WithTangents.constant(directions), NDC)
    x, y, z = (origins + 4 * directions)[0]  # y is the distance from the plane of the average camera
    found = points_along(rays, (1 - NDC[2] / y)[None, None]).value[0, 0]
    torch.testing.assert_close(found, torch.stack([NDC[0] * x / y, NDC[1] * z / y, 1 - 2 * NDC[2] / y]))


def test_colour_is_that_of_a_slow_loop():
    raw, lengths = 2 * torch.randn(4, 5, 4), torch.rand(4, 4)
    colour, weights = composite(WithTangents.constant(raw), WithTangents.constant(lengths))
    for ray in range(4):
        light, seen = 1.0, torch.zeros(3)
        for sample in range(5):
            density = math.log1p(math.exp(raw[ray, sample, 3]))
            opacity = 1.0 if sample == 4 else 1 - math.exp(-density * lengths[ray, sample])
            assert weights[ray, sample].item() == pytest.approx(light * opacity)
            seen += light * opacity / (1 + torch.exp(-raw[ray, sample, :3]))
            light *= 1 - opacity
        torch.testing.assert_close(colour.value[ray], seen)


@pytest.mark.parametrize("activation", ["relu", "sine"])
def test_carried_tangents_are_those_of_forward_and_of_reverse_mode(activation):
    problem = Problem(activation)
    carried = problem.carried()
    torch.testing.assert_close(carried.value, problem.colour(problem.pixels), rtol=0, atol=1e-12)
    for axis in (0, 1):
        along = torch.zeros(5, 2)
        along[:, axis] = 1
        tangent = jvp(problem.colour, (problem.pixels,), (along,))[1]
        torch.testing.assert_close(carried.tangents[axis], tangent, rtol=1e-10, atol=1e-10)
    pixels = problem.pixels.requires_grad_()
    for channel in range(3):
        (gradient,) = torch.autograd.grad(problem.colour(pixels)[:, channel].sum(), pixels)
        torch.testing.assert_close(carried.tangents[..., channel].T, gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("activation", ["relu", "sine"])
def test_the_loss_and_its_gradients_are_those_of_double_backward(activation):
    problem = Problem(activation)
    weights = list(problem.field.parameters())
    carried = problem.carried()
    loss = problem.loss(carried.value, carried.tangents.permute(1, 2, 0))
    pixels = problem.pixels.requires_grad_()
    colour = problem.colour(pixels)
    rows = [torch.autograd.grad(c.sum(), pixels, create_graph=True)[0] for c in colour.unbind(-1)]
    literal = problem.loss(colour, torch.stack(rows, dim=1))
    assert loss.item() == pytest.approx(literal.item(), rel=1e-12)
    pairs = zip(torch.autograd.grad(loss, weights), torch.autograd.grad(literal, weights), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_gradients_of_colour_and_derivatives_pass_gradcheck():
    problem = Problem("sine", width=4)
    field = problem.field
    names, weights = zip(*field.named_parameters(), strict=True)

    def rendered(*weights):
        problem.field = lambda *x: functional_call(field, dict(zip(names, weights, strict=True)), x)
        return tuple(problem.carried())

    assert torch.autograd.gradcheck(rendered, weights, fast_mode=True)


def test_only_the_front_of_a_wall_is_seen_and_one_of_one_colour_has_no_derivatives():
    rays = Rays(*(WithTangents(torch.randn(2, 3), torch.randn(2, 2, 3)) for _ in range(3)))
    wall = torch.full((2, 6, 4), -40.0)
    wall[:, 3:, 3] = 400.0

    def field(points, views):
        return WithTangents(wall, torch.zeros(2, *wall.shape))

    colour, weights = render(field, rays, (torch.arange(6) / 6).expand(2, 6))
    torch.testing.assert_close(weights, torch.eye(6)[3].expand(2, 6), atol=1e-12, rtol=0)
    torch.testing.assert_close(colour.tangents, torch.zeros(2, 2, 3), atol=1e-12, rtol=0)
