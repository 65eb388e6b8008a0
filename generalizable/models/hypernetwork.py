"""From a signal to weight tokens: patches of the signal and learned tokens go through a transformer together.

Source: Chen and Wang, "Transformers as Meta-Learners for Implicit Neural Representations" (TransINR, ECCV 2022),
section 3; Kim et al. (CVPR 2023), section 4: 6 blocks of width 768 with 12 heads. Letters: N tokens of the data, E
width.
"""

import json
import warnings
import zipfile
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from evos.config import check_range
from evos.errors import InputError
from generalizable.base import Data, ModelConfig, Task


@dataclass(frozen=True)
class HypernetworkConfig(ModelConfig):
    """Options of a model whose patterns come from a transformer."""

    patch: int | None = None
    """Side of a token's patch in pixels or samples, at least 1; none: 9, for sounds 200, for views 8."""
    gain: float = 1.0
    """Factor on the patches before they are embedded, above 0. Sounds are quiet (0.05 is usual) beside the places'
    embeddings (1): short trainings need 20 to hear them."""
    width: int = 768
    """Width of the transformer; a multiple of heads."""
    blocks: int = 6
    """Depth of the transformer; at least 1."""
    heads: int = 12
    """Attention heads; at least 1."""
    encoder: str | None = None
    """evonet:PATH, an encoder.pt2 that evonas/main.py export wrote: its features are the tokens of photos, and it
    trains with the model; none: patches. With it ``patch`` has no meaning."""
    view_places: bool = False
    """Support views have place embeddings of their own, as in the released code, and data.support_views of them (or
    fewer) can come; else all views share theirs, their rays tell them apart, and any number can come."""
    dropout: float = 0.0
    """Share of the blocks' outputs that is dropped in training, in [0, 1]; the released code has 0.1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("patch", self.patch, 1)
        check_range("gain", self.gain, 0, open_low=True)
        check_range("blocks", self.blocks, 1)
        check_range("heads", self.heads, 1)
        check_range("dropout", self.dropout, 0, 1)
        if self.width < 1 or self.width % self.heads:
            raise InputError("width", self.width, f"a multiple of heads, {self.heads}")


def patches(signal: Float[Tensor, "B C *S"], side: int) -> Float[Tensor, "B N F"]:
    """Patches of ``side`` cells along every axis, in C order; zeros on both ends make every axis a multiple of it.

    9 on 178² pads 1 pixel each way, as in the paper: 400 tokens.
    """
    missing = [-size % side for size in signal.shape[2:]]
    signal = F.pad(signal, [end for total in reversed(missing) for end in (total // 2, total - total // 2)])
    if signal.ndim == 3:
        return rearrange(signal, "b c (t p) -> b t (c p)", p=side)
    return rearrange(signal, "b c (h p) (w q) -> b (h w) (c p q)", p=side, q=side)


def tokens(data: Data, side: int) -> Float[Tensor, "B V N F"]:
    """Patches of images and sounds (V = 1), or of each support view, whose pixels carry their ray beside the colour."""
    if isinstance(data, Tensor):
        return patches(data, side)[:, None]
    rays = torch.cat([data["images"], data["origins"], data["directions"]], dim=2)
    found = patches(rearrange(rays, "b v c h w -> (b v) c h w"), side)
    return rearrange(found, "(b v) n f -> b v n f", b=len(rays))


def attend(
    q: Float[Tensor, "B h T d"], k: Float[Tensor, "B h U d"], v: Float[Tensor, "B h U d"]
) -> Float[Tensor, "B h T d"]:
    """softmax(q kᵀ / √d) v, whose weights "T U" are made anew in the backward pass instead of being kept.

    In bf16 on a CPU by plain products: the fused kernel there takes 2.7 × as long (PyTorch 2.11, 656 tokens).
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        attended: Any = checkpoint(plain_attention, q, k, v, use_reentrant=False, preserve_rng_state=False)
        return attended
    return F.scaled_dot_product_attention(q, k, v)


def plain_attention(q: Float[Tensor, "B h T d"], k: Float[Tensor, "B h U d"], v: Float[Tensor, "B h U d"]) -> Tensor:
    """``attend``, written out."""
    with torch.autocast(q.device.type, enabled=False):  # it would make the softmax, the largest tensor here, float32
        return torch.softmax(q * q.shape[-1] ** -0.5 @ k.mT, dim=-1) @ v


class Block(nn.Module):
    """A transformer block: attention, then a four times wider GELU layer, each after a LayerNorm and added."""

    def __init__(self, config: HypernetworkConfig) -> None:
        super().__init__()
        width, self.heads = config.width, config.heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "B T E"], kept: int) -> Float[Tensor, "B kept E"]:
        """The last ``kept`` tokens, having attended to all."""
        q, k, v = rearrange(self.qkv(self.norms[0](x)), "b t (n h d) -> n b h t d", n=3, h=self.heads)
        seen = attend(q[:, :, -kept:], k, v)
        x = x[:, -kept:] + self.dropout(self.out(rearrange(seen, "b h t d -> b t (h d)")))
        wide = self.widen(self.norms[1](x))
        # Made anew in the backward pass, too: the GELU's values, a sixth of what the transformer would keep.
        narrowed = checkpoint(lambda wide: self.narrow(F.gelu(wide)), wide, use_reentrant=False)
        return x + self.dropout(narrowed)


class Encoder(nn.Module):
    """A trunk found by architecture search, as a program that needs none of its code.

    Attributes:
        places: tokens of a picture.
        features: of a token.
    """

    def __init__(self, encoder: str, task: Task) -> None:
        """``encoder`` is evonet:PATH; raises InputError if that is none, or the task is not photos."""
        super().__init__()
        kind, _, path = encoder.partition(":")
        if kind != "evonet" or len(task.shape) != 2:
            raise InputError("encoder", encoder, "evonet:PATH, for photos")
        about = {"size": ""}
        try:
            if not zipfile.is_zipfile(path):  # torch prints a traceback of its own
                raise ValueError("no archive")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's loader wraps bytes that it only reads
                program = torch.export.load(path, extra_files=about)
            self.size = tuple(json.loads(about["size"]))
        except (OSError, RuntimeError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError("encoder", f"{path} ({reason})", "an encoder.pt2 of evonas/main.py export") from None
        self.program: Any = program.module()
        with torch.no_grad():
            found = self.program(torch.zeros(2, *self.size, 3))
        self.places, self.features = found.shape[1] * found.shape[2], found.shape[3]

    def train(self, mode: bool = True) -> "Encoder":
        """The same trunk: nothing in it differs in training, and an exported program refuses to be told."""
        self.training = mode
        return self

    def forward(self, data: Data) -> Float[Tensor, "B 1 N F"]:
        """Features of photos, brought to the size that the trunk knows."""
        assert isinstance(data, Tensor)
        planes = (
            F.interpolate(data, self.size, mode="bilinear", antialias=True) if data.shape[2:] != self.size else data
        )
        return rearrange(self.program(planes.permute(0, 2, 3, 1)), "b h w f -> b 1 (h w) f")


class Hypernetwork(nn.Module):
    """A transformer over the data's tokens and ``count`` learned ones, of which the latter come back.

    Place embeddings are those of a patch within its view, or (``view_places``) within the first, second, ... view.
    """

    def __init__(self, config: HypernetworkConfig, task: Task, count: int) -> None:
        super().__init__()
        kind = config.settings(task)
        self.side, self.gain = kind.patch, config.gain
        self.encoder = None if config.encoder is None else Encoder(config.encoder, task)
        places = prod(-(-size // self.side) for size in task.grid)
        places *= prod(task.shape[: -len(task.grid)]) if config.view_places else 1
        features = kind.channels * self.side**kind.grid_axes
        if self.encoder is not None:
            places, features = self.encoder.places, self.encoder.features
        self.embed = nn.Linear(features, config.width)
        self.places = nn.Parameter(torch.randn(places, config.width))
        self.queries = nn.Parameter(torch.randn(count, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))

    def forward(self, data: Data) -> Float[Tensor, "B count E"]:
        """The learned tokens as they come out."""
        found = tokens(data, self.side) if self.encoder is None else self.encoder(data)
        embedded = rearrange(self.embed(self.gain * found), "b v n e -> b (v n) e")
        count = embedded.shape[1]
        embedded = embedded + self.places.repeat(-(-count // len(self.places)), 1)[:count]
        learned = repeat(self.queries, "t e -> b t e", b=len(embedded))
        x = torch.cat([embedded, learned], dim=1)
        for block in self.blocks[:-1]:
            x = block(x, x.shape[1])
        return self.blocks[-1](x, len(self.queries))  # nobody reads the data's tokens after the last block


def head(width: int, out_features: int) -> nn.Module:
    """From an outgoing token to what it stands for."""
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, out_features))
