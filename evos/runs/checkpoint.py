"""Checkpoints: written atomically, and loaded without ever executing code from the file."""

import io
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from evos.errors import InputError
from evos.runs.files import HEADER, replace_file

_LEAVES = (torch.Tensor, torch.nn.Parameter, int, float, str, bool, type(None))


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Write `state` to `path`; a kill or a full disk at any moment leaves the previous checkpoint as it was.

    Args:
        path: the file; replaced atomically where it exists.
        state: tensors, numbers, strings, None, bools, and lists, tuples and dicts of them, and nothing else.

    Raises:
        TypeError: `state` holds something else, such as a NumPy scalar: loading it would execute code.
        InputError: the folder is missing, not writable or full.
    """
    _check_plain(state, "state")
    # Serialized in memory first: torch would wrap a disk error in one of its own that hides the reason.
    buffer = io.BytesIO()
    torch.save({**state, **HEADER}, buffer)
    replace_file(path, buffer.getbuffer())


def load_checkpoint(path: str | Path, *, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read back the state that `save_checkpoint` wrote, its tensors on `device`.

    Raises:
        InputError: the file is missing, empty, truncated, damaged, not written by evos, of another version, or holds a
            pickle that would execute code.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error about a foreign file is one line, without torch's advice
            if not file.read(1):
                raise InputError("checkpoint", f"{path} (empty)", "a checkpoint written by evos")
            with zipfile.ZipFile(file) as archive:  # torch itself takes tensors with flipped bits
                if (part := archive.testzip()) is not None:
                    raise zipfile.BadZipFile(f"bad checksum of {part}")
            file.seek(0)
            state = torch.load(file, map_location=device, weights_only=True)
    except (InputError, torch.OutOfMemoryError):
        raise
    except OSError as error:
        raise InputError("checkpoint", f"{path} ({error.strerror})", "a readable file") from error
    except Exception as error:  # a damaged file can make the unpickler raise anything
        raise InputError(
            "checkpoint", str(path), "an intact checkpoint: this one is damaged, or not plain data"
        ) from error
    if not isinstance(state, dict) or state.pop("format", None) != HEADER["format"]:
        raise InputError("checkpoint", str(path), "a checkpoint written by evos")
    if (version := state.pop("version", None)) != HEADER["version"]:
        raise InputError("checkpoint", f"{path} of version {version}", f"version {HEADER['version']}")
    return state


def _check_plain(value: Any, where: str) -> None:
    """Exact types, not subclasses: `numpy.float64` is a float, but its pickle is code."""
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            _check_plain(key, f"a key of {where}")
            _check_plain(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for i, item in enumerate(value):
            _check_plain(item, f"{where}[{i}]")
    elif type(value) not in _LEAVES:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise TypeError(f"{where}: a checkpoint holds tensors and plain Python values only, not {kind}")
