"""TransINR (Chen and Wang, ECCV 2022): a transformer modulates the weights of all layers."""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from evos.config import check_range
from evos.errors import InputError
from generalizable.base import KINDS, Data, Decoder, MLPConfig, MLPModel, Patterns, Task
from generalizable.models.hypernetwork import Hypernetwork, HypernetworkConfig, head


@dataclass(frozen=True)
class TransINRConfig(HypernetworkConfig, MLPConfig):
    """Options of TransINR; the defaults are those of the composer paper's comparison."""

    name: ClassVar[str] = "transinr"

    groups: int | None = None
    """Weight tokens a layer, at least 1 and a divisor of its width; none: 64, for views 32. A layer of fewer units has
    a token for each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("groups", self.groups, 1)


class TransINR(MLPModel):
    """Layer l of instance n has the weights base_l ∘ M_n, normalised: column j of M_n is the token of j's group.

    The units of a group are ``groups`` apart, as in the released code.
    """

    def __init__(self, config: TransINRConfig, task: Task) -> None:
        super().__init__(config, task)
        groups = config.groups or KINDS[task.kind].weight_tokens
        self.groups = [min(groups, outputs) for outputs in self.field.widths[1:]]
        if config.hidden_features % self.groups[0]:
            raise InputError("groups", groups, f"a divisor of hidden_features, {config.hidden_features}")
        self.hypernetwork = Hypernetwork(config, task, sum(self.groups))
        self.heads = nn.ModuleList(head(config.width, inputs) for inputs, _ in pairwise(self.field.widths))

    def encode(self, data: Data, inner_steps: int | None = None) -> Patterns:
        """The modulations from one pass through the transformer: {"layer0": "B I groups", ...}."""
        parts = self.hypernetwork(data).split(self.groups, dim=1)
        modulations = [to_weights(part) for to_weights, part in zip(self.heads, parts, strict=True)]
        return {f"layer{index}": rearrange(found, "b g i -> b i g") for index, found in enumerate(modulations)}

    def decoder(self, coords: Float[Tensor, "_ K D"]) -> Decoder:
        """The field with all layers modulated; the biases are shared."""
        x = self.field.lift(coords, 0)
        return lambda patterns: self.field(x, self.weights(patterns))

    def weights(self, patterns: Patterns) -> dict[int, Float[Tensor, "B I O"]]:
        """base ∘ M of every layer."""
        weights = {}
        for index, groups in enumerate(self.groups):
            repeats = self.field.widths[index + 1] // groups
            modulation = repeat(patterns[f"layer{index}"], "b i g -> b i (t g)", t=repeats)
            weights[index] = self.field.layer(index).weight.mT * modulation
        return weights
