"""Fields from few views with and without predicted depth: held-out PSNR, and depth against COLMAP's sparse points.

    python evonas/main.py points scene=SCENE network=NETWORK out=runs/depth
    python benchmarks/nerf_depth.py --scene SCENE --points runs/depth/points [--views 3 --seeds 0 1 2 --steps 400]

The reduced nerfacto of nerf.py, of as many steps and rays, EVOS as the sampler: without depth, with the predicted maps,
and, as what could explain a gain, with maps that hold each view's median sparse depth alone. Near and far planes are
those of the sparse points for all of them.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import code_hash, job_options, mean_and_deviation, run_jobs, write_result
from nerf import Training
from scipy.spatial import KDTree

from evonas.scenes import MILLIMETRES, Scene, read_ply, read_scene, seen

KINDS = {"none": "nerfacto", "predicted": "depth-nerfacto", "median": "depth-nerfacto"}
ROOT = Path(__file__).resolve().parents[1]


def few_views(points: Path, scene: Scene, views: int, median: bool, folder: Path) -> Path:
    """The written scene with so few training views, evenly spread; ``median``: with flat depth maps."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(points, folder)
    meta = json.loads((folder / "transforms.json").read_text())
    every = meta["train_filenames"]
    meta["train_filenames"] = [every[round(i)] for i in np.linspace(0, len(every) - 1, views)]
    (folder / "transforms.json").write_text(json.dumps(meta))
    if median:
        for view, frame in zip(scene.views, meta["frames"], strict=True):
            path = folder / frame["depth_file_path"]
            depth = np.load(path)
            _, known = seen(view, scene.points, depth.shape)
            np.save(path, np.full_like(depth, MILLIMETRES * np.median(known)))
    return folder


@torch.no_grad()
def depth_error(training: Training, scene: Scene) -> float:
    """Median over the sparse points of all held-out views of the relative error of rendered depth."""
    data, model = training.pipeline.datamanager, training.pipeline.model
    scale = data.train_dataparser_outputs.dataparser_scale
    by_name, errors = {view.picture.name: view for view in scene.views}, []
    model.eval()
    for number, name in enumerate(data.eval_dataset.image_filenames):
        size = data.eval_dataset[number]["image"].shape[:2]
        places, depth = seen(by_name[Path(name).name], scene.points, (size[0], size[1]))
        columns, rows = torch.as_tensor(places[::4]).unbind(1)
        rays = training._eval_rays(torch.stack([torch.full_like(rows, number), rows, columns], 1))
        found = (model(rays)["depth"] / rays.metadata["directions_norm"]).cpu().numpy()[:, 0]
        errors.append(np.abs(found / (scale * depth[::4]) - 1))
    model.train()
    return float(np.median(np.concatenate(errors)))


def cloud_error(points: Path, scene: Scene) -> float:
    """Median distance of the sparse points from the nearest of the cloud, over their distance from the mean camera."""
    distance, _ = KDTree(read_ply(points / "points.ply")).query(scene.points)
    centre = np.mean([view.pose[:, 3] for view in scene.views], 0)
    return float(np.median(distance / np.linalg.norm(scene.points - centre, axis=1)))


def run_one(job: str, args: argparse.Namespace) -> dict[str, float]:
    """``KIND SEED``: PSNR and error of depth at the end."""
    torch.set_num_threads(1)
    kind, seed = job.split()
    scene, folder = read_scene(args.scene), args.cache / "scenes" / job.replace(" ", "_")
    few = few_views(args.points, scene, args.views, kind == "median", folder)
    from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

    scale = NerfstudioDataParserConfig(data=few, downscale_factor=1).setup().get_dataparser_outputs().dataparser_scale
    known = np.concatenate([seen(view, scene.points, (10**6, 10**6))[1] for view in scene.views])
    low, high = np.percentile(known, [0.1, 99.9])
    own = argparse.Namespace(**vars(args), host_name=KINDS[kind], planes=(0.9 * scale * low, 1.1 * scale * high))
    training = Training(few, "tiles", int(seed), own)
    for _ in range(args.steps):
        training.step()
    return {"psnr": training.test_psnr(args.pixels), "depth_error": depth_error(training, scene)}


def main() -> None:
    """Train what is missing, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=Path, required=True, help="with sparse points")
    parser.add_argument("--points", type=Path, required=True, help="what evonas/main.py points wrote of it")
    parser.add_argument("--views", type=int, default=3, help="training views")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rays", type=int, default=512)
    parser.add_argument("--pixels", type=int, default=4096, help="of each held-out view")
    parser.add_argument("--device", default="cpu")
    job_options(parser, "nerf_depth", "runs/bench-depth")
    args = parser.parse_args()
    args.full, args.disturb = False, "none"
    if args.one:
        return print(json.dumps(run_one(args.one, args)))
    files = [Path(__file__), Path(__file__).parent / "nerf.py", *sorted(args.points.glob("depths/*"))]
    shown = f"{args.scene.name}-{args.views}-{args.steps}-{args.rays}"
    code = code_hash([*files, *sorted((ROOT / "evos_nerf").glob("*.py"))])
    jobs = [f"{kind} {seed}" for seed in args.seeds for kind in KINDS]
    found = run_jobs(jobs, args.cache / f"{shown}-{code}", args.workers)
    table: dict[str, Any] = {}
    for kind in KINDS:
        runs = [found[f"{kind} {seed}"] for seed in args.seeds]
        table[kind] = {name: mean_and_deviation([run[name] for run in runs]) for name in ("psnr", "depth_error")}
        table[kind]["runs"] = runs
    settings = {name: getattr(args, name) for name in ("views", "seeds", "steps", "rays")}
    scene = read_scene(args.scene)
    errors = []
    for view in scene.views:
        depth = np.load(args.points / "depths" / f"{view.picture.stem}.npy") / MILLIMETRES
        places, known = seen(view, scene.points, (depth.shape[0], depth.shape[1]))
        flat = np.abs(np.median(known) / known - 1)
        errors.append([np.median(np.abs(depth[places[:, 1], places[:, 0]] / known - 1)), np.median(flat)])
    predicted, median = np.mean(errors, 0)
    about = {"maps' error": predicted, "medians' error": median, "cloud's error": cloud_error(args.points, scene)}
    write_result(args.name, {"scene": args.scene.name, **settings, **about, "depth": table})


if __name__ == "__main__":
    main()
