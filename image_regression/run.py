"""One run on one signal: training, evaluation and the files written."""

import math
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from evos.fields import build_field
from evos.fields.hashgrid import HashGridConfig
from evos.fitted import FILE, FittedField, save_field
from evos.images import write_image
from evos.metrics import lpips_network
from evos.optimizers import evaluation_weights
from evos.rasters import Raster
from evos.runs import (
    EventLog,
    Run,
    Stopper,
    Trainable,
    TrainingLoop,
    count_parameters,
    keep_freed_memory,
    open_run,
    read_json,
    replace_file,
    resolve_device,
    seed_everything,
    write_json,
)
from evos.signals import Signal, kind_of
from image_regression.animation import frame_steps, progress_picture, write_animation, write_frame
from image_regression.media import MEDIA
from image_regression.options import FREE, GROWING, Options, as_config_file
from image_regression.report import Curve, write_report
from image_regression.trainer import Fit

LARGE = 2**20
"""Points of a signal whose blocks of memory are given back."""


def fit_signal(
    signal: Signal | Raster, options: Options, path: Path, stopper: Stopper, *, lpips_steps: Sequence[int] = ()
) -> dict[str, Any]:
    """Fit a signal into the run folder ``path``; returns what its metrics.json holds.

    Args:
        signal: the signal to fit.
        options: of the run; ``run.out`` and ``run.input`` are ignored.
        path: the run folder.
        stopper: checked after every step.
        lpips_steps: steps at which evaluations measure LPIPS too; the final one does where ``run.lpips`` is set.

    Raises:
        InputError: the folder is taken, the checkpoint doesn't fit, the disk is full, the loss is not finite.
        Stopped: a signal arrived; the checkpoint is written.
    """
    settings = options.run
    device = resolve_device(settings.device)
    seed_everything(settings.seed)
    # Built before the run folder, so that invalid options leave no folder behind.
    keep_freed_memory(device)
    training = SignalTraining(Fit(signal, options, device), lpips_steps)
    keep_freed_memory(device, blocks=kept_blocks(training.fit))
    if options.sized and not settings.quiet:
        print(choice(training.fit))
    options = training.fit.options
    run = open_run(
        path,
        options.resolved(),
        resume=settings.resume,
        overwrite=settings.overwrite,
        free=FREE,
        growing=() if settings.polish else GROWING,  # after L-BFGS nothing goes on
    )
    if settings.resume and run.metrics_path.exists():
        metrics = read_json(run.metrics_path)
        if metrics["steps"] == settings.steps:
            return metrics
    training.run = run
    text = "# Repeats this run: --config FILE --out ANOTHER_FOLDER\n" + as_config_file(options)
    replace_file(run.path / "config.txt", text.encode())
    loop = TrainingLoop(
        training,
        run,
        steps=settings.steps,
        label=signal.name,
        device=device,
        seed=settings.seed,
        eval_every=settings.eval_every,
        save_every=settings.save_every,
        quiet=settings.quiet,
    )
    loop.train(stopper)
    details = training.medium.final_metrics(training.fit, training.values)
    metrics = training.metrics() | details | loop.metrics()
    training.fit.train_seconds = loop.clock.seconds
    metrics |= training.medium.write(run, training.fit, training.values) or {}
    save_field(run.path / FILE, fitted_field(training.fit))
    if settings.animate:
        write_animation(run)
    truth, panel = training.medium.panel(training.fit, training.values)
    write_report(run.path / "report.png", truth, [panel], [Curve(panel.title, loop.curve)])
    write_json(run.metrics_path, metrics)
    return metrics


def choice(fit: Fit) -> str:
    """What a recipe made of the signal, in one line."""
    run, grid = fit.options.run, fit.options.field
    assert isinstance(grid, HashGridConfig)
    hashed = max(grid.table_sizes(len(fit.signal.shape))) > 2**grid.table_log2
    sizes = f"{grid.levels} levels of {grid.level_features} features, {grid.finest_resolution} vertices at the finest"
    tables = f"tables of 2^{grid.table_log2} rows" if hashed else "no hashing"
    ratio = 1.0 if run.selector == "full" else fit.options.selector.keep_ratio
    of_points = f"{ratio:.2g} of {fit.pool.cells:,} points a step"
    if fit.source.count is not None:
        of_points = f"{fit.source.count:,} points a step from {fit.pool.cells:,} tiles of {fit.pool.tile}²"
    return (
        f"{fit.signal.name}: recipe {run.recipe}: {run.field} of {sizes}, {tables}, "
        f"{count_parameters(fit.field.parameters()):,} parameters; {run.optimizer} {fit.options.lr:g}; "
        f"{of_points}, selector {run.selector}"
    )


def kept_blocks(fit: Fit) -> int:
    """Bytes of the largest blocks of memory that are worth keeping when they are freed.

    A step's are: the system takes longer to clear them than the step to fill them. Those of a large signal's own size
    are not: they come once in many steps, and what lies between them keeps their memory from being used for others.
    """
    if not fit.source.is_whole or len(fit.values) < LARGE:
        return 2**30
    return max(2**24, *(4 * weight.numel() + 2**16 for weight in fit.field.parameters()))


def fitted_field(fit: Fit) -> FittedField:
    """The field as it is evaluated, by itself; it shares no weights with the fit's."""
    signal, channels = fit.signal, fit.values.shape[-1]
    field = build_field(fit.options.field, len(signal.shape), channels, seed=0, device=fit.device)
    with evaluation_weights(fit.field, fit.optimizer, fit.average):
        field.load_state_dict(fit.field.state_dict())
    return FittedField(
        field,
        fit.options.field,
        fit.transform,
        signal.shape,
        channels,
        shift=fit.shift(),
        name=signal.name,
        form=signal.form,
    )


def check_lpips(inputs: Iterable[Path | None], kind: str = "auto") -> None:
    """Where pictures are among the inputs, load the weights of LPIPS: if they can't be, the warning comes now.

    Later attempts in this process give up silently.
    """
    if any(kind_of(path, kind) == "picture" for path in inputs):
        lpips_network()


class SignalTraining(Trainable):
    """Adapts a ``Fit`` to the training loop and keeps its last evaluation.

    Attributes:
        values: the whole signal as last predicted, in [0, 1] units.
        quality: its metrics.
    """

    values: Float[Tensor, "P C"]
    quality: dict[str, float | None]
    run: Run | None

    def __init__(self, fit: Fit, lpips_steps: Collection[int] = ()) -> None:
        """``lpips_steps``: steps at which evaluations measure LPIPS too."""
        self.fit, self.lpips_steps, self.run = fit, lpips_steps, None
        run = fit.options.run
        self.frame_steps = frozenset(frame_steps(run.steps) if run.animate else ())
        self.medium = MEDIA[fit.signal.kind]

    def step(self, step: int) -> Float[Tensor, ""]:
        """One step of the fit."""
        return self.fit.step(step)

    def evaluate(self, step: int, events: EventLog | None, *, final: bool) -> dict[str, float | int | None]:
        """Points evaluated so far by training, and the quality of the whole signal."""
        with_lpips = step in self.lpips_steps or (final and self.fit.options.run.lpips)
        self.values = self.fit.predict()
        self.quality = self.medium.measure(self.fit, self.values, with_lpips=with_lpips)
        if events:
            self.medium.log(events, self.fit, step, self.values)
        if self.run and not self.fit.source.is_whole:
            write_image(self.run.images / "preview.png", self.picture(step, self.values))
        return {"points": self.fit.work.evaluated} | self.quality

    def picture(self, step: int, values: Float[Tensor, "P C"]) -> Float[Tensor, "h w 3"]:
        """Truth, fit, error and selection after a step."""
        return progress_picture(*self.medium.panel(self.fit, values), f"step {step:,}")

    def draws_at(self, step: int) -> bool:
        """Whether a frame of the animation is due."""
        return step in self.frame_steps

    def draw(self, step: int) -> None:
        """Keep a frame of the animation."""
        assert self.run is not None
        write_frame(self.run, step, self.picture(step, self.fit.predict()))

    def parameters(self) -> Iterable[Tensor]:
        """The field's weights."""
        return self.fit.field.parameters()

    def state_dict(self) -> dict[str, Any]:
        """The fit's state."""
        return {"fit": self.fit.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict``."""
        self.fit.load_state_dict(state.get("fit", {}))

    def metrics(self) -> dict[str, Any]:
        """What metrics.json holds besides the loop's own numbers."""
        fit, options = self.fit, self.fit.options
        size = sum(weight.numel() * weight.element_size() for weight in fit.field.parameters())
        return {
            "name": fit.signal.name,
            "kind": fit.signal.kind,
            "shape": [*fit.signal.shape, fit.values.shape[-1]],
            **({"psnr": None, "ssim": None, "lpips": None} | self.quality),
            "bytes": size,
            "bits_per_value": 8 * size / (math.prod(fit.signal.shape) * fit.values.shape[-1]),
            "points_evaluated": fit.work.evaluated,
            "points_trained": fit.work.trained,
            "options": options.resolved() | {"cfs_weight": options.cfs_weight, "lr": options.lr},
            "seed": options.run.seed,
        }
