"""Training rays under masks with stray pixels: how many fall on them, with nerfstudio's own sampler and with EVOS'.

    python benchmarks/nerf_masks.py
    python benchmarks/nerf_masks.py --scene DIR --sides 32 --steps 500 --seeds 0 1 2 3 4

A mask is a disc. ``stray``: single pixels outside of it are unmasked, too, 0.24 % of all that are; ``jpeg``: the mask
went through a JPEG file, whose noise around the edge is not 0 (nerfstudio takes every value but 0 as unmasked). The
fraction of rays on these pixels is counted over draws, without training. A strategy learns made-up errors meanwhile:
``alike`` has the same distribution everywhere, ``wrong`` is five times as large at the stray pixels, which EVOS is then
right to prefer. With ``--scene``, a Blender scene, it measures PSNR inside the disc of held-out views instead, by
training the reduced nerfacto of nerf.py with either mask.
"""

import argparse
import statistics
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np
import PIL.Image
import torch
from common import write_result
from nerf import BASELINE, Training

from evos.selection import SELECTORS, Feedback, Pool, build_selector
from evos_nerf.tiles import build_grid

STRATEGIES = ("uniform", "tiles", "egra", "expansive", "soft")
KINDS = ("stray", "jpeg")
STRAY = 0.0024


def disc(size: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """A mask "H W", True in a disc of 0.3 of the side, in the middle or at a random place."""
    centre = np.full(2, 0.5) if rng is None else rng.uniform(0.35, 0.65, 2)
    y, x = (np.mgrid[:size, :size] + 0.5) / size - centre[:, None, None]
    return np.hypot(y, x) < 0.3


def spoilt(mask: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """The mask as the host reads it, with stray pixels of a ``kind``."""
    if kind == "jpeg":
        file = BytesIO()
        PIL.Image.fromarray(mask.astype(np.uint8) * 255).save(file, "JPEG")
        return np.asarray(PIL.Image.open(file)) > 0
    chosen = rng.choice(np.flatnonzero(~mask), round(STRAY * mask.sum()), replace=False)
    found = mask.copy()
    found.flat[chosen] = True
    return found


def host_fraction(masks: torch.Tensor, stray: torch.Tensor, args: argparse.Namespace) -> float:
    """Of nerfstudio's sampler."""
    from nerfstudio.data.pixel_samplers import PixelSamplerConfig

    count = len(masks)
    batch = {"image": torch.zeros(*masks.shape, 3), "mask": masks[..., None], "image_idx": torch.arange(count)}
    sampler = PixelSamplerConfig().setup(num_rays_per_batch=args.rays)
    drawn = [sampler.sample(batch)["indices"] for _ in range(args.draws)]
    return float(stray[tuple(torch.cat(drawn).T)].float().mean())


def own_fraction(
    name: str, errors: str, side: int, masks: torch.Tensor, stray: torch.Tensor, args: argparse.Namespace
) -> float:
    """Of a strategy over tiles, after the first quarter of the draws."""
    generator, total = torch.Generator().manual_seed(0), args.draws
    grid = build_grid([tuple(mask.shape) for mask in masks], side, "cpu", masks.flatten())  # type: ignore
    assert grid.usable is not None and grid.pixels is not None
    pool = Pool(1, grid.shape, tile=side, mask=grid.usable[None], weight=grid.pixels[None])
    target = torch.rand(1, pool.cells, 3, generator=generator)
    selector = build_selector(SELECTORS[name][0](), pool, total_steps=total, device="cpu", target=target)
    found = []
    for step in range(1, total + 1):
        chosen = selector.select(step, count=args.rays)
        assert chosen.index is not None
        on_stray = stray[tuple(grid.draw(chosen.index[0], selector.generator).T)].float()
        scale = 0.1 * (1 + 4 * on_stray) if errors == "wrong" else torch.full((args.rays,), 0.1)
        residual = scale[:, None] * torch.randn(args.rays, 3, generator=generator)
        selector.observe(selector.weigh(chosen, residual[None]), Feedback(residual[None]))
        found.append(float(on_stray.mean()))
    return statistics.mean(found[total // 4 :])


def fractions(kind: str, args: argparse.Namespace) -> dict[str, Any]:
    """Of the unmasked pixels and of the rays of each sampler: the fraction that is stray."""
    rng = np.random.default_rng(0)
    discs = [disc(args.size, rng) for _ in range(args.images)]
    masks = torch.as_tensor(np.stack([spoilt(mask, kind, rng) for mask in discs]))
    stray = masks & ~torch.as_tensor(np.stack(discs))
    host = host_fraction(masks, stray, args)
    table: dict[str, Any] = {"pixels": float(stray.sum() / masks.sum()), "nerfstudio": host}
    for name in STRATEGIES:
        for errors in ("alike", "wrong") if name == "tiles" else ("alike",):
            found = {side: own_fraction(name, errors, side, masks, stray, args) for side in args.sides}
            key = f"{name}, errors {errors}" if name == "tiles" else name
            table[key] = {side: {"fraction": each, "over_nerfstudio": each / host} for side, each in found.items()}
            print(kind, key, {side: f"{100 * each:.3f} %" for side, each in found.items()}, flush=True)
    return table


def psnr_inside(scene: Path, sampler: str, seed: int, kind: str, args: argparse.Namespace) -> float:
    """Mean PSNR over the disc of the held-out views, of a training with masks of a ``kind``."""
    from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager

    read = VanillaDataManager.create_train_dataset
    with TemporaryDirectory() as folder:

        def masked(manager: Any) -> Any:
            data, rng = read(manager), np.random.default_rng(0)
            files = []
            for view in range(len(data)):
                size = data.get_numpy_image(view).shape[0]
                files.append(Path(folder, f"{view}.png"))
                PIL.Image.fromarray(spoilt(disc(size), kind, rng).astype(np.uint8) * 255).save(files[-1])
            data._dataparser_outputs.mask_filenames = files
            return data

        with mock.patch.object(VanillaDataManager, "create_train_dataset", masked):
            training = Training(scene, sampler, seed, args)
        for _ in range(args.steps):
            training.step()
    data, rng, found = training.pipeline.datamanager.eval_dataset, np.random.default_rng(0), []
    training.pipeline.model.eval()
    for view in range(len(data)):
        truth = data[view]["image"][..., :3]
        place = rng.choice(np.flatnonzero(disc(len(truth))), 400)
        points = torch.as_tensor(np.stack([np.full_like(place, view), *np.unravel_index(place, truth.shape[:2])], 1))
        with torch.no_grad():
            error = training.pipeline.model(training._eval_rays(points))["rgb"].cpu() - truth[tuple(points[:, 1:].T)]
        found.append(-10 * float(error.square().mean().log10()))
    return statistics.mean(found)


def psnr_table(args: argparse.Namespace) -> dict[str, list[float]]:
    """PSNR inside the mask by kind and sampler, one value a seed."""
    table = {}
    for kind in KINDS:
        for sampler in (BASELINE, *(f"{name}:tile_side={side}" for side in args.sides for name in STRATEGIES[:2])):
            runs = [psnr_inside(args.scene, sampler, seed, kind, args) for seed in args.seeds]
            table[f"{kind}, {sampler}"] = runs
            print(kind, sampler, [round(psnr, 2) for psnr in runs], flush=True)
    return table


def main() -> None:
    """Count, or train, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=40, help="masks counted on")
    parser.add_argument("--size", type=int, default=192, help="their side in pixels")
    parser.add_argument("--sides", type=int, nargs="+", default=[3, 8, 32], help="sides of the tiles in pixels")
    parser.add_argument("--draws", type=int, default=400, help="steps counted")
    parser.add_argument("--rays", type=int, default=1024, help="rays of a step")
    parser.add_argument("--scene", type=Path, help="Blender scene to measure PSNR on")
    parser.add_argument("--steps", type=int, default=500, help="with --scene: training steps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="with --scene")
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.scene is not None:
        args.rays, args.device, args.full, args.disturb = 512, "cpu", False, "none"
        torch.set_num_threads(1)
        how = {"steps": args.steps, "seeds": args.seeds, "rays": args.rays}
        return write_result("nerf_masks_psnr", {**how, "psnr_inside": psnr_table(args)})
    how = {"images": args.images, "size": args.size, "draws": args.draws, "rays": args.rays}
    write_result("nerf_masks", {**how, "fractions": {kind: fractions(kind, args) for kind in KINDS}})


if __name__ == "__main__":
    main()
