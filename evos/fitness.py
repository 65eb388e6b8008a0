"""Fitness of cells, from the cached signed residual alone.

The Laplacian is linear, L(prediction) - L(target) = L(residual), so one map of residuals (prediction minus target, in
the signal's [0, 1] units) gives both of EVOS' fitness functions. Source: EVOS (CVPR 2025), section 3.2.
"""

import torch.nn.functional as F
from einops import reduce
from jaxtyping import Float
from torch import Tensor

REC601 = (0.2989, 0.587, 0.114)


def grey(values: Float[Tensor, "*N C"]) -> Float[Tensor, "*N"]:
    """Rec. 601 luma of three channels; the mean of any other number of channels."""
    if values.shape[-1] == 3:
        # Plain numbers: a tensor of weights would be copied from the host at every call.
        red, green, blue = values.unbind(-1)
        return REC601[0] * red + REC601[1] * green + REC601[2] * blue
    return values.mean(-1)


def laplacian(maps: Float[Tensor, "*S"], axes: int) -> Float[Tensor, "*S"]:
    """Second differences summed over the last ``axes`` axes, zeros outside: [1 -2 1], [0 1 0; 1 -4 1; 0 1 0] in 2-D."""
    result = -2 * axes * maps
    for axis in range(1, axes + 1):
        # F.pad counts dimensions from the last.
        padded = F.pad(maps, (0, 0) * (axis - 1) + (1, 1))
        size = maps.shape[-axis]
        result = result + padded.narrow(-axis, 0, size) + padded.narrow(-axis, 2, size)
    return result


def mean_square(residual: Float[Tensor, "B P C"]) -> Float[Tensor, "B P"]:
    """Squared error averaged over channels."""
    return reduce(residual.square(), "b p c -> b p", "mean")


def low_fitness(residual: Float[Tensor, "B P C"]) -> Float[Tensor, "B P"]:
    """Squared error averaged over channels, of targets in [-1, 1] as in the paper: 4 × that of [0, 1] residuals."""
    return 4 * mean_square(residual)


def high_fitness(
    residual: Float[Tensor, "B P C"], shape: tuple[int, ...], axes: int, weight: float
) -> Float[Tensor, "B P"]:
    """``weight`` × squared Laplacian of the grey residual over the last ``axes`` axes of the grid ``shape``.

    The paper measures it on 0-255 images with weight 1e-5, which is 1e-5 · 255² = 0.65 on [0, 1] ones.
    """
    maps = grey(residual).unflatten(-1, shape)
    return weight * laplacian(maps, axes).square().flatten(1)
