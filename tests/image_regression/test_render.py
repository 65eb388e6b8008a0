"""A finished run as a module and as files of any resolution."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import evos
from evos import programs
from evos.coords import grid
from evos.errors import InputError
from evos.fitted import FILE, KEY, load, save_field
from evos.images import read_image
from evos.runs import seed_everything
from evos.signals import SoundFormat, astronaut, from_sound
from evos.sounds import Sound, read_sound
from image_regression.main import main
from image_regression.options import parse
from image_regression.run import fitted_field
from image_regression.trainer import Fit

SMALL = ["--steps", "6", "--lpips", "false", "--quiet"]


def tone(samples=400):
    time = torch.linspace(0, 1, samples)
    return from_sound("tone", Sound(0.5 * torch.sin(60 * time)[:, None], samples, "PCM_16", "wav"))


@pytest.mark.parametrize(
    "words",
    [
        ["--recipe", "fast"],
        ["--recipe", "fast", "--field", "siren"],
        ["--field", "wire", "--transform", "box_cox"],
        ["--field", "fourier", "--transform", "gamma", "--ema", "0.9"],
        ["--supervision", "der", "--factor", "2", "--selector", "full"],
    ],
    ids=["grid", "schedule-free average", "complex weights", "moving average", "derivatives"],
)
@pytest.mark.parametrize("signal", [astronaut(24), tone()], ids=["picture", "sound"])
def test_a_fitted_field_has_the_values_that_the_run_evaluates(words, signal, tmp_path):
    small = [] if "--recipe" in words else ["--field.hidden_features", "16"]
    fit = Fit(signal, parse([*words, *small, *SMALL]), torch.device("cpu"))
    seed_everything(0)
    for step in range(1, 7):
        fit.step(step)
    save_field(tmp_path / FILE, fitted_field(fit))
    fitted = load(tmp_path)
    torch.testing.assert_close(fitted.sample().flatten(0, -2), fit.predict(), rtol=0, atol=2e-5)
    assert (fitted.shape, fitted.channels, fitted.name) == (signal.shape, signal.values.shape[-1], signal.name)


def test_a_fitted_field_is_differentiable_at_any_coordinates(tmp_path):
    main(["--longer_side", "16", "--field.hidden_features", "8", *SMALL, "--out", str(tmp_path / "a")])
    fitted = evos.load(tmp_path / "a").double()
    coords = torch.rand(2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert fitted(coords).shape == (2, 3, 3)
    assert torch.autograd.gradcheck(lambda x: fitted(x), coords.requires_grad_())
    fitted(coords).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in fitted.field.parameters())
    with pytest.raises(InputError, match=r"shape: .*allowed: 2 axes"):
        fitted.sample((4,))


def test_a_picture_is_rendered_at_any_size(tmp_path, capsys):
    main(["--longer_side", "16", "--field.hidden_features", "8", *SMALL, "--out", str(tmp_path / "a")])
    out = tmp_path / "big.png"
    programs.main(["render", str(tmp_path / "a"), "--size", "40", "--out", str(out)])
    picture = read_image(out).pixels
    fitted = evos.load(tmp_path / "a")
    expected = fitted(grid((40, 40))).detach().clamp(0, 1).unflatten(0, (40, 40))
    torch.testing.assert_close(picture, expected, rtol=0, atol=0.51 / 255)
    assert "40 x 40" in capsys.readouterr().out
    for words, message in (
        ([str(tmp_path / "a"), "--out", str(out)], "big.png, which exists"),
        ([str(tmp_path / "b"), f"out={tmp_path / 'c.png'}"], "which is not there"),
        ([str(tmp_path / "a"), "size=1", f"out={tmp_path / 'c.png'}"], "size: got 1"),
        ([str(tmp_path / "a"), "size=9"], "out: got None"),
        ([str(tmp_path / "a"), f"out={tmp_path / 'none' / 'c.png'}"], "c.png, whose folder can't be written"),
        ([], "patterns=FILE to decode, or RUN"),
    ):
        with pytest.raises(SystemExit) as stop:
            programs.main(["render", *words])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and message in error and error.count("\n") == 1


def test_a_sound_is_rendered_at_any_rate(tmp_path):
    fit = Fit(tone(), parse([*SMALL, "--field.hidden_features", "8"]), torch.device("cpu"))
    save_field(tmp_path / FILE, fitted_field(fit))
    programs.main(["render", f"run={tmp_path}", "--size", "800", f"out={tmp_path / 'a.wav'}"])
    sound = read_sound(tmp_path / "a.wav")
    assert sound.rate == 800 and len(sound.samples) == 800
    values = load(tmp_path).sample((800,))
    torch.testing.assert_close(sound.samples, (2 * values - 1) * fit.signal.sound.peak, rtol=0, atol=1e-4)


def test_a_sound_without_a_format_is_rendered_by_its_rate_and_peak(tmp_path):
    fitted = fitted_field(Fit(tone(), parse([*SMALL]), torch.device("cpu")))
    save_field(tmp_path / FILE, fitted)
    about = json.loads(open_metadata(tmp_path / FILE))
    assert "rate" not in about and "peak" not in about
    about |= {"form": None, "rate": 400, "peak": 0.5}
    save_file(load_file(tmp_path / FILE), tmp_path / FILE, {KEY: json.dumps(about)})
    found = load(tmp_path)
    assert found.kind == "sound" and found.form == SoundFormat(400, "PCM_16", "wav", 0.5)
    save_file(load_file(tmp_path / FILE), tmp_path / FILE, {KEY: json.dumps(about | {"rate": None, "peak": None})})
    assert load(tmp_path).kind == "picture"


@pytest.mark.parametrize("extension", ["flac", "ogg", "mp3"])
def test_a_sound_is_rendered_in_any_format(tmp_path, extension):
    save_field(tmp_path / FILE, fitted_field(Fit(tone(8000), parse([*SMALL]), torch.device("cpu"))))
    out = tmp_path / f"a.{extension}"
    programs.main(["render", str(tmp_path), f"out={out}"])
    assert read_sound(out).rate == 8000


@pytest.mark.parametrize("damage", ["cut", "foreign", "version", "weights", "transform", "missing"])
def test_a_damaged_file_is_one_clear_line(damage, tmp_path):
    save_field(tmp_path / FILE, fitted_field(Fit(tone(), parse([*SMALL]), torch.device("cpu"))))
    path = tmp_path / FILE
    tensors = load_file(path)
    about = json.loads(open_metadata(path))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "foreign":
        save_file(tensors, path)
    elif damage == "version":
        save_file(tensors, path, {KEY: json.dumps(about | {"version": 9})})
    elif damage == "weights":
        save_file({"shift": tensors["shift"]}, path, {KEY: json.dumps(about)})
    elif damage == "transform":
        save_file(tensors, path, {KEY: json.dumps(about | {"transform": {"kind": "power", "low": 0.0}})})
    else:
        path.unlink()
    with pytest.raises(InputError) as error:
        load(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def open_metadata(path):
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata()[KEY]
