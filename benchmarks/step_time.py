"""A full-batch SIREN step of ours against the plainest PyTorch loop, without and with compile; the selector's own cost.

python benchmarks/step_time.py [--size 256] [--repeats 11] [--device cpu]
"""

import argparse
import math
from collections.abc import Callable
from itertools import pairwise

import torch
from common import alternate, ratio, spread, write_result
from torch import nn

from evos import coords
from image_regression.options import from_values
from image_regression.signals import astronaut
from image_regression.trainer import Fit


class Sine(nn.Module):
    """sin(30 x), as a reader of the SIREN paper would write it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(30 * x)


def plain_siren() -> nn.Module:
    """The SIREN paper's network and initialisation in plain modules."""
    sizes = [2, 256, 256, 256, 256]
    layers: list[nn.Module] = []
    for position, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        linear = nn.Linear(fan_in, fan_out)
        bound = 1 / fan_in if position == 0 else math.sqrt(6 / fan_in) / 30
        nn.init.uniform_(linear.weight, -bound, bound)
        layers += [linear, Sine()]
    return nn.Sequential(*layers, nn.Linear(256, 3))


def plain_step(size: int, device: str) -> Callable[[], object]:
    """The plainest loop: whole picture, mean squared error, Adam."""
    network = plain_siren().to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    signal = astronaut(size)
    points, target = coords.grid(signal.shape, device), (2 * signal.values - 1).to(device)

    def step() -> None:
        loss = ((network(points) - target) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def our_fit(size: int, device: str, selector: str, steps: int = 1_000_000, **options: object) -> Fit:
    """A run of ours, without its folder."""
    values = {"steps": steps, "lpips": False, **options}
    made = from_values(values, {"selector": selector, "field": "siren", "transform": "min_max"})
    return Fit(astronaut(size), made, torch.device(device))


def stepper(fit: Fit) -> Callable[[], object]:
    """Calls ``fit.step`` with the next step number, beginning after the first (a key step for EVOS)."""
    count = iter(range(2, 10**9))
    fit.step(1)
    return lambda: fit.step(next(count))


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    full = our_fit(args.size, args.device, "full")
    evos = our_fit(args.size, args.device, "evos", cfs_weight=0.0)
    sides = {
        "plain": plain_step(args.size, args.device),
        "full": stepper(full),
        "full_compiled": stepper(our_fit(args.size, args.device, "full", compile=True)),
        "uniform": stepper(our_fit(args.size, args.device, "uniform")),
        "evos": stepper(evos),
    }
    times = alternate(sides, repeats=args.repeats)

    selector, pool = evos.selector, evos.pool
    key, other = selector.select(1), selector.select(2)
    residual = torch.randn(1, pool.cells, 3, device=args.device)
    own = alternate(
        {
            "between_key_steps": lambda: selector.observe(selector.select(2), other.gather(residual)),
            "ranking_on_a_key_step": lambda: selector.observe(key, residual),
        },
        repeats=51,
    )
    between = spread(own["between_key_steps"])["median"]
    ranking = spread(own["ranking_on_a_key_step"])["median"]
    evos_step, full_step = spread(times["evos"])["median"], spread(times["full"])["median"]
    keys, steps = 72, 5000
    write_result(
        f"step_time_{args.size}_{args.device.replace(':', '')}",
        {
            "points": pool.cells,
            "seconds_per_step": {name: spread(values) for name, values in times.items()},
            "full_over_plain": ratio(times, "full", "plain"),
            "full_compiled_over_plain": ratio(times, "full_compiled", "plain"),
            "selector_ms_between_key_steps": 1e3 * between,
            "selector_ms_ranking": 1e3 * ranking,
            "selector_share_of_a_step": between / evos_step,
            "ranking_share_of_the_papers_run": keys * ranking / (keys * full_step + (steps - keys) * evos_step),
        },
    )


if __name__ == "__main__":
    main()
