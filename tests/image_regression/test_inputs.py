"""Pictures of every kind, one or a folder of them."""

import csv
import json
import math
import os
from pathlib import Path
from statistics import mean

import numpy as np
import PIL.Image
import pytest
import tifffile
import torch

from evos.images import read_image, write_image
from evos.signals import find_inputs, folder_name, from_pixels
from image_regression.main import main


@pytest.mark.parametrize(
    ("name", "mode", "channels", "bits"),
    [
        ("grey.png", "L", 1, 8),
        ("grey_alpha.png", "LA", 2, 8),
        ("rgb.png", "RGB", 3, 8),
        ("rgba.png", "RGBA", 4, 8),
        ("palette.png", "P", 3, 8),
        ("deep.png", "I;16", 1, 16),
        ("rgba.webp", "RGBA", 4, 8),
    ],
)
def test_a_reconstruction_has_the_channels_and_the_depth_of_its_picture(
    name, mode, channels, bits, tmp_path, tiny, picture
):
    path = picture(name, mode)
    main([*tiny, "--steps", "3", "--input", str(path), "--out", str(tmp_path / "run")])
    image = read_image(tmp_path / "run" / "images" / "reconstruction.png")
    assert tuple(image.pixels.shape) == (12, 10, channels) and image.bits == bits
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["shape"] == [12, 10, channels]
    assert (tmp_path / "run" / "report.png").stat().st_size > 10_000


def test_a_picture_of_floats_is_reconstructed_at_16_bits(tmp_path, tiny):
    values = np.linspace(0, 1, 120, dtype=np.float32).reshape(12, 10)
    tifffile.imwrite(tmp_path / "a.tif", values)
    main([*tiny, "--steps", "3", "--input", str(tmp_path / "a.tif"), "--out", str(tmp_path / "run")])
    image = read_image(tmp_path / "run" / "images" / "reconstruction.png")
    assert tuple(image.pixels.shape) == (12, 10, 1) and image.bits == 16


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 5), (16, 1)])
@pytest.mark.parametrize("selector", ["full", "uniform", "expansive", "soft", "int", "evos"])
@pytest.mark.usefixtures("no_report")
def test_a_picture_may_be_smaller_than_the_laplacian(selector, size, tmp_path, tiny, picture):
    path = picture("dot.png", size=size)
    main([*tiny, "--steps", "4", "--selector", selector, "--input", str(path), "--out", str(tmp_path / "run")])
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["shape"] == [*size, 3] and metrics["psnr"] > 0 and -1 <= metrics["ssim"] <= 1


def test_a_picture_of_one_colour_is_learnt_at_once(tmp_path, tiny):
    PIL.Image.new("RGB", (12, 12), (40, 40, 40)).save(tmp_path / "flat.png")
    main(
        [*tiny, "--steps", "40", "--lr", "1e-2", "--input", str(tmp_path / "flat.png"), "--out", str(tmp_path / "run")]
    )
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["psnr"] > 25


def test_the_reconstruction_is_what_the_metrics_measure(tmp_path, tiny, photo):
    main([*tiny, "--steps", "30", "--lr", "1e-3", "--out", str(tmp_path / "run")])
    image = read_image(tmp_path / "run" / "images" / "reconstruction.png").pixels
    error = (image.reshape(-1, 3).double() - photo.values.double()).square().mean()
    psnr = json.loads((tmp_path / "run" / "metrics.json").read_text())["psnr"]
    assert psnr == pytest.approx(float(-10 * error.log10()), abs=0.02)  # 8 bits


def test_the_selection_map_counts_visits(tmp_path, tiny):
    argv = [*tiny, "--steps", "20", "--selector", "expansive", "--out", str(tmp_path / "run")]
    main(argv)
    shares = read_image(tmp_path / "run" / "images" / "selection.png").pixels
    assert shares.shape == (16, 16, 1) and int((shares == 1).sum()) == 64  # the anchors, a quarter, in each step
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.01)


def test_a_size_reduces_the_longer_side(tmp_path, tiny, picture):
    path = picture("a.png", size=(64, 32))
    main([*tiny, "--longer_side", "16", "--steps", "2", "--input", str(path), "--out", str(tmp_path / "run")])
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["shape"] == [16, 8, 3]


def test_a_folder_fits_each_picture_in_a_folder_of_its_own(tmp_path, tiny, picture, no_report):
    for name in ("b.png", "a.webp", "a.png", "note.txt"):
        picture(f"in/{name}") if name != "note.txt" else (tmp_path / "in" / name).touch()
    argv = [*tiny, "--steps", "3", "--input", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    main(argv)
    assert sorted(os.listdir(tmp_path / "out")) == ["a_png", "a_webp", "b_png", "summary.csv", "summary.md"]
    with (tmp_path / "out" / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["a", "a", "b"]
    metrics = [
        json.loads((tmp_path / "out" / name / "metrics.json").read_text()) for name in ("a_png", "a_webp", "b_png")
    ]
    assert [float(row["psnr"]) for row in rows] == [entry["psnr"] for entry in metrics]
    lines = (tmp_path / "out" / "summary.md").read_text().splitlines()
    assert len(lines) == 6 and lines[-1].split(" | ")[:2] == ["| mean", f"{mean(m['psnr'] for m in metrics):.2f}"]


def test_pictures_of_a_folder_never_share_a_run_folder():
    names = ["a.b.png", "a_b.png", "a.png", "a.jpg", "A.PNG", "a_png.png"]
    assert len({folder_name(Path(name)) for name in names}) == len(names)


def test_no_input_is_the_photo(photo):
    assert find_inputs(None) == {"astronaut": None}
    assert photo.shape == (16, 16) and photo.values.shape == (256, 3) and photo.name == "astronaut"
    # Reducing keeps the mean, which for NASA's photo is known.
    assert float(photo.values.mean()) == pytest.approx(114.6 / 255, abs=0.01)


def test_pixels_become_a_signal_in_reading_order(tmp_path):
    pixels = torch.rand(3, 5, 2)
    write_image(tmp_path / "a.png", pixels)
    signal = from_pixels("a", pixels)
    assert torch.equal(signal.values[2 * 5 + 3], pixels[2, 3]) and torch.equal(signal.picture(signal.values), pixels)


@pytest.mark.usefixtures("no_report")
def test_the_mean_of_a_folder_with_a_perfect_fit_stays_infinite(tmp_path, tiny, picture, monkeypatch):
    picture("photos/a.png", size=(12, 10))
    picture("photos/b.png", size=(16, 10))

    def measure(prediction, truth, with_lpips):
        return {"psnr": math.inf if len(truth) == 12 else 30.86, "ssim": 1.0}

    monkeypatch.setattr("image_regression.pictures.image_metrics", measure)
    argv = [*tiny, "--steps", "2", "--input", str(tmp_path / "photos"), "--out", str(tmp_path / "out")]
    main(argv)
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert [line.split(" | ")[1] for line in summary.splitlines()[2:]] == ["inf", "30.86", "inf"]
    main([*argv, "--resume"])
    assert (tmp_path / "out" / "summary.md").read_text() == summary


@pytest.mark.usefixtures("no_report")
def test_pictures_of_subfolders_are_fitted_and_copies_are_not(tmp_path, tiny, picture):
    for name in ("a.png", "sub/a.png", "sub/deep/b.png", ".ipynb_checkpoints/a.png", "@eaDir/a.png"):
        picture(f"in/{name}")
    picture("elsewhere/c.png")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    argv = [*tiny, "--steps", "2", "--input", str(tmp_path / "in"), "--out", str(tmp_path / "in" / "runs")]
    names = ["a_png", "linked__c_png", "sub__a_png", "sub__deep__b_png"]
    assert sorted(find_inputs(str(tmp_path / "in"))) == names
    main(argv)
    assert sorted(path.name for path in (tmp_path / "in" / "runs").iterdir() if path.is_dir()) == names
    # What the runs wrote is no input of the next one.
    assert sorted(find_inputs(str(tmp_path / "in"))) == names


def test_two_inputs_of_one_name_are_refused(tmp_path, refused, picture):
    for name in ("a/b.png", "a__b.png"):
        picture(f"in/{name}")
    assert "a__b_png; allowed: inputs of different names" in refused("--input", str(tmp_path / "in"))
