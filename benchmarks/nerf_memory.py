"""Host memory and start-up of training images: EVOS' data manager beside nerfstudio's own, on generated frames.

    python benchmarks/nerf_memory.py --frames 40 80 [--size 1080 1920] [--masks] [--sides evos full vanilla parallel]

Each side is a process of its own: it builds the data manager of a method as ns-train does and draws the first batch of
rays (of the full-image one: the first image). Measured are the seconds from building to the first batch, with the page
cache warm, and the peak of the resident memory of the process and its children, above that of a scene of one training
image (two with masks). Bytes a pixel are the slope between the smallest and the largest number of frames.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from common import write_result
from numpy.random import default_rng

SIDES = ("evos", "full", "vanilla", "parallel")
"""EVOS' data manager; nerfstudio's: of full images (splatfacto's, in bytes), of pixels here and in another process."""


def write_scene(folder: Path, frames: int, height: int, width: int, masked: bool) -> Path:
    """One validation image and ``frames`` training images: eight different JPEG files of smooth noise under many names,
    and masks without a fifth of the pixels."""
    folder.mkdir(parents=True)
    for number in range(min(8, frames + 1)):
        draw = default_rng(number)
        coarse = PIL.Image.fromarray(draw.integers(0, 256, (height // 8, width // 8, 3), np.uint8))
        coarse.resize((width, height), PIL.Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)
        if masked:
            blocks = 255 * (draw.random((-(-height // 40), -(-width // 40))) > 0.2).astype(np.uint8)
            PIL.Image.fromarray(np.kron(blocks, np.ones((40, 40), np.uint8))[:height, :width]).save(
                folder / f"{number}.png"
            )
    listed = []
    for number in range(frames + 1):
        for kind in ("jpg", "png")[: 1 + masked]:
            if number >= 8:
                (folder / f"{number}.{kind}").hardlink_to(folder / f"{number % 8}.{kind}")
        pose = np.eye(4)
        pose[:3, 3] = (number / (frames + 1), 0, 4)
        mask = {"mask_path": f"{number}.png"} if masked else {}
        listed.append({"file_path": f"{number}.jpg", "transform_matrix": pose.tolist(), **mask})
    camera = {"fl_x": width, "fl_y": width, "cx": width / 2, "cy": height / 2, "w": width, "h": height}
    content = {**camera, "camera_model": "OPENCV", "frames": listed}
    (folder / "transforms.json").write_text(json.dumps(content))
    return folder


def data_config(side: str, scene: Path, frames: int) -> Any:
    """The options of a side's data manager."""
    from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
    from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanagerConfig
    from nerfstudio.data.datamanagers.parallel_datamanager import ParallelDataManagerConfig
    from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

    from evos_nerf.datamanager import EvosDataManagerConfig

    parser = NerfstudioDataParserConfig(data=scene, eval_mode="interval", eval_interval=frames + 1)
    if side == "full":
        return FullImageDatamanagerConfig(dataparser=parser, cache_images="cpu", cache_images_type="uint8")
    kinds = {"evos": EvosDataManagerConfig, "vanilla": VanillaDataManagerConfig, "parallel": ParallelDataManagerConfig}
    return kinds[side](dataparser=parser, train_num_rays_per_batch=4096)


def first_batch(side: str, scene: Path, frames: int) -> float:
    """Seconds from building a side's data manager to its first batch."""
    from evos.runs import keep_freed_memory

    if not torch.cuda.is_available():  # the full-image data manager pins what it caches
        torch.Tensor.pin_memory = lambda self: self  # type: ignore
    config = data_config(side, scene, frames)
    began = time.perf_counter()
    if side == "evos":  # as its pipeline does
        keep_freed_memory("cpu")
    manager = config.setup(device="cpu", test_mode="val", world_size=1, local_rank=0)
    if side == "evos":
        manager.train_pixel_sampler.plan(30_000)
    manager.next_train(0)
    return time.perf_counter() - began


def resident_mib(pid: int) -> dict[int, float]:
    """The highest resident memory so far of a process and of its children, by process."""
    found = {}
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        found[pid] = int(status.split("VmHWM:")[1].split()[0]) / 1024
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found |= resident_mib(int(child))
    except (FileNotFoundError, ProcessLookupError, IndexError):  # it has ended
        pass
    return found


def measured(side: str, scene: Path, frames: int) -> dict[str, float]:
    """Seconds and peak MiB of one side, in a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, "--side", side, "--scene", str(scene), "--frames", str(frames)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peaks: dict[int, float] = {}

    def watch() -> None:
        while process.poll() is None:
            for pid, mib in resident_mib(process.pid).items():
                peaks[pid] = max(mib, peaks.get(pid, 0))
            time.sleep(0.02)

    watching = threading.Thread(target=watch)
    watching.start()
    output, _ = process.communicate()
    watching.join()
    if process.returncode:
        raise SystemExit(f"{side} ended with {process.returncode}")
    return {"seconds": float(output.splitlines()[-1]), "peak_mib": sum(peaks.values())}


def main() -> None:
    """Measure every side at every number of frames."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, nargs="+", default=[40, 80])
    parser.add_argument("--size", type=int, nargs=2, default=[1080, 1920], help="height and width")
    parser.add_argument("--masks", action="store_true")
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
    parser.add_argument("--repeats", type=int, default=1, help="of each side, in turn; reported is the median")
    parser.add_argument("--side", help="measure this one here")
    parser.add_argument("--scene", type=Path)
    args = parser.parse_args()
    if args.side:
        seconds = first_batch(args.side, args.scene, args.frames[0])
        print(seconds, flush=True)
        return
    height, width = args.size
    table: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        base = 2 if args.masks else 1  # nerfstudio's sampler fails on one image with a mask
        counts = [base, *sorted(args.frames)]
        scenes = {n: write_scene(Path(folder) / str(n), n, height, width, args.masks) for n in counts}
        rounds = [  # the sides in turn: memory that the machine has not used before is slow
            {side: {n: measured(side, scenes[n], n) for n in counts} for side in args.sides}
            for _ in range(args.repeats)
        ]
        for side in args.sides:
            runs = {
                n: {key: statistics.median(each[side][n][key] for each in rounds) for key in ("seconds", "peak_mib")}
                for n in counts
            }
            rise = runs[counts[-1]]["peak_mib"] - runs[counts[1]]["peak_mib"]
            pixels = (counts[-1] - counts[1]) * height * width
            table[side] = {
                "frames": runs,
                "bytes_per_pixel": rise * 2**20 / pixels if pixels else None,
                "seconds_to_first_batch": runs[counts[-1]]["seconds"],
                f"peak_mib_above_{'two_frames' if args.masks else 'one_frame'}": runs[counts[-1]]["peak_mib"]
                - runs[base]["peak_mib"],
            }
            print(side, table[side], flush=True)
    masks = "_masks" if args.masks else ""
    write_result(
        f"nerf_memory_{height}p{masks}",
        {"size": args.size, "masks": args.masks, "repeats": args.repeats, "sides": table},
    )


if __name__ == "__main__":
    main()
