"""Classes of whole pictures: what trunks are pretrained for. Layouts of ImageNet, or a folder a class."""

import json
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from evonas.data import Data, OnDisk, data_root, kept, limited, random_crops, read_colours, resized
from evonas.supernet import ClassHead, Head
from evonas.tasks.base import MeanMeter, Meter, Task
from evos.errors import InputError
from evos.folders import is_left_out
from evos.images import list_images
from evos.runs.files import replace_file


class ClassificationTask(Task):
    """Cross entropy with smoothed labels; the fraction of wrong answers is the error. An answer holds probabilities."""

    layouts = ("folders",)

    def load(self, split: str) -> Data:
        """Search and test are the folder val, or every tenth picture where there is none.

        Raises:
            InputError: no classes, other classes in val, a class without pictures, a damaged picture.
        """
        root = data_root(self.config, "pretrain.root")
        parts = {"train": root / "train", "search": root / "val", "test": root / "val"}
        own = all(path.is_dir() for path in parts.values())
        folder = parts[split] if own else root
        classes = class_folders(folder)
        if len(classes) < 2:
            raise InputError("pretrain.root", str(root), "a folder of at least two classes, each a folder of pictures")
        if own and classes != class_folders(parts["train"]):
            raise InputError("pretrain.root", f"{folder} with other classes than {parts['train']}", "the same classes")
        files: list[tuple[Path, int]] = []
        for label, name in enumerate(classes):
            paths = list_images(folder / name)
            if not own:
                paths = [path for i, path in enumerate(paths) if (i % 10 == 9) != (split == "train")]
            files += [(path, label) for path in paths]
        if not files:
            raise InputError("pretrain.root", str(root), "ten pictures or more of a class, or folders train and val")
        files = limited(files, self.config.limit)
        labels = torch.tensor([label for _, label in files])
        read = lambda i: (resized(read_colours(files[i][0]), self.config), labels[i])  # noqa: E731
        return kept(OnDisk(read, [path.stem for path, _ in files], classes), self.config)

    def batch(
        self, split: str, index: Int[Tensor, "B"], device: torch.device, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "B H W 3"], Tensor]:
        """As of all tasks; augmented pictures are a part of theirs."""
        pictures, truth = super().batch(split, index, device, generator)
        if generator is None or not self.config.augment:
            return pictures, truth
        return random_crops(pictures, generator), truth

    @property
    def head(self) -> Head:
        """Scores of the classes."""
        return partial(ClassHead, classes=len(self.classes))

    def loss(self, output: Float[Tensor, "B K"], truth: Int[Tensor, "B"]) -> Float[Tensor, ""]:
        """Cross entropy."""
        return F.cross_entropy(output.float(), truth, label_smoothing=0.1)

    def distance(self, output: Float[Tensor, "B K"], teacher: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
        """Kullback-Leibler divergence from the teacher's probabilities."""
        return F.kl_div(output.float().log_softmax(-1), teacher.float().softmax(-1), reduction="batchmean")

    def answer(self, output: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """Probabilities."""
        return output.float().softmax(-1)

    def result(self, answer: Float[Tensor, "B K"], size: tuple[int, int] | None = None) -> Int[Tensor, "B"]:
        """The likeliest class."""
        return answer.argmax(-1)

    def meter(self, device: torch.device) -> Meter:
        """The fraction whose likeliest class is not the right one."""
        return MeanMeter(lambda found, truth: {"wrong": float((found != truth).float().mean())})

    def error(self, metrics: dict[str, float]) -> float:
        """That fraction."""
        return metrics["wrong"]

    def illustrate(self, pictures: Float[Tensor, "B H W 3"], found: Int[Tensor, "B"]) -> Float[Tensor, "B H W 3"]:
        """The pictures themselves: a class has no picture."""
        return pictures

    def write(self, folder: Path, name: str, picture: Float[Tensor, "H W 3"], found: Int[Tensor, ""]) -> None:
        """NAME.json with the class."""
        replace_file(folder / f"{name}.json", json.dumps({"class": self.classes[int(found)]}).encode())


def class_folders(folder: Path) -> list[str]:
    """Names of the subfolders, without those that are hidden or that systems leave behind."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not is_left_out(path.name))
