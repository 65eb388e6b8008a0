"""Sobolev supervision of a radiance field: the derivative of the rendered colour by the pixel's row and column.

Source: ECCV 2022, arXiv 2207.10395. A model that propagates tangents (evos_nerf/tiny_nerf.py) computes the derivative
in one forward pass; its target is a finite difference of the full-resolution image (evos.derivatives).

With any other model the next pixel in each direction is rendered too, three rays in place of one, and the differences
in rendered colour are trained to match those of the image. nerfacto does not support forward mode: its density
activation and tiny-cuda-nn's grids are autograd functions without a forward-mode rule, and the derivative of a hash
grid is discontinuous between cells smaller than a pixel. All three rays share the jitter of their samples, which would
otherwise dominate the differences.
"""

from collections.abc import Callable
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
from evos.selection import Selection
from evos_nerf.datamanager import EvosDataManager
from evos_nerf.pixel_sampler import EvosPixelSampler
from evos_nerf.rays import RayPool
from evos_nerf.rendering import pinhole_tangents
from evos_nerf.tiles import TileGrid

SUPERVISION = ("val", "der", "val_der")


@dataclass(frozen=True)
class SobolevConfig:
    """Options of Sobolev supervision."""

    supervision: Literal["val", "der", "val_der"] = "val_der"
    """Train on colours (val), on their derivatives by pixel (der) or on both (val_der)."""
    lambda_der: float = 0.0
    """Weight of the derivative loss relative to the colour loss, at least 0; 0: off."""
    der_operator: Literal["sobel", "diff", "scharr"] = "sobel"
    """Finite difference of the image, the target of models that propagate tangents (sobolev-nerf); other models use the
    difference to the next pixel, of image and rendering alike."""

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
    """The derivative term of a pipeline's loss.

    Args:
        config: options, with ``is_on`` true.
        model: the term registers a hook before its forward pass.
        datamanager: provides the training views and their cameras.
    """

    def __init__(self, config: SobolevConfig, model: nn.Module, datamanager: EvosDataManager) -> None:
        self.config, self.datamanager = config, datamanager
        self.is_forward_mode = getattr(model, "propagates_tangents", False)
        renderer = getattr(model, "renderer_rgb", None)
        # Colours as the model's loss sees them: images with alpha are blended with the background.
        self.blend = (lambda colours: colours[:, :3]) if renderer is None else renderer.blend_background
        model.register_forward_pre_hook(self._before_forward)

    def _before_forward(self, model: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Attach pixel tangents for a model that propagates them; else save the generators' state before its jitter."""
        if not model.training:
            return
        if self.is_forward_mode:
            assert arguments[0].camera_indices is not None
            cameras, index = self.datamanager.train_ray_generator.cameras, arguments[0].camera_indices[:, 0]
            focal = torch.cat([cameras.fx[index], cameras.fy[index]], dim=-1)
            tangents = pinhole_tangents(cameras.camera_to_worlds[index, :, :3], focal)
            arguments[0].metadata["pixel_tangents"] = rearrange(tangents, "k n d -> n k d")
        else:
            self._jitter = rng_state()

    def add_to(
        self,
        losses: dict[str, Tensor],
        outputs: dict[str, Any],
        model: nn.Module,
        sampler: EvosPixelSampler | None,
        selection: Selection | None,
    ) -> dict[str, Tensor]:
        """Add the derivative loss of the rays last drawn; with supervision ``der`` it replaces the colour loss.

        ``selection``: what they were drawn from, with their loss weights.

        Raises:
            InputError: equirectangular cameras, whose rays nerfstudio's own sampler draws.
        """
        if sampler is None or sampler.grid is None or sampler.rays is None or selection is None:
            raise InputError("sobolev.lambda_der", self.config.lambda_der, "0 with equirectangular cameras")
        points, pixels = self.datamanager.last_batch["indices"], sampler.rays
        if self.is_forward_mode:
            found = outputs["rgb_by_pixel"]
            target = picture_derivative(
                lambda around: self.blend(pixels.colours(around)), sampler.grid, points, self.config.der_operator
            )
        else:
            found, target = self._differences(rendered(outputs), model, pixels, points)
        weight = selection.weight
        loss = derivative_loss(found, target, None if weight is None else weight[0])
        kept = {k: v for k, v in losses.items() if not (self.config.supervision == "der" and k.startswith("rgb_loss"))}
        return kept | {"derivative_loss": self.config.lambda_der * loss}

    def _differences(
        self,
        colours: Float[Tensor, "N 3"],
        model: nn.Module,
        pixels: RayPool,
        points: Int[Tensor, "N 3"],
    ) -> tuple[Float[Tensor, "N 3 2"], Float[Tensor, "N 3 2"]]:
        """Rendered and true differences in colour to the next row and column.

        From the previous one where the next is outside the image or masked; 0 where both are.
        """
        after, pairs = rng_state(), []
        true = self.blend(pixels.colours(points))
        for axis in (0, 1):
            one = torch.zeros_like(points[:1])
            one[:, axis + 1] = 1
            step = torch.where(pixels.is_seen(points + one), 1, -pixels.is_seen(points - one).long())
            moved = points + step[:, None] * one
            set_rng_state(self._jitter)
            there = rendered(model(self.datamanager.train_ray_generator(moved)))
            truth = self.blend(pixels.colours(moved))
            pairs.append((step[:, None] * (there - colours), step[:, None] * (truth - true)))
        set_rng_state(after)
        found, target = (torch.stack(kind, dim=-1) for kind in zip(*pairs, strict=True))
        return found, target


def rendered(outputs: dict[str, Any]) -> Float[Tensor, "N 3"]:
    """The rendered colours; of a model with coarse and fine levels, the fine ones."""
    return outputs["rgb"] if "rgb" in outputs else outputs["rgb_fine"]


def picture_derivative(
    colours: Callable[[Int[Tensor, "K 3"]], Float[Tensor, "K 3"]],
    grid: TileGrid,
    points: Int[Tensor, "N 3"],
    operator: str,
) -> Float[Tensor, "N 3 2"]:
    """Image derivatives by row and column at pixels (image, y, x), equal to evos.derivatives.spatial_gradient's.

    Computed from the 3 x 3 neighbourhood of each pixel, so that no derivative maps of whole images are stored.

    Args:
        colours: those of pixels (image, y, x).
        grid: knows how large each image is.
        points: the pixels (image, y, x) to differentiate at.
        operator: diff, sobel or scharr.
    """
    image, extent = points[:, 0], grid.extent[points[:, 0]]
    offsets = torch.cartesian_prod(*[torch.arange(-1, 2, device=points.device)] * 2)
    places = (points[:, None, 1:] + offsets).clamp(min=0).minimum(extent[:, None] - 1)
    around = torch.cat([image[:, None, None].expand(-1, 9, 1), places], dim=-1)
    patches = rearrange(colours(around.flatten(0, 1)), "(n y x) c -> n c y x", y=3, x=3)
    return spatial_gradient(patches, operator)[..., 1, 1]
