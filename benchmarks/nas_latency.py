"""How far the latency of a network comes out alike: the coefficient of variation of what a search takes for it.

    python benchmarks/nas_latency.py [--networks 8 --rounds 10 --calls 30]

Random networks of the space of configs/evonas/rooms.yaml are measured in turn, round after round, as a search does it:
each time warm-up, then so many calls on one core. Of each statistic of a measurement's calls the coefficient of
variation over the rounds, and whether networks keep their order: Kendall's tau between rounds. Nothing else may run.
"""

import argparse
import statistics
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import write_result
from scipy.stats import kendalltau

from evonas.evaluation import call_times
from evonas.options import parse
from evonas.space import Space
from evonas.supernet import DenseHead, Network, macs

STATISTICS: dict[str, Callable[[Any], float]] = {
    "mean": statistics.fmean,
    "median": statistics.median,
    "lower quartile": lambda times: float(np.quantile(times, 0.25)),
    "least": min,
}


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--calls", type=int, default=30)
    parser.add_argument("--size", type=int, nargs=2, default=(96, 128), metavar=("HEIGHT", "WIDTH"))
    args = parser.parse_args()
    config = Path(__file__).resolve().parents[1] / "configs" / "evonas" / "rooms.yaml"
    space, generator = Space(parse(["search", f"--config={config}"])[1].space), np.random.default_rng(0)
    networks = [Network(space, DenseHead, space.sample(generator)).eval() for _ in range(args.networks)]
    picture, times = torch.zeros(1, *args.size, 3), np.empty((args.rounds, args.networks, args.calls))
    with torch.inference_mode():
        for number in range(args.rounds):
            for i, network in enumerate(networks):
                times[number, i] = call_times(lambda network=network: network(picture), repeats=args.calls)
    table: dict[str, Any] = {}
    for name, of in STATISTICS.items():
        values = np.apply_along_axis(of, 2, times)
        taus: list[Any] = [kendalltau(one, other)[0] for one, other in combinations(values, 2)]
        table[name] = {
            "cv": (values.std(0) / values.mean(0)).round(4).tolist(),
            "worst cv": round(float((values.std(0) / values.mean(0)).max()), 4),
            "tau between rounds": round(float(np.mean(taus)), 4),
        }
    costs = [macs(network, *args.size) for network in networks]
    settings = {name: getattr(args, name) for name in ("networks", "rounds", "calls", "size")}
    seconds = np.median(times, (0, 2)).round(5).tolist()
    write_result("nas_latency", {**settings, "macs": costs, "median seconds": seconds, "statistics": table})


if __name__ == "__main__":
    main()
