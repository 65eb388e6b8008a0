"""Progress pictures and the animation of a run."""

from itertools import pairwise

import imageio.v3 as iio
import pytest
import torch

from evos.images import read_image
from image_regression.animation import SIDE, frame_steps, progress_picture
from image_regression.main import main
from image_regression.report import Panel


def test_frames_are_even_in_the_logarithm_of_the_step():
    steps = frame_steps(100_000)
    assert steps[0] == 1 and steps[-1] == 100_000 and len(steps) == 24
    assert all(1.5 < late / early < 1.8 for early, late in pairwise(steps[5:]))


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_short_run_has_a_frame_a_step(steps):
    assert frame_steps(steps) == list(range(1, steps + 1))


def test_a_progress_picture_has_truth_fit_error_and_selection_side_by_side():
    truth, fit = torch.full((20, 40, 3), 0.5), torch.full((20, 40, 3), 0.52)
    picture = progress_picture(truth, Panel("error", fit, torch.ones(10, 20, 1)), "step 3")
    height, width = SIDE // 2, SIDE + 4
    assert picture.shape == (height + 16, 4 * width, 3)
    middles = [picture[16 + height // 2, column * width + SIDE // 2].tolist() for column in range(4)]
    assert middles == [pytest.approx([value] * 3, abs=1e-3) for value in (0.5, 0.52, 0.2, 1.0)]
    assert (picture[:16] < 0.5).any()  # the caption


@pytest.mark.parametrize("selector", ["full", "error"])
def test_a_run_is_animated(selector, tmp_path, tiny, no_report):
    main([*tiny, "--steps", "30", "--selector", selector, "--animate", "--out", str(tmp_path / "run")])
    frames = iio.imread(tmp_path / "run" / "animation.gif", index=None)
    files = sorted((tmp_path / "run" / "frames").iterdir())
    assert len(frames) == len(files) == len(frame_steps(30))
    assert [int(file.stem) for file in files] == frame_steps(30)
    last = read_image(files[-1]).pixels
    assert torch.from_numpy(frames[-1]).float().div(255).sub(last).abs().mean() < 0.02  # 256 colours


def test_training_is_the_same_with_and_without_an_animation(tmp_path, tiny, no_report):
    import json

    for name, more in (("plain", []), ("animated", ["--animate"])):
        main([*tiny, "--steps", "30", "--selector", "error", *more, "--out", str(tmp_path / name)])
    one, other = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("plain", "animated"))
    assert one["psnr"] == other["psnr"] and one["loss_curve"] == other["loss_curve"]


def test_overwriting_a_run_removes_its_frames(tmp_path, tiny, no_report):
    argv = [*tiny, "--selector", "error", "--out", str(tmp_path / "run")]
    main([*argv, "--steps", "9", "--animate"])
    main([*argv, "--steps", "2", "--overwrite"])
    assert not list((tmp_path / "run" / "frames").iterdir())
    assert not (tmp_path / "run" / "animation.gif").exists()
