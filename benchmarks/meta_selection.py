"""Selection inside meta-learning: all coordinates, a uniform quarter, one drawn by error; on instances never seen.

    python benchmarks/meta_selection.py --data FOLDER [--config configs/generalizable/small_images.yaml] [--seeds 0 1 2]
        [--variants all uniform error error:uniform_ratio=0.8 ...] [--set train.steps=1500 model.width=192 ...]
    python benchmarks/meta_selection.py --data FOLDER --variants all:model=pattern_composer all:model=transinr \
        --against all:model=pattern_composer --config ...

Runs are kept in --out, and taken from there when they are complete. Every variant has the same weights, instances and
order of them per seed. A shared machine's clock says little about a run of minutes: the seconds are steps times the
median time of a step, measured in turn in one process (--repeats).
"""

import argparse
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

from common import alternate, ratio, spread, write_result

from evos.distributed import World
from evos.runs import Stopper
from generalizable.data import make_draws, training_batches
from generalizable.main import prepare
from generalizable.run import train
from generalizable.trainer import Trainer

WORLD = World()


def words(args: argparse.Namespace, variant: str, seed: int) -> list[str]:
    """The command line of a run.

    A variant is ``all`` or a strategy, and options: the selector's own (``:uniform_ratio=0.8``), or any by its full
    name (``:model=transinr``, ``:train.inner_points=selected``).
    """
    name, *options = variant.split(":")
    selector = ["selector=full"] if name == "all" else [f"selector={name}", f"selector.keep_ratio={args.ratio}"]
    keys = [option.partition("=")[0] for option in options]
    given = [o if "." in key or key == "model" else f"selector.{o}" for key, o in zip(keys, options, strict=True)]
    out = Path(args.out, f"{variant.replace(':', '-').replace('=', '_')}-{seed}")
    base = ["--config", args.config, f"data.root={args.data}", f"out={out}", f"seed={seed}", "device=cpu"]
    return [*base, "train.eval_instances=none", *args.set, *selector, *given, "--resume", "--quiet"]


def run(args: argparse.Namespace, variant: str, seed: int) -> dict[str, Any]:
    """The metrics of a run."""
    options, sources, device = prepare(words(args, variant, seed), WORLD)
    with Stopper() as stopper:
        metrics = train(options, sources, WORLD, device, stopper)
    print(f"{variant} seed {seed}: {metrics['psnr']:.3f} dB", flush=True)
    return metrics


def step_of(args: argparse.Namespace, variant: str) -> Any:
    """A training step of a variant, again and again."""
    options, sources, device = prepare(words(args, variant, 0), WORLD)
    owned = make_draws(sources, options.train.batch, seed=0, world=WORLD).owned
    batches = training_batches(sources, options.data, options.train.batch, seed=0, world=WORLD)
    trainer, steps = Trainer(options, WORLD, device, owned), iter(range(1, options.train.steps))
    return lambda: trainer.step(next(steps), next(batches)).item()


def steps_to(goal: float, curve: list[dict[str, float]]) -> float | None:
    """Steps after which the PSNR first reaches a goal, interpolated; None: never."""
    for before, after in pairwise(curve):
        if after["psnr"] >= goal:
            gained = (goal - before["psnr"]) / (after["psnr"] - before["psnr"])
            return before["step"] + max(0.0, gained) * (after["step"] - before["step"])
    return None


def compare(
    runs: dict[tuple[str, int], dict[str, Any]], seeds: list[int], variant: str, against: list[str]
) -> dict[str, Any]:
    """A variant against others, seed by seed."""
    found: dict[str, Any] = {"psnr": [round(runs[variant, seed]["psnr"], 4) for seed in seeds]}
    for other in against:
        if variant == other or (other, seeds[0]) not in runs:
            continue
        gains = [runs[variant, seed]["psnr"] - runs[other, seed]["psnr"] for seed in seeds]
        found[f"gain_over_{other}_db"] = {
            "mean": statistics.mean(gains),
            "stdev": statistics.stdev(gains) if len(gains) > 1 else None,
            "each": gains,
        }
        steps = [steps_to(runs[other, seed]["psnr"], runs[variant, seed]["curve"]) for seed in seeds]
        total = runs[other, seeds[0]]["steps"]
        found[f"steps_to_{other}_share"] = [None if step is None else round(step / total, 4) for step in steps]
    return found


def main() -> None:
    """Compare and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of pictures, recordings or scenes")
    parser.add_argument("--config", default="configs/generalizable/small_images.yaml")
    parser.add_argument("--variants", nargs="+", default=["all", "uniform", "error"])
    parser.add_argument("--against", nargs="+", default=["all", "uniform"], help="variants to compare the others with")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ratio", type=float, default=0.25, help="fraction of the coordinates in a step")
    parser.add_argument("--set", nargs="*", default=[], help="options of every run, such as train.steps=1500")
    parser.add_argument("--repeats", type=int, default=0, help="steps of each variant to time, 0: no timing")
    parser.add_argument("--out", default="runs/meta-selection")
    parser.add_argument("--name", default="meta_selection", help="name of the result")
    args = parser.parse_args()
    runs = {(variant, seed): run(args, variant, seed) for seed in args.seeds for variant in args.variants}
    result: dict[str, Any] = {variant: compare(runs, args.seeds, variant, args.against) for variant in args.variants}
    result["curves"] = {
        f"{variant} {seed}": [[entry["step"], round(entry["psnr"], 4)] for entry in metrics["curve"]]
        + [[metrics["steps"], round(metrics["psnr"], 4)]]
        for (variant, seed), metrics in runs.items()
    }
    if args.repeats:
        times = alternate({variant: step_of(args, variant) for variant in args.variants}, repeats=args.repeats)
        result["seconds_per_step"] = {variant: spread(values) for variant, values in times.items()}
        result["time_of_a_step_over_first"] = {
            variant: ratio(times, variant, args.variants[0]) for variant in args.variants[1:]
        }
    write_result(args.name, result)


if __name__ == "__main__":
    main()
