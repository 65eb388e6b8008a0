"""The demo: what it asks of nerfstudio's programs, what it reads back, and (slow) all of it at a small size."""

import json
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from evos.errors import InputError
from evos.runs.folder import open_run
from evos.runs.outputs import check_folder
from evos.runs.progress import Progress
from evos_nerf import demo
from evos_nerf.demo import DemoConfig, call, main, markdown_table, read_picture, training_options, write_report
from evos_nerf.scene import SceneConfig, write_scene

pytestmark = pytest.mark.nerf


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Makes nerfstudio's programs into what is given, in Python."""

    def install(name: str, source: str) -> None:
        (tmp_path / "bin").mkdir()
        monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
        path = tmp_path / "bin" / name
        path.write_text(f"#!{Path(sys.base_prefix) / 'bin' / 'python3'}\nimport sys\n{source}")
        path.chmod(0o755)

    return install


def test_both_rows_are_asked_for_the_same_but_for_the_selector(tmp_path):
    words = {t: training_options(t, DemoConfig(), tmp_path / "scene", tmp_path / "x") for t in demo.SELECTORS}
    assert words["nerfacto"][0] == "evos-nerfacto" and words["nerfacto"][-1] == "blender-data"
    differing = [pair for pair in zip(*words.values(), strict=True) if pair[0] != pair[1]]
    assert differing == [("host", "tiles")]
    at = words["nerfacto"].index("--pipeline.model.num-proposal-samples-per-ray")
    assert words["nerfacto"][at + 1 : at + 3] == [48, 32]


def test_steps_are_shown_and_the_output_kept(program, tmp_path, capsys):
    program("ns-train", "print('words', sys.argv[1:])\nfor i in range(10): print(f'{i} ({10 * i}.00%)  200 ms')")
    with Progress(10, "method") as progress:
        call("ns-train", ["nerfacto", "--steps", 10], tmp_path / "logs" / "train.log", progress)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("method 1/10")
    assert shown[-1].startswith("method 10/10")
    log = (tmp_path / "logs" / "train.log").read_text().splitlines()
    assert log[0] == "words ['nerfacto', '--steps', '10']"
    assert len(log) == 11


def test_a_program_that_fails_says_why_and_where(program, tmp_path):
    program("ns-eval", "print('the reason')\nsys.exit(3)")
    with Progress(1, "method", quiet=True) as progress, pytest.raises(SystemExit) as caught:
        call("ns-eval", [], tmp_path / "eval.log", progress)
    assert str(caught.value) == f"the reason\nerror: ns-eval ended with status 3; see {tmp_path / 'eval.log'}"


def test_without_nerfstudio_one_line_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with Progress(1, "method", quiet=True) as progress, pytest.raises(InputError, match="with the nerf extra"):
        call("ns-train", [], tmp_path / "log", progress)


def test_pictures_are_put_before_white(tmp_path):
    pixels = np.array([[[0, 0, 0, 0], [255, 0, 0, 255], [0, 0, 0, 51]]], np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "p.png")
    np.testing.assert_allclose(read_picture(tmp_path / "p.png")[0], [[1, 1, 1], [1, 0, 0], [0.8, 0.8, 0.8]])


def results() -> dict:
    truth = np.ones((8, 8, 3))
    numbers = {"psnr": 20.123, "ssim": 0.5, "seconds": 9.96, "rays": 12800}
    maps = {"drawn": np.zeros((8, 8, 3), np.uint8), "error": np.zeros((8, 8, 3), np.uint8)}
    return {
        "nerfacto": {"metrics": numbers, "truth": truth, "render": truth * 0.5, "maps": {}},
        "EVOS": {"metrics": {**numbers, "psnr": 21.0}, "truth": truth, "render": truth, "maps": maps},
    }


def test_the_table_has_a_row_for_each_method():
    assert markdown_table(results()).splitlines() == [
        "|  | PSNR (dB) | SSIM | training s | rays |",
        "| --- | --- | --- | --- | --- |",
        "| nerfacto | 20.12 | 0.5000 | 10.0 | 12,800 |",
        "| EVOS | 21.00 | 0.5000 | 10.0 | 12,800 |",
    ]


@pytest.mark.parametrize("with_maps", [True, False])
def test_the_report_is_drawn_with_and_without_maps(tmp_path, with_maps):
    scene = write_scene(SceneConfig(str(tmp_path / "scene"), views=1, size=8), quiet=True)
    found = results()
    if not with_maps:
        found["EVOS"]["maps"] = {}
    write_report(tmp_path / "report.png", found, scene)
    with PIL.Image.open(tmp_path / "report.png") as picture:
        panels = 4 if with_maps else 3
        assert picture.width == pytest.approx(panels * 3.6 * 110, abs=1)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--steps", "2"], "error: --steps: got 2; allowed: at least 4"),
        (["size=4"], "error: --size: got 4; allowed: at least 8"),
        (["--ray", "4"], "error: option: got --ray; allowed: did you mean --rays?"),
    ],
)
def test_bad_input_is_one_line_and_status_2(words, line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(line)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_demo_is_left_alone(tmp_path, capsys):
    (tmp_path / "scene").mkdir()
    (tmp_path / "scene" / "mine.txt").write_text("mine")
    for words in ([], ["--overwrite"]):
        with pytest.raises(SystemExit):
            main(["--quick", "--out", str(tmp_path), *words])
    assert [p.name for p in tmp_path.rglob("*")] == ["scene", "mine.txt"]


@pytest.mark.parametrize("name", ["scene/train/r_0.png", "scene/notes.txt", "nerfacto/notes.txt"])
def test_files_of_others_within_a_run_stay(tmp_path, capsys, name):
    open_run(tmp_path, {}, resume=False, overwrite=False)
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as caught:
        main(["--quick", "--out", str(tmp_path), "--overwrite"])
    assert caught.value.code == 2 and str(tmp_path / name.split("/")[0]) in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / name).read_text() == "mine"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_quick_demo_ends_with_a_table_and_a_picture(tmp_path, capsys):
    pytest.importorskip("nerfstudio.configs.method_configs", reason="needs the nerf extra")
    if not Path(sys.executable).with_name("ns-train").exists():
        pytest.skip("no ns-train beside python")
    out = tmp_path / "demo"
    main(["--quick", "--out", str(out)])
    numbers = json.loads((out / "metrics.json").read_text())
    assert list(numbers) == ["nerfacto", "EVOS"]
    for row in numbers.values():
        assert row["rays"] == 20 * 512
        assert 5 < row["psnr"] < 40
        assert row["seconds"] > 0
    assert (out / "table.md").read_text() in capsys.readouterr().out
    check_folder(out / "nerfacto", demo.FILES, overwrite=True)  # a second demo may replace it
    with PIL.Image.open(out / "report.png") as picture:
        assert picture.width == pytest.approx(4 * 3.6 * 110, abs=1)  # with the selector's maps
