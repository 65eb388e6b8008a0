"""What a search has measured, on disk: what is there is never measured again."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evonas.genomes import Genome, GenomeSpace
from evos.errors import InputError
from evos.runs.files import HEADER, append_line, replace_file, whole_lines


class Archive:
    """What was measured of each genome, kept in a file: one JSON line each, on disk before it counts.

    Attributes:
        values: numbers by name, by genome, in the order in which they came.
    """

    def __init__(self, path: str | Path, space: GenomeSpace | None = None) -> None:
        """Read the file, or begin it; a last line that a kill cut off is dropped from it.

        Raises:
            InputError: the file can't be read or written, is damaged before its last line, or is of another space.
        """
        self.path, self.space = Path(path), space
        self.values: dict[Genome, dict[str, float]] = {}
        lines = whole_lines(self.path)
        if not lines:
            replace_file(self.path, f"{json.dumps(self._header())}\n".encode())
        for number, line in enumerate(lines, 1):
            self._read(number, line)

    def _header(self) -> dict[str, Any]:
        return json.loads(json.dumps({**HEADER, "space": self.space and self.space.identity}))

    def _read(self, number: int, line: bytes) -> None:
        try:
            entry = json.loads(line)
            if number > 1:
                genome = tuple(entry.pop("genome"))
                values = {name: float(value) for name, value in entry.items()}
                if genome in self.values or not all(type(gene) is int for gene in genome):
                    raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(str(self.path), f"damaged line {number}", "an archive of a search, untouched") from None
        if number == 1 and entry != self._header():
            raise InputError(str(self.path), "an archive of another space", "the space it was begun with") from None
        if number > 1:
            self.values[genome if self.space is None else self.space.check(genome)] = values

    def add(self, genome: Genome, values: Mapping[str, float]) -> None:
        """Remember what was measured of a genome, once.

        Raises:
            InputError: a number is not finite, or the file can't be written.
        """
        for name, value in values.items():
            if not math.isfinite(value):
                raise InputError(name, value, f"a finite number, for genome {list(genome)}")
        entry = {"genome": list(genome), **{name: float(value) for name, value in values.items()}}
        append_line(self.path, json.dumps(entry))
        self.values[genome] = dict(values)
