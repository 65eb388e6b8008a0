"""Demo of the nerfstudio plugin: nerfacto and evos-nerfacto on an embedded scene, with equal numbers of rays.

    make demo-nerf

Runs nerfstudio's own programs, ns-train and ns-eval, and writes a table and runs/demo-nerf/report.png.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from evos.command_line import parse_options
from evos.config import check_range
from evos.errors import InputError, exit_on_input_error
from evos.runs.files import replace_file, write_json
from evos.runs.folder import check_run_folder, open_run
from evos.runs.outputs import check_folder
from evos.runs.progress import Progress
from evos_nerf.scene import SceneConfig, check_scene_folder, write_scene

METHOD = "evos-nerfacto"
SELECTORS = {"nerfacto": "host", "EVOS": "tiles"}
"""What draws the rays, by title in the table. nerfstudio's own sampler comes first: the others are compared with it."""

# nerfacto reduced to what two CPU cores can train. Scene contraction stays on: without it two of seven trial runs, both
# of plain nerfacto, collapsed to one saturated colour (11 and 13 dB), which would make the comparison meaningless.
MODEL = {
    "num-levels": 8,
    "log2-hashmap-size": 15,
    "max-res": 512,
    "num-proposal-samples-per-ray": (48, 32),
    "num-nerf-samples-per-ray": 24,
    "implementation": "torch",
    "background-color": "white",
    "use-appearance-embedding": False,
    "camera-optimizer.mode": "off",
}
FILES = (
    *("train.log", "eval.log", "renders/eval_*.png"),
    *(f"{METHOD}/run/{name}" for name in ("config.yml", "eval.json", "dataparser_transforms.json")),
    *(f"{METHOD}/run/{name}" for name in ("events.out.tfevents.*", "nerfstudio_models/step-*.ckpt")),
)
"""What nerfstudio's programs write for a selector."""
QUICK = {"steps": 20, "views": 4, "size": 32}


@dataclass(frozen=True)
class DemoConfig:
    """Options of the demo."""

    out: str = "runs/demo-nerf"
    """Folder the scene, the runs, the table and the picture are written to."""

    steps: int = 600
    """Training steps of each method, at least 4."""

    rays: int = 512
    """Rays of a step, at least 1."""

    views: int = 40
    """Training views, at least 1."""

    size: int = 100
    """Side of the views in pixels, 8 to 2048."""

    seed: int = 0
    """Seed of the scene and of both runs, at least 0."""

    quick: bool = False
    """Smoke test: 20 steps on 4 views of 32 pixels; its metrics are meaningless."""

    overwrite: bool = False
    """Replace an existing demo run in the folder."""

    def __post_init__(self) -> None:
        check_range("steps", self.steps, 4)
        check_range("rays", self.rays, 1)
        check_range("seed", self.seed, 0, 2**32 - 1)
        SceneConfig(views=self.views, size=self.size)


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """The program."""
    config = parse_options(DemoConfig, argv, "make demo-nerf", __doc__ or "", "--")
    if config.quick:
        config = replace(config, **QUICK)
    out = Path(config.out)
    check_run_folder(out, resume=False, overwrite=config.overwrite)
    check_scene_folder(out / "scene", config.overwrite)
    for title in SELECTORS:
        check_folder(out / title, FILES, config.overwrite, "--out")
    open_run(out, {"demo-nerf": asdict(config)}, resume=False, overwrite=config.overwrite)
    for title in SELECTORS:
        shutil.rmtree(out / title, ignore_errors=True)
    scene = write_scene(SceneConfig(str(out / "scene"), config.views, config.size, config.seed, config.overwrite))
    results = {title: run_method(title, config, scene, out / title) for title in SELECTORS}
    table = markdown_table(results)
    replace_file(out / "table.md", table.encode())
    write_json(out / "metrics.json", {title: result["metrics"] for title, result in results.items()})
    write_report(out / "report.png", results, scene)
    budget = f"{config.views} views {config.size} x {config.size}, {config.steps} steps of {config.rays} rays"
    print(f"\n{budget}, {torch.get_num_threads()} threads; one run each, seed {config.seed}\n\n{table}")
    print(f"pictures: {out / 'report.png'}")


def run_method(title: str, config: DemoConfig, scene: Path, out: Path) -> dict[str, Any]:
    """Train and evaluate with one selector, in ``out``: metrics, the middle test view and its rendering, the maps."""
    folder, renders = out / METHOD / "run", out / "renders"
    with Progress(config.steps, title) as progress:
        call("ns-train", training_options(title, config, scene, out), out / "train.log", progress)
    with Progress(1, f"{title}: test views") as progress:
        words = ["--load-config", folder / "config.yml", "--output-path", folder / "eval.json"]
        call("ns-eval", [*words, "--render-output-path", renders], out / "eval.log", progress)
        progress.update(1)
    found = json.loads((folder / "eval.json").read_text())["results"]
    metrics = {name: found[name] for name in ("psnr", "ssim", "lpips") if name in found}
    seconds, maps = read_events(folder)
    views = sorted(renders.glob("eval_img_*.png"))
    truth, render = np.split(read_picture(views[len(views) // 2]), 2, axis=1)
    return {
        "metrics": {**metrics, "seconds": seconds, "rays": config.steps * config.rays},
        **{"truth": truth, "render": render, "maps": maps},
    }


def training_options(title: str, config: DemoConfig, scene: Path, out: Path) -> list[Any]:
    """The arguments of ns-train, identical for both rows except for the selector and the folder."""
    options: dict[str, Any] = {
        "output-dir": out.parent,
        "experiment-name": out.name,
        "timestamp": "run",
        "vis": "tensorboard",
        "data": scene,
        "max-num-iterations": config.steps,
        "machine.seed": config.seed,
        "steps-per-save": config.steps,
        "steps-per-eval-batch": 0,
        "steps-per-eval-image": config.steps - 1,  # the last step, which logs the selector's maps
        "logging.local-writer.max-log-size": 0,
        "pipeline.datamanager.train-num-rays-per-batch": config.rays,
        "pipeline.datamanager.pixel-sampler.selector": SELECTORS[title],
        **{f"pipeline.model.{name}": value for name, value in MODEL.items()},
    }
    if not torch.cuda.is_available():
        options["machine.device-type"] = "cpu"
    words: list[Any] = [METHOD]
    for name, value in options.items():
        words += [f"--{name}", *(value if isinstance(value, tuple) else (value,))]
    return [*words, "blender-data"]


def call(program: str, words: Sequence[Any], log: Path, progress: Progress) -> None:
    """Run one of nerfstudio's programs with its output in ``log``, and show the steps that it reports.

    Where it fails, raises SystemExit with the end of the log; for bad input, status 2, with one line of it on stderr.
    """
    path = Path(sys.executable).with_name(program)
    if not path.exists():
        raise InputError(program, "none beside python", "an environment with the nerf extra (make install EXTRAS=nerf)")
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with (
        log.open("w") as file,
        subprocess.Popen(
            [str(word) for word in (path, *words)],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            if step := re.match(r"(\d+) \(\d+\.\d+%\)", line):
                progress.update(int(step[1]) + 1)
    if process.returncode:
        lines = log.read_text().splitlines()
        if process.returncode == 2 and (reason := refusal(lines)):
            print(f"error: {reason}", file=sys.stderr)
            raise SystemExit(2)
        end = f"error: {program} ended with status {process.returncode}; see {log}"
        raise SystemExit("\n".join([*lines[-15:], end]))


def refusal(lines: Sequence[str]) -> str | None:
    """What a log says of bad input: our own line, or the first one in tyro's box; None where there is neither."""
    ours = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    boxed = [line.strip("│ ") for line in lines if line.startswith("│")]
    return next(iter(ours[-1:] + boxed), None)


def read_events(folder: Path) -> tuple[float, dict[str, np.ndarray]]:
    """Wall-clock training seconds, and the selector's last logged maps (`drawn`, `error`), if any."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), {"scalars": 0, "images": 1}).Reload()
    clock = [entry.wall_time for entry in events.Scalars("Train Iter (time)")]
    # Without the first step, which includes one-time set-up, and the last, which includes evaluating an image.
    seconds = (clock[-2] - clock[0]) / (len(clock) - 2) * len(clock)
    prefix = "Eval Images/evos_"
    pictures = {tag.removeprefix(prefix): tag for tag in events.Tags()["images"] if tag.startswith(prefix)}
    return seconds, {
        name: np.asarray(PIL.Image.open(BytesIO(events.Images(tag)[-1].encoded_image_string)))
        for name, tag in pictures.items()
    }


def read_picture(path: Path) -> np.ndarray:
    """An image composited over white, as floats in [0, 1] of shape (H, W, 3)."""
    pixels = np.asarray(PIL.Image.open(path).convert("RGBA"), dtype=np.float64) / 255
    return pixels[..., :3] * pixels[..., 3:] + 1 - pixels[..., 3:]


def markdown_table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown table of test PSNR, test SSIM, training seconds and number of rays of each method."""
    rows = [["", "PSNR (dB)", "SSIM", "training s", "rays"], ["---"] * 5]
    for title, result in results.items():
        numbers = result["metrics"]
        row = [f"{numbers['psnr']:.2f}", f"{numbers['ssim']:.4f}", f"{numbers['seconds']:.1f}", f"{numbers['rays']:,}"]
        rows.append([title, *row])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def write_report(path: Path, results: dict[str, dict[str, Any]], scene: Path) -> None:
    """Plot ground truth, renderings, their errors on a common scale, and the selector's maps of a training view."""
    import matplotlib.pyplot as plt

    errors = {title: np.abs(result["render"] - result["truth"]).mean(-1) for title, result in results.items()}
    scale = max(float(np.percentile(error, 99)) for error in errors.values())
    above = [("truth, a test view", next(iter(results.values()))["truth"])]
    below = [("a training view", read_picture(scene / "train" / "r_0.png"))]
    for title, result in results.items():
        above.append((f"{title}: {result['metrics']['psnr']:.2f} dB over all test views", result["render"]))
        below.append((f"{title}: absolute error", errors[title]))
        for row, name, caption in [
            (above, "drawn", "rays drawn on the training view"),
            (below, "error", "estimated error"),
        ]:
            if name in result["maps"]:
                row.append((f"{title}: {caption}", result["maps"][name]))
    figure, axes = plt.subplots(2, len(above), figsize=(3.6 * len(above), 7.6), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, (title, pixels) in [*zip(axes[0], above, strict=True), *zip(axes[1], below, strict=False)]:
        axis.imshow(pixels, cmap="magma", vmin=0, vmax=scale, interpolation="nearest")
        axis.set_title(title, fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
