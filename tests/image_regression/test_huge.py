"""Pictures that stay on disk: the same pixels, the same method over tiles, and runs that end as they would have."""

import json
import math

import numpy as np
import pytest
import tifffile
import torch

from evos.coords import grid
from evos.fields.hashgrid import HashGridConfig
from evos.images import read_image
from evos.rasters import Raster, open_raster
from evos.selection import Selection
from evos.signals import Signal
from image_regression import huge
from image_regression.huge import load_signal
from image_regression.main import main
from image_regression.options import parse
from image_regression.sources import TileSource, extents, needed_bytes, tile_side
from image_regression.trainer import Fit

SIZE = (75, 53)
GRID = ["--field", "hashgrid", "--field.levels", "3", "--field.base_resolution", "4", "--field.finest_resolution", "64"]
GRID += ["--field.hidden_features", "16", "--field.hidden_layers", "0", "--cfs_weight", "0"]
SHORT = [*GRID, "--device", "cpu", "--lpips", "false", "--quiet", "--points", "500"]
ON_DISK = [*SHORT, "--memory", "2G"]


@pytest.fixture
def path(tmp_path):
    """A picture whose detail is in one corner."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] / 75
    smooth = np.stack([y, x, (x + y) / 2], axis=-1)
    noise = np.random.default_rng(0).random((*SIZE, 3))
    array = np.where((y[..., None] > 0.6) & (x[..., None] > 0.4), noise, smooth)
    tifffile.imwrite(tmp_path / "photo.tif", (array * 255).round().astype(np.uint8), tile=(16, 16), photometric="rgb")
    return tmp_path / "photo.tif"


@pytest.fixture
def on_disk(monkeypatch):
    """Whatever its size, a picture is one that does not fit."""
    monkeypatch.setattr(huge, "ordinary_bytes", lambda pixels, channels: 10**12)


def built(path, *argv) -> Fit:
    return Fit(open_raster(path, path.parent), parse([*ON_DISK, *argv]), torch.device("cpu"))


# ---- which way


def test_a_picture_stays_on_disk_where_the_ordinary_way_takes_more_than_memory(path, tmp_path, capsys):
    options = parse([word for word in SHORT if word != "--quiet"] + ["--memory", "2G"])
    assert isinstance(load_signal(path, options, tmp_path / "run"), Signal)
    assert "within --memory: the ordinary way" in capsys.readouterr().out
    options = parse([word for word in SHORT if word != "--quiet"] + ["--memory", "100M"])
    assert isinstance(load_signal(path, options, tmp_path / "run"), Raster)
    assert "more than --memory: read from disk, by tiles" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--selector", "full"], "uniform, error or evos"),
        (["--selector", "soft"], "uniform, error or evos"),
        (["--factor", "2"], "--factor"),
        (["--supervision", "der"], "--supervision"),
        (["--polish", "1"], "--polish"),
        (["--longer_side", "64"], "--longer_side"),
        (["--cfs_weight", "0.5"], "--cfs_weight"),
        (["--memory", "100M"], "--memory"),
    ],
)
def test_what_does_not_go_with_a_picture_on_disk_is_one_line(argv, said, path, tmp_path, refused, on_disk):
    message = refused(*ON_DISK, "--selector", "error", *argv, "--input", str(path), "--out", str(tmp_path / "out"))
    assert said in message
    assert not (tmp_path / "out").exists()


def test_a_recipe_s_tables_shrink_until_the_memory_suffices(path):
    raster = open_raster(path, path.parent)
    object.__setattr__(raster, "layout", type("Layout", (), {"shape": (40_000, 40_000), "channels": 3}))

    def sized(memory):
        return TileSource.options(raster, parse(["--recipe", "fast", "--selector", "error", "--memory", memory]))

    large, small = sized("4G"), sized("1300M")
    grids = [options.field for options in (large, small)]
    assert all(isinstance(grid, HashGridConfig) and grid.base_resolution <= 64 for grid in grids)
    assert [getattr(grid, "table_log2", None) for grid in grids] == [20, 18]
    assert needed_bytes(large, raster) <= 4e9 and needed_bytes(small, raster) <= 1.3e9


# ---- points


@pytest.mark.parametrize("size", [1, 8, 75, 4096])
def test_tiles_cover_an_axis(size):
    assert extents(size, 8).sum() == size
    assert extents(size, 8).min() >= 1


def test_tiles_are_no_more_than_can_be_ranked():
    assert [tile_side((side, side)) for side in (64, 4096, 4097, 32768)] == [8, 8, 16, 64]


def test_points_are_pixels_of_their_tiles_with_the_values_of_the_file(path):
    source = built(path).source
    selection = Selection(torch.zeros(1, dtype=torch.long), torch.arange(source.pool.cells)[None].repeat(1, 50))
    points = source.points(selection)
    place = (points.coords[0] + 1) / 2 * torch.tensor([74.0, 52.0])
    assert torch.allclose(place, place.round(), atol=1e-3)
    y, x = place.round().long().unbind(1)
    assert torch.equal(y // 8 * source.pool.shape[1] + x // 8, torch.arange(source.pool.cells).repeat(50))
    assert torch.equal(points.values[0], read_image(path).pixels[y, x])
    assert torch.equal(points.target, source.transform.forward(points.values))
    assert torch.equal(points.coords[0], grid(SIZE)[y * 53 + x])


def test_uniform_draws_are_uniform_over_pixels_also_at_the_edge(path):
    fit, counts = built(path, "--selector", "uniform"), torch.zeros(75 * 53)
    for step in range(1, 401):
        points = fit.source.points(fit.selector.select(step, count=500))
        y, x = ((points.coords[0] + 1) / 2 * torch.tensor([74.0, 52.0])).round().long().unbind(1)
        counts += torch.bincount(y * 53 + x, minlength=75 * 53)
    expected = 400 * 500 / (75 * 53)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(float(chi_square) - 75 * 53) < 5 * math.sqrt(2 * 75 * 53)


@pytest.mark.parametrize("selector", ["error", "evos"])
def test_points_come_from_where_the_error_is(selector, path):
    fit = built(path, "--selector", selector)
    for step in range(1, 200):
        fit.step(step)
    visits = fit.visits.view(fit.pool.shape).float()
    assert visits[6:, 3:6].mean() > 1.5 * visits[:5].mean()


def test_the_sample_that_is_evaluated_is_the_same_for_every_selector_and_is_of_the_picture(path):
    one, other = built(path, "--selector", "uniform"), built(path, "--selector", "error")
    assert torch.equal(one.values, other.values) and torch.equal(one.grid, other.grid)
    place = ((one.grid + 1) / 2 * torch.tensor([74.0, 52.0])).round().long()
    assert torch.equal(one.values, read_image(path).pixels[place[:, 0], place[:, 1]])


# ---- runs


def test_a_run_writes_previews_and_all_pixels_as_a_stream(path, tmp_path, on_disk):
    argv = [*ON_DISK, "--selector", "error", "--steps", "60", "--input", str(path), "--out", str(tmp_path / "run")]
    main([*argv, "--whole_seconds", "100"])
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    found, truth = read_image(tmp_path / "run" / "images" / "reconstruction.tif").pixels, read_image(path).pixels
    assert metrics["psnr_pixels"] == 75 * 53 and metrics["shape"] == [75, 53, 3]
    assert metrics["psnr"] == pytest.approx(-10 * (found - truth).square().mean().log10().item(), abs=0.02)
    assert metrics["bits_per_value"] == pytest.approx(8 * metrics["bytes"] / (75 * 53 * 3))
    preview = read_image(tmp_path / "run" / "images" / "preview.png").pixels
    assert 1000 < preview.shape[1] < 1400
    assert (tmp_path / "run" / "report.png").exists()


def test_without_time_for_all_pixels_the_psnr_is_the_sample_s(path, tmp_path, on_disk, capsys):
    argv = [word for word in ON_DISK if word != "--quiet"]
    main(
        [
            *argv,
            "--selector",
            "error",
            "--steps",
            "5",
            "--input",
            str(path),
            "--out",
            str(tmp_path / "run"),
            "--whole_seconds",
            "0",
        ]
    )
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["psnr"] == metrics["curve"][-1]["psnr"] and metrics["psnr_pixels"] == 75 * 53
    assert "the PSNR is that of 3,975" in capsys.readouterr().out
    assert not (tmp_path / "run" / "images" / "reconstruction.tif").exists()


def test_an_array_is_a_picture_in_memory_as_on_disk(path, tmp_path):
    np.save(tmp_path / "photo.npy", tifffile.imread(path))
    signal = load_signal(tmp_path / "photo.npy", parse(SHORT), tmp_path / "run")
    assert isinstance(signal, Signal)
    assert torch.equal(signal.picture(signal.values), read_image(path).pixels)


def test_a_folder_that_is_taken_is_refused_before_anything_is_decoded(path, tmp_path, refused, on_disk, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    monkeypatch.setattr(huge, "open_raster", None)
    message = refused(*ON_DISK, "--selector", "error", "--input", str(path), "--out", str(tmp_path / "out"))
    assert "--out" in message


def test_a_full_disk_while_all_pixels_are_written_is_one_line_and_the_run_goes_on_from_there(
    path, tmp_path, refused, on_disk, monkeypatch
):
    argv = [*ON_DISK, "--selector", "error", "--steps", "20", "--input", str(path), "--out", str(tmp_path / "run")]
    argv += ["--whole_seconds", "100"]

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tifffile.TiffWriter.write", full)
        assert "No space left" in refused(*argv)
    assert [file.name for file in (tmp_path / "run" / "images").glob(".*")] == []
    main([*argv, "--resume"])
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["psnr_pixels"] == 75 * 53


# ---- resumption


@pytest.mark.parametrize("selector", ["uniform", "error", "evos"])
def test_a_resumed_fit_goes_on_bit_for_bit(selector, path):
    whole, first, second = (built(path, "--selector", selector, "--steps", "60") for _ in range(3))
    losses = [float(whole.step(step)) for step in range(1, 61)]
    for step in range(1, 38):
        first.step(step)
    second.load_state_dict(first.state_dict())
    assert [float(second.step(step)) for step in range(38, 61)] == losses[37:]
    assert torch.equal(second.visits, whole.visits)
    for mine, other in zip(second.field.parameters(), whole.field.parameters(), strict=True):
        assert torch.equal(mine, other)
