"""Progress pictures: truth, fit, error and where the selector looked, side by side; and a run as an animation of them.

The frames of an animation are kept in the run folder while it trains, so that a run that was killed and resumed has
them all: a frame that is drawn twice is the same.
"""

import math
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from evos.images import read_image, reduce_image, write_image
from evos.runs import Run
from evos.runs.files import replace_file
from image_regression.report import Panel

FRAMES = 24
"""Pictures of an animation, so many or fewer in a short run."""
SIDE = 340
"""Width of a panel in pixels."""
MARGIN = 4
"""Pixels between panels."""
CAPTION = 16
"""Height of the line of text in pixels."""
FRAME_MS, LAST_MS = 250, 2500
"""How long a frame is shown, and the last one."""
ERROR_SCALE = 10
"""What errors are multiplied by to be seen, as in error_x10.png."""


def frame_steps(steps: int) -> list[int]:
    """The steps after which a frame is drawn: evenly in their logarithm, from the first to the last."""
    even = (round(math.exp(math.log(steps) * number / (FRAMES - 1))) for number in range(FRAMES))
    return sorted(set(even))


def frames_folder(run: Run) -> Path:
    """Where a run keeps its frames; it exists."""
    folder = run.path / "frames"
    folder.mkdir(exist_ok=True)
    return folder


def progress_picture(truth: Float[Tensor, "H W C"], panel: Panel, caption: str) -> Float[Tensor, "h w 3"]:
    """Truth, fit, error × 10 and selection beside each other, below a line of text."""
    error = (panel.reconstruction - truth).abs().mean(-1, keepdim=True) * ERROR_SCALE
    shown = [truth, panel.reconstruction, error, *([] if panel.selection is None else [panel.selection])]
    columns = [as_wide(picture.detach().cpu().float().clamp(0, 1)) for picture in shown]
    height = max(len(column) for column in columns)
    padded = [F.pad(column, (0, 0, 0, MARGIN, 0, height - len(column)), value=1.0) for column in columns]
    body = torch.cat(padded, dim=1)
    line = PIL.Image.new("RGB", (body.shape[1], CAPTION), "white")
    PIL.ImageDraw.Draw(line).text((2, 2), caption, fill="black")
    return torch.cat([torch.from_numpy(np.array(line)).float() / 255, body])


def as_wide(pixels: Float[Tensor, "H W C"]) -> Float[Tensor, "h w 3"]:
    """A picture of the panels' width: reduced, or enlarged without smoothing."""
    height, width = pixels.shape[:2]
    small = colours(reduce_image(pixels, max(1, round(max(height, width) * min(1, SIDE / width)))))
    if small.shape[1] >= SIDE:
        return small
    size = (max(1, round(height * SIDE / width)), SIDE)
    maps = F.interpolate(rearrange(small, "h w c -> 1 c h w"), size, mode="nearest")
    return rearrange(maps, "1 c h w -> h w c")


def colours(pixels: Float[Tensor, "H W C"]) -> Float[Tensor, "H W 3"]:
    """Grey as RGB; alpha left out."""
    return pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., :1].expand(-1, -1, 3)


def write_frame(run: Run, step: int, picture: Float[Tensor, "h w 3"]) -> None:
    """Keep the frame drawn after a step."""
    write_image(frames_folder(run) / f"{step:09d}.png", picture)


def write_animation(run: Run) -> None:
    """Write RUN/animation.gif of all frames, of which those of a run that was lengthened are not even in time."""
    files = sorted(frames_folder(run).glob("[0-9]*.png"))
    frames = [(read_image(file).pixels.numpy() * 255).round().astype(np.uint8) for file in files]
    if not frames:
        return
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_MS]
    data = iio.imwrite("<bytes>", frames, plugin="pillow", extension=".gif", duration=durations, loop=0)
    replace_file(run.path / "animation.gif", data)
