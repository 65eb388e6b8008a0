"""Colours against colours and derivatives on held-out views: sobolev-nerf on fern at images_8, a smaller network.

    python benchmarks/sobolev_fern.py --data nerf_llff_fern --minutes 20 --seeds 0 [--activation sine --lr 1e-4]
    python benchmarks/sobolev_fern.py --data nerf_llff_data/* --layers 8 --width 256 --samples 128 --rays 1024 \
        --steps 400000 --minutes inf --lr 5e-4 --name sobolev_llff

The second is the paper's table of eight scenes.

Both sides have the method's own pipeline, the same initial weights, rays and number of steps, and take turns in one
process: the run ends after --steps of each or when both together have had --minutes. Tests in between are not counted.
PSNR is the mean over held-out views of that over the same random pixels of each; at the end, over all their pixels.
"""

import argparse
import copy
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import write_result

from evos.runs import seed_everything
from evos_nerf.sobolev import SobolevConfig


class Side:
    """One side's training, without nerfstudio's viewer, files and logs."""

    def __init__(self, supervision: str, seed: int, args: argparse.Namespace) -> None:
        from evos_nerf.methods import sobolev_nerf

        seed_everything(seed)
        config: Any = copy.deepcopy(sobolev_nerf.config.pipeline)
        chosen: Any = supervision
        config.sobolev = SobolevConfig(chosen, args.lambda_der, args.der_operator)
        data, model = config.datamanager, config.model
        data.data, data.dataparser.downscale_factor, data.factor = args.data, args.downscale_factor, args.factor
        data.train_num_rays_per_batch, data.pixel_sampler.selector = args.rays, args.selector
        model.layers, model.hidden_features, model.samples = args.layers, args.width, args.samples
        model.activation = args.activation
        self.pipeline = config.setup(device="cpu", test_mode="test", world_size=1, local_rank=0)
        self.pipeline.datamanager.train_pixel_sampler.plan(args.steps)
        self.optimizer = torch.optim.Adam(self.pipeline.model.parameters(), lr=args.lr)
        decay = 0.1 ** (1 / args.steps)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, decay)
        # Each side its own stream of random numbers, as if it were alone.
        self.random = torch.get_rng_state()
        self.done, self.seconds, self.curve = 0, 0.0, []

    def step(self) -> None:
        """One step of training."""
        torch.set_rng_state(self.random)
        began = time.perf_counter()
        losses = self.pipeline.get_train_loss_dict(self.done)[1]
        self.optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        self.optimizer.step()
        self.seconds += time.perf_counter() - began
        self.random = torch.get_rng_state()
        self.scheduler.step()
        self.done += 1

    def test(self, pixels: int) -> None:
        """Note the PSNR of held-out views."""
        self.curve.append([self.done, round(self.seconds, 2), round(self.psnr(pixels), 4)])

    @torch.no_grad()
    def psnr(self, pixels: int | None) -> float:
        """Mean over the held-out views of the PSNR over ``pixels`` random pixels of each, or over all of them."""
        from nerfstudio.model_components.ray_generators import RayGenerator

        data, model = self.pipeline.datamanager, self.pipeline.model.eval()
        generator, found = np.random.default_rng(0), []
        for view in range(len(data.eval_dataset)):
            truth = data.eval_dataset[view]["image"][..., :3]
            count = truth[..., 0].numel()
            place = generator.choice(count, min(pixels or count, count), replace=False)
            rows, columns = np.unravel_index(place, truth.shape[:2])
            points = torch.as_tensor(np.stack([np.full_like(rows, view), rows, columns], axis=1))
            rays = [RayGenerator(data.eval_dataset.cameras)(part) for part in points.split(1024)]
            error = torch.cat([model(part)["rgb"] for part in rays]).clamp(0, 1) - truth[points[:, 1], points[:, 2]]
            found.append(-10 * float(error.square().mean().log10()))
        model.train()
        return statistics.mean(found)


def compare(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Both sides in turn."""
    sides = {name: Side(name, seed, args) for name in ("val", "val_der")}
    every = max(1, args.steps // args.tests)
    for step in range(args.steps):
        if step % every == 0:
            for name, side in sides.items():
                side.test(args.pixels)
                print(f"seed {seed} {name} step {step}: {side.curve[-1][2]:.2f} dB, {side.seconds:.0f} s", flush=True)
        if sum(side.seconds for side in sides.values()) > 60 * args.minutes:
            break
        for side in sides.values():
            side.step()
    result: dict[str, Any] = {"seed": seed, "steps": sides["val"].done}
    for name, side in sides.items():
        side.test(args.pixels)
        result[name] = {"psnr": round(side.psnr(args.final_pixels), 4), "seconds": side.seconds, "curve": side.curve}
    result["gain_db"] = round(result["val_der"]["psnr"] - result["val"]["psnr"], 4)
    return result


def main() -> None:
    """Compare, for each seed, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of LLFF scenes")
    parser.add_argument("--downscale-factor", type=int, default=8)
    parser.add_argument("--factor", type=int, default=4, help="train on every factor-th row and column")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=1500, help="of each side; the learning rate falls to a tenth")
    parser.add_argument("--minutes", type=float, default=20.0, help="of both sides of a seed together")
    parser.add_argument("--rays", type=int, default=256)
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--activation", choices=("relu", "sine"), default="relu")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--lambda-der", type=float, default=1.0)
    parser.add_argument("--der-operator", default="sobel")
    parser.add_argument("--selector", default="uniform", help="of training rays: uniform, tiles, ...")
    parser.add_argument("--tests", type=int, default=10, help="tests along the way")
    parser.add_argument("--pixels", type=int, default=400, help="tested pixels of each held-out view")
    parser.add_argument("--final-pixels", type=int, help="at the end; default: all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="sobolev_fern", help="name of the result")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    runs = [
        {"scene": scene.name, **compare(seed, argparse.Namespace(**{**vars(args), "data": scene}))}
        for scene in args.data
        for seed in args.seeds
    ]
    settings = {key: value for key, value in vars(args).items() if key not in ("seeds", "name", "data")}
    gains = [run["gain_db"] for run in runs]
    write_result(args.name, {**settings, "gain_db": {"mean": statistics.mean(gains), "each": gains}, "runs": runs})


if __name__ == "__main__":
    main()
