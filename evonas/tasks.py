"""What networks are trained for: a head, a loss and a metric. Nothing else in the package asks which task it is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from evonas.data import DataConfig, DepthSet, ImageSet, OnDisk, batch, load_classes, load_split
from evonas.metrics import depth_metrics, valid_pixels
from evonas.supernet import ClassHead, DenseHead, Head, Network

CHUNK = 32
"""Pictures in one pass of an evaluation."""


class Task(ABC):
    """Data, head, loss and metric.

    Attributes:
        sets: the data by split: train, search (for choosing) and test (for reporting).
        metric: name of the error that training and search minimise.
    """

    sets: dict[str, Any]
    metric: str

    def __init__(self, config: DataConfig, splits: Sequence[str]) -> None:
        """Read these splits; raises InputError if they can't be read."""
        self.config = config
        self.sets = {split: self.load(split) for split in splits}

    @abstractmethod
    def load(self, split: str) -> Any:
        """The data of a split."""

    @property
    @abstractmethod
    def head(self) -> Head:
        """Makes the head from the widths of the stages."""

    @abstractmethod
    def loss(self, network: nn.Module, pictures: Tensor, truth: Tensor) -> Float[Tensor, ""]:
        """Training loss of a batch."""

    @abstractmethod
    def measure(self, network: nn.Module, pictures: Tensor, truth: Tensor) -> dict[str, float]:
        """Metrics of a batch, means over its pictures."""

    def counted(self, truth: Tensor) -> int:
        """How many pictures of a batch count in its metrics."""
        return len(truth)

    def size(self, split: str) -> int:
        """How many pictures a split has."""
        return len(self.sets[split])

    def batch(
        self, split: str, index: Tensor, device: torch.device, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Pictures in [0, 1] and truth; augmented where there is a generator."""
        augment = generator is not None and self.config.augment
        return batch(self.sets[split], index, device, generator, augment=augment)

    @torch.no_grad()
    def evaluate(
        self, network: Network, genomes: Sequence[Sequence[int]], split: str, device: torch.device
    ) -> list[dict[str, float]]:
        """Metrics of several architectures of a network over a split, in one pass over the data."""
        network.eval()
        totals: list[dict[str, float]] = [{} for _ in genomes]
        seen = 0
        for index in torch.arange(self.size(split)).split(CHUNK):
            pictures, truth = self.batch(split, index, device)
            if (count := self.counted(truth)) == 0:
                continue
            seen += count
            for genome, total in zip(genomes, totals, strict=True):
                if network.is_supernet:
                    network.activate(genome)
                for name, value in self.measure(network, pictures, truth).items():
                    total[name] = total.get(name, 0.0) + value * count
        network.train()
        return [{name: value / seen for name, value in total.items()} for total in totals]


class DepthTask(Task):
    """Depth from one picture: SILog loss, Abs Rel as the error."""

    metric = "abs_rel"

    def load(self, split: str) -> DepthSet | OnDisk:
        """RGB-D pictures."""
        return load_split(self.config, split)

    @property
    def head(self) -> Head:
        """One number a pixel."""
        return DenseHead

    def counted(self, truth: Tensor) -> int:
        """Those with a valid pixel."""
        return int(valid_pixels(truth, self.config).flatten(1).any(1).sum())

    def depth(self, network: nn.Module, pictures: Float[Tensor, "B H W 3"]) -> Float[Tensor, "B H W"]:
        """Depths in metres within the data's range, by a sigmoid of what the network gives."""
        low, high = self.config.min_depth, self.config.max_depth
        found = torch.sigmoid(network(pictures).float())
        return high * (found + (1 - found) * low / high)

    def loss(self, network: nn.Module, pictures: Tensor, truth: Tensor) -> Float[Tensor, ""]:
        """Scale-invariant logarithmic loss (Eigen et al. 2014): 10 √(mean d² - 0.85 mean(d)²) as in BTS.

        Means are over a picture, not over a batch, so that a batch may be spread over processes.
        """
        valid = (truth > self.config.min_depth) & (truth < self.config.max_depth)
        weight = valid / valid.sum((1, 2), keepdim=True).clamp(min=1)
        difference = torch.log(self.depth(network, pictures)) - torch.log(torch.where(valid, truth, 1.0))
        mean, square = ((weight * d).sum((1, 2)) for d in (difference, difference.square()))
        return 10 * (square - 0.85 * mean.square()).clamp(min=1e-6).sqrt().mean()

    def measure(self, network: nn.Module, pictures: Tensor, truth: Tensor) -> dict[str, float]:
        """Abs Rel, RMSE, δ and the others."""
        return depth_metrics(self.depth(network, pictures), truth, self.config)


class ClassificationTask(Task):
    """Classes of pictures: cross entropy with smoothed labels, the fraction of wrong answers as the error."""

    metric = "wrong"

    def load(self, split: str) -> ImageSet | OnDisk:
        """Pictures and labels."""
        return load_classes(self.config, split)

    @property
    def head(self) -> Head:
        """Scores of the classes."""
        return partial(ClassHead, classes=len(next(iter(self.sets.values())).classes))

    def loss(self, network: nn.Module, pictures: Tensor, truth: Tensor) -> Float[Tensor, ""]:
        """Cross entropy."""
        return F.cross_entropy(network(pictures).float(), truth, label_smoothing=0.1)

    def measure(self, network: nn.Module, pictures: Tensor, truth: Tensor) -> dict[str, float]:
        """The fraction whose highest score is not the right class."""
        return {self.metric: float((network(pictures).argmax(-1) != truth).float().mean())}


TASKS: dict[str, type[Task]] = {"depth": DepthTask, "classification": ClassificationTask}


def build_task(config: DataConfig, splits: Sequence[str] = ("train", "search")) -> Task:
    """The task that ``data.task`` names, with these splits read."""
    return TASKS[config.task](config, splits)
