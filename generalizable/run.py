"""One run: its folder, the training loop on every process, evaluations, checkpoints and pictures, its metrics."""

import math
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from evos.distributed import PeerLost, World, any_process, gather, reduce_mean, reduce_sum, watching_peers
from evos.errors import InputError
from evos.runs import (
    Clock,
    EventLog,
    Progress,
    Run,
    Stopper,
    environment,
    load_checkpoint,
    non_finite,
    open_run,
    peak_memory_bytes,
    read_json,
    save_checkpoint,
    seed_everything,
    write_json,
)
from evos.runs.files import replace_file
from generalizable.data import Source, Sources, training_batches
from generalizable.options import FREE, Options, as_yaml
from generalizable.pictures import show_source
from generalizable.trainer import Trainer, learning_rate

LOG_EVERY = 50
"""Steps between entries of the loss curve, at most: each makes the host wait for the device."""


class Stopped(Exception):
    """A signal ended the run after a finished step and a saved checkpoint."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


class Session:
    """A run on this process: what it has done so far, and how that is saved. Process 0 alone writes."""

    def __init__(self, options: Options, sources: Sources, world: World, device: torch.device) -> None:
        """Open the run folder and take up its checkpoint where there is one.

        Raises:
            InputError: the folder is taken, the checkpoint doesn't fit.
        """
        self.options, self.sources, self.world, self.device = options, sources, world, device
        self.done, self.saved = 0, 0
        self.clock = Clock(device)
        self.skipped: list[str] = []
        self.curve: list[dict[str, float]] = []
        self.loss_curve: list[tuple[int, float]] = []
        self.pending = torch.zeros(
            2, dtype=torch.float64, device=device
        )  # sum and number of losses since the last entry
        draws, self.batches = training_batches(
            sources, options.data, options.train.batch, seed=options.run.seed, world=world
        )
        # Nobody knows how many instances shards hold.
        owned = draws.owned if all(isinstance(s, Source) for s in sources.train) else options.train.cache_rows
        self.trainer = Trainer(options, world, device, owned)
        self.run = self.open()
        if self.run.resuming:
            self.load(load_checkpoint(self.run.checkpoint_path))
            _, self.batches = training_batches(
                sources, options.data, options.train.batch, seed=options.run.seed, world=world, start=self.done
            )

    def open(self) -> Run:
        """The run folder: made by process 0; the others see what it made."""
        run, path = self.options.run, Path(self.options.run.out)
        opened, refusal = Run(path, resuming=run.eval), None
        try:
            if run.eval:
                if not opened.checkpoint_path.exists():
                    raise InputError("out", run.out, "the folder of a run with a checkpoint, for --eval")
            elif self.world.is_main:
                opened = open_run(path, self.options.resolved(), resume=run.resume, overwrite=run.overwrite, free=FREE)
                text = "# Repeats this run: --config FILE out=ANOTHER_FOLDER\n" + as_yaml(self.options)
                replace_file(path / "config.yaml", text.encode())
        except InputError as error:
            refusal = error
        if any_process(refusal is not None):
            raise refusal or SystemExit(2)
        return Run(path, resuming=any_process(opened.resuming))

    def save(self, step: int) -> None:
        """Write the checkpoint of a finished step, with what every process has for itself."""
        processes = gather(self.trainer.own_state())
        skipped = sorted({line for lines in gather(self.skipped) for line in lines})
        pending = reduce_sum(self.pending) / self.world.size  # alike in all, and so right for any number of them
        if self.world.is_main:
            state = {
                "step": step,
                "curve": self.curve,
                "loss_curve": self.loss_curve,
                "pending": pending,
                "clock": self.clock.state_dict(),
                "skipped": skipped,
                "processes": processes,
                **self.trainer.shared_state(),
            }
            save_checkpoint(self.run.checkpoint_path, state)
        self.saved = step

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint, with any number of processes.

        With another number than it was written by, the selector begins anew: what its processes remembered is of
        instances that now belong to others.
        """
        self.trainer.load_shared_state(state)
        self.done = self.saved = state["step"]
        self.curve, self.loss_curve = state["curve"], state["loss_curve"]
        self.pending, self.skipped = state["pending"].to(self.device), state["skipped"]
        self.clock.load_state_dict(state["clock"])
        if len(state["processes"]) == self.world.size:
            self.trainer.load_own_state(state["processes"][self.world.rank])
        else:
            seed_everything((self.options.run.seed + self.done) % 2**31, self.world.rank)

    def note_loss(self, step: int, events: EventLog | None) -> float:
        """Add the mean loss since the last entry to the curve; the same for any number of processes."""
        loss = float(reduce_mean(self.pending[0], self.pending[1]))
        self.loss_curve.append((step, loss))
        self.pending.zero_()
        non_finite(loss, step)
        if events:
            events.scalars(step, {"loss": loss, "lr": learning_rate(self.options.train, step)})
        return loss

    def evaluate(self, step: int, limit: int | None, events: EventLog | None) -> dict[str, Any]:
        """Metrics by source, noted in the curve; pictures for TensorBoard."""
        metrics = self.trainer.evaluate(self.sources, limit, self.skipped)
        values = {name: entry["psnr"] for name, entry in metrics.items()}
        mean = sum(values.values()) / len(values)
        self.curve.append(
            {"step": step, "seconds": self.clock.seconds, "psnr": mean, **{f"psnr/{n}": v for n, v in values.items()}}
        )
        if events:
            events.scalars(step, {"psnr": mean, **{f"psnr/{name}": value for name, value in values.items()}})
            for source in self.sources.test.values():
                show_source(self.trainer.codec, source, self.options.train.pictures, events=events, step=step)
        return metrics


def train(options: Options, sources: Sources, world: World, device: torch.device, stopper: Stopper) -> dict[str, Any]:
    """Train (or only evaluate) as the options say; returns what metrics.json holds. Every process calls it.

    Raises:
        InputError: as ``Session``; the loss is not finite; nothing can be read; the disk is full.
        PeerLost: another process is gone; the last checkpoint stays.
        Stopped: a signal came to any process; the checkpoint is written.
    """
    session = Session(options, sources, world, device)
    with losing_peers(session):
        if options.run.resume and session.run.metrics_path.exists() and session.done == options.train.steps:
            return read_json(session.run.metrics_path)
        if not options.run.eval:
            loop(session, stopper)
        return finish(session)


def loop(session: Session, stopper: Stopper) -> None:
    """The training loop."""
    options, world = session.options, session.world
    steps = options.train.steps
    eval_every = options.train.eval_every or max(1, steps // 10)
    save_every = options.train.save_every or max(1, steps // 10)
    events = (
        EventLog(session.run.path, purge_step=session.done + 1 if session.done else None) if world.is_main else None
    )
    label = f"{options.model.name} {options.data.task}"
    progress = Progress(steps, label, start=session.done, quiet=options.run.quiet or not world.is_main)
    shown: dict[str, float] = {}
    with closing(events) if events else nullcontext(), progress:
        for step in range(session.done + 1, steps + 1):
            session.clock.start()
            batch = next(session.batches)
            session.skipped.extend(line for line in batch.skipped if line not in session.skipped)
            loss = session.trainer.step(step, batch)
            session.pending[0] += loss
            session.pending[1] += 1
            last = step == steps
            evaluate = last or step % eval_every == 0
            stop = any_process(stopper.requested) if world.size > 1 else stopper.requested
            store = last or stop or step % save_every == 0
            if evaluate or store or step % LOG_EVERY == 0:
                session.clock.pause()
            if evaluate or step % LOG_EVERY == 0:
                shown["loss"] = session.note_loss(step, events)
            if evaluate and not last:
                session.evaluate(step, options.train.eval_instances, events)
                shown["psnr"] = session.curve[-1]["psnr"]
            if store:
                check_weights(session, step)
                session.save(step)
            progress.update(step, **shown)
            if stop and not last:
                raise Stopped(stopper.exit_code or 143)


def check_weights(session: Session, step: int) -> None:
    """A checkpoint keeps no weights that are not finite: those of fp16 and of one process differ from the loss's."""
    if not all(bool(parameter.isfinite().all()) for parameter in session.trainer.model.parameters()):
        non_finite(math.nan, step)


def finish(session: Session) -> dict[str, Any]:
    """The final evaluation over all test instances, the pictures, and metrics.json."""
    options, trainer = session.options, session.trainer
    metrics = session.trainer.evaluate(session.sources, None, session.skipped)
    skipped = sorted({line for lines in gather(session.skipped) for line in lines})
    if not session.world.is_main:
        return {}
    session.run.images.mkdir(exist_ok=True)
    for source in session.sources.test.values():
        show_source(trainer.codec, source, options.train.pictures, folder=session.run.images)
    trained = [entry["psnr"] for entry in metrics.values() if not entry["held_out"]]
    result = {
        "psnr": sum(trained) / len(trained),
        "sources": metrics,
        "steps": session.done if options.run.eval else options.train.steps,
        "train_seconds": session.clock.seconds,
        "points_trained": trainer.points_trained,
        "processes": session.world.size,
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "peak_memory_bytes": peak_memory_bytes(session.device),
        "skipped": {"count": len(skipped), "files": skipped},
        "curve": session.curve,
        "loss_curve": session.loss_curve,
        "options": options.resolved(),
        "versions": environment(),
    }
    write_json(session.run.metrics_path, result)
    return result


@contextmanager
def losing_peers(session: Session) -> Iterator[None]:
    """Say what to do when another process dies in the middle of a step."""
    try:
        with watching_peers():
            yield
    except PeerLost as error:
        advice = f"all {session.world.size} of them; "
        advice += (
            f"the checkpoint of step {session.saved} is kept: go on with --resume" if session.saved else "start again"
        )
        raise PeerLost(error.argument, error.got, advice) from error
