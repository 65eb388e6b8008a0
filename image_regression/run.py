"""One run: a folder, the training loop with its clock, evaluations, checkpoints and pictures, and its metrics."""

import math
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from evos.runs import (
    Clock,
    EventLog,
    Progress,
    Stopper,
    environment,
    keep_freed_memory,
    load_checkpoint,
    non_finite,
    open_run,
    peak_memory_bytes,
    read_json,
    resolve_device,
    rng_state,
    save_checkpoint,
    seed_everything,
    set_rng_state,
    write_json,
)
from evos.runs.files import replace_file
from image_regression import pictures, recordings
from image_regression.options import FREE, Options, as_config_file
from image_regression.report import Curve, write_report
from image_regression.signals import Signal
from image_regression.trainer import Fit

CHECK_EVERY = 100
"""Steps between looks at whether the loss is still finite: each makes the host wait for the device."""


class Stopped(Exception):
    """A signal ended the run after a finished step and a saved checkpoint."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


def fit_signal(
    signal: Signal, options: Options, path: Path, stopper: Stopper, *, lpips_steps: Sequence[int] = ()
) -> dict[str, Any]:
    """Fit a signal into the run folder ``path``; returns what its metrics.json holds.

    ``lpips_steps``: evaluations that measure LPIPS too.

    Raises:
        InputError: the folder is taken, the checkpoint doesn't fit, the disk is full, the loss is not finite.
        Stopped: a signal came; the checkpoint is written.
    """
    settings = options.run
    medium = recordings if signal.sound else pictures
    device = resolve_device(settings.device)
    seed_everything(settings.seed)
    keep_freed_memory(device)
    fit = Fit(signal, options, device)  # before the folder: what is refused here leaves nothing behind
    run = open_run(path, options.resolved(), resume=settings.resume, overwrite=settings.overwrite, free=FREE)
    if settings.resume and run.metrics_path.exists():
        return read_json(run.metrics_path)
    text = "# Repeats this run: --config FILE --out ANOTHER_FOLDER\n" + as_config_file(options)
    replace_file(run.path / "config.txt", text.encode())
    clock, curve, done = Clock(device), [], 0
    if run.resuming:
        state = load_checkpoint(run.checkpoint_path, device=device)
        fit.load_state_dict(state.get("fit", {}))
        done, curve = state["step"], state["curve"]
        clock.load_state_dict(state["clock"])
        set_rng_state(state["rng"])

    eval_every = settings.eval_every or max(1, settings.steps // 20)
    save_every = settings.save_every or max(1, settings.steps // 10)
    events = EventLog(run.path, purge_step=done + 1 if done else None)
    progress = Progress(settings.steps, signal.name, start=done, quiet=settings.quiet)

    def save(step: int) -> None:
        state = {"step": step, "curve": curve, "fit": fit.state_dict(), "clock": clock.state_dict(), "rng": rng_state()}
        save_checkpoint(run.checkpoint_path, state)

    with closing(events), progress:
        for step in range(done + 1, settings.steps + 1):
            clock.start()
            loss = fit.step(step)
            last = step == settings.steps
            evaluate = last or step % eval_every == 0
            store = last or step % save_every == 0 or stopper.requested
            if evaluate or store or step % CHECK_EVERY == 0:
                clock.pause()
                if bad := fit.bad_step(step):
                    non_finite(math.nan, bad)
            if evaluate:
                entry = {"step": step, "seconds": clock.seconds, "points": fit.work.evaluated}
                values = fit.predict()
                quality = medium.measure(fit, values, with_lpips=step in lpips_steps)
                curve.append(entry | quality)
                events.scalars(step, {"loss": float(loss)} | {k: v for k, v in quality.items() if v is not None})
                medium.log(events, fit, step, values)
            if store:
                save(step)
            progress.update(step, **({"psnr": curve[-1]["psnr"]} if curve else {}))
            if stopper.requested and not last:
                raise Stopped(stopper.exit_code)
    values = fit.predict()
    metrics = summarise(fit, clock, curve, medium.measure(fit, values, with_lpips=settings.lpips))
    medium.write(run, fit, values)
    truth, panel = medium.panel(fit, values)
    write_report(run.path / "report.png", truth, [panel], [Curve(panel.title, curve)])
    write_json(run.metrics_path, metrics)
    return metrics


def summarise(fit: Fit, clock: Clock, curve: list[dict[str, Any]], quality: dict[str, float | None]) -> dict[str, Any]:
    """What metrics.json holds."""
    options = fit.options
    return {
        "name": fit.signal.name,
        "shape": [*fit.signal.shape, fit.signal.values.shape[-1]],
        **({"psnr": None, "ssim": None, "lpips": None} | quality),
        "steps": options.run.steps,
        "train_seconds": clock.seconds,
        "points_evaluated": fit.work.evaluated,
        "points_trained": fit.work.trained,
        "parameters": sum(p.numel() * (2 if p.is_complex() else 1) for p in fit.field.parameters()),
        "peak_memory_bytes": peak_memory_bytes(fit.device),
        "curve": curve,
        "options": options.resolved() | {"cfs_weight": options.cfs_weight, "lr": options.lr},
        "seed": options.run.seed,
        "device": str(fit.device),
        "versions": environment(),
    }
