"""Fitness against scipy's convolution, linearity and the literal formulas of the paper."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from evos.fitness import grey, high_fitness, laplacian, low_fitness

KERNELS = {
    **{1: [1, -2, 1], 2: [[0, 1, 0], [1, -4, 1], [0, 1, 0]]},
    3: [[[0, 0, 0], [0, 1, 0], [0, 0, 0]], [[0, 1, 0], [1, -6, 1], [0, 1, 0]], [[0, 0, 0], [0, 1, 0], [0, 0, 0]]],
}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_laplacian(maps: torch.Tensor, axes: int) -> torch.Tensor:
    """One map at a time, zeros outside."""
    grids = maps.reshape(-1, *maps.shape[maps.ndim - axes :])
    slow = [torch.from_numpy(ndimage.convolve(g.numpy(), KERNELS[axes], mode="constant")) for g in grids]
    return torch.stack(slow).view(maps.shape)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((9,), 1),
        ((3, 9), 1),
        ((6, 5), 2),
        ((2, 6, 5), 2),
        ((2, 3, 6, 5), 2),
        ((1, 1), 2),
        ((2, 1), 1),
        ((4, 6, 5), 3),
        ((2, 4, 1, 5), 3),
    ],
)
def test_the_laplacian_is_a_convolution_over_the_last_axes(shape, axes):
    maps = noise(*shape)
    assert torch.allclose(laplacian(maps, axes), slow_laplacian(maps, axes), atol=1e-12)


@settings(max_examples=30)
@given(seed=st.integers(0, 999), height=st.integers(1, 6), width=st.integers(1, 6), axes=st.sampled_from([1, 2]))
def test_the_laplacian_is_linear(seed, height, width, axes):
    a, b = noise(2, height, width, seed=seed), noise(2, height, width, seed=seed + 1000)
    assert torch.allclose(laplacian(a, axes) - laplacian(b, axes), laplacian(a - b, axes), atol=1e-12)


def test_grey_is_luma_of_three_channels_and_the_mean_of_any_other_number():
    colour, pair = noise(7, 3), noise(7, 2)
    luma = [0.2989 * r + 0.587 * g + 0.114 * b for r, g, b in colour.tolist()]
    assert grey(colour).tolist() == pytest.approx(luma)
    assert grey(pair).tolist() == pytest.approx([(a + b) / 2 for a, b in pair.tolist()])
    assert torch.equal(grey(pair[:, :1]), pair[:, 0])


def test_low_fitness_is_the_squared_error_of_targets_in_minus_one_to_one():
    prediction, target = noise(2, 30, 3, seed=1), noise(2, 30, 3, seed=2)
    literal = ((2 * prediction - 1) - (2 * target - 1)).square().mean(-1)
    assert torch.allclose(low_fitness(prediction - target), literal)


def test_high_fitness_is_the_paper_s_on_0_255_images():
    prediction, target = noise(2, 30, 3, seed=1), noise(2, 30, 3, seed=2)
    weights = torch.tensor([0.2989, 0.587, 0.114], dtype=torch.float64)
    maps = [(255 * image @ weights).view(2, 5, 6) for image in (prediction, target)]
    literal = 1e-5 * (slow_laplacian(maps[0], 2) - slow_laplacian(maps[1], 2)).square().flatten(1)
    assert torch.allclose(high_fitness(prediction - target, (5, 6), 2, 1e-5 * 255**2), literal)
    assert pytest.approx(1e-5 * 255**2, rel=4e-4) == 0.65  # the rounded default


def test_stacks_and_sounds_keep_their_maps_apart():
    residual = noise(1, 30, 1)
    stack = high_fitness(residual, (2, 3, 5), 2, 1.0).view(2, 15)
    for view in range(2):
        alone = high_fitness(residual.view(2, 15, 1)[view : view + 1], (3, 5), 2, 1.0)
        assert torch.equal(stack[view], alone[0])
    sound = slow_laplacian(residual[..., 0], 1).square()
    assert torch.allclose(high_fitness(residual, (30,), 1, 1.0), sound)
