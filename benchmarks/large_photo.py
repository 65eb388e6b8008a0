"""Memory of a large picture: peak of a whole run at 2048², EVOS and full batch, for several chunk sizes.

python benchmarks/large_photo.py [--size 2048] [--steps 2] [--chunks 16384 262144] [--selectors evos full]

Each run is a process of its own (peak memory is the process's); the photo is scikit-image's, enlarged.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from common import write_result
from torch.nn.functional import interpolate

from evos.images import write_image
from evos.signals import astronaut

ROOT = Path(__file__).parents[1]


def enlarged(size: int, path: Path) -> None:
    """Write the photo enlarged to size × size pixels."""
    signal = astronaut()
    pixels = signal.picture(signal.values).permute(2, 0, 1)[None]
    write_image(path, interpolate(pixels, (size, size), mode="bicubic")[0].permute(1, 2, 0).clamp(0, 1))


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--chunks", type=int, nargs="+", default=[16384, 262144])
    parser.add_argument("--selectors", nargs="+", default=["evos", "full"], help="or fast, the recipe")
    args = parser.parse_args()
    numbers = {}
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder, "photo.png")
        enlarged(args.size, photo)
        for selector in args.selectors:
            for chunk in args.chunks:
                out = Path(folder, f"{selector}-{chunk}")
                command = [
                    sys.executable,
                    "image_regression/main.py",
                    "--input",
                    str(photo),
                    "--out",
                    str(out),
                    "--quiet",
                ]
                command += [
                    "--recipe" if selector == "fast" else "--selector",
                    selector,
                    "--steps",
                    str(args.steps),
                    "--chunk",
                    str(chunk),
                    "--lpips",
                    "false",
                ]
                subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
                metrics = json.loads((out / "metrics.json").read_text())
                numbers[out.name] = {
                    "peak_gib": metrics["peak_memory_bytes"] / 2**30,
                    "seconds_per_step": metrics["train_seconds"] / args.steps,
                    "points_evaluated": metrics["points_evaluated"],
                    "parameters": metrics["parameters"],
                }
                print(out.name, numbers[out.name], flush=True)
    write_result(f"large_photo_{args.size}", {"threads": torch.get_num_threads(), **numbers})


if __name__ == "__main__":
    main()
