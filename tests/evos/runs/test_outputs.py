"""Where programs may write, against names made to lead elsewhere."""

import pytest

from evos.errors import InputError
from evos.runs.outputs import check_absent, check_folder, check_name, make_folder, path_in

OUTWARD = ["../x", "a/../../x", "/etc/x", "", ".", "..", "a//b", "a/./b", "a/", "..\\x", "a\\b", "C:x", "c:/x", "a\0b"]


@pytest.mark.parametrize("name", OUTWARD)
def test_a_name_that_leaves_the_folder_is_refused_on_every_platform(tmp_path, name):
    with pytest.raises(InputError, match="patterns: got"):
        path_in(tmp_path, name, "patterns")


@pytest.mark.parametrize("name", ["x", "a/b", "..x", "a..b/c", ".hidden", "12:30", "ä ö"])
def test_other_names_are_appended_to_the_folder(tmp_path, name):
    assert path_in(tmp_path, name, "patterns") == tmp_path / name and not list(tmp_path.iterdir())


def test_a_plain_name_has_no_folders():
    check_name("photos", "name", nested=False)
    with pytest.raises(InputError, match="without /"):
        check_name("a/b", "name", nested=False)


def test_a_link_does_not_lead_out_of_the_folder(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "away").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "out" / "within").symlink_to(tmp_path / "out")
    (tmp_path / "out" / "circle").symlink_to(tmp_path / "out" / "circle")
    for name in ("away/x", "circle/x"):
        with pytest.raises(InputError, match="no link"):
            path_in(tmp_path / "out", name, "patterns")
    assert path_in(tmp_path / "out", "within/x", "patterns") == tmp_path / "out" / "within" / "x"


def test_a_folder_that_is_itself_a_link_is_written_to(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    assert path_in(tmp_path / "out", "a/x", "patterns") == tmp_path / "out" / "a" / "x"


def test_what_exists_is_replaced_only_when_told(tmp_path):
    file, link = tmp_path / "notes.txt", tmp_path / "link"
    file.write_text("mine")
    link.symlink_to(tmp_path / "absent")
    check_absent([tmp_path / "new"], overwrite=False)
    for path in (file, link):
        with pytest.raises(InputError, match="overwrite=true"):
            check_absent([tmp_path / "new", path], overwrite=False)
        check_absent([path], overwrite=True)
    with pytest.raises(InputError, match="a folder; allowed"):
        check_absent([tmp_path], overwrite=True)


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="out: got"):
        make_folder(tmp_path / "file" / "sub")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_a_folder_is_replaced_only_when_told_and_only_if_all_in_it_is_the_program_s(tmp_path):
    folder, patterns = tmp_path / "out", ("train/*.png", "log.txt")
    check_folder(folder, patterns, overwrite=False)
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "0.png").touch()
    (folder / "log.txt").touch()
    with pytest.raises(InputError, match="a new folder, or --overwrite"):
        check_folder(folder, patterns, overwrite=False)
    check_folder(folder, patterns, overwrite=True)
    (tmp_path / "link").symlink_to(folder)
    for path in (tmp_path / "link", folder / "log.txt"):
        with pytest.raises(InputError, match="nothing in it but what"):
            check_folder(path, patterns, overwrite=True)
    (folder / "train" / "notes.txt").touch()
    with pytest.raises(InputError, match="nothing in it but what"):
        check_folder(folder, patterns, overwrite=True)


def test_an_empty_folder_counts_as_new(tmp_path):
    check_folder(tmp_path, (), overwrite=False)
