"""Compatibility fixes for nerfstudio 1.1.5 on torch >= 2.6 and without a network connection.

``allow_checkpoints`` is called when the plugin loads and counts for every method: it lets loads succeed that would
fail, and changes nothing else. LPIPS is made optional only while a pipeline of ours builds its model.
"""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch
import torchmetrics.image.lpip as lpip
from torch import Tensor
from torchmetrics import Metric

from evos.metrics import LPIPS_SMALLEST, lpips_network

if TYPE_CHECKING:
    from nerfstudio.pipelines.base_pipeline import VanillaPipeline as HostPipeline
else:
    HostPipeline = object


def allow_checkpoints() -> None:
    """Let torch load nerfstudio's checkpoints with ``weights_only=True``."""
    # Schedulers compute learning rates with NumPy, so checkpoints hold NumPy scalars.
    kinds = [type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int32, np.int64, np.bool_)]
    scalar: Any = np.float64(0).__reduce__()[0]  # its module differs between NumPy 1 and 2
    torch.serialization.add_safe_globals([scalar, np.dtype, *kinds])


def optional_lpips() -> AbstractContextManager[Any]:
    """A context in which the models that are built have an LPIPS that may be missing."""
    return mock.patch.object(lpip, "LearnedPerceptualImagePatchSimilarity", OptionalLpips)


class OptionalLpips(lpip.LearnedPerceptualImagePatchSimilarity):
    """LPIPS, or NaN if AlexNet's weights are unavailable (one attempt, one warning) or a side is below 32 px.

    Models construct torchmetrics' class at start-up, which downloads AlexNet and would fail without a network.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.has_weights = lpips_network() is not None
        if self.has_weights:
            super().__init__(*args, **kwargs)
        else:
            Metric.__init__(self)

    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:
        if not self.has_weights or min(img1.shape[-2:]) < LPIPS_SMALLEST:
            return img1.new_tensor(math.nan)
        return super().forward(img1, img2)


def without_missing_lpips(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics without LPIPS entries (``lpips``, ``fine_lpips``, ``lpips_std``) that are NaN."""
    return {name: value for name, value in metrics.items() if "lpips" not in name or not math.isnan(float(value))}


class MissingLpips(HostPipeline):
    """Mixin for a host pipeline: its evaluations leave LPIPS out where it can't be computed."""

    def get_eval_image_metrics_and_images(self, step: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The host's metrics and images."""
        metrics, images = super().get_eval_image_metrics_and_images(step)
        return without_missing_lpips(metrics), images

    def get_average_eval_image_metrics(
        self, step: int | None = None, output_path: Path | None = None, get_std: bool = False
    ) -> dict[str, float]:
        """The host's metrics."""
        return without_missing_lpips(super().get_average_eval_image_metrics(step, output_path, get_std))
