"""Learned Init (Tancik et al., "Learned Initializations for Optimizing Coordinate-Based ...", CVPR 2021): MAML."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from einops import repeat
from jaxtyping import Float
from torch import Tensor

from generalizable.base import Decoder, MLPModel, Patterns, Task
from generalizable.inner import inner_loop
from generalizable.models.meta_pattern_composer import InnerConfig


@dataclass(frozen=True)
class LearnedInitConfig(InnerConfig):
    """Options of Learned Init; the defaults are those of the composer paper's comparison."""

    name: ClassVar[str] = "learned_init"


class LearnedInit(MLPModel):
    """All weights and biases of the field start from learned values and take gradient steps.

    Weights are normalised and the steps scaled as for the composer, so that the two compare; the composer paper's code
    leaves the biases out of the inner loop, Tancik et al. do not.
    """

    def __init__(self, config: LearnedInitConfig, task: Task) -> None:
        super().__init__(config, task)
        self.inner_steps = config.inner_steps

    def encode(self, data: Mapping[str, Tensor], inner_steps: int | None = None) -> Patterns:
        """The weights after the inner loop: {"layer0.weight": "B I O", "layer0.bias": "B O", ...}."""
        initial, count = {}, len(data["target"])
        for index in range(len(self.field.layers)):
            layer = self.field.layer(index)
            initial[f"layer{index}.weight"] = repeat(layer.weight, "o i -> b i o", b=count)
            initial[f"layer{index}.bias"] = repeat(layer.bias, "o -> b o", b=count)
        return inner_loop(self, initial, data, inner_steps)

    def decoder(self, coords: Float[Tensor, "_ K D"]) -> Decoder:
        """The field with the instance's own weights and biases."""
        x, layers = self.field.lift(coords, 0), range(len(self.field.layers))
        return lambda patterns: self.field(
            x, {i: patterns[f"layer{i}.weight"] for i in layers}, {i: patterns[f"layer{i}.bias"] for i in layers}
        )
