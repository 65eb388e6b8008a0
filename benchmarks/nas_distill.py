"""What a teacher is worth: one network retrained with and without, from the supernet's weights.

    python evonas/main.py train --config configs/evonas/rooms.yaml data.root=DIR out=runs/rooms
    python evonas/main.py search --config configs/evonas/rooms.yaml data.root=DIR out=runs/rooms
    python benchmarks/nas_distill.py --config configs/evonas/rooms.yaml data.root=DIR out=runs/rooms -- \\
        --frames ../shared/data/rgbd_7scenes_redkitchen

Words before ``--`` are those of evonas/main.py. The network is that at the knee of the front. Teachers: none; max, the
supernet's largest network as it is; path, the largest network retrained first as long as the students will be; and
efficientnet-lite0, features that know ImageNet. Each with the published loss in frequencies (centred), with highpass,
and with the spatial loss alone. Weights are the paper's for depth.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import code_hash, job_options, run_jobs, two_command_lines, write_result
from nas_found import ROOT, by_metric, reported, trained

from evonas.data import SPLITS
from evonas.distillation import Distillation, DistillConfig
from evonas.networks import save_network
from evonas.options import Options, parse
from evonas.search import pick, read_front
from evonas.space import Space
from evonas.stages import load_supernet
from evonas.tasks import build_task
from evos.runs import seed_everything

CPU = torch.device("cpu")
KINDS = {"centred": {}, "highpass": {"frequency": "highpass"}, "spatial": {"frequency_weight": 0.0}}
TEACHERS = ("max", "path", "efficientnet-lite0")


def run_one(job: str, options: Options, frames: Path | None, strong: Path) -> dict[str, dict[str, float]]:
    """``TEACHER KIND SEED``: metrics of the student; ``strong``: makes the teacher path."""
    torch.set_num_threads(1)
    task, space = build_task(options.data, SPLITS), Space(options.space)
    seed_everything(0)
    supernet = load_supernet(options, task)
    if job == "strong":
        network = supernet.extract(space.largest)
        trained(network, task, options.retrain, 0)
        strong.parent.mkdir(parents=True, exist_ok=True)
        save_network(strong, network, options.data, task.classes)
    else:
        teacher, kind, seed = job.split()
        network = supernet.extract(pick(read_front(Path(options.run.out) / "search" / "front.csv", space), "knee"))
        distillation = None
        if teacher != "none":
            config = DistillConfig(teacher=str(strong) if teacher == "path" else teacher, **KINDS[kind])
            largest = supernet.extract(space.largest) if teacher == "max" else None
            seed_everything(int(seed))
            distillation = Distillation(config, network, task, CPU, largest)
        trained(network, task, options.retrain, int(seed), distillation)
    return reported(network, task, options, frames)


def main() -> None:
    """Retrain what is missing, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--teachers", nargs="+", choices=TEACHERS, default=list(TEACHERS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--frames", type=Path, help="folder of RGB-D pairs of real rooms")
    job_options(parser, "nas_distill", "runs/bench-nas")
    words, args = two_command_lines(parser)
    _, options = parse(["retrain", *words])
    options = replace(options, distill=DistillConfig())
    out = Path(options.run.out)
    sources = [*sorted((ROOT / "evonas").rglob("*.py")), out / "train" / "best.pt", out / "search" / "front.csv"]
    cache = args.cache / f"distill-{code_hash([*sources, Path(__file__)])}"
    if args.one:
        return print(json.dumps(run_one(args.one, options, args.frames, cache / "strong.pt")))
    teacher = run_jobs(["strong"], cache, 1)["strong"]
    rows = ["none -", *(f"{name} {kind}" for name in args.teachers for kind in args.kinds)]
    found = run_jobs([f"{row} {seed}" for seed in args.seeds for row in rows], cache, args.workers)
    task, table = build_task(options.data, ["test"]), {}
    for row in rows:
        runs = [found[f"{row} {seed}"] for seed in args.seeds]
        table[row] = by_metric(runs)
        print(f"{row:30} {np.mean([task.error(run['test']) for run in runs]):.4f}", flush=True)
    settings = {"seeds": args.seeds, "steps": options.retrain.steps or options.retrain.epochs}
    write_result(args.name, {**settings, "teacher path": teacher, "students": table})


if __name__ == "__main__":
    main()
