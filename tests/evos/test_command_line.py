"""The one parser: words, files of both forms, and what is written is what is read."""

from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evos import programs
from evos.command_line import Program, parse_options, read_command_line, read_config, read_list, write_config
from evos.config import check_choices
from evos.errors import InputError
from evos.renamed_options import unknown_option
from evos.training_options import OptimizerOptions, RunOptions


@dataclass(frozen=True)
class Main:
    root: str = "x"
    """A folder."""

    colour: Literal["red", "green"] = "red"
    """A colour."""

    quiet: bool = False
    """No words."""

    def __post_init__(self) -> None:
        check_choices(self)


@dataclass(frozen=True)
class Train:
    steps: int = 5
    """Steps."""


@dataclass(frozen=True)
class Big:
    width: int = 1
    """Width."""


@dataclass(frozen=True)
class Small(Big):
    depth: int = 1
    """Depth."""


PROGRAM = Program(
    "p", "d", {"": Main, "train": Train}, {"part": {"big": Big, "small": Small}}, lambda texts: {"part": "big"}
)
TEXT = st.text(st.characters(codec="utf-8"))


def read(*words: str) -> dict[str, str]:
    return read_command_line(PROGRAM, words).texts


def test_all_ways_to_write_an_option_are_the_same():
    for words in (["--train.steps", "7"], ["--train.steps=7"], ["train.steps=7"]):
        assert read(*words) == {"train.steps": "7"}
    assert read("--root", "a=b:c.png", "--quiet", "colour=green") == {
        "root": "a=b:c.png",
        "quiet": "true",
        "colour": "green",
    }
    assert read("--quiet", "false", "--root=--") == {"quiet": "false", "root": "--"}


@settings(max_examples=200, deadline=None)
@given(TEXT)
def test_any_text_survives_the_command_line(text):
    assert read(f"root={text}") == read(f"--root={text}") == {"root": text}


@settings(max_examples=300, deadline=None)
@given(TEXT, st.sampled_from(["a.yaml", "a.txt"]))
def test_any_text_survives_a_config_file(tmp_path_factory, text, name):
    path = tmp_path_factory.mktemp("file") / name
    content = write_config({"root": text, "train.steps": 3, "quiet": True}, yaml=name == "a.yaml")
    path.write_bytes(content.encode())
    assert read("--config", str(path)) == {"root": text, "train.steps": "3", "quiet": "true"}


@pytest.mark.parametrize("text", ["photos #2", "run #2 --overwrite", "${USER}", "null", "1e3"])
def test_a_text_in_a_plain_file_is_what_stands_there(tmp_path, text):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf# why\nroot = " + text.encode() + b"\n")
    assert read(f"config={tmp_path / 'a.txt'}") == {"root": text}


def test_later_files_and_the_command_line_beat_earlier_ones_and_another_part_drops_options(tmp_path):
    (tmp_path / "a.yaml").write_text("part: {name: small, depth: 3}\ntrain:\n  steps: 3\n")
    (tmp_path / "b.txt").write_text("train.steps = 4\n")
    files = ["--config", str(tmp_path / "a.yaml"), "-c", str(tmp_path / "b.txt")]
    assert read(*files) == {"part": "small", "part.depth": "3", "train.steps": "4"}
    assert read(*files, "part=big", "train.steps=5") == {"part": "big", "train.steps": "5"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rooot", "x"], "option: got --rooot; allowed: did you mean --root?"),
        (["--quite"], "option: got --quite; allowed: did you mean --quiet?"),
        (["--root"], "--root: got no value"),
        (["train="], "train: got ''; allowed: options such as train.NAME=VALUE"),
        (["train=3"], "train: got 3; allowed: options such as"),
        (["part.depth=3"], "option: got --part.depth"),
        (["part=bigg"], "--part: got bigg; allowed: did you mean big?"),
        (["word"], "command line: got word; allowed: options"),
        (["--config", "none.yaml"], "--config: got none.yaml (No such file"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(words, message):
    with pytest.raises(InputError) as error:
        read(*words)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_errors_of_a_file_name_the_file_and_line(tmp_path):
    for name, content in {"a.txt": "# x\nrooot = 3\n", "a.yaml": "# x\nrooot: 3\n"}.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=rf"{name}, line 2\): got --rooot; allowed: did you mean --root\?"):
            read("--config", str(tmp_path / name))
    (tmp_path / "a.txt").write_text("root = 3\n= 4\n")
    with pytest.raises(InputError, match=r"a\.txt, line 2: = 4; allowed: lines of the form"):
        read_config(str(tmp_path / "a.txt"))
    (tmp_path / "a.yaml").write_text("colour:\n  - red\n")
    with pytest.raises(InputError, match=r"colour \(.*a\.yaml, line 2\): got \[\"red\"\]"):
        parse_options(Main, ["--config", str(tmp_path / "a.yaml")], "p", "d")


def test_help_shows_choices(capsys):
    with pytest.raises(SystemExit) as stop:
        read("--help")
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "--colour {red,green}" in text and "--part {big,small}" in text


def test_lists_are_json_or_yaml_of_texts():
    assert read_list("x", "[{root: 007, weight: 2}, b]") == [{"root": "007", "weight": "2"}, "b"]
    with pytest.raises(InputError, match="a list such as"):
        read_list("x", "3")


def test_an_old_name_is_refused_with_the_new_one():
    error = unknown_option("cfs_share", ["cfs_ratio", "steps"], dashes="--")
    assert str(error) == "option: got --cfs_share; allowed: --cfs_ratio, its name now"
    # Where that name is none of the program's, it is no help.
    assert "longer_side" not in unknown_option("size", ["data.size", "train.steps"]).allowed
    assert "key_interval" in unknown_option("selector.key_schedule", []).allowed


def test_the_rate_ends_where_its_schedule_says():
    assert OptimizerOptions().lr_factor(9, 10) == 1.0
    found = [OptimizerOptions(schedule="cosine", warmup=10).lr_factor(step, 110) for step in (1, 10, 60, 110)]
    assert found == pytest.approx([0.1, 1.0, 0.5, 0.0])
    with pytest.raises(InputError, match="either clip or clip_ratio"):
        OptimizerOptions(clip=1.0, clip_ratio=1.0)
    with pytest.raises(InputError, match="either --resume or --overwrite"):
        RunOptions(resume=True, overwrite=True)


def test_the_console_script_lists_its_programs_and_names_a_missing_extra(capsys, monkeypatch):
    programs.main(["--help"])
    assert set(programs.PROGRAMS) <= set(capsys.readouterr().out.split())
    monkeypatch.setitem(programs.PROGRAMS, "fit", ("no_such_module", "regress", ""))
    for words, part in ((["fit"], ".[regress]"), (["zzz"], "one of compare"), (["render"], "patterns=FILE")):
        with pytest.raises(SystemExit) as stop:
            programs.main(words)
        assert stop.value.code == 2 and part in capsys.readouterr().err
