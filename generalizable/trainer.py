"""Meta-training: one step, and the state that it goes on from.

Letters: B instances of a batch, P cells of an instance (pixels, samples, pixels of all views), K of them in this step.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from evos.distributed import World
from evos.errors import InputError
from evos.optimizers import RunningClip, build_optimizer
from evos.runs import load_checkpoint, on_device, seed_everything
from evos.seeding import mixed_seed
from evos.selection import Feedback, Pool, build_selector
from generalizable.base import Data
from generalizable.codec import Codec, check_centres, load_weights
from generalizable.data import Batch
from generalizable.inner import outer_loss
from generalizable.instances import Instance
from generalizable.models import Model, build_model
from generalizable.options import PAPER_LR, Options, TrainConfig
from generalizable.rows import Rows
from generalizable.tasks import build_task


def learning_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of a step, counted from 1."""
    return config.lr_at(step)


class OuterStep(nn.Module):
    """The outer loss as a forward pass, which is what DistributedDataParallel averages gradients of."""

    def __init__(self, model: Model, bits: int | None) -> None:
        super().__init__()
        self.model, self.bits = model, bits

    def forward(self, *args: Any) -> tuple[Tensor, Tensor]:
        """See ``inner.outer_loss``."""
        return outer_loss(self.model, *args, bits=self.bits)


class Trainer:
    """A model in training: ``step`` trains, ``codec`` evaluates, the state dict resumes exactly."""

    def __init__(self, options: Options, world: World, device: torch.device, owned: int) -> None:
        """``owned``: how many instances this process draws from."""
        self.options, self.world, self.device = options, world, device
        train = options.train
        seed_everything(options.run.seed)  # the same weights everywhere
        task = build_task(options.data)
        self.model = build_model(options.model, task.model_task).to(device)
        step = OuterStep(self.model, train.bits)
        self.network = step if world.size == 1 else DistributedDataParallel(step)
        decay = train.ema
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay > 0 else None
        self.clip = train.build_clip(device)
        if options.run.precision == "tf32":
            torch.set_float32_matmul_precision("high")
        self.optimizer: Any = build_optimizer(train.optimizer, self.model, train.lr or PAPER_LR)
        self.scaler = GradScaler(device.type, enabled=options.run.precision == "fp16")

        self.rows = Rows(max(min(train.cache_rows, owned), train.batch // world.size))
        self.pool = Pool(self.rows.capacity, task.shape)
        self.selector = build_selector(
            options.selector,
            self.pool,
            total_steps=train.steps,
            device=device,
            seed=options.run.seed,
            rank=world.rank,
        )
        self.codec = Codec(self.best, options, device)
        self.task = self.codec.task
        self.points_trained = 0
        seed_everything(mixed_seed(options.run.seed, world.rank))  # noise of its own for each process

    def begin_with(self, run: Path) -> None:
        """Take the weights of a finished or stopped run, its moving average where it kept one.

        Raises:
            InputError: its checkpoint is of another model or of other coordinates.
        """
        load_weights(self.model, load_checkpoint(run / "checkpoint.pt"), self.options)
        if self.ema is not None:
            self.ema.module.load_state_dict(self.model.state_dict())

    # ---- one step --------------------------------------------------------------------------------------------

    def step(self, step: int, batch: Batch) -> Float[Tensor, ""]:
        """Select, train, and tell the selector; returns this process's loss without waiting for it."""
        train = self.options.train
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(train, step)
        self.network.train()
        instance = batch.instance.to(self.device)
        selection = self.selector.select(step, self.assign(batch.keys))
        points, target = self.task.training_points(instance, selection.index, train.coord_noise)
        data = self.support(instance, self.task.draw_support_views(), points, target)
        self.points_trained += target.shape[0] * target.shape[1] * self.world.size

        self.optimizer.zero_grad(set_to_none=True)
        with self.codec.autocast():
            loss, residual = self.network(data, points, target, selection.weight)
        self.scaler.scale(loss).backward()
        if self.clip is not None:
            self.scaler.unscale_(self.optimizer)
            self.clip(self.model.parameters())
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        self.selector.observe(selection, Feedback(self.task.relative(residual)))
        return loss.detach()

    def assign(self, keys: tuple[int, ...]) -> Int[Tensor, " B"]:
        """The selector's rows of a batch; what a row remembers of another instance is forgotten."""
        rows, fresh = self.rows.assign(keys)
        if fresh:
            self.selector.forget(on_device(fresh, self.device))
        return on_device(rows, self.device)

    def support(
        self,
        instance: Instance,
        views: Sequence[int],
        points: Float[Tensor, "_ K D"],
        target: Float[Tensor, "B K C"],
    ) -> Data:
        """What patterns are made from in training, where the loss is taken at ``points``."""
        if self.codec.adapts_in_inner_loop and self.options.train.inner_points == "selected":
            return {"coords": points, "target": target}
        return self.codec.support(instance, views, self.options.train.coord_noise)

    # ---- evaluation ------------------------------------------------------------------------------------------

    @property
    def best(self) -> Model:
        """The model to evaluate: the moving average where there is one."""
        return self.model if self.ema is None else self.ema.module  # type: ignore[return-value]

    # ---- state -----------------------------------------------------------------------------------------------

    def shared_state(self) -> dict[str, Any]:
        """What all processes have alike."""
        return {
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "gradient_norm": self.clip.mean if isinstance(self.clip, RunningClip) else None,
            "points_trained": self.points_trained,
            "centres": self.options.data.centres,
        }

    def own_state(self) -> dict[str, Any]:
        """What this process has for itself; its tensors on the CPU, for they go through process 0 to the checkpoint."""
        selector = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in self.selector.state_dict().items()}
        return {"selector": selector, "rows": self.rows.state_dict()}

    def load_shared_state(self, state: dict[str, Any]) -> None:
        """Go on from ``shared_state``; InputError where it doesn't fit the options."""
        check_centres(state, self.options)
        try:
            self.model.load_state_dict(state["model"])
            if self.ema is not None:
                self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            if isinstance(self.clip, RunningClip):
                self.clip.mean = state["gradient_norm"].to(self.device, copy=True)
            self.points_trained = state["points_trained"]
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            reason = f"one without {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
            raise InputError("checkpoint", reason, "one of the same options") from None

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Go on from ``own_state``."""
        self.selector.load_state_dict(state["selector"])
        self.rows.load_state_dict(state["rows"])
