"""Image files: read to (H, W, C) floats in [0, 1] at the depth the file has, write, list and reduce.

imageio reads and writes them, with Pillow, tifffile (TIFF) and OpenCV (16-bit PNG) behind it. Pixels are the file's own
numbers divided by the largest: colour profiles and gamma are left as they are.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import imageio.v3 as iio
import numpy as np
import PIL.Image
import PIL.ImageMode
import tifffile
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from evos.errors import InputError
from evos.folders import natural_order
from evos.runs.files import replace_file

EXTENSIONS = ("png", "jpg", "jpeg", "tif", "tiff", "webp", "bmp")
MAX_PIXELS = 2**28

_WRITE_OPTIONS: dict[str, dict[str, Any]] = {
    "jpg": {"quality": 95, "subsampling": 0},
    "jpeg": {"quality": 95, "subsampling": 0},
    "webp": {"lossless": True, "exact": True},  # exact keeps the colour of transparent pixels
}
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PLAIN_COMPRESSION = (1, 8, 32946)  # none and deflate: what tifffile decodes without imagecodecs
_WHOLE = f"a whole image ({', '.join(EXTENSIONS)})"

READ_AS = {
    **{"1": "L", "L": "L", "P": "RGB", "RGB": "RGB", "CMYK": "RGB", "YCbCr": "RGB"},
    **{"LA": "LA", "PA": "RGBA", "RGBA": "RGBA", "RGBa": "RGBA"},
}
"""What a file's Pillow mode is read as; a transparent colour or palette adds the alpha."""


@dataclass(frozen=True)
class Image:
    """An image as it was read."""

    pixels: Float[Tensor, "H W C"]
    """Grey, grey + alpha, RGB or RGB + alpha in [0, 1], float32."""
    bits: int
    """Depth of a sample in the file: 8, 16, or 32 for floats."""
    mode: str
    """What the file holds: Pillow's name at 8 bits ("P", "CMYK", ...), else "L;16", "RGB;F" and the like."""


class Samples(NamedTuple):
    """The numbers in an image's file, (H, W, C), and what they are, as Image has it."""

    array: np.ndarray
    mode: str


def read_image(path: str | Path) -> Image:
    """Read an 8- or 16-bit image, or a float TIFF in [0, 1], upright as its EXIF orientation says.

    1-bit files become grey, palettes and CMYK become RGB, transparency becomes an alpha channel. A TIFF's fourth band
    is kept, at any depth. An animation or a file of many pages gives its first frame, with a warning.

    Raises InputError, naming the file, where it is missing, unreadable, empty, truncated, not an image, of an
    unsupported extension or kind of sample, of more than 4 bands, larger than 2^28 pixels, or (floats) not finite or
    outside [0, 1]; and for a 16-bit PNG without OpenCV.
    """
    samples = read_samples(path)
    array, mode = samples.array, samples.mode
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise InputError(str(path), "values that are not finite", "finite values in [0, 1]")
        if array.min() < 0 or array.max() > 1:
            raise InputError(str(path), f"values from {array.min():g} to {array.max():g}", "values in [0, 1]")
        return Image(torch.from_numpy(array.astype(np.float32)), 32, mode)
    scaled = array.astype(np.float32) / np.float32(np.iinfo(array.dtype).max)
    return Image(torch.from_numpy(scaled), 8 * array.dtype.itemsize, mode)


def read_samples(path: str | Path) -> Samples:
    """The numbers in an image's file, as ``read_image`` takes them, and with its errors."""
    path = Path(path)
    data = _read_bytes(path)
    try:
        with quiet_decoders():
            array, mode, frames = _decode(data, path)
    except InputError:
        raise
    except ImportError as error:
        allowed = "8 bits, or the package OpenCV: pip install opencv-python-headless"
        raise InputError(str(path), "a 16-bit PNG", allowed) from error
    except Exception as error:  # damage makes decoders raise nearly anything, struct.error and IndexError included
        raise InputError(str(path), f"a truncated, damaged or unsupported file ({error})", _WHOLE) from error
    if frames > 1:
        warnings.warn(f"{path}: {frames} frames or pages, only the first is read", stacklevel=2)
    return Samples(array, mode)


def write_image(path: str | Path, pixels: Float[Tensor, "H W C"], bits: int = 8) -> None:
    """Write pixels, clamped to [0, 1] and rounded, by way of a temporary file in the same folder.

    PNG and TIFF take 1 to 4 channels at 8 or 16 bits, WebP (lossless) 1 to 4 at 8, JPEG and BMP grey or RGB at 8. WebP
    stores grey as RGB, a 16-bit PNG grey + alpha as RGB + alpha. An existing file is replaced in one step or left as it
    was.

    Raises InputError for another combination, values that are not finite, a 16-bit PNG without OpenCV, or a file that
    can't be written.
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
    array = np.empty(pixels.shape, f"u{bits // 8}")
    for part, row in zip(array, pixels.detach(), strict=True):  # a row at a time: doubles take eight times the memory
        part[:] = (row.cpu().double().clamp(0, 1) * largest).round().numpy()
    try:
        data = _encode(array, extension)
    except ImportError as error:
        allowed = "8, or the package OpenCV for 16-bit PNG: pip install opencv-python-headless"
        raise InputError("bits", bits, allowed) from error
    replace_file(path, data)


def list_images(path: str | Path) -> list[Path]:
    """The image files of a folder (not of its subfolders), `2.png` before `10.png`; or the one file named.

    Raises InputError where the path is missing, the folder holds no images or can't be read, or the file's extension is
    not that of an image.
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
    return sorted(images, key=lambda file: natural_order(Path(file.name)))


def reduce_image(pixels: Float[Tensor, "H W C"], longer_side: int) -> Float[Tensor, "h w C"]:
    """Shrink (bicubic, antialiased, clamped to [0, 1]) so that the longer side has `longer_side` pixels; never enlarge.

    Raises InputError for a longer side below 1.
    """
    if longer_side < 1:
        raise InputError("longer_side", longer_side, "1 or more pixels")
    height, width = pixels.shape[:2]
    longest = max(height, width)
    if longest <= longer_side:
        return pixels
    shape = tuple(max(1, round(side * longer_side / longest)) for side in (height, width))
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
        return _decode_tiff(data, path)
    is_webp = (data[:4], data[8:12]) == (b"RIFF", b"WEBP")
    if not (is_webp or data.startswith((_PNG_MAGIC, b"\xff\xd8", b"BM"))):
        raise InputError(str(path), "a file that is not an image", _WHOLE)
    if data.startswith(_PNG_MAGIC) and b"IEND" not in data:
        raise ValueError("its last chunk is missing")
    return _decode_by_pillow(data, path)


def _decode_by_pillow(data: bytes, path: Path, bands: int = 1) -> tuple[np.ndarray, str, int]:
    """As ``_decode``; ``bands`` that Pillow would drop are refused."""
    file: Any  # of which the plugin has more than the protocol
    with iio.imopen(BytesIO(data), "r", plugin="pillow") as file:
        height, width = file.properties(index=0).shape[:2]
        _check_size(path, width, height)  # before the metadata of a PNG, for which Pillow decodes it
        about, frames = file.metadata(index=0, exclude_applied=False), file.properties(index=...).n_images or 1
        mode, orientation = about["mode"], about.get("Orientation", 1)
        if data.startswith(_PNG_MAGIC) and data[24] == 16:  # the bit depth, in the header chunk
            array = _upright(_decode_deep_png(data, about.get("transparency")), orientation)
            return array, f"{_name(array)};16", frames
        if mode not in READ_AS:
            raise InputError(str(path), f"samples of kind {mode}", "8- or 16-bit samples, or a float TIFF")
        if bands > (known := len(PIL.ImageMode.getmode(mode).bands)):
            raise InputError(str(path), f"{bands} bands, of which {known} can be read", "1 to 4 bands, not compressed")
        kind = READ_AS[mode]
        alpha = "A" if "transparency" in about and not kind.endswith("A") else ""
        return _upright(_with_channels(file.read(index=0, mode=kind + alpha)), orientation), mode, frames


def _decode_deep_png(data: bytes, transparent: int | tuple[int, ...] | None) -> np.ndarray:
    """All 16 bits of a PNG's samples, by OpenCV: Pillow keeps the high byte of colours only."""
    import cv2

    with PIL.Image.open(BytesIO(data)) as image:
        image.verify()  # the chunks' checksums, of which OpenCV complains on stderr
    array = iio.imread(data, plugin="opencv", extension=".png", flags=cv2.IMREAD_UNCHANGED)
    array = _with_channels(array)
    if data[25] == 4:  # the colour type grey + alpha, of which OpenCV makes RGB + alpha
        return array[..., [0, 3]]
    if data[25] == 0 and transparent is not None:
        alpha = np.where(array == transparent, 0, 65535).astype(np.uint16)
        return np.concatenate([array, alpha], axis=-1)
    return array


def _decode_tiff(data: bytes, path: Path) -> tuple[np.ndarray, str, int]:
    """A TIFF by tifffile; palettes, print colours, and compression other than deflate, all at 8 bits, by Pillow."""
    with tifffile.TiffFile(BytesIO(data)) as file:
        page, frames = file.pages.first, len(file.pages)
        _check_size(path, page.imagewidth, page.imagelength)
        if page.samplesperpixel > 4:
            raise InputError(str(path), f"{page.samplesperpixel} bands", "1 to 4 bands")
        photometric = tifffile.PHOTOMETRIC(page.photometric).name
        is_plain = photometric in ("MINISBLACK", "MINISWHITE", "RGB") and page.axes in ("YX", "YXS", "SYX")
        is_premultiplied = tifffile.EXTRASAMPLE.ASSOCALPHA in page.extrasamples
        if page.bitspersample <= 8 and not (
            is_plain
            and page.dtype == np.uint8
            and page.bitspersample == 8
            and page.compression in _PLAIN_COMPRESSION
            and not is_premultiplied
        ):
            return _decode_by_pillow(data, path, page.samplesperpixel)
        if page.dtype is None or not (page.dtype in (np.uint8, np.uint16) or page.dtype.kind == "f"):
            raise InputError(str(path), f"{page.dtype} samples", "8- or 16-bit unsigned samples, or floats in [0, 1]")
        if not is_plain:
            raise InputError(str(path), f"a {photometric} TIFF with axes {page.axes}", "a grey or RGB image")
        return *_decode_page(page, photometric), frames


def _decode_page(page: tifffile.TiffPage, photometric: str) -> tuple[np.ndarray, str]:
    array = page.asarray()
    array = rearrange(array, "S Y X -> Y X S") if page.axes == "SYX" else _with_channels(array)
    if array.shape[:2] != (page.imagelength, page.imagewidth):
        raise ValueError("samples are missing")
    is_float = array.dtype.kind == "f"
    if photometric == "MINISWHITE":
        array = (1 if is_float else np.iinfo(array.dtype).max) - array
    suffix = ";F" if is_float else ";16" if array.dtype == np.uint16 else ""
    return _upright(array, page.tags.valueof("Orientation", default=1)), _name(array) + suffix


def _encode(array: np.ndarray, extension: str) -> bytes:
    channels = array.shape[-1]
    options = _WRITE_OPTIONS.get(extension, {})
    if extension in ("tif", "tiff"):
        plugin = "tifffile"
        options = {
            "photometric": "rgb" if channels >= 3 else "minisblack",
            "planarconfig": None if channels == 1 else "contig",
            "extrasamples": ["unassalpha"] if channels in (2, 4) else None,
            "compression": "zlib",
            "metadata": None,
        }
    elif array.dtype == np.uint16:
        plugin = "opencv"
        array = array[..., [0, 0, 0, 1]] if channels == 2 else array
    else:
        plugin = "pillow"
    flat = array[..., 0] if channels == 1 else array
    return iio.imwrite("<bytes>", flat, plugin=plugin, extension=f".{extension}", is_batch=False, **options)


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


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise InputError(str(path), f"{width} x {height} pixels", f"at most {MAX_PIXELS} pixels")


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Silence decoders: damage is reported as one InputError, and large images are `_check_size`'s concern."""
    most, log = PIL.Image.MAX_IMAGE_PIXELS, logging.getLogger("tifffile")
    PIL.Image.MAX_IMAGE_PIXELS, log.disabled = None, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        PIL.Image.MAX_IMAGE_PIXELS, log.disabled = most, False
