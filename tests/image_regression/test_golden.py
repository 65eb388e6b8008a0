"""Recorded loss curves: a refactoring shows the same ones. To record anew: python tests/golden/record.py"""

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
    assert record.curve(name) == pytest.approx(CURVES[name], rel=1e-3)


def test_every_run_is_recorded_and_learns(record):
    assert set(CURVES) == set(record.RUNS)
    assert all(len(curve) == record.STEPS and curve[-1] < curve[0] for curve in CURVES.values())
