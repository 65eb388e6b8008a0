"""Progress on a terminal, in a log file, and kept quiet."""

import sys
import time
from io import StringIO

import torch

from evos import runs


def test_without_a_terminal_progress_is_a_plain_line_per_tenth_and_the_last(capsys, time_of):
    time_ = time_of("evos.runs.progress")
    with runs.Progress(200, "cat [red]") as progress:
        for step in range(1, 201):
            time_.now += 0.01
            progress.update(step, psnr=torch.tensor(step / 10), loss=0.25)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines] == [f"{step}/200" for step in range(20, 201, 20)]
    assert lines[4] == "cat [red] 100/200  50%  psnr 10  loss 0.25  left 0:01"
    assert lines[-1] == "cat [red] 200/200  100%  psnr 20  loss 0.25  took 0:02"
    assert "\x1b" not in "".join(lines)


def test_slow_steps_give_a_line_every_five_seconds_and_the_time_left_of_a_resumed_run(capsys, time_of):
    time_ = time_of("evos.runs.progress")
    with runs.Progress(100_000, "cat", start=50_000) as progress:
        for step in range(50_001, 50_014):
            time_.now += 2
            progress.update(step)
    lines = capsys.readouterr().out.splitlines()
    assert [int(line.split()[1].split("/")[0]) for line in lines] == [50_003, 50_006, 50_009, 50_012, 50_013]
    assert lines[0].endswith("left 27:46:34")  # 49,997 steps of 2 s


def test_between_lines_metrics_are_not_read_and_updates_are_cheap(capsys):
    progress = runs.Progress(10**7, "cat")
    unreadable = torch.empty(3)  # float() of it would raise
    began = time.perf_counter()
    for step in range(1, 1001):
        progress.update(step, psnr=unreadable)
    assert time.perf_counter() - began < 0.5
    assert capsys.readouterr().out == ""


def test_quiet_prints_nothing(capsys):
    with runs.Progress(10, "cat", quiet=True) as progress:
        for step in range(1, 11):
            progress.update(step, psnr=1.0)
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_a_bar_shows_the_metric_and_ends_at_the_last_step(monkeypatch, time_of):
    class Terminal(StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    time_ = time_of("evos.runs.progress")
    with runs.Progress(1000, "cat [red]") as progress:
        for step in range(1, 1001):
            time_.now += 0.02
            progress.update(step, psnr=30 + step / 1000)
    text = screen.getvalue()
    assert "\x1b[" in text and "━" in text and "[red] 1000/1000  100%  psnr 31  took 0:20" in text
    assert text.count("/1000") < 210  # ten redraws a second, not one a step
