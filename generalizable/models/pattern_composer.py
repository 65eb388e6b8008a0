"""Instance pattern composers from a transformer (Kim et al., CVPR 2023, section 3): one low-rank layer per instance."""

from dataclasses import dataclass
from typing import ClassVar

from einops import rearrange

from generalizable.base import Data, Patterns, Task
from generalizable.models.composer import Composer, ComposerConfig
from generalizable.models.hypernetwork import Hypernetwork, HypernetworkConfig, head


@dataclass(frozen=True)
class PatternComposerConfig(ComposerConfig, HypernetworkConfig):
    """Options of the pattern composer."""

    name: ClassVar[str] = "pattern_composer"


class PatternComposer(Composer):
    """Every column of the pattern V comes from a token; U and all other layers are shared."""

    def __init__(self, config: PatternComposerConfig, task: Task) -> None:
        super().__init__(config, task)
        self.hypernetwork = Hypernetwork(config, task, config.rank)
        self.head = head(config.width, self.field.widths[config.modulated])

    def encode(self, data: Data, inner_steps: int | None = None) -> Patterns:
        """V from one pass through the transformer: {"pattern": "B I R"}."""
        return {"pattern": rearrange(self.head(self.hypernetwork(data)), "b r i -> b i r")}
