"""Pictures of what networks say, beside the truth."""

from collections.abc import Mapping
from typing import Any

import torch

from evonas.supernet import Network
from evonas.tasks import Task

SHOWN = 3
"""Pictures in a report."""


@torch.no_grad()
def draw_results(figure: Any, task: Task, networks: Mapping[str, tuple[Network, Task]], shown: int = SHOWN) -> None:
    """Test pictures, their truth and the result of each network, by its title, in columns of a matplotlib figure.

    Each network comes with the task that says what its outputs mean.
    """
    device = next(next(iter(networks.values()))[0].parameters()).device
    index = torch.linspace(0, task.size("test") - 1, min(shown, task.size("test"))).round().long()
    pictures, truth = task.batch("test", index, device)
    columns = {"picture": pictures, "truth": task.illustrate(pictures, truth)}
    for title, (network, reader) in networks.items():
        columns[title] = task.illustrate(pictures, task.result(reader.answer(network.eval()(pictures))))
    axes = figure.subplots(len(index), len(columns), squeeze=False)
    for column, (title, images) in enumerate(columns.items()):
        for row, image in enumerate(images.clamp(0, 1).cpu()):
            axes[row, column].imshow(image.numpy())
            axes[row, column].axis("off")
        axes[0, column].set_title(title, fontsize=9)
