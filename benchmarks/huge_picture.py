"""Pictures larger than memory: PSNR over time by uniform draws, by error and by EVOS; and the memory taken.

    python benchmarks/huge_picture.py picture --side 16384 --out DIR/16384.tif   generate the picture
    python benchmarks/huge_picture.py time --input DIR/16384.tif --seconds 300    PSNR over time under --memory 4G
    python benchmarks/huge_picture.py bound --input DIR/32768.tif --steps 1500    the program itself, and its peak
    python benchmarks/huge_picture.py size --photos FOLDER                        the gain over the size of a picture

Sides are trained in turn in one process. The picture has its detail where real ones of that size have it: in places.
Photos that ship with scikit-image, at their own resolution, fill about a fifth of it; the rest is smooth.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from common import write_result
from torch.nn.functional import interpolate

from evos.images import list_images, read_image, write_image
from evos.metrics import psnr
from evos.rasters import open_raster
from evos.runs import keep_freed_memory
from evos.tiled_tiff import TILE
from image_regression.huge import load_signal
from image_regression.options import parse
from image_regression.trainer import Fit

ROOT = Path(__file__).parents[1]
PHOTOS = ("astronaut", "coffee", "chelsea", "rocket", "hubble_deep_field", "brick", "grass", "gravel", "page", "coins")
SELECTORS = ("uniform", "error", "evos")
SAMPLE = 2**18
"""Points that an evaluation looks at."""
DETAILED = 0.2
"""Fraction of the picture that photos fill."""


# ---- the picture ---------------------------------------------------------------------------------------------


def smooth_noise(cells: int, generator: torch.Generator) -> torch.Tensor:
    """Fractal noise (cells, cells) in [0, 1], each octave half as strong as the one before."""
    total = torch.zeros(1, 1, cells, cells)
    side, strength = 4, 1.0
    while side <= cells:
        octave = torch.rand(1, 1, side, side, generator=generator)
        total += strength * interpolate(octave, (cells, cells), mode="bicubic", align_corners=False)
        side, strength = 2 * side, strength / 2
    return ((total - total.min()) / (total.max() - total.min()))[0, 0]


def enlarged(noise: torch.Tensor, top: int, left: int, size: int, side: int) -> np.ndarray:
    """The part of noise stretched to ``side`` pixels that begins at a pixel, (size, size); bilinear."""
    last = len(noise) - 1
    y, x = (torch.arange(first, first + size) / side * last for first in (top, left))
    part = noise[int(y[0]) : int(y[-1]) + 2, int(x[0]) : int(x[-1]) + 2].numpy()
    ys, xs = ((axis - int(axis[0])).numpy() for axis in (y, x))
    iy, ix = (np.minimum(axis.astype(int), n - 2) for axis, n in ((ys, part.shape[0]), (xs, part.shape[1])))
    fy, fx = (ys - iy)[:, None], xs - ix
    rows = part[iy] * (1 - fy) + part[iy + 1] * fy
    return rows[:, ix] * (1 - fx) + rows[:, ix + 1] * fx


def photo_tiles() -> list[np.ndarray]:
    """Squares of 256 px from the photos."""
    from skimage import data

    found = []
    for name in PHOTOS:
        try:
            photo = getattr(data, name)()
        except Exception:  # not all ship with every version
            continue
        photo = photo[..., :3] if photo.ndim == 3 else photo[..., None].repeat(3, axis=2)
        for top in range(0, photo.shape[0] - TILE + 1, TILE):
            found += [photo[top : top + TILE, left : left + TILE] for left in range(0, photo.shape[1] - TILE + 1, TILE)]
    return found


def tiles(side: int) -> Iterator[np.ndarray]:
    """The picture's tiles, row by row."""
    generator = torch.Generator().manual_seed(19)
    colours = [smooth_noise(64, generator) for _ in range(3)]
    where = smooth_noise(256, generator)
    threshold = float(where.flatten().quantile(1 - DETAILED))
    photos = photo_tiles()
    choice = np.random.default_rng(19).integers(len(photos), size=(side // TILE, side // TILE))
    for row in range(side // TILE):
        for column in range(side // TILE):
            top, left = row * TILE, column * TILE
            ground = np.stack([enlarged(each, top, left, TILE, side) for each in colours], axis=-1)
            mask = np.clip((enlarged(where, top, left, TILE, side) - threshold) * 200 + 0.5, 0, 1)[..., None]
            mixed = ground * (1 - mask) + mask * photos[choice[row, column]] / 255 if mask.any() else ground
            yield np.rint(mixed * 255).astype(np.uint8)


def write_picture(path: Path, side: int) -> None:
    """Write the picture as a tiled TIFF without compression, tile by tile."""
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        file.write(
            tiles(side), shape=(side, side, 3), dtype=np.uint8, tile=(TILE, TILE), photometric="rgb", metadata=None
        )


# ---- runs ----------------------------------------------------------------------------------------------------


class Side:
    """One way of drawing points, and how far it is."""

    def __init__(self, name: str, words: Sequence[str], path: Path, seconds: float) -> None:
        options = parse([*words, "--recipe", "fast", "--steps", "1000000", "--quiet"])
        began = time.perf_counter()
        on_disk = name.startswith("tiles")  # whatever the memory
        signal = open_raster(path, path.parent) if on_disk else load_signal(path, options, Path("runs/none"))
        self.fit = Fit(signal, options, torch.device("cpu"))
        generator = torch.Generator().manual_seed(0)
        self.sample = torch.randint(len(self.fit.grid), (SAMPLE,), generator=generator)
        self.name, self.opened = name, time.perf_counter() - began
        self.times = [seconds * 2.0**-i for i in range(6, -1, -1)]
        self.spent, self.step = 0.0, 0
        self.curve: list[dict[str, float]] = []

    def advance(self, steps: int) -> None:
        """Train so many steps, and evaluate when a time is reached; evaluations don't count."""
        start = time.perf_counter()
        for _ in range(steps):
            self.step += 1
            self.fit.step(self.step)
        self.spent += time.perf_counter() - start
        while self.times and self.spent >= self.times[0]:
            self.times.pop(0)
            self.curve.append({"seconds": round(self.spent, 2), "step": self.step, "psnr": round(self.psnr(), 3)})
            print(self.name, self.curve[-1], file=sys.stderr, flush=True)

    def psnr(self) -> float:
        """Of 2^18 random points, as of a picture on disk: all of a large picture take longer than the training."""
        found = self.fit.transform.inverse(self.fit.evaluate_at(self.fit.grid[self.sample]))
        return psnr(found[None], self.fit.values[self.sample][None])

    def result(self) -> dict[str, Any]:
        """What is recorded of it."""
        grid = self.fit.options.field
        return {
            "psnr": self.curve[-1]["psnr"],
            "curve": self.curve,
            "steps": self.step,
            "seconds_to_open": round(self.opened, 2),
            "points_a_step": self.fit.work.trained // self.step,
            "parameters": sum(weight.numel() for weight in self.fit.field.parameters()),
            "levels": getattr(grid, "levels", None),
            "table_log2": getattr(grid, "table_log2", None),
            "tile": self.fit.pool.tile,
        }


def race(sides: Mapping[str, Sequence[str]], path: Path, seconds: float) -> dict[str, dict[str, Any]]:
    """Train all sides for as long, in turn, so that a noisy machine disturbs all alike."""
    keep_freed_memory("cpu")
    running = [Side(name, words, path, seconds) for name, words in sides.items()]
    while any(side.times for side in running):
        for side in running:
            if side.times:
                side.advance(4)
    return {side.name: side.result() for side in running}


def over_time(args: argparse.Namespace) -> dict[str, Any]:
    """Every selector for as long."""
    shared = ["--memory", args.memory, *args.more]
    sides = {name: ["--selector", name, *shared] for name in args.selectors}
    found = race(sides, args.input, args.seconds)
    return {"memory": args.memory, "seconds": args.seconds, "megapixels": megapixels(args.input), **found}


def over_size(args: argparse.Namespace) -> dict[str, Any]:
    """One picture at several sizes: draws of as many points a step, uniform and by error, of pixels and from tiles."""
    photo, found = mosaic(args.photos, max(args.sizes)), {}
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes:
            path = Path(folder, f"{size}.png")
            small = interpolate(photo, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
            write_image(path, small[0].permute(1, 2, 0))
            fast = parse(["--recipe", "fast"]).sized_to((size, size), 3)
            grid: Any = fast.field
            uniform = ["--selector", "uniform", "--selector.keep_ratio", str(fast.selector.keep_ratio)]
            same = ["--points", str(round(fast.selector.keep_ratio * size**2))]
            same += ["--field.levels", str(grid.levels), "--field.base_resolution", str(grid.base_resolution)]
            sides = {
                "uniform": uniform,
                "error": [],
                "tiles uniform": ["--selector", "uniform", *same],
                "tiles error": same,
            }
            seconds = args.seconds * size / 512
            found[size] = {"seconds": seconds, **race(sides, path, seconds)}
            best = max(found[size][name]["psnr"] for name in ("uniform", "tiles uniform"))
            for name in ("error", "tiles error"):
                found[size][f"gain of {name}"] = round(found[size][name]["psnr"] - best, 3)
            print(size, found[size]["gain of error"], found[size]["gain of tiles error"], file=sys.stderr, flush=True)
    return found


def mosaic(folder: Path, side: int) -> torch.Tensor:
    """A picture (1, 3, side, side) of the photos in a folder at their own resolution, each turned where it repeats."""
    photos = [read_image(path).pixels[..., :3].permute(2, 0, 1) for path in list_images(folder)]
    size = min(min(photo.shape[1:]) for photo in photos)
    across = -(-side // size)
    squares = [
        photos[number % len(photos)][:, :size, :size].rot90(number // len(photos), (1, 2))
        for number in range(across**2)
    ]
    rows = [torch.cat(squares[row * across : (row + 1) * across], dim=2) for row in range(across)]
    return torch.cat(rows, dim=1)[None, :, :side, :side]


def bound(args: argparse.Namespace) -> dict[str, Any]:
    """The program itself on a picture: its peak, checkpoints and previews included."""
    with tempfile.TemporaryDirectory(dir=args.input.parent) as folder:
        command = [
            sys.executable,
            "image_regression/main.py",
            "--recipe",
            "fast",
            "--input",
            str(args.input.absolute()),
        ]
        command += ["--memory", args.memory, "--steps", str(args.steps), "--out", f"{folder}/run", *args.more]
        began = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True)
        metrics = json.loads(Path(folder, "run", "metrics.json").read_text())
    kept = ("psnr", "psnr_pixels", "train_seconds", "steps", "parameters", "bits_per_value")
    return {
        "memory": args.memory,
        "megapixels": megapixels(args.input),
        "peak_gb": metrics["peak_memory_bytes"] / 1e9,
        "wall_seconds": round(time.perf_counter() - began, 1),
        **{name: metrics[name] for name in kept},
        "curve": metrics["curve"],
    }


def megapixels(path: Path) -> float:
    """Of a TIFF."""
    with tifffile.TiffFile(path) as file:
        page: Any = file.pages.first
        return page.imagewidth * page.imagelength / 1e6


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["picture", "time", "bound", "size"])
    parser.add_argument("--side", type=int, default=16384)
    parser.add_argument("--input", type=Path)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--seconds", type=float, default=300, help="of training; size: at 512², in proportion to the side"
    )
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--memory", default="4G")
    parser.add_argument("--selectors", nargs="+", default=list(SELECTORS))
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--name")
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:split])
    args.more = words[split + 1 :]
    if args.what == "picture":
        write_picture(args.out, args.side)
    else:
        measured = {"time": over_time, "bound": bound, "size": over_size}[args.what](args)
        write_result(args.name or f"huge_picture_{args.what}", {"threads": torch.get_num_threads(), **measured})


if __name__ == "__main__":
    main()
