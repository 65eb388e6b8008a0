"""Turn signals into patterns and back, with a trained model.

    python generalizable/encode.py run=runs/NAME input=FOLDER out=patterns.safetensors
    python generalizable/encode.py run=runs/NAME patterns=patterns.safetensors out=FOLDER scale=3
    python generalizable/encode.py run=runs/NAME patterns=patterns.safetensors between=a,b frames=9 out=FOLDER

With ``refine=N`` patterns take N steps of gradient descent on what they are made from, and for the bits that they will
have where ``bits`` is given. The second decodes every pattern, at a grid ``scale`` times as fine as in training; the
third walks from a to b in a straight line between their patterns. Images become PNG, sounds WAV files. All of a signal
is encoded: pictures of any shape as overlapping squares, their shorter side reduced to the model's, every channel of a
sound from its beginning to its end. Scenes are encoded from their first support views, and decoded to the cameras of
``input``.
"""

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from evos.command_line import parse_options
from evos.config import check_range
from evos.errors import InputError, exit_on_input_error
from evos.runs import Progress
from evos.runs.outputs import check_absent, check_name, check_new_file, make_folder, path_in
from generalizable.base import Patterns
from generalizable.codec import Codec
from generalizable.forms import Form
from generalizable.instances import Instance, stack
from generalizable.patterns import Encoded, fit_levels, interpolate, read_patterns, write_patterns
from generalizable.quantised import MOST_BITS, Steps
from generalizable.tasks import SignalTask


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

    crop: bool = False
    """Encode what one instance shows, as in training, and not all of a signal: a picture's middle square, a sound's
    first seconds with its channels averaged."""

    bits: int | None = None
    """Quantise the numbers of the patterns to this many bits, 1 to 8, and entropy-code them; none: 32-bit floats."""

    refine: int = 0
    """Steps of gradient descent on every pattern after it was made, at least 0: they fit it to the signal, and to
    ``bits``."""

    refine_lr: float = 0.03
    """Rate of the first of these steps in standard deviations of a pattern's numbers, above 0; it falls to 0."""

    batch: int | None = None
    """Instances that are encoded or decoded together, at least 1; none: as in training."""

    scale: int = 1
    """Decode on a grid this many times as fine, at least 1."""

    between: str | None = None
    """Two names of patterns, joined by a comma (names may have some, too), to interpolate between; none: decode all."""

    frames: int = 9
    """Signals on the way from one to the other, both included, at least 2."""

    device: str = "auto"
    """auto (cuda where there is one), cpu, cuda or cuda:n."""

    quiet: bool = False
    """No progress bar."""

    def __post_init__(self) -> None:
        check_range("scale", self.scale, 1)
        check_range("batch", self.batch, 1)
        check_range("bits", self.bits, 1, MOST_BITS)
        check_range("refine", self.refine, 0)
        check_range("refine_lr", self.refine_lr, 0, open_low=True)
        check_range("frames", self.frames, 2)
        for name in ("run", "out"):
            if not getattr(self, name):
                raise InputError(name, "nothing", f"{name}=PATH")
        if self.input is None and self.patterns is None:
            raise InputError("input", None, "input=FOLDER to encode, or patterns=FILE to decode")
        unused, allowed = ("bits", "crop", "refine", "refine_lr"), "an option to encode, without patterns="
        if self.patterns is None:
            unused, allowed = ("scale", "between", "frames"), "an option to decode, with patterns="
        for option in fields(self):
            if option.name in unused and (got := getattr(self, option.name)) != option.default:
                raise InputError(option.name, got, allowed)


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


def read_signals(
    codec: Codec, folder: str, *, crop: bool = False, again: Collection[str] | None = None, quiet: bool = True
) -> Iterator[tuple[str, Form, list[Instance]]]:
    """Each signal's name, form and instances; what can't be read or named, or is cropped, is said on stderr.

    ``again``: names that were read before; nothing else is read, and nothing said.
    """
    found = find_named_signals(codec.task, folder)
    if again is not None:
        found = {name: path for name, path in found.items() if name in again}
    with Progress(len(found), "encoding" if again is None else "refining", quiet=quiet) as progress:
        for number, (name, path) in enumerate(found.items(), 1):
            try:
                check_name(name, str(path))  # the name under which decoding will write it
                form, instances = codec.task.cut(path, crop=crop)
            except InputError as error:
                print(f"skipped: {error}", file=sys.stderr)
                progress.update(number)
                continue
            if crop:
                if again is None and (parts := codec.task.count_parts(form)) > 1:
                    print(f"notice: {path}: {form}, cropped to 1 instance of {parts}", file=sys.stderr)
                form = codec.task.instance_form
            yield name, form, instances
            progress.update(number)


def encode(
    codec: Codec, folder: str, *, crop: bool = False, batch: int | None = None, quiet: bool = True
) -> dict[str, Encoded]:
    """Patterns of all signals in a folder, by name.

    Args:
        codec: of a trained run.
        folder: pictures, sounds or scenes, at any depth.
        crop: encode one instance of each, as training sees it.
        batch: instances that are encoded together, of several signals; None: as in training.
        quiet: show no progress.

    Raises:
        InputError: there is nothing in the folder, or nothing that can be read.
    """
    forms: dict[str, Form] = {}

    def pieces() -> Iterator[tuple[str, Instance]]:
        for name, form, instances in read_signals(codec, folder, crop=crop, quiet=quiet):
            forms[name] = form
            yield from ((name, instance) for instance in instances)

    def make(names: Sequence[str], instance: Instance) -> Patterns:
        return codec.encode(instance)

    parts = patterns_of(codec, pieces(), make, batch)
    if not forms:
        raise InputError("input", folder, "a folder with at least one signal that can be read")
    return {name: Encoded(parts[name], form) for name, form in forms.items()}


def refine(
    codec: Codec,
    signals: Mapping[str, Encoded],
    pieces: Iterable[tuple[str, Instance]],
    steps: int,
    rate: float,
    levels: Mapping[str, Steps] | None = None,
    batch: int | None = None,
) -> dict[str, Encoded]:
    """What ``encode`` made after ``Codec.refine``; ``pieces``: the instances of each signal, in order."""
    taken = dict.fromkeys(signals, 0)

    def make(names: Sequence[str], instance: Instance) -> Patterns:
        rows = []
        for name in names:
            rows.append({part: pattern[taken[name]] for part, pattern in signals[name].parts.items()})
            taken[name] += 1
        patterns = {part: torch.stack([row[part] for row in rows]).to(codec.device) for part in rows[0]}
        return codec.refine(patterns, instance, steps, rate, levels)

    parts = patterns_of(codec, pieces, make, batch)
    return {name: Encoded(parts[name], each.form) for name, each in signals.items()}


def patterns_of(
    codec: Codec,
    pieces: Iterable[tuple[str, Instance]],
    make: Callable[[Sequence[str], Instance], Patterns],
    batch: int | None,
) -> dict[str, Patterns]:
    """By signal, the parts "N ..." of what ``make`` makes of batches of pieces and the names of their signals."""
    found: dict[str, list[dict[str, Tensor]]] = {}
    left, size = iter(pieces), batch or codec.options.train.batch
    while some := list(islice(left, size)):
        names, instances = zip(*some, strict=True)
        # Each batch by the same random numbers: a scene's rays do not depend on what lies beside it.
        with codec.evaluating():
            patterns = make(names, stack(list(instances)).to(codec.device))
        for i, name in enumerate(names):
            row = {part: pattern[i].float().cpu() for part, pattern in patterns.items()}
            found.setdefault(name, []).append(row)
    return {name: {part: torch.stack([row[part] for row in rows]) for part in rows[0]} for name, rows in found.items()}


def decode(
    codec: Codec, signal: Encoded, scale: int, cameras: Instance | None = None, batch: int | None = None
) -> Float[Tensor, "*S C"]:
    """One signal: a picture "H W C", a sound "T C", or all views of ``cameras`` side by side "H (V W) C".

    Raises:
        InputError: patterns that don't fit the model.
    """
    size, pieces = batch or codec.options.train.batch, []
    views = [] if cameras is None else range(cameras.signal.shape[1])
    with codec.evaluating():
        try:
            for start in range(0, max(1, len(next(iter(signal.parts.values())))), size):
                some = {part: pattern[start : start + size].to(codec.device) for part, pattern in signal.parts.items()}
                pieces.append(codec.decode(some, cameras, views=views, scale=scale).cpu())
        except (KeyError, RuntimeError) as error:
            raise InputError("patterns", f"parts of another shape ({error})", "patterns of this run's model") from None
    return codec.task.join(torch.cat(pieces), signal.form, scale)


def write_signals(codec: Codec, signals: Mapping[str, tuple[Encoded, Instance | None]], config: EncodeConfig) -> None:
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
    with Progress(len(signals), "decoding", quiet=config.quiet) as progress:
        for number, (name, (signal, cameras)) in enumerate(signals.items(), 1):
            values = decode(codec, signal, config.scale, cameras, config.batch)
            make_folder(paths[name].parent)
            codec.task.write(paths[name], values, config.scale)
            progress.update(number)


def split_pair(text: str, names: Mapping[str, object]) -> tuple[str, str]:
    """The two names that ``between`` joins by a comma, which names may have themselves.

    Raises:
        InputError: none of the commas has a name on each side, or several have.
    """
    commas = [i for i, letter in enumerate(text) if letter == ","]
    pairs = [(text[:i], text[i + 1 :]) for i in commas if text[:i] in names and text[i + 1 :] in names]
    if len(pairs) > 1:
        raise InputError("between", f"{text}, which may mean {pairs[0]} or {pairs[1]}", "names without such commas")
    if not pairs:
        raise InputError("between", text, f"two of {', '.join(sorted(names)[:12])}, joined by a comma")
    return pairs[0]


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """The program."""
    run(parse_options(EncodeConfig, argv, "python generalizable/encode.py", __doc__ or ""))


def run(config: EncodeConfig) -> None:
    """Encode or decode."""
    out = Path(config.out)
    if config.patterns is None:
        check_new_file(out, config.overwrite)
    codec = Codec.load(config.run, config.device)
    if config.patterns is None:
        assert config.input is not None
        found = encode(codec, config.input, crop=config.crop, batch=config.batch, quiet=config.quiet)
        levels = None if config.bits is None else fit_levels(found, config.bits)
        if config.refine:
            read = read_signals(codec, config.input, crop=config.crop, again=found, quiet=config.quiet)
            pieces = ((name, instance) for name, _, instances in read for instance in instances)
            found = refine(codec, found, pieces, config.refine, config.refine_lr, levels, config.batch)
        write_patterns(out, found, codec, levels)
        instances = sum(codec.task.count_parts(each.form) for each in found.values())
        numbers, size = sum(each.numbers for each in found.values()), out.stat().st_size
        cells = sum(codec.task.count_cells(each.form) for each in found.values())
        print(
            f"{len(found)} signals, {instances} instances of {numbers // instances} numbers -> {out}, {size:,} bytes: "
            f"{8 * size / cells:.3g} bits for each of {cells:,} {codec.task.cell_name}"
        )
        return
    patterns = read_patterns(Path(config.patterns), codec)
    cameras = read_cameras(codec, config.input, patterns)
    if config.between is None:
        write_signals(codec, {title: (signal, cameras.get(title)) for title, signal in patterns.items()}, config)
        print(f"{len(patterns)} signals at {config.scale}x -> {out}")
        return
    a, b = split_pair(config.between, patterns)
    fractions = {f"frame_{i:03}": i / (config.frames - 1) for i in range(config.frames)}
    frames = {name: interpolate(patterns[a], patterns[b], fraction) for name, fraction in fractions.items()}
    write_signals(codec, {name: (signal, cameras.get(a)) for name, signal in frames.items()}, config)
    print(f"{config.frames} signals from {a} to {b} -> {out}")


def read_cameras(codec: Codec, folder: str | None, names: Mapping[str, object]) -> dict[str, Instance]:
    """The cameras that scenes of these names are decoded to, those of a lone scene for all; nothing for other signals.

    Raises:
        InputError: a scene has none, for it is not in the folder or can't be read; a folder for other signals.
    """
    if not codec.task.all_views:
        if folder is not None:
            raise InputError("input", folder, "none beside patterns=: only scenes are decoded to cameras")
        return {}
    if folder is None:
        raise InputError("input", None, "the folder of scenes whose cameras are decoded to")
    paths = find_named_signals(codec.task, folder)
    if len(paths) == 1:
        paths = dict.fromkeys(names, next(iter(paths.values())))
    for name in names:
        if name not in paths:
            raise InputError("input", f"{folder}, without cameras for {name}", "a scene of each name, or a lone one")
    return {name: stack([codec.task.load(paths[name])]).to(codec.device) for name in names}


if __name__ == "__main__":
    main()
