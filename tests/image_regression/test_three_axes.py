"""Videos, volumes and shapes go through the program as pictures do."""

import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tifffile
import torch
import trimesh
from scipy import ndimage

import evos
from evos.errors import InputError
from evos.runs import open_run
from evos.signals import find_inputs, kind_of, load
from evos.videos import read_video
from image_regression import shapes
from image_regression.main import main
from image_regression.options import PARTS, parse
from image_regression.render import main as render
from image_regression.trainer import Fit

QUIET = ["--quiet", "--field.hidden_features", "16", "--device", "cpu", "--lpips", "false"]
FAST = ["--quiet", "--recipe", "fast", "--device", "cpu", "--eval_every", "1000", "--steps", "250"]


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def squared(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).square().mean())


# ---- what a run writes


def test_a_video_is_fitted_and_written_back(tmp_path, three_axes):
    path = three_axes("clip.mp4")
    main([*FAST, "--input", str(path), "--out", str(tmp_path / "run")])
    metrics = metrics_of(tmp_path / "run")
    assert metrics["kind"] == "video" and metrics["shape"] == [8, 12, 16, 3] and metrics["psnr"] > 30
    truth = read_video(path)[0]
    found, form = read_video(tmp_path / "run" / "images" / "reconstruction.mp4")
    fitted = evos.load(tmp_path / "run").sample().clamp(0, 1)
    assert form.rate == 12 and squared(found, fitted) < (2 / 255) ** 2  # two grey levels of compression
    by_frame = [-10 * np.log10(squared(a, b)) for a, b in zip(fitted, truth, strict=True)]
    assert metrics["frame_psnr"] == pytest.approx(by_frame, abs=1e-2)
    assert metrics["frame_psnr_min"] == pytest.approx(min(by_frame), abs=1e-2)
    assert metrics["frame_psnr_mean"] == pytest.approx(np.mean(by_frame), abs=1e-2)
    change = (truth[1:] - truth[:-1]).abs().mean((1, 2, 3)).tolist()
    assert metrics["frame_motion"] == pytest.approx([change[0], *change], abs=1e-6)
    drawn = sum(metrics["frame_visits"]) * 12 * 16
    assert drawn == pytest.approx(metrics["points_trained"]) and len(metrics["frame_visits"]) == 8
    names = {file.name for file in (tmp_path / "run" / "images").iterdir()}
    assert names == {"reconstruction.mp4", "frames.png", "frame_curves.png", "selection.png"}
    assert (tmp_path / "run" / "report.png").exists()


def test_a_gif_is_written_back_as_one(tmp_path, three_axes, no_report):
    main([*FAST, "--steps", "3", "--input", str(three_axes("clip.gif")), "--out", str(tmp_path / "run")])
    found, form = read_video(tmp_path / "run" / "images" / "reconstruction.gif")
    assert found.shape == (8, 12, 16, 3) and form.rate == pytest.approx(10)


def test_a_volume_is_fitted_and_written_back_in_its_own_numbers(tmp_path, three_axes):
    path = three_axes("hill.npy")
    main([*FAST, "--steps", "60", "--input", str(path), "--out", str(tmp_path / "run")])
    truth, found = np.load(path), np.load(tmp_path / "run" / "images" / "reconstruction.npy")
    assert found.dtype == np.int16 and found.shape == truth.shape
    error = np.square((found - truth.astype(float)) / np.ptp(truth)).mean()
    metrics = metrics_of(tmp_path / "run")
    assert metrics["kind"] == "volume" and metrics["psnr"] > 30
    assert -10 * np.log10(error) == pytest.approx(metrics["psnr"], abs=0.1)
    assert {file.name for file in (tmp_path / "run" / "images").iterdir()} == {
        *("reconstruction.npy", "slices.png", "selection.png"),
    }


def test_a_shape_is_fitted_and_written_back_as_a_mesh(tmp_path, three_axes):
    main([*FAST, "--longer_side", "24", "--input", str(three_axes("box.ply")), "--out", str(tmp_path / "run")])
    metrics = metrics_of(tmp_path / "run")
    assert metrics["kind"] == "shape" and metrics["shape"] == [24, 24, 24, 1]
    assert metrics["iou"] > 0.9 and metrics["chamfer"] < 0.02
    mesh = trimesh.load_mesh(tmp_path / "run" / "images" / "mesh.ply")
    assert mesh.volume == pytest.approx(24, rel=0.1)
    np.testing.assert_allclose(mesh.bounds, [[-2, -1.5, -1], [2, 1.5, 1]], atol=0.15)


def test_a_fit_without_a_surface_has_no_mesh_and_no_distance(tmp_path, three_axes):
    fit = Fit(load(three_axes("box.ply"), 8), parse(QUIET), torch.device("cpu"))
    run = open_run(tmp_path / "run", {}, resume=False, overwrite=False)
    values = torch.ones(8**3, 1)
    assert shapes.final_metrics(fit, values) == {"chamfer": None} and shapes.measure(fit, values, False)["iou"] == 0
    shapes.write(run, fit, values)
    assert not (run.images / "mesh.ply").exists() and (run.images / "slices.png").exists()


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("selector", PARTS["selector"])
@pytest.mark.parametrize("name", ["clip.mp4", "hill.npy", "box.ply"])
def test_every_selector_takes_three_axes(name, selector, tmp_path, three_axes):
    argv = [*QUIET, "--longer_side", "8", "--steps", "4", "--selector", selector, "--cfs_weight", "0.65"]
    argv += ["--supervision", "val_der", "--factor", "2"]
    main([*argv, "--input", str(three_axes(name)), "--out", str(tmp_path / "run")])
    metrics = metrics_of(tmp_path / "run")
    assert metrics["psnr"] > 0 and metrics["held_out_psnr"] > 0


def test_cells_have_neighbours_along_all_three_axes(three_axes):
    """EVOS' fitness of a fit on a volume is the Laplacian over z, y and x."""
    signal = load(three_axes("hill.npy"), None)
    fit = Fit(signal, parse([*QUIET, "--selector", "evos", "--steps", "10"]), torch.device("cpu"))
    fit.step(1)  # a key step: all residuals are cached
    residual = fit.selector.cache.read(fit.selector.all_rows)[0, :, 0].double().view(signal.shape)
    kernel = ndimage.generate_binary_structure(3, 1).astype(float)
    kernel[1, 1, 1] = -6
    expected = 0.65 * ndimage.convolve(residual.numpy(), kernel, mode="constant") ** 2
    found = fit.selector.fitness(fit.selector.all_rows)[1][0].view(signal.shape)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3, atol=1e-6)


# ---- which signals there are


def test_the_frames_of_a_folder_are_a_video_or_a_volume_only_where_that_is_said(tmp_path, picture, no_report):
    for number in range(3):
        picture(f"in/{number}.png")
    assert len(find_inputs(str(tmp_path / "in"))) == 3
    for kind, file in (("video", "reconstruction.mp4"), ("volume", "reconstruction.tif")):
        assert find_inputs(str(tmp_path / "in"), kind=kind) == {"in": tmp_path / "in"}
        argv = [*QUIET, "--steps", "2", "--input", str(tmp_path / "in"), "--kind", kind]
        main([*argv, "--out", str(tmp_path / kind)])
        assert metrics_of(tmp_path / kind)["shape"] == [3, 12, 10, 3]
        assert (tmp_path / kind / "images" / file).exists()


def test_a_folder_of_signals_of_all_kinds_fits_each(tmp_path, picture, three_axes, no_report):
    picture("in/a.png")
    for name in ("clip.gif", "hill.npy", "box.ply"):
        shutil.copy(three_axes(name), tmp_path / "in" / name)
    argv = [*QUIET, "--longer_side", "8", "--steps", "2", "--input", str(tmp_path / "in")]
    main([*argv, "--out", str(tmp_path / "out")])
    kinds = {path.parent.name: metrics_of(path.parent)["kind"] for path in (tmp_path / "out").glob("*/metrics.json")}
    assert kinds == {"a_png": "picture", "clip_gif": "video", "hill_npy": "volume", "box_ply": "shape"}
    assert list(find_inputs(str(tmp_path / "in"), kind="shape")) == ["box_ply"]


def test_pages_of_a_tiff_are_a_volume_unless_a_picture_is_asked_for(tmp_path):
    stack = np.arange(2 * 4 * 5, dtype=np.uint8).reshape(2, 4, 5)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack")
    assert kind_of(tmp_path / "a.tif") == "volume" and load(tmp_path / "a.tif", None).shape == (2, 4, 5)
    with pytest.warns(UserWarning, match="2 frames or pages"):
        assert load(tmp_path / "a.tif", None, kind="picture").shape == (4, 5)


def test_a_photo_is_still_a_photo(picture):
    assert (
        kind_of(None) == "picture" and kind_of(picture("a.png")) == "picture" and kind_of(picture("b.tif")) == "picture"
    )


# ---- rendered at another size


@pytest.fixture(scope="module")
def runs(tmp_path_factory, three_axes):
    folder = tmp_path_factory.mktemp("runs")
    for name in ("clip.mp4", "hill.npy", "box.ply"):
        main([*FAST, "--longer_side", "16", "--input", str(three_axes(name)), "--out", str(folder / name)])
    return folder


def test_a_video_is_rendered_larger_and_slower(tmp_path, runs):
    render([str(runs / "clip.mp4"), "--size", "32", "--frames", "15", "--out", str(tmp_path / "a.mp4")])
    found, form = read_video(tmp_path / "a.mp4")
    assert found.shape == (15, 24, 32, 3) and form.rate == pytest.approx(12 * 15 / 8, rel=1e-3)
    sampled = evos.load(runs / "clip.mp4").sample((15, 24, 32)).clamp(0, 1)
    assert squared(found, sampled) < 1e-3


def test_a_volume_is_rendered_between_its_corners(tmp_path, runs):
    render([str(runs / "hill.npy"), "--size", "23", "--out", str(tmp_path / "a.npy")])
    found, fitted = np.load(tmp_path / "a.npy"), evos.load(runs / "hill.npy")
    assert found.shape == (15, 19, 23) and found.dtype == np.int16
    values = fitted.sample().clamp(0, 1)[..., 0].double().numpy() * fitted.form.span + fitted.form.low
    np.testing.assert_allclose(found[::14, ::18, ::22], values[::7, ::9, ::11], atol=1)


def test_a_shape_is_rendered_finer(tmp_path, runs):
    render([str(runs / "box.ply"), "--size", "40", "--out", str(tmp_path / "a.obj")])
    mesh = trimesh.load_mesh(tmp_path / "a.obj")
    assert mesh.volume == pytest.approx(24, rel=0.15)
    assert len(mesh.vertices) > 2 * len(trimesh.load_mesh(runs / "box.ply" / "images" / "mesh.ply").vertices)


def test_frames_and_extensions_of_other_kinds_are_refused(tmp_path, runs, capsys):
    for argv, part in (
        ([str(runs / "hill.npy"), "--frames", "5", "--out", str(tmp_path / "a.npy")], "none for a volume"),
        ([str(runs / "clip.mp4"), "--out", str(tmp_path / "a.png")], "the extension .png"),
        ([str(runs / "box.ply"), "--out", str(tmp_path / "a.mp4")], "the extension .mp4"),
    ):
        with pytest.raises(SystemExit) as stop:
            render(argv)
        assert stop.value.code == 2 and part in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# ---- what is refused


def test_bad_signals_are_one_line_and_leave_nothing(tmp_path, refused, three_axes):
    out = ["--out", str(tmp_path / "out")]
    np.save(tmp_path / "nan.npy", np.full((4, 4, 4), np.nan))
    np.save(tmp_path / "flat.npy", np.zeros(4))
    (tmp_path / "cut.mp4").write_bytes(three_axes("clip.mp4").read_bytes()[:-200])
    mesh = trimesh.load_mesh(three_axes("box.ply"))
    mesh.update_faces(np.arange(len(mesh.faces)) > 0)
    mesh.export(tmp_path / "open.ply")
    for name, part in {
        "nan.npy": "not finite",
        "flat.npy": "an array of (4,); allowed: 3 axes (z, y, x)",
        "cut.mp4": "a truncated, damaged or unsupported video",
        "open.ply": "an open mesh (3 edges with one face)",
        "missing.mp4": "no such file",
        "missing.npy": "no such file",
        "missing.ply": "no such file",
    }.items():
        message = refused(*QUIET, "--input", str(tmp_path / name), *out)
        assert str(tmp_path / name) in message and part in message, message
    for argv, part in (
        (["--frames", "3", "--input", str(three_axes("hill.npy"))], "--frames: got 3; allowed: none for a volume"),
        (["--frames", "1"], "--frames: got 1"),
        (["--kind", "film"], "--kind: got film"),
        (["--kind", "video", "--input", str(three_axes("hill.npy"))], "unsupported video"),
        (["--kind", "volume", "--input", str(three_axes("box.ply"))], "the extension .ply"),
        (["--longer_side", "9", "--factor", "2", "--input", str(three_axes("box.ply"))], "a multiple of the factor"),
        (["--recipe", "compact", "--parameters", "10", "--input", str(three_axes("hill.npy"))], "for 3 axes"),
    ):
        assert part in refused(*QUIET, *argv, *out), argv
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["clip.mp4", "hill.npy", "box.ply"])
@pytest.mark.parametrize("largest", [1_000, 5_000, 50_000])
def test_a_full_disk_is_one_line_and_leaves_no_part_of_a_file(name, largest, tmp_path, three_axes, start):
    folder = tmp_path / "run"
    argv = [*QUIET, "--steps", "20", "--save_every", "5", "--longer_side", "16", "--input", str(three_axes(name))]
    argv += ["--out", str(folder)]
    program = start(*argv, largest_file=largest)
    assert program.wait() == 2
    (line,) = program.stderr.splitlines()
    assert line.startswith("error: ") and str(folder) in line and "File too large" in line
    assert not (folder / "metrics.json").exists()
    assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp")]
    assert start(*argv, "--resume").wait() == 0
    assert metrics_of(folder)["steps"] == 20


def test_pictures_of_other_sizes_are_no_frames(tmp_path, refused, picture):
    picture("in/a.png")
    picture("in/b.png", size=(5, 5))
    message = refused(*QUIET, "--input", str(tmp_path / "in"), "--kind", "video", "--out", str(tmp_path / "out"))
    assert "b.png: got a picture of (5, 5, 3); allowed: (12, 10, 3)" in message
    PIL.Image.new("RGB", (10, 12)).save(tmp_path / "in" / "b.png")
    with pytest.raises(InputError, match="a folder without images"):
        find_inputs(str(tmp_path), kind="video")
