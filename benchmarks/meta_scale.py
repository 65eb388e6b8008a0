"""Decoding on a finer grid than a model was trained on, against the true finer pictures and bicubic enlargement.

    python generalizable/main.py --config configs/generalizable/tiny_images.yaml data.root=DIR data.size=16 ... out=RUN
    python benchmarks/meta_scale.py RUN ... [--scale 3] [--name NAME]

The pictures are the test part of the runs' data. A model sees them at its own size; what it decodes on a grid ``scale``
times as fine is compared with the same pictures read at that size. Beside it the small truth and the model's own small
picture, both enlarged. PSNR is the mean over pictures.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from common import mean_and_deviation, write_result
from einops import rearrange
from jaxtyping import Float
from rate_distortion import tested
from torch import Tensor

from generalizable.codec import Codec
from generalizable.instances import stack


def enlarged(pictures: Float[Tensor, "N C h w"], scale: int) -> Float[Tensor, "N C H W"]:
    """By bicubic interpolation between the centres of pixels."""
    return F.interpolate(pictures, scale_factor=scale, mode="bicubic", align_corners=False)


def measure(run: Path, scale: int, most: int) -> dict[str, float]:
    """PSNR in dB: at the model's size, and of three ways to the finer one."""
    codec = Codec.load(str(run), "cpu")
    options, task = codec.options, codec.task
    source, finer = tested(codec), tested(codec, scale)
    totals: dict[str, list[Tensor]] = {}
    with codec.evaluating():
        for start in range(0, min(most, len(source)), options.train.batch):
            numbers = range(start, min(start + options.train.batch, most, len(source)))
            small = stack([source.get(i) for i in numbers])
            fine = stack([finer.get(i) for i in numbers]).signal
            patterns = codec.encode(small)
            same = rearrange(codec.decode(patterns), "b (h w) c -> b c h w", h=options.data.size).clamp(0, 1)
            found = {
                "same_size": (same, small.signal),
                "decoded": (
                    rearrange(codec.decode(patterns, scale=scale), "b (h w) c -> b c h w", w=fine.shape[3]),
                    fine,
                ),
                "own_picture_enlarged": (enlarged(same, scale), fine),
                "truth_enlarged": (enlarged(small.signal, scale), fine),
            }
            for name, pair in found.items():
                values, truth = (rearrange(each.float(), "b c h w -> b (h w) c") for each in pair)
                totals.setdefault(name, []).append(task.psnr(values, truth))
    return {name: float(torch.cat(values).mean()) for name, values in totals.items()}


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, NAME-SEED each")
    parser.add_argument("--scale", type=int, default=3)
    parser.add_argument("--most", type=int, default=1000, help="pictures")
    parser.add_argument("--name", default="meta_scale", help="of the result")
    args = parser.parse_args()
    runs = {run.name: measure(run, args.scale, args.most) for run in args.runs}
    groups: dict[str, list[dict[str, float]]] = {}
    for name, found in runs.items():
        groups.setdefault(name.rpartition("-")[0] or name, []).append(found)
    table = {
        group: {key: mean_and_deviation([each[key] for each in found]) for key in found[0]}
        for group, found in groups.items()
    }
    write_result(args.name, {"scale": args.scale, "table": table, "runs": runs})


if __name__ == "__main__":
    main()
