"""The one training loop: steps, evaluations, checkpoints, stopping, resuming, progress, metrics."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from evos.distributed import PeerLost, World, any_process, gather, reduce_min, reduce_sum, watching_peers
from evos.errors import InputError
from evos.runs.checkpoint import load_checkpoint, save_checkpoint
from evos.runs.clock import Clock
from evos.runs.events import EventLog
from evos.runs.files import read_json
from evos.runs.folder import Run
from evos.runs.machine import common_metrics
from evos.runs.progress import Progress
from evos.runs.seeding import rng_state, seed_everything, set_rng_state
from evos.runs.stopping import Stopped, Stopper
from evos.seeding import mixed_seed

CHECK_EVERY = 50
"""Most steps between two reads of the losses; each read makes the host wait for the device."""


class TrainingDiverged(InputError):
    """A loss or a weight became inf or nan: front ends print one line and exit with status 2, as for bad input."""


class Trainable(ABC):
    """What an application hands to the loop. Every process calls each method, in the same order."""

    @abstractmethod
    def step(self, step: int) -> Float[Tensor, ""]:
        """Train one step, counted from 1, and return this process's loss.

        In a new tensor for each step, still on the device: the loop reads the losses of many steps at once.
        """

    @abstractmethod
    def evaluate(self, step: int, events: EventLog | None, *, final: bool) -> dict[str, Any]:
        """Measure the model after `step` steps and return the numbers for the curve, alike on every process.

        Must not change anything that training continues from, the global generators included.

        Args:
            step: steps done.
            events: where to log pictures and sounds, None on processes that write nothing; the loop logs the numbers.
            final: whether this evaluation ends the run: over all data, with all metrics.
        """

    @abstractmethod
    def parameters(self) -> Iterable[Tensor]:
        """The trained weights: counted for the metrics, and checked to be finite before each checkpoint."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """State that is alike on all processes, ready for `save_checkpoint`; the loop saves the global generators.

        Keys that are taken: step, seconds, curve, loss_curve, pending_loss, processes.
        """

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`, with its tensors on the CPU; raises InputError if it doesn't fit the options."""

    def process_state(self) -> dict[str, Any]:
        """State of this process alone, with its tensors on the CPU; none by default."""
        return {}

    def load_process_state(self, state: dict[str, Any]) -> None:  # noqa: B027 - the default is to do nothing
        """Continue from `process_state`; not called if the number of processes has changed."""

    def draws_at(self, step: int) -> bool:
        """Whether a picture of the training is drawn after `step` steps; none by default."""
        return False

    def draw(self, step: int) -> None:  # noqa: B027 - the default is to do nothing
        """Draw it; the time does not count, and nothing that training continues from may change."""

    def scalars(self, step: int) -> dict[str, float]:
        """What to log with the loss after `step` steps, such as the learning rate; nothing by default."""
        return {}


def check_finite(value: float | Tensor, step: int, what: str = "loss") -> None:
    """Raise TrainingDiverged, naming the step, if `value` is inf or nan; waits for a CUDA tensor."""
    number = float(value)
    if not math.isfinite(number):
        raise TrainingDiverged(what, f"{number} at step {step}", "finite values; a checkpoint of earlier steps stays")


def interval(every: int | None, steps: int, times: int) -> int:
    """Steps between two evaluations or checkpoints: `every`, or if None, `steps` divided by `times`."""
    return max(1, steps // times) if every is None else every


class TrainingLoop:
    """Trains from the checkpoint of the run, if it has one, to the last step, and evaluates.

    Process 0 alone writes the event log and the checkpoint, the latter only while losses and weights are finite.
    Evaluations and writing don't count as training time. The final evaluation follows the last checkpoint: if it fails
    or is killed, resuming repeats it.

    Attributes:
        step: steps done.
        curve: an entry for each evaluation: step, seconds of training, and what `Trainable.evaluate` returned.
        loss_curve: pairs of a step and the mean loss since the previous pair, over all processes.
    """

    def __init__(
        self,
        trainable: Trainable,
        run: Run,
        *,
        steps: int,
        label: str,
        device: torch.device,
        world: World | None = None,
        seed: int = 0,
        eval_every: int | None = None,
        save_every: int | None = None,
        quiet: bool = False,
        metric: str = "psnr",
    ) -> None:
        """Load the checkpoint of `run`, if it has one.

        Args:
            trainable: what is trained; the global generators are seeded: a new run continues from them.
            run: the folder, open on process 0.
            steps: steps of the whole run.
            label: name of the run in the progress bar.
            device: where it trains.
            world: this process among those of the run; None: a single process.
            seed: of the run; used when it resumes with another number of processes.
            eval_every: steps between evaluations; None: a twentieth of the run.
            save_every: steps between checkpoints; None: a tenth of the run.
            quiet: show no progress.
            metric: key of the curve that the progress bar shows.

        Raises:
            InputError: the checkpoint is damaged or doesn't fit the options.
        """
        self.trainable, self.run, self.steps, self.device = trainable, run, steps, device
        self.world, self.seed = world or World(), seed
        self.eval_every, self.save_every = interval(eval_every, steps, 20), interval(save_every, steps, 10)
        self.label, self.quiet, self.metric = label, quiet or not self.world.is_main, metric
        self.step, self.saved_step = 0, 0
        self.clock = Clock(device)
        self.curve: list[dict[str, Any]] = []
        self.loss_curve: list[tuple[int, float]] = []
        self._unread: list[Tensor] = []  # losses still on the device
        self._loss_total, self._loss_count = 0.0, 0.0  # over losses read since the last pair
        if run.resuming:
            self._load(load_checkpoint(run.checkpoint_path))

    def train(self, stopper: Stopper) -> None:
        """Train the remaining steps, then evaluate.

        Raises:
            TrainingDiverged: a loss or a weight is not finite; the last good checkpoint remains.
            PeerLost: another process is gone; the last checkpoint remains, and the message says so.
            Stopped: a signal reached any process; the checkpoint is written.
            InputError: the disk is full; data can't be read.
        """
        with self._with_resume_advice(), self._open_events() as events, self._progress() as progress:
            while self.step < self.steps:
                stop = self._train_step(events, stopper)
                if self.step < self.steps:
                    progress.update(self.step, **self._shown())
                    if stop:
                        raise Stopped(stopper.exit_code or 143)  # the signal may have reached another process
            self._evaluate(events, final=True)
            progress.update(self.step, **self._shown())

    def metrics(self) -> dict[str, Any]:
        """What every metrics.json holds: steps, seconds, curves, parameter count, memory, device, environment."""
        return {
            "steps": self.step,
            "train_seconds": self.clock.seconds,
            **common_metrics(self.trainable.parameters(), self.device),
            "curve": self.curve,
            "loss_curve": self.loss_curve,
        }

    # ---- one step ----------------------------------------------------------------------------------------------------

    def _train_step(self, events: EventLog | None, stopper: Stopper) -> bool:
        """Train a step and do what is due after it; return whether to stop here."""
        self.clock.start()
        step = self.step + 1
        self._unread.append(self.trainable.step(step).detach())
        self.step = step
        last = step == self.steps
        evaluate = last or step % self.eval_every == 0
        log = evaluate or step % CHECK_EVERY == 0
        stop = any_process(stopper.requested)
        save = last or stop or step % self.save_every == 0
        if log or save:
            self.clock.pause()
            self._read_losses()
        if self.trainable.draws_at(step):
            self.clock.pause()
            self.trainable.draw(step)
        if log:
            self._log_loss(events)
        if evaluate and not last:
            self._evaluate(events, final=False)
        if save:
            self._save()
        return stop

    def _read_losses(self) -> None:
        """Wait for the losses; raise TrainingDiverged on every process if a loss or a weight is not finite on any."""
        losses = torch.stack(self._unread).double().tolist() if self._unread else []
        first = self.step - len(losses) + 1
        step, value, what = math.inf, math.nan, "loss"
        if bad := [(step, loss) for step, loss in enumerate(losses, first) if not math.isfinite(loss)]:
            step, value = bad[0]
        # A loss is that of the weights before its step; a checkpoint keeps those after it.
        elif not all_finite(self.trainable.parameters()):
            step, what = self.step, "weights"
        if (earliest := reduce_min(float(step))) < math.inf:
            if earliest < step:  # in another process
                value, what = math.nan, "loss"
            check_finite(value, int(earliest), what)
        for loss in losses:  # one by one: a resumed run must sum in the same order
            self._loss_total += loss
        self._loss_count += len(losses)
        self._unread.clear()

    def _log_loss(self, events: EventLog | None) -> None:
        total, count = reduce_sum(torch.tensor([self._loss_total, self._loss_count], dtype=torch.float64)).tolist()
        self._loss_total, self._loss_count = 0.0, 0.0
        self.loss_curve.append((self.step, total / count))
        if events:
            events.scalars(self.step, {"loss": total / count} | self.trainable.scalars(self.step))

    def _evaluate(self, events: EventLog | None, *, final: bool) -> None:
        entry = {"step": self.step, "seconds": self.clock.seconds}
        measured = self.trainable.evaluate(self.step, events, final=final)
        if self.curve and self.curve[-1]["step"] == self.step:  # of a run that stopped here
            self.curve.pop()
        self.curve.append(entry | measured)
        if events:
            events.scalars(self.step, {name: value for name, value in measured.items() if value is not None})

    def _shown(self) -> dict[str, float]:
        shown = {"loss": self.loss_curve[-1][1]} if self.loss_curve else {}
        return shown | ({self.metric: self.curve[-1][self.metric]} if self.curve else {})

    # ---- state -------------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        processes = gather({"rng": rng_state(), **self.trainable.process_state()})
        # The mean over processes, so that it is right for any number of them on resume.
        pending = reduce_sum(torch.tensor([self._loss_total, self._loss_count], dtype=torch.float64)) / self.world.size
        state = self.trainable.state_dict()
        if self.world.is_main:
            own = {
                "step": self.step,
                "seconds": self.clock.seconds,
                "curve": self.curve,
                "loss_curve": self.loss_curve,
                "pending_loss": pending.tolist(),
                "processes": processes,
            }
            if twice := own.keys() & state.keys():
                raise ValueError(f"keys of the loop's own in the application's state: {sorted(twice)}")
            save_checkpoint(self.run.checkpoint_path, own | state)
        self.saved_step = self.step

    def _load(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint, with any number of processes.

        If the number has changed, the state of single processes starts afresh.
        """
        try:
            self.trainable.load_state_dict(state)
            self.step = self.saved_step = int(state["step"])
            self.curve, self.loss_curve = state["curve"], state["loss_curve"]
            self._loss_total, self._loss_count = state["pending_loss"]
            self.clock.load_state_dict({"seconds": state["seconds"]})
            processes = state["processes"]
        except KeyError as error:
            raise InputError("checkpoint", f"one without {error}", "one of the same program and version") from None
        if self.run.metrics_path.exists() and (ended := read_json(self.run.metrics_path)).get("steps") == self.step:
            self.curve = ended["curve"]  # with the last evaluation, which comes after the last checkpoint
        if len(processes) == self.world.size:
            own = processes[self.world.rank]
            self.trainable.load_process_state(own)
            set_rng_state(own["rng"])  # last, so that nothing draws after it
        else:
            seed_everything(mixed_seed(mixed_seed(self.seed, self.step), self.world.rank))

    # ---- around the steps --------------------------------------------------------------------------------------------

    def _open_events(self) -> AbstractContextManager[EventLog | None]:
        if not self.world.is_main:
            return nullcontext()
        return closing(EventLog(self.run.path, purge_step=self.step + 1 if self.step else None))

    def _progress(self) -> Progress:
        return Progress(self.steps, self.label, start=self.step, quiet=self.quiet)

    @contextmanager
    def _with_resume_advice(self) -> Iterator[None]:
        """Let PeerLost say from which checkpoint to resume."""
        try:
            with watching_peers():
                yield
        except PeerLost as error:
            kept = f"the checkpoint of step {self.saved_step} is kept: go on with --resume"
            advice = f"all {self.world.size} of them; {kept if self.saved_step else 'start again'}"
            raise PeerLost(error.argument, error.got, advice) from error


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no value is inf or nan; waits for the device once, for any number of tensors."""
    flags = [tensor.detach().isfinite().all() for tensor in tensors]
    return not flags or bool(torch.stack(flags).all())
