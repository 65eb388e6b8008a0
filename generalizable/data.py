"""Data sets of instances: lazily decoded, drawn in an order that does not depend on the number of processes.

An instance's key is its number among all training instances of a run; the selector remembers errors by it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from evos.distributed import World
from evos.errors import InputError
from evos.runs.outputs import check_name
from generalizable.instances import Instance, stack
from generalizable.layouts import find
from generalizable.members import Member
from generalizable.options import DataConfig, SourceConfig
from generalizable.shards import Positions, Shards, load
from generalizable.tasks import build_task

GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Batch:
    """Instances by their keys, the files that were skipped on the way to them, and where streams are after them."""

    keys: tuple[int, ...]
    instance: Instance
    skipped: tuple[str, ...] = ()
    positions: Positions = field(default_factory=dict)


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

    def __init__(
        self, name: str, items: Sequence[Path | Member], config: DataConfig, *, in_memory: bool = False
    ) -> None:
        """``items``: files (scenes: folders), or members of tar files."""
        self.name, self.config = name, config
        self.task = build_task(config)
        self.entries = [(item, i) for item in items for i in range(self.count(item))]
        self._kept: dict[int, Instance] | None = {} if in_memory else None

    def __len__(self) -> int:
        return len(self.entries)

    def count(self, item: Path | Member) -> int:
        """How many instances an item holds."""
        if isinstance(item, Path):
            return self.task.count_instances(item)
        if self.config.pieces == "first":
            return 1
        with item.extracted() as path:
            return self.task.count_instances(path)

    def draw(self, index: int, generator: np.random.Generator | None, skipped: list[str]) -> tuple[int, Instance]:
        """Instance ``index`` and its number, or the next one that can be read.

        Raises:
            InputError: none of the instances can be read.
        """
        for at in (*range(index, len(self)), *range(index)):
            try:
                return at, self.get(at) if generator is None else self.load(at, generator)
            except InputError as error:
                skipped.append(f"{self.name}: {error}")
        raise unreadable(self.name, "training", skipped)

    def once(self, world: World, limit: int | None, skipped: list[str]) -> Iterator[Instance]:
        """Every ``world.size``-th of the first ``limit`` instances, but for those that can't be read."""
        for index in range(world.rank, min(len(self), limit or len(self)), world.size):
            try:
                yield self.get(index)
            except InputError as error:
                skipped.append(f"{self.name}: {error}")

    def get(self, index: int) -> Instance:
        """Instance ``index``, from memory where it is kept."""
        if self._kept is None:
            return self.load(index)
        if index not in self._kept:
            self._kept[index] = self.load(index)
        return self._kept[index]

    def load(self, index: int, generator: np.random.Generator | None = None) -> Instance:
        """Read instance ``index``, augmented by the draws of a ``generator``."""
        item, piece = self.entries[index]
        return load(self.task, item, piece, generator)


@dataclass(frozen=True)
class Sources:
    """The data sets of a run."""

    configs: tuple[SourceConfig, ...]
    train: list[Source | Shards]
    """Of those with a weight."""
    test: dict[str, Source | Shards]
    skipped: tuple[str, ...] = ()
    """Files that can't be read, as far as is known before the training; a line begins with the source's name."""

    def trained_on(self, title: str) -> int | None:
        """How many training instances a source has; None: it is streamed."""
        source = next((source for source in self.train if source.name == title), [])
        return None if isinstance(source, Shards) else len(source)

    def described(self) -> list[str]:
        """A line for each source: how many instances are trained on and held out."""

        def counted(source: Source | Shards | None) -> str:
            streamed = isinstance(source, Shards)
            return f"a stream of {len(source)} tar files" if streamed else str(len(source or []))

        trained = {source.name: source for source in self.train}
        return [
            f"{title}: {counted(trained.get(title))} to train on, {counted(test)} held out"
            for title, test in self.test.items()
        ]

    def check(self) -> None:
        """Read one instance of each part.

        Raises:
            InputError: nothing can be read of one of them.
        """
        parts = [(source, "training") for source in self.train] + [(source, "test") for source in self.test.values()]
        for source, part in parts:
            skipped: list[str] = []
            if next(source.once(World(), None, skipped), None) is None:
                raise unreadable(source.name, part, skipped)


def unreadable(name: str, part: str, skipped: Sequence[str]) -> InputError:
    """The error for a part of a data set in which nothing can be read."""
    reason = f", for example {skipped[-1].removeprefix(f'{name}: ')}" if skipped else ""
    return InputError("data.root", f"{name}, of whose {part} part nothing can be read{reason}", "readable data")


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
    skipped: list[str] = []
    for i, config in enumerate(configs):
        if config.name is not None or not train:  # pictures and results are written by this name
            check_name(config.title, f"data.sources[{i}].name", nested=False)
        try:
            split = find(config.root, config.layout, data.task, data.test_ratio)
        except InputError as error:
            raise InputError(f"data.sources[{i}].{error.argument}", error.got, error.allowed) from None
        skipped += [f"{config.title}: {line}" for line in split.skipped]
        if train and config.weight:
            if not split.train:
                raise InputError(f"data.sources[{i}].root", config.root, "a training part, or weight 0")
            source = make_source(config.title, split.train, data, seed=seed, world=world, limit=data.limit)
            trained.append(source)
        plain = replace(data, fine=1)  # finer values are for training alone
        test[config.title] = make_source(config.title, split.test, plain, seed=seed, world=world, limit=None)
    return Sources(tuple(configs), trained, test, tuple(skipped))


def make_source(
    name: str, items: Sequence[Path | Member | str], data: DataConfig, *, seed: int, world: World, limit: int | None
) -> Source | Shards:
    """A part of a data set: files and members of tar files, or addresses of tar files that are streamed."""
    if addresses := [item for item in items if isinstance(item, str)]:
        return Shards(name, addresses, data, seed=seed, world=world, limit=limit)
    found = [item for item in items if not isinstance(item, str)]
    return Source(name, found[:limit], data, in_memory=data.in_memory)


Item = tuple[int, Instance, list[str], Positions]
"""Key, instance, what was skipped on the way to it, and where its stream is after it, if it comes from one."""


class Instances(Dataset[Item]):
    """All training instances: what ``Draws`` gives -> what a batch is made of."""

    def __init__(self, sources: Sequence[Source | Shards], seed: int | None) -> None:
        """``seed`` of the augmentation; None: without."""
        self.sources, self.seed = sources, seed
        self.offsets = [0, *np.cumsum([len(source) for source in sources]).tolist()]

    def __getitem__(self, draw: tuple[int, int, int]) -> Item:
        number, index, drawn = draw
        skipped: list[str] = []
        generator = None if self.seed is None else np.random.default_rng((self.seed, drawn))
        source = self.sources[number]
        key, instance = source.draw(index, generator, skipped)
        if isinstance(source, Shards):
            # Keys of streams are hashes below 2^32, of which every source has a range of its own.
            return key + ((number + 1) << 32), instance, skipped, {(number, source.part): source.position}
        return key + self.offsets[number], instance, skipped, {}


class Loaded(Dataset[Item | InputError]):
    """The same for a loader: errors are returned, for from another process they come as a traceback."""

    def __init__(self, instances: Instances) -> None:
        self.instances = instances

    def __getitem__(self, draw: tuple[int, int, int]) -> Item | InputError:
        try:
            return self.instances[draw]
        except InputError as error:
            return error


def collate_loaded(items: list[Item | InputError]) -> Batch | InputError:
    """A batch, or the first error among its instances."""
    found = [item for item in items if not isinstance(item, InputError)]
    return collate(found) if len(found) == len(items) else next(i for i in items if isinstance(i, InputError))


def raising(batches: Iterator[Batch | InputError]) -> Iterator[Batch]:
    """Batches, up to an error, which is raised."""
    for batch in batches:
        if isinstance(batch, InputError):
            raise batch
        yield batch


def collate(items: list[Item]) -> Batch:
    """A batch from what ``Instances`` gives."""
    keys, instances, skipped, positions = zip(*items, strict=True)
    lines = tuple(line for lines in skipped for line in lines)
    return Batch(keys, stack(list(instances)), lines, {name: at for each in positions for name, at in each.items()})


def make_draws(sources: Sources, batch: int, *, seed: int, world: World, start: int = 0) -> Draws:
    """What is drawn from the sources in training."""
    weights = [config.weight for config in sources.configs if config.weight]
    return Draws([len(source) for source in sources.train], weights, batch, seed=seed, world=world, start=start)


def training_batches(
    sources: Sources,
    data: DataConfig,
    batch: int,
    *,
    seed: int,
    world: World,
    start: int = 0,
    positions: Positions | None = None,
) -> Iterator[Batch]:
    """This process's part of every batch from step ``start`` + 1 on, without end.

    ``positions``: where each stream was after the batch of step ``start``.
    """
    draws = make_draws(sources, batch, seed=seed, world=world, start=start)
    for number, source in enumerate(sources.train):
        if isinstance(source, Shards):
            source.start(start, {part: at for (of, part), at in (positions or {}).items() if of == number})
    loader = DataLoader(
        Loaded(Instances(sources.train, seed if data.augment else None)),
        batch_sampler=draws,
        num_workers=data.workers,
        collate_fn=collate_loaded,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else it draws from the global one, which a resumed run has just restored
    )
    return raising(iter(loader))


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
