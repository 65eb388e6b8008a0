"""The one walk through users' folders: subfolders and linked ones, without what systems and programs leave in them."""

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from evos.errors import InputError
from evos.runs.files import HEADER, read_json

LEFT_BY_SYSTEMS = ("@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "__MACOSX", "lost+found")
"""Folders with thumbnails, copies or deleted files; those whose names begin with a dot are left out anyway."""


def walk(root: Path) -> Iterator[Path]:
    """All files under a folder, at any depth, in the order of names; each once.

    Linked files and subfolders are followed, unless they lead to what is in ``root`` anyway, or to a folder above it.
    Left out are, below ``root``, hidden files and folders (with names that begin with a dot), what systems leave behind
    (``LEFT_BY_SYSTEMS``), and folders of runs, which hold pictures of their results.

    Raises:
        InputError: a folder can't be read.
    """
    yield from _walk(root, root.resolve(), set())


def _walk(folder: Path, top: Path, seen: set[Path]) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(str(folder), (error.strerror or str(error)).lower(), "a folder that can be read") from error
    for entry in entries:
        path = folder / entry.name
        if is_left_out(entry.name):
            continue
        if entry.is_symlink():
            target = path.resolve()
            if target.is_relative_to(top) or top.is_relative_to(target) or target in seen:
                continue
            seen.add(target)
        if entry.is_dir():
            if not is_run(path):
                yield from _walk(path, top, seen)
        elif entry.is_file():
            yield path


def is_left_out(name: str) -> bool:
    """Whether a file or folder of that name is hidden, or one that systems leave behind."""
    return name.startswith(".") or name in LEFT_BY_SYSTEMS


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run of one of the programs here."""
    path = folder / "config.json"
    if not path.is_file():
        return False
    try:
        config = read_json(path)
    except InputError:
        return False
    return isinstance(config, dict) and config.get("format") == HEADER["format"]


def find_files(root: Path, extensions: Collection[str]) -> list[Path]:
    """The files under a folder that ``walk`` finds, by extension (without a dot, in lower case), sorted.

    Raises:
        InputError: a folder can't be read.
    """
    return sorted(path for path in walk(root) if path.suffix[1:].lower() in extensions)


def natural_order(path: Path) -> list[tuple[list[str | int], str]]:
    """The key that sorts ``2.png`` before ``10.png``, folder by folder."""
    # Text and digits alternate, so like is compared with like.
    splits = [re.split(r"(\d+)", part.lower()) for part in path.parts]
    keys = [[int(text) if i % 2 else text for i, text in enumerate(split)] for split in splits]
    return list(zip(keys, path.parts, strict=True))


def read_list(path: Path) -> str:
    """The text of a list that users or data sets bring: UTF-8 or UTF-16, with a byte-order mark or without.

    Raises:
        InputError: the file can't be read, or is in another encoding.
    """
    try:
        data = path.read_bytes()
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except OSError as error:
        raise InputError(str(path), (error.strerror or str(error)).lower(), "a list that can be read") from error
    except UnicodeDecodeError:
        raise InputError(str(path), "a file that is not text", "a list in UTF-8 or UTF-16") from None
