"""Tables of runs, and what their files may not replace."""

import csv
import math
from pathlib import Path

import pytest

from evos.errors import InputError
from evos.runs import open_run
from image_regression.compare import main as compare
from image_regression.demo import main as demo
from image_regression.main import main
from image_regression.summary import form_of, markdown_table, write_summary


def test_what_would_end_a_cell_is_escaped():
    table = markdown_table(["name", "a"], [["cat|dog\nand\rmouse", "1"], ["x", ""]])
    assert table.splitlines() == ["| name | a |", "| --- | --- |", "| cat\\|dog and mouse | 1 |", "| x |  |"]


def test_a_measure_is_written_alike_at_a_step_held_out_and_as_a_spread():
    assert {form_of(name) for name in ("psnr", "psnr@100", "held_out_psnr", "held_out_psnr_spread")} == {"{:.2f}"}
    assert form_of("strategy") == "{}" and form_of("points") == form_of("points_evaluated") == "{:,}"


def test_a_summary_has_a_line_for_each_run_and_the_means(tmp_path):
    run = {"psnr": 30.0, "ssim": 0.5, "lpips": None, "train_seconds": 2.0, "points_evaluated": 1001}
    results = [run | {"name": "a|b"}, run | {"name": "c", "psnr": math.inf, "points_evaluated": 1000}]
    write_summary(tmp_path, results)
    write_summary(tmp_path, results)  # its own files it replaces
    lines = (tmp_path / "summary.md").read_text().splitlines()
    assert lines[2:] == [
        "| a\\|b | 30.00 | 0.5000 | - | 2.0 | 1,001 |",
        "| c | inf | 0.5000 | - | 2.0 | 1,000 |",
        "| mean | inf | 0.5000 | - | 2.0 | 1,000 |",
    ]
    with (tmp_path / "summary.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["a|b", "c"]
    sized = [results[0] | {"parameters": 1500, "bytes": 6000, "bits_per_value": 0.25}, *results[1:]]
    write_summary(tmp_path, sized)
    assert (tmp_path / "summary.md").read_text().splitlines()[2].endswith("| 1,001 | 1,500 | 6,000 | 0.25 |")


@pytest.mark.parametrize("name", ["summary.md", "summary.csv"])
def test_somebody_else_s_summary_is_not_replaced(tmp_path, refused, tiny, picture, name):
    picture("photos/a.png")
    (tmp_path / name).write_text("my notes\n")
    message = refused(*tiny, "--steps", "2", "--input", str(tmp_path / "photos"), "--out", str(tmp_path))
    assert "--out" in message and name in message
    assert (tmp_path / name).read_text() == "my notes\n" and not (tmp_path / "a_png").exists()
    with pytest.raises(InputError, match=name):
        write_summary(tmp_path, [])


@pytest.mark.parametrize("program", [main, compare, demo])
@pytest.mark.parametrize("flag", [[], ["--overwrite"]])
def test_no_program_takes_a_text_file_or_a_foreign_folder_for_its_output(tmp_path, refused, tiny, program, flag):
    notes, folder = tmp_path / "notes.txt", tmp_path / "folder"
    notes.write_text("mine")
    folder.mkdir()
    (folder / "table.md").write_text("mine")
    for out in (notes, folder):
        refused(*tiny, "--steps", "2", *flag, "--out", str(out), program=program)
    assert notes.read_text() == "mine" and [file.name for file in folder.iterdir()] == ["table.md"]
    assert (folder / "table.md").read_text() == "mine"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("program", "pictures"),
    [
        (main, ["report.png", "images/reconstruction.png"]),
        (compare, ["psnr_over_time.png", "astronaut/full-constant-0/images/reconstruction.png"]),
        (demo, ["report.png", "fast/images/reconstruction.png"]),
    ],
    ids=["main", "compare", "demo"],
)
def test_pictures_of_the_names_that_a_program_writes_stay_in_a_foreign_folder(
    tmp_path, refused, tiny, program, pictures
):
    for name in ("notes.txt", *pictures):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    before = files(tmp_path)
    for flag in ([], ["--overwrite"], ["--resume"]):
        refused(*tiny, "--steps", "2", *flag, "--out", str(tmp_path), program=program)
        assert files(tmp_path) == before


def test_the_demo_trains_nothing_where_one_of_its_folders_is_somebody_else_s(tmp_path, refused, tiny, monkeypatch):
    open_run(tmp_path, {}, resume=False, overwrite=False)
    (tmp_path / "fast").mkdir()
    (tmp_path / "fast" / "notes.txt").write_text("mine")
    before = files(tmp_path)
    monkeypatch.setattr("image_regression.demo.fit_signal", lambda *args: pytest.fail("trained"))
    assert str(tmp_path / "fast") in refused(*tiny, "--steps", "2", "--overwrite", "--out", str(tmp_path), program=demo)
    assert files(tmp_path) == before
