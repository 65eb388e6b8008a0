"""Every family against a literal float64 implementation, numerical gradients, and the promises of build_field."""

import copy
import math

import jaxtyping
import pytest
import torch
from torch import nn

from evos.errors import InputError
from evos.fields import FIELDS, build_field, field_config
from evos.fields.wire import wavelet

SMALL = {"hidden_features": 8, "hidden_layers": 2}
EXTRA = {
    "pemlp": {"frequencies": 3},
    "fourier": {"features": 5, "sigma": 1.0},
    "hashgrid": {"levels": 3, "table_log2": 4},
}


def small_config(name, **options):
    return field_config(name, {**SMALL, **EXTRA.get(name, {}), **options})


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def points(count=7, axes=2, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, axes, generator=generator) * 2 - 1


def literal(field, x, activation):
    """The network written out: activation(W x + b, index), then the last layer."""
    *hidden, last = field.layers
    for index, layer in enumerate(hidden):
        x = activation(x.to(layer.weight.dtype) @ layer.weight.T + layer.bias, index)
    return x @ last.weight.T + last.bias


@pytest.mark.usefixtures("double")
class TestForward:
    """Each family equals its formula, unfolded, in float64."""

    def check(self, config, activation, encode=lambda x: x):
        field, x = build_field(config, 2, 3, seed=0), points()
        torch.testing.assert_close(field(x), literal(field, encode(x), activation).real, rtol=1e-10, atol=1e-12)

    def test_siren_is_the_sine_of_omega_times_a_linear_map(self):
        omegas = [25.0, 7.0, 7.0]
        self.check(small_config("siren", omega=7, first_omega=25), lambda z, i: torch.sin(omegas[i] * z))

    def test_finer_scales_the_frequency_by_its_input(self):
        omegas = [25.0, 7.0, 7.0]
        config = small_config("finer", omega=7, first_omega=25, first_bias_scale=2)
        self.check(config, lambda z, i: torch.sin(omegas[i] * (z.abs() + 1) * z))

    def test_wire_is_a_complex_gabor_wavelet(self):
        omegas = [12.0, 5.0, 5.0]
        config = small_config("wire", omega=5, first_omega=12, scale=3)
        self.check(config, lambda z, i: torch.exp(1j * omegas[i] * z - (3 * z).abs().square()))

    def test_gauss_is_a_bell_of_the_scaled_linear_map(self):
        self.check(small_config("gauss", scale=4), lambda z, i: torch.exp(-((4 * z) ** 2)))

    def test_relu_is_the_positive_part(self):
        self.check(small_config("relu"), lambda z, i: z.clamp(min=0))

    def test_pemlp_sees_the_coordinates_and_their_octaves_without_pi(self):
        def encode(x):
            sines = [torch.sin(2.0**k * x[:, d]) for d in range(2) for k in range(3)]
            cosines = [torch.cos(2.0**k * x[:, d]) for d in range(2) for k in range(3)]
            return torch.stack([x[:, 0], x[:, 1], *sines, *cosines], dim=1)

        self.check(small_config("pemlp"), lambda z, i: z.clamp(min=0), encode)

    def test_fourier_features_are_the_papers_on_the_unit_square_up_to_phase(self):
        config = small_config("fourier", features=4096, sigma=3)
        field, x = build_field(config, 2, 3, seed=0), points()
        frequencies = field.encoding.frequencies / math.pi  # B
        assert frequencies.mean().abs() < 0.15
        assert frequencies.std() == pytest.approx(3, rel=0.03)
        # The kernel cos(2 pi B (u - v)), u and v in [0, 1]: the shift to [-1, 1] cancels.
        features = field.encoding(x)
        difference = (x[0] - x[1]) / 2
        expected = torch.cos(2 * math.pi * frequencies @ difference).sum()
        torch.testing.assert_close(features[0] @ features[1], expected)
        self.check(
            small_config("fourier"),
            lambda z, i: z.clamp(min=0),
            lambda x: self.fourier(build_field(small_config("fourier"), 2, 3, seed=0), x),
        )

    @staticmethod
    def fourier(field, x):
        angles = x @ field.encoding.frequencies.T
        return torch.cat([angles.cos(), angles.sin()], dim=1)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", [name for name in FIELDS if name != "finer"])
def test_gradients_equal_finite_differences(name):
    gentle = {"siren": {"omega": 3, "first_omega": 3}, "wire": {"scale": 2, "omega": 3}, "gauss": {"scale": 2}}
    field = build_field(small_config(name, **gentle.get(name, {})), 2, 2, seed=0)
    names, parameters = zip(*field.named_parameters(), strict=True)
    coords = points(3).requires_grad_()

    def values(coords, *parameters):
        return torch.func.functional_call(field, dict(zip(names, parameters, strict=True)), (coords,))

    assert torch.autograd.gradcheck(values, (coords, *parameters))


@pytest.mark.usefixtures("double")
def test_finers_gradient_takes_its_scale_for_a_constant():
    field = build_field(small_config("finer", hidden_layers=0, first_omega=5), 1, 1, seed=0)
    x = points(6, axes=1).requires_grad_()
    (gradient,) = torch.autograd.grad(field(x).sum(), x)
    first, last = field.layers
    z = x.detach() @ first.weight.T + first.bias
    scale = z.abs() + 1
    expected = (torch.cos(5 * scale * z) * 5 * scale * last.weight) @ first.weight
    torch.testing.assert_close(gradient, expected)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", [name for name in FIELDS if name != "wire"])
def test_slope_and_curvature_are_the_activations_derivatives(name):
    field = build_field(small_config(name), 2, 3, seed=0)
    z = torch.linspace(-2, 2, 12).view(3, 4).requires_grad_()
    value, slope = field.activation_and_derivative(z, 0)
    torch.testing.assert_close(value, field.activation(z, 0))
    torch.testing.assert_close(slope, torch.autograd.grad(value.sum(), z, create_graph=True)[0])
    curvature = torch.autograd.grad(slope.sum(), z)[0] if slope.requires_grad else torch.zeros_like(z)
    torch.testing.assert_close(field.activation_second_derivative(z, value, slope, 0), curvature)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_hash_grids_tangents_are_its_slopes_within_the_cells(axes):
    config = small_config("hashgrid", base_resolution=3, finest_resolution=9)
    field, h = build_field(config, axes, 1, seed=0), 1e-5
    nn.init.uniform_(field.encoding.table)
    x = points(axes=axes, seed=4)
    values, tangents = field.encoding.forward_with_tangents(x, torch.eye(axes)[:, None].expand(-1, 7, -1))
    torch.testing.assert_close(values, field.encoding(x))
    for axis, found in enumerate(tangents):
        step = h * torch.eye(axes)[axis]
        expected = (field.encoding(x + step) - field.encoding(x - step)) / (2 * h)  # linear along an axis
        torch.testing.assert_close(found, expected)


def assert_uniform(values, bound):
    """Within the bound, near it, and with a uniform distribution's mean and deviation."""
    values = values.detach()
    assert values.abs().max() <= bound
    assert values.abs().max() > 0.97 * bound
    assert values.std(correction=0) == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert values.mean().abs() < 0.15 * bound


@pytest.mark.parametrize("name", ["siren", "finer"])
def test_sine_layers_start_from_the_papers_uniform_weights(name):
    first, *others = build_field(field_config(name, {"omega": 20}), 2, 3, seed=0).layers
    assert_uniform(first.weight, 1 / 2)
    for layer in others:
        assert_uniform(layer.weight, math.sqrt(6 / 256) / 20)
    for layer in others[:-1]:
        assert_uniform(layer.bias, 1 / math.sqrt(256))


@pytest.mark.parametrize("name", ["relu", "gauss", "pemlp", "fourier"])
def test_other_real_layers_start_from_pytorchs_uniform_weights(name):
    for layer in list(build_field(field_config(name), 2, 3, seed=0).layers)[:-1]:
        assert_uniform(layer.weight, 1 / math.sqrt(layer.in_features))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wires_gradient_is_finite_where_a_wavelet_is_below_the_smallest_normal_number(dtype):
    """That of torch.polar is not where the modulus is 1e-43, in what is left over of vectors of a CPU's width."""
    smallest = math.log(torch.finfo(dtype).tiny)
    exponent = torch.linspace(1.2 * smallest, 0, 4096, dtype=dtype).requires_grad_()
    phase = torch.linspace(-200, 200, 4096, dtype=dtype).requires_grad_()
    value = torch.cat([wavelet(*each) for each in zip(exponent.split(1), phase.split(1), strict=True)])
    above = exponent.detach() > smallest
    torch.testing.assert_close(value[above], torch.exp(torch.complex(exponent, phase))[above], rtol=1e-4, atol=0)
    assert (value[~above].abs() <= 2 * torch.finfo(dtype).tiny).all()
    torch.view_as_real(value).sum().backward()
    assert exponent.grad.isfinite().all() and phase.grad.isfinite().all()


def test_wires_real_and_imaginary_weights_start_uniform():
    first, *others = build_field(field_config("wire"), 2, 3, seed=0).layers
    assert first.out_features == int(256 / math.sqrt(2))
    assert_uniform(first.weight, 1 / math.sqrt(2))
    for layer in others[:-1]:
        assert layer.weight.dtype == torch.complex64
        assert_uniform(layer.weight.real, 1 / math.sqrt(181))
        assert_uniform(layer.weight.imag, 1 / math.sqrt(181))


def test_finers_first_biases_spread_as_far_as_asked():
    assert_uniform(build_field(field_config("finer", {"first_bias_scale": 5}), 2, 3, seed=0).layers[0].bias, 5)


@pytest.mark.parametrize("name", ["siren", "finer", "wire"])
def test_init_scale_multiplies_all_weights_but_the_last(name):
    once, twice = (build_field(small_config(name, init_scale=s), 2, 3, seed=0).layers for s in (1, 2))
    for a, b in zip(list(once)[:-1], list(twice)[:-1], strict=True):
        torch.testing.assert_close(2 * a.weight, b.weight)
        torch.testing.assert_close(a.bias, b.bias)
    torch.testing.assert_close(once[-1].weight, twice[-1].weight)


def test_sirens_activations_keep_their_distribution_from_layer_to_layer():
    """Theorem 1.8: before each sine a standard normal distribution, after it an arcsine one, of variance 1/2."""
    field = build_field(field_config("siren", {"hidden_features": 512, "hidden_layers": 4}), 2, 1, seed=0)
    x = points(4000)
    for index, layer in enumerate(list(field.layers)[:-1]):
        z = layer(x).detach()
        x = torch.sin(z)
        assert x.std() == pytest.approx(math.sqrt(1 / 2), rel=0.05)
        if index:
            variance = 1 + 30**2 / (3 * 512)  # of omega W x, and of omega b, which theorem 1.8 leaves out
            assert z.var() == pytest.approx(variance, rel=0.15)
        else:
            variance = 30**2 * (2 / 36 + 1 / 6)  # W from U(+-1/2), x from U(+-1), b from U(+-1/sqrt 2)
            assert z.var() == pytest.approx(variance, rel=0.15)


@pytest.mark.parametrize("name", FIELDS)
def test_hidden_layers_counts_those_from_hidden_to_hidden(name):
    for count in (0, 2):
        assert len(build_field(small_config(name, hidden_layers=count), 2, 3, seed=0).layers) == count + 2


@pytest.mark.parametrize("name", FIELDS)
def test_leading_axes_are_kept(name):
    field, x = build_field(small_config(name), 3, 2, seed=0), points(12, axes=3)
    torch.testing.assert_close(field(x.view(4, 3, 3)), field(x).view(4, 3, 2))
    torch.testing.assert_close(field(x[0]), field(x)[0])


@pytest.mark.parametrize("name", FIELDS)
def test_the_seed_alone_decides_the_weights(name):
    before = torch.random.get_rng_state()
    first = build_field(small_config(name), 2, 3, seed=5).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(9)
    second = build_field(small_config(name), 2, 3, seed=5).state_dict()
    other = build_field(small_config(name), 2, 3, seed=6).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", FIELDS)
def test_state_dict_round_trip(name):
    source, target = (build_field(small_config(name), 2, 3, seed=seed) for seed in (0, 1))
    x = points()
    assert not torch.equal(source(x), target(x))
    target.load_state_dict(copy.deepcopy(source.state_dict()))
    assert torch.equal(source(x), target(x))


@pytest.mark.usefixtures("double")
def test_a_plain_sirens_weights_load():
    plain = nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3))
    field = build_field(small_config("siren"), 2, 3, seed=0)
    field.layers.load_state_dict(plain.state_dict())
    x = expected = points()
    for layer in plain[:-1]:
        expected = torch.sin(30 * layer(expected))
    torch.testing.assert_close(field(x), plain[-1](expected))


def test_default_learning_rates_are_the_papers():
    rates = {name: config.default_lr for name, config in FIELDS.items()}
    expected = {"siren": 1e-4, "finer": 5e-4, "wire": 5e-3, "gauss": 5e-3, "relu": 1e-3}
    assert rates == {**expected, "pemlp": 1e-3, "fourier": 1e-3, "hashgrid": 1e-2}


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("siren", "hidden_features", 0),
        ("relu", "hidden_layers", -1),
        ("siren", "omega", 0.0),
        ("siren", "first_omega", math.nan),
        ("finer", "init_scale", -1.0),
        ("finer", "first_bias_scale", 0.0),
        ("wire", "scale", math.inf),
        ("gauss", "scale", 0.0),
        ("pemlp", "frequencies", 0),
        ("fourier", "features", 0),
        ("fourier", "sigma", 0.0),
        ("hashgrid", "levels", 0),
        ("hashgrid", "table_log2", 25),
        ("hashgrid", "level_features", 0),
        ("hashgrid", "base_resolution", 1),
        ("hashgrid", "finest_resolution", 15),
    ],
)
def test_options_out_of_range_are_refused_by_name(name, option, value):
    with pytest.raises(InputError) as error:
        FIELDS[name](**{option: value})
    assert error.value.argument == option


def test_unknown_names_are_refused_with_the_nearest_right_one():
    with pytest.raises(InputError, match="did you mean siren"):
        field_config("sirne")
    with pytest.raises(InputError, match="did you mean first_omega"):
        field_config("siren", {"first_omgea": 3})
    with pytest.raises(InputError, match="option"):
        field_config("relu", {"omega": 3})


@pytest.mark.parametrize(("axes", "channels", "argument"), [(0, 1, "in_features"), (1, 0, "out_features")])
def test_fields_without_axes_or_channels_are_refused(axes, channels, argument):
    with pytest.raises(InputError) as error:
        build_field(field_config("relu"), axes, channels, seed=0)
    assert error.value.argument == argument


@pytest.fixture
def compiler(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its checks can't be compiled
    torch.compiler.reset()


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("name", FIELDS)
def test_a_field_is_captured_in_one_graph(name):
    field, x = build_field(small_config(name), 2, 3, seed=0), points()
    compiled = torch.compile(field, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), field(x))


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_a_compiled_field_gives_the_same_values():
    field, x = build_field(small_config("finer", hidden_layers=0), 2, 3, seed=0), points()
    torch.testing.assert_close(torch.compile(field, fullgraph=True)(x), field(x), rtol=1e-4, atol=1e-5)
