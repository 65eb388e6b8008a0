"""Recorded loss curves: a refactoring shows the same ones. To record anew: python tests/golden/record.py

Training amplifies the last bit of a sum, which depends on the processor's instructions (AVX2, AVX-512), a
hundredfold and more in 20 steps; then two processors may select different points. So the first steps of a curve are
compared closely, the others by their course.
"""

import importlib.util
import json
from pathlib import Path

import pytest

CLOSE = 15
"""Steps that are the same on all processors."""
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
    curve, recorded = record.curve(name), CURVES[name]
    assert curve[:CLOSE] == pytest.approx(recorded[:CLOSE], rel=1e-3)
    assert sum(curve[CLOSE:]) == pytest.approx(sum(recorded[CLOSE:]), rel=0.1)


def test_every_run_is_recorded_and_learns(record):
    assert set(CURVES) == set(record.RUNS)
    assert all(len(curve) == record.STEPS and curve[-1] < curve[0] for curve in CURVES.values())
