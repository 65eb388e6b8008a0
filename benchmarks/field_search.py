"""Fields found by a search beside SIREN and hash grids, and NSGA-II beside random search and Optuna's TPE.

    python benchmarks/field_search.py --suite photos --evaluations 144 --seconds 1 --test_seconds 1 4 --seeds 0 1 2

Every search has the same evaluator, brackets and number of evaluations, on the suite's four search signals. The field
of least error that each has found is then trained on other signals by image_regression itself until it has taken so
many seconds of one CPU thread (process time: the machine may be busy), and so are the fields that ship.
Everything is kept under --out: the same command goes on where it stopped.
"""

import argparse
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from time import process_time
from typing import Any

import numpy as np
import torch
from common import write_result

from evonas.field_evaluation import FieldEvaluator, Measuring
from evonas.field_search import FieldSearchConfig, parse
from evonas.field_space import FieldSpace, field_parameters
from evonas.genomes import Genome
from evonas.search import search
from evos.errors import InputError
from evos.runs import keep_freed_memory, read_json, write_json
from evos.signals import Signal, from_sound, load
from evos.sounds import is_sound, read_sound
from image_regression.options import from_values
from image_regression.trainer import Fit

ROOT = Path(__file__).parents[1]
SAMPLES = 16384
"""Of each sound, from its start: a second of speech."""
PARTS = {"selector": "error", "transform": "min_max"}


@dataclass(frozen=True)
class Suite:
    """Signals of the search and of the test, as patterns of files and how many of each are taken; the options of both.

    ``rows``: the fields that ship, with which those found are compared, the first one above all.
    """

    search: Sequence[tuple[str, int]]
    test: Sequence[tuple[str, int]]
    config: str
    rows: dict[str, dict[str, Any]]


PICTURE_ROWS: dict[str, dict[str, Any]] = {
    "siren_3x256_fast": {"field": "siren"},
    "hashgrid_default": {"field": "hashgrid", "optimizer": "adam", "lr": 1e-2},
    "hashgrid_of_equal_size": {"field": "hashgrid", "field.table_log2": 12, "optimizer": "adam", "lr": 1e-2},
}
SOUND = {"field.first_omega": 3000, "lr": 2.5e-4}
WIDE = {"field.base_resolution": 64, "field.finest_resolution": 16384}
SOUND_ROWS: dict[str, dict[str, Any]] = {
    "siren_3x256_fast": {"field": "siren", **SOUND},
    "hashgrid_default": {"field": "hashgrid", **WIDE, "optimizer": "adam", "lr": 1e-2},
    "hashgrid_of_equal_size": {
        **{"field": "hashgrid", **WIDE, "field.table_log2": 12},
        **{"optimizer": "adam", "lr": 1e-2},
    },
}
SUITES = {
    "photos": Suite(
        [("div2k/train_data/*.png", 4)],
        [("div2k/test_data/*.png", 4), ("set14/f*.png", 3), ("set14/monarch.png", 1)],
        "field",
        PICTURE_ROWS,
    ),
    "text": Suite([("text/train_data/*.png", 4)], [("text/test_data/*.png", 4)], "field", PICTURE_ROWS),
    "speech": Suite(
        [("libri_test_clean_121726/0[0-3].flac", 4)],
        [("libri_test_clean_121726/0[4-9].flac", 6)],
        "field_sound",
        SOUND_ROWS,
    ),
}


def signals_of(patterns: Iterable[tuple[str, int]], data: Path, size: int) -> list[Signal]:
    """The suite's signals: pictures of ``size`` pixels along their longer sides, the first SAMPLES of sounds."""
    paths = [path for pattern, count in patterns for path in sorted(data.glob(pattern))[:count]]
    if not paths:
        raise InputError("--data", str(data), f"a folder with {', '.join(pattern for pattern, _ in patterns)}")
    return [read_start(path) if is_sound(path) else load(path, size) for path in paths]


def read_start(path: Path) -> Signal:
    """The first SAMPLES of a sound."""
    sound = read_sound(path)
    return from_sound(path.stem, replace(sound, samples=sound.samples[:SAMPLES]))


# ---- searches


def tpe(space: FieldSpace, config: FieldSearchConfig, evaluate: Callable) -> dict[Genome, dict]:
    """Optuna's tree-structured Parzen estimator with the genes that a family has, asked for a generation at a time.

    It is told the error alone, which is what is compared. A field that it asks for again is told at once what is known,
    and doesn't count as an evaluation.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    sampler = optuna.samplers.TPESampler(
        seed=config.seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=config.population
    )
    study = optuna.create_study(direction="minimize", sampler=sampler)
    for genome in space.start:
        genes = dict(zip(space.names, genome, strict=True))
        family = space.choices["family"][genes["family"]]
        own = {f"{family}_{name}": genes[name] for name in [*space.used(family), "optimizer", "lr"]}
        study.enqueue_trial({"family": family} | own)
    evaluated: dict[Genome, dict] = {}
    for _ in range(config.generations):
        asked: dict[Genome, Any] = {}
        for _ in range(40 * config.population):
            trial = study.ask()
            family = str(trial.suggest_categorical("family", space.choices["family"]))
            genes = {name: 0 for name in space.names} | {"family": space.choices["family"].index(family)}
            for name in [*space.used(family), "optimizer", "lr"]:
                genes[name] = trial.suggest_int(f"{family}_{name}", 0, len(space.choices[name]) - 1)
            genome = space.repair(list(genes.values()))
            if genome in evaluated:
                study.tell(trial, evaluated[genome]["error"])
            elif genome in asked:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                asked[genome] = trial
            if len(asked) == config.population:
                break
        for genome, values in evaluate(list(asked)):
            evaluated[genome] = values
            study.tell(asked[genome], values["error"])
    return evaluated


def run_searches(args: argparse.Namespace, space: FieldSpace, setting: Measuring) -> dict[str, dict[int, dict]]:
    """What every algorithm has measured with every seed, in the order in which it asked."""
    found: dict[str, dict[int, dict]] = {}
    for seed, algorithm in product(args.seeds, args.algorithms):
        folder = args.out / args.suite / "search" / f"{algorithm}-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        config = FieldSearchConfig(
            algorithm="nsga2" if algorithm == "tpe" else algorithm,
            population=args.population,
            generations=args.evaluations // args.population,
            objectives="[error, seconds]",
            seed=seed,
        )
        start = process_time()
        with FieldEvaluator(setting, folder, workers=args.workers) as evaluate:
            if algorithm == "tpe":
                evaluated = tpe(space, config, evaluate)
            else:
                evaluated = search(space, config, evaluate, folder).evaluated
        found.setdefault(algorithm, {})[seed] = evaluated
        best = min(evaluated, key=lambda genome: evaluated[genome]["error"])
        shown = f"{-20 * np.log10(evaluated[best]['error']):.2f} dB {space.describe(best)}"
        print(f"{algorithm} {seed}: {len(evaluated)}, driver {process_time() - start:.0f} s, {shown}", flush=True)
    return found


def best_so_far(evaluated: dict[Genome, dict], each: int) -> dict[int, float]:
    """Best PSNR in dB after so many evaluations, a generation after the other."""
    psnrs = [-20 * np.log10(values["error"]) for values in evaluated.values()]
    return {n: round(float(max(psnrs[:n])), 3) for n in [*range(each, len(psnrs), each), len(psnrs)]}


# ---- the test


def psnrs_at(job: tuple[Signal, dict[str, Any], tuple[float, ...]]) -> list[float]:
    """PSNR of a fit after so many CPU seconds of training, evaluation left out."""
    signal, values, budgets = job
    options = from_values({"recipe": "fast", "steps": 10**6, **values}, {**PARTS, "field": values["field"]})
    options = replace(options, sized=())  # the rows say all sizes
    fit = Fit(signal, options, torch.device("cpu"))
    spent, step, found = 0.0, 0, []
    while len(found) < len(budgets):
        start, step = process_time(), step + 1
        fit.step(step)
        spent += process_time() - start
        if spent >= budgets[len(found)]:
            found.append(round(fit.psnr(), 4) if signal.sound is None else sound_psnr(fit))
    return found


def sound_psnr(fit: Fit) -> float:
    """PSNR of a sound, unclamped."""
    error = (fit.predict().double() - fit.values.double()).square().mean()
    return round((-10 * error.log10()).item(), 4)


def prepare() -> None:
    """Of a worker: one thread, and the one-time costs of the first steps of each kind."""
    torch.set_num_threads(1)
    keep_freed_memory("cpu")
    pixels = Signal("warm", torch.rand(256, 3), (16, 16))
    for family, optimizer in product(("siren", "hashgrid"), ("adam", "schedule_free", "soap")):
        psnrs_at((pixels, {"field": family, "optimizer": optimizer, "field.hidden_features": 8}, (0.01,)))


def test(args: argparse.Namespace, suite: Suite, rows: dict[str, dict[int, dict[str, Any]]]) -> dict[str, dict]:
    """PSNR of each row, by seed and signal, at each of the budgets; kept in a file, and not made again."""
    signals = signals_of(suite.test, args.data, args.size)
    path = args.out / args.suite / f"test-{args.size}.json"
    known: dict[str, list[float]] = read_json(path) if path.exists() else {}
    jobs = {}
    for seed, signal, name in product(args.seeds, signals, rows):
        key = f"{name} {seed} {signal.name} {args.test_seconds} {rows[name][seed]}"
        jobs[key] = (signal, {**rows[name][seed], "seed": seed}, tuple(args.test_seconds))
    left = [key for key in jobs if key not in known]
    with ProcessPoolExecutor(args.workers, get_context("spawn"), prepare) as pool:
        for key, found in zip(left, pool.map(psnrs_at, [jobs[key] for key in left]), strict=True):
            known[key] = found
            write_json(path, known)
    table: dict[str, dict] = {}
    for key in jobs:
        name, seed, signal = key.split(" ")[:3]
        table.setdefault(name, {}).setdefault(seed, {})[signal] = known[key]
    return table


def summary(table: dict[str, dict], budgets: Sequence[float], first: str) -> dict[str, Any]:
    """Mean PSNR of each row, over signals by seed and over all, and how far it is above the first one."""
    found: dict[str, Any] = {}
    for name, (place, budget) in product(table, enumerate(budgets)):
        means = [fmean(own[place] for own in signals.values()) for signals in table[name].values()]
        above = [
            own[place] - table[first][seed][signal][place]
            for seed, signals in table[name].items()
            for signal, own in signals.items()
        ]
        found.setdefault(name, {})[f"{budget:g} s"] = {
            "psnr": round(fmean(means), 3),
            "by_seed": [round(mean, 3) for mean in means],
            f"above_{first}": round(fmean(above), 3),
            "least_above": round(min(above), 3),
            "wins": f"{sum(each > 0 for each in above)} of {len(above)}",
        }
    return found


def main() -> None:
    """Search, test, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=SUITES, default="photos")
    parser.add_argument("--algorithms", nargs="+", default=["nsga2", "random", "tpe"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--evaluations", type=int, default=144, help="of a search, a multiple of --population")
    parser.add_argument("--population", type=int, default=18)
    parser.add_argument("--seconds", type=float, default=1.0, help="of training a field on a signal in the search")
    parser.add_argument("--test_seconds", type=float, nargs="+", default=[1.0, 4.0])
    parser.add_argument("--size", type=int, default=128, help="longer side of pictures")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=Path("runs/field_search"))
    parser.add_argument("--name", help="name of the result; none: field_search_SUITE")
    args = parser.parse_args()
    suite = SUITES[args.suite]
    signals = signals_of(suite.search, args.data, args.size)
    axes, channels = len(signals[0].shape), signals[0].values.shape[-1]
    options = parse([f"--config={ROOT / 'configs' / 'evonas' / suite.config}.yaml"])
    siren = from_values({"recipe": "fast"}, {**PARTS, "field": "siren"}).field
    limit = field_parameters(siren, axes, channels)
    space = FieldSpace(replace(options.space, max_parameters=limit), axes, channels)
    train = replace(options.train, seconds=args.seconds)
    setting = Measuring(space, signals, train, ["error", "seconds"], 0, torch.device("cpu"))
    searches = run_searches(args, space, setting)

    report: dict[str, Any] = {}
    rows = {name: {seed: values for seed in args.seeds} for name, values in suite.rows.items()}
    for name, seeds in searches.items():
        for seed, evaluated in seeds.items():
            best = min(evaluated, key=lambda genome: evaluated[genome]["error"])
            own = {"field": space.describe(best), "parameters": space.parameters(best)}
            report.setdefault(name, {})[seed] = own | {"best_psnr": best_so_far(evaluated, args.population)}
            rows.setdefault(f"found_by_{name}", {})[seed] = space.decode(best).values()
    table = test(args, suite, rows)
    settings = {name: value for name, value in vars(args).items() if name not in ("data", "out", "name")}
    sizes = {}
    for name, values in suite.rows.items():
        own = from_values({"recipe": "fast", **values}, {**PARTS, "field": values["field"]}).field
        sizes[name] = field_parameters(own, axes, channels)
    shown = {
        "settings": settings | {"train": vars(train), "most_parameters": limit},
        "clock": "process time of one thread; the machine was shared",
        "test": summary(table, args.test_seconds, next(iter(suite.rows))),
        "parameters": sizes,
        "searches": report,
        "psnr": table,
    }
    write_result(args.name or f"field_search_{args.suite}", shown)


if __name__ == "__main__":
    main()
