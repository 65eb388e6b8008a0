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
