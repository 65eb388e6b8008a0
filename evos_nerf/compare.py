"""nerfstudio's own sampler beside EVOS' on anybody's capture, trained by ns-train: does EVOS pay here?

    python -m evos_nerf.compare --data DIR
    python -m evos_nerf.compare --data DIR --steps 5000 --seeds 0,1,2,3,4 -- nerfstudio-data --downscale-factor 4
    python -m evos_nerf.compare --data DIR --steps 600 --rays 512 -- --pipeline.model.num-levels 8 blender-data

Both sides are the same method with the same data manager, rays, steps and, for each seed, the same initial weights;
only ``--pipeline.datamanager.pixel-sampler.selector`` differs. Words after ``--`` go to ns-train. Writes summary.md
with the verdict, metrics.json with the curves, psnr_over_time.png and images/rays.png. A training that is finished is
kept: with ``--resume`` a stopped comparison goes on, and ``--seeds`` may name more of them.
"""

import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy import optimize, stats

from evos.command_line import parse_options
from evos.config import check_choices, check_range
from evos.errors import InputError, exit_on_input_error, unknown_name
from evos.runs.files import read_json, replace_file, write_json
from evos.runs.folder import open_run
from evos.runs.progress import Progress
from evos_nerf.demo import call, read_events, read_picture

SIDES = {"host": "nerfstudio", "tiles": "EVOS"}
"""Title of each side by its selector; the first is the one compared with."""

SELECTOR = "pipeline.datamanager.pixel-sampler.selector"
FREE = ("out", "resume", "overwrite", "seeds")
"""Options that may change when a comparison is resumed."""

Curve = list[list[float]]
"""(steps, seconds of training, PSNR over all held-out views) of each evaluation."""

Curves = Mapping[str, Mapping[str, Curve]]
"""Curves by selector and seed."""


@dataclass(frozen=True)
class CompareConfig:
    """Options of a comparison; words after -- are passed to ns-train."""

    data: str | None = None
    """The scene's folder; required."""

    out: str = "runs/compare-nerf"
    """Folder the comparison is written to."""

    method: str = "evos-nerfacto"
    """Registered method with EVOS' pixel sampler."""

    steps: int = 3000
    """Training steps at most (the last evaluation ends a training), at least 3."""

    seeds: str = "0,1,2"
    """Seeds, separated by commas; with one there is no telling whether a difference is chance."""

    rays: int | None = None
    """Rays of a step, at least 1; none: as many as the method has."""

    tests: int = 10
    """Evaluations of all held-out views, evenly spaced; at least 1, below the steps."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to train on; auto: cuda where there is one, else cpu."""

    resume: bool = False
    """Go on with a stopped comparison, or with more seeds."""

    overwrite: bool = False
    """Replace an existing comparison in the folder."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_range("steps", self.steps, 3)
        check_range("rays", self.rays, 1)
        check_range("tests", self.tests, 1, self.steps - 1)
        if not all(word.isdecimal() and int(word) < 2**32 for word in self.seed_list):
            raise InputError("seeds", self.seeds, "whole numbers below 2^32, separated by commas")

    @property
    def seed_list(self) -> list[str]:
        """The seeds, each once."""
        return list(dict.fromkeys(word.strip() for word in self.seeds.split(",")))

    @property
    def interval(self) -> int:
        """Steps between two evaluations."""
        return (self.steps - 1) // self.tests


# ---- what the curves say


def smoothed(curve: Curve) -> list[float]:
    """The PSNR of a curve by isotonic regression: the nearest curve that never falls, without a width to choose."""
    return optimize.isotonic_regression([psnr for _, _, psnr in curve]).x.tolist()


def reached(curve: Curve, psnr: float) -> tuple[float, float] | None:
    """Steps and seconds at which the smoothed curve, linear between its points, first has ``psnr``; None: it never has.

    Below its first evaluation the first one counts.
    """
    levels = smoothed(curve)
    if levels[-1] < psnr:
        return None
    steps, seconds = (np.array(axis) for axis in list(zip(*curve, strict=True))[:2])
    at = int(np.searchsorted(levels, psnr))
    if at == 0:
        return float(steps[0]), float(seconds[0])
    part = (psnr - levels[at - 1]) / (levels[at] - levels[at - 1])
    return tuple(float(axis[at - 1] + part * (axis[at] - axis[at - 1])) for axis in (steps, seconds))  # type: ignore


def measured(host: Mapping[Any, Curve], own: Mapping[Any, Curve]) -> dict[str, Any]:
    """By seed: gain in dB at the end, and the fraction of steps and of seconds in which ``own`` is where ``host`` ends.

    All of smoothed curves. Fractions are of what the host itself takes to get to its end; None where the other never
    gets there. ``p`` is that of a paired t-test of the gains, None for one seed.
    """
    gains, fractions = [], []
    for seed, base in host.items():
        end = smoothed(base)[-1]
        gains.append(smoothed(own[seed])[-1] - end)
        first, mine = reached(base, end), reached(own[seed], end)
        assert first is not None
        fractions.append(None if mine is None else [a / b for a, b in zip(mine, first, strict=True)])
    deviation = float(np.std(gains, ddof=1)) if len(gains) > 1 else None
    p = None
    if deviation is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.divide(abs(np.mean(gains)), deviation / np.sqrt(len(gains)))
        p = float(2 * stats.t.sf(ratio, len(gains) - 1))
    return {"gains_db": gains, "gain_db": float(np.mean(gains)), "std_db": deviation, "p": p, "fractions": fractions}


def verdict(curves: Curves) -> str:
    """One sentence: the gain with its spread over the seeds, the steps to nerfstudio's end, and what that is worth."""
    found = measured(*(curves[side] for side in SIDES))
    gain, count = found["gain_db"], len(found["gains_db"])
    seeds = f"{count} seed{'s' if count > 1 else ''}"
    amount = f"{abs(gain):.2f}" + (f" ± {found['std_db']:.2f}" if count > 1 else "")
    there = [fraction for fraction in found["fractions"] if fraction is not None]
    if len(there) == count:
        steps, seconds = np.mean(there, axis=0)
        reach = f"reaches that end in {steps:.2f} of the steps and {seconds:.2f} of the time"
    else:
        reach = f"reaches that end in {len(there)} of {count} runs" if there else "never reaches that end"
    what = f"EVOS ends {amount} dB {'above' if gain > 0 else 'below'} nerfstudio's own sampler and {reach}"
    if count == 1:
        return f"Not significant at 1 seed, which says nothing of chance: {what}."
    if not found["p"] < 0.05:
        return f"Not significant at {seeds} (p = {found['p']:.2g}): {what}."
    return f"EVOS {'pays' if gain > 0 else 'does not pay'} here ({seeds}, p = {found['p']:.2g}): {what}."


# ---- ns-train


def training_options(config: CompareConfig, side: str, seed: str, out: Path) -> dict[str, Any]:
    """ns-train's options for one training, all but those that the user passes on."""
    last = config.interval * config.tests  # steps are counted from 0
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = {
        "output-dir": out,
        "experiment-name": f"{side}-{seed}",
        "timestamp": "run",
        "vis": "tensorboard",
        "data": config.data,
        "max-num-iterations": last + 1,
        "machine.seed": seed,
        "machine.device-type": device if config.device == "auto" else config.device,
        "steps-per-save": last + 1,
        "steps-per-eval-batch": 0,
        "steps-per-eval-image": last,  # logs the sampler's maps
        "steps-per-eval-all-images": config.interval,
        "logging.local-writer.max-log-size": 0,
        "logging.max-buffer-size": 1,  # the time of each step, not a running mean
        SELECTOR: side,
    }
    rays = {} if config.rays is None else {"pipeline.datamanager.train-num-rays-per-batch": config.rays}
    return options | rays


def check_method(name: str) -> None:
    """Raise InputError unless ``name`` is a registered method with EVOS' pixel sampler."""
    with warnings.catch_warnings(action="ignore"):  # nerfstudio's own, of deprecated decorators
        from nerfstudio.configs.method_configs import all_methods

        from evos_nerf.pixel_sampler import EvosPixelSamplerConfig

    def has_our_sampler(config: Any) -> bool:
        # A method that is not installed has a placeholder without a pipeline, and not every pipeline has rays.
        data = getattr(getattr(config, "pipeline", None), "datamanager", None)
        return isinstance(getattr(data, "pixel_sampler", None), EvosPixelSamplerConfig)

    ours = [known for known, config in all_methods.items() if has_our_sampler(config)]
    if name not in ours:
        raise unknown_name("--method", name, ours)


def check_words(words: Sequence[str], taken: Mapping[str, Any]) -> None:
    """Raise InputError if a word for ns-train sets what the comparison itself sets."""
    for word in words:
        name = word.split("=")[0].removeprefix("--").replace("_", "-")
        if word.startswith("--") and name in taken:
            raise InputError(f"-- {word}", "an option that the comparison sets", "others of ns-train; see --help")


def train(config: CompareConfig, side: str, seed: str, words: Sequence[str], out: Path) -> Curve:
    """The curve of one training, from its folder if it is finished there."""
    folder = out / f"{side}-{seed}"
    finished = folder / "curve.json"
    if not finished.exists():
        shutil.rmtree(folder, ignore_errors=True)
        options = training_options(config, side, seed, out)
        with Progress(options["max-num-iterations"], f"{SIDES[side]}, seed {seed}") as progress:
            given = [word for name, value in options.items() for word in (f"--{name}", value)]
            call("ns-train", [config.method, *given, *words], folder / "train.log", progress)
        write_json(finished, read_curve(run_folder(config, folder)))
    return read_json(finished)


def run_folder(config: CompareConfig, folder: Path) -> Path:
    """Where ns-train writes config.yml and its events."""
    return folder / config.method / "run"


def read_curve(run: Path) -> Curve:
    """The curve that a training logged; raises InputError without held-out views, or for a PSNR that is not finite."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events, tag = EventAccumulator(str(run), {"scalars": 0}).Reload(), "Eval Images Metrics Dict (all images)/psnr"
    if tag not in events.Tags()["scalars"]:
        raise InputError("--data", "a scene without held-out views", "one whose data parser holds some out")
    seconds = np.cumsum([entry.value for entry in events.Scalars("Train Iter (time)")])
    curve = [[entry.step + 1, float(seconds[entry.step]), entry.value] for entry in events.Scalars(tag)]
    if not np.isfinite(curve).all():
        raise InputError(str(run), "a PSNR that is not finite", "a training that converges")
    return curve


def training_view(run: Path) -> np.ndarray:
    """The first training view, which the sampler's maps are of."""
    import yaml

    config = yaml.load((run / "config.yml").read_text(), Loader=yaml.Loader)
    data = config.pipeline.datamanager
    data.dataparser.data = data.data or data.dataparser.data
    return read_picture(data.dataparser.setup().get_dataparser_outputs(split="train").image_filenames[0])


# ---- what is written


def summary_text(config: CompareConfig, curves: Curves, words: Sequence[str]) -> str:
    """The verdict, a table of both sides, and how it was measured."""
    found = measured(*(curves[side] for side in SIDES))
    rows = ["| | PSNR at the end (dB) | seconds of a step |", "|---|---|---|"]
    for side, title in SIDES.items():
        ends = [smoothed(curve)[-1] for curve in curves[side].values()]
        paces = [curve[-1][1] / curve[-1][0] for curve in curves[side].values()]
        deviation = f" ± {np.std(ends, ddof=1):.2f}" if len(ends) > 1 else ""
        rows.append(f"| {title} | {np.mean(ends):.2f}{deviation} | {np.mean(paces):.4f} |")
    gains = ", ".join(f"{gain:+.2f}" for gain in found["gains_db"])
    steps = int(next(iter(curves["host"].values()))[-1][0])
    how = (
        f"`{config.method}` on `{config.data}`, {steps} steps, seeds {', '.join(curves['host'])}"
        + (f", ns-train's words `{' '.join(words)}`" if words else "")
        + ". PSNR is the mean over all held-out views, its curves smoothed by isotonic regression; seconds are "
        "those of training alone. Both sides have EVOS' data manager and differ in nothing but the sampler."
    )
    return "\n\n".join([verdict(curves), "\n".join(rows), f"Gain by seed (dB): {gains}", how]) + "\n"


def write_plot(path: Path, curves: Curves) -> None:
    """Plot PSNR over steps and over seconds: the mean over the seeds, in a band from the lowest to the highest."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for side, title in SIDES.items():
        steps, seconds, psnr = np.moveaxis(np.array(list(curves[side].values())), -1, 0)
        for axis, along, label in zip(axes, (steps, seconds), ("steps", "seconds of training"), strict=True):
            (line,) = axis.plot(along.mean(0), psnr.mean(0), label=title)
            axis.fill_between(along.mean(0), psnr.min(0), psnr.max(0), alpha=0.2, color=line.get_color(), linewidth=0)
            axis.set_xlabel(label)
    axes[0].set_ylabel("PSNR over all held-out views (dB)")
    axes[0].legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write_rays(path: Path, run: Path) -> None:
    """Plot the first training view, where EVOS' rays went on it, and its estimate of the error."""
    import matplotlib.pyplot as plt

    _, maps = read_events(run)
    titles = {"drawn": "rays drawn (nerfstudio: evenly)", "error": "estimated error"}
    # None where EVOS leaves the cameras to nerfstudio's sampler (equirectangular ones).
    panels = {"a training view": training_view(run)} | {titles[name]: maps[name] for name in titles if name in maps}
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 4), squeeze=False, layout="constrained")
    for axis, (title, pixels) in zip(axes[0], panels.items(), strict=True):
        axis.imshow(pixels, interpolation="nearest")
        axis.set_title(title)
        axis.axis("off")
    figure.savefig(path, dpi=110)
    plt.close(figure)


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """The program."""
    given = list(sys.argv[1:] if argv is None else argv)
    at = given.index("--") if "--" in given else len(given)
    words = given[at + 1 :]
    config = parse_options(CompareConfig, given[:at], "python -m evos_nerf.compare", __doc__ or "", "--")
    if config.data is None or not Path(config.data).exists():
        raise InputError("--data", config.data, "the folder of a scene")
    check_words(words, training_options(config, "host", "0", Path(config.out)))
    check_method(config.method)
    options, is_new = {**asdict(config), "words": " ".join(words)}, not Path(config.out).exists()
    run = open_run(config.out, options, resume=config.resume, overwrite=config.overwrite, free=FREE)
    trainings = run.path / "trainings"
    if config.overwrite:
        shutil.rmtree(trainings, ignore_errors=True)
    curves: dict[str, dict[str, Curve]] = {side: {} for side in SIDES}
    try:
        for seed in config.seed_list:  # the slowest, so that a stopped comparison is complete for the first
            for side in SIDES:
                curves[side][seed] = train(config, side, seed, words, trainings)
    except KeyboardInterrupt:
        print("stopped; the same command with --resume goes on", file=sys.stderr)
        raise SystemExit(130) from None
    except SystemExit as error:
        if error.code == 2 and is_new and not any(trainings.glob("*/curve.json")):
            shutil.rmtree(run.path)  # bad input leaves nothing behind
        raise
    found = measured(*(curves[side] for side in SIDES))
    write_json(run.metrics_path, {"verdict": verdict(curves), **found, "curves": curves})
    write_plot(run.path / "psnr_over_time.png", curves)
    write_rays(run.images / "rays.png", run_folder(config, trainings / f"tiles-{config.seed_list[0]}"))
    text = summary_text(config, curves, words)
    replace_file(run.path / "summary.md", text.encode())
    print(f"\n{text}\npictures: {run.path / 'psnr_over_time.png'}, {run.images / 'rays.png'}")


if __name__ == "__main__":
    main()
