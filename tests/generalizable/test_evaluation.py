"""Evaluating a run that is finished: by its own options, on its own data or others', without touching its results."""

import json
from pathlib import Path

import pytest

from generalizable.main import main


@pytest.fixture
def run(tmp_path, tiny, pictures) -> Path:
    """A finished run."""
    main([*tiny, f"data.root={pictures}", f"out={tmp_path / 'run'}", "train.lr=0.01"])
    return tmp_path / "run"


@pytest.fixture
def others(tmp_path, write_picture) -> Path:
    """Pictures that the run was not trained on."""
    for i in range(20):
        write_picture(tmp_path / "others" / f"{i:02}.png", 100 + i)
    return tmp_path / "others"


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def result_of(folder: Path, name: str) -> dict:
    return json.loads((folder / "eval" / f"{name}.json").read_text())


def test_a_run_is_evaluated_by_its_folder_alone(run, pictures, capsys):
    before = (run / "metrics.json").read_bytes()
    capsys.readouterr()
    main(["--eval", f"out={run}", "device=cpu"])
    found = result_of(run, pictures.name)
    assert found["psnr"] == metrics_of(run)["psnr"] and found["step"] == 6 and found["instances"] == 1
    assert not found["held_out"] and f"{found['psnr']:.2f} dB" in capsys.readouterr().out
    assert (run / "metrics.json").read_bytes() == before
    assert (run / "eval" / f"{pictures.name}_3x.png").exists()


@pytest.mark.parametrize(
    "word", ["model.frequency=64", "model.gain=3", "model=transinr", "train.lr=0.5", "data.size=16", "precision=bf16"]
)
def test_an_option_that_is_not_the_runs_is_refused(run, refused, word):
    before = (run / "metrics.json").read_bytes()
    line = refused("--eval", f"out={run}", "device=cpu", word)
    name, _, value = word.partition("=")
    assert line.startswith(f"{name}: got {value}") and "config.json" in line
    assert (run / "metrics.json").read_bytes() == before and not (run / "eval").exists()


def test_the_command_of_the_run_is_its_evaluation(run, tiny, pictures):
    main([*tiny, f"data.root={pictures}", f"out={run}", "train.lr=0.01", "--eval"])
    assert result_of(run, pictures.name)["psnr"] == metrics_of(run)["psnr"]


def test_other_data_have_a_result_of_their_own(run, others, pictures, tiny):
    before = (run / "metrics.json").read_bytes()
    main(["--eval", f"out={run}", "device=cpu", f"data.root={others}", "train.chunk=17", "data.test_ratio=0.5"])
    found = result_of(run, "others")
    assert found["instances"] == 10 and found["held_out"] and found["psnr"] != metrics_of(run)["psnr"]
    assert (run / "metrics.json").read_bytes() == before
    # A resumption reports the run, not what was evaluated last.
    main([*tiny, f"data.root={pictures}", f"out={run}", "train.lr=0.01", "--resume"])
    assert (run / "metrics.json").read_bytes() == before


def test_results_of_two_data_sets_of_one_name_are_kept_apart(run, others, tmp_path, refused, write_picture):
    words = ["--eval", f"out={run}", "device=cpu"]
    main([*words, f"data.root={others}"])
    for i in range(3):
        write_picture(tmp_path / "elsewhere" / "others" / f"{i}.png", i)
    before = (run / "eval" / "others.json").read_bytes()
    root = tmp_path / "elsewhere" / "others"
    assert "a name of its own" in refused(*words, f"data.root={root}")
    assert (run / "eval" / "others.json").read_bytes() == before
    main([*words, f"data.sources=[{{root: {root}, name: more}}, {others}]"])
    assert result_of(run, "more")["instances"] == 1
    assert result_of(run, "others")["psnr"] == json.loads(before)["psnr"]


def test_what_can_not_be_evaluated_is_one_line(run, tmp_path, refused):
    assert "for --eval" in refused("--eval", f"out={tmp_path / 'none'}", "device=cpu")
    (run / "config.json").write_text("{}")
    assert "a run of generalizable/main.py" in refused("--eval", f"out={run}", "device=cpu")
    (run / "checkpoint.pt").unlink()
    assert "for --eval" in refused("--eval", f"out={run}", "device=cpu")


def test_a_new_run_of_the_name_deletes_the_evaluations(run, tiny, pictures):
    main(["--eval", f"out={run}", "device=cpu"])
    main([*tiny, f"data.root={pictures}", f"out={run}", "train.lr=0.01", "--overwrite"])
    assert not list((run / "eval").glob("*"))
