"""Losses: value, derivative (Sobolev), and EVOS' cross-frequency supervision."""

from jaxtyping import Float
from torch import Tensor

from evos.fitness import grey, laplacian
from evos.selection.base import Pool, Selection


def value_loss(
    prediction: Float[Tensor, "B K C"], target: Float[Tensor, "B K C"], selection: Selection
) -> Float[Tensor, ""]:
    """Mean squared error over the selected points, weighted where the selection has weights."""
    return selection.reduce((prediction - target).square().mean(-1))


def derivative_loss(
    jacobian: Float[Tensor, "*N C D"], target: Float[Tensor, "*N C D"], weight: Float[Tensor, "*N"] | None = None
) -> Float[Tensor, ""]:
    """Weighted mean over the points of the squared error summed over channels and axes.

    Source: Sobolev training (ECCV 2022, arXiv 2207.10395), whose derivatives are per pixel: scale the Jacobian of a
    field to the units of the target first.
    """
    error = (jacobian - target).square().sum((-2, -1))
    return (error if weight is None else error * weight).mean()


def cross_frequency_loss(
    cached: Float[Tensor, "B P #C"], selection: Selection, residual: Float[Tensor, "B K C"], pool: Pool
) -> Float[Tensor, ""]:
    """Mean squared Laplacian of the residual map at the selected points (EVOS, section 3.4).

    The map has this step's residuals, with gradient, at the selected points, and cached ones elsewhere.

    Args:
        cached: residuals of the last full evaluation, in [0, 1] units, without gradient; before it, one channel of 0.
        residual: residuals of this step's points, with gradient.

    On a key step (all points selected) the cache is not used. A cell selected twice has the mean of its residuals.
    Masked cells have residual 0, like cells outside the grid, and are excluded from the mean.

    Differs from the released code, which clamps the prediction to the valid range first and so loses the gradient
    outside it: here the Laplacian is taken of the residual, unclamped.
    """
    live = grey(residual)
    if selection.index is not None:
        live = grey(cached).scatter_reduce(1, selection.index, live, "mean", include_self=False)
    valid = None if pool.mask is None else pool.mask.to(live.device)[selection.rows]
    if valid is not None:
        live = live * valid
    error = laplacian(live.unflatten(-1, pool.shape), pool.grid_axes).square().flatten(1)
    if selection.index is not None:
        error = error.gather(1, selection.index)
        valid = None if valid is None else valid.gather(1, selection.index)
    return error.mean() if valid is None else (error * valid).sum() / valid.sum()
