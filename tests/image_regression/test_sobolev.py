"""Sobolev supervision: values and derivatives at every factor-th pixel, measured on the others."""

import json
from pathlib import Path

import kornia
import pytest
import torch
from torch import Tensor

from evos.coords import grid
from evos.errors import InputError
from evos.images import read_image
from evos.runs import load_checkpoint, save_checkpoint
from evos.runs.loop import all_finite
from evos.signals import Signal, astronaut, cropped, from_pixels, subsample
from image_regression.main import main
from image_regression.options import PARTS, parse
from image_regression.trainer import Fit

FULL = ["--selector", "full"]
VAL_DER = ["--supervision", "val_der"]
FAST = ["--lr", "1e-3", "--steps", "20"]
SHARES = [("val_der", 1.0, 0.3), ("der", 0.0, 0.3), ("val", 1.0, 0.0)]
EVERY_FIFTH = ["--selector.key_interval", "5", "--selector.key_interval_end", "5"]


def train(run: Fit, steps: int, first: int = 1) -> list[float]:
    return [float(run.step(step)) for step in range(first, first + steps)]


def gradient_of(run: Fit) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in run.field.parameters() if parameter.grad is not None])


def literal(run: Fit, operator: str) -> tuple[Tensor, Tensor]:
    """Value and derivative loss, with gradient, by one reverse pass per channel through pixel coordinates (x, y).

    The targets are those of kornia, on the whole picture in [-1, 1].
    """
    height, width = run.signal.shape
    factor = run.options.run.factor
    low, high = run.values.min(), run.values.max()
    picture = 2 * (run.signal.picture(run.values) - low) / (high - low) - 1
    targets = kornia.filters.spatial_gradient(picture.permute(2, 0, 1)[None], operator, 1, True)[0]
    x, y = torch.meshgrid(torch.arange(0, width, factor), torch.arange(0, height, factor), indexing="xy")
    pixels = torch.stack([x, y], -1).reshape(-1, 2).float().requires_grad_()
    sides = torch.tensor([width - 1.0, height - 1.0])
    prediction = run.field((2 * pixels / sides - 1).flip(-1))
    values = (prediction - picture[::factor, ::factor].reshape(-1, 3)).square().mean()
    slopes = torch.zeros(())
    for channel in range(3):
        (slope,) = torch.autograd.grad(prediction[:, channel].sum(), pixels, create_graph=True)
        target = targets[channel, :, ::factor, ::factor].reshape(2, -1).T
        slopes = slopes + (slope - target).square().sum(-1).mean()
    return values, slopes


# ---- the loss


@pytest.mark.parametrize("operator", ["sobel", "diff"])
@pytest.mark.parametrize(("supervision", "value", "slope"), SHARES)
@pytest.mark.parametrize("field", ["siren", "pemlp", "finer"])
def test_loss_and_gradient_are_those_of_a_reverse_pass_per_channel(operator, supervision, value, slope, field, fit):
    argv = ["--supervision", supervision, "--lambda_der", "0.3", "--der_operator", operator, "--field", field]
    run = fit(*FULL, *argv, "--factor", "4", *FAST)
    losses = literal(run, operator)
    expected = value * losses[0] + slope * losses[1]
    expected.backward()
    gradient = gradient_of(run)
    run.optimizer.step = lambda: None
    # An angle of the encoding is up to 512 times a coordinate, so half a unit in its last place shows.
    assert float(run.step(1)) == pytest.approx(float(expected.detach()), rel=1e-4 if field == "pemlp" else 1e-5)
    assert (gradient_of(run) - gradient).norm() <= 1e-4 * gradient.norm()


def test_on_a_key_step_the_three_losses_add_up(fit):
    """Value, derivative and cross-frequency, the last by the Laplacian of the training grid's residual alone."""
    run = fit(*VAL_DER, "--lambda_der", "0.7", "--factor", "2", "--steps", "20")
    values, slopes = (float(loss.detach()) for loss in literal(run, "sobel"))
    residual = subsample(run.predict() - run.values, (16, 16), 2) @ torch.tensor([0.2989, 0.587, 0.114])
    padded = torch.nn.functional.pad(residual.view(8, 8), (1, 1, 1, 1))
    middle = padded[1:-1, 1:-1]
    laplacian = padded[2:, 1:-1] + padded[:-2, 1:-1] + padded[1:-1, 2:] + padded[1:-1, :-2] - 4 * middle
    expected = values + 0.7 * slopes + 0.65 * float(laplacian.square().mean())
    assert float(run.step(1)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("supervision", ["val_der", "der"])
@pytest.mark.parametrize("argv", [["--cfs_weight", "0.65"], ["--selector", "soft"], FULL])
@pytest.mark.parametrize("step", [4, 6])
def test_training_in_pieces_has_the_gradient_of_one_pass(supervision, argv, step, fit):
    options = [*argv, "--supervision", supervision, "--factor", "2", *FAST, "--cfs_ratio", "1"]
    whole = fit(*options)
    train(whole, step - 1)
    pieces = fit(*options, "--chunk", "13")
    pieces.load_state_dict(whole.state_dict())
    seen = []
    for run in (whole, pieces):
        run.optimizer.step = lambda: None
        seen += [float(run.step(step)), gradient_of(run)]
    assert seen[2] == pytest.approx(seen[0], rel=1e-5)
    assert (seen[3] - seen[1]).abs().max() <= 1e-5 * seen[1].abs().max()


# ---- the training grid


def test_the_training_grid_is_every_factor_th_pixel_in_the_coordinates_of_the_whole_picture(fit, photo):
    run = fit("--factor", "4")
    rows, columns = torch.meshgrid(torch.arange(0, 16, 4), torch.arange(0, 16, 4), indexing="ij")
    cells = (rows * 16 + columns).flatten()
    assert run.pool.shape == (4, 4)
    assert torch.equal(run.source.coords, grid((16, 16))[cells]) and torch.equal(
        run.source.trained, photo.values[cells]
    )


@pytest.mark.parametrize("selector", PARTS["selector"])
@pytest.mark.parametrize("supervision", ["val", "der", "val_der"])
def test_every_strategy_learns_on_the_training_grid(selector, supervision, fit):
    half = [] if selector == "full" else ["--selector.keep_ratio", "0.5"]
    options = ["--supervision", supervision, "--factor", "2", "--steps", "30", "--lr", "3e-3"]
    run = fit("--selector", selector, *half, *options)
    losses = train(run, 30)
    assert losses[-1] < 0.7 * losses[0] or selector == "soft"  # whose points gather where the error is
    assert all_finite(run.field.parameters()) and len(run.visits) == 64
    assert run.work.trained <= 30 * 64


def test_selectors_are_told_the_errors_of_the_training_grid(fit):
    run, seen = fit(*FULL, *VAL_DER, "--factor", "2"), []
    run.selector.observe = lambda selection, feedback: seen.append(feedback.residual)
    expected = subsample(run.predict() - run.values, (16, 16), 2)
    torch.testing.assert_close(run.evaluate(run.selector.all_rows)[0], expected, atol=1e-5, rtol=1e-4)
    run.step(1)
    torch.testing.assert_close(seen[0][0], expected, atol=1e-5, rtol=1e-4)


def test_a_picture_is_cropped_to_a_multiple_of_the_factor_with_a_notice(capsys):
    pixels = torch.rand(9, 14, 3)
    signal = cropped(from_pixels("a", pixels), 4)
    assert signal.shape == (8, 12) and torch.equal(signal.picture(signal.values), pixels[:8, :12])
    assert capsys.readouterr().err == "notice: a: cropped from 9 x 14 to 8 x 12, for a factor of 4\n"
    assert cropped(signal, 4) is signal and capsys.readouterr().err == ""
    with pytest.raises(InputError, match="--factor: got 10; allowed: at most 9"):
        cropped(from_pixels("a", pixels), 10)


# ---- derivatives alone


def test_derivatives_alone_leave_a_constant_that_the_trained_pixels_give(fit, photo):
    run = fit("--supervision", "der", *FULL, "--factor", "2", *FAST)
    before = run.predict()
    loss = float(run.loss(run.source.points(run.selector.select(1)), *run.outputs(run.source.coords[None]))[1].detach())
    mean = subsample(before, (16, 16), 2).mean(0)
    torch.testing.assert_close(mean, subsample(photo.values, (16, 16), 2).mean(0), atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        run.field.layers[-1].bias.add_(torch.tensor([0.5, -2.0, 7.0]))
    torch.testing.assert_close(run.predict(), before, atol=1e-5, rtol=1e-4)
    assert float(run.step(1)) == pytest.approx(loss, rel=1e-5)


def test_a_ramp_is_learnt_from_its_derivatives(fit):
    y, x = torch.meshgrid(torch.linspace(0, 1, 16), torch.linspace(0, 1, 16), indexing="ij")
    ramp = from_pixels("ramp", (0.5 * x + 0.3 * y)[..., None])
    # A field too smooth to follow the border, where central differences see half of the slope.
    run = fit("--supervision", "der", *FULL, "--steps", "60", "--lr", "3e-3", "--field.first_omega", "5", signal=ramp)
    train(run, 60)
    assert run.psnr() > 35


@pytest.mark.parametrize("argv", [VAL_DER, ["--supervision", "der"]])
@pytest.mark.parametrize("selector", [["--selector", "evos", *EVERY_FIFTH], ["--selector", "error"]])
def test_half_a_fit_and_the_other_half_are_a_whole_fit(argv, selector, fit, tmp_path):
    options = [*argv, *selector, "--factor", "2", *FAST]
    whole, first, second = fit(*options), fit(*options), fit(*options)
    losses = train(whole, 16)
    twin = train(first, 8)
    save_checkpoint(tmp_path / "half.pt", first.state_dict())
    second.load_state_dict(load_checkpoint(tmp_path / "half.pt"))
    assert twin + train(second, 8, first=9) == losses


# ---- measured


@pytest.mark.usefixtures("no_report")
def test_the_pixels_not_trained_on_are_measured_in_luma(tmp_path, tiny):
    main([*tiny, *FULL, *VAL_DER, "--factor", "4", "--steps", "5", "--out", str(tmp_path / "run")])
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    prediction = read_image(tmp_path / "run" / "images" / "reconstruction.png").pixels.double()
    truth = astronaut(16).values.view(16, 16, 3).double()
    luma = ((prediction - truth) @ torch.tensor([65.738, 129.057, 25.064]).double() / 256).square()
    total = luma.sum() - luma[::4, ::4].sum()
    assert metrics["held_out_psnr"] == pytest.approx(float(-10 * (total / (256 - 16)).log10()), abs=0.03)  # 8 bits
    assert metrics["curve"][-1]["held_out_psnr"] == metrics["held_out_psnr"]
    assert -1 <= metrics["held_out_ssim"] <= 1 and metrics["psnr"] != metrics["held_out_psnr"]
    assert read_image(tmp_path / "run" / "images" / "selection.png").pixels.shape == (4, 4, 1)


def test_derivatives_help_where_pixels_are_few(fit):
    """A smooth picture at every fourth pixel: what the derivatives say of the pixels in between."""
    y, x = torch.meshgrid(torch.linspace(0, 6, 32), torch.linspace(0, 6, 32), indexing="ij")
    waves = from_pixels("waves", (0.5 + 0.25 * torch.sin(2 * x) * torch.cos(2 * y) + 0.2 * torch.sin(x + y))[..., None])
    quality = {}
    for supervision in ("val", "val_der"):
        argv = ["--field.hidden_features", "32", "--field.omega", "15", "--lambda_der", "10", "--lr", "3e-3"]
        run = fit(*FULL, "--supervision", supervision, "--factor", "4", "--steps", "80", *argv, signal=waves)
        train(run, 80)
        quality[supervision] = run.psnr()
    assert quality["val_der"] > quality["val"]


@pytest.mark.parametrize("name", ["sine", "relu", "pe"])
def test_the_configs_of_a_method_differ_in_their_supervision_alone(name):
    folder = Path(__file__).resolve().parents[2] / "configs" / "image_regression"
    val, val_der = (
        parse(["--config", str(folder / f"sobolev_{name}_{kind}.txt")]).resolved() for kind in ("val", "val_der")
    )
    assert {key: (val[key], val_der[key]) for key in val if val[key] != val_der[key]} == {
        "supervision": ("val", "val_der")
    }
    assert (val["factor"], val["steps"], val["selector"], val["lambda_der"]) == (4, 50000, "full", 1)


def test_a_signal_of_one_line_has_derivatives_along_it_alone(fit):
    line = Signal("line", torch.rand(12, 3), (1, 12))
    run = fit(*FULL, *VAL_DER, *FAST, signal=line)
    assert run.source.derivatives is not None
    assert torch.equal(run.source.derivatives.view(12, 3, 2)[..., 0], torch.zeros(12, 3))
    assert train(run, 20)[-1] < float("inf") and all_finite(run.field.parameters())
