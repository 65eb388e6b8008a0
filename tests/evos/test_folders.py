"""The walk through users' folders: what is found, what is left out, links, lists of names."""

import json
import os

import pytest

from evos.errors import InputError
from evos.folders import find_files, read_list, walk


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(root):
    return [path.relative_to(root).as_posix() for path in walk(root)]


def test_files_are_found_at_any_depth_in_the_order_of_names(tmp_path):
    make(tmp_path, "b.png", "a/z.png", "a/b/c.PNG", "a.txt")
    assert found(tmp_path) == ["a/b/c.PNG", "a/z.png", "a.txt", "b.png"]
    names = [path.relative_to(tmp_path).as_posix() for path in find_files(tmp_path, ("png",))]
    assert names == ["a/b/c.PNG", "a/z.png", "b.png"]


@pytest.mark.parametrize(
    "folder", [".ipynb_checkpoints", ".Trash", ".cache/deep", "@eaDir", "@eaDir/a.png", "__MACOSX", "$RECYCLE.BIN"]
)
def test_hidden_folders_and_what_systems_leave_are_left_out(tmp_path, folder):
    make(tmp_path, "a.png", f"{folder}/a.png", f"sub/{folder}/a.png", ".hidden.png", "._a.png")
    assert found(tmp_path) == ["a.png"]


def test_a_hidden_folder_that_is_named_is_walked(tmp_path):
    make(tmp_path, ".data/a.png")
    assert found(tmp_path / ".data") == ["a.png"]


def test_linked_folders_and_files_are_followed(tmp_path):
    make(tmp_path, "elsewhere/1.png", "elsewhere/sub/2.png", "file.png", "data/0.png")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "z.png").symlink_to(tmp_path / "file.png")
    (tmp_path / "data" / "broken.png").symlink_to(tmp_path / "nothing.png")
    assert found(tmp_path / "data") == ["0.png", "linked/1.png", "linked/sub/2.png", "z.png"]
    (tmp_path / "link").symlink_to(tmp_path / "data")
    assert len(found(tmp_path / "link")) == 4


def test_nothing_is_found_twice_and_circles_end(tmp_path):
    make(tmp_path, "data/a/1.png", "data/b/2.png", "other/3.png")
    for name, target in (("b/up", "data"), ("b/a", "data/a"), ("c", "other"), ("d", "other"), ("above", ".")):
        (tmp_path / "data" / name).symlink_to(tmp_path / target)
    (tmp_path / "other" / "back").symlink_to(tmp_path / "other")
    assert found(tmp_path / "data") == ["a/1.png", "b/2.png", "c/3.png"]


def test_pictures_of_runs_are_no_data(tmp_path):
    make(tmp_path, "a.png", "runs/cat/images/reconstruction.png", "mine/b.png")
    (tmp_path / "runs" / "cat" / "config.json").write_text(json.dumps({"format": "evos", "version": 1}))
    (tmp_path / "mine" / "config.json").write_text("{")
    assert found(tmp_path) == ["a.png", "mine/b.png", "mine/config.json"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_can_not_be_read_is_named(tmp_path):
    make(tmp_path, "shut/a.png")
    (tmp_path / "shut").chmod(0)
    with pytest.raises(InputError, match="shut: got permission denied"):
        list(walk(tmp_path))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_lists_are_read_whatever_editor_wrote_them(tmp_path, encoding):
    data = "ä.png 0\n".encode(encoding)
    (tmp_path / "list.txt").write_bytes(data if encoding != "utf-16-le" else b"\xff\xfe" + data)
    assert read_list(tmp_path / "list.txt") == "ä.png 0\n"


def test_a_list_that_is_no_text_is_one_line(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\x80\x81\xfe\n")
    with pytest.raises(InputError, match="a list in UTF-8 or UTF-16"):
        read_list(tmp_path / "list.txt")
    with pytest.raises(InputError, match="no such file"):
        read_list(tmp_path / "none.txt")
