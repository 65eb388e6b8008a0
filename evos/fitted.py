"""A fitted field as one file, and as a module: what a run on a signal leaves behind.

``field.safetensors`` holds the weights that were evaluated, and in its metadata a JSON text of all else: the field's
options, the target transform's numbers and the signal's shape. Nothing in it is executed.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from evos.coords import window
from evos.errors import InputError
from evos.fields import Field, FieldConfig, build_field, field_config
from evos.runs.files import replace_file
from evos.signals import Format, SoundFormat, format_from, format_values
from evos.transforms import Transform, load_transform

FILE = "field.safetensors"
"""Name of the file in a run's folder."""
KEY = "evos"
"""Of the metadata; its text names the version of the format."""
VERSION = 1
POINTS = 2**18
"""Points that ``sample`` evaluates at a time."""


class FittedField(nn.Module):
    """A field with the inverse of its target transform: coordinates to values of the signal, differentiable.

    Attributes:
        field: the network, a Field.
        config: its options.
        transform: from signal values to what the field predicts.
        shift: added to predictions; not 0 where only derivatives were supervised, which leave a constant open.
        shape: the signal's grid, without channels.
        channels: C.
        name: the signal's name.
        form: how a file of the signal is written; None for a picture.
    """

    def __init__(
        self,
        field: Field,
        config: FieldConfig,
        transform: Transform,
        shape: tuple[int, ...],
        channels: int,
        *,
        shift: Float[Tensor, " C"] | None = None,
        name: str = "",
        form: Format | None = None,
    ) -> None:
        super().__init__()
        self.field, self.config, self.transform = field, config, transform
        self.shape, self.channels, self.name, self.form = shape, channels, name, form
        self.shift: Tensor
        self.register_buffer("shift", torch.zeros(channels) if shift is None else shift)

    @property
    def kind(self) -> str:
        """picture, sound, video, volume or shape: a name in evos.signals.KINDS."""
        return "picture" if self.form is None else self.form.kind

    def forward(self, coords: Float[Tensor, "*N D"]) -> Float[Tensor, "*N C"]:
        """The signal's values, in [0, 1] up to the fit's error, at coordinates in [-1, 1]: see evos/coords.py."""
        return self.transform.inverse(self.field(coords) + self.shift)

    @torch.no_grad()
    def sample(self, shape: tuple[int, ...] | None = None) -> Float[Tensor, "*S C"]:
        """The values on a grid from corner to corner, None for the signal's own; without gradient."""
        shape = self.shape if shape is None else shape
        if len(shape) != len(self.shape):
            raise InputError("shape", shape, f"{len(self.shape)} axes, as the signal has")
        return self.window(shape, (0,) * len(shape), shape)

    @torch.no_grad()
    def window(self, shape: tuple[int, ...], start: tuple[int, ...], size: tuple[int, ...]) -> Float[Tensor, "*S C"]:
        """The values on a box of ``size`` within the grid of ``shape``, without gradient: ``evos.coords.window``."""
        places = window(shape, start, size, self.shift.device)
        return torch.cat([self(piece) for piece in places.split(POINTS)]).unflatten(0, size)


def save_field(path: str | Path, fitted: FittedField) -> None:
    """Write a fitted field to a file, atomically; raises InputError where the disk is full or can't be written."""
    about = {
        "version": VERSION,
        "field": {"name": fitted.config.name, **asdict(fitted.config)},
        "transform": fitted.transform.state_dict(),
        **{key: getattr(fitted, key) for key in ("shape", "channels", "name")},
        "form": format_values(fitted.form),
    }
    weights = {"shift": fitted.shift, **{f"field.{n}": weight for n, weight in fitted.field.state_dict().items()}}
    # Complex weights as pairs of numbers, which every reader of the format knows.
    plain = {n: (torch.view_as_real(w) if w.is_complex() else w).contiguous().cpu() for n, w in weights.items()}
    replace_file(path, save(plain, {KEY: json.dumps(about)}))


def format_of(about: dict[str, Any]) -> Format | None:
    """The format that a file's metadata describe; of a sound, files that know no formats have its rate and peak."""
    if about.get("form") is not None:
        return format_from(about["form"])
    return None if about.get("rate") is None else SoundFormat(about["rate"], "PCM_16", "wav", about["peak"])


def load(run: str | Path, *, device: str | torch.device = "cpu") -> FittedField:
    """The fitted field of a finished run on a signal.

    Args:
        run: the run's folder, or a field.safetensors.
        device: where it is put.

    Raises:
        InputError: there is no such file, or it is damaged, not written by evos, or of another version.
    """
    path = Path(run) / FILE if Path(run).is_dir() else Path(run)
    allowed = f"a finished run of evos fit, or its {FILE}"
    if not path.is_file():
        raise InputError("run", f"{path}, which is not there", allowed)
    try:
        with safe_open(path, framework="pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {})[KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)
        if about["version"] != VERSION:
            raise InputError("run", f"{path} of version {about['version']}", f"version {VERSION}")
        options = dict(about["field"])
        config = field_config(options.pop("name"), options)
        shape, channels = tuple(about["shape"]), int(about["channels"])
        field = build_field(config, len(shape), channels, seed=0)
        own = field.state_dict()
        weights = {name: tensors[f"field.{name}"] for name in own}
        field.load_state_dict({n: torch.view_as_complex(w) if own[n].is_complex() else w for n, w in weights.items()})
        fitted = FittedField(
            field,
            config,
            load_transform(about["transform"]),
            shape,
            channels,
            shift=tensors["shift"],
            name=about["name"],
            form=format_of(about),
        )
    except InputError:
        raise
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise InputError("run", f"{path} ({reason})", f"{allowed}, intact") from None
    return fitted.to(device)
