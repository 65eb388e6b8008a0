"""A training step of a pattern composer against its literal form, at the ImageNette-178 settings: time and memory.

python benchmarks/composer_step.py [--model pattern_composer] [--precision bf16] [--size 178] [--batch 4] [--repeats 7]

Sides: ``literal`` (benchmarks/literal_composer.py), ``ours`` on the same points, and ``ours_same_points``, where all
instances have the same ones (a grid without noise, or with noise drawn once for the batch). The published runs of the
hypernetwork draw noise for each instance, those of the optimisation-based models none.
"""

import argparse
import gc
import subprocess
import sys
from collections.abc import Callable

import literal_composer
import torch
from common import alternate, peak_mib, ratio, spread, write_result

from evos import coords
from generalizable.inner import outer_loss
from generalizable.models import MODELS, Task, build_model

SIDES = ("literal", "ours", "ours_same_points")


def stepper(args: argparse.Namespace, side: str) -> Callable[[], object]:
    """One side's training step, without the optimizer's, which is the same for all."""
    torch.manual_seed(0)
    shape = (args.size, args.size)
    model = build_model(MODELS[args.model][0](), Task("image", shape))
    images = torch.rand(args.batch, 3, *shape)
    target = images.flatten(2).mT.contiguous()
    points = coords.grid(shape, centres="cell")[None]
    if side != "ours_same_points":
        points = points.repeat(args.batch, 1, 1)
        if not model.inner_steps:
            points = points + (torch.rand_like(points) - 0.5) * torch.tensor(coords.spacing(shape, centres="cell"))

    def loss() -> torch.Tensor:
        if side != "literal":
            data = {"coords": points, "target": target} if model.inner_steps else images
            return outer_loss(model, data, points, target)[0]
        data = (points, target) if model.inner_steps else literal_composer.unfolded(model, images)
        return (getattr(literal_composer, args.model)(model, data, points) - target).square().mean()

    def step() -> None:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
            value = loss()
        value.backward()

    return step


def peak_of(side: str) -> float:
    """Most memory that model and two steps take in a process with this side alone, in MiB."""
    command = [sys.executable, __file__, *sys.argv[1:], "--peak", side]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(args: argparse.Namespace) -> None:
    """The child's half of ``peak_of``."""
    tiny = argparse.Namespace(**vars(args) | {"size": 18, "batch": 1})
    stepper(tiny, args.peak)()  # loads what any first step loads
    gc.collect()

    def run() -> None:
        step = stepper(args, args.peak)
        step()
        step()

    print(peak_mib(run))


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="pattern_composer", choices=MODELS)
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--size", type=int, default=178)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--peak", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        print_peak(args)
        return
    peaks = {side: peak_of(side) for side in SIDES}
    times = alternate({side: stepper(args, side) for side in SIDES}, repeats=args.repeats, warmup=1)
    write_result(
        f"composer_step_{args.model}_{args.precision}",
        {
            "images_per_second": {side: args.batch / spread(values)["median"] for side, values in times.items()},
            "seconds_per_step": {side: spread(values) for side, values in times.items()},
            "throughput_over_literal": {side: ratio(times, "literal", side) for side in SIDES[1:]},
            "peak_mib": peaks,
            "peak_over_literal": {side: peaks[side] / peaks["literal"] for side in SIDES[1:]},
        },
    )


if __name__ == "__main__":
    main()
