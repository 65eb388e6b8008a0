"""Run folders: made, refused, resumed, overwritten."""

import errno
import json
import os
from pathlib import Path

import pytest

from evos import runs
from evos.errors import InputError

OPTIONS = {"lr": 1e-3, "size": (64, 64), "field": {"name": "siren", "omega": 30.0}, "device": "cpu"}


def open_new(path: Path) -> runs.Run:
    return runs.open_run(path, OPTIONS, resume=False, overwrite=False)


def snapshot(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_new_run_has_its_folders_and_its_options_on_disk(tmp_path):
    run = open_new(tmp_path / "deep" / "cat")
    assert run.path == tmp_path / "deep" / "cat" and run.images.is_dir() and not run.resuming
    assert run.checkpoint_path.parent == run.metrics_path.parent == run.path
    recorded = json.loads((run.path / "config.json").read_text())["options"]
    assert recorded == {**OPTIONS, "size": [64, 64]}


def test_an_empty_folder_is_as_good_as_a_new_one_and_so_is_one_killed_at_birth(tmp_path):
    (tmp_path / ".config.json.tmp").write_text("{")
    open_new(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "images"]


def test_an_existing_run_is_refused_without_a_flag_and_left_alone(tmp_path):
    open_new(tmp_path / "cat")
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=r"--out: got .*cat; allowed: a new folder, or --resume, or --overwrite"):
        open_new(tmp_path / "cat")
    assert snapshot(tmp_path) == before


def test_resume_and_overwrite_together_are_refused(tmp_path):
    with pytest.raises(InputError, match="one of the two"):
        runs.open_run(tmp_path, {}, resume=True, overwrite=True)


def test_overwrite_deletes_the_run_and_never_a_foreign_file(tmp_path):
    run = open_new(tmp_path / "cat")
    elsewhere = tmp_path / "elsewhere"
    foreign = [run.path / "notes.txt", run.path / "my.png", run.images / "raw.tif", run.path / "data" / "a.png"]
    foreign += [run.path / "events", run.path / "old" / "checkpoint.pt", elsewhere / "photo.png"]
    own = ["metrics.json", "report.png", "checkpoint.pt", "events.out.tfevents.1.host", ".checkpoint.pt.tmp"]
    own += ["images/step_100.png", "images/out.wav"]
    for file in [*foreign, *(run.path / name for name in own)]:
        file.parent.mkdir(exist_ok=True)
        file.write_text(file.name)
    (run.path / "report.png").unlink()
    (run.path / "report.png").symlink_to(elsewhere / "photo.png")
    again = runs.open_run(run.path, {"lr": 2.0}, resume=False, overwrite=True)
    assert not again.resuming
    assert [file for file in foreign if file.read_text() != file.name] == []
    assert [name for name in own if (run.path / name).exists()] == []
    assert runs.read_json(run.path / "config.json")["options"] == {"lr": 2.0}


def test_overwrite_does_not_reach_through_a_linked_images_folder(tmp_path):
    run = open_new(tmp_path / "cat")
    album = tmp_path / "album"
    album.mkdir()
    (album / "mother.png").write_text("dear")
    run.images.rmdir()
    run.images.symlink_to(album)
    runs.open_run(run.path, OPTIONS, resume=False, overwrite=True)
    assert (album / "mother.png").read_text() == "dear"


@pytest.mark.parametrize("config", [None, "", "{}", "[1]", '{"format": "evos", "version": 1}', '{"options": {}}'])
@pytest.mark.parametrize("flag", ["resume", "overwrite"])
def test_a_folder_that_is_no_run_is_neither_overwritten_nor_resumed(tmp_path, config, flag):
    (tmp_path / "checkpoint.pt").write_text("somebody else's")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=rf"--{flag}: .*config.json"):
        runs.open_run(tmp_path, OPTIONS, resume=flag == "resume", overwrite=flag == "overwrite")
    assert snapshot(tmp_path) == before


def test_resume_without_a_checkpoint_starts_afresh_and_with_one_goes_on(tmp_path):
    assert not runs.open_run(tmp_path / "cat", OPTIONS, resume=True, overwrite=False).resuming
    run = runs.open_run(tmp_path / "cat", OPTIONS, resume=True, overwrite=False)
    assert not run.resuming
    runs.save_checkpoint(run.checkpoint_path, {"step": 7})
    assert runs.open_run(tmp_path / "cat", OPTIONS, resume=True, overwrite=False).resuming
    assert runs.load_checkpoint(run.checkpoint_path) == {"step": 7}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({**OPTIONS, "lr": 0.5}, r"--lr: got 0\.5; allowed: 0\.001 as"),
        ({**OPTIONS, "field": {"name": "siren", "omega": 20.0}}, r"--field\.omega: got 20\.0; allowed: 30\.0 as"),
        ({**OPTIONS, "extra": 1}, r"--extra: got 1; allowed: 'nothing' as"),
        ({"size": (64, 64), "field": OPTIONS["field"]}, r"--lr: got nothing; allowed: 0\.001 as"),
    ],
)
def test_resume_names_the_first_option_that_differs_and_both_values(tmp_path, changed, message):
    open_new(tmp_path / "cat")
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=message):
        runs.open_run(tmp_path / "cat", changed, resume=True, overwrite=False)
    assert snapshot(tmp_path) == before


def test_a_run_with_an_option_of_an_old_name_is_refused_with_the_new_one(tmp_path):
    runs.open_run(tmp_path / "cat", {"size": 64, "steps": 3}, resume=False, overwrite=False)
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=r"config\.json: got --size; allowed: --longer_side, its name now"):
        runs.open_run(tmp_path / "cat", {"longer_side": 64, "steps": 4}, resume=True, overwrite=False)
    assert snapshot(tmp_path) == before


def test_free_options_may_change_on_resume_and_are_recorded(tmp_path):
    open_new(tmp_path)
    runs.open_run(tmp_path, {**OPTIONS, "device": "cuda", "quiet": True}, resume=True, overwrite=False)
    runs.open_run(
        tmp_path, {**OPTIONS, "device": "cuda", "lr": 3.0}, resume=True, overwrite=False, free={"lr", "quiet"}
    )
    assert runs.read_json(tmp_path / "config.json")["options"]["lr"] == 3.0


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "cat", tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match=r"--out: got .*; allowed: a folder that can be written"):
            open_new(path)

    def denied(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(InputError, match=r"Permission denied.*; allowed: a folder that can be written"):
        open_new(tmp_path / "cat")
