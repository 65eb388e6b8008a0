"""Options: YAML and key=value words on the dataclasses."""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from evos.config import field_docs, options
from evos.errors import InputError, exit_on_input_error
from evos.selection import ErrorConfig
from generalizable import demo, encode
from generalizable.models import MODELS
from generalizable.options import (
    DataConfig,
    RunConfig,
    SourceConfig,
    TrainConfig,
    as_yaml,
    from_values,
    parse,
)

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs" / "generalizable").glob("*.yaml"))


def write(folder: Path, text: str) -> str:
    (folder / "config.yaml").write_text(text)
    return str(folder / "config.yaml")


def test_words_beat_the_file_and_the_file_beats_the_defaults(tmp_path):
    config = write(tmp_path, "train: {steps: 7, lr: 0.5}\ndata: {size: 32}\nout: runs/file\n")
    found = parse(["--config", config, "train.steps=9", "out=runs/words"])
    assert (found.train.steps, found.train.lr, found.data.size, found.run.out) == (9, 0.5, 32, "runs/words")
    assert found.train.batch == TrainConfig().batch


def test_a_part_is_named_and_given_options_in_any_order():
    for words in (["selector=error", "selector.keep_ratio=0.25"], ["selector.keep_ratio=0.25", "selector=error"]):
        assert parse(words).selector == ErrorConfig(keep_ratio=0.25)


def test_naming_another_part_drops_the_options_of_the_files(tmp_path):
    config = write(tmp_path, "model: {name: pattern_composer, rank: 8}\n")
    assert parse(["--config", config]).model.rank == 8
    found = parse(["--config", config, "model=transinr", "model.groups=16"]).model
    assert found == MODELS["transinr"][0](groups=16)
    assert parse(["--config", config, "model=pattern_composer"]).model.rank == 8


def test_a_dollar_sign_is_a_text_like_any_other(tmp_path):
    assert parse(["--config", write(tmp_path, "out: runs/${USER}\n")]).run.out == "runs/${USER}"


@pytest.mark.parametrize("text", ["007", "03001627", "1.10", "1e3", "on", "12:30:45", "null", "2011_09_26", "a #2"])
def test_a_text_stays_as_it_was_written(tmp_path, text):
    assert parse([f"data.root={text}"]).sources[0].root == text
    assert parse(["--data.root", text]).sources[0].root == text
    quoted = f'"{text}"' if "#" in text else text
    assert parse(["--config", write(tmp_path, f"data:\n  root: {quoted}\n")]).sources[0].root == text
    assert parse([f"data.sources=[{{root: {quoted}}}]"]).sources[0].root == text
    assert parse(["--config", write(tmp_path, as_yaml(parse([f"data.root={text}"])))]).sources[0].root == text


def test_a_part_is_a_name_with_dotted_options_or_a_mapping(tmp_path):
    nested = parse(["--config", write(tmp_path, "selector: {name: uniform, keep_ratio: 0.25}\n")])
    dotted = parse(["--config", write(tmp_path, "selector: uniform\nselector.keep_ratio: 0.25\n")])
    assert nested == dotted == parse(["--selector", "uniform", "--selector.keep_ratio", "0.25"])


def test_an_empty_group_is_refused_with_its_file(tmp_path):
    config = write(tmp_path, "train: {steps: 7}\n")
    with pytest.raises(InputError, match=r"^train: got ''; allowed: options such as train.NAME=VALUE"):
        parse(["--config", config, "train="])
    with pytest.raises(InputError, match=r"config.yaml, line 2\)"):
        parse(["--config", write(tmp_path, "data.size: 8\ntrain:\n")])


def test_an_average_that_never_moves_is_refused():
    with pytest.raises(InputError, match=r"^train.ema: got 1.0; allowed: at least 0 and below 1"):
        parse(["train.ema=1"])


def test_switches_stand_for_true():
    assert parse(["--resume"]).run.resume and not parse(["resume=false"]).run.resume


def test_one_root_or_several_sources():
    assert parse(["data.root=a/b"]).sources == (SourceConfig(root="a/b"),)
    found = parse(["data.sources=[{root: a, weight: 2}, {root: b/c, name: z, weight: 0}]"]).sources
    assert [(source.title, source.weight) for source in found] == [("a", 2.0), ("z", 0.0)]


@pytest.mark.parametrize(
    ("words", "argument", "allowed"),
    [
        (["data.rot=x"], "option", "data.root"),
        (["train.step=3"], "option", "train.steps"),
        (["selector.keep=1"], "option", "selector.keep_ratio"),
        (["modl=transinr"], "option", "model"),
        (["--resum"], "option", "--resume"),
        (["model=transiner"], "--model", "transinr"),
        (["selector=evo"], "--selector", "did you mean error"),
        (["selector=soft"], "--selector", "full, uniform"),
        (["train.steps=0"], "train.steps", "at least 1"),
        (["train.steps=many"], "train.steps", "a whole number"),
        (["train=3"], "train", "train.NAME=VALUE"),
        (["data.sources=3"], "data.sources", "a list"),
        (["data.sources=[{root: a, weigt: 1}]"], "option", "data.sources[0].weight"),
        (["data.sources=[{root: a, weight: 0}]"], "data.sources", "above 0"),
        (["data.sources=[{root: x/a}, {root: y/a}]"], "data.sources", "a name of its own"),
        (["data.root=a", "data.sources=[b]"], "data.root", "either"),
        (["data.augment=true", "selector=error"], "data.augment", "false"),
        (["data.fine=0"], "data.fine", "at least 1"),
        (["data.fine=2", "data.task=sound"], "data.fine", "1, for sound"),
        (["data.fine=2", "train.coord_noise=1"], "train.coord_noise", "0 with data.fine"),
        (["data.task=views", "data.eval_support_views=25"], "data.eval_support_views", "at most 24"),
        (["steps"], "command line", "NAME=VALUE"),
        (["data.size=[1"], "data.size", "a whole number"),
        (["--config"], "--config", "a YAML file"),
        (["--config", "none.yaml"], "--config", "can be read"),
    ],
)
def test_mistakes_are_refused_with_the_right_name(words, argument, allowed):
    with pytest.raises(InputError) as error:
        parse(words)
    assert error.value.argument == argument and allowed in str(error.value)


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "\x00", "data: 3\n"])
def test_a_damaged_file_is_refused(tmp_path, text):
    with pytest.raises(InputError):
        parse(["--config", write(tmp_path, text)])


def test_resolved_options_build_the_same_options():
    words = ["data.sources=[{root: a}, {root: b, weight: 0}]", "selector=error", "model.rank=8", "train.clip=1"]
    found = parse(words)
    assert from_values(found.resolved()) == found


def test_the_config_file_of_a_run_repeats_it(tmp_path):
    words = [
        "data.root=a",
        "selector=error",
        "selector.keep_ratio=0.3",
        "model=transinr",
        "train.lr=1e-5",
        "--overwrite",
    ]
    found = parse(words)
    again = parse(["--config", write(tmp_path, as_yaml(found))])
    assert again.resolved() | {"overwrite": True} == found.resolved()
    assert again.data.root is None and asdict(again.sources[0])["root"] == "a"


def test_every_option_is_explained():
    for config in (RunConfig, DataConfig, SourceConfig, TrainConfig):
        assert {option.name for option in options(config)} == set(field_docs(config))


@pytest.mark.parametrize(("program", "option"), [(encode.main, "--between"), (demo.main, "--processes")])
def test_the_other_programs_explain_their_options(program, option, capsys):
    with pytest.raises(SystemExit) as stop:
        program(["--help"])
    assert stop.value.code == 0
    assert option in capsys.readouterr().out


def test_a_reader_who_has_seen_enough_is_no_error():
    program = [sys.executable, "-c", "from generalizable.main import main; main(['--help'])"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 1


def test_another_broken_pipe_is_not_hidden():
    @exit_on_input_error
    def loses_a_worker() -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        loses_a_worker()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_valid_and_says_what_it_is(path):
    assert path.read_text().startswith("# ")
    found = parse(["--config", str(path), "data.root=a"])
    assert as_yaml(found) != as_yaml(parse(["data.root=a"]))


def test_there_is_a_config_for_every_method_and_task():
    methods = {"composer": "pattern_composer", "meta_composer": "meta_pattern_composer"}
    methods |= {name: name for name in ("transinr", "learned_init", "locality_aware")}
    for method, model in methods.items():
        for suffix, task in (("images", "image"), ("sounds", "sound"), ("views", "views")):
            found = parse(["--config", str(CONFIGS[0].with_name(f"{method}_{suffix}.yaml"))])
            assert (found.model.name, found.data.task) == (model, task)
