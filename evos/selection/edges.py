"""Edge maps of the target, the priors of three strategies; computed once, before training."""

import torch
from einops import rearrange
from jaxtyping import Float
from kornia.filters import canny, sobel
from torch import Tensor

from evos.errors import InputError
from evos.fitness import grey
from evos.selection.base import Pool


def grey_maps(target: Float[Tensor, "R P C"], pool: Pool) -> Float[Tensor, "N 1 H W"]:
    """The grey target as images: a single line for a 1-D signal, one image per view for a stack of views."""
    maps = grey(target.float()).unflatten(-1, pool.shape)
    if pool.grid_axes == 1:
        return rearrange(maps.flatten(0, -2), "n t -> n 1 1 t")
    return rearrange(maps.flatten(0, -3), "n h w -> n 1 h w")


def gradient_magnitude(target: Float[Tensor, "R P C"], pool: Pool) -> Float[Tensor, "R P"]:
    """Sobel gradient magnitude of the grey target, each row's largest scaled to 1."""
    magnitude = sobel(grey_maps(target, pool), normalized=True).reshape(pool.rows, pool.cells)
    return magnitude / magnitude.amax(1, keepdim=True).clamp(min=1e-12)


def canny_edges(target: Float[Tensor, "R P C"], pool: Pool, low: float, high: float) -> Float[Tensor, "R P"]:
    """Canny edges (1 or 0) of the grey target in [0, 1], hysteresis between gradient magnitudes ``low`` and ``high``.

    Without smoothing first, as in OpenCV's; 1-D signals have no contours to follow and are thresholded at ``high``.
    """
    maps = grey_maps(target, pool)
    if pool.grid_axes == 1:
        step = torch.diff(maps, dim=-1, append=maps[..., -1:]).abs()
        return (4 * step > high).float().reshape(pool.rows, pool.cells)  # 4: the Sobel kernel's gain per unit step
    if min(maps.shape[-2:]) < 2:
        raise InputError(
            "target", f"an image of {maps.shape[-2]}x{maps.shape[-1]}", "at least 2x2 pixels, to have edges"
        )
    # A vanishing sigma makes kornia's smoothing the identity; its thresholds must lie inside (0, 1).
    low, high = (min(max(value, 1e-6), 1 - 1e-6) for value in (low, max(high, low)))
    _, edges = canny(maps, low, high, kernel_size=(3, 3), sigma=(0.1, 0.1))
    return edges.reshape(pool.rows, pool.cells)
