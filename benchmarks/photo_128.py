"""Full, uniform and EVOS on one photo reduced to 128², three seeds: PSNR and training time.

    python benchmarks/photo_128.py --input ../shared/data/div2k/test_data/00.png

Every seed's strategies are trained in turn, a block of steps each, so that a noisy machine disturbs all of them alike.
"""

import argparse
import time
from pathlib import Path
from statistics import mean, stdev

import torch
from common import write_result

from evos.signals import load
from image_regression.options import from_values
from image_regression.trainer import Fit

STRATEGIES = {
    "full": {"selector": "full"},
    "uniform": {"selector": "uniform"},
    "evos": {"selector": "evos"},
    "evos_no_cfs": {"selector": "evos", "cfs_weight": 0.0},
}


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--input", type=Path, default=None, help="a picture; none: the astronaut")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--block", type=int, default=30, help="steps of one strategy before the next has its turn")
    parser.add_argument("--name", default="photo_128")
    args = parser.parse_args()
    signal = load(args.input, args.size)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in STRATEGIES}
    for seed in range(args.seeds):
        fits, seconds = {}, dict.fromkeys(STRATEGIES, 0.0)
        for name, values in STRATEGIES.items():
            made = from_values(
                {"steps": args.steps, "seed": seed, **values},
                {"selector": values["selector"], "field": "siren", "transform": "min_max"},
            )
            fits[name] = Fit(signal, made, torch.device("cpu"))
        for first in range(1, args.steps + 1, args.block):
            for name, fit in fits.items():
                start = time.perf_counter()
                for step in range(first, min(first + args.block, args.steps + 1)):
                    fit.step(step)
                seconds[name] += time.perf_counter() - start
        for name, fit in fits.items():
            runs[name].append({"psnr": fit.psnr(), "seconds": seconds[name], "points": fit.work.evaluated})
            print(seed, name, runs[name][-1], flush=True)
    numbers = {
        name: {
            "psnr": mean(run["psnr"] for run in results),
            "psnr_spread": stdev(run["psnr"] for run in results) if len(results) > 1 else None,
            "seconds": mean(run["seconds"] for run in results),
            "points": results[0]["points"],
            "time_over_full": mean(
                run["seconds"] / full["seconds"] for run, full in zip(results, runs["full"], strict=True)
            ),
            "runs": results,
        }
        for name, results in runs.items()
    }
    write_result(args.name, numbers)


if __name__ == "__main__":
    main()
