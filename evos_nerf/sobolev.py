"""Sobolev supervision of a radiance field: the derivative of the rendered colour by the pixel's row and column.

Source: ECCV 2022, arXiv 2207.10395. A model that carries tangents (evos_nerf/tiny_nerf.py) gives the derivative itself,
in one forward pass; its target is a finite difference of the full-resolution picture (evos.derivatives).

Any other model renders the next pixel in each direction as well, three rays for one, and the difference in colour is
trained to be that of the picture. Forward mode cannot go through nerfacto: its density's activation is an autograd
function without a rule for it, tiny-cuda-nn's grids are one altogether, and the derivative of a hash grid jumps from
cell to cell, finer than pixels. The same jitter is used for all three rays: else it would be most of the difference.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from evos.config import check_choice, check_range
from evos.derivatives import SMOOTHING, spatial_gradient
from evos.errors import InputError
from evos.losses import derivative_loss
from evos.runs.seeding import rng_state, set_rng_state
from evos_nerf.datamanager import EvosDataManager
from evos_nerf.pixel_sampler import EvosPixelSampler
from evos_nerf.rendering import pinhole_tangents
from evos_nerf.tiles import TileGrid

SUPERVISION = ("val", "der", "val_der")


@dataclass(frozen=True)
class SobolevConfig:
    """Options of Sobolev supervision."""

    supervision: Literal["val", "der", "val_der"] = "val_der"
    """Train on colours (val), on their derivatives by pixel (der) or on both."""
    lambda_der: float = 0.0
    """Weight of the derivatives' loss beside that of the colours, at least 0; 0 is off."""
    der_operator: Literal["sobel", "diff", "scharr"] = "sobel"
    """Finite difference of the picture that a model which carries tangents (sobolev-nerf) is trained on; with the other
    models it is the difference to the next pixel, in picture and rendering alike."""

    def __post_init__(self) -> None:
        check_choice("supervision", self.supervision, SUPERVISION)
        check_range("lambda_der", self.lambda_der, 0)
        check_choice("der_operator", self.der_operator, SMOOTHING)
        if self.supervision == "der" and self.lambda_der == 0:
            raise InputError("lambda_der", self.lambda_der, "above 0 where derivatives are all there is to train on")

    @property
    def is_on(self) -> bool:
        """Whether derivatives are trained on."""
        return self.lambda_der > 0 and self.supervision != "val"


class DerivativeTerm:
    """The derivatives' part of a pipeline's loss.

    Args:
        config: options; on.
        model: of which the term listens to the rays it gets in training.
        datamanager: of the training views.
    """

    def __init__(self, config: SobolevConfig, model: nn.Module, datamanager: EvosDataManager) -> None:
        self.config, self.datamanager = config, datamanager
        self.is_carried = getattr(model, "carries_tangents", False)
        renderer = getattr(model, "renderer_rgb", None)
        # The colours that the model is trained to render: those of a picture with alpha are blended.
        self.blend = (lambda colours: colours[:, :3]) if renderer is None else renderer.blend_background
        model.register_forward_pre_hook(self._meet_rays)

    def _meet_rays(self, model: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Give the rays the tangents that a model carries, or note what its jitter begins with."""
        if not model.training:
            return
        if self.is_carried:
            assert arguments[0].camera_indices is not None
            cameras, index = self.datamanager.train_ray_generator.cameras, arguments[0].camera_indices[:, 0]
            focal = torch.cat([cameras.fx[index], cameras.fy[index]], dim=-1)
            tangents = pinhole_tangents(cameras.camera_to_worlds[index, :, :3], focal)
            arguments[0].metadata["pixel_tangents"] = rearrange(tangents, "k n d -> n k d")
        else:
            self._jitter = rng_state()

    def add_to(
        self, losses: dict[str, Tensor], outputs: dict[str, Any], model: nn.Module, sampler: EvosPixelSampler | None
    ) -> dict[str, Tensor]:
        """The losses of the rays last drawn with that of the derivatives, and without the colours' where it is all.

        Raises:
            InputError: cameras whose rays nerfstudio's own sampler draws.
        """
        if sampler is None or sampler.grid is None or sampler.last_selection is None:
            raise InputError("sobolev.lambda_der", self.config.lambda_der, "0 with equirectangular or fisheye cameras")
        points, pixels = self.datamanager.last_batch["indices"], sampler.pixels["image"]
        if self.is_carried:
            found = outputs["rgb_by_pixel"]
            target = picture_derivative(self.blend(pixels), sampler.grid, points, self.config.der_operator)
        else:
            found, target = self._differences(rendered(outputs), model, pixels, sampler.grid, points)
        weight = sampler.last_selection.weight
        loss = derivative_loss(found, target, None if weight is None else weight[0])
        kept = {k: v for k, v in losses.items() if not (self.config.supervision == "der" and k.startswith("rgb_loss"))}
        return kept | {"derivative_loss": self.config.lambda_der * loss}

    def _differences(
        self,
        colours: Float[Tensor, "N 3"],
        model: nn.Module,
        pixels: Float[Tensor, "M C"],
        grid: TileGrid,
        points: Int[Tensor, "N 3"],
    ) -> tuple[Float[Tensor, "N 3 2"], Float[Tensor, "N 3 2"]]:
        """Differences in rendered and in true colour to the next row and column; at the last: from the one before."""
        after, pairs = rng_state(), []
        true = self.blend(pixels[grid.flat(points)])
        for axis in (0, 1):
            step = torch.where(points[:, axis + 1] + 1 < grid.extent[points[:, 0], axis], 1, -1)
            moved = points.clone()
            moved[:, axis + 1] += step
            set_rng_state(self._jitter)
            there = rendered(model(self.datamanager.train_ray_generator(moved)))
            truth = self.blend(pixels[grid.flat(moved)])
            pairs.append((step[:, None] * (there - colours), step[:, None] * (truth - true)))
        set_rng_state(after)
        found, target = (torch.stack(kind, dim=-1) for kind in zip(*pairs, strict=True))
        return found, target


def rendered(outputs: dict[str, Any]) -> Float[Tensor, "N 3"]:
    """The colours a model shows: of a model of two levels, the fine one's."""
    return outputs["rgb"] if "rgb" in outputs else outputs["rgb_fine"]


def picture_derivative(
    pixels: Float[Tensor, "M 3"], grid: TileGrid, points: Int[Tensor, "N 3"], operator: str
) -> Float[Tensor, "N 3 2"]:
    """Derivatives by row and column of pictures at pixels (image, y, x), as evos.derivatives.spatial_gradient has them.

    From the 3 x 3 pixels around each, so that no derivative of a whole picture has to be kept.

    Args:
        pixels: of all pictures, in the grid's order.
        grid: knows where a picture's pixels are among them.
        points: which.
        operator: diff, sobel or scharr.
    """
    image, extent = points[:, 0], grid.extent[points[:, 0]]
    offsets = torch.cartesian_prod(*[torch.arange(-1, 2, device=points.device)] * 2)
    places = (points[:, None, 1:] + offsets).clamp(min=0).minimum(extent[:, None] - 1)
    around = torch.cat([image[:, None, None].expand(-1, 9, 1), places], dim=-1)
    patches = rearrange(pixels[grid.flat(around.flatten(0, 1))], "(n y x) c -> n c y x", y=3, x=3)
    return spatial_gradient(patches, operator)[..., 1, 1]
