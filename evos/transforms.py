"""Target transforms: a monotone map from a signal in [0, 1] to what the network regresses, and its exact inverse.

A map is fitted to all values of a signal, all channels together. Its numbers are plain floats, fit for a checkpoint.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize_scalar
from torch import Tensor

from evos.errors import InputError, unknown_name

# A signal whose values differ by less than this is constant; every transform then only centres it.
CONSTANT = 1e-9


class Transform(ABC):
    """A fitted map; both directions are elementwise, differentiable and keep dtype and device."""

    @abstractmethod
    def forward(self, x: Float[Tensor, "*N C"]) -> Float[Tensor, "*N C"]:
        """Signal values in the range that was fitted -> targets."""

    @abstractmethod
    def inverse(self, y: Float[Tensor, "*N C"]) -> Float[Tensor, "*N C"]:
        """Targets or network outputs -> signal values, the exact inverse of `forward`.

        An affine map extends linearly outside the range of the targets. Any other map has no inverse there:
        its argument is clamped to [-1, 1] first, so the result is finite for every output but NaN.
        """

    @property
    def derivative(self) -> float | None:
        """d(target)/d(signal) where the map is affine (a residual divided by it is in signal units), else None."""
        return None

    def state_dict(self) -> dict[str, str | float]:
        """The kind of map and its numbers, for `load_transform`."""
        return {"kind": _KINDS_BY_CLASS[type(self)], **asdict(self)}  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class PowerTransform(Transform):
    """y = 2 ((x - low) / span)^exponent - 1; exponent 1 is the affine map."""

    low: float
    span: float
    exponent: float = 1.0

    def forward(self, x: Float[Tensor, "*N C"]) -> Float[Tensor, "*N C"]:
        u = (x - self.low) / self.span
        return 2 * (u if self.exponent == 1 else u.clamp(0, 1) ** self.exponent) - 1

    def inverse(self, y: Float[Tensor, "*N C"]) -> Float[Tensor, "*N C"]:
        u = (y + 1) / 2
        if self.exponent != 1:
            # A root's derivative is infinite at 0; the smallest positive number keeps its gradient finite.
            u = u.clamp(torch.finfo(y.dtype).tiny, 1) ** (1 / self.exponent)
        return u * self.span + self.low

    @property
    def derivative(self) -> float | None:
        return 2 / self.span if self.exponent == 1 else None


@dataclass(frozen=True)
class BoxCoxTransform(Transform):
    """z = (t^exponent - 1) / exponent (log t at 0) of t = (x + shift) / scale, with [z_min, z_max] taken to [-1, 1]."""

    shift: float
    scale: float
    exponent: float
    z_min: float
    z_max: float

    def forward(self, x: Float[Tensor, "*N C"]) -> Float[Tensor, "*N C"]:
        z = _box_cox((x + self.shift) / self.scale, self.exponent)
        return 2 * (z - self.z_min) / (self.z_max - self.z_min) - 1

    def inverse(self, y: Float[Tensor, "*N C"]) -> Float[Tensor, "*N C"]:
        z = (y.clamp(-1, 1) + 1) / 2 * (self.z_max - self.z_min) + self.z_min
        if self.exponent == 0:
            return z.exp() * self.scale - self.shift
        # t > 0 keeps the power above 0, rounding may not: log(0) has no finite gradient.
        power = (z * self.exponent).clamp(min=torch.finfo(y.dtype).eps - 1)
        return (power.log1p() / self.exponent).exp() * self.scale - self.shift


_KINDS: dict[str, type[Transform]] = {"power": PowerTransform, "box_cox": BoxCoxTransform}
_KINDS_BY_CLASS = {kind: name for name, kind in _KINDS.items()}


class TransformConfig(ABC):
    """Options of one transform; `fit` sees all values of a signal that is not constant, sorted, in float64."""

    ends_suffice: ClassVar[bool] = False
    """Whether `fit` uses the first and the last value alone: others are then not given, nor sorted."""

    @abstractmethod
    def fit(self, values: Float[Tensor, " N"]) -> Transform:
        """The map for these values."""


@dataclass(frozen=True)
class MinMaxConfig(TransformConfig):
    """The signal's own range to [-1, 1]."""

    ends_suffice = True

    def fit(self, values: Float[Tensor, " N"]) -> Transform:
        return PowerTransform(*_low_and_span(values))


@dataclass(frozen=True)
class ZScoreConfig(TransformConfig):
    """Mean 0 and (population) standard deviation 1."""

    def fit(self, values: Float[Tensor, " N"]) -> Transform:
        mean, std = values.mean().item(), values.std(correction=0).item()
        return PowerTransform(low=mean - std, span=2 * std)


@dataclass(frozen=True)
class GammaConfig(TransformConfig):
    """The signal's own range to [0, 1], a fixed power, then to [-1, 1]."""

    ends_suffice = True
    exponent: float = 1.0
    """Power applied to the normalised signal; above 0. Below 1 spreads dark values, above 1 bright ones."""

    def __post_init__(self) -> None:
        _require("exponent", self.exponent, 0 < self.exponent < math.inf, "a number above 0")

    def fit(self, values: Float[Tensor, " N"]) -> Transform:
        return PowerTransform(*_low_and_span(values), self.exponent)


@dataclass(frozen=True)
class SymPowerConfig(TransformConfig):
    """A power that takes the signal's median to the middle, so that the targets lie symmetrically in [-1, 1].

    Source: "Enhancing Implicit Neural Representations via Symmetric Power Transformation" (arXiv 2412.09213): the
    power, its calibration at the edge and the adaptive buffer. Fractions and quantiles are taken from the values
    themselves, not from 256 bins, which makes the power of a symmetric signal exactly 1.
    """

    quantile: float = 0.5
    """Fraction of the values to lie below 0 after the power, before calibration; in (0, 1)."""
    tail: float = 0.01
    """Width of the two ends of the range (the paper's alpha) whose population sets the buffers; in (0, 0.5)."""
    buffer: float = 256.0
    """Buffer beyond an end if all values lay in its tail (the paper's k), in grey levels of 1/255; 0: no buffer."""
    edge: float = 0.05
    """Width of the end (the paper's beta) that the power must not overcrowd; in [0, 0.5), 0: no calibration."""
    max_exponent: float = 5.0
    """The power is kept between 1 / max_exponent and max_exponent; 1 or more."""

    def __post_init__(self) -> None:
        _require("quantile", self.quantile, 0 < self.quantile < 1, "a number in (0, 1)")
        _require("tail", self.tail, 0 < self.tail < 0.5, "a number in (0, 0.5)")
        _require("buffer", self.buffer, 0 <= self.buffer < math.inf, "a number of 0 or more")
        _require("edge", self.edge, 0 <= self.edge < 0.5, "a number in [0, 0.5)")
        _require("max_exponent", self.max_exponent, 1 <= self.max_exponent < math.inf, "a number of 1 or more")

    def fit(self, values: Float[Tensor, " N"]) -> Transform:
        low, span = _low_and_span(values)
        u = (values - low) / span
        left = self.buffer / 255 * _fraction(u < self.tail)
        right = self.buffer / 255 * _fraction(u > 1 - self.tail)
        return PowerTransform(low - left, span + left + right, self.power(u))

    def power(self, u: Float[Tensor, " N"]) -> float:
        """The calibrated power for sorted values that fill [0, 1]."""
        # A quantile on the very end asks for an infinite power: the limit takes over. torch.quantile takes 2^24 values.
        middle = min(max(float(np.quantile(u.cpu().numpy(), self.quantile)), 1e-12), 1 - 1e-12)
        exponent = math.log(0.5) / math.log(middle)
        # Away from 1 the same way for a power and its reciprocal: what squeezes values into the low or the high end.
        excess = max(exponent, 1 / exponent) - 1
        if self.edge > 0:
            excess *= 1 - min(1.0, self.crowding(u, exponent) / self.edge)
        bounded = min(1 + excess, self.max_exponent)
        return bounded if exponent > 1 else 1 / bounded

    def crowding(self, u: Float[Tensor, " N"], exponent: float) -> float:
        """Fraction of the values that the power adds to the end it moves values towards, 0 or more."""
        if exponent > 1:
            return _fraction(u**exponent < self.edge) - _fraction(u < self.edge)
        return _fraction(u**exponent > 1 - self.edge) - _fraction(u > 1 - self.edge)


@dataclass(frozen=True)
class BoxCoxConfig(TransformConfig):
    """Box and Cox's power at its maximum-likelihood exponent, then to [-1, 1].

    Source: Box and Cox, "An Analysis of Transformations" (1964), equation 1 and section 3. The exponent is searched for
    in [-5, 5].
    """

    shift: float = 0.1
    """Added to the signal to make it positive, as a fraction of its range; above 0."""

    def __post_init__(self) -> None:
        _require("shift", self.shift, 0 < self.shift < math.inf, "a number above 0")

    def fit(self, values: Float[Tensor, " N"]) -> Transform:
        _, span = _low_and_span(values)
        shifted = values + self.shift * span
        # The likelihood does not depend on the scale; with geometric mean 1 the power keeps its digits in float32.
        scale = shifted.log().mean().exp().item()
        exponent = box_cox_exponent(shifted / scale)
        z_min, z_max = _box_cox(shifted[[0, -1]] / scale, exponent).tolist()
        return BoxCoxTransform(self.shift * span, scale, exponent, z_min, z_max)


TRANSFORMS: dict[str, type[TransformConfig]] = {
    "min_max": MinMaxConfig,
    "z_score": ZScoreConfig,
    "sym_power": SymPowerConfig,
    "box_cox": BoxCoxConfig,
    "gamma": GammaConfig,
}


def fit_transform(config: TransformConfig, signal: Float[Tensor, "*N C"]) -> Transform:
    """Fit a transform to a signal in [0, 1].

    Raises InputError for a signal that is empty, not finite or outside [0, 1].
    """
    values = signal.detach().flatten()
    if len(values) == 0:
        raise InputError("signal", tuple(signal.shape), "at least one value")
    ends = torch.stack(values.aminmax()).double()
    first, last = ends.tolist()  # both NaN where any value is
    if not 0 <= first <= last <= 1:
        raise InputError("signal", f"values from {first} to {last}", "finite values in [0, 1]")
    if last - first < CONSTANT:
        return PowerTransform(low=first - 0.5, span=1.0)
    return config.fit(ends if config.ends_suffice else values.double().sort().values)


def load_transform(state: dict[str, str | float]) -> Transform:
    """The transform whose `state_dict` this is; raises InputError for anything else."""
    kind, numbers = str(state.get("kind")), {name: value for name, value in state.items() if name != "kind"}
    if kind not in _KINDS:
        raise unknown_name("transform kind", kind, _KINDS)
    fields = _KINDS[kind].__dataclass_fields__  # pyright: ignore[reportAttributeAccessIssue]
    if numbers.keys() != fields.keys() or not all(isinstance(number, float) for number in numbers.values()):
        raise InputError("transform state", str(state), f"the numbers {', '.join(fields)}")
    return _KINDS[kind](**numbers)


def box_cox_exponent(values: Float[Tensor, " N"], bound: float = 5.0) -> float:
    """The exponent in [-bound, bound] that makes sorted positive values most nearly Gaussian, by Brent's search.

    Every n-th value stands for its neighbours where there are many: 2^16 order statistics give three to four digits.
    """
    stride = math.ceil(len(values) / 2**16)
    chosen = values[stride // 2 :: stride]
    mean_log = chosen.log().mean()

    def log_likelihood(exponent: float) -> float:
        variance = _box_cox(chosen, exponent).var(correction=0)
        return ((exponent - 1) * mean_log - variance.log() / 2).item()

    found: Any = minimize_scalar(
        lambda exponent: -log_likelihood(exponent), bounds=(-bound, bound), method="bounded", options={"xatol": 1e-6}
    )
    return float(found.x)


def _box_cox(t: Float[Tensor, "*N"], exponent: float) -> Float[Tensor, "*N"]:
    # expm1 loses no digits where the exponent is close to 0
    return t.log() if exponent == 0 else (exponent * t.log()).expm1() / exponent


def _low_and_span(values: Float[Tensor, " N"]) -> tuple[float, float]:
    first, last = values[[0, -1]].tolist()
    return first, last - first


def _fraction(mask: Tensor) -> float:
    return mask.double().mean().item()


def _require(name: str, got: float, holds: bool, allowed: str) -> None:
    if not holds:
        raise InputError(name, got, allowed)
