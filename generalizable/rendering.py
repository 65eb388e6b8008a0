"""Volume rendering of a field along rays (Mildenhall et al., "NeRF", ECCV 2020, equation 3); pure functions.

Letters: B instances, R rays, S samples of a ray. A ray is its origin and its direction, 6 numbers; depths along it are
in lengths of the direction.
"""

from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

Field = Callable[[Float[Tensor, "_ N 3"]], Float[Tensor, "B N 4"]]
"""Raw colour and density of every instance, at points of its own or ("1 N 3") the same for all."""


def sample_depths(
    rays: Float[Tensor, "B R 6"], near: float, far: float, samples: int, *, jitter: bool
) -> Float[Tensor, "B R S"]:
    """Depths in [near, far], one in each of ``samples`` equal parts: its middle, or with ``jitter`` anywhere in it.

    Jitter comes from PyTorch's global generator.
    """
    shape = (*rays.shape[:2], samples)
    within = torch.rand(shape, device=rays.device) if jitter else torch.full(shape, 0.5, device=rays.device)
    return near + (far - near) * (torch.arange(samples, device=rays.device) + within) / samples


def points_along(rays: Float[Tensor, "B R 6"], depths: Float[Tensor, "B R S"]) -> Float[Tensor, "B R S 3"]:
    """origin + depth · direction."""
    origins, directions = rays[:, :, None].split(3, dim=-1)
    return origins + depths[..., None] * directions


def composite(
    raw: Float[Tensor, "B R S 4"], depths: Float[Tensor, "_ R S"], far: float, white_background: bool
) -> Float[Tensor, "B R 3"]:
    """Colours in [0, 1] of rays from the raw values at their samples: sigmoid is the colour, ReLU the density.

    A sample fills the ray from its depth to the next one's, the last to ``far``. TransINR's last sample is 1e-3 long
    instead; here a uniform fog is as dense as it should be, whatever the number of samples.
    """
    colour, density = torch.sigmoid(raw[..., :3]), torch.relu(raw[..., 3])
    ends = torch.cat([depths[..., 1:], torch.full_like(depths[..., :1], far)], dim=-1)
    thickness = density * (ends - depths)
    before = torch.cumsum(thickness, dim=-1) - thickness
    visible = torch.exp(-before) * -torch.expm1(-thickness)
    seen = (visible[..., None] * colour).sum(-2)
    return seen + torch.exp(-thickness.sum(-1, keepdim=True)) if white_background else seen


def render(
    field: Field,
    rays: Float[Tensor, "_ R 6"],
    near: float,
    far: float,
    samples: int,
    *,
    jitter: bool,
    white_background: bool,
) -> Float[Tensor, "B R 3"]:
    """Colours of each instance's rays, or ("1 R 6") of the same rays through all, from near to far."""
    depths = sample_depths(rays, near, far, samples, jitter=jitter)
    raw = field(rearrange(points_along(rays, depths), "b r s d -> b (r s) d"))
    return composite(rearrange(raw, "b (r s) c -> b r s c", s=samples), depths, far, white_background)
