"""What the models share: the task they are built for, the options of the field, and the protocol.

Letters: B instances, K points, D axes of a coordinate, C channels of the field, V support views, H × W pixels.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias

from jaxtyping import Float
from torch import Tensor, nn

from evos.config import check_choice, check_choices, check_range
from evos.errors import InputError
from evos.fields.instance_mlp import InitialWeights, InstanceMLP, LogFourierFeatures

Patterns: TypeAlias = dict[str, Tensor]
"""What an instance is represented by, each tensor "B ..."."""
Data: TypeAlias = Tensor | Mapping[str, Tensor]
"""What patterns are made from: see ``Model.encode``."""
Decoder: TypeAlias = Callable[[Patterns], Float[Tensor, "B K C"]]
"""From patterns to values."""


@dataclass(frozen=True)
class Kind:
    """What a kind of signal fixes: axes and channels of field and signal, and the paper's settings for it."""

    axes: int
    """D, axes of a coordinate of the field."""
    out_features: int
    """C, channels of the field (views: colour and density)."""
    grid_axes: int
    """Axes of the support signal that are cut into patches."""
    channels: int
    """Channels of the support signal (views: RGB, ray origin, ray direction)."""
    layers: int
    """Layers of the field, the last one included."""
    features: int
    """Fourier frequencies over all axes."""
    lowest: float
    """Lowest Fourier frequency in radians per coordinate unit."""
    frequency: float
    """Highest Fourier frequency over the lowest."""
    patch: int
    """Side of a token's patch in cells."""
    output_bias: float
    """Where the field's values start."""
    shape_axes: int
    """Axes of ``Task.shape``."""
    weight_tokens: int
    """TransINR's weight tokens a layer."""
    is_rendered: bool = False
    """Whether a value is that of a ray, rendered from the field's colours and densities."""


KINDS = {
    "image": Kind(2, 3, 2, 3, 5, 128, math.pi, 128.0, 9, 0.5, 2, 64),
    "sound": Kind(1, 1, 1, 1, 5, 2048, math.pi, 1024.0, 200, 0.0, 1, 64),
    "views": Kind(3, 4, 2, 9, 6, 60, 1.0, 256.0, 8, 0.0, 3, 32, is_rendered=True),
}


@dataclass(frozen=True)
class Task:
    """What is to be represented: ``shape`` is (H, W) of an image, (T,) of a sound, (V, H, W) of support views."""

    kind: str
    shape: tuple[int, ...]
    near: float = 0.0
    """Views: distance along a ray where the scene begins; at least 0."""
    far: float = 1.0
    """Views: distance along a ray where it ends; above near."""
    white_background: bool = True
    """Views: whether rays end on white, or on black."""

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        if len(self.shape) != KINDS[self.kind].shape_axes or min(self.shape) < 1:
            raise InputError("shape", self.shape, "(H, W) for images, (T,) for sounds, (V, H, W) for views")
        check_range("near", self.near, 0)
        check_range("far", self.far, self.near, open_low=True)

    @property
    def in_features(self) -> int:
        """D, axes of a coordinate of the field."""
        return KINDS[self.kind].axes

    @property
    def out_features(self) -> int:
        """C, channels of the field."""
        return KINDS[self.kind].out_features

    @property
    def is_rendered(self) -> bool:
        """Whether values are those of rays."""
        return KINDS[self.kind].is_rendered

    @property
    def grid(self) -> tuple[int, ...]:
        """The axes of the support signal that are cut into patches: (H, W) or (T,)."""
        return self.shape[-KINDS[self.kind].grid_axes :]


NAMES_OF_SETTINGS = ("layers", "features", "lowest", "frequency", "patch")
"""Settings of a kind of signal that a model's option of the same name replaces."""


@dataclass(frozen=True)
class ModelConfig:
    """Options of the field; none stands for the paper's setting, which depends on the kind of signal."""

    name: ClassVar[str] = ""
    adapts_in_inner_loop: ClassVar[bool] = False
    """Whether patterns come from gradient steps on an instance's points, not from a hypernetwork."""

    hidden_features: int = 256
    """Width of the field's layers; at least 1."""
    features: int | None = None
    """Fourier frequencies over all axes, at least one an axis; none: 128, for sounds 2048, for views 60."""
    frequency: float | None = None
    """Highest Fourier frequency over the lowest (half a period per coordinate unit; for views 1 radian), at least 1;
    none: 128, for sounds 1024, for views 256."""
    lowest: float | None = None
    """Lowest Fourier frequency in radians per coordinate unit, above 0; none: π, for views 1."""
    samples: int = 128
    """Points along a ray (views only); at least 1."""

    def __post_init__(self) -> None:
        check_range("hidden_features", self.hidden_features, 1)
        check_range("features", self.features, 1)
        check_range("frequency", self.frequency, 1)
        check_range("lowest", self.lowest, 0, open_low=True)
        check_range("samples", self.samples, 1)

    def settings(self, task: Task) -> Kind:
        """The task's kind, with the options that are given in place of the paper's settings."""
        given = {name: getattr(self, name, None) for name in NAMES_OF_SETTINGS}
        return replace(KINDS[task.kind], **{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class MLPConfig(ModelConfig):
    """Options of a field that is a plain chain of layers."""

    layers: int | None = None
    """Layers of the field, the last one included, at least 2; none: 5, for views 6."""
    initial: InitialWeights = "inputs"
    """How long the field's weights are at first: inputs (uniform in ±1 / √inputs of a layer, as PyTorch's), outputs (±1
    / √outputs: the released code of instance pattern composers) or normal (N(0, 1 / inputs): that of its Learned Init).
    Lengths don't change the values, but how far a step of the optimizer turns the weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("layers", self.layers, 2)
        check_choices(self)


def build_field(config: MLPConfig, task: Task, ranks: Mapping[int, int] | None = None) -> InstanceMLP:
    """The field of a model: ``ranks`` names the layers whose weights are a pattern times a shared factor."""
    kind = config.settings(task)
    for index in ranks or {}:
        check_range("modulated", index, 0, kind.layers - 1)
    encoding = LogFourierFeatures(kind.axes, kind.features, kind.lowest, kind.lowest * kind.frequency)
    return InstanceMLP(
        encoding,
        config.hidden_features,
        kind.layers,
        kind.out_features,
        ranks=ranks,
        initial=config.initial,
        output_bias=kind.output_bias,
    )


class Model(nn.Module, ABC):
    """One network for all instances of a task: ``encode`` makes an instance's patterns, ``decode`` its values."""

    inner_steps: int = 0
    """Gradient steps that ``encode`` takes; 0 for hypernetworks."""

    def __init__(self, config: Any, task: Task) -> None:
        super().__init__()
        self.config, self.task = config, task

    @abstractmethod
    def encode(self, data: Data, inner_steps: int | None = None) -> Patterns:
        """The patterns of B instances.

        Args:
            data: of a hypernetwork: images "B 3 H W" in [0, 1], sounds "B 1 T" in [-1, 1], or views as a mapping of
                images "B V 3 H W", origins and directions of their rays, both "B V 3 H W". Of an
                optimisation-based model: a mapping of coords "B N D" (views: rays, as for ``predict``) and target
                "B N C", and if wanted the points' weight "B N" and a factor on each instance's rate "B".
            inner_steps: instead of the config's; hypernetworks take none.
        """

    @abstractmethod
    def decoder(self, coords: Float[Tensor, "_ K D"]) -> Decoder:
        """``decode`` at fixed coordinates: what does not depend on the patterns is computed here, once."""

    def decode(self, patterns: Patterns, coords: Float[Tensor, "_ K D"]) -> Float[Tensor, "B K C"]:
        """The field's values at each instance's coordinates, or at the same ones of all if there is one row of them.

        Images in [0, 1] units and sounds in [-1, 1], neither clamped; views: raw colour and density, which
        ``rendering.composite`` makes colours of.
        """
        return self.decoder(coords)(patterns)


class MLPModel(Model):
    """A model whose field is a chain of layers; ``ranks`` as for ``build_field``."""

    def __init__(self, config: Any, task: Task, ranks: Mapping[int, int] | None = None) -> None:
        super().__init__(config, task)
        self.field = build_field(config, task, ranks)
