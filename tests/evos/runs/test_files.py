"""JSON files: what they hold, and that they are whole."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from evos import runs
from evos.errors import InputError


def test_json_takes_tensors_paths_dataclasses_and_numbers_that_are_not_finite(tmp_path):
    @dataclass(frozen=True)
    class Config:
        out: Path
        device: torch.device

    value = {
        "config": Config(Path("a/b"), torch.device("cpu")),
        "tensor": torch.tensor([[1.0, float("nan")]]),
        "array": np.arange(2),
        "scalars": (np.float32(0.5), np.float64("inf"), float("-inf"), None, True, 3, "ü"),
        "dtype": torch.float32,
        7: {},
    }
    runs.write_json(tmp_path / "a.json", value)
    assert runs.read_json(tmp_path / "a.json") == {
        "config": {"out": "a/b", "device": "cpu"},
        "tensor": [[1.0, None]],
        "array": [0, 1],
        "scalars": [0.5, float("inf"), -float("inf"), None, True, 3, "ü"],
        "dtype": "torch.float32",
        "7": {},
    }
    assert "NaN" not in (tmp_path / "a.json").read_text() and os.listdir(tmp_path) == ["a.json"]


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    runs.write_json(tmp_path / "a.json", 1)
    with pytest.raises(TypeError):
        runs.write_json(tmp_path / "a.json", {"x": object()})
    assert runs.read_json(tmp_path / "a.json") == 1


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe"])
def test_json_that_cannot_be_read_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match="JSON file"):
        runs.read_json(tmp_path / "a.json")
