"""Novel views by a small network for many scenes: PSNR of held-out views over the number of support views.

    python benchmarks/meta_views.py [--steps 1500 --scenes 96 --size 24 --seeds 0]

The scenes are ray-traced here (evos_nerf.scene): two solids of random shape, colour, size and place each, so that one
view does not determine the scene. Training takes three support views; evaluation, on scenes never trained on,
takes 1, 2 and 3, and measures the views that none of these are.
"""

import argparse
import math
import statistics
from pathlib import Path

import torch
from common import write_result

from evos.distributed import World
from evos.images import write_image
from evos.ray_tracing import Box, Cylinder, Sphere, Thing, Torus, frame_along
from evos.runs import Stopper
from evos.runs.files import write_json
from evos_nerf.scene import CAMERA_ANGLE_X, camera_poses, render
from generalizable.main import prepare
from generalizable.run import train

WORLD = World()
SUPPORT = 3


def random_things(generator: torch.Generator) -> list[Thing]:
    """Two solids on either side of the centre, each of one colour."""
    things = []
    side = torch.nn.functional.normalize(torch.randn(3, generator=generator), dim=0)
    for sign in (-1, 1):
        draw = torch.rand(5, generator=generator)
        size = 0.35 + 0.2 * float(draw[0])
        shapes = (Sphere(size), Box(0.8 * size), Cylinder(0.7 * size, size), Torus(0.8 * size, 0.35 * size))
        colour = 0.1 + 0.9 * draw[2:5]
        things.append(
            Thing(
                shapes[int(4 * draw[1])],
                lambda point, colour=colour: colour.expand_as(point),
                0.55 * sign * side,
                frame_along(torch.randn(3, generator=generator)),
            )
        )
    return things


def write_scenes(root: Path, scenes: int, views: int, size: int) -> None:
    """The data set: an eighth as many scenes to test on, each with its views in an order of its own."""
    for part, count, seed in (("train", scenes, 0), ("test", max(8, scenes // 8), 1)):
        generator = torch.Generator().manual_seed(seed)
        for scene in range(count):
            folder, things, frames = root / part / f"{scene:03}", random_things(generator), []
            folder.mkdir(parents=True, exist_ok=True)
            for view, pose in enumerate(camera_poses("train", views, generator)):
                write_image(folder / f"{view:02}.png", render(things, pose, size))
                frames.append({"file_path": f"./{view:02}", "transform_matrix": pose.tolist()})
            write_json(folder / "transforms.json", {"camera_angle_x": CAMERA_ANGLE_X, "frames": frames})


def main() -> None:
    """Make the scenes, train, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=96)
    parser.add_argument("--views", type=int, default=12)
    parser.add_argument("--size", type=int, default=24)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--rays", type=int, default=256, help="of a scene in each step")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", nargs="*", default=[], help="further options, such as model.rank=32")
    parser.add_argument("--out", default="runs/meta-views")
    parser.add_argument("--name", default="meta_views", help="name of the result")
    args = parser.parse_args()
    data = Path(args.out, f"scenes-{args.scenes}-{args.views}-{args.size}")
    if not data.exists():
        write_scenes(data, args.scenes, args.views, args.size)
    near, far = 4 - math.sqrt(3), 4 + math.sqrt(3)
    settings = [
        *("--config", "configs/generalizable/meta_composer_views.yaml", f"data.root={data}", "data.layout=blender"),
        *(f"data.size={args.size}", f"data.views={args.views}", f"data.support_views={SUPPORT}", "data.in_memory=true"),
        *(f"data.eval_support_views={SUPPORT}", f"data.near={near:.3f}", f"data.far={far:.3f}", "precision=fp32"),
        *("model.hidden_features=128", "model.layers=5", "model.rank=64", "model.samples=24", "model.frequency=16"),
        *("model.inner_lr=0.05", f"train.steps={args.steps}", "train.batch=4", "train.lr=0.001", "train.clip=1.0"),
        *("train.schedule=cosine", "train.warmup=50", f"train.inner_rays={args.rays}"),
        f"selector.keep_ratio={args.rays / (args.views * args.size**2):.6f}",
        *args.set,
    ]
    runs = []
    for seed in args.seeds:
        words = [*settings, f"seed={seed}", f"out={args.out}/run-{seed}", "--resume", "--quiet"]
        options, sources, device = prepare(words, WORLD)
        with Stopper() as stopper:
            (source,) = train(options, sources, WORLD, device, stopper)["sources"].values()
        runs.append(source["psnr_by_support_views"])
        print(f"seed {seed}: {runs[-1]}", flush=True)
    means = {count: statistics.mean(run[count] for run in runs) for count in runs[0]}
    write_result(args.name, {"psnr_by_support_views": means, "each": runs, "settings": settings})


if __name__ == "__main__":
    main()
