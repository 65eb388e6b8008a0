"""Target transforms against closed forms, scipy and float64."""

import json
import math

import pytest
import torch
from scipy import stats

from evos.errors import InputError
from evos.transforms import (
    TRANSFORMS,
    BoxCoxConfig,
    GammaConfig,
    MinMaxConfig,
    SymPowerConfig,
    ZScoreConfig,
    box_cox_exponent,
    fit_transform,
    load_transform,
)


def signals(dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    uniform = torch.rand(32, 32, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return {
        "random": uniform.to(dtype),
        "constant": torch.full((8, 8, 1), 0.3, dtype=dtype),
        "black": torch.zeros(8, 1, dtype=dtype),
        "two values": (uniform > 0.7).to(dtype),
        "dark": (uniform**4).to(dtype),
        "bright": (1 - uniform**4).to(dtype),
        "narrow": (0.5 + 0.01 * uniform).to(dtype),
        "8 bit": ((uniform**2 * 255).round() / 255).to(dtype),
    }


every_transform = pytest.mark.parametrize("name", TRANSFORMS)
every_signal = pytest.mark.parametrize("kind", signals())


@every_transform
@every_signal
def test_the_inverse_undoes_the_map_in_float64(name: str, kind: str) -> None:
    signal = signals()[kind]
    transform = fit_transform(TRANSFORMS[name](), signal)
    torch.testing.assert_close(transform.inverse(transform.forward(signal)), signal, rtol=0, atol=1e-12)


@every_transform
@every_signal
def test_the_inverse_undoes_the_map_in_float32_as_far_as_the_targets_can_tell(name: str, kind: str) -> None:
    signal = signals(torch.float32)[kind]
    transform = fit_transform(TRANSFORMS[name](), signal)
    back = transform.inverse(transform.forward(signal))
    # A target is rounded to about 1e-7: where the map is flat, signals closer than that over its slope look alike.
    twin = signal.double().requires_grad_()
    (slope,) = torch.autograd.grad(transform.forward(twin).sum(), twin)
    allowed = 1e-6 + 2e-7 / slope
    assert ((back - signal).abs() <= allowed).all()
    assert kind in ("two values", "bright", "dark") or (back - signal).abs().max() < 1e-6


def test_min_max_fills_minus_one_to_one_with_a_straight_line() -> None:
    signal = torch.tensor([[0.2], [0.3], [0.6]])
    transform = fit_transform(MinMaxConfig(), signal)
    torch.testing.assert_close(transform.forward(signal), torch.tensor([[-1.0], [-0.5], [1.0]]))
    assert transform.derivative == pytest.approx(5.0)


def test_z_score_has_mean_zero_and_deviation_one() -> None:
    signal = signals()["dark"]
    transform = fit_transform(ZScoreConfig(), signal)
    target = transform.forward(signal)
    assert target.mean().item() == pytest.approx(0, abs=1e-12)
    assert target.std(correction=0).item() == pytest.approx(1, abs=1e-12)
    assert transform.derivative == pytest.approx(1 / signal.std(correction=0).item())


@pytest.mark.parametrize("name", ["min_max", "z_score"])
def test_the_slope_is_the_derivative(name: str) -> None:
    signal = signals()["random"].requires_grad_()
    transform = fit_transform(TRANSFORMS[name](), signal)
    (gradient,) = torch.autograd.grad(transform.forward(signal).sum(), signal)
    torch.testing.assert_close(gradient, torch.full_like(signal, transform.derivative or math.nan))


@every_transform
def test_a_constant_signal_is_centred(name: str) -> None:
    signal = signals()["constant"]
    target = fit_transform(TRANSFORMS[name](), signal).forward(signal)
    torch.testing.assert_close(target, torch.zeros_like(target), rtol=0, atol=1e-15)


def test_gamma_is_a_power_of_the_normalised_signal() -> None:
    signal = torch.tensor([[0.5], [0.75], [1.0]])
    transform = fit_transform(GammaConfig(exponent=2.0), signal)
    torch.testing.assert_close(transform.forward(signal), torch.tensor([[-1.0], [-0.5], [1.0]]))
    assert transform.derivative is None


def test_sym_power_leaves_a_symmetric_signal_symmetric() -> None:
    half = signals()["dark"].flatten() * 0.5
    signal = torch.cat([half, 1 - half])[:, None]
    transform = fit_transform(SymPowerConfig(), signal)
    target = transform.forward(signal).flatten()
    torch.testing.assert_close(target[: len(half)], -target[len(half) :], rtol=0, atol=1e-12)
    assert -1 < target.min() < target.max() < 1  # the tails are full, so both ends have a buffer


def test_sym_power_without_calibration_and_buffer_takes_the_median_to_zero() -> None:
    signal = signals()["dark"].reshape(-1, 1)[:-1]  # an odd number: the median is one of them
    target = fit_transform(SymPowerConfig(edge=0.0, buffer=0.0), signal).forward(signal)
    assert target.quantile(0.5).item() == pytest.approx(0, abs=1e-9)
    assert (target.min().item(), target.max().item()) == pytest.approx((-1, 1))


def test_sym_power_is_calibrated_by_what_the_power_adds_to_the_edge() -> None:
    # u^4 has its median at 1/16: exponent 1/4, which carries the share 1 - 0.95 of the uniform u into the top 5 %.
    u = (torch.arange(100_000, dtype=torch.float64) / 99_999)[:, None] ** 4
    transform = fit_transform(SymPowerConfig(buffer=0.0), u)
    added = (1 - 0.95) - (1 - 0.95**0.25)
    expected = 1 / (1 + 3 * (1 - added / 0.05))
    assert transform.state_dict()["exponent"] == pytest.approx(expected, rel=1e-3)


def test_sym_power_buffers_are_grey_levels_times_the_share_in_each_tail() -> None:
    signal = torch.cat([torch.zeros(30), torch.linspace(0.1, 0.9, 60), torch.ones(10)])[:, None]
    state = fit_transform(SymPowerConfig(), signal).state_dict()
    assert state["low"] == pytest.approx(-256 / 255 * 0.3)
    assert state["span"] == pytest.approx(1 + 256 / 255 * 0.4)


@pytest.mark.parametrize(("kind", "exponent"), [("two values", 0.2), ("bright", 5.0)])
def test_sym_power_is_bounded(kind: str, exponent: float) -> None:
    signal = signals()[kind] if kind == "two values" else 1 - signals()[kind].sub(1).abs() ** 4
    state = fit_transform(SymPowerConfig(edge=0.0), signal).state_dict()
    assert state["exponent"] == pytest.approx(exponent)


@pytest.mark.parametrize("kind", ["random", "dark", "8 bit", "narrow"])
def test_box_cox_finds_the_exponent_scipy_finds(kind: str) -> None:
    signal = signals()[kind]
    shifted = signal + 0.1 * (signal.max() - signal.min())
    expected = stats.boxcox_normmax(shifted.flatten().numpy(), method="mle")
    transformed = stats.boxcox(shifted.flatten().numpy(), lmbda=expected)
    transform = fit_transform(BoxCoxConfig(), signal)
    assert transform.state_dict()["exponent"] == pytest.approx(expected, abs=1e-4)
    low, high = transformed.min(), transformed.max()
    normalised = torch.from_numpy(2 * (transformed - low) / (high - low) - 1).reshape(signal.shape)
    torch.testing.assert_close(transform.forward(signal), normalised, rtol=0, atol=1e-4)


def test_box_cox_of_many_values_is_found_from_a_few() -> None:
    normal = torch.randn(500_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = (3 + 0.5 * normal).clamp(0.1) ** 4  # its fourth root is Gaussian
    assert box_cox_exponent(values.sort().values) == pytest.approx(0.25, abs=0.01)


@every_transform
@every_signal
def test_the_inverse_and_its_gradient_are_finite_for_any_output(name: str, kind: str) -> None:
    transform = fit_transform(TRANSFORMS[name](), signals(torch.float32)[kind])
    output = torch.tensor([[-1e30], [-2.0], [-1.0], [-1.0 + 1e-7], [0.0], [1.0], [1.5], [1e30]], requires_grad=True)
    signal = transform.inverse(output)
    (gradient,) = torch.autograd.grad(signal.sum(), output)
    assert signal.isfinite().all() and gradient.isfinite().all()
    assert (signal.diff(dim=0) >= 0).all()  # every map is increasing


@every_transform
def test_the_inverse_has_the_right_gradient(name: str) -> None:
    transform = fit_transform(TRANSFORMS[name](), signals()["dark"])
    output = torch.linspace(-0.9, 0.9, 7, dtype=torch.float64)[:, None].requires_grad_()
    assert torch.autograd.gradcheck(transform.inverse, output)


@every_transform
def test_a_transform_survives_json(name: str) -> None:
    signal = signals()["dark"]
    transform = fit_transform(TRANSFORMS[name](), signal)
    loaded = load_transform(json.loads(json.dumps(transform.state_dict())))
    assert loaded == transform
    assert torch.equal(loaded.forward(signal), transform.forward(signal))


@pytest.mark.parametrize(
    "state",
    [{}, {"kind": "log"}, {"kind": "power", "low": 0.0}, {"kind": "power", "low": 0.0, "span": "1", "exponent": 1}],
)
def test_a_state_that_is_none_is_refused(state: dict) -> None:
    with pytest.raises(InputError, match="transform"):
        load_transform(state)


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan, math.inf])
def test_a_signal_outside_zero_to_one_is_refused(bad: float) -> None:
    with pytest.raises(InputError, match=r"signal.*finite values in \[0, 1\]"):
        fit_transform(MinMaxConfig(), torch.tensor([[0.5], [bad], [0.2]]))


def test_an_empty_signal_is_refused() -> None:
    with pytest.raises(InputError, match="at least one value"):
        fit_transform(MinMaxConfig(), torch.zeros(0, 3))


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (GammaConfig, {"exponent": 0.0}),
        (GammaConfig, {"exponent": math.nan}),
        (SymPowerConfig, {"quantile": 1.0}),
        (SymPowerConfig, {"tail": 0.5}),
        (SymPowerConfig, {"buffer": -1.0}),
        (SymPowerConfig, {"edge": 0.5}),
        (SymPowerConfig, {"max_exponent": 0.9}),
        (BoxCoxConfig, {"shift": 0.0}),
    ],
)
def test_an_option_out_of_range_is_named(config: type, options: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        config(**options)
