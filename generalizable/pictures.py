"""Reconstructions to look at and listen to: at the training resolution and three times as fine."""

from itertools import islice
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from evos.distributed import World
from evos.images import write_image
from evos.runs import EventLog
from generalizable.codec import Codec
from generalizable.data import Shards, Source
from generalizable.instances import stack
from generalizable.tasks import SignalTask

SCALES = (1, 3)


def sheet(rows: list[Float[Tensor, "B C H W"]]) -> Float[Tensor, "HH WW C"]:
    """Pictures side by side, one row of them under another; what is not finite is black."""
    return rearrange(torch.stack(rows), "r b c h w -> (r h) (b w) c").nan_to_num(0, 1, 0).cpu()


def show_source(
    codec: Codec,
    source: Source | Shards,
    count: int,
    *,
    folder: Path | None = None,
    events: EventLog | None = None,
    step: int = 0,
) -> None:
    """Truth above reconstruction for ``count`` test instances: as files in ``folder``, or at 1× in the event log."""
    # Process 0 alone shows them.
    found = list(islice(source.once(World(), None, []), count))
    if not found:
        return
    instances, task = stack(found).to(codec.device), codec.task
    with codec.evaluating():
        patterns = codec.encode(instances)
        for scale in SCALES if folder else SCALES[:1]:
            values = codec.decode(patterns, instances, views=task.evaluation_views[:1], scale=scale)
            shown = sheet([task.true_pictures(instances, scale), task.pictures(values, scale)])
            if folder:
                write_image(folder / f"{source.name}_{scale}x.png", shown)
                write_recordings(task, folder, source.name, values, scale, f"{scale}x")
            elif events:
                events.image(step, source.name, shown)
                if task.sample_rate is not None:
                    events.audio(step, source.name, values[0], task.sample_rate)
    if folder:
        write_recordings(task, folder, source.name, task.cells(instances.signal), 1, "truth")


def write_recordings(
    task: SignalTask, folder: Path, name: str, values: Float[Tensor, "B P C"], scale: int, suffix: str
) -> None:
    """Each signal that can be listened to as a file of its own; of others none."""
    if task.sample_rate is None:
        return
    for i, recording in enumerate(values.cpu()):
        task.write(folder / f"{name}_{i}_{suffix}.{task.extension}", recording, scale)
