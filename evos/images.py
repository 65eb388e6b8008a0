"""Image files: read to (H, W, C) floats in [0, 1] at the depth the file has, write, list and reduce.

Pixels are the file's own numbers divided by the largest: colour profiles and gamma are left as they are.
"""

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from zlib import compress, crc32

import numpy as np
import PIL.Image
import tifffile
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from evos.errors import InputError

EXTENSIONS = ("png", "jpg", "jpeg", "tif", "tiff", "webp", "bmp")
MAX_PIXELS = 2**28

_PILLOW_FORMATS = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP", "bmp": "BMP"}
_PILLOW_OPTIONS = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True, "exact": True},  # exact keeps the colour of transparent pixels
}
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by number of channels
_ORIENTATION = 0x0112  # EXIF tag
_WHOLE = f"a whole image ({', '.join(EXTENSIONS)})"

# What a file's Pillow mode is read as; a transparent colour or palette adds the alpha.
_READ_AS = {
    **{"1": "L", "L": "L", "P": "RGB", "RGB": "RGB", "RGBX": "RGB", "CMYK": "RGB", "YCbCr": "RGB"},
    **{"LA": "LA", "PA": "RGBA", "RGBA": "RGBA", "RGBa": "RGBA"},
}


@dataclass(frozen=True)
class Image:
    """An image as it was read."""

    pixels: Float[Tensor, "H W C"]
    """Grey, grey + alpha, RGB or RGB + alpha in [0, 1], float32."""
    bits: int
    """Depth of a sample in the file: 8, 16, or 32 for floats."""
    mode: str
    """What the file holds: Pillow's name at 8 bits ("P", "CMYK", ...), else "L;16", "RGB;F" and the like."""


def read_image(path: str | Path) -> Image:
    """Read an 8- or 16-bit image, or a float TIFF in [0, 1], upright as its EXIF orientation says.

    1-bit files become grey, palettes and CMYK become RGB, transparency becomes an alpha channel. An animation or a file
    of many pages gives its first frame, with a warning.

    Raises InputError, naming the file, where it is missing, unreadable, empty, truncated, no image, of an unsupported
    extension or kind of sample, larger than 2^28 pixels, or (floats) not finite or outside [0, 1].
    """
    path = Path(path)
    data = _read_bytes(path)
    try:
        with _quiet_decoders():
            array, mode, frames = _decode(data, path)
    except InputError:
        raise
    except PIL.UnidentifiedImageError as error:
        raise InputError(str(path), "a file that is no image", _WHOLE) from error
    except Exception as error:  # damage makes decoders raise nearly anything, struct.error and IndexError included
        raise InputError(str(path), f"a truncated, damaged or unsupported file ({error})", _WHOLE) from error
    if frames > 1:
        warnings.warn(f"{path}: {frames} frames or pages, only the first is read", stacklevel=2)
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise InputError(str(path), "values that are not finite", "finite values in [0, 1]")
        if array.min() < 0 or array.max() > 1:
            raise InputError(str(path), f"values from {array.min():g} to {array.max():g}", "values in [0, 1]")
        return Image(torch.from_numpy(array.astype(np.float32)), 32, mode)
    scaled = array.astype(np.float32) / np.float32(np.iinfo(array.dtype).max)
    return Image(torch.from_numpy(scaled), 8 * array.dtype.itemsize, mode)


def write_image(path: str | Path, pixels: Float[Tensor, "H W C"], bits: int = 8) -> None:
    """Write pixels, clamped to [0, 1] and rounded, by way of a temporary file in the same folder.

    PNG and TIFF take 1 to 4 channels at 8 or 16 bits, WebP (lossless; it has no grey and stores it as RGB) 1 to 4 at 8,
    JPEG and BMP grey or RGB at 8. An existing file is replaced in one step or left as it was.

    Raises InputError for another combination, values that are not finite, or a file that can't be written.
    """
    path = Path(path)
    extension = _extension(path)
    if bits != 8 and not (bits == 16 and extension in ("png", "tif", "tiff")):
        raise InputError("bits", bits, "8, or 16 for png and tif")
    channels, most = pixels.shape[-1], 3 if extension in ("jpg", "jpeg", "bmp") else 4
    if not 1 <= channels <= most or (most == 3 and channels == 2):
        raise InputError(str(path), f"{channels} channels", "1 or 3 channels" if most == 3 else "1 to 4 channels")
    if not pixels.isfinite().all():
        raise InputError("pixels", "values that are not finite", "finite values")
    largest = 2**bits - 1
    array = (pixels.detach().cpu().double().clamp(0, 1) * largest).round().numpy().astype(f"u{bits // 8}")
    _replace(path, _encode(array, extension))


def list_images(path: str | Path) -> list[Path]:
    """The image files of a folder (not of its subfolders), `2.png` before `10.png`; or the one file named.

    Raises InputError where the path is missing, the folder holds no images or can't be read, or the file is no image
    by its extension.
    """
    path = Path(path)
    if not path.is_dir():
        if not path.exists():
            raise InputError(str(path), "no such file or folder", "an image or a folder of images")
        _extension(path)
        return [path]
    try:
        files = [file for file in path.iterdir() if file.is_file() and not file.name.startswith(".")]
    except OSError as error:
        raise InputError(str(path), _reason(error), "a folder that can be read") from error
    images = [file for file in files if file.suffix[1:].lower() in EXTENSIONS]
    if not images:
        raise InputError(str(path), "a folder without images", f"a folder with {', '.join(EXTENSIONS)} files")
    return sorted(images, key=_natural)


def reduce_image(pixels: Float[Tensor, "H W C"], size: int) -> Float[Tensor, "h w C"]:
    """Shrink (bicubic, antialiased, clamped to [0, 1]) so that the longer side has `size` pixels; never enlarge.

    Raises InputError for a size below 1.
    """
    if size < 1:
        raise InputError("size", size, "1 or more pixels")
    height, width = pixels.shape[:2]
    longest = max(height, width)
    if longest <= size:
        return pixels
    shape = tuple(max(1, round(side * size / longest)) for side in (height, width))
    image = rearrange(pixels, "H W C -> 1 C H W")
    small = F.interpolate(image, shape, mode="bicubic", align_corners=False, antialias=True)
    return rearrange(small.clamp(0, 1), "1 C h w -> h w C")


def _extension(path: Path) -> str:
    extension = path.suffix[1:].lower()
    if extension not in EXTENSIONS:
        raise InputError(str(path), f"the extension {path.suffix or '(none)'}", ", ".join(EXTENSIONS))
    return extension


def _read_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise InputError(str(path), "a folder", "an image file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(str(path), _reason(error), "an image file that can be read") from error
    _extension(path)
    if not data:
        raise InputError(str(path), "an empty file", _WHOLE)
    return data


def _decode(data: bytes, path: Path) -> tuple[np.ndarray, str, int]:
    """The upright samples (H, W, C), the name of what they are and the number of frames, by content, not extension."""
    if data[:4] in _TIFF_MAGIC:
        with tifffile.TiffFile(BytesIO(data)) as file:
            page = file.pages.first
            if page.dtype is not None and page.dtype.itemsize > 1:
                return *_decode_deep_tiff(page, path), len(file.pages)
    with PIL.Image.open(BytesIO(data), formats=["PNG", "JPEG", "TIFF", "WEBP", "BMP"]) as image:
        _check_size(path, image.width, image.height)
        frames = getattr(image, "n_frames", 1)
        if image.format == "PNG":
            if b"IEND" not in data:
                raise ValueError("its last chunk is missing")
            if data[24] == 16:  # the bit depth, in the header chunk
                array = _decode_deep_png(data, image)
                return _upright(array, image.getexif().get(_ORIENTATION, 1)), f"{_name(array)};16", frames
        if image.mode not in _READ_AS:
            raise InputError(str(path), f"samples of kind {image.mode}", "8- or 16-bit samples, or a float TIFF")
        image.load()
        kind = _READ_AS[image.mode]
        alpha = "A" if image.has_transparency_data and not kind.endswith("A") else ""
        array = _with_channels(np.asarray(image.convert(kind + alpha)))
        return _upright(array, image.getexif().get(_ORIENTATION, 1)), image.mode, frames


def _decode_deep_png(data: bytes, image: PIL.Image.Image) -> np.ndarray:
    """All 16 bits of a PNG's samples, of which Pillow keeps only the high byte unless they are grey.

    Pillow's unpackers are named by byte order, so the little-endian one hands out the low byte instead; and a pixel of
    grey + alpha has the four bytes of an 8-bit RGBA pixel.
    """

    def unpack(rawmode: str) -> np.ndarray:
        with PIL.Image.open(BytesIO(data), formats=["PNG"]) as again:
            again.tile = [again.tile[0]._replace(args=rawmode)]
            return np.asarray(again).astype(np.uint16)

    colour_type = data[25]
    if colour_type == 0:
        array = _with_channels(np.asarray(image))
    elif colour_type == 4:
        parts = unpack("RGBA")
        array = parts[..., 0::2] << 8 | parts[..., 1::2]
    else:
        array = unpack(f"{image.mode};16B") << 8 | unpack(f"{image.mode};16L")
    transparent = image.info.get("transparency")
    if transparent is None:
        return array
    alpha = np.where((array == np.asarray(transparent)).all(-1, keepdims=True), 0, 65535).astype(np.uint16)
    return np.concatenate([array, alpha], axis=-1)


def _decode_deep_tiff(page: tifffile.TiffPage, path: Path) -> tuple[np.ndarray, str]:
    """16-bit and float TIFF, which Pillow reads in part only; LZW and JPEG compression need imagecodecs installed."""
    _check_size(path, page.imagewidth, page.imagelength)
    photometric = tifffile.PHOTOMETRIC(page.photometric)
    if page.dtype is None or not (page.dtype == np.uint16 or page.dtype.kind == "f"):
        raise InputError(str(path), f"{page.dtype} samples", "8- or 16-bit unsigned samples, or floats in [0, 1]")
    if photometric.name not in ("MINISBLACK", "MINISWHITE", "RGB") or page.axes not in ("YX", "YXS", "SYX"):
        raise InputError(str(path), f"a {photometric.name} TIFF with axes {page.axes}", "a grey or RGB image")
    array = page.asarray()
    array = rearrange(array, "S Y X -> Y X S") if page.axes == "SYX" else _with_channels(array)
    if array.shape[:2] != (page.imagelength, page.imagewidth):
        raise ValueError("samples are missing")
    if array.shape[-1] > 4:
        raise InputError(str(path), f"{array.shape[-1]} channels", "1 to 4 channels")
    if photometric.name == "MINISWHITE":
        array = (1 if array.dtype.kind == "f" else 65535) - array
    orientation = page.tags.valueof("Orientation", default=1)
    return _upright(array, orientation), f"{_name(array)};{'F' if array.dtype.kind == 'f' else '16'}"


def _encode(array: np.ndarray, extension: str) -> bytes:
    buffer, channels = BytesIO(), array.shape[-1]
    flat = array[..., 0] if channels == 1 else array
    if extension in ("tif", "tiff"):
        tifffile.imwrite(
            buffer,
            flat,
            photometric="rgb" if channels >= 3 else "minisblack",
            planarconfig=None if channels == 1 else "contig",
            extrasamples=["unassalpha"] if channels in (2, 4) else None,
            compression="zlib",
            metadata=None,
        )
    elif array.dtype == np.uint16:
        buffer.write(_encode_deep_png(array))
    else:
        kind = _PILLOW_FORMATS[extension]
        PIL.Image.fromarray(flat).save(buffer, kind, **_PILLOW_OPTIONS.get(kind, {}))
    return buffer.getvalue()


def _encode_deep_png(array: np.ndarray) -> bytes:
    """A 16-bit PNG, which Pillow can't write in colour; each row is stored as its difference from the one above."""
    height, width, channels = array.shape
    rows = array.astype(">u2").reshape(height, -1).view(np.uint8)
    difference = np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1]))
    filtered = np.pad(difference, ((0, 0), (1, 0)), constant_values=2)  # 2 is the filter "up"
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    header = size + bytes([16, _PNG_COLOUR_TYPES[channels], 0, 0, 0])
    chunks = ((b"IHDR", header), (b"IDAT", compress(filtered.tobytes())), (b"IEND", b""))
    return _PNG_MAGIC + b"".join(
        len(body).to_bytes(4, "big") + name + body + crc32(name + body).to_bytes(4, "big") for name, body in chunks
    )


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(str(path), _reason(error), "a file that can be written") from error


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation: 1 is upright, 2 to 4 are flipped, 5 to 8 transposed as well."""
    turned = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: a.swapaxes(0, 1)[:, ::-1],
        7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
        8: lambda a: a.swapaxes(0, 1)[::-1],
    }
    return np.ascontiguousarray(turned[orientation](array) if orientation in turned else array)


def _with_channels(array: np.ndarray) -> np.ndarray:
    return array[..., None] if array.ndim == 2 else array


def _name(array: np.ndarray) -> str:
    return ("L", "LA", "RGB", "RGBA")[array.shape[-1] - 1]


def _natural(path: Path) -> tuple[list[str | int], str]:
    parts = re.split(r"(\d+)", path.name.lower())  # text and digits take turns, so like is compared with like
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], path.name


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise InputError(str(path), f"{width} x {height} pixels", f"at most {MAX_PIXELS} pixels")


@contextmanager
def _quiet_decoders() -> Iterator[None]:
    """What decoders log or warn of in a damaged file ends in one InputError; of large images `_check_size` knows."""
    most, log = PIL.Image.MAX_IMAGE_PIXELS, logging.getLogger("tifffile")
    PIL.Image.MAX_IMAGE_PIXELS, log.disabled = None, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        PIL.Image.MAX_IMAGE_PIXELS, log.disabled = most, False
