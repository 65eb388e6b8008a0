"""A full-batch SIREN step of ours against the plainest PyTorch loop: time per operator, and effect on the loss.

python benchmarks/step_time.py [--size 256] [--repeats 11] [--device cpu] [--sides plain full ...]
python benchmarks/step_time.py --losses 500 --size 128 [--sides plain plain_nudged full full_bf16]
python benchmarks/step_time.py --other DIR --sides full uniform evos [--other_sides full uniform evos] [--repeats 101]

The first measures seconds per step, sides in turn, and profiles each of them; the second trains from the same weights
and compares the losses; the third measures another version of this project, in the folder DIR, beside this one
(two_trees.py): seconds, and operations of a step and of selecting and observing.

glibc returns freed blocks above 32 MB to the system, which costs a plain loop time;
``plain_kept`` is the same loop with evos.runs.keep_freed_memory, as all sides of ours. Training amplifies rounding:
``plain_nudged`` is the plain loop from weights a last bit or so away, what any difference in losses has to be compared
with.
"""

import argparse
import math
import statistics
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from unittest import mock

import torch
from common import Kernels, alternate, ratio, spread, write_result
from torch import nn
from torch.profiler import ProfilerActivity, profile
from two_trees import compare, serve, summary

from evos import coords
from evos.runs import keep_freed_memory
from evos.runs.machine import set_malloc_thresholds
from evos.selection import Feedback
from evos.signals import astronaut
from image_regression.options import from_values
from image_regression.trainer import Fit

OURS = {
    "full": ("full", {}),
    "full_compiled": ("full", {"compile": True}),
    "full_bf16": ("full", {"precision": "bf16"}),
    "full_bf16_compiled": ("full", {"precision": "bf16", "compile": True}),
    "uniform": ("uniform", {}),
    "evos": ("evos", {"cfs_weight": 0.0}),
    "evos_cfs": ("evos", {}),
    "nint": ("nint", {}),
    "error": ("error", {}),
    "soft": ("soft", {}),
    "egra": ("egra", {}),
    "expansive": ("expansive", {}),
}
DEFAULT_SIDES = ("full", "full_compiled", "full_bf16", "full_bf16_compiled", "uniform", "evos")
PLAIN = ("plain", "plain_kept", "plain_compiled")
NUDGE = 2.0**-23
"""Largest relative change of a nudged weight: float32's spacing."""
LOSS_STEPS = 10
"""Steps at the end whose losses are averaged, in dB: single ones go up and down."""


class Sine(nn.Module):
    """sin(30 x), as a reader of the SIREN paper would write it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(30 * x)


def plain_siren() -> nn.Sequential:
    """The SIREN paper's network and initialisation in plain modules."""
    sizes = [2, 256, 256, 256, 256]
    layers: list[nn.Module] = []
    for position, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        linear = nn.Linear(fan_in, fan_out)
        bound = 1 / fan_in if position == 0 else math.sqrt(6 / fan_in) / 30
        nn.init.uniform_(linear.weight, -bound, bound)
        layers += [linear, Sine()]
    return nn.Sequential(*layers, nn.Linear(256, 3))


def plain_step(
    size: int, device: str, *, compile: bool = False, start: nn.Module | None = None
) -> Callable[[], torch.Tensor]:
    """The plainest loop: whole picture, mean squared error, Adam; from the weights of a field of ours if given."""
    network = plain_siren().to(device)
    if start is not None:
        with torch.no_grad():
            for parameter, value in zip(network.parameters(), start.parameters(), strict=True):
                parameter.copy_(value)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    fit = our_fit(size, device, "full")
    points, target = (
        coords.grid(fit.signal.shape, device),
        fit.source.target,
    )  # the same signal, transformed the same way
    predict = torch.compile(network) if compile else network

    def step() -> torch.Tensor:
        loss = ((predict(points) - target) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def our_fit(size: int, device: str, selector: str, steps: int = 1_000_000, **options: object) -> Fit:
    """A run of ours, without its folder."""
    # Named twice: the run's own option decides on cross-frequency supervision.
    values = {"steps": steps, "lpips": False, "selector": selector, **options}
    made = from_values(values, {"selector": selector, "field": "siren", "transform": "min_max"})
    return Fit(astronaut(size), made, torch.device(device))


def stepper(fit: Fit) -> Callable[[], torch.Tensor]:
    """Calls ``fit.step`` with the next step number."""
    count = iter(range(1, 10**9))
    return lambda: fit.step(next(count))


def build(name: str, size: int, device: str) -> Callable[[], torch.Tensor]:
    """One step of a side, from the same weights as every other, with its own memory settings."""
    if name in (*PLAIN, "plain_nudged"):
        start = our_fit(size, device, "full").field
        if name == "plain_nudged":
            with torch.no_grad():
                for parameter in start.parameters():
                    parameter.mul_(1 + NUDGE * (2 * torch.rand_like(parameter) - 1))
        step = plain_step(size, device, compile=name == "plain_compiled", start=start)
    else:
        selector, options = OURS[name]
        step = stepper(our_fit(size, device, selector, **options))

    def with_memory() -> torch.Tensor:
        if name == "plain":  # where glibc's own adjustment ends, were it not for the other sides in this process
            set_malloc_thresholds(mmap=32 * 2**20, trim=64 * 2**20)
        else:
            keep_freed_memory(device)
        return step()

    return with_memory


def operator_fractions(step: Callable[[], object], device: str) -> Mapping[str, float]:
    """Fraction of a step's time spent in each of the slowest operators, by PyTorch's profiler."""
    step()
    gpu = torch.device(device).type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as profiler:
        step()
    times = {
        event.key: event.self_device_time_total if gpu else event.self_cpu_time_total
        for event in profiler.key_averages()
    }
    dearest = sorted(times.items(), key=lambda item: -item[1])[:8]
    return {name: round(time / sum(times.values()), 3) for name, time in dearest}


def selector_cost(size: int, device: str, full_step: float, evos_step: float) -> dict[str, float]:
    """What the selector itself costs between key steps and on them, and as a fraction of the paper's 5,000 steps."""
    fit = our_fit(size, device, "evos", cfs_weight=0.0)
    fit.step(1)
    selector, pool = fit.selector, fit.pool
    key, other = selector.select(1), selector.select(2)
    residual = torch.randn(1, pool.cells, 3, device=device)
    times = alternate(
        {
            "between": lambda: selector.observe(selector.select(2), Feedback(other.gather(residual))),
            "ranking": lambda: selector.observe(key, Feedback(residual)),
        },
        repeats=51,
    )
    between, ranking = (spread(times[name])["median"] for name in ("between", "ranking"))
    keys, steps = 72, 5000
    return {
        "selector_ms_between_key_steps": 1e3 * between,
        "selector_ms_ranking": 1e3 * ranking,
        "selector_share_of_a_step": between / evos_step,
        "ranking_share_of_the_papers_run": keys * ranking / (keys * full_step + (steps - keys) * evos_step),
    }


def measure_times(names: list[str], size: int, device: str, repeats: int) -> dict[str, object]:
    """Seconds per step of every side, in turn, and where they go."""
    sides = {name: build(name, size, device) for name in names}
    for step in sides.values():
        step()  # the first step of EVOS is a key step
    times = alternate(sides, repeats=repeats)
    medians = {name: statistics.median(values) for name, values in times.items()}
    cost = {}
    if {"full", "evos"} <= set(names):
        cost = selector_cost(size, device, medians["full"], medians["evos"])
    return {
        "seconds_per_step": {name: spread(values) for name, values in times.items()},
        **{f"over_{base}": {n: ratio(times, n, base) for n in names if n != base} for base in PLAIN if base in names},
        "shares_of_a_step": {name: operator_fractions(step, device) for name, step in sides.items()},
        **cost,
    }


def measure_losses(names: list[str], size: int, device: str, steps: int) -> dict[str, object]:
    """The loss of every side after the same steps from the same weights, in dB of the [0, 1] range."""
    decibels = {}
    for name in names:
        step = build(name, size, device)
        losses = torch.stack([step() for _ in range(steps)])[-LOSS_STEPS:]
        decibels[name] = float((-10 * torch.log10(losses / 4)).mean())  # targets lie in [-1, 1]
    first = decibels[names[0]]
    return {"psnr": decibels, f"psnr_minus_{names[0]}": {name: value - first for name, value in decibels.items()}}


def operations(name: str, size: int, device: str, steps: int = 10) -> dict[str, float]:
    """Operations of a side's first step (a key step where there are any), of later ones, the selector's apart."""
    selector, options = OURS[name]
    fit = our_fit(size, device, selector, **options)
    chosen, take, found = fit.selector, stepper(fit), {}
    for part, count in (("first step", 1), ("step", steps)):
        whole, own = Kernels(), Kernels()
        with ExitStack() as patches:
            for method in (chosen.select, chosen.weigh, chosen.observe):
                patches.enter_context(mock.patch.object(chosen, method.__name__, own(method)))
            with whole:
                for _ in range(count):
                    take()
        found |= {part: whole.count / count, f"{part}'s selection": own.count / count}
    return found


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--losses", type=int, default=0, help="compare losses after so many steps instead of times")
    parser.add_argument("--sides", nargs="+", choices=[*PLAIN, "plain_nudged", *OURS], default=[*PLAIN, *DEFAULT_SIDES])
    parser.add_argument("--other", type=Path, metavar="DIR", help="another version of this project, to compare with")
    parser.add_argument("--other_sides", nargs="+", help="what the sides are called there; none: the same")
    parser.add_argument("--warmup", type=int, default=5, help="with --other: rounds before those that count")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    threads = f"_{torch.get_num_threads()}threads" if args.device == "cpu" else ""
    where = f"{args.size}_{args.device.replace(':', '')}{threads}"
    if args.serve:
        steps = {name: build(name, args.size, args.device) for name in args.sides}
        return serve(steps, lambda name: operations(name, args.size, args.device))
    if args.other:
        pairs = list(zip(args.sides, args.other_sides or args.sides, strict=True))
        own = ["--size", str(args.size), "--device", args.device]
        numbers = compare(
            "step_time.py",
            args.other,
            pairs,
            lambda names: [*own, "--sides", *names],
            repeats=args.repeats,
            warmup=args.warmup,
        )
        write_result(f"step_time_two_commits_{where}", {"points": args.size**2, **numbers})
        return print(summary(numbers))
    if args.losses:
        name, numbers = "step_losses", measure_losses(args.sides, args.size, args.device, args.losses)
    else:
        name, numbers = "step_time", measure_times(args.sides, args.size, args.device, args.repeats)
    write_result(f"{name}_{where}", {"points": args.size**2, **numbers})


if __name__ == "__main__":
    main()
