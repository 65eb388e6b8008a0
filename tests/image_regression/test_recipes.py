"""Recipes: sets of defaults that everything else beats."""

import math
from pathlib import Path

import pytest
import torch

from evos import recipes
from evos.errors import InputError
from evos.fields import build_field
from evos.recipes import GRID, NETWORK
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
    untouched = [name for name in untouched if not name.startswith("field.")]  # options of another field
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
    assert options.lr == NETWORK["lr"]
    siren = parse(["--recipe", "fast", "--field", "siren"])
    assert siren.field.init_scale == NETWORK["field.init_scale"] and siren.run.optimizer == "schedule_free"
    assert siren.sized == () and siren.selector.keep_ratio == 0.1


def grid_of(argv, shape=(256, 256), channels=3):
    options = parse(argv).sized_to(shape, channels)
    return options, options.field.parameters(len(shape), channels)


def test_fast_sizes_the_grid_to_the_signal():
    options, parameters = grid_of(["--recipe", "fast"])
    grid = options.field
    assert (grid.finest_resolution, grid.base_resolution, grid.levels) == (410, 16, 6)
    assert max(grid.table_sizes(2)) <= 2**grid.table_log2  # nothing is hashed
    assert options.selector.keep_ratio == 0.0625
    field = build_field(grid, 2, 3, seed=0)
    assert sum(weight.numel() for weight in field.parameters()) == parameters
    assert grid_of(["--recipe", "fast"], (16384,), 1)[0].field.finest_resolution == 26214
    film = grid_of(["--recipe", "fast"], (64, 128, 128))[0].field
    assert (film.finest_resolution, film.proportions) == (115, None)
    assert 2**film.table_log2 < max(film.table_sizes(3))  # the finest level is hashed
    assert options.sized_to((64, 64), 3) == options  # sized once


@pytest.mark.parametrize("shape", [(2000, 3), (16, 4096), (64, 1000)])
def test_a_strip_s_grid_is_not_sized_for_the_square_around_it(shape):
    points, (strip, parameters) = math.prod(shape), grid_of(["--recipe", "fast"], shape)
    assert strip.field.finest_resolution == round(1.6 * max(shape))
    assert 4 * points <= 2**strip.field.table_log2 < 8 * points
    assert parameters < 2 * strip.field.levels * 8 * points + 1000


def test_compact_takes_the_finest_grid_within_the_budget():
    for budget in (20_000, 198_915):
        options, parameters = grid_of(["--recipe", "compact", "--parameters", str(budget)])
        finest = options.field.finest_resolution + 1
        assert parameters <= budget < recipes.grid(finest, 2).parameters(2, 3)
    assert parse(["--recipe", "compact", "--parameters", "20k"]).run.parameters == 20_000
    assert grid_of(["--recipe", "compact", "--parameters", "9M"])[1] == grid_of(["--recipe", "fast"])[1]
    with pytest.raises(InputError, match="--parameters: got 900; allowed: at least "):
        grid_of(["--recipe", "compact", "--parameters", "900"])
    with pytest.raises(InputError, match="--parameters: got 5; allowed: none without --recipe compact"):
        parse(["--recipe", "fast", "--parameters", "5"])


def test_options_that_are_given_beat_the_rule():
    argv = ["--recipe", "fast", "--field.levels", "3", "--selector.keep_ratio", "0.5"]
    options, _ = grid_of(argv)
    assert (options.field.levels, options.selector.keep_ratio) == (3, 0.5)
    assert options.field.finest_resolution == 410
    options, _ = grid_of(["--recipe", "fast", "--selector", "full"])
    assert options.field.finest_resolution == 410 and options.run.selector == "full"


def test_fast_draws_the_points_of_a_sound_uniformly_where_nothing_else_is_said():
    def drawn(*words, shape=(16384,)):
        options = grid_of(["--recipe", "fast", *words], shape, 1)[0]
        assert type(options.selector).name == options.run.selector
        return options.run.selector, options.selector.keep_ratio

    assert drawn() == ("uniform", 0.125) and drawn(shape=(64, 256)) == ("error", 0.125)
    assert drawn("--selector", "error") == ("error", 0.125)
    assert drawn("--selector.uniform_ratio", "0.25") == ("error", 0.125)
    assert drawn("--selector.keep_ratio", "0.5") == ("uniform", 0.5)
    assert drawn("--selector", "evos", "--selector.keep_ratio", "0.5") == ("evos", 0.5)


def test_a_run_says_what_the_recipe_chose_and_reports_its_size(tmp_path, capsys, no_report):
    argv = ["--recipe", "compact", "--parameters", "9k", "--longer_side", "24", "--steps", "2", "--lpips", "false"]
    main([*argv, "--out", str(tmp_path / "a")])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "recipe compact" in line]
    metrics = read_json(tmp_path / "a" / "metrics.json")
    assert f"{metrics['parameters']:,} parameters" in line and "no hashing" in line
    assert metrics["bytes"] == 4 * metrics["parameters"]
    assert metrics["bits_per_value"] == pytest.approx(8 * metrics["bytes"] / (24 * 24 * 3))
    main([*argv, "--out", str(tmp_path / "b"), "--quiet"])
    assert "recipe compact" not in capsys.readouterr().out


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
    assert {(job.options.run.recipe, job.options.lr) for job in made} == {("fast", GRID["lr"])}
    assert {job.options.sized_to((256, 256), 3).field.finest_resolution for job in made} == {410}
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
    kept = read_json(tmp_path / "demo" / "fast" / "config.json")["options"]["selector.keep_ratio"]
    assert metrics[1]["points_evaluated"] == pytest.approx(metrics[0]["points_evaluated"] * kept, rel=0.03)
