"""Event files for TensorBoard."""

import os
import sys
import time
from pathlib import Path

import pytest
import torch

from evos import runs


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_events_read_back_and_a_resumed_run_replaces_what_came_after_its_checkpoint(tmp_path):
    log = runs.EventLog(tmp_path)
    for step in range(4):
        log.scalars(step, {"psnr": torch.tensor(float(step)), "loss": 0.5})
    log.image(0, "picture", torch.rand(4, 5, 3) * 2)
    log.image(0, "grey", torch.rand(4, 5, 1))
    log.close()
    log.close()
    assert scalars(tmp_path, "psnr") == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)]
    time.sleep(1.1)  # event files are named and ordered by the second
    resumed = runs.EventLog(tmp_path, purge_step=2)
    resumed.scalars(2, {"psnr": 20.0})
    resumed.close()
    assert scalars(tmp_path, "psnr") == [(0, 0.0), (1, 1.0), (2, 20.0)]
    assert all(file.name.startswith("events.out.tfevents.") for file in tmp_path.iterdir())


def test_without_tensorboard_there_is_one_warning_and_no_events(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.warns(UserWarning, match="tensorboard package is not installed") as caught:
        log = runs.EventLog(tmp_path)
        log.scalars(0, {"psnr": 1.0})
        log.image(0, "picture", torch.rand(4, 5, 3))
        log.close()
    assert len(caught) == 1 and os.listdir(tmp_path) == []
