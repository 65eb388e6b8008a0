"""Options that all training programs share: those of the run and those of the optimizer."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from evos.config import check_choices, check_range
from evos.errors import InputError
from evos.optimizers import RunningClip
from evos.schedules import learning_rate


@dataclass(frozen=True)
class RunOptions:
    """General options of a run."""

    out: str = "runs/run"
    """Folder the run is written to."""

    seed: int = 0
    """Seed of the initial weights and of all random draws, in [0, 2^32)."""

    device: str = "auto"
    """auto (cuda where there is one; with torchrun each process its own), cpu, cuda or cuda:n."""

    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """fp32, tf32 (matmuls on CUDA), bf16 (autocast) or fp16 (autocast with loss scaling, where a program supports
    it)."""

    eval_every: int | None = None
    """Steps between evaluations, at least 1; none: a twentieth of a signal's run, a tenth of a data set's."""

    save_every: int | None = None
    """Steps between checkpoints, at least 1; none: a tenth of the run."""

    resume: bool = False
    """Resume from the run's checkpoint."""

    overwrite: bool = False
    """Replace an existing run of the same name."""

    quiet: bool = False
    """No progress bar."""

    def __post_init__(self) -> None:
        check_range("seed", self.seed, 0, 2**32 - 1)
        check_range("eval_every", self.eval_every, 1)
        check_range("save_every", self.save_every, 1)
        if self.resume and self.overwrite:
            raise InputError("overwrite", True, "either --resume or --overwrite")
        check_choices(self)


@dataclass(frozen=True)
class OptimizerOptions:
    """Options of the optimizer and its learning rate."""

    optimizer: Literal["adam", "muon", "soap", "schedule_free"] = "adam"
    """adam, muon (for the hidden matrices; Adam for the rest), soap or schedule_free."""

    lr: float | None = None
    """Learning rate on Adam's scale, whatever the optimizer, above 0; none: that of the field's or model's paper."""

    schedule: Literal["geometric", "cosine", "linear"] = "geometric"
    """How the learning rate changes from its peak to its final value."""

    decay: float | None = None
    """Final learning rate as a fraction of the peak, in [0, 1], above 0 if geometric; none: 1 (constant) if geometric,
    0 if cosine or linear."""

    warmup: int = 0
    """Number of initial steps in which the learning rate rises linearly from 0, at least 0."""

    clip: float | None = None
    """Maximum norm of the gradient of all weights, above 0; none: no clipping."""

    clip_ratio: float | None = None
    """Maximum gradient norm as a multiple of its running mean over about 50 steps, at least 1; none: no clipping."""

    ema: float = 0.0
    """Decay per step of an exponential moving average of the weights, used for evaluation, in [0, 1); 0: off."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_range("lr", self.lr, 0, open_low=True)
        check_range("decay", self.decay, 0, 1)
        if self.decay == 0 and self.schedule == "geometric":
            raise InputError("decay", self.decay, "above 0 with schedule geometric; cosine and linear reach 0")
        check_range("warmup", self.warmup, 0)
        check_range("clip", self.clip, 0, open_low=True)
        check_range("clip_ratio", self.clip_ratio, 1)
        if self.clip is not None and self.clip_ratio is not None:
            raise InputError("clip_ratio", self.clip_ratio, "either clip or clip_ratio")
        if not 0 <= self.ema < 1:
            raise InputError("ema", self.ema, "at least 0 and below 1")
        if self.ema > 0 and self.optimizer == "schedule_free":
            raise InputError("ema", self.ema, "0 with schedule_free, which keeps an average of its own")

    @property
    def last_lr_ratio(self) -> float:
        """Final learning rate as a fraction of the peak, with the default resolved."""
        default = 1.0 if self.schedule == "geometric" else 0.0
        return default if self.decay is None else self.decay

    def lr_factor(self, step: int, steps: int) -> float:
        """Factor on the peak learning rate at ``step``, counted from 1, of ``steps``; in [0, 1]."""
        return learning_rate(self.schedule, step, steps, self.last_lr_ratio, self.warmup / steps)

    def build_clip(self, device: torch.device | str) -> "RunningClip | Clip | None":
        """A callable that clips gradients in place, or None; a RunningClip has a ``mean`` to save."""
        if self.clip_ratio is not None:
            return RunningClip(self.clip_ratio, device)
        return None if self.clip is None else clip_to_norm(self.clip)


Clip = Callable[[Iterable[nn.Parameter]], None]


def clip_to_norm(limit: float) -> Clip:
    """A callable that scales the gradients so that their global norm is at most ``limit``."""

    def clip(parameters: Iterable[nn.Parameter]) -> None:
        nn.utils.clip_grad_norm_(parameters, limit)

    return clip
