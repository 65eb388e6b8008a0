"""A first look: every stage on rendered rooms, tiny, on two CPU cores.

    make demo-nas

Ends with runs/demo-nas/report.png: the front of some generations, the hypervolume beside that of a random search of as
many evaluations, and depth maps of three networks found beside the truth, in rooms that nothing was chosen on.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evonas.networks import load_network
from evonas.options import PICKS, Options, parse
from evonas.report import draw_results
from evonas.rooms import RoomsConfig, write_rooms
from evonas.search import Result, add_legend, non_dominated, plot_hypervolumes
from evonas.stages import STAGE_FUNCTIONS, search_in
from evonas.supernet import macs
from evonas.tasks import build_task
from evos.command_line import parse_options
from evos.config import check_range
from evos.distributed import World
from evos.errors import exit_on_input_error
from evos.runs import Stopper, open_run, read_json
from evos.runs.files import save_figure
from evos.runs.folder import check_run_folder

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class DemoConfig:
    """Options of the demonstration."""

    out: str = "runs/demo-nas"
    """Folder for the rooms, the stages and the report."""

    rooms: int = 150
    """Rooms to train on, at least 2; a tenth as many, but at least 2, to choose and to report."""

    generations: int = 8
    """Generations of the search, at least 2."""

    scale: float = 1.0
    """Factor on all training steps, above 0."""

    overwrite: bool = False
    """Replace an existing demonstration."""

    def __post_init__(self) -> None:
        check_range("rooms", self.rooms, 2)
        check_range("generations", self.generations, 2)
        check_range("scale", self.scale, 0, open_low=True)


def options_of(config: DemoConfig) -> Options:
    """The options of all stages."""
    words = [f"out={config.out}", f"data.root={config.out}/rooms", f"search.generations={config.generations}"]
    _, options = parse(["run", f"--config={ROOT / 'configs' / 'evonas' / 'demo.yaml'}", *words])
    phases = tuple({**phase, "steps": max(1, round(config.scale * float(phase["steps"])))} for phase in options.phases)
    steps = max(1, round(config.scale * (options.retrain.steps or 1)))
    return replace(
        options,
        phases=phases,
        retrain=replace(options.retrain, steps=steps),
        run=replace(options.run, overwrite=config.overwrite),
    )


def generations(folder: Path) -> list[np.ndarray]:
    """The objectives of each generation's survivors."""
    return [np.array(json.loads(path.read_text())["F"]) for path in sorted((folder / "generations").glob("*.json"))]


def report(options: Options, found: Result, random: Result) -> None:
    """The picture."""
    from matplotlib.figure import Figure

    out = Path(options.run.out)
    figure = Figure(figsize=(14, 9), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(1, 1.2))
    top, bottom = parts
    fronts, volumes = top.subplots(1, 2)
    cost = found.names.index("macs")
    history = generations(out / "search")
    for number in sorted({0, len(history) // 3, len(history) - 1}):
        points = history[number][non_dominated(history[number][:, [0, cost]])]
        points = points[points[:, cost].argsort()]
        fronts.plot(points[:, cost] / 1e6, points[:, 0], "o-", markersize=3, label=f"generation {number + 1}")
    fronts.set(xlabel="million multiply-accumulates", ylabel="Abs Rel on the search rooms", title="error and cost")
    add_legend(fronts)
    plot_hypervolumes(volumes, [found, random])
    volumes.set_title("what is dominated")
    size, networks = (options.data.height, options.data.width), {}
    for name in PICKS:
        network, task = load_network(out / "retrain" / name, torch.device("cpu"))
        networks[f"{name}: {macs(network, *size) / 1e6:.1f} MMAC"] = network, task
    draw_results(bottom, build_task(options.data, ["test"]), networks)
    save_figure(figure, out / "report.png")


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """The program."""
    config = parse_options(DemoConfig, argv, "make demo-nas", __doc__ or "")
    options, out, world = options_of(config), Path(config.out), World()
    check_run_folder(out, resume=False, overwrite=config.overwrite)
    open_run(out, {"demo-nas": vars(config)}, resume=False, overwrite=config.overwrite)
    held_out = max(2, config.rooms // 10)
    sizes = {"height": options.data.height, "width": options.data.width, "overwrite": config.overwrite}
    counts = {"train_rooms": config.rooms, "search_rooms": held_out, "test_rooms": held_out}
    write_rooms(RoomsConfig(out=str(out / "rooms"), **counts, **sizes))
    with Stopper() as stopper:
        STAGE_FUNCTIONS["train"](options, world, stopper)
        found = search_in(out / "search", options, stopper)
        random = replace(options, search=replace(options.search, algorithm="random"))
        beside = search_in(out / "random", random, stopper, [found])
        for stage in ("retrain", "evaluate"):
            STAGE_FUNCTIONS[stage](options, world, stopper)
    report(options, found, beside)
    volumes = [result.history[-1]["hypervolume"] for result in (found, beside)]
    error = read_json(out / "evaluate" / "metrics.json")["networks"]["error"]
    print(
        f"hypervolume after {len(found.evaluated)} evaluations: {volumes[0]:.4f}, random search {volumes[1]:.4f}; "
        f"least error: Abs Rel {error['abs_rel']:.3f}, δ1 {error['delta1']:.3f} in unseen rooms"
    )
    print(f"front, hypervolume and depth maps: {out / 'report.png'}")


if __name__ == "__main__":
    main()
