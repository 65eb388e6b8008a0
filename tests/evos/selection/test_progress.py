"""The exponent of a learning curve: a weighted fit, kept as running sums."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evos.selection.progress import SUMS, empty_curves, learning_exponent, mean_of_two_groups, with_point


def curve_of(points, rows=1):
    curve = empty_curves(rows, torch.device("cpu"))
    for step, error in points:
        curve = with_point(curve, step, torch.full((rows, 1), error))
    return curve


@given(st.floats(-1, 3), st.floats(1e-3, 10), st.integers(1, 3000))
def test_of_a_power_law_it_is_the_exponent(exponent, scale, interval):
    steps = [interval * n for n in range(1, 40)]
    found = learning_exponent(curve_of([(step, scale * (step / steps[-1]) ** -exponent) for step in steps])).item()
    assert found == pytest.approx(exponent, abs=1e-3)


def test_it_is_the_slope_of_numpys_weighted_fit():
    generator = np.random.default_rng(3)
    steps = np.sort(generator.choice(np.arange(1, 5000), 60, replace=False))
    errors = steps**-0.5 * generator.lognormal(0, 0.3, 60)
    slope, _ = np.polyfit(np.log(steps), np.log(errors), 1, w=steps / steps[-1])  # numpy squares the weights
    found = learning_exponent(curve_of(zip(steps.tolist(), errors.tolist(), strict=True))).item()
    assert found == pytest.approx(-slope, abs=1e-3)


def test_what_happened_long_ago_does_not_count():
    fell = [(step, step**-1.0) for step in range(1, 100)]
    stayed = [(step, 0.01) for step in range(100, 1000, 10)]
    assert learning_exponent(curve_of(fell)).item() == pytest.approx(1, abs=1e-3)
    assert abs(learning_exponent(curve_of(fell + stayed)).item()) < 0.1


def test_it_is_unknown_before_there_are_points_and_bad_points_are_ignored():
    assert learning_exponent(empty_curves(2, torch.device("cpu"))).tolist() == [[math.inf]] * 2
    assert learning_exponent(curve_of([(5, 0.1)] * 20)).item() == math.inf  # one step has no slope
    good = [(step, 1 / step) for step in range(1, 20)]
    assert learning_exponent(curve_of(good[:7])).item() == math.inf
    curve = curve_of(good)
    for bad in (math.nan, math.inf, 0.0):
        assert torch.equal(with_point(curve, 20, torch.tensor([[bad]])), curve)
    two = with_point(torch.cat([curve, curve]), 20, torch.tensor([[math.nan], [0.05]]))
    assert torch.equal(two[:1], curve) and not torch.equal(two[1:], curve) and two.shape == (2, SUMS)


def test_the_mean_of_two_groups_takes_each_by_its_share():
    values, first = torch.tensor([[4.0, 4.0, 4.0, 1.0]]), torch.tensor([[True, True, True, False]])
    share = torch.tensor([[0.1]])
    assert mean_of_two_groups(values, first, share).item() == pytest.approx(0.1 * 4 + 0.9 * 1)
    assert mean_of_two_groups(values, first | True, share).item() == pytest.approx(3.25)
    assert mean_of_two_groups(values, first & False, share).item() == pytest.approx(3.25)
    values[0, 0] = math.nan
    assert mean_of_two_groups(values, first, share).item() == pytest.approx(0.1 * 4 + 0.9 * 1)
    assert mean_of_two_groups(torch.full((1, 4), math.inf), first, share).isnan()
