"""Does a supernet rank networks as training from scratch does? Kendall's tau on rendered rooms.

    python evonas/rooms.py out=runs/rooms
    python benchmarks/nas_ranking.py --rooms runs/rooms [--networks 32 --seeds 0 1 2] [--teachers max ema]

Random networks of the space of configs/evonas/rooms.yaml are trained from scratch with each seed; supernets are trained
progressively and, with as many steps of a subnet and as many pictures in each, by plain random sampling from the first
step on; with ``--teachers`` progressively with each of them, too. All errors are Abs Rel on the search rooms. The
ceiling is tau between two trainings from scratch of different seeds. Intervals are bootstrapped over the networks.
Finished trainings are kept in ``--cache`` by the contents of the code.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import code_hash, job_options, run_jobs, write_result
from scipy.stats import kendalltau

from evonas.distillation import Distillation
from evonas.options import Options, parse
from evonas.space import Genome, Space
from evonas.supernet import Network
from evonas.tasks import Task, build_task
from evonas.training import Phase, Plan, Training, read_phases, single_plan
from evos.runs import seed_everything

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("progressive", "random")


def chosen_networks(space: Space, count: int) -> list[Genome]:
    """Random networks, the same in every run."""
    generator = np.random.default_rng(2026)
    return [space.sample(generator) for _ in range(count)]


def scaled(plan: Plan, subnet_steps: int) -> Plan:
    """The plan with its phases in proportion, for about so many steps of a subnet in all."""
    factor = subnet_steps / sum(phase.steps * phase.subnets for phase in plan.phases)
    return Plan(plan.space, [replace(phase, steps=max(1, round(phase.steps * factor))) for phase in plan.phases])


def random_plan(plan: Plan) -> Plan:
    """One network of the whole space in each step, for as many steps of a subnet."""
    space = plan.space
    low, high = space.bounds
    every = tuple(tuple(range(a, b + 1)) for a, b in zip(low, high, strict=True))
    return Plan(space, [Phase(sum(phase.steps * phase.subnets for phase in plan.phases), 1, every)])


def trained(
    network: Network, task: Task, plan: Plan, options: Options, lr: float, seed: int, teacher: str | None = None
) -> None:
    """Train to the end of the plan, without evaluations."""
    config, device = replace(options.train, lr=lr), torch.device("cpu")
    distill = replace(options.distill, teacher=teacher)
    distillation = None if teacher is None else Distillation(distill, network, task, device)
    training = Training(network, task, plan, config, seed=seed, device=device, distillation=distillation)
    for step in range(1, plan.steps + 1):
        training.step(step)


def run_one(job: str, args: argparse.Namespace, options: Options) -> Any:
    """``scratch NUMBER SEED``: the error of one network; ``progressive SEED``, ``random SEED`` or, with a teacher,
    ``progressive:TEACHER SEED``: of all of them."""
    torch.set_num_threads(1)
    kind, *numbers = job.split()
    task, space = build_task(options.data, ["train", "search"]), Space(options.space)
    genomes, seed = chosen_networks(space, args.networks), int(numbers[-1])
    seed_everything(seed)
    if kind == "scratch":
        genomes = [genomes[int(numbers[0])]]
        network, plan = Network(space, task.head, genomes[0]), single_plan(space, genomes[0], args.steps)
        trained(network, task, plan, options, args.lr, seed)
    else:
        network = Network(space, task.head)
        plan = scaled(read_phases(space, options.phases, task.size("train"), options.train.batch), args.subnet_steps)
        sampling, _, teacher = kind.partition(":")
        plan = plan if sampling == "progressive" else random_plan(plan)
        trained(network, task, plan, options, args.lr, seed, teacher or None)
    return [task.error(found) for found in task.evaluate(network, genomes, "search", torch.device("cpu"))]


def tau(pairs: Sequence[tuple[np.ndarray, np.ndarray]], index: np.ndarray | slice = slice(None)) -> float:
    """Mean of Kendall's tau over pairs of errors."""
    values: list[Any] = [kendalltau(one[index], other[index])[0] for one, other in pairs]
    return float(np.mean(values))


def interval(measure: Callable[[np.ndarray], float], count: int, draws: int = 2000) -> list[float]:
    """95 % bootstrap interval of a measure over networks."""
    generator = np.random.default_rng(0)
    values = [measure(generator.integers(count, size=count)) for _ in range(draws)]
    return [round(float(value), 4) for value in np.nanpercentile(values, [2.5, 97.5])]


def summary(errors: dict[str, dict[int, np.ndarray]], count: int) -> dict[str, Any]:
    """Tau of each kind of supernet with every training from scratch, the ceiling, and their differences; the mean error
    of all networks by seed."""
    scratch = list(errors["scratch"].values())
    kinds = [kind for kind in errors if kind != "scratch"]
    pairs = {kind: list(itertools.product(errors[kind].values(), scratch)) for kind in kinds}
    pairs["ceiling"] = list(itertools.combinations(scratch, 2))
    pairs = {name: own for name, own in pairs.items() if own}
    found: dict[str, Any] = {
        name: {"tau": round(tau(own), 4), "interval": interval(lambda index, own=own: tau(own, index), count)}
        for name, own in pairs.items()
    }
    if set(KINDS) <= pairs.keys():
        gain = lambda index: tau(pairs["progressive"], index) - tau(pairs["random"], index)  # noqa: E731
        found["progressive_minus_random"] = {"tau": round(gain(np.arange(count)), 4), "interval": interval(gain, count)}
    if {"progressive", "ceiling"} <= pairs.keys():
        found["fraction_of_ceiling"] = round(found["progressive"]["tau"] / found["ceiling"]["tau"], 4)
    found["mean_error"] = {kind: [round(float(own.mean()), 5) for own in errors[kind].values()] for kind in errors}
    return found


def main() -> None:
    """Train what is missing, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", type=Path, default=Path("runs/rooms"), help="what evonas/rooms.py wrote")
    parser.add_argument("--networks", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400, help="steps of a training from scratch")
    parser.add_argument("--subnet_steps", type=int, default=3200, help="steps of a subnet in a supernet's training")
    parser.add_argument("--teachers", nargs="+", default=[], help="max, ema, efficientnet-lite0, ... of a supernet")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--size", type=int, nargs=2, default=(96, 128), metavar=("HEIGHT", "WIDTH"))
    job_options(parser, "nas_ranking", "runs/bench-nas")
    args = parser.parse_args()
    config = ROOT / "configs" / "evonas" / "rooms.yaml"
    size = [f"data.height={args.size[0]}", f"data.width={args.size[1]}"]
    _, options = parse(["train", f"--config={config}", f"data.root={args.rooms}", *size])
    if args.one:
        return print(json.dumps(run_one(args.one, args, options)))
    settings = {name: getattr(args, name) for name in ("networks", "steps", "subnet_steps", "lr", "size")}
    sources = [ROOT / "evonas" / f"{name}.py" for name in ("blocks", "supernet", "training", "space", "distillation")]
    sources += sorted((ROOT / "evonas" / "tasks").glob("*.py"))
    shown = [str(value) for value in (*list(settings.values())[:-1], *args.size)]
    kinds = (*KINDS, *(f"progressive:{teacher}" for teacher in args.teachers))
    supernets = [f"{kind} {seed}" for seed in args.seeds for kind in kinds]
    alone = [f"scratch {number} {seed}" for seed in args.seeds for number in range(args.networks)]
    cache = args.cache / f"{code_hash([*sources, config])}-{'-'.join(shown)}"
    found = run_jobs([*supernets, *alone], cache, args.workers)
    errors = {kind: {seed: np.array(found[f"{kind} {seed}"]) for seed in args.seeds} for kind in kinds}
    errors["scratch"] = {
        seed: np.array([found[f"scratch {number} {seed}"][0] for number in range(args.networks)]) for seed in args.seeds
    }
    numbers = summary(errors, args.networks)
    print(json.dumps(numbers, indent=2))
    genomes = chosen_networks(Space(options.space), args.networks)
    raw = {kind: {seed: values.tolist() for seed, values in own.items()} for kind, own in errors.items()}
    write_result(args.name, {**settings, "seeds": args.seeds, "summary": numbers, "genomes": genomes, "errors": raw})


if __name__ == "__main__":
    main()
