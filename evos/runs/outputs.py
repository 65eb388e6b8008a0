"""Where a program may write: nowhere but in the folder it was given, and over nothing that it did not write.

The rule of every program here: a file that exists is replaced only if the user says ``overwrite=true`` (a run's own
folder has its own rule, ``open_run``), and a name that comes out of a file never leads out of the output folder.
"""

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from evos.errors import InputError
from evos.runs.files import read_json

DRIVE = re.compile(r"[A-Za-z]:")


def check_name(name: str, argument: str, *, nested: bool = True) -> None:
    """Raise InputError unless ``name`` is a relative path that stays below the folder it is appended to.

    Its parts are separated by ``/``. Refused, on every platform: absolute names, empty parts, ``.`` and ``..``,
    backslashes, drive letters (``C:``) and null characters; without ``nested`` also parts: it is a plain name.
    """
    parts = name.split("/")
    if not nested and len(parts) > 1:
        raise InputError(argument, repr(name), "a name without /")
    if any(part in ("", ".", "..") for part in parts) or "\\" in name or "\0" in name or DRIVE.match(name):
        raise InputError(argument, repr(name), "a name that stays in the folder: parts joined by /, none of them ..")


def path_in(folder: Path, name: str, argument: str) -> Path:
    """The path of ``name`` below ``folder``; nothing is made.

    Raises:
        InputError: ``check_name`` refuses the name, or a link in the folder leads it elsewhere.
    """
    check_name(name, argument)
    path = folder / name
    try:
        stays = path.parent.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # links in a circle
        stays = False
    if not stays:
        raise InputError(argument, repr(name), f"a name that no link leads out of {folder}")
    return path


def check_absent(paths: Iterable[Path], overwrite: bool, argument: str = "out") -> None:
    """Raise InputError if one of the files to be written exists and ``overwrite`` is false, or if it is no file."""
    for path in paths:
        if path.is_dir():
            raise InputError(argument, f"{path}, a folder", "the path of a file")
        if not overwrite and os.path.lexists(path):
            raise InputError(argument, f"{path}, which exists", "a new path, or overwrite=true")


def check_new_file(path: Path, overwrite: bool, argument: str = "out") -> None:
    """Raise InputError, before the work for it, where a file could not be written: ``check_absent``, or no folder."""
    check_absent([path], overwrite, argument)
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        raise InputError(argument, f"{path}, whose folder can't be written", "a path in a folder that can be written")


def check_folder(folder: Path, written: Iterable[str], overwrite: bool, argument: str = "out") -> None:
    """Raise InputError unless a folder is new or empty, or ``overwrite`` is true and nothing of others is in it.

    ``written``: patterns of the files that a program writes there.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise InputError(argument, str(folder), "a new folder, or --overwrite")
    ours = {file for pattern in written for file in folder.glob(pattern)}
    if folder.is_symlink() or not folder.is_dir() or any(not f.is_dir() and f not in ours for f in folder.rglob("*")):
        raise InputError(argument, str(folder), "a folder with nothing in it but what this program wrote")


def make_folder(folder: Path, argument: str = "out") -> None:
    """Make a folder and its parents where they are missing.

    Raises:
        InputError: a file is in the way, or the folder can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(argument, f"{folder} ({error.strerror})", "a folder that can be written") from error


def check_generated(
    folder: Path, written: Iterable[str], overwrite: bool, *, about: str, generator: str, what: str, argument: str
) -> None:
    """Raise InputError unless ``check_folder`` lets the folder pass and what is in it was made by ``generator``.

    Args:
        about: the JSON file in the folder whose entry ``generator`` names its maker.
        what: that which may be replaced, in words.
    """
    check_folder(folder, written, overwrite, argument)
    if folder.exists() and any(folder.iterdir()):
        try:
            maker = read_json(folder / about)["generator"]
        except (InputError, TypeError, KeyError):
            maker = None
        if maker != generator:
            raise InputError(argument, str(folder), f"{what} that this program wrote")


@contextmanager
def whole_folder(folder: Path, argument: str) -> Iterator[Path]:
    """A temporary folder, yet to be made, that takes the place of ``folder`` when the block ends without an error.

    Raises:
        InputError: the folder can't be written.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except OSError as error:
        raise InputError(argument, f"{folder} ({error.strerror})", "a folder that can be written") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
