"""Recorded loss curves: a refactoring shows the same ones. To record anew: python tests/golden/record.py

Training amplifies the last bit of a sum, which depends on the processor's instructions (AVX2, AVX-512), about a
thousandfold in 30 steps; from then on two processors may select different points. So the first half of a curve is
compared closely, the second by its course.
"""

import importlib.util
import json
from pathlib import Path

import pytest

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
CURVES = json.loads((GOLDEN / "image_regression.json").read_text())


@pytest.fixture(scope="module")
def record():
    spec = importlib.util.spec_from_file_location("record", GOLDEN / "record.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", CURVES)
def test_training_follows_the_recorded_curve(name, record):
    curve, half = record.curve(name), record.STEPS // 2
    assert curve[:half] == pytest.approx(CURVES[name][:half], rel=1e-3)
    assert sum(curve[half:]) == pytest.approx(sum(CURVES[name][half:]), rel=0.2)


def test_every_run_is_recorded_and_learns(record):
    assert set(CURVES) == set(record.RUNS)
    assert all(len(curve) == record.STEPS and curve[-1] < curve[0] for curve in CURVES.values())
