"""Whole signals: how one of any shape is cut into instances of a model's, and put together from them again.

Pictures are cut into overlapping squares along their longer side, sounds into one stretch after another, channel by
channel. Everything follows from the ``Form``, which travels with the patterns. Letters: N instances, C channels.
"""

from dataclasses import dataclass
from math import inf

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from evos.errors import InputError


@dataclass(frozen=True)
class Form:
    """What a signal was before it was cut."""

    shape: tuple[int, ...]
    """(H, W) of a picture, (T, C) of a sound at its own rate, () of a scene."""
    rate: int = 0
    """Frames a second, of sounds."""
    peak: float = 1.0
    """What a sound's amplitudes were divided by."""

    def __str__(self) -> str:
        """In words."""
        if not self.rate:
            return " x ".join(map(str, self.shape))
        return f"{self.shape[0] / self.rate:.3g} s, {self.shape[1]} channel{'s' if self.shape[1] > 1 else ''}"


def is_like(form: Form, example: Form) -> bool:
    """Whether two forms are of the same kind of signal."""
    return len(form.shape) == len(example.shape) and form.rate >= 0 and (form.rate > 0) == (example.rate > 0)


def of_patterns(entry: object, example: Form) -> Form:
    """The form that a file of patterns describes, of the same kind of signal as ``example``.

    Raises:
        InputError: it describes none.
    """
    try:
        shape, rate, peak = (entry.get(name) for name in ("shape", "rate", "peak"))  # type: ignore[attr-defined]
        found = Form(tuple(int(side) for side in shape), int(rate), float(peak))
        if min(found.shape, default=1) > 0 and 0 < found.peak < inf and is_like(found, example):
            return found
    except (TypeError, ValueError, AttributeError, OverflowError):
        pass
    raise InputError("patterns", f"the form {entry}", "a file that this program wrote")


# ---- pictures


def reduced_shape(form: Form, size: int) -> tuple[int, int]:
    """The shape of a picture whose shorter side is reduced (or enlarged) to ``size``."""
    shorter = min(form.shape)
    height, width = (max(size, round(side * size / shorter)) for side in form.shape)
    return height, width


def corners(shape: tuple[int, int], size: int) -> list[tuple[int, int]]:
    """Upper left corners of squares of ``size`` that cover a picture whose shorter side they have."""
    longer, count = max(shape), count_corners(shape, size)
    starts = [round(i * (longer - size) / max(1, count - 1)) for i in range(count)]
    return [(start, 0) if shape[0] == longer else (0, start) for start in starts]


def count_corners(shape: tuple[int, int], size: int) -> int:
    """How many ``corners`` there are."""
    return -(-max(shape) // size)


def join_squares(squares: Float[Tensor, "N h w C"], form: Form, size: int, scale: int) -> Float[Tensor, "H W C"]:
    """A picture from its squares of ``size`` × ``scale``; where they overlap, each fades into the next."""
    if len(squares) == 1:
        return squares[0]
    side, shape = size * scale, reduced_shape(form, size)
    ramp = torch.minimum(torch.arange(1, side + 1), torch.arange(side, 0, -1)).to(squares)
    weight = torch.minimum(ramp[:, None], ramp)[..., None]
    total, sum_of_weights = squares.new_zeros(2, *(scale * length for length in shape), squares.shape[-1])
    for square, (top, left) in zip(squares, corners(shape, size), strict=True):
        place = slice(top * scale, top * scale + side), slice(left * scale, left * scale + side)
        total[place] += weight * square
        sum_of_weights[place] += weight
    return total / sum_of_weights


# ---- sounds


def stretches(form: Form, samples: int, rate: int) -> int:
    """How many stretches of ``samples`` at ``rate`` cover a channel of a sound."""
    return max(1, -(-length_at(form, rate) // samples))


def length_at(form: Form, rate: int) -> int:
    """Samples of each channel at ``rate``, as resampling rounds them."""
    return -(-form.shape[0] * rate // form.rate)


def join_stretches(values: Float[Tensor, "N n 1"], form: Form, rate: int, scale: int) -> Float[Tensor, "T C"]:
    """A sound at ``rate`` × ``scale`` from the stretches of its channels."""
    channels = rearrange(values, "(c piece) n 1 -> (piece n) c", c=form.shape[1])
    return channels[: scale * length_at(form, rate)] * form.peak
