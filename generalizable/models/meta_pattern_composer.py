"""Instance pattern composers by optimisation (Kim et al., CVPR 2023, algorithm 1): the inner loop fits V alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn

from evos.config import check_range
from generalizable.base import Decoder, Model, ModelConfig, Patterns, Task
from generalizable.inner import inner_loop


@dataclass(frozen=True)
class InnerConfig(ModelConfig):
    """Options of a model whose patterns come from gradient steps."""

    inner_steps: int = 2
    """Gradient steps on an instance's patterns; at least 0."""
    inner_lr: float = 0.003
    """Rate of these steps, on patterns of length 1; above 0."""
    first_order: bool = False
    """Take the inner gradients as constants in the outer step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("inner_steps", self.inner_steps, 0)
        check_range("inner_lr", self.inner_lr, 0, open_low=True)


@dataclass(frozen=True)
class MetaPatternComposerConfig(InnerConfig):
    """Options of the optimisation-based composer; the defaults are the paper's."""

    name: ClassVar[str] = "meta_pattern_composer"

    rank: int = 256
    """Rank of the instance's layer; at least 1."""
    modulated: int = 1
    """The layer of the field that is the instance's, counted from 0; below the field's layers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("rank", self.rank, 1)
        check_range("modulated", self.modulated, 0)


class MetaPatternComposer(Model):
    """V starts from a learned value and takes gradient steps; U and all other layers are learned in the outer step."""

    def __init__(self, config: MetaPatternComposerConfig, task: Task) -> None:
        super().__init__(config, task, {config.modulated: config.rank})
        self.inner_steps = config.inner_steps
        self.pattern = nn.Parameter(torch.randn(self.field.widths[config.modulated], config.rank))

    def encode(self, data: Mapping[str, Tensor], inner_steps: int | None = None) -> Patterns:
        """V after the inner loop: {"pattern": "B I R"}."""
        initial: Patterns = {"pattern": repeat(self.pattern, "i r -> b i r", b=len(data["target"]))}
        return inner_loop(self, initial, data, inner_steps)

    def decoder(self, coords: Float[Tensor, "_ K D"]) -> Decoder:
        """The field with V U as the weights of its instance layer."""
        index = self.config.modulated
        x = self.field.lift(coords, index)
        return lambda patterns: self.field(x, {index: patterns["pattern"]})
