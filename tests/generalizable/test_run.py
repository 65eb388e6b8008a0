"""What a run hands to the training loop, and what its metrics.json says."""

import json
from pathlib import Path

import pytest

from evos.runs import load_checkpoint
from generalizable.main import main


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def test_the_final_evaluation_over_all_instances_ends_the_curve(tiny, tmp_path, write_picture):
    for i in range(30):
        write_picture(tmp_path / "many" / f"{i:02}.png", i)
    words = [*tiny, f"data.root={tmp_path / 'many'}", "train.eval_instances=1", "eval_every=4"]
    main([*words, f"out={tmp_path / 'run'}"])
    metrics = metrics_of(tmp_path / "run")
    assert [entry["step"] for entry in metrics["curve"]] == [4, 6]
    assert metrics["sources"]["many"]["instances"] > 1
    assert metrics["curve"][-1]["psnr"] == metrics["psnr"] == metrics["curve"][-1]["psnr/many"]
    # The checkpoint comes before it: a kill in between loses nothing, and nothing is there twice.
    assert [entry["step"] for entry in load_checkpoint(tmp_path / "run" / "checkpoint.pt")["curve"]] == [4]


def test_the_curve_averages_the_sources_trained_on_as_the_metrics_do(tiny, pictures, tmp_path, write_picture):
    for i in range(3):
        write_picture(tmp_path / "other" / f"{i}.png", 90 + i)
    sources = f"data.sources=[{{root: {pictures}, name: a}}, {{root: {tmp_path / 'other'}, weight: 0}}]"
    main([*tiny, sources, "eval_every=2", f"out={tmp_path / 'run'}"])
    metrics = metrics_of(tmp_path / "run")
    assert [entry["psnr"] for entry in metrics["curve"]] == [entry["psnr/a"] for entry in metrics["curve"]]
    assert metrics["curve"][-1]["psnr"] == metrics["psnr"] != pytest.approx(metrics["curve"][-1]["psnr/other"])


def test_applications_name_what_they_have_in_common_alike(tiny, pictures, tmp_path):
    main([*tiny, f"data.root={pictures}", f"out={tmp_path / 'run'}"])
    metrics = metrics_of(tmp_path / "run")
    assert metrics["device"] == "cpu" and metrics["versions"]["device"] == "cpu"
    assert metrics["parameters"] > 100 and metrics["peak_memory_bytes"] > 10**6 and metrics["train_seconds"] > 0
