"""Config files and the command line."""

import dataclasses
from pathlib import Path

import pytest
import torch

from evos.config import options
from evos.derivatives import SMOOTHING
from evos.fields import FIELDS
from evos.optimizers import OPTIMIZERS
from evos.runs import load_checkpoint, read_json
from evos.schedules import LR_SCHEDULES, default_key_intervals
from evos.transforms import TRANSFORMS
from image_regression.jobs import CompareConfig
from image_regression.main import main
from image_regression.options import PARTS, RECIPES, RegressionConfig, as_config_file, from_values, parse

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "image_regression"
FILES = sorted([*CONFIGS.glob("*.txt"), *CONFIGS.with_name("audio_regression").glob("*.txt")])
COMPARISONS = ("table1", "evos_ablation", "sobolev_set5")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_config_file_parses_and_says_what_it_reproduces(path):
    options = parse(["--config", str(path)], CompareConfig if path.stem in COMPARISONS else RegressionConfig)
    assert path.read_text().startswith("# ")
    # The names of Table 1's strategies; Sobolev training takes every pixel of its grid.
    if path.stem not in ("demo", "fast", "compact", "siren", *COMPARISONS):
        sobolev = path.stem.startswith("sobolev") or "_val" in path.stem
        assert options.run.selector == ("full" if sobolev else path.stem.split("_")[0])


def test_every_config_file_holds_only_what_differs_from_the_defaults():
    for path in [path for path in FILES if path.stem not in COMPARISONS]:  # which show what a comparison is made of
        values = parse(["--config", str(path)]).resolved()
        for line in [line for line in path.read_text().splitlines() if not line.startswith("#")]:
            name, value = (part.strip() for part in line.split("="))
            names = {part: values[part] for part in PARTS}
            default = from_values({}, names).resolved()[name]
            # A part is named where a recipe would choose another.
            assert str(default).lower() != value or name in ("selector", "field"), (path.name, line)


def test_the_config_of_the_method_holds_the_numbers_of_the_paper():
    options = parse(["--config", str(CONFIGS / "evos.txt")])
    run, selector, field = options.run, options.selector, options.field
    assert (run.steps, options.lr, run.last_lr_ratio, run.transform) == (5000, 1e-4, 1.0, "min_max")
    assert (run.field, field.hidden_layers, field.hidden_features) == ("siren", 3, 256)
    assert (field.omega, field.first_omega) == (30, 30)
    assert (options.cfs_weight, run.cfs_ratio) == (0.65, 0.3)
    assert (selector.keep_ratio, selector.keep_schedule) == (0.5, "constant")
    assert (selector.mutation_ratio, selector.mutation_schedule) == (0.5, "constant")
    assert (selector.crossover, selector.laplacian_weight) == ("select", 0.65)
    assert selector.key_interval is None and default_key_intervals(run.steps) == (100, 50)


def test_size_is_refused_with_its_name_of_today(tmp_path, refused):
    (tmp_path / "old.txt").write_text("size = 16\n")
    assert refused("--size", "16") == "option: got --size; allowed: --longer_side, its name now"
    assert refused("-c", str(tmp_path / "old.txt")).endswith(
        "line 1): got --size; allowed: --longer_side, its name now"
    )


def test_the_command_line_beats_the_config_file(tmp_path):
    (tmp_path / "a.txt").write_text("# why\nsteps = 7\nselector = uniform\nselector.keep_ratio = 0.2\nlpips = false\n")
    options = parse(["--config", str(tmp_path / "a.txt"), "--steps", "8"])
    assert (options.run.steps, options.run.selector, options.selector.keep_ratio) == (8, "uniform", 0.2)
    assert options.run.lpips is False
    assert parse(["--lpips", "true", "-c", str(tmp_path / "a.txt")]).run.lpips is True
    # Another strategy than the file's, with an option that only it has.
    assert (
        parse(["--selector", "evos", "--selector.crossover", "add", "-c", str(tmp_path / "a.txt")]).run.selector
        == "evos"
    )


def test_a_run_s_config_file_repeats_the_run(tmp_path, tiny, no_report):
    argv = [
        "--selector",
        "uniform",
        "--selector.keep_ratio",
        "0.3",
        "--transform",
        "gamma",
        "--transform.exponent",
        "2.2",
    ]
    main([*tiny, *argv, "--steps", "8", "--lr", "3e-4", "--seed", "5", "--out", str(tmp_path / "a")])
    main(["--config", str(tmp_path / "a" / "config.txt"), "--out", str(tmp_path / "b")])
    states = [load_checkpoint(tmp_path / name / "checkpoint.pt")["fit"]["field"] for name in "ab"]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    resolved = [read_json(tmp_path / name / "config.json")["options"] | {"out": None} for name in "ab"]
    assert resolved[0] == resolved[1]
    lines = (tmp_path / "a" / "config.txt").read_text().splitlines()
    assert (
        "transform.exponent = 2.2" in lines and "quiet = true" in lines and not any("keep_schedule" in x for x in lines)
    )


@pytest.mark.parametrize(
    "name", ["a b.png", "a #1.png", "a;b.png", "it's.png", 'a "b".png', "[a].png", "a=b:c.png", "ü.png"]
)
def test_a_config_file_keeps_any_file_name(name, tmp_path):
    options = parse(["--input", name, "--lr", "1e-05", "--quiet"])
    (tmp_path / "config.txt").write_text(as_config_file(options))
    assert parse(["--config", str(tmp_path / "config.txt")]) == options


def test_every_option_has_help_with_its_default(capsys):
    for selector in PARTS["selector"]:
        with pytest.raises(SystemExit) as stop:
            parse(["--selector", selector, "--help"])
        text = capsys.readouterr().out
        assert stop.value.code == 0
        names = [option.name for option in dataclasses.fields(RegressionConfig)]
        names += [f"selector.{option.name}" for option in dataclasses.fields(PARTS["selector"][selector])]
        missing = [name for name in names if f"--{name} " not in text]
        assert missing == [] and text.count("(default:") >= len(names)


def test_texts_and_typed_values_give_the_same_options():
    names = {"selector": "evos", "field": "siren", "transform": "min_max"}
    typed = from_values({"steps": 9, "lr": 0.5, "quiet": True, "selector.key_interval": None}, names)
    texts = from_values({"steps": "9", "lr": "0.5", "quiet": "yes", "selector.key_interval": "none"}, names)
    assert typed == texts == parse(["--steps", "9", "--lr", "0.5", "--quiet"])


def test_the_choices_of_the_parts_and_of_the_optimizer_are_those_of_their_tables():
    choices = {option.name: set(option.choices) for option in options(RegressionConfig)}
    assert choices["field"] == set(FIELDS) and choices["transform"] == set(TRANSFORMS)
    assert choices["optimizer"] == set(OPTIMIZERS) and choices["schedule"] == set(LR_SCHEDULES)
    assert choices["recipe"] == set(RECIPES) and choices["der_operator"] == set(SMOOTHING)
