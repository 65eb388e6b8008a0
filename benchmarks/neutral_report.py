"""The report of neutral.py: pure functions from curves to measures, tests, tables, and a plot.

A contest is a recipe, a fraction of points kept and a size; its entrants are the strategies, of each field. An entrant
has a run of each length for each pair of input and seed: at equal cost, and in time to a PSNR, the best of them counts.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from neutral_suites import Contender
from scipy.stats import wilcoxon

from evos.runs.files import save_figure
from image_regression.summary import markdown_table
from image_regression.tables import seconds_to

Curve = Sequence[Mapping[str, float]]
"""Entries with step, seconds, cpu_seconds, points and psnr; the first is step 0."""

Values = Mapping[tuple[str, int], float]
"""A value for each pair of input and seed; inf where a PSNR is never reached."""

REFERENCES = ("full", "uniform")
"""Strategies that every other is tested against where the command line names none."""

BUDGETS = (0.5, 1.0)
"""Equal costs, as fractions of what the longest uniform run costs on the same input and seed."""

RANKED_BY = "psnr@1 seconds"

LEGEND = """
PSNR in dB, mean over inputs and seeds ± standard deviation over seeds. *0.5 seconds*: in half of the seconds that the
longest uniform run takes on the same input and seed, of the runs of all lengths the best; points alike. *- full*: dB
above full at *1 seconds*; */ full*: time over full's, geometric mean over the pairs in which both reach the PSNR.
p: Wilcoxon's signed-rank test over pairs of input and seed, two-sided, not corrected for the number of tests. *3 of
12*: runs that reach the PSNR, where not all do. lr: by length of run, * at an end of its search.
"""


@dataclass(frozen=True)
class Run:
    """One finished run."""

    contender: Contender
    input: str
    seed: int
    lr: float
    cfs: bool
    curve: Curve
    commit: str


# ---- measures of one pair of input and seed --------------------------------------------------------------------------


def psnr_at(curve: Curve, axis: str, cost: float) -> float:
    """PSNR of a curve at ``cost`` in steps, seconds or points, interpolated linearly; beyond its end its last."""
    return float(np.interp(cost, [entry[axis] for entry in curve], [entry["psnr"] for entry in curve]))


def best_at(curves: Iterable[Curve], axis: str, cost: float) -> float:
    """The highest PSNR that one of several runs has at ``cost``."""
    return max(psnr_at(curve, axis, cost) for curve in curves)


def least_seconds(curves: Iterable[Curve], clock: str, psnr: float) -> float:
    """Seconds in which the first of several runs reaches ``psnr``, each started at 0; inf if none does."""
    timed = ([{"seconds": entry[clock], "psnr": entry["psnr"]} for entry in curve] for curve in curves)
    reached = (seconds_to(psnr, curve) for curve in timed)
    return min((seconds for seconds in reached if seconds is not None), default=math.inf)


def measures(
    runs: Mapping[int, Curve],
    budget: Mapping[str, float],
    at_steps: Iterable[int],
    targets: Iterable[float],
    clock: str,
) -> dict[str, float]:
    """All measures of an entrant's runs, a curve for each length; ``budget``: what 1 means in points and seconds."""
    found = {f"psnr@{step}": psnr_at(runs.get(step, runs[max(runs)]), "step", step) for step in at_steps}
    for name, axis in (("points", "points"), ("seconds", clock)):
        for share in BUDGETS:
            found[f"psnr@{share:g} {name}"] = best_at(runs.values(), axis, share * budget[axis])
    return found | {f"seconds to {psnr:g}": least_seconds(runs.values(), clock, psnr) for psnr in targets}


# ---- over all pairs --------------------------------------------------------------------------------------------------


def summary(values: Values) -> dict[str, Any]:
    """Mean (None unless all are finite), standard deviation over seeds of means over inputs, how many are finite."""
    finite = [value for value in values.values() if math.isfinite(value)]
    complete = len(finite) == len(values)
    seeds = sorted({seed for _, seed in values})
    of_seed = [mean(value for (_, its), value in values.items() if its == seed) for seed in seeds]
    spread = stdev(of_seed) if complete and len(seeds) > 1 else None
    return {"mean": mean(finite) if complete else None, "spread": spread, "reached": len(finite), "of": len(values)}


def signed_rank(differences: Iterable[float]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test that differences are symmetric around 0.

    Those that are 0 are left out (p is 1 where all are); an infinite one ranks above every finite one.
    """
    kept = np.array([each for each in differences if each != 0])
    if not len(kept):
        return 1.0
    largest = max((abs(each) for each in kept if math.isfinite(each)), default=0.0) + 1
    result: Any = wilcoxon(np.clip(kept, -largest, largest))
    return float(result.pvalue)


def paired(mine: Values, reference: Values, *, logarithmic: bool) -> dict[str, Any]:
    """How values differ from a reference's, pair by pair: mean difference, or geometric mean of ratios, and p.

    The mean is over the pairs where both are finite (None without one), the test over all: both infinite is a tie.
    """
    both = [(mine[pair], reference[pair]) for pair in mine]
    if logarithmic:
        both = [(math.log(max(a, 1e-6)), math.log(max(b, 1e-6))) for a, b in both]  # 0 s: reached untrained
    differences = [0.0 if a == b else a - b for a, b in both]
    finite = [a - b for a, b in both if math.isfinite(a) and math.isfinite(b)]
    centre = mean(finite) if finite else None
    value = {"ratio": None if centre is None else math.exp(centre)} if logarithmic else {"difference": centre}
    return value | {"p": signed_rank(differences), "pairs": len(finite)}


# ---- contests --------------------------------------------------------------------------------------------------------


def contests(
    runs: Iterable[Run],
    at_steps: Iterable[int],
    targets: Iterable[float],
    clock: str,
    references: Sequence[str] = REFERENCES,
) -> list[dict[str, Any]]:
    """Every contest with a row for each entrant, the highest PSNR at equal seconds first.

    Equal costs are those of the first field's longest uniform run (full where there is none, else the first entrant).
    ``clock``: seconds or cpu_seconds; ``references``: the strategies that the others are tested against.
    """
    grouped: dict[tuple[str, str, int], dict[tuple[str, str], list[Run]]] = {}
    for run in runs:
        its = run.contender
        entrants = grouped.setdefault((its.recipe, its.keep, its.size), {})
        entrants.setdefault((its.field, its.strategy), []).append(run)
    found = []
    for (recipe, keep, size), entrants in grouped.items():
        lengths = {run.contender.steps for each in entrants.values() for run in each}
        steps = sorted(lengths | set(at_steps))
        field = next(iter(entrants))[0]
        named = (entrants[field, name] for name in ("uniform", "full") if (field, name) in entrants)
        yardstick = curves(next(named, next(iter(entrants.values()))))
        budgets = {pair: lines[max(lines)][-1] for pair, lines in yardstick.items()}
        values: dict[tuple[str, str], dict[str, Values]] = {}
        for entrant, its_runs in entrants.items():
            of_pair = {
                pair: measures(lines, budgets[pair], steps, targets, clock) for pair, lines in curves(its_runs).items()
            }
            names = next(iter(of_pair.values()))
            values[entrant] = {name: {pair: each[name] for pair, each in of_pair.items()} for name in names}
        rows = [entrant_row(entrant, its_runs, values, references) for entrant, its_runs in entrants.items()]
        rows.sort(key=lambda row: -row["measures"][RANKED_BY]["mean"])
        place = {"recipe": recipe, "keep": keep, "size": size, "clock": clock, "references": list(references)}
        found.append({**place, "rows": rows})
    return found


def curves(runs: Iterable[Run]) -> dict[tuple[str, int], dict[int, Curve]]:
    """The curves of an entrant by pair of input and seed, and by length."""
    found: dict[tuple[str, int], dict[int, Curve]] = {}
    for run in runs:
        found.setdefault((run.input, run.seed), {})[run.contender.steps] = run.curve
    return found


def entrant_row(
    entrant: tuple[str, str],
    runs: Sequence[Run],
    values: Mapping[tuple[str, str], Mapping[str, Values]],
    references: Iterable[str],
) -> dict[str, Any]:
    """An entrant's measures over all pairs, and its difference from the reference strategies of its field."""
    field, strategy = entrant
    row: dict[str, Any] = {"field": field, "strategy": strategy, "cfs": runs[0].cfs}
    row["lr"] = {run.contender.steps: run.lr for run in runs}
    row["diverged"] = sum(run.curve[-1]["psnr"] == 0 for run in runs)
    row["wall_over_cpu"] = mean(run.curve[-1]["seconds"] / run.curve[-1]["cpu_seconds"] for run in runs)
    row["measures"] = {name: summary(each) for name, each in values[entrant].items()}
    row["against"] = {
        reference: {
            name: paired(each, values[field, reference][name], logarithmic=name.startswith("seconds"))
            for name, each in values[entrant].items()
        }
        for reference in references
        if (field, reference) in values and strategy != reference
    }
    return row


# ---- tables ----------------------------------------------------------------------------------------------------------


def tables(found: Sequence[Mapping[str, Any]], edges: Iterable[Contender] = ()) -> str:
    """Markdown: all contests in one table, then quality and time of each; ``edges``: see lr_text."""
    parts = ["# All contests: rank by PSNR at equal seconds, and dB above uniform\n", ranking(found)]
    for contest in found:
        title = f"{contest['recipe']}, {contest['keep']} of the points, {contest['size']}"
        parts += [f"# {title}\n", quality_table(contest, set(edges)), time_table(contest)]
    return "\n".join([*parts, LEGEND.lstrip()])


def ranking(found: Sequence[Mapping[str, Any]]) -> str:
    """A line for each entrant, a column for each contest, the best mean rank first."""
    places: dict[tuple[str, str, str], dict[int, tuple[int, str]]] = {}
    for column, contest in enumerate(found):
        for rank, row in enumerate(contest["rows"], 1):
            more = gain(row, "uniform").partition(" ")[0]
            places.setdefault(head(row), {})[column] = (rank, f"{rank} ({more})")
    average = {entrant: mean(rank for rank, _ in its.values()) for entrant, its in places.items()}
    lines = [
        [
            *entrant,
            *(places[entrant].get(column, (0, "-"))[1] for column in range(len(found))),
            f"{average[entrant]:.1f}",
        ]
        for entrant in sorted(places, key=lambda each: average[each])
    ]
    columns = [f"{each['recipe']} {each['keep']} {each['size']}" for each in found]
    return markdown_table(["field", "strategy", "CFS", *columns, "mean rank"], lines)


def quality_table(contest: Mapping[str, Any], edges: set[Contender]) -> str:
    """PSNR at equal steps, points and seconds, ± deviation over seeds, and gains at equal seconds with their p."""
    names = [name for name in contest["rows"][0]["measures"] if name.startswith("psnr@")]
    lines = []
    for row in contest["rows"]:
        cells = [psnr_text(row["measures"][name]) for name in names]
        lines.append(
            [*head(row), lr_text(contest, row, edges), *cells, *(gain(row, name) for name in contest["references"])]
        )
    columns = [f"{name.removeprefix('psnr@')}{'' if ' ' in name else ' steps'}" for name in names]
    return markdown_table(
        ["field", "strategy", "CFS", "lr", *columns, *(f"- {name}" for name in contest["references"])], lines
    )


def time_table(contest: Mapping[str, Any]) -> str:
    """Seconds to each PSNR that any run reached, and as fractions of the reference strategies', with p."""
    rows, references = contest["rows"], contest["references"]
    names = [name for name in rows[0]["measures"] if name.startswith("seconds")]
    names = [name for name in names if any(row["measures"][name]["reached"] for row in rows)]
    columns = [each for name in names for each in (name.replace("seconds", "s"), *(f"/ {its}" for its in references))]
    lines = []
    for row in rows:
        cells = [
            each
            for name in names
            for each in (time_text(row["measures"][name]), *relative_times(row, name, references))
        ]
        lines.append([*head(row), *cells])
    return markdown_table(["field", "strategy", "CFS", *columns], lines)


def head(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Field, strategy, and whether it had cross-frequency supervision."""
    return row["field"], row["strategy"], "yes" if row["cfs"] else "no"


def lr_text(contest: Mapping[str, Any], row: Mapping[str, Any], edges: set[Contender]) -> str:
    """Learning rates by length of run; * at an end of the search, beyond which a better one may lie."""
    place = contest["recipe"], contest["keep"], contest["size"], row["field"], row["strategy"]
    texts = (f"{lr:.1e}{'*' if Contender(*place, steps) in edges else ''}" for steps, lr in row["lr"].items())
    return " / ".join(texts)


def psnr_text(value: Mapping[str, Any]) -> str:
    """Mean ± standard deviation."""
    return f"{value['mean']:.2f}" + ("" if value["spread"] is None else f" ± {value['spread']:.2f}")


def time_text(value: Mapping[str, Any]) -> str:
    """Mean seconds, or how many runs reached the PSNR where not all did."""
    return f"{value['reached']} of {value['of']}" if value["mean"] is None else f"{value['mean']:.3g}"


def gain(row: Mapping[str, Any], reference: str) -> str:
    """dB above a reference at equal seconds, with p; a dash for the reference itself."""
    test = row["against"].get(reference, {}).get(RANKED_BY)
    return "-" if test is None else f"{test['difference']:+.2f} (p {test['p']:.2g})"


def relative_times(row: Mapping[str, Any], name: str, references: Iterable[str]) -> list[str]:
    """Time over each reference's, with p; a dash for the reference itself, or where there is no such pair."""
    tests = [row["against"].get(reference, {}).get(name) for reference in references]
    return [
        "-" if test is None or test["ratio"] is None else f"{test['ratio']:.2f} (p {test['p']:.2g})" for test in tests
    ]


# ---- plot ------------------------------------------------------------------------------------------------------------


def write_plot(path: Path, runs: Sequence[Run], clock: str) -> None:
    """PSNR over seconds of the longest runs, both averaged over inputs and seeds; a panel for each contest."""
    import matplotlib.pyplot as plt

    panels: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        its = run.contender
        if its.steps == max(each.contender.steps for each in runs):
            panel = panels.setdefault(f"{its.recipe} {its.keep} {its.size}", {})
            panel.setdefault(f"{its.field} {its.strategy}", []).append(run)
    figure, axes = plt.subplots(len(panels), figsize=(9, 5 * len(panels)), layout="constrained", squeeze=False)
    for axis, (title, entrants) in zip(axes[:, 0], panels.items(), strict=True):
        for place, (name, its_runs) in enumerate(entrants.items()):
            columns = list(zip(*(run.curve[1:] for run in its_runs), strict=False))  # a diverged run ends early
            seconds = [mean(entry[clock] for entry in column) for column in columns]
            psnrs = [mean(entry["psnr"] for entry in column) for column in columns]
            axis.semilogx(seconds, psnrs, ("-", "--", ":")[place // 10 % 3], color=f"C{place % 10}", label=name)
        axis.set(title=title, xlabel=clock.replace("_", " "), ylabel="PSNR (dB)")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    save_figure(figure, path)
    plt.close(figure)
