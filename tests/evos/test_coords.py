"""Coordinate grids against numpy and by hand."""

import itertools

import numpy as np
import pytest
import torch

from evos import coords


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4), (1, 7), (1,)])
def test_cells_are_numbered_in_c_order_from_minus_one_to_one(shape):
    grid = coords.grid(shape)
    for number, place in enumerate(itertools.product(*map(range, shape))):
        centre = [2 * i / (size - 1) - 1 if size > 1 else 0 for i, size in zip(place, shape, strict=True)]
        assert np.allclose(grid[number], centre, atol=1e-6)
    assert grid.shape == (np.prod(shape), len(shape)) and grid.is_contiguous()


def test_row_comes_before_column():
    assert coords.grid((2, 3)).tolist() == [[-1, -1], [-1, 0], [-1, 1], [1, -1], [1, 0], [1, 1]]


def test_spacing_is_the_distance_between_neighbours(device):
    grid = coords.grid((4, 1, 6), device).view(4, 1, 6, 3)
    assert grid.device.type == device.type
    along_y, along_x = grid[1, 0, 0, 0] - grid[0, 0, 0, 0], grid[0, 0, 1, 2] - grid[0, 0, 0, 2]
    expected = (float(along_y), 1.0, float(along_x))
    assert coords.spacing((4, 1, 6)) == pytest.approx(expected, abs=1e-6)


def test_every_device_sees_the_same_bits(device):
    assert torch.equal(coords.grid((17, 23), device).cpu(), coords.grid((17, 23)))


@pytest.mark.parametrize("shape", [(5,), (3, 4), (1, 7)])
def test_cell_centres_cut_the_interval_into_equal_cells(shape):
    grid = coords.grid(shape, centres="cell")
    for number, place in enumerate(itertools.product(*map(range, shape))):
        assert np.allclose(grid[number], [-1 + (2 * i + 1) / size for i, size in zip(place, shape, strict=True)])
    assert coords.spacing(shape, centres="cell") == tuple(2 / size for size in shape)


@pytest.mark.parametrize("scale", [2, 3, 5])
def test_fine_cells_average_to_the_coarse_ones_they_divide(scale):
    """A linear ramp over a 4 x 6 picture, decoded finer: exact at every fine cell, its means the coarse cells."""

    def ramp(at):
        return 0.3 + 2 * at[:, 0] - 5 * at[:, 1]

    coarse = ramp(coords.grid((4, 6), centres="cell")).reshape(4, 6)
    fine = ramp(coords.grid((4 * scale, 6 * scale), centres="cell")).reshape(4 * scale, 6 * scale)
    row, column = np.mgrid[: 4 * scale, : 6 * scale]
    # Fine cell i has its centre at (i + 1/2) / scale - 1/2 coarse cells, for scale 3: -1/3, 0, 1/3, 2/3, ...
    y, x = ((place + 0.5) / scale - 0.5 for place in (row, column))
    expected = 0.3 + 2 * (-1 + (2 * y + 1) / 4) - 5 * (-1 + (2 * x + 1) / 6)
    assert np.allclose(fine, expected, atol=1e-5)
    assert torch.allclose(fine.reshape(4, scale, 6, scale).mean((1, 3)), coarse, atol=1e-5)
    corner = ramp(coords.grid((4 * scale, 6 * scale))).reshape(4, scale, 6, scale).mean((1, 3))
    assert not torch.allclose(corner, ramp(coords.grid((4, 6))).reshape(4, 6), atol=0.1)
