"""Pictures that stay on disk: every layout gives the pixels of its file, damage is one line, pages are given back."""

import errno
import mmap

import numpy as np
import pytest
import tifffile
import torch

from evos import rasters
from evos.errors import InputError
from evos.images import read_image
from evos.raster_files import read_header
from evos.rasters import open_raster, pairs
from evos.tiled_tiff import write_tiled

SHAPE = (75, 53)


def pixels(dtype=np.uint8, channels=3, shape=SHAPE) -> np.ndarray:
    values = np.random.default_rng(3).integers(0, 256, (*shape, channels))
    return (
        (values / 255).astype(dtype)
        if np.dtype(dtype).kind == "f"
        else (values * (np.iinfo(dtype).max // 255)).astype(dtype)
    )


def save(path, array, **options):
    """Write an array as its path's extension says."""
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        photometric = "rgb" if array.shape[-1] == 3 else "minisblack"
        tifffile.imwrite(path, array[..., 0] if array.shape[-1] == 1 else array, photometric=photometric, **options)
    return path


LAYOUTS = {
    "tiles": {"tile": (16, 32)},
    "strips": {"rowsperstrip": 7},
    "one strip": {},
    "compressed tiles": {"tile": (16, 32), "compression": "zlib"},
    "compressed strips": {"rowsperstrip": 9, "compression": "zlib"},
    "big-endian": {"tile": (16, 16), "byteorder": ">"},
}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", [*LAYOUTS, "npy"])
def test_every_layout_has_the_pixels_that_are_read_into_memory(layout, channels, dtype, tmp_path):
    array = pixels(dtype, channels)
    path = save(tmp_path / ("a.npy" if layout == "npy" else "a.tif"), array, **LAYOUTS.get(layout, {}))
    raster = open_raster(path, tmp_path)
    largest = 1 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    expected = torch.from_numpy(array.astype(np.float32) / np.float32(largest))
    assert torch.equal(raster.window(0, 0, *SHAPE), expected)
    assert torch.equal(raster.window(13, 20, 30, 33), expected[13:43, 20:53])
    y, x = torch.tensor([74, 0, 16, 16]), torch.tensor([52, 0, 31, 32])
    assert torch.equal(raster.gather(y, x), expected[y, x])
    assert raster.ends == pytest.approx([float(expected.min()), float(expected.max())])
    assert (raster.shape, raster.channels, raster.name) == (SHAPE, channels, "a")
    assert raster.bits == (32 if np.dtype(dtype).kind == "f" else 8 * array.dtype.itemsize)


def test_another_picture_is_decoded_once_and_leaves_nothing_on_disk(tmp_path, monkeypatch):
    import imageio.v3 as iio

    iio.imwrite(tmp_path / "a.png", pixels())
    raster = open_raster(tmp_path / "a.png", tmp_path)
    assert torch.equal(raster.window(0, 0, *SHAPE), read_image(tmp_path / "a.png").pixels)
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("name", ["a.tif", "a.npy"])
def test_the_header_says_how_large_a_picture_is(name, tmp_path):
    header = read_header(save(tmp_path / name, pixels()))
    assert (header.shape, header.channels, header.pixels) == (SHAPE, 3, 75 * 53)


def test_pairs_are_every_row_with_every_column():
    y, x = pairs(torch.tensor([4, 5]), torch.tensor([1, 2, 3]))
    assert y.tolist() == [4, 4, 4, 5, 5, 5]
    assert x.tolist() == [1, 2, 3, 1, 2, 3]


# ---- bad files


@pytest.mark.parametrize("layout", [*LAYOUTS, "npy"])
def test_a_truncated_file_is_one_clear_line(layout, tmp_path):
    path = save(tmp_path / ("a.npy" if layout == "npy" else "a.tif"), pixels(), **LAYOUTS.get(layout, {}))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"a\.(tif|npy).*(truncated|damaged|mmap)"):
        open_raster(path, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (pixels().astype(np.int32), "int32 samples"),
        (pixels().astype(np.float32) * 300, "values from 0 to"),
        (np.full((40, 40, 1), np.nan, np.float32), "not finite"),
        (pixels(channels=5), "5"),
    ],
)
@pytest.mark.parametrize("name", ["a.tif", "a.npy"])
def test_other_samples_are_refused(array, said, name, tmp_path):
    options = {"planarconfig": "contig"} if array.shape[-1] == 5 else {}
    path = save(tmp_path / name, array, **(options if name == "a.tif" else {}))
    with pytest.raises(InputError, match=said):
        open_raster(path, tmp_path)


def test_what_is_no_picture_is_named(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"nothing of the kind")
    for name in ("a.tif", "missing.tif", "missing.npy"):
        with pytest.raises(InputError, match=name):
            open_raster(tmp_path / name, tmp_path)
        with pytest.raises(InputError, match=name):
            read_header(tmp_path / name)


def test_decoding_that_would_not_fit_the_memory_is_refused_before_it_begins(tmp_path):
    import imageio.v3 as iio

    iio.imwrite(tmp_path / "a.png", pixels())
    with pytest.raises(InputError, match=r"--memory.*a\.png.*TIFF or \.npy"):
        open_raster(tmp_path / "a.png", tmp_path, memory=10 * 75 * 53 - 1)


def test_a_disk_without_room_for_the_decoded_pixels_is_one_clear_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = save(tmp_path / "a.tif", pixels(), compression="zlib")
    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(InputError, match=r"a\.tif.*no space left on device.*without compression"):
        open_raster(path, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.tif"]


# ---- memory


def resident() -> int:
    return int(rasters.STATM.read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.skipif(not rasters.STATM.exists(), reason="Linux alone says how large a process is")
def test_mapped_pages_are_given_back_before_they_exceed_the_limit(tmp_path, monkeypatch):
    path = tmp_path / "a.npy"
    array = np.lib.format.open_memmap(path, "w+", np.uint8, (8192, 8192, 1))  # 64 MiB
    array[:] = 7
    del array
    raster = open_raster(path, tmp_path)
    raster.release()
    raster.mapping.madvise(mmap.MADV_DONTNEED)
    before, slack = resident(), 2**24
    y = torch.randint(8192, (2**15,), generator=torch.Generator().manual_seed(0))
    raster.gather(y, y.flip(0))
    assert resident() - before > 2 * slack  # all of it, without a limit
    raster.mapping.madvise(mmap.MADV_DONTNEED)
    monkeypatch.setattr(rasters, "SLACK_BYTES", 0)
    monkeypatch.setattr(rasters, "GATHERED", 64)
    object.__setattr__(raster, "limit", before + slack)
    raster.gather(y, y.flip(0))
    assert resident() - before < 1.5 * slack


# ---- written tile by tile


@pytest.mark.parametrize(("channels", "bits"), [(1, 8), (3, 8), (4, 16)])
def test_a_picture_written_tile_by_tile_is_the_picture(channels, bits, tmp_path):
    shape = (300, 530)
    picture = np.random.default_rng(1).random((*shape, channels))
    tiles = (picture[top : top + 256, left : left + 256] for top in (0, 256) for left in (0, 256, 512))
    write_tiled(tmp_path / "a.tif", tiles, shape, channels, bits)
    found = read_image(tmp_path / "a.tif")
    assert found.bits == bits
    assert np.abs(found.pixels.numpy() - picture).max() <= 0.51 / (2**bits - 1)


def test_a_full_disk_leaves_the_old_file_and_no_part_of_the_new_one(tmp_path):
    def tiles():
        yield np.zeros((256, 256, 3))
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a.tif").write_bytes(b"old")
    with pytest.raises(InputError, match=r"a\.tif.*No space left.*free space"):
        write_tiled(tmp_path / "a.tif", tiles(), (512, 512), 3)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a.tif", b"old")]
