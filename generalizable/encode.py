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
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from evos.command_line import parse_options
from evos.config import check_range
from evos.errors import InputError, exit_on_input_error
from evos.runs.files import replace_file
from evos.runs.outputs import check_absent, check_name, make_folder, path_in
from generalizable.codec import Codec
from generalizable.instances import Instance, stack
from generalizable.tasks import SignalTask

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

    overwrite: bool = False
    """Replace files that exist."""

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


def find_named_signals(task: SignalTask, folder: str) -> dict[str, Path]:
    """The signals in a folder by name: the path within it, without the extension where that is not needed."""
    root = Path(folder)
    if not root.is_dir():
        raise InputError("input", folder, "a folder of pictures, sounds or scenes")
    paths = task.find_signals(root)
    if not paths:
        raise InputError("input", f"{folder}, which holds none", f"a folder of {task.name} files")
    whole = [path.relative_to(root) if path != root else Path(root.resolve().name or "scene") for path in paths]
    short = [path.with_suffix("").as_posix() for path in whole]
    return {
        name if short.count(name) == 1 else longer.as_posix(): path
        for name, longer, path in zip(short, whole, paths, strict=True)
    }


def read_signals(codec: Codec, folder: str) -> Iterator[tuple[str, Instance]]:
    """Each signal as a batch of one; what can't be read or named is reported on stderr and left out."""
    for name, path in find_named_signals(codec.task, folder).items():
        try:
            check_name(name, str(path))  # the name under which decoding will write it
            yield name, stack([codec.task.load(path)]).to(codec.device)
        except InputError as error:
            print(f"skipped: {error}", file=sys.stderr)


def encode(codec: Codec, folder: str) -> dict[str, dict[str, Tensor]]:
    """Patterns of all signals in a folder, by name."""
    found = {}
    with codec.evaluating():
        for name, instance in read_signals(codec, folder):
            found[name] = {part: pattern[0].float().cpu() for part, pattern in codec.encode(instance).items()}
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


def interpolate(a: Mapping[str, Tensor], b: Mapping[str, Tensor], fraction: float) -> dict[str, Tensor]:
    """Patterns on the straight line from ``a`` (fraction 0) to ``b`` (fraction 1)."""
    return {part: torch.lerp(a[part], b[part], fraction) for part in a}


def decode(codec: Codec, parts: Mapping[str, Tensor], cameras: Instance | None, scale: int) -> Float[Tensor, "*S C"]:
    """One signal: a picture "H W C", a sound "T 1", or all views of ``cameras`` side by side "H (V W) C"."""
    batched = {part: pattern[None].to(codec.device) for part, pattern in parts.items()}
    with codec.evaluating():
        try:
            values = codec.decode(batched, cameras, views=codec.task.all_views, scale=scale)[0].cpu()
        except (KeyError, RuntimeError) as error:
            raise InputError("patterns", f"parts of another shape ({error})", "patterns of this run's model") from None
    return codec.task.arrange(values, scale)


def write_signals(
    codec: Codec, signals: Mapping[str, tuple[Mapping[str, Tensor], Instance | None]], config: EncodeConfig
) -> None:
    """Decode patterns by name, each with the cameras to decode it to, into files below ``config.out``.

    Raises:
        InputError: a name leads out of the folder, a file exists and ``config.overwrite`` is false, or patterns that
            don't fit; where names and files are refused, nothing is written.
    """
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise InputError("out", f"{out}, a file", "a folder")
    stems = {name: path_in(out, name, "patterns") for name in signals}
    paths = {name: stem.with_name(f"{stem.name}.{codec.task.extension}") for name, stem in stems.items()}
    check_absent(paths.values(), config.overwrite)
    for name, (parts, cameras) in signals.items():
        values = decode(codec, parts, cameras, config.scale)
        make_folder(paths[name].parent)
        codec.task.write(paths[name], values, config.scale)


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """The program."""
    run(parse_options(EncodeConfig, argv, "python generalizable/encode.py", __doc__ or ""))


def run(config: EncodeConfig) -> None:
    """Encode or decode."""
    out = Path(config.out)
    if config.patterns is None:
        check_absent([out], config.overwrite)
    codec = Codec.load(config.run, config.device)
    name = codec.options.model.name
    if config.patterns is None:
        assert config.input is not None
        found = encode(codec, config.input)
        write_patterns(out, found, name)
        numbers = sum(part.numel() for part in next(iter(found.values())).values())
        print(f"{len(found)} patterns of {numbers} numbers -> {out}")
        return
    patterns = read_patterns(Path(config.patterns), name)
    cameras = {}
    if codec.task.all_views:
        if config.input is None:
            raise InputError("input", None, "the folder of scenes whose cameras are decoded to")
        cameras = dict(read_signals(codec, config.input))
        if not cameras:
            raise InputError("input", config.input, "a folder with at least one scene that can be read")
    other = next(iter(cameras.values()), None)
    if config.between is None:
        write_signals(codec, {title: (parts, cameras.get(title, other)) for title, parts in patterns.items()}, config)
        print(f"{len(patterns)} signals at {config.scale}x -> {out}")
        return
    ends = config.between.split(",")
    if len(ends) != 2 or not set(ends) <= set(patterns):
        raise InputError("between", config.between, f"two of {', '.join(sorted(patterns)[:12])}, joined by a comma")
    first, last = (patterns[end] for end in ends)
    fractions = {f"frame_{i:03}": i / (config.frames - 1) for i in range(config.frames)}
    camera = cameras.get(ends[0], other)
    write_signals(codec, {frame: (interpolate(first, last, f), camera) for frame, f in fractions.items()}, config)
    print(f"{config.frames} signals from {ends[0]} to {ends[1]} -> {out}")


if __name__ == "__main__":
    main()
