"""Patterns of whole signals, and the files that they travel in.

A file is in the safetensors format: a tensor "NAME:PART" of each signal's parts, "N ..." for its N instances, and as
metadata the model's name, a hash of the weights that made them and the form of every signal.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from evos.errors import InputError
from evos.runs.files import replace_file
from generalizable.codec import Codec
from generalizable.forms import Form, of_patterns

FORMAT = "evos patterns 2"
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


def interpolate(a: Encoded, b: Encoded, fraction: float) -> Encoded:
    """Patterns on the straight line from ``a`` (fraction 0) to ``b`` (fraction 1), in the form of ``a``.

    Raises:
        InputError: they are not of the same number of instances.
    """
    shapes = [{part: tuple(pattern.shape) for part, pattern in each.parts.items()} for each in (a, b)]
    if shapes[0] != shapes[1]:
        raise InputError("between", f"signals of different forms ({a.form}; {b.form})", "two of as many instances")
    return Encoded({part: torch.lerp(a.parts[part], b.parts[part], fraction) for part in a.parts}, a.form)


def write_patterns(path: Path, signals: Mapping[str, Encoded], codec: Codec) -> None:
    """Write a file of patterns that ``codec`` made, by name; raises InputError as ``replace_file``."""
    tensors = {
        f"{name}:{part}": item.contiguous() for name, each in signals.items() for part, item in each.parts.items()
    }
    forms = {name: asdict(each.form) for name, each in signals.items()}
    metadata = {"format": FORMAT, "model": codec.options.model.name, "weights": codec.fingerprint}
    replace_file(path, save(tensors, metadata | {"forms": json.dumps(forms, ensure_ascii=False)}))


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
    model = codec.options.model.name
    if metadata.get("format") not in (FORMAT, WITHOUT_WEIGHTS) or metadata.get("model") != model:
        shown = {name: text for name, text in metadata.items() if name != "forms"}
        raise InputError("patterns", f"{path} of {json.dumps(shown)}", f"patterns of this run's {model}")
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, part = key.rpartition(":")
        parts.setdefault(name, {})[part] = tensor
    if metadata["format"] == WITHOUT_WEIGHTS:
        print(
            f"notice: {path} does not say which weights made it: those of another run decode to noise", file=sys.stderr
        )
        form = codec.task.instance_form
        return {name: Encoded({part: item[None] for part, item in each.items()}, form) for name, each in parts.items()}
    if metadata.get("weights") != codec.fingerprint:
        got = f"{path}, made with the weights {str(metadata.get('weights'))[:12]}"
        raise InputError("patterns", got, f"those made with this run's, {codec.fingerprint[:12]}")
    try:
        forms = json.loads(metadata["forms"])
        found = {name: Encoded(each, of_patterns(forms[name])) for name, each in parts.items()}
    except (ValueError, KeyError, TypeError) as error:
        reason = error.got if isinstance(error, InputError) else f"its forms: {error!r}"
        raise InputError("patterns", f"{path} ({reason})", "a file that this program wrote") from None
    for name, each in found.items():
        if any(len(part) != codec.task.count_parts(each.form) for part in each.parts.values()):
            raise InputError(
                "patterns", f"{path}, where {name} does not fit its form", "a file that this program wrote"
            )
    return found
