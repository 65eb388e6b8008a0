"""Every strategy under every recipe, with the same network, data, steps, seeds and clock; README.md has the protocol.

    python benchmarks/neutral.py --suite photos --recipes paper tuned --sizes 128 --ratios 0.5 0.25 --seeds 0 1 2

Runs are stored under --out by what determines them: the same command continues where it stopped, and one with more
seeds or strategies adds to the stored runs.
"""

import argparse
import hashlib
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise, product
from multiprocessing import get_context
from pathlib import Path
from time import process_time
from typing import Any

import torch
from common import write_result
from neutral_report import REFERENCES, Run, contests, tables, write_plot
from neutral_search import Range, Search
from neutral_suites import (
    RECIPES,
    ROOT,
    SUITES,
    VARIANTS,
    Contender,
    Suite,
    find,
    first_lr,
    options_of,
    recipe_of,
    signal_of,
)

from evos.errors import InputError, exit_on_input_error
from evos.fields import FIELDS
from evos.runs import Clock, count_parameters, environment, read_json, resolve_device, seed_everything, write_json
from evos.runs.files import replace_file
from evos.runs.loop import all_finite
from evos.signals import Signal, astronaut
from image_regression import recordings
from image_regression.options import PARTS, Options, as_config_file, from_values
from image_regression.trainer import Fit

EVALUATIONS, FIRST_EVALUATION = 20, 1 / 20
"""Evaluations in a run, in geometric progression from a twentieth of it on; they are off the clock, but take time."""


# ---- runs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One run that is to be made."""

    contender: Contender
    input: str
    seed: int
    options: Options


def evaluation_steps(steps: int, also: tuple[int, ...] = ()) -> list[int]:
    """At which steps a run of ``steps`` is evaluated: in geometric progression, at ``also``, and at its end."""
    spaced = {round(steps * FIRST_EVALUATION ** (number / EVALUATIONS)) for number in range(EVALUATIONS + 1)}
    return sorted({max(1, step) for step in spaced} | {step for step in also if step < steps})


def train(signal: Signal, options: Options, device: torch.device, at: list[int]) -> list[dict[str, float]]:
    """A run's curve: at step 0 and each of ``at``, PSNR and what training has cost so far, evaluation left out.

    ``seconds`` on the wall's clock, ``cpu_seconds`` of this process, ``points`` passed through the network. A run that
    diverges ends there with 0 dB.
    """
    seed_everything(options.run.seed)
    fit, clock, cpu_seconds, curve = Fit(signal, options, device), Clock(device), 0.0, []

    def note(step: int, psnr: float) -> None:
        cost = {"seconds": clock.seconds, "cpu_seconds": cpu_seconds, "points": fit.work.evaluated}
        curve.append({"step": step, **cost, "psnr": psnr})

    def psnr() -> float:
        if signal.sound is None:
            return fit.psnr()
        return recordings.sound_quality(signal, fit.predict(), fit.values, "")["psnr"] or 0.0

    note(0, psnr())
    for done, evaluated in pairwise([0, *at]):
        start = process_time()
        clock.start()
        losses = [fit.step(step) for step in range(done + 1, evaluated + 1)]
        clock.pause()
        cpu_seconds += process_time() - start
        if not all_finite([*losses, *fit.field.parameters()]):
            note(evaluated, 0.0)
            break
        note(evaluated, psnr())
    return curve


@cache
def warm_up(device: torch.device) -> None:
    """Pay the one-time costs of a process's first steps: loading libraries, choosing kernels."""
    options = from_values({"steps": 3}, {"transform": "min_max", "selector": "full", "field": "siren"})
    train(astronaut(16), options, device, [3])


def run_job(job: Job, out: Path, device: torch.device, also: tuple[int, ...], machine: Mapping[str, Any]) -> Run:
    """The run from its file, if it was made before on such a machine; else a new run."""
    signal = signal_of(job.input, job.contender.size)
    at = evaluation_steps(job.options.run.steps, also)
    place = [machine[key] for key in ("processor", "device", "threads", "workers")]
    sized = job.options.sized_to(signal.shape, signal.values.shape[-1])
    content = f"{as_config_file(sized)}\n{place}\n{at}\n{signal.shape}\n"
    key = hashlib.sha256(content.encode() + signal.values.numpy().tobytes()).hexdigest()[:20]
    file = out / f"{signal.name}-{job.contender.size}" / f"{job.options.run.selector}-{key}.json"
    if not file.exists():
        warm_up(device)
        curve = train(signal, job.options, device, at)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"options": sized.resolved(), "curve": curve, "machine": machine})
    made = read_json(file)
    commit = f"{made['machine']['commit']}{' and changes' if made['machine']['dirty'] else ''}"
    return Run(job.contender, job.input, job.seed, job.options.lr, job.options.cfs_weight > 0, made["curve"], commit)


def run_all(jobs: list[Job], args: argparse.Namespace, title: str) -> list[Run]:
    """All runs in order, each named as it ends."""
    machine = environment(args.device) | {"workers": args.workers}
    work = partial(run_job, out=args.out / "runs", device=args.device, also=tuple(args.at_steps), machine=machine)
    spawned = partial(ProcessPoolExecutor, args.workers, get_context("spawn"), torch.set_num_threads, (args.threads,))
    runs = []
    with spawned() if args.workers > 1 else nullcontext() as pool:
        for run in map(work, jobs) if pool is None else pool.map(work, jobs):
            runs.append(run)
            end = f"{run.curve[-1]['psnr']:.2f} dB, {run.curve[-1]['seconds']:.1f} s"
            place = f"{run.contender}, lr {run.lr:g}, {run.input}, seed {run.seed}"
            print(f"{title} {len(runs)}/{len(jobs)}: {place}: {end}", flush=True)
    return runs


# ---- the benchmark ---------------------------------------------------------------------------------------------------


def find_contenders(args: argparse.Namespace, suite: Suite) -> list[Contender]:
    """All contenders, strategies varying fastest; combinations that the options refuse are left out with a notice.

    Raises InputError for a strategy or recipe that is left out everywhere, though it was asked for.
    """
    names = args.strategies or [*PARTS["selector"], *VARIANTS]
    places = product(args.sizes, args.recipes, args.ratios, args.steps, args.fields, names)
    contenders, refusals = [], {}
    for size, recipe, keep, steps, name, strategy in places:
        contender = Contender(recipe, keep, size, name, strategy, steps)
        try:
            Fit(signal_of(args.inputs[0], size), options_of(contender, suite, 1e-4, 0), args.device)
            contenders.append(contender)
        except InputError as error:
            refusals[f"{strategy}, {recipe}, {keep}, {name}"] = (strategy, recipe, error)
    for place, (strategy, recipe, error) in refusals.items():
        lost = args.strategies and strategy not in {each.strategy for each in contenders}
        if lost or recipe not in {each.recipe for each in contenders}:
            raise error
        print(f"notice: left out: {place}: {error}", file=sys.stderr)
    return contenders


def search(contenders: list[Contender], args: argparse.Namespace, suite: Suite) -> dict[Contender, Search]:
    """Each contender's search of the learning rate, on the search's inputs and the first seed; empty without one."""
    allowed = Range(args.lr_start, max(args.lr_start, args.lr_limit))
    found = {each: Search(first_lr(each)) for each in contenders}
    searched = [each for each in contenders if args.lr_start > 0 and recipe_of(each.recipe)[0].searched]
    while tries := [(exponent, each) for each in searched for exponent in found[each].untried(allowed)]:
        tries.sort(key=lambda entry: entry[0])  # contenders vary fastest here, too
        places = [(each, exponent, name) for name in args.search_inputs for exponent, each in tries]
        seed = args.seeds[0]
        jobs = [
            Job(each, name, seed, options_of(each, suite, found[each].lr(exponent), seed))
            for each, exponent, name in places
        ]
        for (each, exponent, _), run in zip(places, run_all(jobs, args, "search"), strict=True):
            found[each].psnrs.setdefault(exponent, []).append(run.curve[-1]["psnr"])
    return found


def parameters_of(contender: Contender, args: argparse.Namespace, suite: Suite) -> int:
    """How many numbers a contender's field has on the first input."""
    signal = signal_of(args.inputs[0], contender.size)
    return count_parameters(Fit(signal, options_of(contender, suite, 1e-4, 0), args.device).field.parameters())


def jobs_of(lrs: Mapping[Contender, float], args: argparse.Namespace, suite: Suite) -> list[Job]:
    """Every run: seeds vary slowest, contenders fastest, so that a noisy machine disturbs all of them alike."""
    return [
        Job(contender, name, seed, options_of(contender, suite, lr, seed))
        for seed, name in product(args.seeds, args.inputs)
        for contender, lr in lrs.items()
    ]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, with the suite's settings where it says nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=SUITES, default="small")
    parser.add_argument("--strategies", nargs="+", help="NAME or NAME:option=value,...; none: all selectors")
    parser.add_argument("--recipes", nargs="+", help=f"of {', '.join(RECIPES)}, fast, or config files")
    parser.add_argument("--fields", "--field", nargs="+", choices=FIELDS)
    parser.add_argument("--sizes", nargs="+", type=int, help="longer sides in pixels, or samples of a sound")
    parser.add_argument("--ratios", nargs="+", help="fractions of the points kept, or step: 0.2 growing to 0.92")
    parser.add_argument("--steps", nargs="+", type=int, help="lengths of a run; each has its own schedule and search")
    parser.add_argument("--at_steps", nargs="+", type=int, help="further steps at which PSNR is listed")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--against", nargs="+", default=REFERENCES, help="strategies that all others are tested against"
    )
    parser.add_argument(
        "--lr_start", type=int, default=2, help="search from 2^-N to 2^N times the recipe's rate; 0: none"
    )
    parser.add_argument("--lr_limit", type=int, default=5, help="how far it may go on while the best rate is at an end")
    parser.add_argument("--search_inputs", type=int, default=1, help="inputs of the search, none of those reported")
    parser.add_argument("--targets", nargs="+", type=float, help="PSNRs to which seconds are given")
    parser.add_argument("--inputs", type=int, help="use the suite's first inputs only")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=Path("runs/neutral"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1, help="of a process")
    parser.add_argument("--workers", type=int, default=1, help="processes; they disturb each other's clocks")
    parser.add_argument("--clock", choices=("cpu_seconds", "seconds"), help="none: cpu_seconds on one CPU thread")
    parser.add_argument("--name", help="of the result; none: neutral_SUITE")
    args = parser.parse_args(argv)
    suite = SUITES[args.suite]
    for name in ("recipes", "fields", "sizes", "ratios", "steps", "at_steps", "targets"):
        setattr(args, name, list(getattr(suite, name)) if getattr(args, name) is None else getattr(args, name))
    args.inputs = find(suite.inputs, args.data, args.inputs)
    args.search_inputs = find(suite.search, args.data, args.search_inputs) if args.lr_start > 0 else []
    args.device = resolve_device(args.device)
    # A process's own seconds leave out what else runs on the machine; several threads add theirs up.
    alone = args.device.type == "cpu" and args.threads == 1
    args.clock = args.clock or ("cpu_seconds" if alone else "seconds")
    args.name = args.name or f"neutral_{args.suite}"
    return args


@exit_on_input_error
def main(argv: list[str] | None = None) -> None:
    """Search, run, and write results/NAME.json, tables and plot."""
    args = parse(argv)
    torch.set_num_threads(args.threads)
    suite = SUITES[args.suite]
    contenders = find_contenders(args, suite)
    searches = search(contenders, args, suite)
    lrs = {each: its.lr(its.best()) for each, its in searches.items()}
    runs = run_all(jobs_of(lrs, args, suite), args, "run")
    found = contests(runs, args.at_steps, args.targets, args.clock, args.against)
    text = tables(found, {each for each, its in searches.items() if its.open()})
    replace_file(args.out / f"{args.name}.md", text.encode())
    write_plot(args.out / f"{args.name}.png", runs, args.clock)
    protocol = {name: value for name, value in vars(args).items() if name != "out"}
    commits = sorted({run.commit for run in runs})
    tried = {str(each): {its.lr(e): its.psnrs[e] for e in sorted(its.psnrs)} for each, its in searches.items()}
    sizes = {str(each): parameters_of(each, args, suite) for each in searches}
    numbers = {
        "protocol": protocol,
        "parameters": sizes,
        "commits_of_runs": commits,
        "contests": found,
        "searches": tried,
    }
    write_result(args.name, numbers)
    print(text)


if __name__ == "__main__":
    main()
