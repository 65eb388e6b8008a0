"""Locality-aware generalizable fields: each coordinate gathers what it needs from an instance's latent tokens.

Source: Lee et al., "Locality-Aware Generalizable Implicit Neural Representation" (NeurIPS 2023; "LA-IPC"), sections 3.2
and 3.3: a transformer makes latents of the instance; the encoded coordinate attends to them, and what it finds shifts
Fourier features of several bands, which are composed from coarse to fine. Letters: B instances, K points, D axes, R
latents, H hidden features, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from evos.config import check_range
from evos.errors import InputError
from evos.fields.instance_mlp import LogFourierFeatures
from generalizable.base import Data, Decoder, Model, Patterns, Task
from generalizable.models.hypernetwork import Hypernetwork, HypernetworkConfig, attend, head


@dataclass(frozen=True)
class LocalityAwareConfig(HypernetworkConfig):
    """Options of the locality-aware model; on images the defaults are the paper's: bands up to 32 and 128, query 16."""

    name: ClassVar[str] = "locality_aware"

    latents: int = 256
    """R, the tokens that an instance becomes; at least 1."""
    code: int | None = None
    """Numbers of each latent, at least 1: fewer make small patterns; none: as many as hidden_features."""
    bands: int = 2
    """Bands of Fourier features, each up to a quarter of the next one's highest frequency; at least 1."""
    query_frequency: float | None = None
    """Highest Fourier frequency, over the lowest, of the coordinates that attend, at least 1; none: frequency / 8."""
    decoder_heads: int = 2
    """Heads with which coordinates attend to latents; a divisor of hidden_features."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("latents", self.latents, 1)
        check_range("code", self.code, 1)
        check_range("bands", self.bands, 1)
        check_range("query_frequency", self.query_frequency, 1)
        check_range("decoder_heads", self.decoder_heads, 1)
        if self.hidden_features % self.decoder_heads:
            raise InputError(
                "decoder_heads", self.decoder_heads, f"a divisor of hidden_features, {self.hidden_features}"
            )


class LocalField(nn.Module):
    """From coordinates and latents to values.

    Args:
        query_encoding: of the coordinates that attend.
        band_encodings: from coarse to fine.
        hidden_features: H, the length of latents too.
        out_features: C.
        heads: of the attention.
        output_bias: constant added to the values, where they should start.
    """

    def __init__(
        self,
        query_encoding: LogFourierFeatures,
        band_encodings: Sequence[LogFourierFeatures],
        hidden_features: int,
        out_features: int,
        heads: int,
        output_bias: float,
    ) -> None:
        super().__init__()
        self.heads, self.output_bias = heads, output_bias
        self.query_encoding, self.band_encodings = query_encoding, nn.ModuleList(band_encodings)
        self.lift_query = nn.Linear(query_encoding.out_features, hidden_features)
        self.query = nn.Linear(hidden_features, hidden_features)
        self.key_value = nn.Linear(hidden_features, 2 * hidden_features)
        self.gathered = nn.Linear(hidden_features, hidden_features)
        widths = [encoding.out_features for encoding in band_encodings]
        self.lift_bands = nn.ModuleList(nn.Linear(width, hidden_features) for width in widths)
        self.shifts = nn.ModuleList(nn.Linear(hidden_features, hidden_features) for _ in widths)
        self.compose = nn.ModuleList(nn.Linear(hidden_features, hidden_features) for _ in widths[1:])
        self.outputs = nn.ModuleList(nn.Linear(hidden_features, out_features) for _ in widths)

    def lift(self, coords: Float[Tensor, "_ K D"]) -> tuple[Float[Tensor, "_ h K d"], list[Float[Tensor, "_ K H"]]]:
        """What of the coordinates needs no latents: the queries by head, and the features of every band."""
        query = self.query(torch.relu(self.lift_query(self.query_encoding(coords))))
        pairs = zip(self.lift_bands, self.band_encodings, strict=True)
        return self.by_head(query), [torch.relu(linear(encoding(coords))) for linear, encoding in pairs]

    def by_head(self, x: Float[Tensor, "B N H"]) -> Float[Tensor, "B h N d"]:
        """The channels of each head."""
        return rearrange(x, "b n (h d) -> b h n d", h=self.heads)

    def forward(
        self,
        query: Float[Tensor, "_ h K d"],
        features: Sequence[Float[Tensor, "_ K H"]],
        latents: Float[Tensor, "B R H"],
    ) -> Float[Tensor, "B K C"]:
        """Values of every instance, at its points or at the same ones of all: what ``lift`` made of the coordinates."""
        key, value = (self.by_head(part) for part in self.key_value(latents).chunk(2, dim=-1))
        found = attend(query.expand(len(latents), -1, -1, -1), key, value)
        gathered = self.gathered(rearrange(found, "b h k d -> b k (h d)"))
        shifted = [torch.relu(band + shift(gathered)) for band, shift in zip(features, self.shifts, strict=True)]
        x = shifted[0]
        values = self.outputs[0](x) + self.output_bias
        for finer, compose, output in zip(shifted[1:], self.compose, self.outputs[1:], strict=True):
            x = torch.relu(compose(finer + x))
            values = values + output(x)
        return values


class LocalityAware(Model):
    """The latents are the instance's; the attention and all layers are shared."""

    def __init__(self, config: LocalityAwareConfig, task: Task) -> None:
        super().__init__(config, task)
        kind = config.settings(task)

        def encoding(fraction: float) -> LogFourierFeatures:
            highest = kind.lowest * max(1.0, kind.frequency * fraction)
            return LogFourierFeatures(kind.axes, kind.features, kind.lowest, highest)

        query = config.query_frequency
        self.field = LocalField(
            encoding(1 / 8 if query is None else query / kind.frequency),
            [encoding(0.25**band) for band in reversed(range(config.bands))],
            config.hidden_features,
            kind.out_features,
            config.decoder_heads,
            kind.output_bias,
        )
        self.hypernetwork = Hypernetwork(config, task, config.latents)
        self.head = head(config.width, config.code or config.hidden_features)
        self.expand = nn.Identity() if config.code is None else nn.Linear(config.code, config.hidden_features)

    def encode(self, data: Data, inner_steps: int | None = None) -> Patterns:
        """The latents from one pass through the transformer: {"latents": "B R H"}, or as many numbers as ``code``."""
        return {"latents": self.head(self.hypernetwork(data))}

    def decoder(self, coords: Float[Tensor, "_ K D"]) -> Decoder:
        """The field, its coordinates lifted once."""
        query, features = self.field.lift(coords)
        return lambda patterns: self.field(query, features, self.expand(patterns["latents"]))
