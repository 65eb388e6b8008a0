"""One-pass derivatives against autograd, closed forms, finite differences; targets against kornia and polynomials."""

import copy

import jaxtyping
import kornia
import pytest
import torch
from torch import nn
from torch.func import functional_call

from evos import coords
from evos.derivatives import laplacian_of, spatial_gradient, spatial_hessian, value_and_jacobian, value_and_tangents
from evos.errors import InputError
from evos.fields import FIELDS, build_field, field_config

OPTIONS = {
    "siren": {"omega": 4, "first_omega": 5},
    "finer": {"omega": 4, "first_omega": 5},
    "wire": {"omega": 3, "first_omega": 4, "scale": 2},
    "gauss": {"scale": 2},
    "pemlp": {"frequencies": 3},
    "fourier": {"features": 5, "sigma": 1.0},
    "hashgrid": {"levels": 3, "table_log2": 5, "base_resolution": 3, "finest_resolution": 9},
}
SCALED = [(name, {}) for name in FIELDS] + [(name, {"init_scale": 1.7}) for name in ("siren", "finer", "wire")]
OPERATORS = ("diff", "sobel", "scharr")


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def small_field(name, axes=2, channels=3, **options):
    values = {"hidden_features": 8, "hidden_layers": 2, **OPTIONS.get(name, {}), **options}
    field = build_field(field_config(name, values), axes, channels, seed=0)
    if name == "hashgrid":
        nn.init.uniform_(field.encoding.table)
    return field


def points(count=6, axes=2, seed=3):
    return torch.rand(count, axes, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def foreign(axes=2, channels=3):
    return nn.Sequential(nn.Linear(axes, 7), nn.Tanh(), nn.Linear(7, channels))


def jacobian_by_autograd(field, x, create_graph=False):
    """One reverse pass per channel: points are independent, so the sum over points separates into their rows."""
    x = x.clone().requires_grad_()
    values = field(x)
    rows = [torch.autograd.grad(c.sum(), x, create_graph=create_graph, retain_graph=True)[0] for c in values.unbind(1)]
    return values, torch.stack(rows, dim=1)


class Carrier(nn.Module):
    """A function of a field as a module, so that functional_call can give the field other weights."""

    def __init__(self, field, function):
        super().__init__()
        self.field, self.function = field, function

    def forward(self, *inputs):
        return self.function(self.field, *inputs)


# ---- values and first derivatives


@pytest.mark.parametrize(("name", "options"), SCALED)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_values_and_jacobian_are_autograds(name, options, axes):
    field, x = small_field(name, axes, **options), points(axes=axes)
    values, jacobian = value_and_jacobian(field, x)
    expected = torch.autograd.functional.jacobian(field, x)
    torch.testing.assert_close(values, field(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(jacobian, torch.einsum("ncnd->ncd", expected), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("name", "options"), SCALED)
def test_the_sobolev_losss_gradient_is_that_of_double_backward(name, options):
    field, x, target = small_field(name, **options), points(9), torch.rand(9, 3, 2)

    def gradients(values, jacobian):
        loss = values.square().mean() + (jacobian - target).square().sum((1, 2)).mean()
        return loss, torch.autograd.grad(loss, list(field.parameters()))

    loss, found = gradients(*value_and_jacobian(field, x))
    literal, expected = gradients(*jacobian_by_autograd(field, x, create_graph=True))
    torch.testing.assert_close(loss, literal, rtol=1e-11, atol=0)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", [name for name in FIELDS if name != "finer"])  # its scale has no gradient on purpose
def test_gradients_through_values_and_tangents_equal_finite_differences(name):
    carrier = Carrier(small_field(name, channels=2, hidden_features=4, hidden_layers=1), value_and_tangents)
    names, parameters = zip(*carrier.named_parameters(), strict=True)
    x, tangents = points(3).requires_grad_(), torch.randn(2, 3, 2).requires_grad_()

    def outputs(x, tangents, *parameters):
        return functional_call(carrier, dict(zip(names, parameters, strict=True)), (x, tangents))

    assert torch.autograd.gradcheck(outputs, (x, tangents, *parameters))


@pytest.mark.parametrize("name", FIELDS)
def test_tangents_are_the_jacobian_times_a_direction_of_each_points_own(name):
    field, x, tangents = small_field(name), points(), torch.randn(4, 6, 2)
    values, found = value_and_tangents(field, x, tangents)
    _, jacobian = jacobian_by_autograd(field, x)
    torch.testing.assert_close(values, field(x))
    torch.testing.assert_close(found, torch.einsum("ncd,knd->knc", jacobian, tangents))


def test_a_direction_may_serve_all_points():
    field, x, direction = small_field("siren"), points(), torch.randn(1, 1, 2)
    _, shared = value_and_tangents(field, x, direction)
    _, own = value_and_tangents(field, x, direction.expand(1, 6, 2))
    torch.testing.assert_close(shared, own)


def test_a_sines_derivative_is_the_cosine_in_closed_form():
    field = small_field("siren", axes=1, channels=1, hidden_features=1, hidden_layers=0, first_omega=7)
    first, last = field.layers
    for parameter, value in zip((first.weight, first.bias, last.weight, last.bias), (0.5, 0.1, 2.0, 3.0), strict=True):
        nn.init.constant_(parameter, value)
    x = points(axes=1)
    values, jacobian = value_and_jacobian(field, x)
    angle = 7 * (0.5 * x + 0.1)
    torch.testing.assert_close(values, 2 * angle.sin() + 3)
    torch.testing.assert_close(jacobian[..., 0], 7 * angle.cos())
    torch.testing.assert_close(laplacian_of(field, x), -49 / 2 * angle.sin())


def test_a_foreign_module_goes_through_forward_mode():
    field, x = foreign(), points()
    values, jacobian = value_and_jacobian(field, x)
    expected_values, expected = jacobian_by_autograd(field, x, create_graph=True)
    torch.testing.assert_close((values, jacobian), (expected_values, expected))
    weights = list(field.parameters())[:-1]  # the last bias has no part in the Jacobian
    found, literal = (torch.autograd.grad(j.square().sum(), weights) for j in (jacobian, expected))
    torch.testing.assert_close(found, literal)


def test_an_encoding_without_a_rule_goes_through_forward_mode():
    field, x = small_field("relu", axes=7), points()
    field.encoding = nn.Sequential(nn.Linear(2, 7), nn.Tanh())
    torch.testing.assert_close(value_and_jacobian(field, x), jacobian_by_autograd(field, x))


@pytest.mark.parametrize("name", ["siren", "wire"])
def test_many_points_in_parts_are_the_points_one_by_one(name, monkeypatch):
    field, x = small_field(name), points(11)
    whole = value_and_jacobian(field, x)
    monkeypatch.setattr("evos.derivatives.CPU_POINTS", 4)
    torch.testing.assert_close(value_and_jacobian(field, x), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_points_have_no_values(dtype):
    values, jacobian = value_and_jacobian(small_field("siren").to(dtype), points(0).to(dtype))
    assert (values.shape, jacobian.shape) == ((0, 3), (0, 3, 2))


@pytest.mark.parametrize("name", [name for name in FIELDS if name != "wire"])  # double() leaves complex weights alone
def test_float32_is_float64_rounded_with_the_fields_own_values(name):
    field, x = small_field(name), points(300)
    values, jacobian = value_and_jacobian(field, x)
    gradients = torch.autograd.grad(values.sum() + jacobian.square().mean(), list(field.parameters()))
    rounded = copy.deepcopy(field).float()
    found = value_and_jacobian(rounded, x.float())
    torch.testing.assert_close(found[0], rounded(x.float()), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found, (values.float(), jacobian.float()), rtol=1e-3, atol=1e-4)
    single = torch.autograd.grad(found[0].sum() + found[1].square().mean(), list(rounded.parameters()))
    for one, other in zip(single, gradients, strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm()


# The compiler itself does what this warns of.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_the_pass_is_captured_in_one_graph(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its checks can't be compiled
    torch.compiler.reset()
    field, x = small_field("siren"), points()
    compiled = torch.compile(lambda x: value_and_jacobian(field, x), fullgraph=True, backend="aot_eager")
    found, expected = (f(x) for f in (compiled, lambda x: value_and_jacobian(field, x)))
    torch.testing.assert_close(found, expected)


def test_inference_needs_no_graph():
    with torch.no_grad():
        values, jacobian = value_and_jacobian(small_field("siren"), points())
    assert not values.requires_grad
    assert not jacobian.requires_grad


def test_shapes_that_do_not_fit_are_refused():
    field, x = small_field("siren"), points()
    with pytest.raises(jaxtyping.TypeCheckError):
        value_and_jacobian(field, x[0])
    with pytest.raises(jaxtyping.TypeCheckError):
        value_and_tangents(field, x, torch.ones(2, 5, 2))
    with pytest.raises(jaxtyping.TypeCheckError):
        value_and_tangents(field, x, torch.ones(2, 6, 3))


# ---- second derivatives


@pytest.mark.parametrize("name", FIELDS)
def test_the_laplacian_is_the_trace_of_autograds_hessian(name):
    field, x = small_field(name, hidden_layers=1), points()
    found = laplacian_of(field, x)
    expected = [
        [torch.autograd.functional.hessian(lambda p, c=c: field(p[None])[0, c], p).trace() for c in range(3)] for p in x
    ]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-9, atol=1e-10)


def test_the_laplacian_equals_finite_differences_of_the_field():
    field, x, h = small_field("siren"), points(), 1e-4
    steps = h * torch.eye(2)
    expected = sum((field(x + s) - 2 * field(x) + field(x - s)) / h**2 for s in steps)
    torch.testing.assert_close(laplacian_of(field, x), expected, rtol=1e-5, atol=1e-6)


def test_the_laplacian_of_a_polynomial_and_of_a_plane_wave():
    class Polynomial(nn.Module):
        def forward(self, p):
            x, y = p.unbind(-1)
            return torch.stack([x**3 + 2 * x * y**2 + y, x * y, torch.sin(3 * x + 4 * y)], dim=-1)

    p = points()
    x, y = p.unbind(-1)
    expected = torch.stack([10 * x, 0 * x, -25 * torch.sin(3 * x + 4 * y)], dim=-1)
    torch.testing.assert_close(laplacian_of(Polynomial(), p), expected)


@pytest.mark.parametrize("name", ["siren", "gauss"])
def test_the_laplacians_gradient_equals_finite_differences(name):
    field = small_field(name, channels=1, hidden_features=3, hidden_layers=1)
    carrier = Carrier(field, laplacian_of)
    names, parameters = zip(*carrier.named_parameters(), strict=True)

    def outputs(*parameters):
        return functional_call(carrier, dict(zip(names, parameters, strict=True)), (points(3),))

    # The last bias has no part in it.
    assert torch.autograd.gradcheck(lambda *most: outputs(*most, parameters[-1]), parameters[:-1])


# ---- finite-difference targets


def image(height=5, width=7):
    return torch.rand(2, 3, height, width)


@pytest.mark.parametrize("operator", ["diff", "sobel"])
def test_image_derivatives_are_kornias_in_the_order_of_the_coordinates(operator):
    signal = image()
    expected = kornia.filters.spatial_gradient(signal, operator, order=1, normalized=True)
    torch.testing.assert_close(spatial_gradient(signal, operator), expected.flip(2))  # kornia: x before y


def test_scharr_is_its_published_kernel_over_32():
    signal = image()
    kernel = torch.tensor([[-3.0, 0, 3], [-10, 0, 10], [-3, 0, 3]]) / 32
    padded = nn.functional.pad(signal.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate")
    x, y = (nn.functional.conv2d(padded, k[None, None]).view_as(signal) for k in (kernel, kernel.T))
    torch.testing.assert_close(spatial_gradient(signal, "scharr"), torch.stack([y, x], dim=2))


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_ramp_gives_its_slopes_inside_and_half_of_them_at_the_edges(operator):
    y, x = torch.meshgrid(torch.arange(5.0), torch.arange(6.0), indexing="ij")
    dy, dx = spatial_gradient((3 * y - 2 * x)[None, None], operator)[0, 0]
    torch.testing.assert_close(dy[1:-1], torch.full((3, 6), 3.0))
    torch.testing.assert_close(dx[:, 1:-1], torch.full((5, 4), -2.0))
    torch.testing.assert_close(dy[[0, -1]], torch.full((2, 6), 1.5))
    torch.testing.assert_close(dx[:, [0, -1]], torch.full((5, 2), -1.0))


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_sounds_derivative_is_the_central_difference(operator):
    signal = torch.rand(2, 1, 6)
    derivative = spatial_gradient(signal, operator)
    assert derivative.shape == (2, 1, 1, 6)
    for row, found in zip(signal[:, 0].tolist(), derivative[:, 0, 0].tolist(), strict=True):
        padded = [row[0], *row, row[-1]]
        assert found == pytest.approx([(padded[i + 2] - padded[i]) / 2 for i in range(6)])


def test_a_single_sample_has_derivative_zero():
    assert not spatial_gradient(torch.rand(1, 1, 1)).any()
    assert not spatial_gradient(torch.rand(1, 1, 1, 1)).any()


def test_an_unknown_operator_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="did you mean sobel"):
        spatial_gradient(image(), "sobl")


def test_second_differences_are_exact_on_quadratics():
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(7.0), indexing="ij")
    hessian = spatial_hessian((2 * y**2 - 3 * x * y + 5 * x**2 + x - 1)[None, None])[0, 0, ..., 1:-1, 1:-1]
    expected = torch.tensor([[4.0, -3.0], [-3.0, 10.0]])[..., None, None].expand_as(hessian)
    torch.testing.assert_close(hessian, expected)
    time = torch.arange(6.0)
    torch.testing.assert_close(spatial_hessian((3 * time**2)[None, None])[0, 0, 0, 0, 1:-1], torch.full((4,), 6.0))


@pytest.mark.parametrize("operator", OPERATORS)
def test_targets_are_the_derivatives_of_a_field_per_pixel(operator):
    """A field as smooth as its grid is fine has the targets as its Jacobian times the coordinate step."""
    shape = (40, 30)
    field = small_field("siren", omega=1, first_omega=1)
    values, jacobian = value_and_jacobian(field, coords.grid(shape).double())
    per_pixel = jacobian * torch.tensor(coords.spacing(shape))
    target = spatial_gradient(values.detach().T.reshape(1, 3, *shape), operator)[0]  # C D H W
    found = per_pixel.detach().reshape(*shape, 3, 2).permute(2, 3, 0, 1)
    inner = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(target[inner], found[inner], rtol=1e-2, atol=1e-4)
