"""Instance pattern composers from a transformer (Kim et al., CVPR 2023, section 3): one low-rank layer per instance."""

from dataclasses import dataclass
from typing import ClassVar

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from evos.config import check_range
from generalizable.base import Data, Decoder, Model, Patterns, Task
from generalizable.models.hypernetwork import Hypernetwork, HypernetworkConfig, head


@dataclass(frozen=True)
class PatternComposerConfig(HypernetworkConfig):
    """Options of the pattern composer; the defaults are the paper's."""

    name: ClassVar[str] = "pattern_composer"

    rank: int = 256
    """Rank of the instance's layer, and number of weight tokens; at least 1."""
    modulated: int = 1
    """The layer of the field that is the instance's, counted from 0; below the field's layers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("rank", self.rank, 1)
        check_range("modulated", self.modulated, 0)


class PatternComposer(Model):
    """Every column of the pattern V comes from a token; U and all other layers are shared."""

    def __init__(self, config: PatternComposerConfig, task: Task) -> None:
        super().__init__(config, task, {config.modulated: config.rank})
        self.hypernetwork = Hypernetwork(config, task, config.rank)
        self.head = head(config.width, self.field.widths[config.modulated])

    def encode(self, data: Data, inner_steps: int | None = None) -> Patterns:
        """V from one pass through the transformer: {"pattern": "B I R"}."""
        return {"pattern": rearrange(self.head(self.hypernetwork(data)), "b r i -> b i r")}

    def decoder(self, coords: Float[Tensor, "_ K D"]) -> Decoder:
        """The field with V U as the weights of its instance layer."""
        index = self.config.modulated
        x = self.field.lift(coords, index)
        return lambda patterns: self.field(x, {index: patterns["pattern"]})
