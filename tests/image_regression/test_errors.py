"""Bad input is one line on stderr that names it, exit status 2, and nothing half-written."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from evos.images import read_image
from evos.metrics import lpips_network
from evos.runs import Stopper, TrainingDiverged, load_checkpoint
from evos.sounds import write_sound
from image_regression.compare import main as compare
from image_regression.demo import main as demo
from image_regression.main import main
from image_regression.options import parse
from image_regression.run import fit_signal
from image_regression.trainer import Fit

pytestmark = pytest.mark.usefixtures("no_report")


def says(message: str, *parts: object) -> None:
    assert all(str(part) in message for part in parts), message


# ---- pictures


def test_a_picture_that_can_t_be_read_is_named(tmp_path, tiny, refused, picture):
    whole = picture("whole.png", size=(40, 40)).read_bytes()
    files = {"empty.png": b"", "cut.png": whole[: len(whole) // 2], "text.png": b"no picture at all\n", "a.txt": whole}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    for name in (*files, "missing.png", "folder", "missing/x.png"):
        message = refused(*tiny, "--input", str(tmp_path / name), "--out", str(tmp_path / "out"))
        says(message, tmp_path / name, "allowed: ")
    assert not (tmp_path / "out").exists()


def test_one_bad_picture_does_not_lose_the_others(tmp_path, tiny, picture, capsys):
    good = [picture(f"in/{name}") for name in ("a.png", "c.webp")]
    (tmp_path / "in" / "b.png").write_bytes(good[0].read_bytes()[:80])
    with pytest.raises(SystemExit) as stop:
        main([*tiny, "--steps", "3", "--input", str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    says(line, "error: ", tmp_path / "in" / "b.png")
    assert sorted(os.listdir(tmp_path / "out")) == ["a_png", "c_webp", "summary.csv", "summary.md"]
    names = [line.split(",")[0] for line in (tmp_path / "out" / "summary.csv").read_text().splitlines()]
    assert names == ["name", "a", "c"]


def test_edges_need_two_pixels(tmp_path, tiny, refused, picture):
    path = picture("dot.png", size=(1, 1))
    argv = [*tiny, "--selector", "egra", "--input", str(path), "--out", str(tmp_path / "out")]
    says(refused(*argv), "1x1", "2x2")
    assert not (tmp_path / "out").exists()


# ---- options


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--stpes", "3"], ["--stpes", "did you mean --steps?"]),
        (["--selector.keep_ration", "0.5"], ["did you mean --selector.keep_ratio?"]),
        (["--selector", "uniform", "--selector.crossover", "add"], ["--selector.crossover"]),
        (["steps", "3"], ["steps", "options that start with --"]),
        (["--steps", "0"], ["--steps", "0", "at least 1"]),
        (["--steps", "2.5"], ["--steps", "2.5", "a whole number"]),
        (["--clip_ratio", "0.5"], ["--clip_ratio", "0.5", "1"]),
        (["--steps", "5", "--polish", "6"], ["--polish", "6", "5"]),
        (["--polish", "1", "--precision", "bf16"], ["--polish", "bf16"]),
        (["--lr", "fast"], ["--lr", "fast", "a number"]),
        (["--lr", "nan"], ["--lr", "nan", "a number"]),
        (["--lr=-1e-3"], ["--lr", "-0.001", "above 0"]),
        (["--lr", "-1e-3"], ["--lr", "-0.001", "above 0"]),
        (["--lr"], ["--lr", "no value"]),
        (["--selector.keep_ratio", "0"], ["--selector.keep_ratio", "above 0 and at most 1"]),
        (["--selector.keep_ratio", "1.01"], ["--selector.keep_ratio", "above 0 and at most 1"]),
        (["--selector.key_interval", "0.5"], ["--selector.key_interval", "at least 1"]),
        (["--field.omega", "-1"], ["--field.omega", "above 0"]),
        (["--optimizer", "moun"], ["--optimizer", "did you mean muon?"]),
        (["--optimizer", "muon", "--field", "wire"], ["optimizer", "muon", "adam where weights are complex"]),
        (["--schedule", "step"], ["--schedule", "one of cosine, geometric, linear"]),
        (["--decay", "0"], ["--decay", "above 0 with schedule geometric"]),
        (["--decay", "1.5", "--schedule", "cosine"], ["--decay", "at most 1"]),
        (["--warmup", "0.05"], ["--warmup", "a whole number"]),
        (["--ema", "1"], ["--ema", "1.0", "below 1"]),
        (["--ema", "0.5", "--optimizer", "schedule_free"], ["--ema", "0 with schedule_free"]),
        (["--recipe", "fats"], ["--recipe", "did you mean fast?"]),
        (["--lpips", "perhaps"], ["--lpips", "true or false"]),
        (["--seed", str(2**32)], ["--seed", str(2**32)]),
        (["--precision", "fp16"], ["--precision", "fp32"]),
        (["--selector", "evo"], ["--selector", "did you mean evos?"]),
        (["--factor", "0"], ["--factor", "0", "at least 1"]),
        (["--factor", "17"], ["--factor", "17", "at most 16"]),
        (["--supervision", "val-der"], ["--supervision", "did you mean val_der?"]),
        (["--der_operator", "sobbel"], ["--der_operator", "did you mean sobel?"]),
        (["--lambda_der=-1"], ["--lambda_der", "at least 0"]),
        (["--field", "sirenn"], ["--field", "did you mean siren?"]),
        (["--transform", "z-score"], ["--transform", "did you mean z_score?"]),
        (["--device", "cuda:99"], ["--device", "cuda:99"]),
        (["--device", "gpu"], ["--device", "gpu", "auto, cpu, cuda or cuda:n"]),
        (["--config", "no/such.txt"], ["--config", "no/such.txt", "can be read"]),
        (["--resume", "--overwrite"], ["--overwrite", "either --resume or --overwrite"]),
    ],
)
def test_a_wrong_option_is_named_with_what_is_allowed(argv, parts, tmp_path, tiny, refused):
    says(refused(*tiny, *argv, "--out", str(tmp_path / "out")), *parts)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"stpes = 3\n", ["--stpes", "did you mean --steps?"]),
        (b"selector = uniform\nselector.keep_ration = 1\n", ["did you mean --selector.keep_ratio?"]),
        (b"steps = many\n", ["--steps", "many", "a whole number"]),
        (b"steps =\n", ["--steps", "a whole number"]),
        (b"steps = 3\n= 4\n", ["FILE", "= 4", "`name = value`"]),
        (b"steps = [3, 4]\n", ["--steps", "[3, 4]", "a whole number"]),
        (b"\xff\xfe\x00\x81", ["FILE", "no text"]),
    ],
)
def test_a_wrong_config_file_is_named_with_what_is_allowed(content, parts, tmp_path, tiny, refused):
    (tmp_path / "config.txt").write_bytes(content)
    message = refused(*tiny, "--config", str(tmp_path / "config.txt"), "--out", str(tmp_path / "out"))
    says(message, *(str(tmp_path / "config.txt") if part == "FILE" else part for part in parts))
    assert os.listdir(tmp_path) == ["config.txt"]


def test_a_device_that_is_not_there_is_said_once_for_a_folder_of_pictures(tmp_path, tiny, refused, picture):
    folder = picture("in/a.png").parent
    picture("in/b.png")
    says(refused(*tiny, "--input", str(folder), "--out", str(tmp_path / "out"), "--device", "cuda:99"), "cuda:99")


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--strategies", "full,evoss"], ["--strategies", "did you mean evos?"]),
        (["--strategies", "evos:crossover=ad"], ["--selector.crossover", "got ad;", "did you mean add?"]),
        (["--strategies", "evos:mutations=0"], ["--selector.mutations"]),
        (["--schedules", "stepp"], ["--schedules", "did you mean step?"]),
        (["--seeds", "0,x"], ["--seeds", "0,x", "whole numbers"]),
        (["--strategies", "full,soft", "--schedules", "step"], ["--strategies", "at least one run"]),
        (["--seeds", ","], ["--strategies", "at least one run"]),
        (["--devices", "cpu,cuda:99"], ["--device", "cuda:99"]),
        (["--input", "a.png", "--inputs", "b.png"], ["--inputs", "either --input or --inputs"]),
        (["--inputs", "missing.png"], ["missing.png", "no such file"]),
        (["--configs", "no/such.txt"], ["--config", "no/such.txt", "can be read"]),
        (["--configs", ","], ["--configs", "at least one run"]),
        (["--configs", "a/x.txt", "--strategies", "full"], ["--configs", "a/x.txt", "no --strategies beside it"]),
    ],
)
def test_a_comparison_refuses_what_it_can_t_do(argv, parts, tmp_path, tiny, refused):
    says(refused(*tiny, *argv, "--out", str(tmp_path / "out"), program=compare), *parts)
    assert os.listdir(tmp_path) == []


# ---- run folders and checkpoints


@pytest.fixture
def run(tmp_path, tiny) -> list[str]:
    """Options of a run that was made in tmp_path/run."""
    options = [*tiny, "--steps", "4", "--save_every", "2", "--out", str(tmp_path / "run")]
    main(options)
    return options


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_taken_folder_is_refused_and_left_as_it_is(run, tmp_path, refused, picture):
    before = contents(tmp_path)
    says(refused(*run), tmp_path / "run", "--resume", "--overwrite")
    says(refused(*run, "--resume", "--lr", "0.5"), "--lr", "0.5")
    says(refused(*run, "--resume", "--selector.keep_ratio", "0.25"), "--selector.keep_ratio", "0.25", "0.5")
    says(refused(*run, "--resume", "--selector", "full"), "--selector", "full", "evos")
    says(refused(*run, "--overwrite", "--input", str(tmp_path / "missing.png")), "missing.png")
    assert contents(tmp_path) == before
    foreign = picture("foreign/a.png").parent
    says(refused(*run, "--overwrite", "--out", str(foreign)), "--overwrite", foreign)
    assert os.listdir(foreign) == ["a.png"]


def test_a_damaged_or_strange_checkpoint_is_refused(run, tmp_path, tiny, refused):
    folder = tmp_path / "run"
    (folder / "metrics.json").unlink()
    whole = (folder / "checkpoint.pt").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (b"", whole[:-100], b"text" * 100, bytes(flipped)):
        (folder / "checkpoint.pt").write_bytes(damaged)
        says(refused(*run, "--resume"), "checkpoint")
        assert (folder / "checkpoint.pt").read_bytes() == damaged and not (folder / "metrics.json").exists()
    main([*tiny, "--steps", "4", "--selector", "soft", "--out", str(tmp_path / "other")])
    shutil.copy(tmp_path / "other" / "checkpoint.pt", folder)
    says(refused(*run, "--resume"), "soft")


def test_a_checkpoint_of_another_picture_is_refused(tmp_path, tiny, refused, picture):
    path = picture("a.png")
    options = [*tiny, "--steps", "4", "--input", str(path), "--out", str(tmp_path / "run")]
    for mode, size in (("RGB", (12, 8)), ("RGB", (12, 10)), ("L", (12, 10))):
        main([*options, "--overwrite", "true" if (tmp_path / "run").exists() else "false"])
        (tmp_path / "run" / "metrics.json").unlink()
        picture("bb.png", mode, size).rename(path)
        says(refused(*options, "--resume"), "checkpoint", "of another signal")


def test_a_folder_that_can_t_be_made_is_refused(tmp_path, tiny, refused):
    (tmp_path / "file").touch()
    says(refused(*tiny, "--out", str(tmp_path / "file" / "run")), "--out", tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only_is_refused(tmp_path, tiny, refused):
    (tmp_path / "locked").mkdir(mode=0o555)
    says(refused(*tiny, "--out", str(tmp_path / "locked" / "run")), "--out", tmp_path / "locked")


@pytest.mark.parametrize("largest", [500, 2_000, 20_000, 40_000])
def test_a_full_disk_is_one_line_and_leaves_no_part_of_a_file(largest, tmp_path, tiny, start):
    folder = tmp_path / "run"
    options = [*tiny, "--steps", "40", "--eval_every", "1", "--save_every", "5", "--out", str(folder)]
    program = start(*options, largest_file=largest)
    assert program.wait() == 2
    (line,) = program.stderr.splitlines()
    says(line, "error: ", folder, "File too large")
    if (folder / "checkpoint.pt").exists():
        assert load_checkpoint(folder / "checkpoint.pt")["step"] % 5 == 0
    assert not (folder / "report.png").exists() and not (folder / "metrics.json").exists()
    assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp")]
    assert start(*options, "--resume").wait() == 0
    assert json.loads((folder / "metrics.json").read_text())["steps"] == 40


# ---- losses that are no numbers


def test_a_loss_that_is_not_finite_ends_the_run_at_its_step(tmp_path, tiny, refused):
    message = refused(*tiny, "--steps", "20", "--save_every", "5", "--lr", "1e30", "--out", str(tmp_path / "run"))
    says(message, "loss", "a checkpoint of earlier steps stays")
    step = int(re.findall(r"at step (\d+)", message)[0])
    assert step == 2  # the first loss is that of the initial weights
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize("at", [7, 10])
def test_the_last_good_checkpoint_is_kept(at, tmp_path, tiny, photo, monkeypatch):
    """Weights that break at step 10 leave that step's loss as it is, and must not reach its checkpoint."""
    original = Fit.step

    def breaks(self: Fit, step: int) -> torch.Tensor:
        loss = original(self, step)
        if step == at:
            next(self.field.parameters()).data.fill_(torch.nan)
        return loss

    monkeypatch.setattr(Fit, "step", breaks)
    options = parse([*tiny, "--steps", "20", "--save_every", "5", "--eval_every", "20"])
    with pytest.raises(TrainingDiverged, match=f"at step {8 if at == 7 else 10};"):
        fit_signal(photo, options, tmp_path / "run", Stopper())
    state = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert state["step"] == 5 and all(weight.isfinite().all() for weight in state["fit"]["field"].values())


def test_a_fit_that_diverges_does_not_lose_the_other_pictures(tmp_path, tiny, picture, monkeypatch, capsys):
    for name in ("a.png", "b.png"):
        picture(f"in/{name}")
    original = Fit.step
    monkeypatch.setattr(
        Fit, "step", lambda fit, step: original(fit, step) * (1 if fit.signal.name == "b" else torch.nan)
    )
    with pytest.raises(SystemExit) as stop:
        main([*tiny, "--steps", "3", "--input", str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert stop.value.code == 2 and "loss" in capsys.readouterr().err
    assert read_image(tmp_path / "out" / "b_png" / "images" / "reconstruction.png").pixels.shape == (12, 10, 3)
    assert (tmp_path / "out" / "summary.csv").read_text().splitlines()[1].startswith("b,")


# ---- LPIPS


@pytest.fixture
def no_weights(monkeypatch):
    """LPIPS' network can't be loaded."""

    def fail(**options: object):
        raise OSError("no weights in this test")

    monkeypatch.setattr("evos.metrics.LearnedPerceptualImagePatchSimilarity", fail)
    lpips_network.cache_clear()
    yield
    lpips_network.cache_clear()


@pytest.mark.parametrize("program", [main, compare, demo])
def test_missing_weights_of_lpips_are_warned_of_once_and_before_training(
    program, no_weights, tmp_path, tiny, monkeypatch
):
    argv = [*tiny, "--longer_side", "32", "--lpips", "true", "--steps", "2", "--out", str(tmp_path / "out")]
    argv += ["--strategies", "full,uniform"] if program is compare else []
    steps, step = [], Fit.step
    with pytest.warns(UserWarning, match="LPIPS is left out") as warned:
        monkeypatch.setattr(Fit, "step", lambda fit, n: steps.append(len(warned)) or step(fit, n))
        program(argv)
    assert len(warned) == 1 and set(steps) == {1}
    metrics = [json.loads(path.read_text()) for path in (tmp_path / "out").rglob("metrics.json")]
    assert metrics and all(entry["lpips"] is None for entry in metrics)


def test_weights_of_lpips_are_not_asked_for_where_they_are_not_needed(no_weights, tmp_path, tiny):
    wave = torch.sin(torch.linspace(0, 20, 64))[:, None]
    write_sound(tmp_path / "a.wav", wave, 8000, "PCM_16")
    small = ["--quiet", "--field.hidden_features", "16", "--device", "cpu", "--steps", "2"]
    main([*small, "--lpips", "true", "--input", str(tmp_path / "a.wav"), "--out", str(tmp_path / "sound")])
    main([*tiny, "--lpips", "false", "--steps", "2", "--out", str(tmp_path / "picture")])
    assert lpips_network.cache_info().misses == 0
