"""Reconstructions to look at and listen to: at the training resolution and three times as fine."""

from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from evos.distributed import World
from evos.images import write_image
from evos.runs import EventLog
from evos.sounds import write_sound
from generalizable.data import Shards, Source
from generalizable.instances import Instance, stack
from generalizable.trainer import Trainer

SCALES = (1, 3)


def sheet(rows: list[Float[Tensor, "B C H W"]]) -> Float[Tensor, "HH WW C"]:
    """Pictures side by side, one row of them under another; what is not finite is black."""
    return rearrange(torch.stack(rows), "r b c h w -> (r h) (b w) c").nan_to_num(0, 1, 0).cpu()


def waveform(wave: Float[Tensor, " T"], height: int = 64, width: int = 256) -> Float[Tensor, "1 H W"]:
    """A sound as a picture: in every column, dark from its lowest to its highest value, 1 at the top."""
    both = torch.stack([wave, -wave]).clamp(-1, 1)
    highest, lowest = F.adaptive_max_pool1d(both, width) * torch.tensor([[1.0], [-1.0]], device=wave.device)
    level = torch.linspace(1, -1, height, device=wave.device)[:, None]
    step = 2 / (height - 1)
    inside = (level <= highest + step / 2) & (level >= lowest - step / 2)
    return 1 - inside.float()[None]


def show_source(
    trainer: Trainer,
    source: Source | Shards,
    *,
    folder: Path | None = None,
    events: EventLog | None = None,
    step: int = 0,
) -> None:
    """Truth above reconstruction for a few test instances: as files in ``folder``, or at 1× in the event log."""
    # Process 0 alone shows them.
    found = list(islice(source.once(World(), None, []), trainer.options.train.pictures))
    if not found:
        return
    instances = stack(found).to(trainer.device)
    with trainer.evaluating() as model:
        patterns = trainer.encode(model, instances, trainer.variants[-1])
        for scale in SCALES if folder else SCALES[:1]:
            views = trainer.held_out[:1]
            values = trainer.decode(model, patterns, instances, views=views, scale=scale)
            shown = as_pictures(trainer, instances, values, scale)
            if folder:
                write_image(folder / f"{source.name}_{scale}x.png", shown)
                if trainer.kind == "sound":
                    write_sounds(folder, source.name, values[..., 0], trainer.options.data.rate * scale, f"{scale}x")
            elif events:
                events.image(step, source.name, shown)
                if trainer.kind == "sound":
                    events.audio(step, source.name, values[0], trainer.options.data.rate)
    if folder and trainer.kind == "sound":
        write_sounds(folder, source.name, instances.signal[:, 0], trainer.options.data.rate, "truth")


def as_pictures(
    trainer: Trainer, instances: Instance, values: Float[Tensor, "B P C"], scale: int
) -> Float[Tensor, "H W C"]:
    """The sheet of truth (enlarged bicubically) and reconstruction."""
    if trainer.kind == "sound":
        truth = [waveform(wave) for wave in instances.signal[:, 0]]
        return sheet([torch.stack(truth), torch.stack([waveform(wave) for wave in values[..., 0]])])
    side = trainer.options.data.size * scale
    truth = instances.signal[:, trainer.held_out[0]] if trainer.kind == "views" else instances.signal
    if scale > 1:
        truth = F.interpolate(truth, (side, side), mode="bicubic", align_corners=False).clamp(0, 1)
    return sheet([truth, rearrange(values, "b (h w) c -> b c h w", h=side).clamp(0, 1)])


def write_sounds(folder: Path, name: str, waves: Float[Tensor, "B T"], rate: int, suffix: str) -> None:
    """Each sound as a 16-bit WAV file."""
    for i, wave in enumerate(waves.cpu()):
        write_sound(folder / f"{name}_{i}_{suffix}.wav", wave[:, None], rate, "PCM_16")
