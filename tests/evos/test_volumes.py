"""Volumes are read with their range, and written back in their format, type and geometry."""

import nibabel
import numpy as np
import PIL.Image
import pytest
import tifffile
import torch

from evos.errors import InputError
from evos.images import read_image
from evos.volumes import is_volume, read_slices, read_volume, write_volume


def ramp(dtype: str, shape: tuple[int, ...] = (4, 5, 6)) -> np.ndarray:
    values = np.random.default_rng(0).integers(-90, 900, shape)
    return values.astype(dtype) if np.dtype(dtype).kind != "u" else (values + 90).astype(dtype)


def put(path, array, affine=None):
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, array, photometric="minisblack")
    else:
        nibabel.Nifti1Image(array.T, np.diag([2, 3, 4, 1]) if affine is None else affine).to_filename(path)
    return path


def got(path):
    if path.suffix == ".npy":
        return np.load(path)
    return tifffile.imread(path) if path.suffix == ".tif" else np.asarray(nibabel.load(path).dataobj).T


@pytest.mark.parametrize("name", ["a.npy", "a.tif", "a.nii", "a.nii.gz"])
@pytest.mark.parametrize("dtype", ["int16", "uint16", "float32", "uint8"])
def test_a_volume_comes_back_in_its_format_range_and_type(name, dtype, tmp_path):
    array = ramp(dtype)
    values, form = read_volume(put(tmp_path / name, array))
    low, high = float(array.min()), float(array.max())
    assert values.shape == (4, 5, 6, 1) and (float(values.min()), float(values.max())) == (0, 1)
    expected = torch.from_numpy((array.astype(np.float64) - low) / (high - low))[..., None]
    torch.testing.assert_close(values.double(), expected, rtol=0, atol=1e-7)
    write_volume(tmp_path / f"out.{form.extension}", values, form)
    back = got(tmp_path / f"out.{form.extension}")
    assert back.dtype == array.dtype
    np.testing.assert_allclose(back, array, rtol=0, atol=1e-4)


def test_what_is_beyond_the_range_is_written_at_its_ends(tmp_path):
    _, form = read_volume(put(tmp_path / "a.npy", ramp("uint8")))
    write_volume(tmp_path / "b.npy", torch.tensor([-3.0, 7.0]).view(1, 1, 2, 1), form)
    assert np.load(tmp_path / "b.npy").flatten().tolist() == [int(ramp("uint8").min()), int(ramp("uint8").max())]


def test_a_volume_of_one_value_comes_back(tmp_path):
    values, form = read_volume(put(tmp_path / "a.npy", np.full((2, 3, 4), 7, np.int32)))
    write_volume(tmp_path / "b.npy", values + 0.2, form)
    assert (np.load(tmp_path / "b.npy") == 7).all()


def test_colours_and_truth_values_are_volumes_too(tmp_path):
    values, form = read_volume(put(tmp_path / "a.npy", ramp("uint8", (3, 4, 5, 3))))
    assert values.shape == (3, 4, 5, 3)
    write_volume(tmp_path / "b.tif", values, form)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.tif"), ramp("uint8", (3, 4, 5, 3)))
    mask = ramp("int16") > 300
    values, form = read_volume(put(tmp_path / "m.npy", mask))
    write_volume(tmp_path / "n.npy", values * 0.8 + 0.1, form)
    np.testing.assert_array_equal(np.load(tmp_path / "n.npy"), mask)


def test_a_reduced_volume_keeps_its_mean_and_its_place_in_the_world(tmp_path):
    array = np.linspace(0, 1, 8)[:, None, None] * np.ones((8, 6, 4))
    affine = np.array([[2.0, 0, 0, 10], [0, 3, 0, -5], [0, 0, 4, 7], [0, 0, 0, 1]])
    values, form = read_volume(put(tmp_path / "a.nii", array, affine), longer_side=4)
    assert values.shape == (4, 3, 2, 1)
    assert float(values.mean()) == pytest.approx(0.5, abs=1e-6)
    found = np.reshape(form.affine, (4, 4))
    # The outer faces of the grid, half a voxel beyond the first and last centres, stay where they were.
    for mine, old, sizes in ((found, affine, (2, 3, 4)),):
        np.testing.assert_allclose(mine @ [-0.5, -0.5, -0.5, 1], old @ [-0.5, -0.5, -0.5, 1], atol=1e-9)
        end = [size - 0.5 for size in sizes]
        np.testing.assert_allclose(mine @ [*end, 1], old @ [3.5, 5.5, 7.5, 1], atol=1e-9)


def test_a_resampled_volume_keeps_its_corners_in_the_world(tmp_path):
    _, form = read_volume(put(tmp_path / "a.nii", ramp("int16"), np.diag([2.0, 3, 4, 1])))
    found = np.reshape(form.resized((4, 5, 6), (7, 9, 11)).affine, (4, 4))
    np.testing.assert_allclose(found @ [10, 8, 6, 1], np.diag([2.0, 3, 4, 1]) @ [5, 4, 3, 1])


def test_pictures_are_slices(tmp_path):
    for index in range(3):
        PIL.Image.fromarray(np.full((4, 5), 1000 * index, np.uint16)).save(tmp_path / f"{index}.png")
    files = [tmp_path / f"{index}.png" for index in range(3)]
    values, form = read_slices(files)
    assert values[:, 0, 0, 0].tolist() == [0, 0.5, 1] and (form.extension, form.dtype) == ("tif", "<u2")
    write_volume(tmp_path / "a.tif", values, form)
    assert tifffile.imread(tmp_path / "a.tif")[:, 0, 0].tolist() == [0, 1000, 2000]


def test_a_tiff_is_a_volume_where_its_pages_are_alike(tmp_path):
    tifffile.imwrite(tmp_path / "one.tif", np.zeros((4, 5), np.uint8))
    tifffile.imwrite(tmp_path / "rgb.tif", np.zeros((4, 5, 3), np.uint8), photometric="rgb")
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as file:
        for side in (8, 4):
            file.write(np.zeros((side, side), np.uint8))
    put(tmp_path / "stack.tif", ramp("uint8"))
    names = ("one.tif", "rgb.tif", "pyramid.tif", "stack.tif", "missing.tif")
    assert [is_volume(tmp_path / name) for name in names] == [False, False, False, True, False]
    assert read_image(tmp_path / "one.tif").pixels.shape == (4, 5, 1)
    for name in ("one.tif", "rgb.tif"):
        with pytest.raises(InputError, match=r"a TIFF with axes YX.*allowed: 3 axes"):
            read_volume(tmp_path / name)


@pytest.mark.parametrize("name", ["a.npy", "a.tif", "a.nii", "a.nii.gz"])
def test_a_volume_that_was_cut_is_refused_in_one_line(name, tmp_path):
    data = put(tmp_path / name, ramp("int16", (12, 20, 20))).read_bytes()
    last = 300 if name.endswith("tif") else 10  # a TIFF ends with what is not needed to read it
    for end in (0, 5, 60, len(data) // 2, len(data) - last):
        (tmp_path / name).write_bytes(data[:end])
        with pytest.raises(InputError) as error:
            read_volume(tmp_path / name)
        assert str(error.value).startswith(str(tmp_path / name)) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("array", "part"),
    [
        (np.zeros((3, 4)), r"an array of \(3, 4\)"),
        (np.zeros((3, 4, 5, 6)), r"an array of \(3, 4, 5, 6\)"),
        (np.zeros((0, 4, 5)), r"an array of \(0, 4, 5\)"),
        (np.zeros((2, 2, 2), complex), "values of type complex128"),
        (np.full((2, 2, 2), np.nan), "values that are not finite"),
        (np.array([{}]), "Object arrays cannot be loaded"),
    ],
)
def test_what_is_no_volume_is_refused(array, part, tmp_path):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(InputError, match=part):
        read_volume(tmp_path / "a.npy")


def test_a_series_of_volumes_is_refused(tmp_path):
    nibabel.Nifti1Image(np.zeros((3, 4, 5, 2), np.int16), np.eye(4)).to_filename(tmp_path / "a.nii")
    with pytest.raises(InputError, match=r"axes of \(3, 4, 5, 2\); allowed: 3 axes"):
        read_volume(tmp_path / "a.nii")
    nibabel.Nifti1Image(np.zeros((3, 4, 5, 1), np.int16), np.eye(4)).to_filename(tmp_path / "a.nii")
    assert read_volume(tmp_path / "a.nii")[0].shape == (5, 4, 3, 1)
    np.savez(tmp_path / "b.npz", a=np.zeros(3))
    (tmp_path / "b.npz").rename(tmp_path / "b.npy")
    with pytest.raises(InputError, match="an archive of arrays"):
        read_volume(tmp_path / "b.npy")


@pytest.mark.parametrize("writer", ["tifffile", "pillow"])
def test_a_stack_that_is_cut_off_is_no_picture(tmp_path, writer):
    path, slices = tmp_path / "a.tif", np.random.default_rng(0).integers(0, 256, (6, 7, 8), np.uint8)
    if writer == "tifffile":
        tifffile.imwrite(path, slices)
    else:
        first, *others = map(PIL.Image.fromarray, slices)
        first.save(path, save_all=True, append_images=others)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert is_volume(path)
    with pytest.raises(InputError, match="truncated"):
        read_volume(path)
