"""Sound files, read and written by libsndfile: WAV, FLAC, OGG and MP3, any number of channels, integers or floats."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from evos.errors import InputError
from evos.runs.files import replace_file

EXTENSIONS = ("wav", "flac", "ogg", "mp3")
FORMATS = {"WAV": "wav", "WAVEX": "wav", "FLAC": "flac", "OGG": "ogg", "MP3": "mp3"}
"""Formats that are read, by libsndfile's name, and the extension each is written with."""

BLOCK = 2**16
"""Frames written at a time: libsndfile's Vorbis encoder overflows its stack when given a long sound at once."""

MP3_FRAME = 1152
"""Samples that an MP3 may lack: libsndfile estimates the length of one without a Xing header."""

STREAMED = 0x7FFF0000
"""Declared length in bytes from which on a WAV was streamed: its length was unknown when the header was written."""

FLOATS = ("FLOAT", "DOUBLE")
"""Kinds of sample that may lie beyond [-1, 1]."""

LONGEST_PAGES = 2**17
"""Bytes that hold the last page of an Ogg stream for certain: twice the most that a page has."""

_WHOLE = f"a whole sound ({', '.join(EXTENSIONS)})"


@dataclass(frozen=True)
class Sound:
    """A sound as it was read."""

    samples: Float[Tensor, "T C"]
    """Amplitudes, float32: integers fill [-1, 1), floats are as they stand in the file."""
    rate: int
    """Samples a second."""
    subtype: str
    """libsndfile's name for a sample in the file: PCM_16, PCM_24, FLOAT, VORBIS, MPEG_LAYER_III, ..."""
    extension: str
    """wav, flac, ogg or mp3, by the file's content."""


@dataclass(frozen=True)
class SoundHeader:
    """What a sound's file says of it: frames (samples of each channel), frames a second, channels, kind of sample."""

    frames: int
    rate: int
    channels: int
    subtype: str


def is_sound(path: str | Path) -> bool:
    """Whether a file is a sound, by its first bytes or else by its extension."""
    start = first_bytes(path)
    by_content = start[:4] in (b"fLaC", b"OggS") or (start[:4], start[8:]) == (b"RIFF", b"WAVE")
    # An MP3 begins with its tags, or with a frame: 11 bits of ones, 2 for the version, 2 for layer III.
    is_mp3 = start[:3] == b"ID3" or (start[:1] == b"\xff" and len(start) > 1 and start[1] & 0xE6 == 0xE2)
    return by_content or is_mp3 or Path(path).suffix[1:].lower() in EXTENSIONS


def first_bytes(path: str | Path) -> bytes:
    """The first 12 bytes, which tell what a file is; empty where it can't be read (reading it then says why)."""
    try:
        with open(path, "rb") as file:
            return file.read(12)
    except OSError:
        return b""


def read_sound(path: str | Path) -> Sound:
    """Read a WAV, FLAC, OGG or MP3 file, whichever it is by its content.

    Raises InputError, naming the file, where it is missing, unreadable, empty, truncated, not a sound, of another
    format, without samples, or holds floats that are not finite.
    """
    path, soundfile = Path(path), _soundfile()
    data = _read_bytes(path)
    try:
        with soundfile.SoundFile(BytesIO(data)) as file:
            kind, rate, subtype, frames, log = file.format, file.samplerate, file.subtype, file.frames, file.extra_info
            if kind not in FORMATS:
                raise InputError(str(path), f"a sound of format {kind}", ", ".join(EXTENSIONS))
            # With their number said, frames of a codec that can't seek (GSM) are read as well.
            samples = torch.from_numpy(file.read(frames, dtype="float32", always_2d=True))
    except InputError:
        raise
    except Exception as error:  # damage makes libsndfile raise its own error and soundfile several others
        reason = getattr(error, "error_string", error)
        raise InputError(str(path), f"a file that is not a sound, or a damaged one ({reason})", _WHOLE) from None
    if (
        len(samples) < frames - (MP3_FRAME if kind == "MP3" else 0)
        or _is_cut_wav(log)
        or (kind == "OGG" and _is_cut_ogg(data))
    ):
        raise InputError(str(path), "a truncated file", _WHOLE)
    if len(samples) == 0:
        raise InputError(str(path), "a sound without samples", "at least one sample")
    if not samples.isfinite().all():
        raise InputError(str(path), "samples that are not finite", "finite samples")
    return Sound(samples, rate, subtype, FORMATS[kind])


def read_header(path: str | Path) -> SoundHeader:
    """What the header of a sound says; nothing is decoded, and a truncated file passes.

    Raises InputError, naming the file, where it is missing, empty, not a sound or of another format.
    """
    with _opened(Path(path)) as file:
        return SoundHeader(file.frames, file.samplerate, file.channels, file.subtype)


def read_stretch(path: str | Path, start: int, frames: int) -> tuple[Float[Tensor, "T C"], float]:
    """``frames`` frames of a sound from ``start`` on, fewer at its end, and the factor that they were divided by.

    Amplitudes are in [-1, 1]: a file of floats that go beyond is divided by its largest, of the whole file; codecs that
    overshoot are clipped. Only the stretch is decoded, but that a file is whole is checked once in a process.

    Raises InputError as ``read_sound`` does, a truncated file whose stretch could be read included.
    """
    path = Path(path)
    try:
        state = path.stat()
    except OSError as error:
        raise InputError(str(path), (error.strerror or str(error)).lower(), "a sound file that can be read") from error
    peak = _checked_peak(path, state.st_size, state.st_mtime_ns)
    with _opened(path) as file:
        file.seek(min(start, file.frames))
        samples = torch.from_numpy(file.read(min(frames, file.frames - file.tell()), dtype="float32", always_2d=True))
    if not samples.isfinite().all():
        raise InputError(str(path), "samples that are not finite", "finite samples")
    return (samples / peak).clamp(-1, 1), peak


def largest_amplitude(samples: Float[Tensor, "T C"]) -> float:
    """What amplitudes are divided by to lie in [-1, 1]: 1, or the largest where that is beyond."""
    return max(1.0, float(samples.abs().max()))


@lru_cache(2**16)
def _checked_peak(path: Path, size: int, modified: int) -> float:
    """See ``largest_amplitude``; raises InputError where the file is truncated or has no samples."""
    with _opened(path) as file:
        kind, frames, subtype, log = file.format, file.frames, file.subtype, file.extra_info
        if frames and kind in ("FLAC", "MP3"):
            file.seek(max(0, frames - 1 - (MP3_FRAME if kind == "MP3" else 0)))
            if not len(file.read(1)):
                raise InputError(str(path), "a truncated file", _WHOLE)
    if subtype in FLOATS or not frames:
        return largest_amplitude(read_sound(path).samples)
    with path.open("rb") as data:
        data.seek(max(0, size - LONGEST_PAGES))
        if _is_cut_wav(log) or (kind == "OGG" and _is_cut_ogg(data.read())):
            raise InputError(str(path), "a truncated file", _WHOLE)
    return 1.0


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A sound as soundfile opens it, with InputErrors in place of its own."""
    soundfile = _soundfile()
    try:
        if path.is_file() and not path.stat().st_size:
            raise InputError(str(path), "an empty file", _WHOLE)
        with path.open("rb") as data, soundfile.SoundFile(data) as file:
            if file.format not in FORMATS:
                raise InputError(str(path), f"a sound of format {file.format}", ", ".join(EXTENSIONS))
            yield file
    except InputError:
        raise
    except OSError as error:
        raise InputError(str(path), (error.strerror or str(error)).lower(), "a sound file that can be read") from error
    except Exception as error:  # damage makes libsndfile raise its own error and soundfile several others
        reason = getattr(error, "error_string", error)
        raise InputError(str(path), f"a file that is not a sound, or a damaged one ({reason})", _WHOLE) from None


def write_sound(path: str | Path, samples: Float[Tensor, "T C"], rate: int, subtype: str | None = None) -> None:
    """Write amplitudes atomically in the format of the path's extension; integer samples are clipped to [-1, 1).

    ``subtype``: libsndfile's kind of sample; None: 16 bits, or where the format has none its default.

    Raises InputError for an unknown extension, a subtype that the format doesn't have, values that are not finite, or a
    file that can't be written.
    """
    path, soundfile = Path(path), _soundfile()
    kind = path.suffix[1:].upper()
    if path.suffix[1:].lower() not in EXTENSIONS:
        raise InputError(str(path), f"the extension {path.suffix or '(none)'}", ", ".join(EXTENSIONS))
    if subtype is None:
        subtype = "PCM_16" if soundfile.check_format(kind, "PCM_16") else soundfile.default_subtype(kind)
    if not soundfile.check_format(kind, subtype):
        raise InputError("subtype", subtype, ", ".join(soundfile.available_subtypes(kind)))
    if not samples.isfinite().all():
        raise InputError("samples", "values that are not finite", "finite values")
    buffer = BytesIO()
    try:
        with soundfile.SoundFile(buffer, "w", rate, samples.shape[-1], subtype, format=kind) as file:
            for block in samples.detach().cpu().float().split(BLOCK):
                file.write(block.numpy())
    except soundfile.LibsndfileError as error:
        raise InputError(str(path), f"{rate} Hz, {samples.shape[-1]} channels", error.error_string) from None
    replace_file(path, buffer.getbuffer())


def _read_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise InputError(str(path), "a folder", "a sound file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(str(path), (error.strerror or str(error)).lower(), "a sound file that can be read") from error
    if not data:
        raise InputError(str(path), "an empty file", _WHOLE)
    return data


def _is_cut_wav(log: str) -> bool:
    """Whether a WAV holds less than its header declares; libsndfile logs that and reads what there is."""
    promised = re.search(r"^data : (\d+) \(should be (\d+)\)", log, re.MULTILINE)
    return promised is not None and int(promised[2]) < int(promised[1]) < STREAMED


def _is_cut_ogg(data: bytes) -> bool:
    """Whether an Ogg stream lacks its last page, which has a flag in its header, or part of it."""
    page = data[data.rfind(b"OggS") :]
    if len(page) < 27 or not page[5] & 4:
        return True
    segments = page[26]
    return len(page) < 27 + segments + sum(page[27 : 27 + segments])


def _soundfile() -> Any:
    """The soundfile package, imported late: images don't need it."""
    try:
        import soundfile
    except (ImportError, OSError) as error:  # the package, or the library that it wraps
        raise InputError("soundfile", f"not installed ({error})", "pip install soundfile, to read sounds") from None
    return soundfile
