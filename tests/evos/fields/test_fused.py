"""Fused evaluation against the fields themselves, in float64; products against float64; autocast against float32."""

import jaxtyping
import pytest
import torch
from torch import nn

from evos.fields import FIELDS, build_field, field_config, fused
from evos.fields.fused import Fused, compiled, matmul, points_at_a_time

SMALL = {
    "gauss": {"scale": 2},
    "wire": {"omega": 3, "first_omega": 4, "scale": 2},
    "fourier": {"features": 5, "sigma": 1.0},
    "hashgrid": {"levels": 3, "table_log2": 5, "base_resolution": 3, "finest_resolution": 9},
}


def small_field(name="siren", **options):
    values = {"hidden_features": 8, "hidden_layers": 2, **SMALL.get(name, {}), **options}
    field = build_field(field_config(name, values), 2, 3, seed=0)
    if name == "hashgrid":
        nn.init.uniform_(field.encoding.table)
    return field


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def values_and_gradients(evaluate, field, coords):
    coords = coords.clone().requires_grad_()
    values = evaluate(coords)
    weights = torch.linspace(-1, 2, values.numel()).view_as(values)
    return values.detach(), torch.autograd.grad((weights * values).sum(), [coords, *field.parameters()])


@pytest.mark.parametrize("name", FIELDS)
def test_values_and_gradients_are_the_fields_own_however_many_pieces_they_come_in(name, double, monkeypatch):
    field, coords = small_field(name), torch.rand(2, 25, 2) * 2 - 1
    expected = values_and_gradients(field, field, coords)
    for cached_numbers in (fused.CACHED_NUMBERS, 7 * 8):  # in one piece, in pieces of 7 points a thread
        monkeypatch.setattr(fused, "CACHED_NUMBERS", cached_numbers)
        torch.testing.assert_close(values_and_gradients(Fused(field), field, coords), expected)


def test_a_network_without_hidden_layers_and_a_single_point_are_evaluated_as_well(double):
    field, coords = small_field(hidden_layers=0), torch.tensor([0.3, -0.2])
    torch.testing.assert_close(Fused(field)(coords), field(coords))


def test_without_gradients_the_values_are_the_same_and_nothing_is_kept(double):
    field, coords = small_field(), torch.rand(9, 2)
    with torch.no_grad():
        values = Fused(field)(coords)
    assert not values.requires_grad
    torch.testing.assert_close(values, field(coords).detach())


def test_a_second_derivative_is_refused_rather_than_wrong(double):
    field, coords = small_field(), torch.rand(4, 2, requires_grad=True)
    (slope,) = torch.autograd.grad(Fused(field)(coords).sum(), coords, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        slope.sum().backward()


def test_weights_changed_in_place_count_at_the_next_call():
    field, coords = small_field(), torch.rand(5, 2)
    evaluate = Fused(field)
    before = evaluate(coords)
    with torch.no_grad():
        field.layers[-1].bias += 1
    torch.testing.assert_close(evaluate(coords), before + 1)


@pytest.mark.parametrize("shape", [(700, 64, 96), (3, 700, 64, 64)])
def test_large_products_agree_with_float64(shape):
    *points, inputs, outputs = shape
    a, b, bias = torch.randn(*points, inputs), torch.randn(inputs, outputs), torch.randn(outputs)
    assert a.numel() * outputs >= fused.ONEDNN_WORK
    exact = a.double() @ b.double()
    torch.testing.assert_close(matmul(a, b).double(), exact, rtol=1e-5, atol=1e-4)
    if len(points) == 1:
        torch.testing.assert_close(matmul(a, b, bias).double(), exact + bias, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(matmul(a.T, a).double(), a.double().T @ a.double(), rtol=1e-5, atol=1e-3)


@pytest.fixture
def compiler(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its checks can't be compiled
    torch.compiler.reset()


def test_large_products_can_be_compiled(compiler):
    a, b, bias = torch.randn(700, 64), torch.randn(64, 96), torch.randn(96)
    torch.testing.assert_close(compiled(matmul)(a, b, bias), torch.addmm(bias, a, b), rtol=1e-5, atol=1e-4)


# The compiler itself does what this warns of.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_the_whole_can_be_traced_as_it_is_for_a_gpu(compiler, monkeypatch):
    monkeypatch.setattr(fused, "points_at_a_time", lambda points, width: len(points))  # all, as there
    field, coords = small_field(hidden_features=64), torch.rand(700, 2) * 2 - 1
    evaluate = torch.compile(Fused(field).evaluate, backend="aot_eager", fullgraph=True)
    expected = values_and_gradients(field, field, coords)
    torch.testing.assert_close(values_and_gradients(evaluate, field, coords), expected, rtol=1e-3, atol=1e-4)


def test_under_autocast_only_the_layers_between_hidden_features_are_in_bfloat16():
    field = small_field(hidden_features=64)
    coords = torch.rand(500, 2) * 2 - 1
    exact = field(coords)
    with torch.autocast("cpu", torch.bfloat16):
        values, own = Fused(field)(coords), field(coords).float()
        values.sum().backward()
    assert values.dtype == torch.float32
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in field.parameters())
    # Coordinates of 8 bits, which is what the field itself makes of them, are off by up to 0.06 of omega x = 30.
    error, own_error = (values - exact).square().mean().sqrt(), (own - exact).square().mean().sqrt()
    assert 0 < error < 0.01 * exact.std()
    assert own_error > 3 * error


def test_without_hidden_layers_autocast_changes_nothing():
    field, coords = small_field(hidden_layers=0), torch.rand(50, 2)
    with torch.autocast("cpu", torch.bfloat16):
        values = Fused(field)(coords)
    torch.testing.assert_close(values, field(coords))


def test_each_thread_of_a_cpu_gets_two_megabytes_of_a_layer_and_a_gpu_everything(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert points_at_a_time(torch.empty(10, 2), width=256) == 3 * 2 * 2**20 // (256 * 4)
    assert points_at_a_time(torch.empty(10, 2), width=2**21) == 3
    assert points_at_a_time(torch.empty(10, 2, device="meta"), width=256) == 10
