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

    adapt_biases: bool = True
    """Biases take the inner steps, too, as in Tancik et al.; the code of the composer paper leaves them out."""


class LearnedInit(MLPModel):
    """All weights and biases of the field start from learned values and take gradient steps.

    Weights are normalised and the steps scaled as for the composer, so that the two compare. Without ``adapt_biases``
    all instances share the biases.
    """

    def __init__(self, config: LearnedInitConfig, task: Task) -> None:
        super().__init__(config, task)
        self.inner_steps = config.inner_steps

    def encode(self, data: Mapping[str, Tensor], inner_steps: int | None = None) -> Patterns:
        """What the inner loop adapts, after it: {"layer0.weight": "B I O", "layer0.bias": "B O", ...}."""
        initial, count = {}, len(data["target"])
        for index in range(len(self.field.layers)):
            layer = self.field.layer(index)
            initial[f"layer{index}.weight"] = repeat(layer.weight, "o i -> b i o", b=count)
            if self.config.adapt_biases:
                initial[f"layer{index}.bias"] = repeat(layer.bias, "o -> b o", b=count)
        return inner_loop(self, initial, data, inner_steps)

    def decoder(self, coords: Float[Tensor, "_ K D"]) -> Decoder:
        """The field with what is the instance's own."""
        x, layers = self.field.lift(coords, 0), range(len(self.field.layers))

        def decode(patterns: Patterns) -> Float[Tensor, "B K C"]:
            biases = {i: patterns[f"layer{i}.bias"] for i in layers} if self.config.adapt_biases else None
            return self.field(x, {i: patterns[f"layer{i}.weight"] for i in layers}, biases)

        return decode
