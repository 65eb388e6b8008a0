"""A run that was killed or stopped and goes on ends exactly where it would have ended."""

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from evos.optimizers import OPTIMIZERS
from evos.runs import load_checkpoint, save_checkpoint
from image_regression.main import main

ROOT = Path(__file__).resolve().parents[2]
EVERY_FIFTH = ["--selector.key_interval", "5", "--selector.key_interval_end", "4"]
STRATEGIES = {
    "evos": ["--selector", "evos", *EVERY_FIFTH],
    "error": ["--selector", "error"],
    "nint": ["--selector", "nint", "--selector.key_interval", "5"],
    "soft": ["--selector", "soft"],
    "int": ["--selector", "int"],
    "uniform": ["--selector", "uniform", "--cfs_weight", "0.65"],
    "full": ["--selector", "full"],
    "egra": ["--selector", "egra"],
    "expansive": ["--selector", "expansive"],
}
KILLED = ("evos", "error", "soft", "int", "uniform")
ON_DISK = [
    "--quiet",
    "--device",
    "cpu",
    "--lpips",
    "false",
    "--memory",
    "1100M",
    "--points",
    "500",
    "--cfs_weight",
    "0",
]
ON_DISK += ["--field", "hashgrid", "--field.levels", "3", "--field.finest_resolution", "64"]
RUN = ["--steps", "40", "--eval_every", "2", "--save_every", "5"]


def equal(a: Any, b: Any) -> bool:
    """Bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def assert_same_run(one: Path, other: Path, picture: str = "reconstruction.png") -> None:
    """Equal in all but the time it took."""
    states = [load_checkpoint(folder / "checkpoint.pt") for folder in (one, other)]
    for part in states[0]["fit"]:
        assert equal(states[0]["fit"][part], states[1]["fit"][part]), part
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (one, other)]
    for name in ("psnr", "ssim", "steps", "points_evaluated", "points_trained", "parameters", "shape"):
        assert metrics[0][name] == metrics[1][name], name
    for entry, twin in zip(metrics[0]["curve"], metrics[1]["curve"], strict=True):
        assert {**entry, "seconds": 0} == {**twin, "seconds": 0}
    pictures = [sorted(path.name for path in (folder / "images").iterdir()) for folder in (one, other)]
    assert pictures[0] == pictures[1] and pictures[0]
    for name in pictures[0]:
        assert (one / "images" / name).read_bytes() == (other / "images" / name).read_bytes(), name


def wait_for(path: Path, limit: float = 60) -> None:
    end = monotonic() + limit
    while not path.exists():
        assert monotonic() < end, f"no {path}"
        sleep(0.002)


# ---- killed


@pytest.mark.parametrize("name", KILLED)
def test_a_run_killed_again_and_again_ends_as_if_it_had_not_been(name, tmp_path, tiny, start):
    kill_again_and_again([*tiny, *RUN, *STRATEGIES[name]], tmp_path, start)


@pytest.mark.parametrize("strategy", ["error", "evos"])
@pytest.mark.parametrize("name", ["clip.mp4", "hill.npy", "box.ply"])
def test_a_killed_run_on_three_axes_ends_as_if_it_had_not_been(name, strategy, tmp_path, tiny, start, three_axes):
    options = [*tiny, *RUN, *STRATEGIES[strategy], "--input", str(three_axes(name))]
    kill_again_and_again(options, tmp_path, start)


def kill_again_and_again(options: list[str], tmp_path: Path, start: Any) -> None:
    """Three kills, and the run that resumes is the one that was not killed."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    program = start(*options, "--out", str(whole))
    begin = monotonic()  # the server has loaded by now
    assert program.wait() == 0, program.stderr
    duration = monotonic() - begin
    kills = 0
    for _ in range(30):
        program = start(*options, "--out", str(killed), "--resume")
        sleep(random.uniform(0.1, 0.6) * duration)
        program.kill()
        if program.wait() == -signal.SIGKILL:
            kills += 1
        else:  # it was faster than the first one, on a machine that others use: begin again, and kill it earlier
            shutil.rmtree(killed)
            kills, duration = 0, 0.7 * duration
        if kills == 3:
            break
    assert kills == 3
    program = start(*options, "--out", str(killed), "--resume")
    assert program.wait() == 0, program.stderr
    assert_same_run(whole, killed)


@pytest.mark.parametrize("place", ["os.fsync 7", "os.replace 4", "os.replace 5", "os.fsync 19"])
def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(place, tmp_path, tiny, start):
    options = [*tiny, *RUN, *STRATEGIES["evos"]]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(*options, "--out", str(whole)).wait() == 0
    assert start(*options, "--out", str(killed), kill_at=place).wait() == -signal.SIGKILL
    assert (killed / ".checkpoint.pt.tmp").exists()
    assert load_checkpoint(killed / "checkpoint.pt")["step"] in range(5, 40, 5)
    program = start(*options, "--out", str(killed), "--resume")
    assert program.wait() == 0, program.stderr
    assert_same_run(whole, killed)
    assert not (killed / ".checkpoint.pt.tmp").exists()


def test_a_killed_run_on_disk_ends_as_if_it_had_not_been(tmp_path, start):

    array = np.random.default_rng(0).integers(0, 256, (1300, 1200, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "photo.tif", array, compression="zlib", tile=(256, 256), photometric="rgb")
    options = [*ON_DISK, "--selector", "error", "--steps", "40", "--save_every", "5"]
    options += ["--eval_every", "10", "--whole_seconds", "0", "--animate", "--input", str(tmp_path / "photo.tif")]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(*options, "--out", str(whole)).wait() == 0
    for place in ("os.replace 9", "os.replace 25"):
        assert start(*options, "--out", str(killed), "--resume", kill_at=place).wait() == -signal.SIGKILL
    program = start(*options, "--out", str(killed), "--resume")
    assert program.wait() == 0, program.stderr
    assert_same_run(whole, killed, picture="preview.png")
    assert (whole / "animation.gif").read_bytes() == (killed / "animation.gif").read_bytes()
    assert {file.name for file in tmp_path.iterdir()} <= {"photo.tif", "whole", "killed", "stdout", "stderr"}


def test_a_kill_after_the_last_step_loses_nothing(tmp_path, tiny, start):
    options = [*tiny, *RUN, *STRATEGIES["evos"]]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(*options, "--out", str(whole)).wait() == 0
    # After config.json, config.txt, eight checkpoints, three pictures, field.safetensors and report.png: metrics.json.
    assert start(*options, "--out", str(killed), kill_at="os.replace 16").wait() == -signal.SIGKILL
    assert (killed / "report.png").exists() and not (killed / "metrics.json").exists()
    assert start(*options, "--out", str(killed), "--resume").wait() == 0
    assert_same_run(whole, killed)


def test_resuming_a_complete_run_changes_nothing(tmp_path, tiny, start):
    options = [*tiny, *RUN, "--out", str(tmp_path / "run")]
    assert start(*options).wait() == 0
    before = (tmp_path / "run" / "metrics.json").read_bytes()
    assert start(*options, "--resume").wait() == 0
    assert (tmp_path / "run" / "metrics.json").read_bytes() == before


# ---- stopped


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_and_says_how_to_go_on(number, status, tmp_path, tiny, start):
    options = [*tiny, "--steps", "100000", "--save_every", "1", "--out", str(tmp_path / "a run")]
    program = start(*options)
    wait_for(tmp_path / "a run" / "checkpoint.pt")
    program.kill(number)
    assert program.wait() == status
    state = load_checkpoint(tmp_path / "a run" / "checkpoint.pt")
    assert 1 <= state["step"] < 100000 and state["fit"]["work"][0] > 0
    assert not (tmp_path / "a run" / "metrics.json").exists()
    (line,) = program.stderr.splitlines()
    words = shlex.split(line.removeprefix("stopped; go on with: "))
    assert words[:2] == [sys.executable, str(ROOT / "image_regression" / "main.py")]
    assert words[2:] == [*options, "--resume"]


def test_a_stopped_run_that_was_to_overwrite_goes_on(tmp_path, tiny, start):
    options = [*tiny, *RUN, "--out", str(tmp_path / "run")]
    assert start(*options).wait() == 0
    (tmp_path / "config.txt").write_text("overwrite = true\n")
    options[options.index("40")] = "100000"
    (tmp_path / "run" / "checkpoint.pt").unlink()  # so that the next one is the second run's
    program = start(*options, "--config", str(tmp_path / "config.txt"))
    wait_for(tmp_path / "run" / "checkpoint.pt")
    program.kill(signal.SIGTERM)
    assert program.wait() == 143
    step = load_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"]
    words = shlex.split(program.stderr.removeprefix("stopped; go on with: "))
    program = start(*words[2:])
    while load_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] == step:
        sleep(0.01)
    program.kill(signal.SIGTERM)
    assert program.wait() == 143
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] > step


def test_the_command_that_a_stopped_run_prints_works_in_a_shell(tmp_path, tiny, start, environment):
    options = [*tiny, "--steps", "100", "--save_every", "1", "--lr", "1e-3"]
    assert start(*options, "--out", str(tmp_path / "whole")).wait() == 0
    folder = tmp_path / "it's a run"
    program = start(*options, "--out", str(folder))
    wait_for(folder / "checkpoint.pt")
    program.kill(signal.SIGTERM)
    assert program.wait() == 143
    again = program.stderr.removeprefix("stopped; go on with: ")
    done = subprocess.run(again, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "whole", folder)


# ---- in this process


@pytest.mark.parametrize("name", STRATEGIES)
def test_half_a_fit_and_the_other_half_are_a_whole_fit(name, fit, tmp_path):
    argv = [*STRATEGIES[name], "--steps", "24", "--lr", "1e-3", "--decay", "0.5", "--cfs_ratio", "0.7"]
    whole, first, second = fit(*argv), fit(*argv), fit(*argv)
    losses = [float(whole.step(step)) for step in range(1, 25)]
    twin_losses = [float(first.step(step)) for step in range(1, 13)]
    save_checkpoint(tmp_path / "half.pt", first.state_dict())
    torch.rand(5)
    second.load_state_dict(load_checkpoint(tmp_path / "half.pt"))
    twin_losses += [float(second.step(step)) for step in range(13, 25)]
    assert twin_losses == losses
    save_checkpoint(tmp_path / "whole.pt", whole.state_dict())
    save_checkpoint(tmp_path / "second.pt", second.state_dict())
    assert equal(load_checkpoint(tmp_path / "whole.pt"), load_checkpoint(tmp_path / "second.pt"))


@pytest.mark.parametrize("name", [*OPTIMIZERS, "ema", "clip_ratio", "polish", "polish of an average"])
def test_half_a_fit_and_the_other_half_are_a_whole_fit_however_weights_are_moved(name, fit, tmp_path):
    """And however often it is measured: the weights measured are not those trained."""
    if name in ("soap", "schedule_free"):
        pytest.importorskip("pytorch_optimizer")
    options = {
        "ema": ["--ema", "0.8"],
        "clip_ratio": ["--clip_ratio", "1"],
        "polish": ["--polish", "12"],
        "polish of an average": ["--polish", "14", "--ema", "0.5"],
    }
    argv = options.get(name, ["--optimizer", name])
    argv += ["--selector", "uniform", "--steps", "24", "--lr", "1e-3", "--warmup", "5", "--schedule", "cosine"]
    whole, first, second = fit(*argv), fit(*argv), fit(*argv)
    losses = [float(whole.step(step)) for step in range(1, 25)]
    twin_losses = [(float(first.step(step)), first.psnr())[0] for step in range(1, 13)]
    save_checkpoint(tmp_path / "half.pt", first.state_dict())
    second.load_state_dict(load_checkpoint(tmp_path / "half.pt"))
    assert second.psnr() == first.psnr()
    twin_losses += [(float(second.step(step)), second.psnr())[0] for step in range(13, 25)]
    assert twin_losses == losses and second.psnr() == whole.psnr()
    save_checkpoint(tmp_path / "whole.pt", whole.state_dict())
    save_checkpoint(tmp_path / "second.pt", second.state_dict())
    assert equal(load_checkpoint(tmp_path / "whole.pt"), load_checkpoint(tmp_path / "second.pt"))


@pytest.mark.parametrize("selector", ["full", "soft", "evos"])
def test_a_seed_gives_the_same_weights_whatever_the_global_generators_do(selector, fit):
    def weights(seed: int, disturbed: bool) -> torch.Tensor:
        torch.manual_seed(99 if disturbed else 0)
        run = fit("--selector", selector, "--seed", str(seed), "--steps", "8", "--lr", "1e-3")
        for step in range(1, 9):
            run.step(step)
            torch.rand(17 if disturbed else 1)
        return torch.cat([parameter.detach().flatten() for parameter in run.field.parameters()])

    assert torch.equal(weights(3, disturbed=False), weights(3, disturbed=True))
    assert not torch.equal(weights(3, disturbed=False), weights(4, disturbed=False))


@pytest.mark.parametrize("selector", ["uniform", "error", "expansive"])
def test_another_seed_selects_other_points(selector, fit):
    points = [fit("--selector", selector, "--seed", str(seed)).selector.select(1).index for seed in (3, 3, 4)]
    assert torch.equal(points[0], points[1]) and not torch.equal(points[0], points[2])


def test_two_programs_with_one_seed_are_one_run_and_another_seed_is_another(tmp_path, tiny, start):
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        assert start(*tiny, "--steps", "10", "--seed", seed, "--out", str(tmp_path / name)).wait() == 0
    assert_same_run(tmp_path / "a", tmp_path / "b")
    weights = [load_checkpoint(tmp_path / name / "checkpoint.pt")["fit"]["field"] for name in "ac"]
    assert not equal(*weights)


def test_nothing_of_a_run_is_left_in_the_folder_above(tmp_path, tiny, start):
    assert start(*tiny, "--steps", "3", "--out", str(tmp_path / "deep" / "run")).wait() == 0
    assert sorted(os.listdir(tmp_path)) == ["deep", "stderr", "stdout"]
    names = {name.split(".")[0] for name in os.listdir(tmp_path / "deep" / "run")}
    assert names == {"checkpoint", "config", "events", "field", "images", "metrics", "report"}


def test_a_finished_fit_goes_on_for_more_steps(tmp_path, tiny, picture, capsys, refused):
    argv = [*tiny, "--input", str(picture("a.png")), "--out", str(tmp_path / "run")]
    main([*argv, "--steps", "4"])
    first = json.loads((tmp_path / "run" / "metrics.json").read_text())
    capsys.readouterr()
    main([*argv, "--steps", "7", "--resume"])
    assert "notice: steps: 4 before, 7 now" in capsys.readouterr().err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["steps"] == 7 and metrics["points_trained"] > first["points_trained"]
    assert "--steps: got 5" in refused(*argv, "--steps", "5", "--resume")
    main([*argv, "--steps", "7", "--resume"])
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == metrics


def test_a_polished_fit_does_not_go_on(tmp_path, tiny, picture, refused):
    argv = [*tiny, "--polish", "1", "--input", str(picture("a.png")), "--out", str(tmp_path / "run")]
    main([*argv, "--steps", "4"])
    assert "--steps: got 7" in refused(*argv, "--steps", "7", "--resume")
