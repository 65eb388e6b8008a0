"""The hash grid against a slow loop over points, levels and corners, and against tiny-cuda-nn where there is one."""

import math
import sys
from contextlib import nullcontext
from itertools import product
from types import SimpleNamespace

import jaxtyping
import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator

from evos.errors import InputError
from evos.fields import build_field
from evos.fields.hashgrid import HashGrid, HashGridConfig, fused_grid

PRIMES = [1, 2654435761, 805459861]


def random_grid(config, axes):
    grid = HashGrid(config, axes).double()
    torch.nn.init.normal_(grid.table, generator=torch.Generator().manual_seed(1))
    return grid


def slow_features(config, table, point):
    """Instant-NGP's encoding of one point in [0, 1], with Python integers for unsigned ones."""
    growth = (config.finest_resolution / config.base_resolution) ** (1 / (config.levels - 1))
    limit, offset, features = 2**config.table_log2, 0, []
    for level in range(config.levels):
        cells = config.base_resolution * growth**level - 1
        resolution = math.ceil(round(cells, 4)) + 1
        vertices = resolution ** len(point)
        rows = min((vertices + 7) // 8 * 8, limit)
        position = [x * cells + 0.5 for x in point]
        feature = [0.0] * config.level_features
        for corner in product((0, 1), repeat=len(point)):
            weight, dense, hashed, stride = 1.0, 0, 0, 1
            for p, c, prime in zip(position, corner, PRIMES, strict=False):
                weight *= (p - math.floor(p)) if c else (1 - p + math.floor(p))
                vertex = math.floor(p) + c
                dense += vertex * stride
                stride *= resolution
                hashed ^= (vertex * prime) % 2**32
            row = offset + (dense if vertices <= limit else hashed) % rows
            feature = [f + weight * t for f, t in zip(feature, table[row].tolist(), strict=True)]
        features += feature
        offset += rows
    assert offset == len(table)
    return features


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize(
    ("table_log2", "hashed_levels"), [(16, 0), (9, None), (3, 4)], ids=["all dense", "dense and hashed", "all hashed"]
)
def test_features_equal_a_slow_loop(axes, table_log2, hashed_levels):
    config = HashGridConfig(levels=4, table_log2=table_log2, base_resolution=9, finest_resolution=37)
    grid = random_grid(config, axes)
    if hashed_levels is not None:
        assert config.levels - len(grid.dense_sizes) == hashed_levels
    coords = torch.rand(20, axes, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    coords[0], coords[1] = -1, 1
    expected = torch.tensor([slow_features(config, grid.table, point) for point in ((coords + 1) / 2).tolist()])
    # The grid's growth is a millionth smaller: 3 levels x 37 cells x 1e-6 of a difference between vertices.
    torch.testing.assert_close(grid(coords), expected.double(), rtol=0, atol=5e-4)


def test_an_axis_has_vertices_in_proportion_to_its_side():
    """Between them a level is scipy's linear interpolation of its part of the table."""
    config = HashGridConfig(levels=2, base_resolution=9, finest_resolution=16, proportions="4x8x2")
    assert config.vertices(3) == [(5, 9, 3), (8, 16, 4)]
    grid = random_grid(config, 3)
    points = 0.75 * torch.rand(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features, offset = grid.interpolate(points).detach().unflatten(1, (2, 2)), 0
    for level, (size, rows) in enumerate(zip(config.vertices(3), config.table_sizes(3), strict=True)):
        vertices = grid.table[offset : offset + math.prod(size)].detach().view(*size[::-1], 2).numpy()
        cells = np.array([axis[level] for axis in config.axis_cells(3)])
        axes = [np.arange(n) for n in size[::-1]]
        expected = RegularGridInterpolator(axes, vertices)((points.numpy() * cells + 0.5)[:, ::-1])
        np.testing.assert_allclose(features[:, level], expected, rtol=0, atol=1e-5)  # cells are in single precision
        offset += rows
    assert offset == len(grid.table) and config.parameters(3, 1) == sum(
        weight.numel() for weight in build_field(config, 3, 1, seed=0).parameters()
    )


def test_derivatives_follow_the_proportions():
    field = build_field(HashGridConfig(levels=3, finest_resolution=40, proportions="4x8"), 2, 1, seed=0).double()
    torch.nn.init.normal_(field.encoding.table, generator=torch.Generator().manual_seed(1))
    coords = torch.rand(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.5
    features, tangents = field.encoding.forward_with_tangents(coords, torch.eye(2).double()[:, None].expand(2, 20, 2))
    step = 1e-7 * torch.eye(2, dtype=torch.float64)
    for axis in range(2):
        difference = (field.encoding(coords + step[axis]) - features) / 1e-7
        torch.testing.assert_close(tangents[axis], difference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("text", ["4x", "4x0", "4 x 8", "four", "4x8x2"])
def test_proportions_are_a_number_an_axis(text):
    with pytest.raises(InputError, match="proportions: got"):
        HashGrid(HashGridConfig(proportions=text), 2)


def test_equal_sides_are_no_proportions():
    plain, same = (HashGrid(HashGridConfig(proportions=text), 2) for text in (None, "3x3"))
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), same.buffers(), strict=True))


def test_a_vertex_holds_its_row_of_the_table():
    config = HashGridConfig(levels=1, base_resolution=8, finest_resolution=8, level_features=3)
    grid = random_grid(config, 2)
    index = torch.cartesian_prod(torch.arange(1, 8), torch.arange(1, 8))
    coords = 2 * (index.double() - 0.5) / 7 - 1
    torch.testing.assert_close(grid(coords), grid.table[index[:, 0] + 8 * index[:, 1]], rtol=1e-9, atol=1e-9)


def test_linear_functions_of_the_vertices_are_reproduced_between_them():
    config = HashGridConfig(levels=1, base_resolution=8, finest_resolution=8, level_features=1)
    grid = random_grid(config, 2)
    rows = torch.arange(64).double()
    with torch.no_grad():
        grid.table.copy_((0.3 + 2 * (rows % 8) - 5 * (rows // 8))[:, None])
    unit = torch.rand(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.9
    x, y = (unit * 7 + 0.5).unbind(1)
    torch.testing.assert_close(grid(2 * unit - 1)[:, 0], 0.3 + 2 * x - 5 * y)


def plain_features(grid, coords):
    """The features by indexing: the weighted sum over a cell's corners, point by point."""
    position = (coords + 1)[:, None] / 2 * grid.cells.T + 0.5
    corner = torch.tensor(list(product((0, 1), repeat=coords.shape[1])))
    fraction = (position - position.floor())[:, :, None]
    weights = torch.where(corner == 1, fraction, 1 - fraction).prod(-1)
    rows = grid.rows(position.floor().int().movedim(0, -1).unbind(1)).movedim(1, 0)
    return (weights[..., None] * grid.table[rows]).sum(2).flatten(1)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_gradients_equal_those_of_the_plain_formula(axes):
    grid = HashGrid(HashGridConfig(), axes)
    torch.nn.init.normal_(grid.table, generator=torch.Generator().manual_seed(1))
    coords, factor = torch.randn(2, 500, 32, generator=torch.Generator().manual_seed(2))
    coords = coords[:, :axes].tanh().requires_grad_()
    found, expected = (
        torch.autograd.grad((features * factor).sum(), [grid.table, coords])
        for features in (grid(coords), plain_features(grid, coords))
    )
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=1e-6)
    # By coordinate, differences of vertices are summed up, times as many as there are cells.
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-3)


def test_features_can_be_differentiated_twice_in_both_modes():
    grid = random_grid(HashGridConfig(levels=3, table_log2=4, base_resolution=3, finest_resolution=9), 2)
    coords = torch.tensor([[0.31, -0.22], [-0.7, 0.45]], dtype=torch.float64, requires_grad=True)

    def features(table, coords):
        return torch.func.functional_call(grid, {"table": table}, (coords,)).sin()

    inputs = (grid.table.detach().requires_grad_(), coords)
    assert torch.autograd.gradcheck(features, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(features, inputs)


def test_one_call_serves_several_tables_and_each_point_has_its_gradient():
    grid = random_grid(HashGridConfig(levels=3, table_log2=4, base_resolution=3, finest_resolution=9), 2)
    coords = torch.rand(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 2 - 1

    def features(table, coords):
        return torch.func.functional_call(grid, {"table": table}, (coords,))

    tables = torch.stack([grid.table.detach(), 2 * grid.table.detach() ** 2])
    both = torch.func.vmap(features, (0, None))(tables, coords)
    torch.testing.assert_close(both, torch.stack([features(table, coords) for table in tables]))
    each = torch.func.vmap(torch.func.grad(lambda t, x: features(t, x[None]).square().sum()), (None, 0))
    whole = torch.func.grad(lambda t: features(t, coords).square().sum())(tables[0])
    torch.testing.assert_close(each(tables[0], coords).sum(0), whole)


def test_a_compiled_grid_gives_the_same_features_and_gradients(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its checks can't be compiled
    torch.compiler.reset()
    grid = HashGrid(HashGridConfig(levels=4, table_log2=6), 2)
    torch.nn.init.normal_(grid.table, generator=torch.Generator().manual_seed(1))
    coords = torch.rand(50, 2, generator=torch.Generator().manual_seed(2)) * 2 - 1
    results = []
    for forward in (grid, torch.compile(grid, backend="aot_eager", fullgraph=True)):
        features = forward(coords)
        results.append([features, *torch.autograd.grad(features.square().sum(), [grid.table])])
    for ours, compiled in zip(*results, strict=True):
        torch.testing.assert_close(ours, compiled)


def test_the_table_starts_small_and_uniform():
    table = HashGrid(HashGridConfig(), 2).table.detach()
    assert table.abs().max() <= 1e-4
    assert table.std() == pytest.approx(1e-4 / math.sqrt(3), rel=0.01)


def test_the_default_table_has_tiny_cuda_nns_size():
    # Vertices per axis in two dimensions: 16 2^(level/3) rounded up; from 203^2 on, 2^15 rows.
    resolutions = [16, 21, 26, 32, 41, 51, 64, 81, 102, 128, 162]
    rows = sum(math.ceil(r**2 / 8) * 8 for r in resolutions) + 5 * 2**15
    assert HashGrid(HashGridConfig(), 2).table.shape == (rows, 2)


def test_more_axes_than_primes_are_refused():
    with pytest.raises(InputError, match="in_features"):
        build_field(HashGridConfig(), 8, 1, seed=0)


def test_without_tiny_cuda_nn_there_is_no_fused_kernel(monkeypatch):
    monkeypatch.setitem(sys.modules, "tinycudann", None)
    fused_grid.cache_clear()
    assert fused_grid(HashGridConfig(), 2, torch.device("cpu")) is None
    fused_grid.cache_clear()


def test_tiny_cuda_nn_is_asked_for_the_same_grid(monkeypatch):
    asked = {}
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())

    def encoding(axes, options, dtype):
        asked.update(axes=axes, dtype=dtype, **options)
        return torch.nn.Identity()

    monkeypatch.setitem(sys.modules, "tinycudann", SimpleNamespace(Encoding=encoding))
    fused_grid.cache_clear()
    config = HashGridConfig(levels=6, base_resolution=4, finest_resolution=128)
    assert isinstance(fused_grid(config, 3, torch.device("cpu")), torch.nn.Identity)
    fused_grid.cache_clear()
    assert asked["axes"] == 3
    assert asked["dtype"] == torch.float32
    assert asked["n_levels"] == 6
    assert asked["per_level_scale"] == pytest.approx(2, rel=1e-5)


@pytest.mark.gpu
def test_tiny_cuda_nn_gives_the_same_features_and_gradients():
    pytest.importorskip("tinycudann")
    grid = HashGrid(HashGridConfig(), 2).cuda()
    coords = torch.rand(1000, 2, device="cuda") * 2 - 1
    fused, plain = grid(coords), grid.interpolate((coords + 1) / 2)
    torch.testing.assert_close(fused, plain, rtol=1e-3, atol=1e-7)
    gradients = [torch.autograd.grad((out * out).sum(), grid.table)[0] for out in (fused, plain)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-7)
