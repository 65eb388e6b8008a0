"""Videos: films of every format that ffmpeg decodes (by PyAV), animated GIF, WebP and PNG, and pictures as frames."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import imageio.v3 as iio
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from evos.errors import InputError
from evos.images import read_image, reduce_image
from evos.runs.files import replace_file
from evos.sounds import first_bytes

FILMS = ("mp4", "m4v", "mov", "avi", "mkv", "webm", "mpg", "mpeg", "wmv", "flv", "ogv")
EXTENSIONS = (*FILMS, "gif")
WRITTEN = ("mp4", "mov", "mkv", "gif")
MOST = 2**26
"""Points of a signal of three axes: more of them would take gigabytes."""
RATE = 25.0
"""Frames a second of pictures in a folder, which say none: ffmpeg's own default."""
STILL = 0.1
"""Seconds that a frame of an animation is shown where its file says 0, as in browsers."""

_WHOLE = f"a whole video ({', '.join(EXTENSIONS)})"
_QUALITY = {"crf": "10"}
"""Of x264 without chroma subsampling: an error of about 0.6 grey levels."""


@dataclass(frozen=True)
class VideoFormat:
    """How a video is written: frames a second, and extension."""

    kind: ClassVar[str] = "video"
    rate: float
    extension: str


def is_video(path: Path) -> bool:
    """Whether a file is a video by its extension or first bytes (MP4 and QuickTime, AVI, Matroska and WebM, GIF)."""
    start = first_bytes(path)
    mp4 = start[4:8] == b"ftyp" and start[8:11] in (b"iso", b"mp4", b"avc", b"M4V", b"qt ")
    by_content = mp4 or start[8:] == b"AVI " or start[:4] in (b"\x1aE\xdf\xa3", b"GIF8")
    return by_content or path.suffix[1:].lower() in EXTENSIONS


def read_video(
    path: Path, longer_side: int | None = None, most_frames: int | None = None
) -> tuple[Float[Tensor, "T H W C"], VideoFormat]:
    """A video in [0, 1], RGB, upright as its display matrix says, and its format, MP4 of a film, GIF of an animation.

    Films of Matroska and WebM say how long they are, not of how many frames: a missing end is noticed from a tenth on.

    Args:
        path: a film, or an animation (GIF, WebP, PNG).
        longer_side: pixels to which the longer side of each frame is reduced; None: none is.
        most_frames: frames to read, the first ones; None: all.

    Raises:
        InputError: missing, unreadable, empty, truncated or damaged file; less than two frames; too many pixels.
    """
    data = _read_bytes(path)
    is_film = not data.startswith((b"GIF8", b"RIFF", b"\x89PNG")) or data[8:12] == b"AVI "
    decode = _film if is_film else _animation
    try:
        frames, rate = decode(data, path, longer_side, most_frames)
    except InputError:
        raise
    except Exception as error:  # damage makes decoders raise nearly anything
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(str(path), f"a truncated, damaged or unsupported video ({reason})", _WHOLE) from None
    return frames, VideoFormat(rate, "mp4" if is_film else "gif")


def read_frames(
    files: Sequence[Path], longer_side: int | None = None, most_frames: int | None = None
) -> tuple[Float[Tensor, "T H W C"], VideoFormat]:
    """Pictures as the frames of a video, at 25 a second; raises InputError where their sizes or channels differ."""
    first = read_image(files[0]).pixels.shape

    def pixels() -> Iterator[Float[Tensor, "H W C"]]:
        for file in files:
            found = read_image(file).pixels
            if found.shape != first:
                raise InputError(str(file), f"a picture of {tuple(found.shape)}", f"{tuple(first)}, as {files[0]} has")
            yield found

    return _collect(pixels(), files[0].parent, longer_side, most_frames), VideoFormat(RATE, "mp4")


def write_video(path: str | Path, frames: Float[Tensor, "T H W C"], rate: float) -> None:
    """Write frames in [0, 1], clamped and rounded to 8 bits, atomically; alpha is left out.

    MP4, MOV and MKV are H.264 without chroma subsampling, at a constant quality that costs about 0.6 grey levels. A GIF
    has 256 colours a frame.

    Raises:
        InputError: another extension, values that are not finite, or a file that can't be written.
    """
    path = Path(path)
    extension = path.suffix[1:].lower()
    if extension not in WRITTEN:
        raise InputError(str(path), f"the extension {path.suffix or '(none)'}", ", ".join(WRITTEN))
    if not frames.isfinite().all():
        raise InputError("frames", "values that are not finite", "finite values")
    colours = frames[..., :3] if frames.shape[-1] >= 3 else frames[..., :1].expand(*frames.shape[:-1], 3)
    array = (colours.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    if extension == "gif":
        options: dict[str, Any] = {"plugin": "pillow", "extension": ".gif", "duration": 1000 / rate, "loop": 0}
        replace_file(path, iio.imwrite("<bytes>", array, **options))
        return
    av, buffer = _av(), BytesIO()
    container = {"mkv": "matroska"}.get(extension, extension)
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream("libx264", Fraction(rate).limit_denominator(100_000), options=_QUALITY)
        stream.height, stream.width, stream.pix_fmt = *array.shape[1:3], "yuv444p"
        for frame in array:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        file.mux(stream.encode())
    replace_file(path, buffer.getbuffer())


def _film(
    data: bytes, path: Path, longer_side: int | None, most_frames: int | None
) -> tuple[Float[Tensor, "T H W C"], float]:
    av = _av()
    with av.open(BytesIO(data)) as file:
        if not file.streams.video:
            raise InputError(str(path), "a file without pictures", _WHOLE)
        stream = file.streams.video[0]
        declared, rate = stream.frames, float(stream.average_rate or stream.guessed_rate or RATE)
        seconds = (file.duration or 0) / av.time_base if len(file.streams) == 1 else 0.0  # a sound may be longer
        times: list[float] = []

        def upright() -> Iterator[Float[Tensor, "H W C"]]:
            for frame in file.decode(stream):
                times.append(frame.time or 0.0)
                yield _upright(frame)

        frames = _collect(upright(), path, longer_side, most_frames)
    if most_frames is not None and len(frames) == most_frames:
        return frames, rate
    if len(frames) < declared:
        raise InputError(str(path), f"a truncated video, of {len(frames)} frames in place of {declared}", _WHOLE)
    # The last frame is shown for a while, in recordings of a screen for long.
    if not declared and times[-1] - times[0] + 2 / rate < 0.9 * seconds:
        raise InputError(str(path), f"a truncated video, of {times[-1]:.1f} s in place of {seconds:.1f} s", _WHOLE)
    return frames, rate


def _upright(frame: Any) -> Float[Tensor, "H W C"]:
    """A decoded frame, turned as it is to be shown: phones film sideways."""
    quarters = round(frame.rotation / 90)  # counterclockwise
    return torch.from_numpy(np.rot90(frame.to_ndarray(format="rgb24"), quarters).copy()).float() / 255


def _animation(
    data: bytes, path: Path, longer_side: int | None, most_frames: int | None
) -> tuple[Float[Tensor, "T H W C"], float]:
    file: Any  # of which the plugin has more than the protocol
    with iio.imopen(BytesIO(data), "r", plugin="pillow") as file:
        count = file.properties(index=...).n_images or 1
        seconds = [file.metadata(index=index).get("duration", 0) / 1000 or STILL for index in range(count)]
        # Files keep a frame once where it does not change: it is shown longer than the others.
        times = [round(each / min(seconds)) for each in seconds]
        pixels = (torch.from_numpy(file.read(index=index, mode="RGB")).float() / 255 for index in range(count))
        repeated = (frame for frame, number in zip(pixels, times, strict=True) for _ in range(number))
        frames = _collect(repeated, path, longer_side, most_frames)
    return frames, sum(times) / sum(seconds)


def _collect(
    frames: Iterable[Float[Tensor, "H W C"]], path: Path, longer_side: int | None, most_frames: int | None
) -> Float[Tensor, "T h w C"]:
    """The frames, reduced, in one tensor."""
    found, points = [], 0
    for frame in islice(frames, most_frames):
        found.append(frame if longer_side is None else reduce_image(frame, longer_side))
        points += found[-1][..., 0].numel()
        if points > MOST:
            allowed = f"at most {MOST:,}: see --frames and --longer_side"
            raise InputError(str(path), f"a video of more than {MOST:,} pixels", allowed)
    if len(found) < 2:
        raise InputError(str(path), f"a video of {len(found)} frames", "at least 2 frames")
    return torch.stack(found)


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(str(path), (error.strerror or str(error)).lower(), "a video that can be read") from error
    if not data:
        raise InputError(str(path), "an empty file", _WHOLE)
    return data


def _av() -> Any:
    """The av package, imported late: other signals don't need it."""
    try:
        import av
    except (ImportError, OSError) as error:  # the package, or the libraries that it wraps
        raise InputError("av", f"not installed ({error})", "pip install av, to read and write videos") from None
    return av
