"""A model as a codec of signals: support -> patterns -> values, from a run that is finished or one in training.

::

    codec = Codec.load("runs/faces", device="cuda")
    instance = stack([codec.task.load(Path("face.png"))]).to(codec.device)
    with codec.evaluating():
        patterns = codec.encode(instance)                 # {"pattern": "1 I R"}
        values = codec.decode(patterns, scale=3)          # "1 P C", of a grid three times as fine

It needs neither optimizer nor selector.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from evos.errors import InputError
from evos.runs import load_checkpoint, resolve_device, rng_state, set_rng_state
from generalizable.base import Data, Patterns
from generalizable.inner import predict, refine
from generalizable.instances import Instance
from generalizable.models import Model, build_model
from generalizable.options import Options, from_values, recorded_options
from generalizable.quantised import Steps
from generalizable.tasks import build_task


@dataclass(frozen=True)
class Variant:
    """One way to make patterns in an evaluation: from how many support views, in how many inner steps."""

    support_views: int | None = None
    inner_steps: int | None = None


class Codec:
    """A model with the task and the options that it is trained by."""

    def __init__(self, model: Model, options: Options, device: torch.device, step: int | None = None) -> None:
        """``step``: steps that a finished or stopped run has trained it for."""
        self.model, self.options, self.device, self.step = model, options, device, step
        self.task = build_task(options.data)
        self.task.prepare(device)

    @classmethod
    def load(cls, run: str | Path, device: str = "auto") -> "Codec":
        """The trained model of a run folder: its moving average where the run kept one.

        Args:
            run: a folder that generalizable/main.py wrote, with the checkpoint of a run that ended or stopped.
            device: as ``run.device``.

        Raises:
            InputError: no such run, or one recorded by other options than today's.
        """
        options = from_values(recorded_options(Path(run), "run"))
        return cls.trained(options, Path(run), resolve_device(device))

    @classmethod
    def trained(cls, options: Options, folder: Path, device: torch.device) -> "Codec":
        """The model of these options with the weights of the checkpoint in ``folder``; see ``load``."""
        state = load_checkpoint(folder / "checkpoint.pt")
        with torch.random.fork_rng(devices=[]):  # its first weights are thrown away
            model = build_model(options.model, build_task(options.data).model_task)
        load_weights(model, state, options)
        return cls(model.to(device), options, device, step=state["step"])

    @property
    def fingerprint(self) -> str:
        """A hash of the weights, in hexadecimal: patterns belong to the weights that made them."""
        found = sha256()
        for name, weight in sorted(self.model.state_dict().items()):
            found.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            found.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    def autocast(self) -> AbstractContextManager[object]:
        """The run's precision."""
        precision = self.options.run.precision
        kind = torch.float16 if precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, kind, enabled=precision != "fp32")

    @contextmanager
    def evaluating(self) -> Iterator[Model]:
        """The model in evaluation mode, without gradients, by random numbers of its own: the same ones each time."""
        state = rng_state()
        self.model.eval()
        torch.manual_seed(0)
        try:
            with torch.no_grad(), self.autocast():
                yield self.model
        finally:
            set_rng_state(state)

    # ---- support -> patterns ---------------------------------------------------------------------------------

    @property
    def adapts_in_inner_loop(self) -> bool:
        """Whether patterns come from gradient steps on points, not from a hypernetwork."""
        return self.options.model.adapts_in_inner_loop

    def support(self, instance: Instance, views: Sequence[int], noise: float = 0.0) -> Data:
        """What patterns are made from: ``views`` of scenes, or the whole signal; ``noise`` as ``SignalTask.points``."""
        if self.adapts_in_inner_loop:
            return self.task.support_points(instance, views, self.options.train.inner_rays, noise)
        return self.task.support_signal(instance, views)

    def encode(self, instance: Instance, variant: Variant | None = None) -> Patterns:
        """The patterns of B instances, each tensor "B ..."; None: as in training."""
        variant = variant or self.variants[-1]
        return self.model.encode(
            self.support(instance, self.task.support_views(variant.support_views)), variant.inner_steps
        )

    def refine(
        self,
        patterns: Patterns,
        instance: Instance,
        steps: int,
        rate: float,
        levels: Mapping[str, Steps] | None = None,
    ) -> Patterns:
        """Patterns of B instances after ``inner.refine`` on what they were made from: of scenes, the support views."""
        views = self.task.support_views(self.variants[-1].support_views)
        most = self.options.train.inner_rays
        points = lambda: self.task.support_points(instance, views, most, 0.0)  # noqa: E731
        return refine(self.model, patterns, points, steps, rate, levels)

    # ---- patterns -> values ----------------------------------------------------------------------------------

    def decode(
        self,
        patterns: Mapping[str, Tensor],
        instance: Instance | None = None,
        *,
        views: Sequence[int] | None = None,
        scale: int = 1,
    ) -> Float[Tensor, "B P C"]:
        """All values of B signals on a grid ``scale`` times as fine, not clamped.

        Args:
            patterns: what ``encode`` returned.
            instance: for scenes, B of them whose cameras are decoded to.
            views: for scenes, of which views; None: those held out of evaluations.
        """
        batch = len(next(iter(patterns.values())))
        views = self.task.evaluation_views if views is None else views
        count = self.points_in_a_pass(batch)
        pieces = self.task.decoding_points(instance, views, scale, batch, count, self.device)
        return torch.cat([predict(self.model, dict(patterns), piece).float() for piece in pieces], dim=1)

    def points_in_a_pass(self, batch: int) -> int:
        """Points or rays of each instance in one pass."""
        samples = self.options.model.samples if self.model.task.is_rendered else 1
        return max(1, self.options.train.chunk // (batch * samples))

    # ---- evaluation ------------------------------------------------------------------------------------------

    @property
    def variants(self) -> list[Variant]:
        """What an evaluation measures; the last one is the model as it is trained."""
        steps = self.model.inner_steps if self.adapts_in_inner_loop else None
        *others, trained = self.task.support_view_counts
        fewer_steps = [Variant(trained, step) for step in range(steps or 0)]
        return [*fewer_steps, *(Variant(count, steps) for count in others), Variant(trained, steps)]

    def measure(self, instance: Instance, variant: Variant) -> Float[Tensor, " B"]:
        """PSNR of instances in dB; of scenes, over the views held out."""
        return self.task.psnr(self.reconstruct(instance, variant), self.task.evaluation_target(instance))

    def reconstruct(self, instance: Instance, variant: Variant) -> Float[Tensor, "B P C"]:
        """The values of instances that an evaluation compares with the truth, from patterns made of the instances."""
        return self.decode(self.encode(instance, variant), instance)


def load_weights(model: Model, state: Mapping, options: Options) -> None:
    """The weights to evaluate, from a run's checkpoint.

    Raises:
        InputError: the checkpoint is of another model or of other coordinates.
    """
    check_centres(state, options)
    averaged = state.get("ema")
    weights = state.get("model")
    if averaged is not None:
        weights = {name.removeprefix("module."): w for name, w in averaged.items() if name.startswith("module.")}
    try:
        model.load_state_dict(weights)  # type: ignore[arg-type]
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError("checkpoint", reason, "one of the run's own options") from None


def check_centres(state: Mapping, options: Options) -> None:
    """Raise InputError unless a checkpoint's coordinates are those of the options."""
    recorded, wanted = state.get("centres"), options.data.centres
    if recorded != wanted:
        got = f"a checkpoint recorded {'without it' if recorded is None else f'with {recorded}'}"
        raise InputError("data.centres", got, f"one of data.centres={wanted}")
