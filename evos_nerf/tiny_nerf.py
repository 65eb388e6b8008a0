"""TinyNeRF, the radiance field of the Sobolev paper's inverse rendering, as a nerfstudio model.

One network (no coarse and fine), NDC rays, stratified samples; where rays have ``pixel_tangents``, the
derivatives of the rendered colour by pixel row and column are computed as well. Source: "Sobolev Training for
Implicit Neural Representations with Approximated Image Derivatives" (ECCV 2022, arXiv 2207.10395), inverse rendering,
and NeRF for the architecture of trunk and head. What differs: no skip connection, which the fields of evos/fields don't
have; instead ReLU layers use He initialization, which preserves the variance of the activations through all layers.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.model_components.losses import MSELoss
from nerfstudio.models.base_model import Model, ModelConfig
from nerfstudio.utils import colormaps
from torch import Tensor, nn

from evos.config import check_choice, check_range
from evos.derivatives import encode_with_tangents, value_and_tangents
from evos.errors import InputError
from evos.fields.mlp import PemlpConfig, PositionalEncoding, ReluConfig
from evos.fields.siren import SirenConfig
from evos.metrics import image_metrics
from evos_nerf.llff import LlffDataParserConfig
from evos_nerf.rendering import Rays, WithTangents, render, to_ndc

POINT_FREQUENCIES, VIEW_FREQUENCIES = 10, 4


@dataclass
class TinyNerfModelConfig(ModelConfig):
    """Options of TinyNeRF."""

    _target: type = field(default_factory=lambda: TinyNerfModel)
    """The class to instantiate."""
    enable_collider: bool = False
    """Off: rays extend to infinity."""
    activation: Literal["relu", "sine"] = "relu"
    """relu with positional encoding (10 octaves for points, 4 for directions), or sine (SIREN, omega 30) without."""
    layers: int = 8
    """Hidden layers of the trunk, whose input is the position alone; at least 1."""
    hidden_features: int = 256
    """Width of the trunk, at least 2; the head, one hidden layer that also receives the direction, has half of it."""
    samples: int = 128
    """Samples per ray, one in each of as many equal intervals; at least 2."""

    def __post_init__(self) -> None:
        check_choice("activation", self.activation, ("relu", "sine"))
        check_range("layers", self.layers, 1)
        check_range("hidden_features", self.hidden_features, 2)
        check_range("samples", self.samples, 2)


class TinyNerf(nn.Module):
    """Raw colour and density of a point (trunk) in a direction (trunk and head), values and tangents together."""

    def __init__(self, activation: str, layers: int, width: int) -> None:
        super().__init__()
        sine = activation == "sine"
        encoding = None if sine else PositionalEncoding(3, VIEW_FREQUENCIES)
        views = 3 if encoding is None else encoding.out_features
        self.view_encoding = encoding or nn.Identity()
        trunk, head = {"hidden_features": width, "hidden_layers": layers - 1}, {"hidden_features": width // 2}
        head["hidden_layers"] = 0
        if sine:
            self.trunk = SirenConfig(**trunk).build(3, width + 1)
            self.head = SirenConfig(**head).build(width + views, 3)
        else:
            self.trunk = PemlpConfig(**trunk, frequencies=POINT_FREQUENCIES).build(3, width + 1)
            self.head = ReluConfig(**head).build(width + views, 3)
            fields: tuple[Any, Any] = (self.trunk, self.head)
            for layer in (layer for field in fields for layer in field.layers[:-1]):
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")

    def forward(self, points: WithTangents, views: WithTangents) -> WithTangents:
        """Raw colours and densities "N S 4" at points "N S 3" in NDC, seen in unit directions "N 3"."""
        samples = points.value.shape[1]
        found = evaluate(self.trunk, points.map(lambda x: rearrange(x, "... n s d -> ... (n s) d")))
        encoded = WithTangents(*encode_with_tangents(self.view_encoding, *views))
        pairs = zip(found, encoded, strict=True)
        seen = WithTangents(
            *(torch.cat([a[..., 1:], repeat(b, "... n e -> ... (n s) e", s=samples)], -1) for a, b in pairs)
        )
        pairs = zip(evaluate(self.head, seen), found, strict=True)
        raw = WithTangents(*(torch.cat([colour, density[..., :1]], -1) for colour, density in pairs))
        return raw.map(lambda x: rearrange(x, "... (n s) c -> ... n s c", s=samples))


def evaluate(field: nn.Module, x: WithTangents) -> WithTangents:
    """A field's values at "N D", with tangents where the coordinates have them."""
    if len(x.tangents):
        return WithTangents(*value_and_tangents(field, *x))
    return WithTangents.constant(field(x.value))


def check_parser(datamanager: Any) -> None:
    """Raise InputError unless the data parser is LLFF's, the only one that provides NDC."""
    parser = datamanager.dataparser
    if not isinstance(parser, LlffDataParserConfig):
        raise InputError("data parser", type(parser).__name__, "llff-data: sobolev-nerf sees scenes from the front")


class TinyNerfModel(Model):
    """TinyNeRF in nerfstudio."""

    config: TinyNerfModelConfig
    propagates_tangents: ClassVar[bool] = True
    """Tells the pipeline to give the rays ``pixel_tangents`` and to expect ``rgb_by_pixel``."""

    def populate_modules(self) -> None:
        """The network and the loss."""
        super().populate_modules()
        self.ndc: Tensor
        self.register_buffer("ndc", self.kwargs["metadata"]["ndc"])
        self.field = TinyNerf(self.config.activation, self.config.layers, self.config.hidden_features)
        self.rgb_loss = MSELoss()

    def get_param_groups(self) -> dict[str, list[nn.Parameter]]:
        """All parameters in one group."""
        return {"fields": list(self.field.parameters())}

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Tensor]:
        """Colour, depth along the ray and, where rays have ``pixel_tangents`` "N 2 3", ``rgb_by_pixel`` "N 3 2"."""
        tangents = ray_bundle.metadata.get("pixel_tangents")
        directions = ray_bundle.directions * ray_bundle.metadata["directions_norm"]  # unnormalised, as their tangents
        with_tangents = WithTangents.constant(directions)
        if tangents is not None:
            with_tangents = WithTangents(directions, rearrange(tangents, "n k d -> k n d"))
        rays = to_ndc(ray_bundle.origins, with_tangents, self.ndc)
        depths = self.sample_depths(len(directions))
        colour, weights = render(self.field, rays, depths)
        outputs = {
            "rgb": colour.value,
            "depth": self.distance(ray_bundle.origins, rays, (weights * (1 - depths)).sum(-1, keepdim=True)),
            "accumulation": weights.sum(-1, keepdim=True),
        }
        if tangents is not None:
            outputs["rgb_by_pixel"] = rearrange(colour.tangents, "k n c -> n c k")
        return outputs

    def sample_depths(self, rays: int) -> Float[Tensor, "N S"]:
        """Depths in [0, 1), one in each of S equal intervals: uniformly random in training, else the midpoint."""
        shape, device = (rays, self.config.samples), self.device
        within = torch.rand(shape, device=device) if self.training else torch.full(shape, 0.5, device=device)
        return (torch.arange(self.config.samples, device=device) + within) / self.config.samples

    def distance(
        self, origins: Float[Tensor, "N 3"], rays: Rays, disparity: Float[Tensor, "N 1"]
    ) -> Float[Tensor, "N 1"]:
        """Distance along the ray, in the world's unit, at the mean disparity 1 - depth; y = near / (1 - depth)."""
        return (self.ndc[2] / disparity - origins[:, 1:2]) / rays.views.value[:, 1:2]

    def get_metrics_dict(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """PSNR of a batch of rays."""
        return {"psnr": -10 * (outputs["rgb"].detach() - colours(batch, outputs)).square().mean().log10()}

    def get_loss_dict(
        self, outputs: dict[str, Tensor], batch: dict[str, Any], metrics_dict: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The squared error of the colour; the pipeline adds that of its derivatives."""
        return {"rgb_loss": self.rgb_loss(colours(batch, outputs), outputs["rgb"])}

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """PSNR, SSIM and, where it can be had, LPIPS of a view; truth beside rendering, and the depth."""
        truth, found = colours(batch, outputs), outputs["rgb"]
        known = image_metrics(found, truth, with_lpips=True).items()
        metrics = {name: value for name, value in known if value is not None}
        depth = colormaps.apply_depth_colormap(outputs["depth"], accumulation=outputs["accumulation"])
        return metrics, {"img": torch.cat([truth, found], dim=1), "depth": depth}


def colours(batch: dict[str, Any], outputs: dict[str, Tensor]) -> Tensor:
    """A batch's true colours, on the device of the rendered ones."""
    return batch["image"][..., :3].to(outputs["rgb"])
