"""What the media have in common: where the selector looked, pictures of it, and sizes in proportion."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from evos.images import write_image
from evos.metrics import psnr
from evos.runs import EventLog, Run
from image_regression.report import Panel
from image_regression.trainer import Fit


def visit_ratio(fit: Fit) -> Float[Tensor, "*s 1"]:
    """How often each cell of the training grid was selected, the most frequent 1."""
    visits = fit.visits.float()
    return (visits / visits.max().clamp(min=1)).view(*fit.pool.shape, 1)


def log_panel(events: EventLog, step: int, shown: Panel) -> None:
    """A panel's reconstruction and selection for TensorBoard."""
    events.image(step, "reconstruction", shown.reconstruction)
    if shown.selection is not None:
        events.image(step, "selection", shown.selection)


def write_panel(run: Run, name: str, shown: Panel) -> None:
    """A panel's reconstruction as ``name`` and its selection, among a run's images."""
    write_image(run.images / name, shown.reconstruction)
    if shown.selection is not None:
        write_image(run.images / "selection.png", shown.selection)


def montage(pictures: list[Float[Tensor, "_ _ C"]], *, ground: float = 1.0) -> Float[Tensor, "h w C"]:
    """Pictures in rows of two, a pixel apart, on a ground of that value; they may differ in size."""
    columns = min(2, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    height, width = (max(picture.shape[axis] for picture in pictures) + 1 for axis in (0, 1))
    sheet = pictures[0].new_full((rows * height - 1, columns * width - 1, pictures[0].shape[-1]), ground)
    for index, picture in enumerate(pictures):
        top, left = index // columns * height, index % columns * width
        sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return sheet


def colours(block: Float[Tensor, "*S C"]) -> Float[Tensor, "*S c"]:
    """The channels of values that can be shown: RGB, or the first of fewer."""
    return block[..., : 3 if block.shape[-1] >= 3 else 1]


def slices(block: Float[Tensor, "Z Y X C"]) -> list[Float[Tensor, "_ _ C"]]:
    """The three slices through the middle: across z, y and x."""
    z, y, x = (size // 2 for size in block.shape[:3])
    return [block[z], block[:, y], block[:, :, x]]


def held_out_psnr(fit: Fit, values: Float[Tensor, "P C"]) -> dict[str, float | None]:
    """PSNR of the cells that training left out, by name; nothing where it left none out."""
    factor = fit.options.run.factor
    if factor == 1:
        return {}
    left_out = torch.ones(fit.signal.shape, dtype=torch.bool, device=values.device)
    left_out[(slice(None, None, factor),) * left_out.ndim] = False
    chosen = left_out.flatten()
    return {"held_out_psnr": psnr(values[chosen][None], fit.values[chosen][None])}


def in_proportion(shape: tuple[int, ...], size: int | None) -> tuple[int, ...]:
    """A grid with its longest side of ``size``, None for its own, the others in proportion and at least 1."""
    longest = max(shape)
    return tuple(max(1, round(side * (size or longest) / longest)) for side in shape)
