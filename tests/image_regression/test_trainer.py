"""One step and one run of the training loop, against closed forms."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from evos.fields import FIELDS
from evos.runs import save_checkpoint
from evos.runs.loop import all_finite
from evos.selection import Selection
from evos.transforms import TRANSFORMS
from image_regression.main import main
from image_regression.options import PARTS, parse
from image_regression.trainer import Fit

ROOT = Path(__file__).resolve().parents[2]
EVERY_FIFTH = ["--selector.key_interval", "5", "--selector.key_interval_end", "5"]
FAST = ["--lr", "1e-3", "--steps", "20"]


def train(run: Fit, steps: int, first: int = 1) -> list[float]:
    return [float(run.step(step)) for step in range(first, first + steps)]


def weights(run: Fit) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in run.field.parameters()])


# ---- the loss


def laplacian_error(prediction: Tensor, truth: Tensor, shape: tuple[int, int]) -> Tensor:
    """Squared difference of the Laplacians of two RGB pictures' grey versions, by convolution in float64."""
    luma = torch.tensor([0.2989, 0.587, 0.114], dtype=torch.float64)
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=torch.float64)[None, None]
    pictures = [(values.double() @ luma).view(1, 1, *shape) for values in (prediction, truth)]
    a, b = (F.conv2d(picture, kernel, padding=1) for picture in pictures)
    return (a - b).square().flatten()


def test_a_key_step_has_the_loss_of_the_paper(fit, photo):
    run = fit("--steps", "20")
    prediction = run.predict()  # in [0, 1] units; the paper's value loss is on [-1, 1]
    low, high = float(photo.values.min()), float(photo.values.max())
    error = (prediction - photo.values).double()
    value = (2 * error / (high - low)).square().mean()
    frequency = laplacian_error(prediction, photo.values, (16, 16)).mean()
    assert float(run.step(1)) == pytest.approx(float(value + 0.65 * frequency), rel=1e-5)


def test_between_key_steps_the_selected_points_are_live_and_the_others_cached(fit, photo):
    run = fit("--steps", "40", *EVERY_FIFTH, "--lr", "1e-3")
    at_key = run.predict()
    train(run, 2)
    live, chosen = run.predict(), None

    def remember(selection: Selection, *args: object, **kwargs: object) -> None:
        nonlocal chosen
        chosen = selection.index

    run.selector.observe = remember
    loss = float(run.step(3))
    assert chosen is not None and chosen.shape == (1, 128)
    index = chosen[0]
    mixed = at_key.clone()
    mixed[index] = live[index]
    low, high = float(photo.values.min()), float(photo.values.max())
    value = (2 * (live - photo.values)[index].double() / (high - low)).square().mean()
    frequency = laplacian_error(mixed, photo.values, (16, 16))[index].mean()
    assert loss == pytest.approx(float(value + 0.65 * frequency), rel=1e-5)


def test_cross_frequency_supervision_is_for_evos_unless_asked_for():
    for name in PARTS["selector"]:
        assert parse(["--selector", name]).cfs_weight == (0.65 if name == "evos" else 0)
        assert parse(["--selector", name, "--cfs_weight", "0.2"]).cfs_weight == 0.2
    assert parse(["--cfs_weight", "0"]).cfs_weight == 0


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (EVERY_FIFTH, {1, 2, 3, 4, 5, 6, 11, 16}),  # the first 30 %, and key steps to the end
        ([*EVERY_FIFTH, "--cfs_ratio", "0"], {1, 6, 11, 16}),
        (["--selector", "error", "--cfs_weight", "0.65"], {1, 2, 3, 4, 5, 6}),
        ([*EVERY_FIFTH, "--cfs_weight", "0"], set()),
        (["--selector", "int", "--cfs_weight", "1", "--cfs_ratio", "0.1"], {1, 2}),
        (["--selector", "full"], set()),
    ],
)
def test_the_steps_with_cross_frequency_supervision(argv, expected, fit, monkeypatch):
    run, seen = fit(*argv, "--steps", "20"), set()
    monkeypatch.setattr(
        "image_regression.trainer.cross_frequency_loss",
        lambda cached, selection, residual, pool: seen.add(selection.step) or residual.sum() * 0,
    )
    train(run, 20)
    assert seen == expected


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_residuals_are_in_the_units_of_the_picture(transform, fit, photo):
    run = fit("--transform", transform, "--selector", "full", "--steps", "4")
    expected = run.predict() - photo.values
    seen = []
    run.selector.observe = lambda selection, feedback: seen.append(feedback.residual)
    run.step(1)
    torch.testing.assert_close(seen[0][0], expected, atol=1e-5, rtol=1e-4)
    assert torch.allclose(run.transform.inverse(run.source.target), photo.values, atol=1e-5)


# ---- in pieces


@pytest.mark.parametrize("argv", [["--cfs_weight", "0"], ["--cfs_weight", "0.65"], ["--selector", "soft"]])
@pytest.mark.parametrize("step", [4, 6])
def test_training_in_pieces_has_the_gradient_of_one_pass(argv, step, fit):
    """Step 6 is a key step of EVOS, step 4 is none."""
    whole = fit(*EVERY_FIFTH if "soft" not in argv else [], *argv, *FAST, "--cfs_ratio", "1")
    train(whole, step - 1)
    pieces = fit(*EVERY_FIFTH if "soft" not in argv else [], *argv, *FAST, "--cfs_ratio", "1", "--chunk", "50")
    pieces.load_state_dict(whole.state_dict())
    seen = []
    for run in (whole, pieces):
        run.optimizer.step = lambda: None
        run.selector.observe = lambda selection, told: seen.append((told.residual, told.coord_grad))
        seen.append(run.step(step))
        seen.append(torch.cat([parameter.grad.flatten() for parameter in run.field.parameters()]))
    (residual, coord_grad), loss, gradient, (residual_, coord_grad_), loss_, gradient_ = seen
    assert float(loss_) == pytest.approx(float(loss), rel=1e-6)
    assert (gradient_ - gradient).abs().max() <= 1e-6 * gradient.abs().max()
    torch.testing.assert_close(residual_, residual, atol=1e-6, rtol=0)
    assert (coord_grad is None) == ("soft" not in argv)
    if coord_grad is not None:
        assert coord_grad.abs().max() > 0
        assert (coord_grad_ - coord_grad).abs().max() <= 1e-6 * coord_grad.abs().max()


@pytest.mark.parametrize("selector", PARTS["selector"])
def test_every_strategy_trains_in_pieces(selector, fit):
    whole = train(fit("--selector", selector, *FAST), 10)
    pieces = train(fit("--selector", selector, *FAST, "--chunk", "37"), 10)
    assert pieces == pytest.approx(whole, rel=1e-3)


def test_a_large_picture_in_pieces_takes_less_memory(tmp_path, tiny, start):
    peaks = []
    for name, chunk in (("whole", 512 * 512), ("pieces", 8192)):
        argv = ["--longer_side", "512", "--steps", "1", "--selector", "full", "--chunk", str(chunk)]
        program = start(*tiny, *argv, "--field.hidden_features", "48", "--out", str(tmp_path / name))
        assert program.wait() == 0, program.stderr
        peaks.append(json.loads((tmp_path / name / "metrics.json").read_text())["peak_memory_bytes"])
    # Of 48 features in four layers, each is kept before and after its sine: 400 MB.
    assert peaks[0] - peaks[1] > 200e6


# ---- points


@pytest.mark.parametrize(
    ("argv", "evaluated", "trained"),
    [
        (["--selector", "full"], 20 * 256, 20 * 256),
        (["--selector", "uniform", "--selector.keep_ratio", "0.25"], 20 * 64, 20 * 64),
        (["--selector", "soft"], 20 * 128, 20 * 128),
        # Key steps at 1, 6, 11, 16 train on everything.
        (EVERY_FIFTH, 4 * 256 + 16 * 128, 4 * 256 + 16 * 128),
        (["--selector", "error", "--selector.keep_ratio", "0.5"], 20 * 128, 20 * 128),
        # A look at everything costs, and trains on the chosen half.
        (["--selector", "int", "--selector.variant", "dense"], 20 * (256 + 128), 20 * 128),
        (["--selector", "int", "--selector.variant", "dense2"], 10 * 256 + 20 * 128, 20 * 128),
        # 0.5, 0.55, ... 0.95 in stages of two steps.
        (
            ["--selector", "uniform", "--selector.keep_schedule", "step"],
            None,
            2 * sum(math.floor(256 * k / 20) for k in range(10, 20)),
        ),
    ],
)
def test_every_point_that_passes_through_the_network_is_counted(argv, evaluated, trained, fit, monkeypatch):
    run, passed = fit(*argv, "--steps", "20"), [0]
    original = run.forward
    monkeypatch.setattr(
        run, "forward", lambda c: passed.__setitem__(0, passed[0] + c.shape[:-1].numel()) or original(c)
    )
    train(run, 20)
    assert run.work.trained == trained
    assert run.work.evaluated == (trained if evaluated is None else evaluated) == passed[0]


def test_evaluations_of_the_curve_are_not_counted(tmp_path, tiny):
    main([*tiny, "--steps", "20", "--selector", "full", "--eval_every", "1", "--out", str(tmp_path / "run")])
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert [entry["points"] for entry in metrics["curve"]] == [256 * step for step in range(1, 21)]
    assert metrics["points_evaluated"] == metrics["points_trained"] == 20 * 256


# ---- options of training


def test_the_learning_rate_falls_geometrically(fit):
    run, rates = fit("--lr", "1e-2", "--decay", "0.01", "--steps", "5"), []
    for step in range(1, 6):
        run.step(step)
        rates.append(run.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-2, 10**-2.5, 1e-3, 10**-3.5, 1e-4])


def test_the_learning_rate_of_all_weights_warms_up_and_falls_to_zero(fit):
    argv = ["--schedule", "linear", "--decay", "0", "--warmup", "2", "--optimizer", "muon"]
    run, rates = fit("--lr", "1e-2", *argv, "--steps", "5"), []
    for step in range(1, 6):
        run.step(step)
        rates.append({group["lr"] for group in run.optimizer.param_groups})
    assert len(run.optimizer.param_groups) == 2 and all(len(each) == 1 for each in rates)
    assert [each.pop() for each in rates] == pytest.approx([5e-3, 1e-2, 2e-2 / 3, 1e-2 / 3, 0])


@pytest.mark.parametrize("field", ["siren", "wire"])
def test_results_are_measured_with_the_average_of_the_weights(field, fit):
    run, seen = fit("--ema", "0.7", "--field", field, *FAST), []
    for step in range(1, 5):
        run.step(step)
        seen.append(weights(run))
    factors = [0.7**3, 0.7**2, 0.7, 1]
    expected = sum(factor * each for factor, each in zip(factors, seen, strict=True)) / sum(factors)
    average = run.state_dict()["average"]
    torch.testing.assert_close(torch.cat([weight.flatten() for weight in average.values()]), expected)
    twin = fit("--field", field, *FAST)
    twin.field.load_state_dict(average)
    assert torch.equal(twin.predict(), run.predict())
    assert torch.equal(weights(run), seen[-1]) and fit(*FAST).state_dict()["average"] is None


@pytest.mark.parametrize("argv", [["--ema", "0.9"], ["--optimizer", "schedule_free"], ["--supervision", "val_der"]])
def test_the_last_steps_polish_on_every_point_from_the_weights_measured(argv, fit):
    if "schedule_free" in argv:
        pytest.importorskip("pytorch_optimizer")
    run = fit("--selector", "uniform", "--lr", "1e-3", "--steps", "26", "--polish", "6", *argv)
    for step in range(1, 21):
        run.step(step)
    measured, work = run.psnr(), run.work.evaluated
    error = run.transform.derivative**2 * (run.predict() - run.values).square().mean()
    losses = [float(run.step(step)) for step in range(21, 27)]
    if "val_der" not in argv:
        assert losses[0] == pytest.approx(error.item(), rel=1e-4)
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.6 * losses[0]
    assert run.psnr() > measured + 1
    assert (run.work.evaluated - work) % run.pool.cells == 0 and run.work.evaluated - work >= 60 * run.pool.cells


def test_the_learning_rate_is_that_of_the_field(fit):
    for name, config in FIELDS.items():
        assert fit("--field", name).optimizer.param_groups[0]["lr"] == config.default_lr


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("selector", ["evos", "soft"])
def test_every_field_learns(field, selector, fit):
    argv = ["--field.hidden_features", "32"] if field != "hashgrid" else []
    run = fit("--field", field, *argv, "--selector", selector, "--steps", "15")
    before = run.psnr()
    train(run, 15)
    assert all_finite(run.field.parameters()) and run.psnr() > before


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_every_transform_learns(transform, fit):
    run = fit("--transform", transform, *FAST, "--field.hidden_features", "32")
    before = run.psnr()
    train(run, 20)
    assert run.psnr() > before + 1


def test_bfloat16_learns_what_float32_learns(fit):
    exact, rough = fit(*FAST), fit(*FAST, "--precision", "bf16")
    assert train(rough, 20) == pytest.approx(train(exact, 20), rel=0.2)
    assert rough.psnr() == pytest.approx(exact.psnr(), abs=0.5) and not torch.equal(weights(rough), weights(exact))
    assert all(parameter.dtype == torch.float32 for parameter in rough.field.parameters())


@pytest.mark.slow
def test_a_compiled_field_follows_the_same_curve(tmp_path, tiny, environment):
    curves = []
    for name, argv in (("eager", []), ("compiled", ["--compile"])):
        # Not forked: the compiler sets the number of threads, which a forked thread pool does not survive.
        options = [*tiny, *FAST, *argv, "--eval_every", "1", "--out", str(tmp_path / name)]
        subprocess.run([sys.executable, str(ROOT / "image_regression/main.py"), *options], env=environment, check=True)
        curve = json.loads((tmp_path / name / "metrics.json").read_text())["curve"]
        curves.append([entry["psnr"] for entry in curve])
    assert curves[1] == pytest.approx(curves[0], abs=0.01) and len(curves[0]) == 20


def test_a_state_of_other_options_is_refused(fit, tmp_path):
    run = fit("--selector", "uniform", "--steps", "4")
    save_checkpoint(tmp_path / "a.pt", run.state_dict())
    for argv in (["--selector", "full"], ["--selector", "uniform", "--field.hidden_features", "17"]):
        with pytest.raises(ValueError, match=r"checkpoint|selector state"):
            fit(*argv).load_state_dict(run.state_dict())
    with pytest.raises(ValueError, match="checkpoint: got one without 'visits'"):
        run.load_state_dict({})
