"""Patterns of whole signals, and the files that they travel in.

A file is in the safetensors format: a tensor "NAME:PART" of each signal's parts, "N ..." for its N instances, and as
metadata the model's name, a hash of the weights that made them and the form of every signal. Quantised patterns are one
entropy code for each part of all signals, and names and forms are compressed.
"""

import json
import math
import sys
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from evos.errors import InputError
from evos.runs.files import replace_file
from generalizable.codec import Codec
from generalizable.forms import Form, of_patterns
from generalizable.quantised import Steps, entropy_code, entropy_decode, fit_steps

FORMAT = "evos patterns 2"
QUANTISED = "evos quantised patterns 1"
WITHOUT_WEIGHTS = "evos patterns 1"
"""The format of files that say neither which weights made them nor forms: each signal is one instance."""


@dataclass(frozen=True)
class Encoded:
    """A signal as patterns: ``parts`` of its N instances, each "N ...", and how they are put together."""

    parts: dict[str, Tensor]
    form: Form

    @property
    def numbers(self) -> int:
        """How many numbers it is represented by."""
        return sum(part.numel() for part in self.parts.values())

    @property
    def vectors(self) -> Float[Tensor, "N F"]:
        """A row for each instance, all its parts one after another."""
        return torch.cat([part.flatten(1) for part in self.parts.values()], 1)


def interpolate(a: Encoded, b: Encoded, fraction: float) -> Encoded:
    """Patterns on the straight line from ``a`` (fraction 0) to ``b`` (fraction 1), in the form of ``a``.

    Raises:
        InputError: they are not of the same number of instances.
    """
    shapes = [{part: tuple(pattern.shape) for part, pattern in each.parts.items()} for each in (a, b)]
    if shapes[0] != shapes[1]:
        raise InputError("between", f"signals of different forms ({a.form}; {b.form})", "two of as many instances")
    return Encoded({part: torch.lerp(a.parts[part], b.parts[part], fraction) for part in a.parts}, a.form)


def fit_levels(signals: Mapping[str, Encoded], bits: int) -> dict[str, Steps]:
    """Levels of so many bits, 1 to 8, for the numbers of each part of all signals."""
    parts = next(iter(signals.values())).parts
    return {part: fit_steps(torch.cat([each.parts[part] for each in signals.values()]), bits) for part in parts}


def write_patterns(
    path: Path, signals: Mapping[str, Encoded], codec: Codec, levels: Mapping[str, Steps] | None = None
) -> None:
    """Write a file of patterns that ``codec`` made, by name.

    Args:
        path: the file, which is replaced.
        signals: of the same run.
        codec: of that run.
        levels: of each part, to which its numbers are quantised before they are entropy-coded; None: 32-bit floats.

    Raises:
        InputError: the file can't be written.
    """
    metadata = {"model": codec.options.model.name, "weights": codec.fingerprint}
    forms = {name: asdict(each.form) for name, each in signals.items()}
    if levels is not None:
        tensors, contents = quantised(signals, levels)
        contents = zlib.compress(json.dumps(contents | {"forms": forms}, ensure_ascii=False).encode(), 9)
        tensors["contents"] = torch.frombuffer(bytearray(contents), dtype=torch.uint8)
        replace_file(path, save(tensors, metadata | {"format": QUANTISED}))
        return
    tensors = {
        f"{name}:{part}": item.contiguous() for name, each in signals.items() for part, item in each.parts.items()
    }
    replace_file(path, save(tensors, metadata | {"format": FORMAT, "forms": json.dumps(forms, ensure_ascii=False)}))


def quantised(signals: Mapping[str, Encoded], levels: Mapping[str, Steps]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The codes of all parts of all signals by the part's name, and what is needed to read them."""
    codes, parts = {}, {}
    for part, steps in levels.items():
        values = torch.cat([each.parts[part] for each in signals.values()])
        numbers = steps.quantise(values).numpy().tobytes()
        codes[f"part:{part}"] = torch.frombuffer(bytearray(entropy_code(numbers)), dtype=torch.uint8)
        parts[part] = {**asdict(steps), "shape": list(values.shape[1:]), "sum": zlib.crc32(numbers)}
    return codes, {"parts": parts, "counts": {name: first_length(each) for name, each in signals.items()}}


def first_length(signal: Encoded) -> int:
    """N, the number of instances of a signal."""
    return len(next(iter(signal.parts.values())))


def read_quantised(tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The parts by signal, and the forms, of a file of quantised patterns.

    Raises:
        InputError, KeyError, TypeError or ValueError: it is damaged.
    """
    try:
        contents = json.loads(zlib.decompress(tensors["contents"].numpy().tobytes()))
    except zlib.error as error:
        raise ValueError(str(error)) from None
    counts: dict[str, int] = contents["counts"]
    found: dict[str, dict[str, Tensor]] = {name: {} for name in counts}
    for part, about in contents["parts"].items():
        shape = (sum(counts.values()), *about["shape"])
        levels = entropy_decode(tensors[f"part:{part}"].numpy().tobytes(), math.prod(shape))
        if zlib.crc32(levels) != about["sum"]:
            raise ValueError(f"the sum of {part}")
        steps = Steps(int(about["bits"]), float(about["low"]), float(about["high"]))
        values = steps.values(torch.frombuffer(bytearray(levels), dtype=torch.uint8).view(shape))
        for name, piece in zip(counts, values.split(list(counts.values())), strict=True):
            found[name][part] = piece
    return found, contents["forms"]


def read_patterns(path: Path, codec: Codec) -> dict[str, Encoded]:
    """What ``write_patterns`` wrote, for the same run's ``codec``.

    A file of the earlier format, which does not say which weights made it, is read with a notice on stderr.

    Raises:
        InputError: missing or damaged file, or patterns of another model or other weights.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError("patterns", f"{path} ({error})", "a file that this program wrote") from None
    model, form = codec.options.model.name, metadata.get("format")
    if form not in (FORMAT, QUANTISED, WITHOUT_WEIGHTS) or metadata.get("model") != model:
        shown = {name: text for name, text in metadata.items() if name != "forms"}
        raise InputError("patterns", f"{path} of {json.dumps(shown)}", f"patterns of this run's {model}")
    if form == WITHOUT_WEIGHTS:
        print(f"notice: {path} does not say which weights made it; others decode it to noise", file=sys.stderr)
        square = codec.task.instance_form
        return {
            name: Encoded({part: item[None] for part, item in each.items()}, square)
            for name, each in by_signal(tensors).items()
        }
    if metadata.get("weights") != codec.fingerprint:
        got = f"{path}, made with the weights {str(metadata.get('weights'))[:12]}"
        raise InputError("patterns", got, f"those made with this run's, {codec.fingerprint[:12]}")
    try:
        if form == QUANTISED:
            parts, forms = read_quantised(tensors)
        else:
            parts, forms = by_signal(tensors), json.loads(metadata["forms"])
        like = codec.task.instance_form
        found = {name: Encoded(each, of_patterns(forms[name], like)) for name, each in parts.items()}
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = error.got if isinstance(error, InputError) else f"its contents: {error!r}"
        raise InputError("patterns", f"{path} ({reason})", "a file that this program wrote") from None
    for name, each in found.items():
        if any(len(part) != codec.task.count_parts(each.form) for part in each.parts.values()):
            raise InputError(
                "patterns", f"{path}, where {name} does not fit its form", "a file that this program wrote"
            )
    return found


def by_signal(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Tensors called "NAME:PART" as parts by name."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, part = key.rpartition(":")
        found.setdefault(name, {})[part] = tensor
    return found
