"""Volume rendering against a loop over samples and the closed form of uniform fog."""

import math

import pytest
import torch

from generalizable.rendering import composite, points_along, render, sample_depths


def rays(count=3):
    directions = torch.nn.functional.normalize(torch.randn(2, count, 3), dim=-1)
    return torch.cat([torch.randn(2, count, 3), directions], dim=-1)


def test_depths_are_the_middles_of_equal_parts():
    expected = torch.tensor([1.25, 1.75, 2.25, 2.75])
    torch.testing.assert_close(sample_depths(rays(), 1.0, 3.0, 4, jitter=False)[1, 2], expected)


def test_jittered_depths_stay_in_their_parts_and_cover_them():
    found = sample_depths(rays(500), 1.0, 3.0, 4, jitter=True)
    place = (found - 1) / 0.5 - torch.arange(4)
    assert place.min() >= 0 and place.max() <= 1
    assert place.mean().item() == pytest.approx(0.5, abs=0.02)
    assert place.std().item() == pytest.approx(math.sqrt(1 / 12), abs=0.02)


def test_points_are_origin_plus_depth_times_direction():
    some, depths = rays(), torch.rand(2, 3, 5)
    found = points_along(some, depths)
    torch.testing.assert_close(found[1, 2, 4], some[1, 2, :3] + depths[1, 2, 4] * some[1, 2, 3:])


@pytest.mark.parametrize("white", [False, True])
def test_compositing_equals_a_loop_over_the_samples(white):
    raw, depths = torch.randn(1, 1, 6, 4).double() * 2, torch.rand(1, 1, 6).double().sort().values
    light, seen = 1.0, torch.zeros(3).double()
    edges = [*depths[0, 0].tolist(), 1.5]
    for index in range(6):
        alpha = 1 - math.exp(-max(0.0, raw[0, 0, index, 3].item()) * (edges[index + 1] - edges[index]))
        seen += light * alpha / (1 + torch.exp(-raw[0, 0, index, :3]))
        light *= 1 - alpha
    torch.testing.assert_close(composite(raw, depths, 1.5, white)[0, 0], seen + light * white)


@pytest.mark.parametrize("samples", [4, 64])
def test_uniform_fog_is_as_dense_as_its_closed_form(samples):
    def fog(points):
        return torch.tensor([0.0, 0.0, 0.0, 0.7]).expand(*points.shape[:2], 4)

    found = render(fog, rays(), 1.0, 3.0, samples, jitter=False, white_background=True)
    left = math.exp(-0.7 * (2.0 - 1.0 / samples))  # the fog begins at the first sample
    torch.testing.assert_close(found, torch.full((2, 3, 3), 0.5 * (1 - left) + left))


def test_empty_space_shows_the_background():
    for white in (False, True):
        found = render(
            lambda p: torch.zeros(2, p.shape[1], 4), rays(), 0.0, 1.0, 8, jitter=False, white_background=white
        )
        assert torch.equal(found, torch.full((2, 3, 3), float(white)))


def test_an_opaque_wall_hides_what_is_behind_it():
    def wall(points):
        behind = (points[..., :1] > 2.0).float()
        red, green = torch.tensor([9.0, -9.0, -9.0]), torch.tensor([-9.0, 9.0, -9.0])
        density = (points[..., :1] > 1.0).float() * 1e4
        return torch.cat([red + behind * (green - red), density], dim=-1)

    ray = torch.tensor([[[0.0, 0.0, 0.0, 1.0, 0.0, 0.0]]])
    found = render(wall, ray, 0.0, 4.0, 40, jitter=False, white_background=True)[0, 0]
    torch.testing.assert_close(found, torch.sigmoid(torch.tensor([9.0, -9.0, -9.0])))


def test_the_gradient_of_compositing_is_right():
    raw = torch.randn(1, 2, 3, 4).double().requires_grad_()
    depths = torch.tensor([0.1, 0.4, 0.6]).double().expand(1, 2, 3)
    assert torch.autograd.gradcheck(lambda r: composite(r, depths, 1.0, True), raw)
