"""Seconds to a PSNR against parameters, of every entrant of results of neutral.py: what nothing else dominates.

    python benchmarks/neutral_pareto.py NAME... [--target 35 --out docs/fields.png]

NAME is a result, such as neutral_fields_128. Only entrants whose runs all reach the PSNR are drawn; a line joins those
that are on the front, i.e. no other is both faster and smaller. Results are only comparable where input, size and
machine are the same, which is checked for input and size.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import RESULTS
from neutral_suites import Contender

from evos.errors import InputError, exit_on_input_error
from evos.runs.files import read_json, save_figure


@dataclass(frozen=True)
class Entrant:
    """A field that was trained with a strategy."""

    contender: Contender
    parameters: int
    seconds: float

    @property
    def name(self) -> str:
        """Field, recipe and strategy."""
        return f"{self.contender.field}, {self.contender.recipe}, {self.contender.strategy}"


def entrants(results: Iterable[dict[str, Any]], target: float) -> list[Entrant]:
    """All whose runs reach ``target`` dB; InputError where results are of other inputs or sizes than the first."""
    found, places = [], []
    for result in results:
        for contest in result["contests"]:
            places.append((contest["size"], [Path(name).name for name in result["protocol"]["inputs"]]))
            if places[-1] != places[0]:
                raise InputError("NAME", f"results of {places[0]} and of {places[-1]}", "one size, the same inputs")
            for row in contest["rows"]:
                measured = row["measures"].get(f"seconds to {target:g}", {"mean": None})
                recipe, keep, size = (contest[key] for key in ("recipe", "keep", "size"))
                steps = max(map(int, row["lr"]))
                contender = Contender(recipe, keep, size, row["field"], row["strategy"], steps)
                if measured["mean"] is not None:
                    found.append(Entrant(contender, result["parameters"][str(contender)], measured["mean"]))
    return found


def front(found: Sequence[Entrant]) -> list[Entrant]:
    """Those that no other beats in both seconds and parameters, from the smallest to the largest."""
    kept: list[Entrant] = []
    for each in sorted(found, key=lambda entrant: (entrant.parameters, entrant.seconds)):
        if not kept or each.seconds < kept[-1].seconds:
            kept.append(each)
    return kept


def write_picture(path: Path, found: Sequence[Entrant], target: float) -> None:
    """Both axes logarithmic; strategies of one field share a colour."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    fields = sorted({each.contender.field for each in found})
    for each in found:
        its, place = each.contender, (each.parameters, each.seconds)
        filled = "none" if its.strategy == "uniform" else None
        axis.scatter(*place, color=f"C{fields.index(its.field)}", facecolors=filled, zorder=3)
        if its.strategy != "uniform":
            text = f"{its.field}, {Path(its.recipe).stem}"
            axis.annotate(text, place, xytext=(6, 4), textcoords="offset points", fontsize="small")
    best = front(found)
    axis.step([e.parameters for e in best], [e.seconds for e in best], "k:", where="post", zorder=1)
    axis.set(xscale="log", yscale="log", xlabel="parameters", ylabel=f"seconds to {target:g} dB")
    axis.set_title("by error: filled; uniformly: open; dotted: the front", fontsize="medium")
    axis.grid(alpha=0.3, which="both")
    save_figure(figure, path)


@exit_on_input_error
def main(argv: list[str] | None = None) -> None:
    """Read, print the front, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--target", type=float, default=35)
    parser.add_argument("--out", type=Path, default=RESULTS / "fields.png")
    args = parser.parse_args(argv)
    found = entrants([read_json(RESULTS / f"{name}.json")["results"] for name in args.names], args.target)
    if not found:
        raise InputError("--target", args.target, "a PSNR that all runs of some entrant reach")
    for each in sorted(found, key=lambda entrant: entrant.seconds):
        mark = "*" if each in front(found) else " "
        print(f"{mark} {each.seconds:8.2f} s {each.parameters:10,} parameters  {each.name}")
    write_picture(args.out, found, args.target)


if __name__ == "__main__":
    main()
