"""Sounds in the same loop as pictures."""

import csv
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from evos.coords import spacing
from evos.images import read_image
from evos.runs import load_checkpoint, save_checkpoint
from evos.runs.loop import all_finite
from evos.signals import Signal, find_inputs, from_sound, load
from evos.sounds import Sound, read_sound, write_sound
from image_regression.compare import main as compare
from image_regression.main import main
from image_regression.options import PARTS, parse
from image_regression.recordings import decibels, measure
from image_regression.trainer import Fit

TINY = ["--quiet", "--field.hidden_features", "16", "--field.first_omega", "60", "--device", "cpu"]
CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "audio_regression"


def tones(length: int = 400, channels: int = 1) -> Tensor:
    time = torch.linspace(0, 1, length)[:, None]
    pitch = torch.tensor([[5.0, 9.0]])[:, :channels]
    return 0.4 * torch.sin(2 * torch.pi * pitch * time) * torch.exp(-time)


@pytest.fixture
def sound(tmp_path) -> Callable[..., Path]:
    """sound(name, samples=tones(), subtype="PCM_16", rate=8000) -> a file."""

    def write(name: str, samples: Tensor | None = None, subtype: str = "PCM_16", rate: int = 8000) -> Path:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_sound(tmp_path / name, tones() if samples is None else samples, rate, subtype)
        return tmp_path / name

    return write


@pytest.fixture
def no_pictures(monkeypatch, no_report) -> None:
    """Leave out what matplotlib draws, which takes longer than a tiny run."""
    monkeypatch.setattr("image_regression.recordings.write_spectrograms", lambda *args: None)


@pytest.fixture(scope="module")
def tone() -> Signal:
    return from_sound("tone", Sound(tones(), 8000, "PCM_16", "wav"))


@pytest.fixture
def sound_fit(tone) -> Callable[..., Fit]:
    """sound_fit(*argv, signal=tone) -> a Fit that has not begun."""

    def build(*argv: str, signal: Signal = tone) -> Fit:
        return Fit(signal, parse([*TINY, *argv]), torch.device("cpu"))

    return build


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


# ---- files


@pytest.mark.parametrize(
    ("name", "subtype", "channels", "rate"),
    [
        ("a.wav", "PCM_U8", 1, 8000),
        ("a.wav", "PCM_16", 2, 44100),
        ("a.wav", "PCM_24", 1, 96000),
        ("a.wav", "FLOAT", 2, 22050),
        ("a.flac", "PCM_24", 2, 48000),
        ("a.ogg", "VORBIS", 1, 16000),
    ],
)
@pytest.mark.usefixtures("no_pictures")
def test_a_reconstruction_has_the_channels_the_rate_and_the_samples_of_its_sound(
    name, subtype, channels, rate, tmp_path, sound
):
    path = sound(name, tones(400, channels), subtype, rate)
    main([*TINY, "--steps", "3", "--input", str(path), "--out", str(tmp_path / "run")])
    made = read_sound(tmp_path / "run" / "images" / f"reconstruction{path.suffix}")
    assert (made.rate, made.subtype, tuple(made.samples.shape)) == (rate, subtype, (400, channels))
    assert metrics_of(tmp_path / "run")["shape"] == [400, channels]


def test_the_reconstruction_is_what_the_metrics_measure(tmp_path, sound, capsys):
    path = sound("a.wav", 0.5 * tones(), "FLOAT")
    main([*TINY, "--steps", "60", "--lr", "3e-3", "--input", str(path), "--out", str(tmp_path / "run")])
    truth, made = (
        read_sound(file).samples.double() for file in (path, tmp_path / "run" / "images" / "reconstruction.wav")
    )
    metrics, error = metrics_of(tmp_path / "run"), (made - truth).square().mean()
    assert metrics["snr"] == pytest.approx(float(10 * (truth.square().mean() / error).log10()), abs=1e-3)
    span = 2 * truth.abs().max()
    assert metrics["psnr"] == pytest.approx(float(10 * (span**2 / error).log10()), abs=1e-3)
    assert metrics["psnr"] > 25 and metrics["ssim"] is None and "held_out_snr" not in metrics
    assert f"SNR {metrics['snr']:.2f} dB" in capsys.readouterr().out
    shown = read_image(tmp_path / "run" / "images" / "spectrogram.png").pixels
    assert min(shown.shape[:2]) > 500 and (tmp_path / "run" / "report.png").stat().st_size > 10_000
    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"audio": 0}).Reload()
    (last,) = events.Audio("reconstruction")[-1:]
    assert (last.step, last.sample_rate, last.length_frames) == (60, 8000, 400)
    assert {"spectrogram", "selection"} <= set(events.Tags()["images"])


@pytest.mark.parametrize("seconds", [0.5, 1, 4, 60])
def test_a_spectrogram_has_a_shape_to_look_at(seconds):
    frequencies, spectra = decibels(torch.zeros(int(8000 * seconds), 1)).shape
    assert 0.9 < spectra / frequencies < 2.5


def test_a_spectrogram_shows_a_tone_where_it_is():
    rate, pitch = 8000, 1000
    samples = torch.sin(2 * torch.pi * pitch * torch.arange(rate) / rate)[:, None]
    levels = decibels(torch.cat([0 * samples, samples]))
    assert levels.shape[0] == 513 and int(levels[:, -5].argmax()) == pitch * 1024 // rate
    assert levels[:, 5].max() < -100 < 0 < levels[:, -5].max()
    for length in (2, 3, 5, 100, 3_000_000):
        spectra, columns = decibels(torch.rand(length, 2)).shape
        assert spectra <= 513 and 1 <= columns <= 1300


# ---- the loop


def test_every_fifth_sample_is_trained_on_and_the_others_are_measured(sound_fit, tone):
    run = sound_fit("--selector", "full", "--factor", "5", "--steps", "4")
    assert run.pool.shape == (80,) and torch.equal(run.source.trained, tone.values[::5])
    values = run.predict()
    held_out = [i for i in range(400) if i % 5]
    error = (values - tone.values)[held_out].double()
    assert tone.sound is not None
    energy = (tone.samples(tone.values)[held_out].double() / tone.sound.peak / 2).square().sum()
    quality = measure(run, values, with_lpips=False)
    assert quality["held_out_snr"] == pytest.approx(float(10 * (energy / error.square().sum()).log10()), abs=1e-3)
    assert quality["held_out_psnr"] == pytest.approx(float(-10 * error.square().mean().log10()), abs=1e-3)


def test_the_derivative_loss_is_per_sample_and_of_central_differences(sound_fit, tone):
    run = sound_fit("--selector", "full", "--supervision", "der", "--der_operator", "diff", "--factor", "5")
    low, high = float(tone.values.min()), float(tone.values.max())
    target = 2 * (tone.values[:, 0].double() - low) / (high - low) - 1
    places = run.source.coords.clone().requires_grad_()
    (slope,) = torch.autograd.grad(run.field(places).sum(), places)
    losses = []
    for index, i in enumerate(range(0, 400, 5)):
        difference = (target[min(i + 1, 399)] - target[max(i - 1, 0)]) / 2
        losses.append((float(slope[index]) * spacing((400,))[0] - float(difference)) ** 2)
    assert float(run.step(1)) == pytest.approx(sum(losses) / 80, rel=1e-4)


@pytest.mark.parametrize("selector", PARTS["selector"])
@pytest.mark.parametrize("supervision", ["val", "val_der"])
def test_every_strategy_works_on_sound(selector, supervision, sound_fit):
    half = [] if selector == "full" else ["--selector.keep_ratio", "0.5"]
    argv = ["--selector", selector, *half, "--supervision", supervision, "--factor", "2", "--lr", "5e-3"]
    run = sound_fit(*argv, "--steps", "40")
    before = run.psnr()
    for step in range(1, 41):
        run.step(step)
    gain = 1 if selector == "soft" else 3  # soft's points begin anywhere, and walk towards what is hardest
    assert all_finite(run.field.parameters()) and run.psnr() > before + gain and len(run.visits) == 200


def test_half_a_fit_and_the_other_half_are_a_whole_fit(sound_fit, tmp_path):
    argv = ["--supervision", "val_der", "--factor", "5", "--steps", "20"]
    whole, first, second = (sound_fit(*argv, "--selector.key_interval", "4") for _ in range(3))
    losses = [float(whole.step(step)) for step in range(1, 21)]
    twin = [float(first.step(step)) for step in range(1, 11)]
    save_checkpoint(tmp_path / "half.pt", first.state_dict())
    second.load_state_dict(load_checkpoint(tmp_path / "half.pt"))
    assert twin + [float(second.step(step)) for step in range(11, 21)] == losses


@pytest.mark.usefixtures("no_pictures")
def test_a_stopped_run_on_a_sound_goes_on_where_it_was(tmp_path, sound, monkeypatch):
    argv = [*TINY, "--steps", "20", "--save_every", "5", "--input", str(sound("a.flac"))]
    main([*argv, "--out", str(tmp_path / "whole")])
    original = Fit.step
    monkeypatch.setattr(Fit, "step", lambda self, step: original(self, step) if step < 13 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main([*argv, "--out", str(tmp_path / "cut")])
    monkeypatch.setattr(Fit, "step", original)
    main([*argv, "--out", str(tmp_path / "cut"), "--resume"])
    files = [(tmp_path / name / "images" / "reconstruction.flac").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1] and metrics_of(tmp_path / "whole")["snr"] == metrics_of(tmp_path / "cut")["snr"]
    # What it wrote is its own: --overwrite leaves none of it.
    main([*argv, "--input", str(sound("b.wav")), "--out", str(tmp_path / "cut"), "--overwrite"])
    assert not (tmp_path / "cut" / "images" / "reconstruction.flac").exists()


@pytest.mark.usefixtures("no_pictures")
def test_a_sound_is_cropped_to_a_multiple_of_the_factor_with_a_notice(tmp_path, sound, capsys):
    path = sound("a.wav", tones(403))
    main([*TINY, "--steps", "2", "--factor", "5", "--input", str(path), "--out", str(tmp_path / "run")])
    assert "notice: a: cropped from 403 to 400, for a factor of 5" in capsys.readouterr().err
    assert len(read_sound(tmp_path / "run" / "images" / "reconstruction.wav").samples) == 400


@pytest.mark.usefixtures("no_pictures")
def test_a_folder_of_pictures_and_sounds_fits_each(tmp_path, sound, picture):
    sound("in/a.wav"), picture("in/a.png")
    main([*TINY, "--steps", "2", "--lpips", "false", "--input", str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    with (tmp_path / "out" / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], bool(row["ssim"]), bool(row["snr"])) for row in rows] == [
        ("a", True, False),
        ("a", False, True),
    ]
    assert (tmp_path / "out" / "a_wav" / "images" / "reconstruction.wav").exists()


def test_a_sound_is_known_by_its_content(tmp_path, sound):
    path = sound("a.wav").rename(tmp_path / "a.png")
    assert list(find_inputs(str(path)).values()) == [path] and load(path, None).sound is not None


@pytest.mark.usefixtures("no_pictures")
def test_strategies_are_compared_on_sounds(tmp_path, sound):
    argv = [*TINY, "--steps", "6", "--strategies", "uniform,evos", "--at_steps", "3", "--devices", "cpu"]
    compare([*argv, "--input", str(sound("a.wav")), "--out", str(tmp_path / "out")])
    with (tmp_path / "out" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["strategy"] for row in rows] == ["uniform", "evos"] and all(float(row["psnr@6"]) > 0 for row in rows)


# ---- at the edges


@pytest.mark.usefixtures("no_report")
def test_silence_is_fitted_and_has_no_snr(tmp_path, sound, capsys):
    path = sound("a.wav", torch.zeros(300, 1))
    main(
        [*TINY, "--steps", "40", "--lr", "1e-2", "--factor", "3", "--input", str(path), "--out", str(tmp_path / "run")]
    )
    metrics = metrics_of(tmp_path / "run")
    assert metrics["snr"] is None and metrics["held_out_snr"] is None and metrics["psnr"] > 20
    assert "SNR undefined (silent)" in capsys.readouterr().out


@pytest.mark.parametrize("length", [2, 3, 7])
@pytest.mark.parametrize("selector", PARTS["selector"])
@pytest.mark.usefixtures("no_report")
def test_a_sound_may_be_a_few_samples(length, selector, tmp_path, sound, no_pictures):
    path = sound("a.wav", tones(length) + 0.1)
    argv = ["--supervision", "val_der", "--factor", "2", "--selector", selector, "--steps", "3"]
    main([*TINY, *argv, "--input", str(path), "--out", str(tmp_path / "run")])
    assert math.isfinite(metrics_of(tmp_path / "run")["held_out_psnr"])


def test_what_is_no_sound_to_fit_is_refused(tmp_path, refused, sound, picture):
    (tmp_path / "none.wav").write_bytes(sound("a.wav").read_bytes()[:40] + struct.pack("<I", 0))
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "empty.ogg").touch()
    (tmp_path / "film.wav").write_bytes(b"\0\0\0 ftypisom" + bytes(100))
    (tmp_path / "film.mp4").write_bytes(b"\0\0\0 ftypisom" + bytes(100))
    (tmp_path / "film.png").write_bytes(b"\x1aE\xdf\xa3" + bytes(100))
    picture("photo.png").rename(tmp_path / "photo.wav")
    for name, part in {
        "none.wav": "a",
        "text.wav": "not a sound",
        "photo.wav": "not a sound",
        "empty.ogg": "an empty file",
        "film.mp4": "unsupported video (Invalid data found when processing input); allowed: a whole video",
        "film.wav": "unsupported video",
        "film.png": "unsupported video",
        "missing.wav": "no such file",
    }.items():
        message = refused(*TINY, "--input", str(tmp_path / name), "--out", str(tmp_path / "out"))
        assert str(tmp_path / name) in message and part in message, message
    path = sound("one.wav", tones(1) + 0.5)
    assert "a sound of 1 sample; allowed: at least 2" in refused(*TINY, "--input", str(path))
    path = str(sound("b.wav"))
    assert "--longer_side: got 16; allowed: none for a sound" in refused(*TINY, "--longer_side", "16", "--input", path)
    assert "--factor: got 401; allowed: at most 400" in refused(*TINY, "--factor", "401", "--input", path)
    assert "--factor: got 0; allowed: at least 1" in refused(*TINY, "--factor", "0", "--input", path)
    assert not (tmp_path / "out").exists()


def test_a_sound_of_an_unknown_format_is_refused_by_the_formats_of_sounds(tmp_path, refused):
    (tmp_path / "a.m4b").write_bytes(b"sound")
    message = refused(*TINY, "--input", str(tmp_path / "a.m4b"), "--out", str(tmp_path / "out"))
    assert "a sound (wav, flac, ogg, mp3)" in message and "a picture (png" in message


@pytest.mark.usefixtures("no_report")
def test_an_mp3_is_fitted_and_comes_back_as_one(tmp_path):
    write_sound(tmp_path / "a.mp3", 0.5 * tones(3000), 8000, "MPEG_LAYER_III")
    main([*TINY, "--steps", "2", "--input", str(tmp_path / "a.mp3"), "--out", str(tmp_path / "run")])
    assert len(read_sound(tmp_path / "run" / "images" / "reconstruction.mp3").samples) == 3000


def test_a_checkpoint_of_another_sound_is_refused(sound_fit):
    other = from_sound("other", Sound(tones().flip(0) + 0.1, 8000, "PCM_16", "wav"))
    with pytest.raises(ValueError, match="another signal"):
        sound_fit(signal=other).load_state_dict(sound_fit().state_dict())


# ---- the paper's clips


@pytest.mark.parametrize("name", ["bach", "counting"])
def test_the_configs_of_a_clip_differ_in_their_supervision_alone(name):
    runs = [parse(["--config", str(CONFIGS / f"{name}_{kind}.txt")]) for kind in ("val", "val_der")]
    val, val_der = (run.resolved() for run in runs)
    assert {key for key in val if val[key] != val_der[key]} == {"supervision", "out"}
    assert (val_der["factor"], val_der["der_operator"], val_der["steps"], val_der["lr"]) == (5, "diff", 8000, 5e-5)
    assert (val_der["field.omega"], val_der["field.first_omega"], val_der["selector"]) == (30, 3000, "full")


def test_the_clip_of_the_paper_is_read_and_cropped(data_root, capsys):
    path = data_root / "siren_audio" / "gt_bach.wav"
    if not path.exists():
        pytest.skip("no clip there")
    signal = load(path, None, 5)
    assert signal.shape == (308_205,) and signal.sound is not None and signal.sound.rate == 44100
    assert float(signal.values.max()) == 1 and "from 308207 to 308205" in capsys.readouterr().err
