"""Atomic file replacement: a file holds its old content or all of the new one; JSON files built on it."""

import io
import json
import math
import os
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evos.errors import InputError

HEADER = {"format": "evos", "version": 1}
"""What marks a file as ours: in `config.json` and in checkpoints."""

INFINITIES = {math.inf: "+Infinity", -math.inf: "-Infinity"}
"""Texts that stand for what JSON has no number for; `float` and JavaScript's `Number` read them."""


def temporary_path(path: Path) -> Path:
    """Where `path` is written first; always the same name, so that the next write replaces what a kill left behind."""
    return path.with_name(f".{path.name}.tmp")


def replace_file(path: str | Path, content: bytes | memoryview) -> None:
    """Write `content` to `path` atomically: a kill or power failure leaves either the old file or all of the new one.

    Raises:
        InputError: the folder is missing, not writable or full; the old file is untouched, no temporary file remains.
    """
    path = Path(path)
    temporary = temporary_path(path)
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise InputError(str(path), error.strerror or str(error), "a writable folder with free space") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def whole_lines(path: str | Path) -> list[bytes]:
    """The lines of a file that `append_line` writes; a last one that a kill cut off is dropped from it.

    None where the file is missing.

    Raises:
        InputError: the file can't be read or written.
    """
    path = Path(path)
    try:
        whole, _, torn = (path.read_bytes() if path.exists() else b"").rpartition(b"\n")
        if torn:
            os.truncate(path, len(whole) + 1 if whole else 0)
    except OSError as error:
        raise InputError(str(path), error.strerror or str(error), "a file that can be read and written") from None
    return whole.splitlines()


def append_line(path: str | Path, line: str) -> None:
    """Add a line to a file; it is on disk before this returns.

    Raises:
        InputError: the file can't be written, or the disk is full.
    """
    try:
        with open(path, "ab") as file:
            file.write(f"{line}\n".encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(str(path), error.strerror or str(error), "a writable file with free space") from error


def save_figure(figure: Any, path: str | Path) -> None:
    """Write a matplotlib figure as PNG, atomically; raises InputError as `replace_file`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    replace_file(path, buffer.getvalue())


def write_json(path: str | Path, value: object) -> None:
    """Write `value` as JSON, atomically, indented by 2; see `jsonable` for what it may hold.

    Raises:
        InputError: as `replace_file`.
        TypeError: something in `value` has no JSON form.
    """
    text = json.dumps(jsonable(value), indent=2, ensure_ascii=False, allow_nan=False)
    replace_file(path, f"{text}\n".encode())


def read_json(path: str | Path) -> Any:
    """Read a JSON file, with the infinities that `write_json` put in as texts.

    Raises:
        InputError: missing, unreadable or not JSON.
    """
    try:
        return restored(json.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(str(path), error.strerror or str(error), "a readable JSON file") from error
    except ValueError as error:
        raise InputError(str(path), str(error), "a JSON file") from error


def jsonable(value: Any) -> Any:
    """`value` in JSON's own types.

    Tensors and arrays become lists, dataclasses dicts, paths, devices and dtypes text, nan null, inf a text
    (`INFINITIES`): the PSNR of a perfect fit comes back as inf.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: jsonable(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return jsonable(value.tolist())
    if isinstance(value, Path | torch.device | torch.dtype):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return INFINITIES.get(value)
    return value


def restored(value: Any) -> Any:
    """`value` in JSON's own types, with the texts of infinities as numbers again."""
    if isinstance(value, dict):
        return {key: restored(item) for key, item in value.items()}
    if isinstance(value, list):
        return [restored(item) for item in value]
    if isinstance(value, str) and value in INFINITIES.values():
        return float(value)
    return value


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # Windows can't open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
