"""What networks are trained for, each in a file of its own: data, head, loss and metric."""

from collections.abc import Sequence

from evonas.data import DataConfig
from evonas.tasks.base import Meter, Task
from evonas.tasks.classification import ClassificationTask
from evonas.tasks.depth import DepthTask
from evonas.tasks.detection import DetectionTask
from evonas.tasks.segmentation import SegmentationTask

__all__ = ["TASKS", "DepthTask", "Meter", "Task", "build_task"]

TASKS: dict[str, type[Task]] = {
    "depth": DepthTask,
    "segmentation": SegmentationTask,
    "detection": DetectionTask,
    "classification": ClassificationTask,
}


def build_task(
    config: DataConfig, splits: Sequence[str] = ("train", "search"), classes: Sequence[str] | None = None
) -> Task:
    """The task that ``data.task`` names, with these splits read; raises InputError as ``Task``."""
    return TASKS[config.task](config, splits, classes)
