"""The clock counts training alone."""

import torch

from evos import runs


def test_the_clock_counts_between_start_and_pause_only(time_of):
    time_ = time_of("evos.runs.clock")
    clock = runs.Clock()
    time_.now += 5
    clock.start()
    time_.now += 2
    clock.start()
    assert clock.seconds == 2
    clock.pause()
    time_.now += 7
    clock.pause()
    assert clock.seconds == 2
    clock.start()
    time_.now += 1.5
    resumed = runs.Clock()
    resumed.load_state_dict(clock.state_dict())
    time_.now += 10
    assert (clock.seconds, resumed.seconds) == (13.5, 3.5)
    resumed.start()
    time_.now += 1
    assert resumed.seconds == 4.5


def test_a_clock_on_cuda_waits_for_the_device_at_pause_and_only_there(monkeypatch):
    waits = []
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    clock = runs.Clock("cuda:0")
    clock.start()
    assert clock.seconds >= 0 and waits == []
    clock.pause()
    clock.pause()
    assert waits == [torch.device("cuda:0")]
