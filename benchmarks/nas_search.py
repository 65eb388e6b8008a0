"""NSGA-II and NSGA-III beside random search: hypervolume at equal evaluations, over one supernet.

    python evonas/main.py train --config configs/evonas/rooms.yaml data.root=DIR out=runs/rooms
    python benchmarks/nas_search.py --config configs/evonas/rooms.yaml data.root=DIR out=runs/rooms -- --seeds 0 1 2

Words before ``--`` are those of evonas/main.py. Errors are the supernet's on the search split, costs MACs and
parameters; what one search has evaluated, the others need not evaluate again. All have the same reference point.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import two_command_lines, write_result

from evonas.options import parse
from evonas.search import Result, hypervolume, points, search, write_report
from evonas.space import Genome, Space
from evonas.stages import Costs, ErrorsOnSearch, load_supernet
from evonas.tasks import build_task

ALGORITHMS = ("nsga2", "nsga3", "random")


def main() -> None:
    """Search with every algorithm and seed, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--population", type=int, default=32)
    parser.add_argument("--generations", type=int, default=12)
    parser.add_argument("--pictures", type=Path, help="folder for the fronts of the first seed")
    parser.add_argument("--name", default="nas_search", help="name of the result")
    words, args = two_command_lines(parser)
    _, options = parse(["search", *words])
    torch.set_num_threads(1)
    space, errors = Space(options.space), ErrorsOnSearch(options)()
    costs = Costs(load_supernet(options, build_task(options.data, ["search"])), options.data.height, options.data.width)
    known: dict[Genome, dict[str, float]] = {}

    def evaluate(genomes: Sequence[Genome]) -> Iterator[tuple[Genome, dict[str, float]]]:
        for genome in genomes:
            if genome not in known:
                (error,) = errors([genome])
                known[genome] = {"error": error, "macs": costs.macs(genome), "parameters": costs.parameters(genome)}
            yield genome, known[genome]

    found: dict[str, dict[int, Result]] = {name: {} for name in ALGORITHMS}
    for seed in args.seeds:
        for name in ALGORITHMS:
            config = replace(
                options.search,
                algorithm=name,
                seed=seed,
                population=args.population,
                generations=args.generations,
                objectives="[error, macs, parameters]",
            )
            with tempfile.TemporaryDirectory() as folder:
                found[name][seed] = search(space, config, evaluate, folder)
            print(name, seed, f"{found[name][seed].history[-1]['hypervolume']:.4f}", flush=True)
    names = ["error", "macs", "parameters"]
    every = points(known.values(), names)
    reference, ideal = every.max(0), every.min(0)
    table = {}
    for name, results in found.items():
        curves = {}
        for seed, result in results.items():
            values = points(result.evaluated.values(), names)
            counts = [int(entry["evaluations"]) for entry in result.history]
            curves[seed] = [[n, round(hypervolume(values[:n], reference, ideal), 5)] for n in counts]
        ends = [curve[-1][1] for curve in curves.values()]
        least = [float(points(r.evaluated.values(), names)[:, 0].min()) for r in results.values()]
        table[name] = {"hypervolume": ends, "least_error": least, "curves": curves}
    wins = {
        name: int(np.sum(np.array(table[name]["hypervolume"]) > np.array(table["random"]["hypervolume"])))
        for name in ALGORITHMS[:2]
    }
    print(json.dumps({name: own["hypervolume"] for name, own in table.items()}), wins)
    if args.pictures:
        args.pictures.mkdir(parents=True, exist_ok=True)
        first = [found[name][args.seeds[0]] for name in ALGORITHMS]
        write_report(first[0], space, args.pictures, first[1:])
    settings = {"population": args.population, "generations": args.generations, "seeds": args.seeds}
    box = {"reference": reference.tolist(), "ideal": ideal.tolist()}
    write_result(args.name, {**settings, **box, "wins_over_random": wins, "searches": table})


if __name__ == "__main__":
    main()
