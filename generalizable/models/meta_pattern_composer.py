"""Instance pattern composers by optimisation (Kim et al., CVPR 2023, algorithm 1): the inner loop adapts V alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import repeat
from torch import Tensor, nn

from evos.config import check_range
from generalizable.base import MLPConfig, Patterns, Task
from generalizable.inner import inner_loop
from generalizable.models.composer import Composer, ComposerConfig


@dataclass(frozen=True)
class InnerConfig(MLPConfig):
    """Options of a model whose patterns come from gradient steps."""

    adapts_in_inner_loop: ClassVar[bool] = True

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
class MetaPatternComposerConfig(ComposerConfig, InnerConfig):
    """Options of the optimisation-based composer."""

    name: ClassVar[str] = "meta_pattern_composer"


class MetaPatternComposer(Composer):
    """V starts from a learned value and takes gradient steps; U and all other layers are learned in the outer step."""

    def __init__(self, config: MetaPatternComposerConfig, task: Task) -> None:
        super().__init__(config, task)
        self.inner_steps = config.inner_steps
        self.pattern = nn.Parameter(torch.randn(self.field.widths[config.modulated], config.rank))

    def encode(self, data: Mapping[str, Tensor], inner_steps: int | None = None) -> Patterns:
        """V after the inner loop: {"pattern": "B I R"}."""
        initial: Patterns = {"pattern": repeat(self.pattern, "i r -> b i r", b=len(data["target"]))}
        return inner_loop(self, initial, data, inner_steps)
