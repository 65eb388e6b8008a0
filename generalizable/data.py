"""Data sets of instances: lazily decoded, drawn in an order that does not depend on the number of processes.

An instance's key is its number among all training instances of a run; the selector remembers errors by it.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from webdataset.compat import WebDataset

from evos.distributed import World
from evos.errors import InputError
from evos.runs.outputs import check_name
from generalizable.instances import Instance, stack
from generalizable.layouts import find
from generalizable.options import DataConfig, SourceConfig
from generalizable.tasks import SignalTask, build_task

GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Batch:
    """Instances by their keys, and the files that were skipped on the way to them."""

    keys: tuple[int, ...]
    instance: Instance
    skipped: tuple[str, ...] = ()


class Draws(Sampler[list[tuple[int, int, int]]]):
    """What every step from ``start`` on draws, without end: (source, index, number of the draw), this process's part.

    A batch has ``batch`` places. Place p owns the instances whose index is p modulo ``batch``, and takes them in an
    order that is new each time round. So a process, which fills a run of neighbouring places, meets the same instances
    again and again, and the errors that its selector remembers are shared out, not copied; and the batches are the same
    for any number of processes. Sources take turns along the places by a golden-ratio sequence, which keeps the weights
    in any run of neighbouring places: every process gets the same mixture.
    """

    def __init__(
        self, sizes: Sequence[int], weights: Sequence[float], batch: int, *, seed: int, world: World, start: int = 0
    ) -> None:
        """``start``: steps that are done."""
        if batch % world.size:
            raise InputError("train.batch", batch, f"a multiple of the {world.size} processes")
        self.sizes, self.batch, self.seed, self.start = sizes, batch, seed, start
        self.cumulative_weights = np.cumsum(weights) / np.sum(weights)
        own = batch // world.size
        self.places = range(world.rank * own, (world.rank + 1) * own)
        self._orders: dict[tuple[int, int], tuple[int, np.ndarray]] = {}

    @property
    def owned(self) -> int:
        """How many instances this process draws from."""
        return sum(len({index for place in self.places for index in self.members(size, place)}) for size in self.sizes)

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        step = self.start
        turns = self.turns(step)
        while True:
            sources, drawn = self.sources(step), []
            for place in self.places:
                source = int(sources[place])
                member = self.member(source, place, int(turns[place, source]))
                drawn.append((source, member, step * self.batch + place))
                turns[place, source] += 1
            yield drawn
            step += 1

    def sources(self, step: int) -> np.ndarray:
        """The source of every place of a batch."""
        position = np.arange(step * self.batch, (step + 1) * self.batch)
        return np.searchsorted(self.cumulative_weights, (position * GOLDEN) % 1, side="right").clip(
            max=len(self.cumulative_weights) - 1
        )

    def turns(self, step: int) -> np.ndarray:
        """How often every place has drawn from every source in the steps before."""
        found = np.zeros((self.batch, len(self.sizes)), dtype=np.int64)
        if len(self.sizes) == 1:
            found[:] = step
            return found
        for done in range(step):
            found[np.arange(self.batch), self.sources(done)] += 1
        return found

    def members(self, size: int, place: int) -> range:
        """The instances of a source that a place owns; one, where there are more places than instances."""
        return range(place, size, self.batch) if size >= self.batch else range(place % size, place % size + 1)

    def member(self, source: int, place: int, turn: int) -> int:
        """The instance that a place draws from a source at its ``turn``-th go."""
        members = self.members(self.sizes[source], place)
        cycle, position = divmod(turn, len(members))
        if self._orders.get((source, place), (-1,))[0] != cycle:
            generator = np.random.default_rng((self.seed, source, place, cycle))
            self._orders[source, place] = cycle, generator.permutation(len(members))
        return members[self._orders[source, place][1][position]]


class Source:
    """The instances of one part (training or test) of a data set, read when they are asked for."""

    def __init__(self, name: str, paths: list[Path], config: DataConfig, *, in_memory: bool = False) -> None:
        self.name, self.config = name, config
        self.task = build_task(config)
        self.entries = [(path, i) for path in paths for i in range(self.task.count_instances(path))]
        self._kept: dict[int, Instance] | None = {} if in_memory else None

    def __len__(self) -> int:
        return len(self.entries)

    def draw(self, index: int, generator: np.random.Generator | None, skipped: list[str]) -> tuple[int, Instance]:
        """Instance ``index`` and its number, or the next one that can be read.

        Raises:
            InputError: none of the instances can be read.
        """
        for at in (*range(index, len(self)), *range(index)):
            try:
                return at, self.get(at) if generator is None else self.task.load(*self.entries[at], generator)
            except InputError as error:
                skipped.append(str(error))
        raise InputError("data.root", f"{self.name}, where nothing can be read ({skipped[-1]})", "readable data")

    def once(self, world: World, limit: int | None, skipped: list[str]) -> Iterator[Instance]:
        """Every ``world.size``-th of the first ``limit`` instances, but for those that can't be read."""
        for index in range(world.rank, min(len(self), limit or len(self)), world.size):
            try:
                yield self.get(index)
            except InputError as error:
                skipped.append(str(error))

    def get(self, index: int) -> Instance:
        """Instance ``index``, from memory where it is kept."""
        if self._kept is None:
            return self.task.load(*self.entries[index])
        if index not in self._kept:
            self._kept[index] = self.task.load(*self.entries[index])
        return self._kept[index]

    def label(self, index: int) -> str:
        """What to call an instance."""
        path, piece = self.entries[index]
        return path.stem if self.config.pieces == "first" else f"{path.stem}_{piece}"


class Shards:
    """A data set in tar shards, streamed: whichever sample comes next, shuffled over a window of a thousand.

    Every process and worker reads shards of its own, again and again. A sample's key is a hash of its name.
    """

    def __init__(self, name: str, paths: Sequence[Path | str], config: DataConfig, *, seed: int, world: World) -> None:
        self.name, self.urls, self.task = name, [str(path) for path in paths], build_task(config)
        self.seed, self.world = seed, world
        self._stream: Iterator[dict[str, Any]] | None = None
        self._broken: list[str] = []

    def __len__(self) -> int:
        return len(self.urls)

    def draw(self, index: int, generator: np.random.Generator | None, skipped: list[str]) -> tuple[int, Instance]:
        """The next sample that can be read, and its key; ``index`` plays no part.

        Raises:
            InputError: a thousand samples in a row can't be read.
        """
        self._stream = self._stream or self.stream(repeat=True)
        for _ in range(1000):
            sample = next(self._stream)
            skipped.extend(self._broken)
            self._broken.clear()
            try:
                return zlib.crc32(sample["__key__"].encode()), decode(sample, self.task, generator)
            except InputError as error:
                skipped.append(str(error))
        raise InputError("data.root", f"{self.name}, where nothing can be read ({skipped[-1]})", "readable data")

    def once(self, world: World, limit: int | None, skipped: list[str]) -> Iterator[Instance]:
        """Every ``world.size``-th of the first ``limit`` samples, but for those that can't be read."""
        for sample in islice(self.stream(repeat=False), world.rank, limit, world.size):
            try:
                yield decode(sample, self.task)
            except InputError as error:
                skipped.append(str(error))

    def stream(self, *, repeat: bool) -> Iterator[dict[str, Any]]:
        """Undecoded samples: without end and shuffled, or once and in order.

        Raises:
            InputError: no shard gives a sample.
        """
        worker = torch.utils.data.get_worker_info()
        part, parts = (worker.id, worker.num_workers) if worker else (0, 1)
        part, parts = part + parts * self.world.rank, parts * self.world.size
        own = self.urls[part::parts] if repeat and len(self.urls) >= parts else self.urls
        generator = np.random.default_rng((self.seed, part))
        passes = count() if repeat else range(1)
        for _ in passes:
            order = generator.permutation(own).tolist() if repeat else own
            dataset: Any = WebDataset(
                order, shardshuffle=False, nodesplitter=None, workersplitter=None, handler=self.note, empty_check=False
            )
            sample = None
            for sample in dataset.shuffle(1000, seed=int(generator.integers(2**31))) if repeat else dataset:
                yield sample
            if sample is None:
                reason = self._broken[-1] if self._broken else "they are empty"
                raise InputError(
                    "data.root", f"{self.name}, whose shards give nothing ({reason})", "readable tar files"
                )

    def note(self, error: Exception) -> bool:
        """Go on after a shard that can't be read, and remember it."""
        self._broken.append(" ".join(str(error).split()))
        return True


def decode(sample: dict[str, Any], task: SignalTask, generator: np.random.Generator | None = None) -> Instance:
    """The picture or sound of a sample of a shard."""
    for suffix in task.suffixes:
        if (content := sample.get(suffix)) is not None:
            # The readers take files, and tell formats that Pillow cuts short apart.
            with NamedTemporaryFile(suffix=f".{suffix}") as file:
                file.write(content)
                file.flush()
                try:
                    return task.load(Path(file.name), 0, generator)
                except InputError as error:
                    raise InputError(
                        f"{sample['__url__']}: {sample['__key__']}.{suffix}", error.got, error.allowed
                    ) from None
    raise InputError(f"{sample['__url__']}: {sample['__key__']}", "no data", ", ".join(task.suffixes))


@dataclass(frozen=True)
class Sources:
    """The data sets of a run."""

    configs: tuple[SourceConfig, ...]
    train: list[Source | Shards]
    """Of those with a weight."""
    test: dict[str, Source | Shards]


def find_sources(
    configs: Sequence[SourceConfig], data: DataConfig, *, seed: int, world: World, train: bool = True
) -> Sources:
    """Look for the files of every source; reads none of them, but the headers of sounds cut into pieces.

    Without ``train``, for an evaluation alone: their test parts.

    Raises:
        InputError: no source is named, or one is not there.
    """
    if not configs:
        raise InputError("data.root", None, "a folder, or data.sources=[{root: DIR}, ...]")
    trained: list[Source | Shards] = []
    test: dict[str, Source | Shards] = {}
    for i, config in enumerate(configs):
        if config.name is not None or not train:  # pictures and results are written by this name
            check_name(config.title, f"data.sources[{i}].name", nested=False)
        try:
            split = find(config.root, config.layout, data.task, data.test_ratio)
        except InputError as error:
            raise InputError(f"data.sources[{i}].{error.argument}", error.got, error.allowed) from None
        if train and config.weight:
            if not split.train:
                raise InputError(f"data.sources[{i}].root", config.root, "a training part, or weight 0")
            limited = split.train if split.shards else split.train[: data.limit]
            trained.append(make_source(config.title, limited, split.shards, data, seed, world))
        test[config.title] = make_source(config.title, split.test, split.shards, data, seed, world)
    return Sources(tuple(configs), trained, test)


def make_source(
    name: str, paths: Sequence[Path | str], shards: bool, data: DataConfig, seed: int, world: World
) -> Source | Shards:
    """A part of a data set."""
    if shards:
        return Shards(name, paths, data, seed=seed, world=world)
    return Source(name, [Path(path) for path in paths], data, in_memory=data.in_memory)


class Instances(Dataset[tuple[int, Instance, list[str]]]):
    """All training instances: what ``Draws`` gives -> key, instance, and what was skipped."""

    def __init__(self, sources: Sequence[Source | Shards], seed: int | None) -> None:
        """``seed`` of the augmentation; None: without."""
        self.sources, self.seed = sources, seed
        self.offsets = [0, *np.cumsum([len(source) for source in sources]).tolist()]

    def __getitem__(self, draw: tuple[int, int, int]) -> tuple[int, Instance, list[str]]:
        source, index, number = draw
        skipped: list[str] = []
        generator = None if self.seed is None else np.random.default_rng((self.seed, number))
        key, instance = self.sources[source].draw(index, generator, skipped)
        # A shard's keys are hashes below 2^32, of which every source has a range of its own.
        key += (source + 1) << 32 if isinstance(self.sources[source], Shards) else self.offsets[source]
        return key, instance, skipped


def collate(items: list[tuple[int, Instance, list[str]]]) -> Batch:
    """A batch from what ``Instances`` gives."""
    keys, instances, skipped = zip(*items, strict=True)
    return Batch(keys, stack(list(instances)), tuple(line for lines in skipped for line in lines))


def training_batches(
    sources: Sources, data: DataConfig, batch: int, *, seed: int, world: World, start: int = 0
) -> tuple[Draws, Iterator[Batch]]:
    """This process's part of every batch from step ``start`` + 1 on, without end."""
    weights = [config.weight for config in sources.configs if config.weight]
    draws = Draws([len(source) for source in sources.train], weights, batch, seed=seed, world=world, start=start)
    loader = DataLoader(
        Instances(sources.train, seed if data.augment else None),
        batch_sampler=draws,
        num_workers=data.workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else it draws from the global one, which a resumed run has just restored
    )
    return draws, iter(loader)


def evaluation_batches(
    source: Source | Shards, batch: int, *, world: World, limit: int | None, skipped: list[str]
) -> Iterator[Instance]:
    """This process's part of a test set, each instance once, ``batch`` at a time; the last batch may be smaller."""
    waiting: list[Instance] = []
    for instance in source.once(world, limit, skipped):
        waiting.append(instance)
        if len(waiting) == batch:
            yield stack(waiting)
            waiting = []
    if waiting:
        yield stack(waiting)
