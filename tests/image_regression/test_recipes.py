"""Recipes: sets of defaults that everything else beats."""

from pathlib import Path

import pytest
import torch

from evos.runs import load_checkpoint, read_json
from evos.selection import EvosConfig
from image_regression import demo, jobs
from image_regression.main import main
from image_regression.options import RECIPES, from_values, given_values, parse

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "image_regression"


def test_a_recipe_sets_what_is_in_it_and_nothing_else():
    plain, fast = parse([]).resolved(), parse(["--recipe", "fast"]).resolved()
    assert {name: fast[name] for name in RECIPES["fast"]} == RECIPES["fast"]
    assert parse(["--config", str(CONFIGS / "fast.txt")]).resolved() == fast
    untouched = [name for name in fast if name in plain and name not in (*RECIPES["fast"], "recipe")]
    assert len(untouched) > 20 and all(fast[name] == plain[name] for name in untouched)


def test_no_recipe_is_the_default_and_paper_is_the_full_batch_of_table_1():
    assert parse(["--recipe", "none"]) == parse([])
    paper, full = (parse(argv) for argv in (["--recipe", "paper"], ["--config", str(CONFIGS / "full.txt")]))
    assert paper.lr == full.lr == 1e-4
    assert paper.resolved() | {"lr": None, "recipe": "none"} == full.resolved()


def test_the_config_file_beats_a_recipe_and_the_command_line_both(tmp_path):
    (tmp_path / "a.txt").write_text("recipe = fast\nlr = 0.25\nselector.keep_ratio = 0.75\n")
    options = parse(["--config", str(tmp_path / "a.txt"), "--lr", "0.5"])
    assert (options.run.selector, options.lr, options.selector.keep_ratio) == ("error", 0.5, 0.75)
    assert parse(["--config", str(tmp_path / "a.txt"), "--recipe", "none"]).lr == 0.25


def test_a_recipe_s_options_of_a_part_go_with_that_part():
    options = parse(["--recipe", "fast", "--field", "wire", "--selector", "uniform", "--optimizer", "adam"])
    assert (options.field.init_scale, options.selector.keep_ratio) == (1.0, 0.5)
    assert options.lr == RECIPES["fast"]["lr"]
    assert parse(["--recipe", "fast", "--field", "siren"]).field.init_scale == RECIPES["fast"]["field.init_scale"]


def test_a_run_by_a_recipe_is_repeated_by_its_config_file_without_the_recipe(tmp_path, tiny, no_report, monkeypatch):
    # The learning rate is put back to a default, which the recipe would set.
    main([*tiny, "--recipe", "fast", "--lr", "none", "--steps", "6", "--out", str(tmp_path / "a")])
    monkeypatch.setitem(RECIPES, "fast", {})  # as another version may have it
    main(["--config", str(tmp_path / "a" / "config.txt"), "--out", str(tmp_path / "b")])
    states = [load_checkpoint(tmp_path / name / "checkpoint.pt")["fit"]["field"] for name in "ab"]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    resolved = [read_json(tmp_path / name / "config.json")["options"] for name in "ab"]
    assert resolved[0] | {"recipe": "none", "out": None} == resolved[1] | {"out": None} and resolved[1]["lr"] is None


def test_strategies_can_be_compared_under_a_recipe(tmp_path):
    argv = ["--recipe", "fast", "--strategies", "full,evos", "--out", str(tmp_path / "out")]
    given, names = given_values(argv, jobs.CompareConfig)
    options = from_values(given, names, jobs.CompareConfig)
    made = jobs.make_jobs(jobs.without_recipe(options.run, given), options)
    assert [job.options.run.selector for job in made] == ["full", "evos"]
    assert {(job.options.lr, job.options.field.init_scale) for job in made} == {
        (RECIPES["fast"]["lr"], RECIPES["fast"]["field.init_scale"])
    }
    assert made[1].options.selector == EvosConfig() and made[1].options.cfs_weight == 0.65
    given["cfs_weight"] = "0.25"
    options = from_values(given, names, jobs.CompareConfig)
    assert {job.options.cfs_weight for job in jobs.make_jobs(options.run, options)} == {0.25}


def test_config_files_that_are_compared_beat_a_recipe():
    argv = ["--recipe", "fast", "--configs", str(CONFIGS / "full.txt")]
    given, names = given_values(argv, jobs.CompareConfig)
    (job,) = jobs.make_config_jobs(from_values(given, names, jobs.CompareConfig).run, given, names)
    assert (job.options.run.selector, job.options.lr) == ("full", RECIPES["fast"]["lr"])


def test_the_demo_shows_the_full_batch_evos_and_the_fast_recipe(tmp_path, tiny, capsys):
    if RECIPES["fast"].get("optimizer") in ("soap", "schedule_free"):
        pytest.importorskip("pytorch_optimizer")
    demo.main([*tiny, "--steps", "4", "--eval_every", "2", "--out", str(tmp_path / "demo")])
    lines = (tmp_path / "demo" / "table.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["full", "EVOS", "fast"]
    assert "\n".join(lines) in capsys.readouterr().out and (tmp_path / "demo" / "report.png").stat().st_size > 10_000
    assert read_json(tmp_path / "demo" / "fast" / "config.json")["options"]["recipe"] == "fast"
    metrics = [read_json(tmp_path / "demo" / name / "metrics.json") for name in ("full", "fast")]
    kept = RECIPES["fast"]["selector.keep_ratio"]
    assert metrics[1]["points_evaluated"] == pytest.approx(metrics[0]["points_evaluated"] * kept, rel=0.03)
