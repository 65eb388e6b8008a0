"""Videos, a volume and shapes: uniform draws, draws by error and EVOS at equal seconds, the same grid and rate.

    OMP_NUM_THREADS=1 python benchmarks/three_axes.py [--seconds 16] [--seeds 0 1 2] [--kinds videos volumes shapes]

All but the selector is the recipe `fast`, and every selector draws as many points in a step. Seconds are those of this
process on one thread, training alone, so that what else runs on the machine does not count; shapes, a fourth of the
size, have 0.4 of them. Shapes have a fourth contender, the field's usual recipe: half of the points near the surface,
half anywhere. Runs are kept in --cache by their names: the same command goes on where it stopped. Writes
results/three_axes.json.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import trimesh
from common import mean_and_deviation, write_result
from einops import rearrange
from jaxtyping import Float, Int
from scipy.stats import rankdata
from skimage import data as photos
from torch import Tensor

from evos.images import read_image
from evos.runs import seed_everything
from evos.selection.base import Evaluate, Selection, Selector
from evos.selection.draws import weighted_draw
from evos.selection.error_sampling import ErrorConfig
from evos.shapes import TRUNCATION, chamfer, read_shape, surface
from evos.signals import Signal
from evos.videos import VideoFormat
from evos.volumes import VolumeFormat
from image_regression.media import MEDIA
from image_regression.options import parse
from image_regression.trainer import Fit

KITCHEN = Path(__file__).parents[2] / "shared" / "data" / "rgbd_7scenes_redkitchen"
STILL = 32
"""Of the generated video, the frames before anything moves."""
TIME = {"videos": 1.0, "volumes": 1.0, "shapes": 0.4}
"""Of the seconds, how much a kind of signal has."""
SIGMA = 0.03
"""Of the usual recipe: standard deviation of the distance to the surface of its half of the points, box units."""
EVOS = ["--selector", "evos", "--selector.keep_ratio", "{ratio}", "--selector.key_interval", "{key}"]
EVOS += ["--selector.key_interval_end", "{key}"]
STRATEGIES = {
    "uniform": ["--selector", "uniform", "--selector.keep_ratio", "{ratio}"],
    "error": ["--selector", "error"],
    "evos": EVOS,
    "near_surface": ["--selector", "error"],
}


# ---- signals


def square(photo: np.ndarray, side: int) -> Float[Tensor, "side side 3"]:
    """The middle of a photo, reduced to a square in [0, 1]."""
    height, width = photo.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    pixels = torch.from_numpy(photo[top : top + edge, left : left + edge].copy()).float()[None] / 255
    small = F.interpolate(rearrange(pixels, "1 h w c -> 1 c h w"), (side, side), mode="bicubic", antialias=True)
    return rearrange(small.clamp(0, 1), "1 c h w -> h w c")


def sprite(background: np.ndarray, texture: np.ndarray, frames: int = 64, side: int = 128) -> Signal:
    """A photo, still for half of the time; then a textured disc crosses it, faster and faster."""
    ground, disc = square(background, side), square(texture, 40)
    axis = torch.arange(40) - 19.5
    mask = (axis[:, None] ** 2 + axis**2 < 19**2)[..., None]
    film = ground.expand(frames, -1, -1, -1).clone()
    for frame in range(frames):
        time = max(0, frame - STILL) / (frames - 1 - STILL)
        left, top = round((side - 40) * time**1.5), round((side - 40) * (0.5 + 0.45 * np.sin(5 * time)))
        patch = film[frame, top : top + 40, left : left + 40]
        film[frame, top : top + 40, left : left + 40] = torch.where(mask, disc, patch)
    return Signal("sprite", film.flatten(0, 2), tuple(film.shape[:3]), form=VideoFormat(25.0, "mp4"))


def kitchen(frames: int = 64, side: int = 128) -> Signal:
    """A camera that moves through a kitchen (7-Scenes), three frames a second."""
    files = sorted(KITCHEN.glob("*.color.jpg"))[:frames]
    film = torch.stack([square((read_image(file).pixels * 255).byte().numpy(), side) for file in files])
    return Signal("kitchen", film.flatten(0, 2), tuple(film.shape[:3]), form=VideoFormat(3.0, "mp4"))


def phantom(size: int = 96, seed: int = 0) -> Signal:
    """A head of ellipsoids after Shepp and Logan, with a textured part and small vessels."""
    generator = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, size)] * 3, indexing="ij")

    def within(centre: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
        scaled = [(axis - middle) / radius for axis, middle, radius in zip((z, y, x), centre, radii, strict=True)]
        return np.square(scaled).sum(0) < 1

    volume = 1.0 * within((0, 0, 0), (0.9, 0.92, 0.69)) - 0.7 * within((0, 0.02, 0), (0.85, 0.87, 0.65))
    for side in (-0.22, 0.22):
        volume -= 0.15 * within((0, 0, side), (0.4, 0.31, 0.13))
    texture = 0.08 * np.sin(25 * x + 4 * np.sin(7 * y)) * np.cos(19 * z)
    volume += texture * within((0.1, 0.35, 0), (0.5, 0.25, 0.4))
    for _ in range(25):
        centre = tuple(generator.uniform(-0.5, 0.5, 3))
        volume += 0.25 * within(centre, tuple(generator.uniform(0.02, 0.07, 3)))
    values = torch.from_numpy((volume - volume.min()) / np.ptp(volume)).float()
    form = VolumeFormat("npy", "<f4", 0.0, 1.0)
    return Signal("phantom", values.reshape(-1, 1), tuple(values.shape), form=form)


def from_distance(distance: np.ndarray) -> trimesh.Trimesh:
    """The zero set of a distance on a cube's grid as a mesh."""
    found = surface(torch.from_numpy(0.5 + distance.clip(-1, 1) / 2).float())
    assert found is not None
    return trimesh.Trimesh(found.corners, found.faces)


def gyroid(size: int = 140) -> trimesh.Trimesh:
    """A ball cut out of a gyroid's thickened surface: many thin walls."""
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, size)] * 3, indexing="ij")
    wave = np.sin(9 * x) * np.cos(9 * y) + np.sin(9 * y) * np.cos(9 * z) + np.sin(9 * z) * np.cos(9 * x)
    return from_distance(np.maximum(np.abs(wave) / 12 - 0.04, np.sqrt(x**2 + y**2 + z**2) - 0.9))


def bumpy() -> trimesh.Trimesh:
    """An icosphere, displaced by waves of two lengths."""
    mesh = trimesh.creation.icosphere(6)
    x, y, z = mesh.vertices.T
    height = 0.12 * np.sin(6 * x) * np.sin(5 * y + 2 * z) + 0.03 * np.sin(23 * x + 9 * z) * np.cos(21 * y)
    mesh.vertices *= (1 + height)[:, None]
    return mesh


def torus() -> trimesh.Trimesh:
    """A thin torus, turned out of the axes."""
    mesh = trimesh.creation.torus(1.0, 0.15, major_sections=128, minor_sections=48)
    mesh.apply_transform(trimesh.transformations.rotation_matrix(0.7, [1.0, 0.4, 0.2]))
    return mesh


def shape(name: str, mesh: trimesh.Trimesh, folder: Path, points: int = 64) -> Signal:
    """A mesh as a signal, by way of a file."""
    folder.mkdir(parents=True, exist_ok=True)
    mesh.export(folder / f"{name}.ply")
    values, form, boxed = read_shape(folder / f"{name}.ply", points)
    return Signal(name, values.reshape(-1, 1), tuple(values.shape), form=form, mesh=boxed)


SIGNALS: dict[str, dict[str, Callable[[Path], Signal]]] = {
    "videos": {"sprite": lambda _: sprite(photos.astronaut(), photos.chelsea()), "kitchen": lambda _: kitchen()},
    "volumes": {"phantom": lambda _: phantom()},
    "shapes": {
        "torus": lambda cache: shape("torus", torus(), cache),
        "gyroid": lambda cache: shape("gyroid", gyroid(), cache),
        "bumpy": lambda cache: shape("bumpy", bumpy(), cache),
    },
}


# ---- runs


class NearSurface(Selector[ErrorConfig]):
    """Half of a step's points anywhere, half with odds that fall with the distance to the surface."""

    def __init__(self, fit: Fit) -> None:
        config = ErrorConfig(keep_ratio=fit.options.selector.keep_ratio)
        super().__init__(config, fit.pool, total_steps=1, device="cpu", seed=fit.options.run.seed)
        distance = (fit.source.trained[:, 0] - 0.5) * 2 * TRUNCATION
        near = (-0.5 * (distance / SIGMA) ** 2).exp() * (distance.abs() < TRUNCATION)
        self.odds = (0.5 + 0.5 * near / near.mean())[None]

    def choose(self, step: int, rows: Int[Tensor, " B"] | None, evaluate: Evaluate | None) -> Selection:
        """``keep_ratio`` of the cells."""
        count = self.keep_count(step)
        return self.selection(self.all_rows, weighted_draw(self.odds, count, self.generator), step)


def options_for(strategy: str, signal: Signal, seed: int, more: list[str]) -> Any:
    """The recipe `fast` with another selector that draws as many points."""
    fast = parse(["--recipe", "fast", *more]).sized_to(signal.shape, signal.values.shape[-1])
    ratio = fast.selector.keep_ratio
    # As many points in a key step, which takes all, as in the steps up to the next one.
    words = [word.format(ratio=ratio, key=round(1 / ratio)) for word in STRATEGIES[strategy]]
    own = ["--seed", str(seed), "--steps", "1000000", "--lpips", "false", "--device", "cpu"]
    return parse(["--recipe", "fast", *own, *words, *more])


def train(signal: Signal, strategy: str, seed: int, seconds: float, more: list[str]) -> dict[str, Any]:
    """Quality after a quarter, half and all of the seconds, and where points were drawn."""
    seed_everything(seed)
    fit = Fit(signal, options_for(strategy, signal, seed, more), torch.device("cpu"))
    if strategy == "near_surface":
        fit.selector = NearSurface(fit)
    medium, spent, step, curve = MEDIA[signal.kind], 0.0, 0, []
    for until in (seconds / 4, seconds / 2, seconds):
        while spent < until:
            start = process_time()
            step += 1
            fit.step(step)
            spent += process_time() - start
        values = fit.predict()
        curve.append({"seconds": spent, "step": step, **medium.measure(fit, values, with_lpips=False)})
    result = {**curve[-1], "curve": curve, "points": fit.work.evaluated}
    result["parameters"] = sum(weight.numel() for weight in fit.field.parameters())
    if signal.kind == "video":
        visits = fit.visits.view(signal.shape[0], -1).double().mean(1)
        result["frame_visits"] = [round(float(each), 4) for each in visits]
        result["frame_motion"] = MEDIA["video"].final_metrics(fit, values)["frame_motion"]
    if signal.mesh is not None:
        result["chamfer"] = chamfer(signal.block(values)[..., 0], signal.mesh)
    return result


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and deviations over seeds."""
    names = [name for name, value in runs[0].items() if isinstance(value, float | int)]
    found: dict[str, Any] = {name: mean_and_deviation([float(run[name]) for run in runs]) for name in names}
    if "chamfer" in found:
        found["chamfer_x1000"] = mean_and_deviation([1000 * run["chamfer"] for run in runs])
        del found["chamfer"]
    found["psnr_seeds"] = [round(run["psnr"], 3) for run in runs]
    found["psnr_over_time"] = [
        {"seconds": round(entries[0]["seconds"], 1), "psnr": round(sum(e["psnr"] for e in entries) / len(entries), 3)}
        for entries in zip(*(run["curve"] for run in runs), strict=True)
    ]
    if "frame_visits" in runs[0] and max(runs[0]["frame_visits"]) > 0:
        found["draws"] = draws_and_motion(runs)
    return found


def draws_and_motion(runs: list[dict[str, Any]]) -> dict[str, float]:
    """How draws a frame go with its motion: those of the quieter half against the other, and rank correlation."""
    motion, visits = (np.array([run[f"frame_{name}"] for run in runs]).mean(0) for name in ("motion", "visits"))
    order = np.argsort(motion, kind="stable")
    quiet, lively = order[: len(order) // 2], order[len(order) // 2 :]
    return {
        "quieter_half_of_frames": round(float(visits[quiet].sum() / visits.sum()), 4),
        "draws_quiet_over_lively": round(float(visits[quiet].mean() / visits[lively].mean()), 4),
        "rank_correlation": round(float(np.corrcoef(rankdata(motion), rankdata(visits))[0, 1]), 3),
    }


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """PSNR, and a shape's IoU and chamfer distance, a line a signal and strategy."""
    lines = ["| signal | selector | PSNR | IoU | chamfer x 1000 | steps |", "|---|---|---|---|---|---|"]
    for signal, by_strategy in results.items():
        for strategy, found in by_strategy.items():
            iou = f"{found['iou']['mean']:.4f}" if "iou" in found else "-"
            distance = f"{found['chamfer_x1000']['mean']:.3f}" if "chamfer_x1000" in found else "-"
            psnr = f"{found['psnr']['mean']:.2f} ± {found['psnr']['std']:.2f}"
            lines.append(f"| {signal} | {strategy} | {psnr} | {iou} | {distance} | {found['step']['mean']:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is not in the cache, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kinds", nargs="+", default=list(SIGNALS), choices=list(SIGNALS))
    parser.add_argument("--signals", nargs="+", help="of those kinds; none: all")
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=list(STRATEGIES))
    parser.add_argument("--more", nargs="*", default=[], help="NAME=VALUE, further options of all runs")
    parser.add_argument("--cache", type=Path, default=Path("runs/three_axes"))
    parser.add_argument("--name", default="three_axes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    more = [word for pair in args.more for word in ("--" + pair.partition("=")[0], pair.partition("=")[2])]
    results: dict[str, dict[str, Any]] = {}
    for kind in args.kinds:
        for name, make in SIGNALS[kind].items():
            if args.signals and name not in args.signals:
                continue
            signal, seconds = make(args.cache), args.seconds * TIME[kind]
            mine = [each for each in args.strategies if each != "near_surface" or kind == "shapes"]
            runs: dict[str, list[dict[str, Any]]] = {each: [] for each in mine}
            # Strategies vary fastest, so that a noisy machine disturbs all of them alike.
            for seed in args.seeds:
                for strategy in mine:
                    path = args.cache / f"{args.name}-{name}-{strategy}-{seconds:g}-{seed}.json"
                    if not path.exists():
                        path.parent.mkdir(parents=True, exist_ok=True)
                        path.write_text(json.dumps(train(signal, strategy, seed, seconds, more)))
                    runs[strategy].append(json.loads(path.read_text()))
                    last = runs[strategy][-1]
                    print(f"{name} {strategy} {seed}: {last['psnr']:.2f} dB, {last['step']} steps", flush=True)
            results[name] = {strategy: summary(found) for strategy, found in runs.items()}
    times = {kind: args.seconds * TIME[kind] for kind in args.kinds}
    protocol = {"seconds": times, "clock": "cpu seconds of training, one thread", "seeds": args.seeds}
    write_result(args.name, {**protocol, "more": args.more, "signals": results})
    print(table(results))


if __name__ == "__main__":
    main()
