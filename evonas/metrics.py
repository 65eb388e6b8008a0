"""Metrics of predicted depth, as the field reports them (Eigen et al. 2014; KITTI's SILog)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from evonas.data import DataConfig

CROPS = {
    "none": (0.0, 1.0, 0.0, 1.0),
    "eigen": (45 / 480, 471 / 480, 41 / 640, 601 / 640),
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
}
"""Evaluated part of a picture (top, bottom, left, right as fractions): Eigen's of NYU v2, Garg's of KITTI."""


def valid_pixels(truth: Float[Tensor, "B H W"], config: DataConfig) -> Bool[Tensor, "B H W"]:
    """Where depth was measured, within the data's range and crop."""
    height, width = truth.shape[1:]
    top, bottom, left, right = CROPS[config.crop]
    inside = torch.zeros(height, width, dtype=torch.bool, device=truth.device)
    inside[int(top * height) : int(bottom * height), int(left * width) : int(right * width)] = True
    return (truth > config.min_depth) & (truth < config.max_depth) & inside


def depth_metrics(
    prediction: Float[Tensor, "B H W"], truth: Float[Tensor, "B H W"], config: DataConfig
) -> dict[str, float]:
    """Abs Rel, Sq Rel (m), RMSE (m), RMSE of logarithms, log10, δ < 1.25, 1.25², 1.25³, and SILog (100 times).

    Predictions are clamped to the data's range. Each picture counts once; pictures without a valid pixel are left out.
    """
    valid = valid_pixels(truth, config)
    weight = valid.double() / valid.sum((1, 2), keepdim=True).clamp(min=1)
    truth = torch.where(valid, truth, 1.0).double()
    prediction = torch.where(valid, prediction, 1.0).double().clamp(config.min_depth, config.max_depth)

    def mean(values: Float[Tensor, "B H W"]) -> Float[Tensor, "B"]:
        return (weight * values).sum((1, 2))

    error, logs = prediction - truth, prediction.log() - truth.log()
    ratio = torch.maximum(prediction / truth, truth / prediction)
    found = {
        "abs_rel": mean(error.abs() / truth),
        "sq_rel": mean(error.square() / truth),
        "rmse": mean(error.square()).sqrt(),
        "rmse_log": mean(logs.square()).sqrt(),
        "log10": mean((prediction.log10() - truth.log10()).abs()),
        **{f"delta{n}": mean((ratio < 1.25**n).double()) for n in (1, 2, 3)},
        "silog": 100 * (mean(logs.square()) - mean(logs).square()).clamp(min=0).sqrt(),
    }
    seen = valid.any(2).any(1)
    return {name: float(values[seen].mean()) for name, values in found.items()}
