"""Turn signals into patterns and back, with a trained model.

    python generalizable/encode.py run=runs/NAME input=FOLDER out=patterns.safetensors
    python generalizable/encode.py run=runs/NAME patterns=patterns.safetensors out=FOLDER scale=3
    python generalizable/encode.py run=runs/NAME patterns=patterns.safetensors between=a,b frames=9 out=FOLDER

The second decodes every pattern, at a grid ``scale`` times as fine as in training; the third walks from a to b in a
straight line between their patterns. Images become PNG, sounds WAV files. Scenes are encoded from their first support
views, and decoded from the cameras of ``input``.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from evos.command_line import parse_options
from evos.config import check_range
from evos.distributed import World
from evos.errors import InputError, exit_on_input_error
from evos.images import write_image
from evos.runs import load_checkpoint, read_json, resolve_device
from evos.runs.files import replace_file
from evos.sounds import write_sound
from generalizable.instances import Instance, load, stack
from generalizable.layouts import files, scenes
from generalizable.options import from_values
from generalizable.trainer import Trainer

FORMAT = "evos patterns 1"


@dataclass(frozen=True)
class EncodeConfig:
    """Options of encoding and decoding."""

    run: str = ""
    """Folder of the trained run."""

    input: str | None = None
    """Folder of signals to encode (pictures, sounds, scenes; at any depth); for views also the cameras to decode to."""

    patterns: str | None = None
    """File of patterns to decode."""

    out: str = ""
    """File of patterns (.safetensors) to write, or folder of decoded signals."""

    scale: int = 1
    """Decode on a grid this many times as fine, at least 1."""

    between: str | None = None
    """Two names of patterns, joined by a comma, to interpolate between; none: decode all."""

    frames: int = 9
    """Signals on the way from one to the other, both included, at least 2."""

    device: str = "auto"
    """auto (cuda where there is one), cpu, cuda or cuda:n."""

    def __post_init__(self) -> None:
        check_range("scale", self.scale, 1)
        check_range("frames", self.frames, 2)
        for name in ("run", "out"):
            if not getattr(self, name):
                raise InputError(name, "nothing", f"{name}=PATH")
        if self.input is None and self.patterns is None:
            raise InputError("input", None, "input=FOLDER to encode, or patterns=FILE to decode")


def open_trainer(run: str, device: str) -> Trainer:
    """The trained model of a run folder."""
    folder = Path(run)
    try:
        options = from_values(read_json(folder / "config.json")["options"])
    except (KeyError, TypeError):
        raise InputError("run", run, "the folder of a run of generalizable/main.py") from None
    # One row: nothing is trained here, so nothing need be remembered of any instance.
    train = replace(options.train, batch=1, cache_rows=1)
    trainer = Trainer(replace(options, train=train), World(), resolve_device(device), 1)
    trainer.load_shared_state(load_checkpoint(folder / "checkpoint.pt", device=trainer.device))
    return trainer


def find_signals(folder: str, kind: str) -> dict[str, Path]:
    """The signals in a folder by name: the path within it, without the extension where that is not needed."""
    root = Path(folder)
    if not root.is_dir():
        raise InputError("input", folder, "a folder of pictures, sounds or scenes")
    paths = scenes(root) if kind == "views" else files([root], kind)
    if not paths:
        raise InputError("input", f"{folder}, which holds none", f"a folder of {kind} files")
    short = [str(path.relative_to(root).with_suffix("")) for path in paths]
    return {
        name if short.count(name) == 1 else str(path.relative_to(root)): path
        for name, path in zip(short, paths, strict=True)
    }


def read_signals(trainer: Trainer, folder: str) -> Iterator[tuple[str, Instance]]:
    """Each signal as a batch of one; what can't be read is named on stderr and left out."""
    for name, path in find_signals(folder, trainer.kind).items():
        try:
            yield name, stack([load(path, 0, trainer.options.data)]).to(trainer.device)
        except InputError as error:
            print(f"skipped: {error}", file=sys.stderr)


def encode(trainer: Trainer, folder: str) -> dict[str, dict[str, Tensor]]:
    """Patterns of all signals in a folder, by name."""
    found = {}
    with trainer.evaluating() as model:
        for name, instance in read_signals(trainer, folder):
            patterns = trainer.encode(model, instance, trainer.variants[-1])
            found[name] = {part: pattern[0].float().cpu() for part, pattern in patterns.items()}
    if not found:
        raise InputError("input", folder, "a folder with at least one signal that can be read")
    return found


def write_patterns(path: Path, patterns: Mapping[str, Mapping[str, Tensor]], model: str) -> None:
    """A safetensors file: tensor "NAME:PART" of each instance's parts, with the model's name as metadata."""
    tensors = {f"{name}:{part}": item.contiguous() for name, parts in patterns.items() for part, item in parts.items()}
    replace_file(path, save(tensors, {"format": FORMAT, "model": model}))


def read_patterns(path: Path, model: str) -> dict[str, dict[str, Tensor]]:
    """What ``write_patterns`` wrote.

    Raises:
        InputError: missing or damaged file, or patterns of another model.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError("patterns", f"{path} ({error})", "a file that this program wrote") from None
    if metadata.get("format") != FORMAT or metadata.get("model") != model:
        raise InputError("patterns", f"{path} of {json.dumps(metadata)}", f"patterns of this run's {model}")
    patterns: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, part = key.rpartition(":")
        patterns.setdefault(name, {})[part] = tensor
    return patterns


def interpolate(a: Mapping[str, Tensor], b: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Patterns on the straight line from ``a`` (share 0) to ``b`` (share 1)."""
    return {part: torch.lerp(a[part], b[part], share) for part in a}


def decode(
    trainer: Trainer, parts: Mapping[str, Tensor], cameras: Instance | None, scale: int
) -> Float[Tensor, "*S C"]:
    """One signal: a picture "H W C", a sound "T 1", or all views of ``cameras`` side by side "H (V W) C"."""
    batched = {part: pattern[None].to(trainer.device) for part, pattern in parts.items()}
    views = list(range(trainer.options.data.views)) if trainer.kind == "views" else []
    with trainer.evaluating() as model:
        try:
            values = trainer.decode(model, batched, cameras, views=views, scale=scale)[0].cpu()
        except (KeyError, RuntimeError) as error:
            raise InputError("patterns", f"parts that don't fit ({error})", "patterns of this run's model") from None
    side = trainer.options.data.size * scale
    if trainer.kind == "sound":
        return values
    return rearrange(values, "(v h w) c -> h (v w) c", h=side, w=side)


def write_signal(trainer: Trainer, path: Path, values: Float[Tensor, "*S C"], scale: int) -> None:
    """A PNG or WAV file; ``path`` is its name without the extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if trainer.kind == "sound":
        write_sound(f"{path}.wav", values, trainer.options.data.rate * scale, "PCM_16")
    else:
        write_image(Path(f"{path}.png"), values)


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """The program."""
    config = parse_options(EncodeConfig, argv, "python generalizable/encode.py", __doc__ or "")
    trainer, out = open_trainer(config.run, config.device), Path(config.out)
    name = trainer.options.model.name
    if config.patterns is None:
        assert config.input is not None
        found = encode(trainer, config.input)
        write_patterns(out, found, name)
        numbers = sum(part.numel() for part in next(iter(found.values())).values())
        print(f"{len(found)} patterns of {numbers} numbers -> {out}")
        return
    patterns = read_patterns(Path(config.patterns), name)
    cameras = {}
    if trainer.kind == "views":
        if config.input is None:
            raise InputError("input", None, "the folder of scenes whose cameras are decoded to")
        cameras = dict(read_signals(trainer, config.input))
    if config.between is not None:
        ends = config.between.split(",")
        if len(ends) != 2 or not set(ends) <= set(patterns):
            raise InputError("between", config.between, f"two of {', '.join(sorted(patterns)[:12])}, joined by a comma")
        camera = cameras.get(ends[0]) or next(iter(cameras.values()), None)
        for frame in range(config.frames):
            parts = interpolate(patterns[ends[0]], patterns[ends[1]], frame / (config.frames - 1))
            write_signal(trainer, out / f"frame_{frame:03}", decode(trainer, parts, camera, config.scale), config.scale)
        print(f"{config.frames} signals from {ends[0]} to {ends[1]} -> {out}")
        return
    for title, parts in patterns.items():
        camera = cameras.get(title) or next(iter(cameras.values()), None)
        write_signal(trainer, out / title, decode(trainer, parts, camera, config.scale), config.scale)
    print(f"{len(patterns)} signals at {config.scale}x -> {out}")


if __name__ == "__main__":
    main()
