"""What a teacher is worth: one network trained with and without.

    python evonas/main.py train --config configs/evonas/rooms.yaml data.root=DIR out=runs/rooms
    python evonas/main.py search --config configs/evonas/rooms.yaml data.root=DIR out=runs/rooms
    python benchmarks/nas_distill.py --config configs/evonas/rooms.yaml data.root=DIR out=runs/rooms -- \\
        --frames ../shared/data/rgbd_7scenes_redkitchen
    python benchmarks/nas_distill.py --config configs/evonas/camvid.yaml data.root=CAMVID -- --start scratch
    python benchmarks/nas_distill.py --config configs/evonas/rooms.yaml pretrain.root=CLASSES -- --start pretrain

Words before ``--`` are those of evonas/main.py. What is trained, by ``--start``: the network at the knee of the front,
from the supernet's weights (inherited); the one with all blocks and the smallest options, from scratch (scratch); the
largest one as a classifier (pretrain). Teachers: none; max, the supernet's largest network as it is; path, the largest
network trained first as long as the students will be; and efficientnet-lite0, features that know ImageNet. Each with
the published loss in frequencies (centred), with highpass, and with the spatial loss alone. Weights are those of the
config. What max and ema are worth while a supernet trains, ``nas_ranking.py --teachers`` measures.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import code_hash, job_options, run_jobs, two_command_lines, write_result
from nas_found import ROOT, by_metric, families, reported, trained

from evonas.data import SPLITS
from evonas.distillation import Distillation
from evonas.networks import save_network
from evonas.options import Options, parse
from evonas.search import pick, read_front
from evonas.space import Space
from evonas.stages import load_supernet
from evonas.supernet import Network
from evonas.tasks import Task, build_task
from evos.runs import seed_everything

CPU = torch.device("cpu")
KINDS = {"centred": {}, "highpass": {"frequency": "highpass"}, "spatial": {"frequency_weight": 0.0}}
TEACHERS = {
    "inherited": ("max", "path", "efficientnet-lite0"),
    "scratch": ("path", "efficientnet-lite0"),
    "pretrain": ("efficientnet-lite0",),
}
"""What can teach, by where the student starts."""


def the_task(start: str, options: Options, splits: Sequence[str]) -> Task:
    """What is learned."""
    return build_task(options.classification if start == "pretrain" else options.data, splits)


def run_one(job: str, start: str, options: Options, frames: Path | None, strong: Path) -> dict[str, dict[str, float]]:
    """``TEACHER KIND SEED``: metrics of the student; ``strong``: makes the teacher path."""
    torch.set_num_threads(1)
    task, space = the_task(start, options, SPLITS), Space(options.space)
    teacher, kind, seed = job.split() if job != "strong" else ("none", "-", "0")
    config = options.pretrain if start == "pretrain" else options.retrain
    seed_everything(0 if start == "inherited" else int(seed))
    supernet = load_supernet(options, task) if start == "inherited" else Network(space, task.head)
    genome = space.largest
    if job != "strong" and start == "inherited":
        genome = pick(read_front(Path(options.run.out) / "search" / "front.csv", space), "knee")
    elif job != "strong" and start == "scratch":
        genome = min((space.encode(own) for name, own in families(space) if name == "deep and narrow"), key=sum)
    network, distillation = supernet.extract(genome), None
    if teacher != "none":
        name = str(strong) if teacher == "path" else teacher
        largest = supernet.extract(space.largest) if teacher == "max" else None
        seed_everything(int(seed))
        distillation = Distillation(replace(options.distill, teacher=name, **KINDS[kind]), network, task, CPU, largest)
    trained(network, task, config, int(seed), distillation)
    if job == "strong":
        strong.parent.mkdir(parents=True, exist_ok=True)
        save_network(strong, network, options.data, task.classes)
    return reported(network, task, options, frames)


def main() -> None:
    """Retrain what is missing, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--start", choices=TEACHERS, default="inherited")
    parser.add_argument("--teachers", nargs="+", default=None, help="none: all that can teach there")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--frames", type=Path, help="of networks for depth: folder of RGB-D pairs of real rooms")
    job_options(parser, "nas_distill", "runs/bench-nas")
    words, args = two_command_lines(parser)
    _, options = parse(["retrain", *words])
    out = Path(options.run.out)
    sources = sorted((ROOT / "evonas").rglob("*.py"))
    sources += [out / "train" / "best.pt", out / "search" / "front.csv"] if args.start == "inherited" else []
    config = options.pretrain if args.start == "pretrain" else options.retrain
    settings = (options.space, options.data, config, options.distill)
    cache = args.cache / f"distill-{args.start}-{code_hash([*sources, Path(__file__)], *settings)}"
    if args.one:
        return print(json.dumps(run_one(args.one, args.start, options, args.frames, cache / "strong.pt")))
    teachers = args.teachers or TEACHERS[args.start]
    if not set(teachers) <= set(TEACHERS[args.start]):
        parser.error(f"--teachers: got {' '.join(teachers)}; allowed: {', '.join(TEACHERS[args.start])}")
    teacher = run_jobs(["strong"], cache, 1)["strong"] if "path" in teachers else None
    rows = ["none -", *(f"{name} {kind}" for name in teachers for kind in args.kinds)]
    found = run_jobs([f"{row} {seed}" for seed in args.seeds for row in rows], cache, args.workers)
    task, table = the_task(args.start, options, ["test"]), {}
    for row in rows:
        runs = [found[f"{row} {seed}"] for seed in args.seeds]
        table[row] = by_metric(runs)
        print(f"{row:30} {np.mean([task.error(run['test']) for run in runs]):.4f}", flush=True)
    how = {"start": args.start, "seeds": args.seeds, "steps": config.steps or config.epochs}
    write_result(args.name, {**how, "teacher path": teacher, "students": table})


if __name__ == "__main__":
    main()
