"""Image files of every kind that is read, written by other libraries or by hand, and of every kind that is refused."""

import os
import struct
import sys
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
import tifffile
import torch

from evos import images
from evos.errors import InputError
from evos.images import list_images, read_image, reduce_image, write_image

rng = np.random.default_rng(0)
BYTES = {c: rng.integers(0, 256, (6, 9, c), dtype=np.uint8) for c in (1, 2, 3, 4)}
WORDS = {c: rng.integers(0, 65536, (6, 9, c), dtype=np.uint16) for c in (1, 2, 3, 4)}


def samples(path: Path) -> np.ndarray:
    """The integers a file was read as."""
    image = read_image(path)
    return (image.pixels.double() * (2**image.bits - 1)).round().numpy().astype(f"u{image.bits // 8}")


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(array: np.ndarray, extra: bytes = b"", size: tuple[int, int] | None = None) -> bytes:
    """A PNG by hand, without filters."""
    height, width, channels = array.shape
    size = size or (width, height)
    header = struct.pack(">IIBBBBB", *size, 8 * array.itemsize, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(f">u{array.itemsize}").tobytes() for row in array)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


# -- what is read


@pytest.mark.parametrize(
    ("extension", "channels"),
    [(e, c) for e in ("png", "tif", "PNG") for c in (1, 2, 3, 4)] + [("webp", 3), ("webp", 4), ("bmp", 1), ("bmp", 3)],
)
def test_eight_bit_files_of_pillow_are_read_exactly(tmp_path: Path, extension: str, channels: int) -> None:
    path = tmp_path / f"image.{extension}"
    PIL.Image.fromarray(BYTES[channels].squeeze(-1) if channels == 1 else BYTES[channels]).save(
        path, lossless=True, exact=True
    )
    image = read_image(path)
    assert (image.bits, image.mode) == (8, ("L", "LA", "RGB", "RGBA")[channels - 1])
    torch.testing.assert_close(image.pixels, torch.from_numpy(BYTES[channels] / 255).float())


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bit_png_by_hand_keeps_all_its_bits(tmp_path: Path, channels: int) -> None:
    path = tmp_path / "deep.png"
    path.write_bytes(png(WORDS[channels]))
    image = read_image(path)
    assert (image.bits, image.mode) == (16, ("L", "LA", "RGB", "RGBA")[channels - 1] + ";16")
    np.testing.assert_array_equal(samples(path), WORDS[channels])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bit_png_of_opencv_with_filtered_rows_keeps_all_its_bits(tmp_path: Path, channels: int) -> None:
    ramp = np.linspace(0, 65535, 40 * 50 * channels).astype(np.uint16).reshape(40, 50, channels)
    path = tmp_path / "deep.png"
    cv2.imwrite(str(path), ramp[..., [2, 1, 0, 3][:channels]] if channels > 1 else ramp)
    np.testing.assert_array_equal(samples(path), ramp)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_transparent_colour_of_a_sixteen_bit_png_becomes_alpha(tmp_path: Path, channels: int) -> None:
    path, words = tmp_path / "key.png", WORDS[channels]
    path.write_bytes(png(words, chunk(b"tRNS", struct.pack(f">{channels}H", *words[2, 3].tolist()))))
    read = samples(path)
    np.testing.assert_array_equal(read[..., :-1], words)
    expected = np.full((6, 9), 65535)
    expected[2, 3] = 0
    np.testing.assert_array_equal(read[..., -1], expected)


def test_a_transparent_colour_becomes_alpha(tmp_path: Path) -> None:
    path = tmp_path / "key.png"
    PIL.Image.fromarray(BYTES[3]).save(path, transparency=tuple(BYTES[3][0, 0].tolist()))
    read = samples(path)
    np.testing.assert_array_equal(read[..., :3], BYTES[3])
    assert read[0, 0, 3] == 0 and read[..., 3].sum() == 255 * 53


@pytest.mark.parametrize("transparent", [False, True])
def test_a_palette_becomes_colours(tmp_path: Path, transparent: bool) -> None:
    path = tmp_path / "palette.png"
    image = PIL.Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([2, 0, 1])
    image.save(path, transparency=bytes([255, 255, 7]) if transparent else None)
    colours = np.array([[[0, 0, 255, 7], [255, 0, 0, 255], [0, 255, 0, 255]]])
    np.testing.assert_array_equal(samples(path), colours[..., : 4 if transparent else 3])
    assert read_image(path).mode == "P"


@pytest.mark.parametrize("extension", ["png", "tif", "bmp"])
def test_one_bit_becomes_black_and_white(tmp_path: Path, extension: str) -> None:
    path, bits = tmp_path / f"bits.{extension}", BYTES[1][..., 0] > 127
    PIL.Image.fromarray(bits).save(path)
    np.testing.assert_array_equal(samples(path)[..., 0], bits * 255)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_sixteen_bit_tiff_keeps_all_its_bits(tmp_path: Path, compression: str | None, planar: str) -> None:
    path, words = tmp_path / "deep.tiff", WORDS[3]
    stored = words if planar == "contig" else words.transpose(2, 0, 1)
    tifffile.imwrite(path, stored, photometric="rgb", planarconfig=planar, compression=compression, byteorder=">")
    np.testing.assert_array_equal(samples(path), words)
    assert read_image(path).mode == "RGB;16"


def test_sixteen_bit_tiff_where_zero_is_white_is_inverted(tmp_path: Path) -> None:
    path = tmp_path / "white.tif"
    tifffile.imwrite(path, WORDS[1][..., 0], photometric="miniswhite")
    np.testing.assert_array_equal(samples(path), 65535 - WORDS[1])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("photometric", "compression"), [("rgb", None), ("rgb", "zlib"), ("minisblack", None)])
def test_a_fourth_band_of_unknown_meaning_is_kept_at_either_depth(
    tmp_path: Path, dtype: type, photometric: str, compression: str | None
) -> None:
    path, bands = tmp_path / "bands.tif", (BYTES if dtype == np.uint8 else WORDS)[4]
    tifffile.imwrite(
        path,
        bands,
        photometric=photometric,
        planarconfig="contig",
        compression=compression,
        extrasamples=["unspecified"] * (1 if photometric == "rgb" else 3),
    )
    np.testing.assert_array_equal(samples(path), bands)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("count", [5, 6])
def test_more_bands_than_four_are_refused_by_their_number(tmp_path: Path, dtype: type, count: int) -> None:
    path = tmp_path / "bands.tif"
    bands = np.zeros((6, 9, count), dtype)
    tifffile.imwrite(path, bands, photometric="rgb", planarconfig="contig", extrasamples=["unspecified"] * (count - 3))
    refused(path, f"{count} bands; allowed: 1 to 4 bands")


def test_a_fourth_band_that_pillow_would_drop_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "packed.tif"
    rgbx = PIL.Image.frombuffer("RGBX", (9, 6), BYTES[4].tobytes(), "raw", "RGBX", 0, 1)
    rgbx.save(path, compression="tiff_lzw")
    refused(path, "4 bands, of which 3 can be read")


@pytest.mark.parametrize("action", ["read", "write"])
def test_a_sixteen_bit_png_without_opencv_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    path = tmp_path / "deep.png"
    path.write_bytes(png(WORDS[3]))
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.delitem(sys.modules, "imageio.plugins.opencv", raising=False)
    with pytest.raises(InputError, match="pip install opencv-python-headless"):
        read_image(path) if action == "read" else write_image(path, torch.zeros(4, 4, 3), bits=16)
    np.testing.assert_array_equal(cv2.imread(str(path), -1)[..., ::-1], WORDS[3])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_float_tiff_is_read_as_it_is(tmp_path: Path, dtype: type, channels: int) -> None:
    path, values = tmp_path / "float.tif", (WORDS[channels] / 65535).astype(dtype)
    tifffile.imwrite(path, values.squeeze(), photometric="rgb" if channels == 3 else "minisblack")
    image = read_image(path)
    assert (image.bits, image.mode) == (32, "RGB;F" if channels == 3 else "L;F")
    np.testing.assert_array_equal(image.pixels.numpy(), values.astype(np.float32))


@pytest.mark.parametrize("extension", ["jpg", "png", "deep png", "tif", "deep tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(tmp_path: Path, extension: str, orientation: int) -> None:
    path = tmp_path / f"turned.{extension.split()[-1]}"
    stored = np.zeros((16, 24), np.uint8)
    stored[:8, :8], stored[:8, 8:16] = 255, 128
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    if extension == "deep tif":
        tifffile.imwrite(
            path, stored.astype(np.uint16) * 257, extratags=[(274, 3, 1, orientation, True)], metadata=None
        )
    elif extension == "deep png":
        path.write_bytes(png(stored.astype(np.uint16)[..., None] * 257, chunk(b"eXIf", exif.tobytes()[6:])))
    else:
        PIL.Image.fromarray(stored).save(path, exif=exif)
    # TIFF 6.0: the orientation says which side row 0 and column 0 of the file are on.
    turns = {
        1: (0, False),
        2: (0, True),
        3: (2, False),
        4: (2, True),
        5: (3, True),
        6: (3, False),
        7: (1, True),
        8: (1, False),
    }
    quarter_turns, mirrored = turns[orientation]
    expected = np.rot90(stored[:, ::-1] if mirrored and orientation < 5 else stored, quarter_turns)
    expected = expected[:, ::-1] if mirrored and orientation >= 5 else expected
    np.testing.assert_allclose(read_image(path).pixels[..., 0].numpy(), expected / 255, atol=0.02)


def test_a_cmyk_jpeg_becomes_rgb(tmp_path: Path) -> None:
    path = tmp_path / "print.jpg"
    PIL.Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(path, quality=100)
    image = read_image(path)
    assert image.mode == "CMYK"
    torch.testing.assert_close(image.pixels, torch.tensor([1.0, 0.0, 0.0]).expand(16, 16, 3), rtol=0, atol=0.02)


@pytest.mark.parametrize("extension", ["webp", "tif", "png", "deep tif"])
def test_the_first_frame_is_read_with_one_warning(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"frames.{extension.split()[-1]}"
    first, second = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    if extension == "deep tif":
        with tifffile.TiffWriter(path) as writer:
            for frame in (first, second):
                writer.write(frame.astype(np.uint16), photometric="rgb", metadata=None)
    else:
        frames = [PIL.Image.fromarray(frame) for frame in (first, second)]
        frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match="2 frames or pages, only the first") as warned:
        assert read_image(path).pixels.max() == 0
    assert len(warned) == 1


def test_a_large_image_is_read_without_a_bomb_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.png"
    PIL.Image.fromarray(BYTES[3]).save(path)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(samples(path), BYTES[3])
    assert PIL.Image.MAX_IMAGE_PIXELS == 10


# -- what is written


@pytest.mark.parametrize(
    ("extension", "channels", "bits"),
    [(e, c, bits) for e in ("png", "tif", "TIFF") for c in (1, 2, 3, 4) for bits in (8, 16)]
    + [("webp", c, 8) for c in (1, 2, 3, 4)]
    + [("bmp", 1, 8), ("bmp", 3, 8)],
)
def test_lossless_files_round_trip_exactly(tmp_path: Path, extension: str, channels: int, bits: int) -> None:
    path = tmp_path / f"image.{extension}"
    array = (BYTES if bits == 8 else WORDS)[channels]
    pixels = torch.from_numpy(array.astype(np.float32) / (2**bits - 1))
    write_image(path, pixels, bits)
    first = samples(path)
    write_image(path, read_image(path).pixels, bits)
    np.testing.assert_array_equal(samples(path), first)
    if (extension == "webp" and channels < 3) or (extension, channels, bits) == ("png", 2, 16):  # kept as colours
        array = array[..., [0, 0, 0, 1][: channels + 2]]
    np.testing.assert_array_equal(first, array)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_opencv_reads_the_sixteen_bit_png_written_here(tmp_path: Path, channels: int) -> None:
    path = tmp_path / "deep.png"
    write_image(path, torch.from_numpy(WORDS[channels].astype(np.float32) / 65535), bits=16)
    read = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).reshape(6, 9, channels)
    np.testing.assert_array_equal(read[..., [2, 1, 0, 3][:channels]] if channels > 1 else read, WORDS[channels])


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_written_closely(tmp_path: Path, channels: int) -> None:
    ramp = torch.linspace(0, 1, 32)[:, None, None].expand(32, 40, channels)
    write_image(tmp_path / "ramp.jpg", ramp)
    torch.testing.assert_close(read_image(tmp_path / "ramp.jpg").pixels, ramp, rtol=0, atol=0.02)


def test_written_pixels_are_clamped_and_rounded(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    write_image(path, torch.tensor([[[-1.0], [0.4 / 255], [0.6 / 255], [2.0]]]))
    assert samples(path).flatten().tolist() == [0, 0, 1, 255]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image.png"
    write_image(path, torch.zeros(4, 4, 1))
    before = path.read_bytes()

    def disk_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(InputError, match=r"image\.png: got No space left on device"):
        write_image(path, torch.ones(4, 4, 1))
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "channels", "bits", "says"),
    [
        ("a.jpg", 3, 16, "bits"),
        ("a.webp", 3, 16, "bits"),
        ("a.png", 3, 12, "bits"),
        ("a.jpg", 4, 8, "4 channels"),
        ("a.bmp", 2, 8, "2 channels"),
        ("a.png", 5, 8, "5 channels"),
        ("a.gif", 3, 8, r"extension \.gif"),
        ("a", 3, 8, "extension"),
        ("missing/a.png", 3, 8, "No such file"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(tmp_path: Path, name: str, channels: int, bits: int, says: str) -> None:
    with pytest.raises(InputError, match=says):
        write_image(tmp_path / name, torch.zeros(4, 4, channels), bits)
    assert list(tmp_path.iterdir()) == []


def test_values_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="finite"):
        write_image(tmp_path / "a.png", torch.full((2, 2, 1), torch.nan))


# -- what is refused


def refused(path: Path, says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        read_image(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_a_folder_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "missing.png", "no such file")
    (tmp_path / "folder.png").mkdir()
    refused(tmp_path / "folder.png", "a folder")
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "empty.png", "an empty file")


def test_a_file_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")  # tests may run as root, who may read anything

    monkeypatch.setattr(Path, "read_bytes", denied)
    refused(tmp_path / "secret.png", "permission denied")


def test_text_and_other_extensions_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image\n" * 100)
    refused(tmp_path / "text.png", "not an image")
    PIL.Image.new("L", (4, 4)).save(tmp_path / "image.gif")
    refused(tmp_path / "image.gif", r"extension \.gif; allowed: png, jpg")
    PIL.Image.new("L", (4, 4)).save(tmp_path / "gif.png", format="GIF")
    refused(tmp_path / "gif.png", "not an image")


@pytest.mark.parametrize(
    "kind", ["png", "jpg", "webp", "tif", "bmp", "deep.png", "deep.tif", "packed.tif", "float.tif"]
)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 0.99])
def test_truncated_files_are_refused(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / f"image.{kind}"
    noise = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    if kind == "deep.png":
        write_image(path, torch.from_numpy(noise / 255).float(), bits=16)
    elif kind in ("deep.tif", "packed.tif", "float.tif"):
        values = (noise / 255).astype(np.float32) if kind == "float.tif" else noise.astype(np.uint16) * 257
        compression = "zlib" if kind == "packed.tif" else None
        tifffile.imwrite(path, values, photometric="rgb", compression=compression)
    else:
        PIL.Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    read_image(path)
    path.write_bytes(whole[: int(len(whole) * share)])
    refused(path, "truncated|not an image")


def test_a_png_without_its_last_chunk_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(png(BYTES[3])[:-12])
    refused(path, "last chunk")


def test_damaged_bytes_end_in_an_image_or_in_one_line(tmp_path: Path) -> None:
    damage = np.random.default_rng(1)
    for extension in ("png", "jpg", "webp", "tif", "bmp", "deep.tif", "deep.png"):
        path = tmp_path / f"image.{extension}"
        bits = 16 if "deep" in extension else 8
        write_image(path, torch.from_numpy(BYTES[3].astype(np.float32) / 255), bits)
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(60):
            broken = whole.copy()
            broken[damage.integers(0, len(whole), 3)] = damage.integers(0, 256, 3)
            path.write_bytes(broken.tobytes())
            try:
                pixels = read_image(path).pixels
            except InputError as error:
                assert "\n" not in str(error)
            else:
                assert pixels.min() >= 0 and pixels.max() <= 1


@pytest.mark.parametrize(
    ("value", "says"), [(np.nan, "not finite"), (np.inf, "not finite"), (1.5, "to 1.5"), (-2, "from -2")]
)
def test_a_float_tiff_outside_zero_to_one_is_refused(tmp_path: Path, value: float, says: str) -> None:
    values = np.full((4, 4), 0.5, np.float32)
    values[1, 2] = value
    tifffile.imwrite(tmp_path / "float.tif", values)
    refused(tmp_path / "float.tif", rf"{says}.*\[0, 1\]")


@pytest.mark.parametrize("dtype", [np.int16, np.uint32, np.complex64])
def test_other_samples_are_refused(tmp_path: Path, dtype: type) -> None:
    tifffile.imwrite(tmp_path / "odd.tif", np.zeros((4, 4), dtype))
    refused(tmp_path / "odd.tif", f"{np.dtype(dtype)} samples")


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png(BYTES[3], size=(20_000, 20_000)))
    refused(tmp_path / "bomb.png", "20000 x 20000 pixels")


def test_a_tiff_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 50)
    tifffile.imwrite(tmp_path / "bomb.tif", WORDS[1][..., 0])
    refused(tmp_path / "bomb.tif", "9 x 6 pixels")


# -- folders and sizes


def test_a_folder_is_listed_in_natural_order(tmp_path: Path) -> None:
    names = ["img1.png", "img2.PNG", "img10.jpg", "img10b.tiff", "view.webp"]
    for name in [*reversed(names), "notes.txt", ".hidden.png"]:
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == names
    assert list_images(tmp_path / "img1.png") == [tmp_path / "img1.png"]


def test_a_path_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for path, says in (
        (tmp_path, "without images"),
        (tmp_path / "no", "no such"),
        (tmp_path / "notes.txt", "extension"),
    ):
        with pytest.raises(InputError, match=says):
            list_images(path)


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((40, 20, 3), 10, (10, 5, 3)),
        ((7, 300, 1), 30, (1, 30, 1)),
        ((20, 10, 2), 20, (20, 10, 2)),
        ((5, 5, 4), 99, (5, 5, 4)),
    ],
)
def test_reducing_fits_the_longest_side_and_never_enlarges(shape: tuple, size: int, expected: tuple) -> None:
    assert reduce_image(torch.rand(shape), size).shape == expected


def test_reducing_averages_a_fine_checkerboard_and_keeps_a_ramp() -> None:
    board = ((torch.arange(64)[:, None] + torch.arange(64)) % 2).float()[..., None]
    torch.testing.assert_close(reduce_image(board, 16)[2:-2, 2:-2], torch.full((12, 12, 1), 0.5), rtol=0, atol=0.01)
    ramp = (torch.arange(64) + 0.5)[:, None, None].expand(64, 64, 1) / 64
    small = (torch.arange(16) + 0.5)[:, None, None].expand(16, 16, 1) / 16
    torch.testing.assert_close(reduce_image(ramp, 16)[2:-2], small[2:-2], rtol=0, atol=1e-5)


def test_reducing_to_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="longer_side: got 0"):
        reduce_image(torch.zeros(4, 4, 1), 0)
