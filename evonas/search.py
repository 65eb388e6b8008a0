"""Multi-objective search for architectures, and what is done with the front.

What was evaluated is on disk before it counts, and nothing is evaluated twice. The archive is the state of a search: to
go on, it is replayed from its seed with the archive answering, so that whatever the moment of a kill, the front is that
of a search that ran through.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from pymoo.indicators.hv import HV

from evonas.archive import Archive
from evonas.evolution import OBJECTIVES, Evolution, RandomSearch, SearchConfig, non_dominated
from evonas.genomes import Genome, GenomeSpace
from evos.config import check_choice
from evos.errors import InputError
from evos.runs.files import read_json, replace_file, save_figure
from evos.runs.progress import Progress
from evos.runs.stopping import Stopped

PICKS = ("error", "knee", "fast")
UNITS = {
    "error": "error",
    "latency": "latency (s)",
    "seconds": "seconds",
    "macs": "multiply-accumulates",
    "parameters": "parameters",
}

Values = Mapping[str, float]
Front = list[tuple[Genome, dict[str, float]]]
"""Genomes with what was measured of them."""


@dataclass(frozen=True)
class Result:
    """What a search found.

    Attributes:
        title: the algorithm.
        names: the objectives.
        evaluated: what was measured of each genome, in the order in which the search asked for them.
        population: the genomes that survived the last generation.
        history: of each generation its number, the evaluations up to it, and the hypervolume of the front so far.
        reference: the point of hypervolume 0, one number an objective.
    """

    title: str
    names: list[str]
    evaluated: dict[Genome, dict[str, float]]
    population: list[Genome]
    history: list[dict[str, float]]
    reference: list[float]

    @property
    def front(self) -> Front:
        """The genomes that no evaluated one dominates, by error."""
        genomes = list(self.evaluated)
        kept = non_dominated(points(self.evaluated.values(), self.names))
        found = [(g, self.evaluated[g]) for g, keep in zip(genomes, kept, strict=True) if keep]
        return sorted(found, key=lambda entry: ([entry[1][name] for name in self.names], entry[0]))


def search(
    space: GenomeSpace,
    config: SearchConfig,
    evaluate: Callable[[Sequence[Genome]], Iterable[tuple[Genome, dict[str, float]]]],
    folder: str | Path,
    *,
    quiet: bool = True,
    stopped: Callable[[], int] | None = None,
    reference: Sequence[float] | None = None,
) -> Result:
    """Search, or go on: the archive in ``folder`` answers for what it holds.

    Args:
        evaluate: gives genomes, never seen before, with their objectives, as they come and in any order; entries
            without all objectives are passed over.
        folder: holds archive.jsonl, and each generation's population, objectives and generator in generations/.
        stopped: the status to exit with if the search is to stop, else 0; asked with each result.
        reference: objectives of hypervolume 0; None: 1.1 times the worst of the first generation.

    Raises:
        InputError: the archive is damaged or of another space, a recorded generation differs from the replayed one, or
            a number is not finite.
        Stopped: ``stopped`` said so; the same call goes on.
    """
    folder, names = Path(folder), config.names
    (folder / "generations").mkdir(parents=True, exist_ok=True)
    archive = Archive(folder / "archive.jsonl", space)
    method = RandomSearch(space, config) if config.algorithm == "random" else Evolution(space, config)
    evaluated: dict[Genome, dict[str, float]] = {}
    best, history, stop = np.empty((0, len(names))), [], stopped or (lambda: 0)
    with Progress(config.population * config.generations, config.algorithm, quiet=quiet) as progress:
        for number in range(1, config.generations + 1):
            genomes = method.ask()
            if not genomes:
                break
            missing = [genome for genome in genomes if not archive.values.get(genome, {}).keys() >= set(names)]
            for genome, values in evaluate(missing) if missing else ():
                if values.keys() >= set(names):
                    archive.add(genome, values)
                if status := stop():
                    raise Stopped(status)
            try:
                evaluated |= {genome: archive.values[genome] for genome in genomes}
                F = points([evaluated[genome] for genome in genomes], names)
            except KeyError as error:
                raise RuntimeError(f"the evaluation gave no result for {error}") from None
            method.tell(F)
            best = np.concatenate([best, F])
            best = best[non_dominated(best)]
            if reference is None:
                worst = F.max(0)
                reference = np.where(worst > 0, 1.1 * worst, 1.0).tolist()
            volume = hypervolume(best, np.array(reference, float))
            history.append({"generation": number, "evaluations": len(evaluated), "hypervolume": volume})
            survivors = [evaluated[genome] for genome in method.population]
            state = {"X": method.population, "F": points(survivors, names), "generator": method.generator}
            record(folder / "generations" / f"{number:04}.json", history[-1], state)
            progress.update(len(evaluated), hypervolume=volume, error=min(v["error"] for v in evaluated.values()))
    return Result(config.algorithm, names, evaluated, method.population, history, list(reference or []))


def record(path: Path, entry: Values, state: Mapping[str, Any]) -> None:
    """Write a generation, or check it against what was written before it was replayed.

    Raises:
        InputError: it differs.
    """
    own = {"X": state["X"], "F": state["F"].tolist(), "generator": state["generator"].bit_generator.state}
    own = json.loads(json.dumps(own))
    if path.exists():
        found = read_json(path)
        if not isinstance(found, dict) or any(found.get(name) != value for name, value in own.items()):
            got = f"generation {entry['generation']:g}, which differs from the one replayed"
            raise InputError(str(path), got, "the options, the archive and the version of pymoo it was recorded with")
    else:
        replace_file(path, json.dumps({**entry, **own}).encode())


def points(values: Iterable[Values], names: Sequence[str]) -> Float[np.ndarray, "G M"]:
    """Objectives as an array; raises KeyError where one is missing."""
    return np.array([[float(own[name]) for name in names] for own in values], float).reshape(-1, len(names))


def hypervolume(
    F: Float[np.ndarray, "G M"], reference: Float[np.ndarray, "M"], ideal: Float[np.ndarray, "M"] | None = None
) -> float:
    """The fraction, 0 to 1, of the box from ``ideal`` (None: the origin) to ``reference`` that the points dominate."""
    ideal = np.zeros_like(reference) if ideal is None else ideal
    places = np.clip((F - ideal) / (reference - ideal), 0, None)
    places = places[(places < 1).all(1)]
    volume: Any = HV(ref_point=np.ones(len(reference)))(places) if len(places) else 0
    return float(volume)


# ---- what is done with the front


def pick(front: Front, by: str) -> Genome:
    """One genome of a front: of least ``error``; at the ``knee``, i.e. of the least sum of objectives, each scaled to
    [0, 1] over the front; ``fast``, of least latency or seconds, or MACs or parameters where there are neither.

    Raises:
        InputError: another word, or an empty front.
    """
    check_choice("pick", by, PICKS)
    if not front:
        raise InputError("front", front, "at least one genome")
    names = [name for name in OBJECTIVES if all(name in values for _, values in front)]
    F = points((values for _, values in front), names)
    spread = np.ptp(F, axis=0)
    sums = ((F - F.min(0)) / np.where(spread > 0, spread, 1)).sum(1)
    scores = {"error": F[:, 0], "knee": sums, "fast": F[:, min(1, len(names) - 1)]}[by]
    return front[int(np.lexsort((sums, scores))[0])][0]


def write_front(path: Path, front: Front, space: GenomeSpace) -> None:
    """A table: genes, objectives (empty where not measured) and the architecture in words, in the front's order."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns(space))
    for genome, values in front:
        numbers = [repr(values[name]) if name in values else "" for name in space.objectives]
        table.writerow([" ".join(map(str, genome)), *numbers, space.describe(genome)])
    replace_file(path, text.getvalue().encode())


def columns(space: GenomeSpace) -> tuple[str, ...]:
    """Of the table of a front."""
    return "genome", *space.objectives, "architecture"


def read_front(path: str | Path, space: GenomeSpace) -> Front:
    """The front that ``write_front`` wrote.

    Raises:
        InputError: there is none, or it is damaged or of another space.
    """
    try:
        table = csv.DictReader(io.StringIO(Path(path).read_text(encoding="utf-8")))
        if tuple(table.fieldnames or ()) != columns(space):
            raise ValueError("other columns")
        rows = list(table)
        genomes = [[int(gene) for gene in row["genome"].split()] for row in rows]
        values = [{name: float(row[name]) for name in space.objectives if row[name]} for row in rows]
    except OSError as error:
        raise InputError(str(path), error.strerror or str(error), "the front.csv of a search") from error
    except (ValueError, AttributeError, csv.Error) as error:
        raise InputError(str(path), f"a damaged table ({error})", "the front.csv of a search") from error
    return [(space.check(genome), own) for genome, own in zip(genomes, values, strict=True)]


def write_report(result: Result, space: GenomeSpace, folder: str | Path, others: Sequence[Result] = ()) -> None:
    """front.csv, pareto.png and hypervolume.png; other searches, such as a random one, beside it in the pictures."""
    from matplotlib.figure import Figure

    folder, shown = Path(folder), [result, *others]
    write_front(folder / "front.csv", result.front, space)
    costs = [name for name in result.names if name != "error"]
    figure = Figure(figsize=(5 * len(costs), 4), layout="constrained")
    for axis, name in zip(np.atleast_1d(figure.subplots(1, len(costs))), costs, strict=True):
        for own in shown:
            front = points((values for _, values in own.front), [name, "error"])
            axis.scatter(*front.T, s=12, label=own.title)
        axis.set(xlabel=UNITS.get(name, name), ylabel="error")
        add_legend(axis)
    save_figure(figure, folder / "pareto.png")
    figure = Figure(figsize=(6, 4), layout="constrained")
    plot_hypervolumes(figure.subplots(), shown)
    save_figure(figure, folder / "hypervolume.png")


def plot_hypervolumes(axis: Any, results: Sequence[Result]) -> None:
    """Hypervolumes of the fronts so far over evaluations."""
    for own in results:
        axis.plot(*zip(*((e["evaluations"], e["hypervolume"]) for e in own.history), strict=True), label=own.title)
    axis.set(xlabel="evaluations", ylabel="hypervolume of the front so far")
    add_legend(axis)


def add_legend(axis: Any) -> None:
    """A grid and a legend."""
    axis.grid(alpha=0.3)
    axis.legend()
