"""Networks that a search found beside the largest one and beside hand-made ones of as many MACs, trained alike.

    python evonas/main.py train --config configs/evonas/rooms.yaml data.root=DIR out=runs/rooms
    python evonas/main.py search --config configs/evonas/rooms.yaml data.root=DIR out=runs/rooms
    python benchmarks/nas_found.py --config configs/evonas/rooms.yaml data.root=DIR out=runs/rooms -- \\
        --frames ../shared/data/rgbd_7scenes_redkitchen

Words before ``--`` are those of evonas/main.py. Each network is retrained from the supernet's weights and from scratch,
with as many steps, and measured on test rooms, which nothing was chosen on, and on frames of real rooms that no
training has seen; ``aligned``: each depth map scaled to the median of the truth, since the camera is another one.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import code_hash, job_options, run_jobs, two_command_lines, write_result
from torch import Tensor

from evonas.data import SPLITS, InMemory
from evonas.distillation import Distillation
from evonas.options import Options, parse
from evonas.search import pick, read_front
from evonas.space import Architecture, Genome, Space, Stage, as_text
from evonas.stages import load_supernet
from evonas.supernet import Network, macs, parameters
from evonas.tasks import DepthTask, Meter, Task, build_task
from evonas.tasks.base import MeanMeter
from evonas.tasks.depth import depth_metrics, valid_pixels
from evonas.training import TrainConfig, Training, single_plan
from evos.runs import seed_everything

ROOT = Path(__file__).resolve().parents[1]


class AlignedDepth(DepthTask):
    """Depth up to a scale: each map is scaled to the median of the truth."""

    def meter(self, device: torch.device) -> Meter:
        """As ``DepthTask``, after the scale."""
        meter = super().meter(device)
        assert isinstance(meter, MeanMeter)
        meter.measure = lambda found, truth: depth_metrics(self.aligned(found, truth), truth, self.config)
        return meter

    def aligned(self, found: Tensor, truth: Tensor) -> Tensor:
        """Scaled depths; a map without truth counts nowhere."""
        valid = valid_pixels(truth, self.config)
        pairs = ((t[v], f[v]) for t, f, v in zip(truth, found, valid, strict=True))
        scale = [t.median() / f.median() if len(t) else torch.ones(()) for t, f in pairs]
        return found * torch.stack(scale)[:, None, None]


def uniform(space: Space, blocks: list[int], mlp_ratio: float, state: int, expand: float) -> Architecture:
    """The same options in every stage, and the first of its blocks."""
    mixer = lambda kind, value: value if kind == "mixer" else 0  # noqa: E731
    return tuple(
        Stage(mlp_ratio, int(mixer(kind, state)), mixer(kind, expand), tuple(range(count)))
        for kind, count in zip(space.kinds, blocks, strict=True)
    )


def families(space: Space) -> Iterator[tuple[str, Architecture]]:
    """What one would build by hand: as deep as possible and narrow; with the largest options and shallow; as most
    vision transformers and state-space networks are (MLP ratio 4, expansion 2, the third stage the deepest)."""
    last = {name: values for _, name, values in space.choices}
    for ratio in last["mlp_ratio"]:
        for state in last["state"]:
            for expand in last["expand"]:
                yield "deep and narrow", uniform(space, space.depths, ratio, state, expand)
    for share in np.linspace(0, 1, 41):
        blocks = [max(1, round(share * depth)) for depth in space.depths]
        yield "wide and shallow", uniform(space, blocks, *(last[n][-1] for n in ("mlp_ratio", "state", "expand")))
        for state in last["state"]:
            yield "usual", uniform(space, blocks, 4, state, 2)


def networks(options: Options, task: Task) -> dict[str, Genome]:
    """The found ones (knee and least error), the largest, and, of the knee's MACs, hand-made ones and a random one."""
    space = Space(options.space)
    front = read_front(Path(options.run.out) / "search" / "front.csv", space)
    found = {"found": pick(front, "knee"), "found (least error)": pick(front, "error"), "largest": space.largest}
    network = Network(space, task.head)
    count = lambda genome: macs(network.activate(genome), options.data.height, options.data.width)  # noqa: E731
    target, generator = count(found["found"]), np.random.default_rng(2026)
    candidates = [(name, space.encode(own)) for name, own in families(space)]
    candidates += [("random", space.sample(generator)) for _ in range(40)]
    for name in dict.fromkeys(name for name, _ in candidates):
        found[name] = min((own for kind, own in candidates if kind == name), key=lambda own: abs(count(own) - target))
    return found


def all_frames(options: Options, frames: Path) -> tuple[DepthTask, DepthTask]:
    """All frames of a folder as a test split, with their depth as it is and aligned."""
    data = replace(options.data, root=str(frames), layout="rgbd", depth_scale=None)
    plain, aligned = DepthTask(data, SPLITS), AlignedDepth(data, [])
    parts = [plain.sets[split] for split in SPLITS]
    names = [name for part in parts for name in part.names]
    pictures, truth = (torch.cat([getattr(part, key) for part in parts]) for key in ("pictures", "truth"))
    joined = InMemory(pictures, truth, names)
    plain.sets = aligned.sets = {"test": joined}
    return plain, aligned


def run_one(job: str, options: Options, frames: Path | None) -> dict[str, dict[str, float]]:
    """``START SEED NAME``: one network retrained, and its metrics on the rooms and the frames."""
    torch.set_num_threads(1)
    start, seed, name = job.split(maxsplit=2)
    space, task = Space(options.space), build_task(options.data, SPLITS)
    genome = networks(options, task)[name]
    seed_everything(int(seed))
    network = Network(space, task.head, genome) if start == "scratch" else load_supernet(options, task).extract(genome)
    config = replace(options.retrain, lr=options.train.lr) if start == "scratch" else options.retrain
    trained(network, task, config, int(seed))
    return reported(network, task, options, frames)


def trained(
    network: Network, task: Task, config: TrainConfig, seed: int, distillation: Distillation | None = None
) -> None:
    """Train one architecture to the end, without evaluations; it ends with its last weights."""
    plan, device = (
        single_plan(network.space, network.genome, config.steps_over(task.size("train"))),
        torch.device("cpu"),
    )
    training = Training(network, task, plan, config, seed=seed, device=device, distillation=distillation)
    for step in range(1, plan.steps + 1):
        training.step(step)


def reported(network: Network, task: Task, options: Options, frames: Path | None) -> dict[str, dict[str, float]]:
    """Metrics on the test split and, of networks for depth, on the frames."""
    tasks = {"test": task}
    if frames is not None:
        tasks["frames"], tasks["frames, aligned"] = all_frames(options, frames)
    device = next(network.parameters()).device
    return {where: own.evaluate(network, [network.genome], "test", device)[0] for where, own in tasks.items()}


def by_metric(runs: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, list[float]]]:
    """Of each data set and metric the values of all runs."""
    return {where: {key: [run[where][key] for run in runs] for key in own} for where, own in runs[0].items()}


def main() -> None:
    """Retrain what is missing, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--starts", nargs="+", choices=("inherited", "scratch"), default=["inherited", "scratch"])
    parser.add_argument("--frames", type=Path, help="of networks for depth: folder of RGB-D pairs of real rooms")
    job_options(parser, "nas_found", "runs/bench-nas")
    words, args = two_command_lines(parser)
    _, options = parse(["retrain", *words])
    if args.one:
        return print(json.dumps(run_one(args.one, options, args.frames)))
    task, space, out = build_task(options.data, ["test"]), Space(options.space), Path(options.run.out)
    chosen = networks(options, task)
    sources = sorted((ROOT / "evonas").rglob("*.py"))
    code = code_hash([*sources, Path(__file__), out / "train" / "best.pt", out / "search" / "front.csv"])
    jobs = [f"{start} {seed} {name}" for seed in args.seeds for start in args.starts for name in chosen]
    found = run_jobs(jobs, args.cache / f"found-{code}", args.workers)
    supernet, size = Network(space, task.head), (options.data.height, options.data.width)
    table: dict[str, Any] = {}
    for name, genome in chosen.items():
        own = supernet.activate(genome)
        table[name] = {
            "genome": genome,
            "architecture": as_text(space.decode(genome)),
            "macs": macs(own, *size),
            "parameters": parameters(own),
        }
        for start in args.starts:
            runs = [found[f"{start} {seed} {name}"] for seed in args.seeds]
            table[name][start] = by_metric(runs)
            errors = {where: np.mean([task.error(run[where]) for run in runs]) for where in runs[0]}
            shown = "  ".join(f"{where} {error:.4f}" for where, error in errors.items())
            print(f"{name:20} {table[name]['macs'] / 1e6:7.1f} MMAC  {start:10} {shown}", flush=True)
    write_result(args.name, {"seeds": args.seeds, "networks": table})


if __name__ == "__main__":
    main()
