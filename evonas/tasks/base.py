"""What a task is. Nothing else in the package asks which one it has."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from evonas.data import Data, DataConfig, augmented
from evonas.supernet import Head, Network
from evos.errors import InputError
from evos.images import write_image

CHUNK = 32
"""Pictures in one pass of an evaluation."""


def coloured(name: str) -> str:
    """The name of the picture that shows the result of this name."""
    return f"{name}_coloured"


@runtime_checkable
class Meter(Protocol):
    """Metrics over a data set, batch by batch."""

    def update(self, found: Tensor, truth: Tensor) -> None:
        """Count a batch of results and their truth."""

    def compute(self) -> dict[str, float]:
        """The metrics of all batches."""
        ...


class MeanMeter:
    """Metrics that are means over pictures: ``measure`` gives those of a batch, ``count`` how many of it count."""

    def __init__(
        self, measure: Callable[[Tensor, Tensor], dict[str, float]], count: Callable[[Tensor], int] = len
    ) -> None:
        self.measure, self.count = measure, count
        self.seen, self.totals = 0, {}

    def update(self, found: Tensor, truth: Tensor) -> None:
        """Count a batch."""
        count = self.count(truth)
        if count:
            self.seen += count
            for name, value in self.measure(found, truth).items():
                self.totals[name] = self.totals.get(name, 0.0) + value * count

    def compute(self) -> dict[str, float]:
        """The means."""
        return {name: total / self.seen for name, total in self.totals.items()}


class Task(ABC):
    """Data, head, loss and metric.

    A network's ``output`` is what the loss takes; ``answer`` says what it means, by operations that can be exported;
    ``result`` has the form of the truth.

    Attributes:
        layouts: of data sets that the task reads.
        sets: the data by split: train, search (for choosing) and test (for reporting).
        classes: names of the classes, where the task has any.
    """

    layouts: tuple[str, ...]
    classes: list[str]

    def __init__(self, config: DataConfig, splits: Sequence[str], classes: Sequence[str] | None = None) -> None:
        """Read these splits; ``classes`` are needed where none is read.

        Raises:
            InputError: data that can't be read, or of a layout of another task.
        """
        if config.layout not in ("auto", *self.layouts):
            raise InputError("data.layout", config.layout, f"{', '.join(('auto', *self.layouts))} for {config.task}")
        self.config = config
        self.sets: dict[str, Data] = {split: self.load(split) for split in splits}
        known = [list(own.classes) for own in self.sets.values()] or [list(classes or ())]
        if any(own != known[0] for own in known):
            raise InputError("data.root", config.root, "the same classes in all splits")
        self.classes = known[0]

    @abstractmethod
    def load(self, split: str) -> Data:
        """The data of a split."""

    @property
    @abstractmethod
    def head(self) -> Head:
        """Makes the head from the widths of the stages."""

    @abstractmethod
    def loss(self, output: Tensor, truth: Tensor) -> Float[Tensor, ""]:
        """Training loss of a batch of outputs: a mean over pictures, so that a batch may be spread over processes."""

    @abstractmethod
    def distance(self, output: Tensor, teacher: Tensor) -> Float[Tensor, ""]:
        """Loss of outputs beside those of a teacher of the same task."""

    @abstractmethod
    def answer(self, output: Tensor) -> Tensor:
        """What an output says."""

    def result(self, answer: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """An answer in the form of the truth, for pictures of another ``size`` (height, width) where that is given."""
        return answer

    @abstractmethod
    def meter(self, device: torch.device) -> Meter:
        """Counts results beside the truth."""

    @abstractmethod
    def error(self, metrics: dict[str, float]) -> float:
        """The number that training and search minimise."""

    @abstractmethod
    def illustrate(self, pictures: Float[Tensor, "B H W 3"], found: Tensor) -> Float[Tensor, "B H W 3"]:
        """Results, or the truth, as pictures in [0, 1]."""

    @property
    def meaning(self) -> str:
        """What outputs are, in words that two tasks share where they read them alike."""
        return f"{self.config.task} of {', '.join(self.classes)}"

    def mirrored(self, truth: Tensor) -> Tensor:
        """The truth of mirrored pictures."""
        return truth

    def write(self, folder: Path, name: str, picture: Float[Tensor, "H W 3"], found: Tensor) -> None:
        """Files of a result, without a batch axis; more of them where a task has a format of its own."""
        write_image(folder / f"{coloured(name)}.png", self.illustrate(picture[None], found[None])[0])

    # ---- what is the same for all of them

    def size(self, split: str) -> int:
        """How many pictures a split has."""
        return len(self.sets[split])

    def batch(
        self, split: str, index: Int[Tensor, "B"], device: torch.device, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "B H W 3"], Tensor]:
        """Pictures in [0, 1] and truth; augmented by draws from a generator on the CPU, where there is one."""
        pictures, truth = (values.to(device) for values in self.sets[split].take(index))
        pictures = pictures.float() / 255
        if generator is None or not self.config.augment:
            return pictures, truth
        pictures, flipped = augmented(pictures, generator)
        return pictures, torch.where(flipped.view(-1, *[1] * (truth.ndim - 1)), self.mirrored(truth), truth)

    @torch.no_grad()
    def evaluate(
        self,
        network: Network,
        genomes: Sequence[Sequence[int]],
        split: str,
        device: torch.device,
        reader: "Task | None" = None,
    ) -> list[dict[str, float]]:
        """Metrics of several architectures of a network over a split, in one pass over the data.

        ``reader``: the task that says what outputs mean; None: this one.
        """
        reader = reader or self
        network.eval()
        meters = [self.meter(device) for _ in genomes]
        for index in torch.arange(self.size(split)).split(CHUNK):
            pictures, truth = self.batch(split, index, device)
            for genome, meter in zip(genomes, meters, strict=True):
                if network.is_supernet:
                    network.activate(genome)
                meter.update(self.result(reader.answer(network(pictures))), truth)
        network.train()
        return [meter.compute() for meter in meters]

    @torch.no_grad()
    def predict(self, network: nn.Module, picture: Float[Tensor, "H W 3"]) -> Tensor:
        """The result of one picture of any size, at its size and without a batch axis."""
        planes, size = picture.permute(2, 0, 1)[None], (self.config.height, self.config.width)
        small = F.interpolate(planes, size, mode="bilinear", antialias=True).permute(0, 2, 3, 1)
        return self.result(self.answer(network(small)), (picture.shape[0], picture.shape[1]))[0]
