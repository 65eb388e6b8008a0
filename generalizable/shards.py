"""Data sets in tar files behind addresses and commands, read from beginning to end, again and again.

Tar files on this machine are not streamed: see ``members``.
"""

import zlib
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from webdataset.compat import WebDataset

from evos.distributed import World
from evos.errors import InputError
from generalizable.instances import Instance
from generalizable.members import Member, written
from generalizable.options import DataConfig
from generalizable.tasks import SignalTask, build_task

Positions = dict[tuple[int, tuple[int, int]], tuple[int, int]]
"""Where streams are, by the source's number and the stream's ``part``: passes done, samples read in the present one."""
SHUFFLED = 1000
"""Samples of a stream among which the next one is drawn."""


def load(
    task: SignalTask, item: Path | Member, piece: int = 0, generator: np.random.Generator | None = None
) -> Instance:
    """The instance in a file or a member of a tar file; see ``SignalTask.load``."""
    if isinstance(item, Path):
        return task.load(item, piece, generator)
    with item.extracted() as path:
        try:
            return task.load(path, piece, generator)
        except InputError as error:
            raise InputError(str(item), error.got, error.allowed) from None


class Shards:
    """A data set in tar files that are streamed: whichever sample comes next, shuffled over a window of a thousand.

    Every process and worker reads shards of its own, again and again. A sample's key is a hash of its shard and name.

    Attributes:
        part: which stream of how many this process or worker reads; known once it has begun to.
        position: passes done, and samples read in the present one.
    """

    def __init__(
        self,
        name: str,
        addresses: Sequence[Path | str],
        config: DataConfig,
        *,
        seed: int,
        world: World,
        limit: int | None = None,
    ) -> None:
        """``limit``: the most samples that are read, by all processes together: the first ones."""
        self.name, self.urls, self.task = name, [str(address) for address in addresses], build_task(config)
        self.seed, self.world, self.limit = seed, world, limit
        self.part, self.position = (0, 1), (0, 0)
        self._start, self._positions = 0, {}
        self._stream: Iterator[dict[str, Any]] | None = None
        self._broken: list[str] = []

    def __len__(self) -> int:
        return len(self.urls)

    def start(self, step: int, positions: dict[tuple[int, int], tuple[int, int]]) -> None:
        """Begin where each stream was after ``step``; those that are not named begin at their beginning."""
        self._start, self._positions, self._stream = step, positions, None

    def draw(self, number: int, generator: np.random.Generator | None, skipped: list[str]) -> tuple[int, Instance]:
        """The next sample that can be read, and its key; ``number`` plays no part.

        Raises:
            InputError: a thousand samples in a row can't be read.
        """
        self._stream = self._stream or self.stream()
        for _ in range(SHUFFLED):
            sample = next(self._stream)
            skipped.extend(f"{self.name}: {line}" for line in self._broken)
            self._broken.clear()
            try:
                key = zlib.crc32(f"{sample['__url__']}\0{sample['__key__']}".encode())
                return key, decode(sample, self.task, generator)
            except InputError as error:
                skipped.append(f"{self.name}: {error}")
        raise InputError("data.root", f"{self.name}, where nothing can be read ({skipped[-1]})", "readable data")

    def once(self, world: World, limit: int | None, skipped: list[str]) -> Iterator[Instance]:
        """Every ``world.size``-th of the first ``limit`` samples, but for those that can't be read."""
        for sample in islice(self.samples(self.urls), world.rank, limit, world.size):
            try:
                yield decode(sample, self.task)
            except InputError as error:
                skipped.append(f"{self.name}: {error}")

    def stream(self) -> Iterator[dict[str, Any]]:
        """Undecoded samples of this process or worker without end, from its position on."""
        worker = torch.utils.data.get_worker_info()
        # The first batch after a resumption is for worker 0, whichever read the one before it.
        number, workers = ((worker.id + self._start) % worker.num_workers, worker.num_workers) if worker else (0, 1)
        at, parts = number + workers * self.world.rank, workers * self.world.size
        self.part = at, parts
        first, skip = self._positions.get(self.part, (0, 0))
        for passes in count(first):
            for done, sample in enumerate(islice(self.one_pass(at, parts, passes), skip, None), skip + 1):
                self.position = passes, done
                yield sample
            skip = 0

    def one_pass(self, at: int, parts: int, number: int) -> Iterator[dict[str, Any]]:
        """The ``number``-th pass of stream ``at`` of ``parts``, shuffled."""
        generator = np.random.default_rng((self.seed, at, number))
        if self.limit is not None:
            samples = islice(self.samples(self.urls, self.limit), at % self.limit, None, parts)
        else:
            own = self.urls[at::parts] if len(self.urls) >= parts else self.urls
            samples = self.samples(generator.permutation(own).tolist())
        window: list[dict[str, Any]] = []
        for sample in samples:
            window.append(sample)
            if len(window) == SHUFFLED:
                yield window.pop(int(generator.integers(SHUFFLED)))
        for i in generator.permutation(len(window)):
            yield window[i]

    def samples(self, urls: list[str], limit: int | None = None) -> Iterator[dict[str, Any]]:
        """Undecoded samples of shards, once and in order.

        Raises:
            InputError: no shard gives a sample.
        """
        dataset: Any = WebDataset(
            urls, shardshuffle=False, nodesplitter=None, workersplitter=None, handler=self.note, empty_check=False
        )
        sample = None
        for sample in islice(dataset, limit):
            yield sample
        if sample is None:
            reason = self._broken[-1] if self._broken else "they are empty"
            raise InputError("data.root", f"{self.name}, whose shards give nothing ({reason})", "readable tar files")

    def note(self, error: Exception) -> bool:
        """Go on after a shard that can't be read, and remember it."""
        self._broken.append(" ".join(str(error).split()))
        return True


def decode(sample: dict[str, Any], task: SignalTask, generator: np.random.Generator | None = None) -> Instance:
    """The picture or sound of a sample of a stream."""
    for suffix in task.suffixes:
        if (content := sample.get(suffix)) is not None:
            with written(content, suffix) as path:
                try:
                    return task.load(path, 0, generator)
                except InputError as error:
                    raise InputError(
                        f"{sample['__url__']}: {sample['__key__']}.{suffix}", error.got, error.allowed
                    ) from None
    raise InputError(f"{sample['__url__']}: {sample['__key__']}", "no data", ", ".join(task.suffixes))
