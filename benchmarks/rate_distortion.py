"""Bits per pixel against PSNR: quantised patterns of pictures that a model never saw, beside JPEG and WebP.

    python generalizable/main.py --config configs/generalizable/tiny_images.yaml data.root=DIR data.size=64 ... out=RUN
    python generalizable/main.py train.init=RUN train.bits=4 ... out=TUNED
    python benchmarks/rate_distortion.py RUN TUNED [--bits 2 3 4 5 6 8] [--refine 300] [--name NAME]

The pictures are the test part of the runs' own data, at the runs' size. Bits of patterns are those of the whole file,
names and metadata included, shared by all pictures; the network, which the reader has, is not counted, as with all
learned codecs. With ``--refine`` patterns are measured twice: as the encoder makes them, and after so many steps of
gradient descent for the bits that they have. Of JPEG both the whole file counts and what follows its headers and
tables, which two programs could agree upon as they agree upon the network. PSNR is the mean over pictures, of 8-bit
values.
"""

import argparse
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import PIL.Image
import torch
from common import write_result
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from evos.distributed import World
from evos.errors import InputError
from generalizable.codec import Codec
from generalizable.data import Source, find_sources
from generalizable.encode import patterns_of, refine
from generalizable.instances import Instance, stack
from generalizable.patterns import Encoded, fit_levels, read_patterns, write_patterns
from generalizable.quantised import Steps

QUALITIES = (1, 3, 5, 8, 12, 18, 25, 35, 50, 70, 90)
RATES = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)
"""Bits per pixel at which the curves are read."""

Point = dict[str, float]
"""bits of a pixel, psnr."""


def psnr(found: Float[Tensor, "N H W C"], truth: Float[Tensor, "N H W C"]) -> float:
    """Mean over pictures in dB, of values rounded to 8 bits."""
    rounded = (255 * found.clamp(0, 1)).round() / 255
    return float(-10 * (rounded - truth).square().flatten(1).mean(1).clamp(min=1e-10).log10().mean())


def of_patterns(codec: Codec, signals: dict[str, Encoded], truth: Tensor, levels: dict[str, Steps]) -> Point:
    """Patterns written to a file of so many bits a number and read again."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "patterns.safetensors")
        write_patterns(path, signals, codec, levels)
        size, read = path.stat().st_size, read_patterns(path, codec)
    parts = {part: torch.cat([each.parts[part] for each in read.values()]) for part in next(iter(read.values())).parts}
    pieces, count = [], codec.options.train.batch
    with codec.evaluating():
        for start in range(0, len(truth), count):
            some = {part: pattern[start : start + count] for part, pattern in parts.items()}
            pieces.append(codec.decode(some))
    values = torch.cat(pieces).unflatten(1, truth.shape[1:3])
    return {"bits": 8 * size / truth[..., 0].numel(), "psnr": psnr(values, truth)}


def of_files(truth: Tensor, kind: str, quality: int, counted: Callable[[bytes], int] = len) -> Point:
    """Each picture as a JPEG or WebP file."""
    sizes, read = [], []
    for picture in (255 * truth).round().byte().numpy():
        file = io.BytesIO()
        options: dict[str, Any] = {"optimize": True} if kind == "JPEG" else {"method": 6}
        PIL.Image.fromarray(picture).save(file, kind, quality=quality, **options)
        sizes.append(counted(file.getvalue()))
        read.append(np.asarray(PIL.Image.open(file).convert("RGB"), dtype=np.float32) / 255)
    return {"bits": 8 * sum(sizes) / truth[..., 0].numel(), "psnr": psnr(torch.as_tensor(np.stack(read)), truth)}


def after_headers(data: bytes) -> int:
    """Bytes of a JPEG file's entropy-coded scans: what follows the header of the first one."""
    start = data.index(b"\xff\xda")
    return len(data) - start - 2 - int.from_bytes(data[start + 2 : start + 4], "big")


def read_at(curve: Sequence[Point], bits: float) -> float | None:
    """PSNR of a curve at a rate, between its points in the logarithm of the rate; None outside."""
    best: dict[float, float] = {}
    for point in sorted(curve, key=lambda each: each["bits"]):
        if not best or point["psnr"] > max(best.values()):  # what costs more and gives less is no choice
            best[point["bits"]] = point["psnr"]
    if not best or not min(best) <= bits <= max(best):
        return None
    return float(np.interp(np.log(bits), np.log(list(best)), list(best.values())))


def tested(codec: Codec, scale: int = 1) -> Source:
    """The test part of a run's pictures, read at ``scale`` times the run's size."""
    options = codec.options
    data = replace(options.data, size=scale * options.data.size, fine=1)
    sources = find_sources(options.sources, data, seed=options.run.seed, world=World(), train=False)
    source = next(iter(sources.test.values()))
    if not isinstance(source, Source):
        raise InputError("runs", f"one on {source.name}, a stream", "runs on data in files")
    return source


def test_pictures(codec: Codec, most: int) -> tuple[dict[str, Instance], Float[Tensor, "N H W 3"]]:
    """Pictures by number from the test part of a run's data, and their 8-bit values."""
    source = tested(codec)
    instances = [source.get(i) for i in range(min(most, len(source)))]
    truth = rearrange(stack(instances).signal.float(), "n c h w -> n h w c")
    return {str(i): instance for i, instance in enumerate(instances)}, (255 * truth).round() / 255


def encode(codec: Codec, instances: dict[str, Instance]) -> dict[str, Encoded]:
    """Patterns of pictures by name."""
    parts = patterns_of(codec, instances.items(), lambda names, some: codec.encode(some), None)
    return {name: Encoded(each, codec.task.instance_form) for name, each in parts.items()}


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs on pictures of one size")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4, 5, 6, 8], help="of each number of a pattern")
    parser.add_argument("--refine", type=int, default=0, help="steps of gradient descent on each pattern")
    parser.add_argument("--rate", type=float, default=0.03, help="of the first of them: refine_lr of encode.py")
    parser.add_argument("--most", type=int, default=1000, help="pictures")
    parser.add_argument("--name", default="rate_distortion", help="of the result")
    args = parser.parse_args()
    curves: dict[str, list[Point]] = {}
    numbers, truth = {}, torch.zeros(0)
    for run in args.runs:
        codec = Codec.load(str(run), "cpu")
        instances, pictures = test_pictures(codec, args.most)
        signals = encode(codec, instances)
        if len(truth) and not torch.equal(truth, pictures):
            raise InputError("runs", f"{run}, of other test pictures", "runs on the same data of one size")
        truth, numbers[run.name] = pictures, next(iter(signals.values())).numbers
        for steps in dict.fromkeys((0, args.refine)):
            curve = curves[f"{run.name}, {steps} steps" if steps else run.name] = []
            for bits in args.bits:
                levels = fit_levels(signals, bits)
                refined = refine(codec, signals, instances.items(), steps, args.rate, levels) if steps else signals
                curve.append(of_patterns(codec, refined, truth, levels))
                print(run.name, steps, bits, [f"{value:.3f}" for value in curve[-1].values()], flush=True)
    curves["JPEG"] = [of_files(truth, "JPEG", quality) for quality in QUALITIES]
    curves["JPEG without headers"] = [of_files(truth, "JPEG", quality, after_headers) for quality in QUALITIES]
    curves["WebP"] = [of_files(truth, "WEBP", quality) for quality in (0, *QUALITIES)]
    table = {name: {str(rate): read_at(curve, rate) for rate in RATES} for name, curve in curves.items()}
    flat = truth.mean((1, 2), keepdim=True).expand_as(truth)
    write_result(
        args.name,
        {
            "pictures": len(truth),
            "size": list(truth.shape[1:3]),
            "numbers": numbers,
            "bits": args.bits,
            "refine": args.refine,
            "curves": curves,
            "psnr_at": table,
            "lowest_bits": {name: min(point["bits"] for point in curve) for name, curve in curves.items()},
            "one_colour_psnr": psnr(flat, truth),
        },
    )


if __name__ == "__main__":
    main()
