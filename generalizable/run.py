"""One run: what is trained, on every process, what is measured, and what is written."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from evos.distributed import World, from_main, gather
from evos.runs import (
    EventLog,
    Run,
    Stopper,
    Trainable,
    TrainingLoop,
    open_run,
    read_json,
    replace_file,
    write_json,
)
from generalizable.data import Batch, Source, Sources, make_draws, training_batches
from generalizable.evaluation import measure
from generalizable.options import FREE, GROWING, Options, as_yaml
from generalizable.pictures import show_source
from generalizable.shards import Positions
from generalizable.trainer import Trainer


def train(options: Options, sources: Sources, world: World, device: torch.device, stopper: Stopper) -> dict[str, Any]:
    """Train as the options say; returns what metrics.json holds. Every process calls it.

    Raises:
        InputError: the folder is taken, the checkpoint doesn't fit, the loss is not finite, nothing can be read, the
            disk is full.
        PeerLost: another process is gone; the last checkpoint stays.
        Stopped: a signal reached any process; the checkpoint is written.
    """
    training = MetaTraining(options, sources, world, device)  # before the folder: bad options leave none behind
    run = from_main(lambda: open_folder(options))
    loop = TrainingLoop(
        training,
        run,
        steps=options.train.steps,
        label=f"{options.model.name} {options.data.task}",
        device=device,
        world=world,
        seed=options.run.seed,
        eval_every=options.run.eval_every,
        save_every=options.run.save_every,
        quiet=options.run.quiet,
    )
    if options.run.resume and run.metrics_path.exists() and loop.step == loop.steps:
        return read_json(run.metrics_path)
    else:
        loop.train(stopper)
    if not world.is_main:
        return {}
    training.write_pictures(run)
    metrics = training.metrics() | loop.metrics()
    write_json(run.metrics_path, metrics)
    return metrics


def open_folder(options: Options) -> Run:
    """The run folder, with the options in it.

    Raises:
        InputError: it is taken.
    """
    settings, path = options.run, Path(options.run.out)
    run = open_run(
        path, options.resolved(), resume=settings.resume, overwrite=settings.overwrite, free=FREE, growing=GROWING
    )
    text = "# Repeats this run: --config FILE out=ANOTHER_FOLDER\n" + as_yaml(options)
    replace_file(path / "config.yaml", text.encode())
    return run


class MetaTraining(Trainable):
    """Trainer and data for the training loop; remembers its last evaluation.

    Attributes:
        skipped: a line for each unreadable file that this process met; on process 0, after the final evaluation, that
            any process met.
        measured: metrics of the last evaluation by the name of the source.
    """

    measured: dict[str, dict[str, Any]]

    def __init__(self, options: Options, sources: Sources, world: World, device: torch.device) -> None:
        """Raises InputError if options and data don't fit together."""
        self.options, self.sources, self.world = options, sources, world
        self.skipped = list(sources.skipped)
        self.positions: Positions = {}
        self.batches: Iterator[Batch] | None = None
        draws = make_draws(sources, options.train.batch, seed=options.run.seed, world=world)
        # Nobody knows how many instances a stream has.
        owned = draws.owned if all(isinstance(s, Source) for s in sources.train) else options.train.cache_rows
        self.trainer = Trainer(options, world, device, owned)
        resumes = options.run.resume and Path(options.run.out, "checkpoint.pt").exists()
        if options.train.init is not None and not resumes:
            self.trainer.begin_with(Path(options.train.init))

    def next_batch(self, step: int) -> Batch:
        """The training batch of a step; before the first one the loader starts."""
        if self.batches is None:
            options = self.options
            self.batches = training_batches(
                self.sources,
                options.data,
                options.train.batch,
                seed=options.run.seed,
                world=self.world,
                start=step - 1,
                positions=self.positions,
            )
        return next(self.batches)

    def step(self, step: int) -> Float[Tensor, ""]:
        """One step on the next batch; this process's loss."""
        batch = self.next_batch(step)
        self.positions |= batch.positions
        self.skipped.extend(line for line in batch.skipped if line not in self.skipped)
        return self.trainer.step(step, batch)

    def evaluate(self, step: int, events: EventLog | None, *, final: bool) -> dict[str, float]:
        """PSNR of every source, and the mean without held-out ones; over all test instances only if ``final``."""
        limit = None if final else self.options.train.eval_instances
        self.measured = measure(self.trainer.codec, self.sources, self.world, limit, self.skipped)
        if events:
            for source in self.sources.test.values():
                count = self.options.train.pictures
                show_source(self.trainer.codec, source, count, events=events, step=step)
        if final:
            self.skipped = self.all_skipped() or self.skipped
        return {"psnr": self.psnr, **{f"psnr/{name}": entry["psnr"] for name, entry in self.measured.items()}}

    @property
    def psnr(self) -> float:
        """Mean of the last evaluation over the sources that are trained on, in dB."""
        values = [entry["psnr"] for entry in self.measured.values() if not entry["held_out"]]
        return sum(values) / len(values)

    def all_skipped(self) -> list[str]:
        """``skipped`` of all processes, sorted; on processes other than 0 an empty list."""
        return sorted({line for lines in gather(self.skipped) for line in lines})

    def parameters(self) -> Iterable[Tensor]:
        """The model's weights."""
        return self.trainer.model.parameters()

    def scalars(self, step: int) -> dict[str, float]:
        """The learning rate."""
        return {"lr": self.options.train.lr_at(step)}

    def state_dict(self) -> dict[str, Any]:
        """State that is alike on all processes."""
        return {"skipped": self.all_skipped(), **self.trainer.shared_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict`` with the batch that follows."""
        self.trainer.load_shared_state(state)
        self.skipped, self.batches = state["skipped"], None

    def process_state(self) -> dict[str, Any]:
        """What this process's selector remembers of its own instances, and where its streams are."""
        return self.trainer.own_state() | {"positions": self.positions}

    def load_process_state(self, state: dict[str, Any]) -> None:
        """Continue from ``process_state``."""
        self.trainer.load_own_state(state)
        self.positions = state.get("positions", {})

    def write_pictures(self, run: Run) -> None:
        """Pictures or sounds of some test instances."""
        run.images.mkdir(exist_ok=True)
        for source in self.sources.test.values():
            show_source(self.trainer.codec, source, self.options.train.pictures, folder=run.images)

    def metrics(self) -> dict[str, Any]:
        """What metrics.json holds besides the loop's own numbers."""
        return {
            "psnr": self.psnr,
            "sources": {
                name: entry | {"trained_on": self.sources.trained_on(name)} for name, entry in self.measured.items()
            },
            "points_trained": self.trainer.points_trained,
            "processes": self.world.size,
            "skipped": {"count": len(self.skipped), "files": self.skipped},
            "options": self.options.resolved(),
        }
