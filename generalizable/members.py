"""Tar files on this machine, indexed: their members are instances like files in a folder, drawn in any order.

The part of a member's name before the first dot names its sample, the rest its kind, as in the webdataset format.
"""

import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import NamedTuple

from evos.errors import InputError

SAMPLE = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")


class Member(NamedTuple):
    """A picture or sound in a tar file on this machine."""

    tar: Path
    key: str
    suffix: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.tar}: {self.key}.{self.suffix}"

    @contextmanager
    def extracted(self) -> Iterator[Path]:
        """A temporary file with its content."""
        try:
            with self.tar.open("rb") as file:
                file.seek(self.offset)
                content = file.read(self.size)
        except OSError as error:
            raise InputError(str(self.tar), error.strerror or str(error), "a tar file that can be read") from error
        with written(content, self.suffix) as path:
            yield path


@contextmanager
def written(content: bytes, suffix: str) -> Iterator[Path]:
    """A temporary file: the readers take files, and tell formats that Pillow cuts short apart."""
    with NamedTemporaryFile(suffix=f".{suffix}") as file:
        file.write(content)
        file.flush()
        yield Path(file.name)


def index(tar: Path, suffixes: Sequence[str], skipped: list[str]) -> list[Member]:
    """The members of these kinds in a tar file, one of each sample, in order; nothing is decoded.

    Links, and names that begin with a dot, are left out. A file that ends early gives the members that are whole; that
    it does, or is no tar file, or is compressed as a whole, becomes a line of ``skipped``.
    """
    found: dict[str, Member] = {}
    size = tar.stat().st_size
    try:
        with tarfile.open(tar, "r:") as file:
            for info in file:
                parts = SAMPLE.fullmatch(info.name.removeprefix("./")) if info.isfile() else None
                if parts is None or info.offset_data + info.size > size:
                    continue
                key, suffix = parts[1], parts[2].lower()
                other = found.get(key)
                if suffix in suffixes and (other is None or suffixes.index(suffix) < suffixes.index(other.suffix)):
                    found[key] = Member(tar, key, suffix, info.offset_data, info.size)
    except (tarfile.TarError, OSError, EOFError) as error:
        reason = " ".join(str(error).split())
        skipped.append(str(InputError(str(tar), f"{reason}, after {len(found)} samples", "a whole tar file")))
    return list(found.values())
