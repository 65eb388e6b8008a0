"""What both instance pattern composers share (Kim et al., CVPR 2023, section 3.2): one layer V U, V the instance's."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from evos.config import check_range
from generalizable.base import Decoder, MLPConfig, MLPModel, Task


@dataclass(frozen=True)
class ComposerConfig(MLPConfig):
    """Options of the layer that is the instance's; the defaults are the paper's."""

    rank: int = 256
    """Rank of the instance's layer, and with a hypernetwork the number of weight tokens; at least 1."""
    modulated: int = 1
    """The layer of the field that is the instance's, counted from 0; below the field's layers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("rank", self.rank, 1)
        check_range("modulated", self.modulated, 0)


class Composer(MLPModel):
    """A field of which one layer's weights are V U: the pattern V is the instance's, all the rest is shared."""

    def __init__(self, config: ComposerConfig, task: Task) -> None:
        super().__init__(config, task, {config.modulated: config.rank})

    def decoder(self, coords: Float[Tensor, "_ K D"]) -> Decoder:
        """The field with V U as the weights of its instance layer."""
        index = self.config.modulated
        x = self.field.lift(coords, index)
        return lambda patterns: self.field(x, {index: patterns["pattern"]})
