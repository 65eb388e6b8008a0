"""Meta-training: one step, evaluation, and the state that both go on from.

Letters: B instances of a batch, P cells of an instance (pixels, samples, pixels of all views), K of them in this step.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from evos import coords
from evos.distributed import World, reduce_mean, reduce_sum
from evos.errors import InputError
from evos.optimizers import RunningClip, build_optimizer
from evos.runs import on_device, rng_state, seed_everything, set_rng_state
from evos.seeding import mixed_seed
from evos.selection import Feedback, Pool, build_selector
from generalizable.data import Batch, Shards, Source, Sources, evaluation_batches
from generalizable.inner import outer_loss, predict
from generalizable.instances import Instance, pixel_rays
from generalizable.models import Model, Task, build_model
from generalizable.models.meta_pattern_composer import InnerConfig
from generalizable.options import PAPER_LR, DataConfig, Options, TrainConfig
from generalizable.rows import Rows

Data = Tensor | dict[str, Tensor]


def cells(signal: Float[Tensor, "B *S"], kind: str) -> Float[Tensor, "B P C"]:
    """The values of all cells in C order over the grid."""
    return rearrange(
        signal, {"image": "b c h w -> b (h w) c", "sound": "b c t -> b t c"}.get(kind, "b v c h w -> b (v h w) c")
    )


def take(values: Float[Tensor, "B P C"], index: Int[Tensor, "B K"] | None) -> Float[Tensor, "B K C"]:
    """The values at the chosen cells of each instance; None: all."""
    return values if index is None else values[torch.arange(len(values), device=values.device)[:, None], index]


def psnr(prediction: Float[Tensor, "B P C"], target: Float[Tensor, "B P C"], kind: str) -> Float[Tensor, " B"]:
    """PSNR of each instance in dB, of values clamped to their range; the peak is 1, of sounds too, as in the paper."""
    error = (prediction.clamp(-1.0 if kind == "sound" else 0.0, 1.0) - target).double().square().mean((1, 2))
    return -10 * torch.log10(error.clamp(min=1e-12))


def learning_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of a step, counted from 1."""
    return config.lr_at(step)


def make_task(data: DataConfig) -> Task:
    """What the models are told of the data."""
    shape = (data.support_views, data.size, data.size) if data.task == "views" else data.shape
    return Task(data.task, shape, near=data.near, far=data.far) if data.task == "views" else Task(data.task, shape)


@dataclass(frozen=True)
class Variant:
    """One way to make patterns in an evaluation: from how many support views, in how many inner steps."""

    support_views: int | None = None
    inner_steps: int | None = None


class OuterStep(nn.Module):
    """The outer loss as a forward pass, which is what DistributedDataParallel averages gradients of."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any) -> tuple[Tensor, Tensor]:
        """See ``inner.outer_loss``."""
        return outer_loss(self.model, *args)


class Trainer:
    """A model in training: ``step`` trains, ``evaluate`` measures, the state dict resumes exactly."""

    def __init__(self, options: Options, world: World, device: torch.device, owned: int) -> None:
        """``owned``: how many instances this process draws from."""
        self.options, self.world, self.device = options, world, device
        self.kind, train = options.data.task, options.train
        seed_everything(options.run.seed)  # the same weights everywhere
        self.model = build_model(options.model, make_task(options.data)).to(device)
        self.fits = isinstance(options.model, InnerConfig)
        step = OuterStep(self.model)
        self.network = step if world.size == 1 else DistributedDataParallel(step)
        decay = train.ema
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay > 0 else None
        self.clip = train.build_clip(device)
        if options.run.precision == "tf32":
            torch.set_float32_matmul_precision("high")
        self.optimizer: Any = build_optimizer(train.optimizer, self.model, train.lr or PAPER_LR)
        self.scaler = GradScaler(device.type, enabled=options.run.precision == "fp16")

        self.rows = Rows(max(min(train.cache_rows, owned), train.batch // world.size))
        self.pool = Pool(self.rows.capacity, options.data.shape)
        self.selector = build_selector(
            options.selector,
            self.pool,
            total_steps=train.steps,
            device=device,
            seed=options.run.seed,
            rank=world.rank,
        )
        self.grid = coords.grid(self.pool.shape, device) if self.kind != "views" else None
        self.spacing = torch.tensor(coords.spacing(self.pool.shape), device=device)
        self.points_trained = 0
        seed_everything(mixed_seed(options.run.seed, world.rank))  # noise of its own for each process

    # ---- one step --------------------------------------------------------------------------------------------

    def step(self, step: int, batch: Batch) -> Float[Tensor, ""]:
        """Select, train, and tell the selector; returns this process's loss without waiting for it."""
        train = self.options.train
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(train, step)
        self.network.train()
        instance = batch.instance.to(self.device)
        selection = self.selector.select(step, self.assign(batch.keys))
        index = selection.index
        points, target = self.points(instance, index), take(cells(instance.signal, self.kind), index)
        data = self.support(instance, self.draw_views(), (points, target))
        self.points_trained += target.shape[0] * target.shape[1] * self.world.size

        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss, residual = self.network(data, points, target, selection.weight)
        self.scaler.scale(loss).backward()
        if self.clip is not None:
            self.scaler.unscale_(self.optimizer)
            self.clip(self.model.parameters())
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        # In [0, 1] units, as everywhere.
        self.selector.observe(selection, Feedback(residual / 2 if self.kind == "sound" else residual))
        return loss.detach()

    def assign(self, keys: tuple[int, ...]) -> Int[Tensor, " B"]:
        """The selector's rows of a batch; what a row remembers of another instance is forgotten."""
        rows, fresh = self.rows.assign(keys)
        if fresh:
            self.selector.forget(on_device(fresh, self.device))
        return on_device(rows, self.device)

    def points(self, instance: Instance, index: Int[Tensor, "B K"] | None) -> Float[Tensor, "_ K D"]:
        """Where the chosen cells are, for images and sounds with noise around their centres; for views, their rays."""
        if self.grid is None:
            return self.rays(instance, index)
        centres = self.grid[None] if index is None else self.grid[index]
        if self.options.train.coord_noise == 0:
            return centres
        return centres + self.options.train.coord_noise * self.spacing * (torch.rand_like(centres) - 0.5)

    def rays(self, instance: Instance, index: Int[Tensor, "B K"] | None, scale: int = 1) -> Float[Tensor, "B K 6"]:
        """Rays through pixels of the views (None: all), or of views ``scale`` times as fine."""
        assert instance.poses is not None and instance.focal is not None
        size = self.options.data.size * scale
        if index is None:
            index = torch.arange(self.options.data.views * size**2, device=self.device).expand(len(instance.poses), -1)
        return pixel_rays(instance.poses, instance.focal * scale, size, index)

    def draw_views(self) -> list[int]:
        """The support views of a training step."""
        if self.kind != "views":
            return []
        return torch.randperm(self.options.data.views)[: self.options.data.support_views].tolist()

    def support(self, instance: Instance, views: list[int], chosen: tuple[Tensor, Tensor] | None = None) -> Data:
        """What patterns are made from.

        Args:
            views: the support views.
            chosen: in training, the points and targets of the loss.
        """
        signal = instance.signal
        if self.kind == "views":
            place = on_device(views, self.device)
            index = self.pixels_of(place, len(signal), self.options.data.size)
            if self.fits:
                count = min(self.options.train.inner_rays, index.shape[1])
                index = index[:, torch.randperm(index.shape[1], device=self.device)[:count]]
                return {"coords": self.rays(instance, index), "target": take(cells(signal, "views"), index)}
            shape = {"v": len(views), "h": self.options.data.size}
            rays = rearrange(self.rays(instance, index), "b (v h w) (two c) -> two b v c h w", two=2, **shape)
            return {"images": signal[:, place], "origins": rays[0], "directions": rays[1]}
        if not self.fits:
            return signal
        if chosen is not None and self.options.train.inner_points == "selected":
            return {"coords": chosen[0], "target": chosen[1]}
        assert self.grid is not None
        points = self.grid[None] if chosen is None else self.points(instance, None)
        return {"coords": points, "target": cells(signal, self.kind)}

    def pixels_of(self, views: Int[Tensor, " v"], batch: int, size: int) -> Int[Tensor, "B K"]:
        """The cells of some views, ``size`` pixels wide and high."""
        within = torch.arange(size**2, device=self.device)
        return rearrange(views[:, None] * size**2 + within, "v p -> 1 (v p)").expand(batch, -1)

    def autocast(self) -> torch.autocast:
        """The run's precision."""
        precision = self.options.run.precision
        kind = torch.float16 if precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, kind, enabled=precision != "fp32")

    # ---- evaluation ------------------------------------------------------------------------------------------

    @property
    def best(self) -> Model:
        """The model to evaluate: the moving average where there is one."""
        return self.model if self.ema is None else self.ema.module  # type: ignore[return-value]

    @contextmanager
    def evaluating(self) -> Iterator[Model]:
        """The model to evaluate, in that mode and without the training's random numbers being used."""
        model, state = self.best, rng_state()
        model.eval()
        torch.manual_seed(0)
        try:
            with torch.no_grad(), self.autocast():
                yield model
        finally:
            set_rng_state(state)

    @property
    def variants(self) -> list[Variant]:
        """What is evaluated; the last one is the model as it is trained."""
        data, steps = self.options.data, getattr(self.options.model, "inner_steps", None)
        main = Variant(data.support_views if self.kind == "views" else None, steps)
        found = [Variant(main.support_views, step) for step in range(steps or 0)]
        if self.kind == "views":
            found += [Variant(n, steps) for n in range(1, data.eval_support_views + 1) if n != data.support_views]
        return [*found, main]

    @property
    def held_out(self) -> list[int]:
        """The views that no evaluation makes patterns from."""
        return list(
            range(max(self.options.data.support_views, self.options.data.eval_support_views), self.options.data.views)
        )

    def encode(self, model: Model, instance: Instance, variant: Variant) -> dict[str, Tensor]:
        """The patterns of instances."""
        return model.encode(self.support(instance, list(range(variant.support_views or 0))), variant.inner_steps)

    def decode(
        self,
        model: Model,
        patterns: Mapping[str, Tensor],
        instance: Instance | None,
        *,
        views: list[int],
        scale: int = 1,
    ) -> Float[Tensor, "B P C"]:
        """All values of images and sounds, on a grid ``scale`` times as fine; for views, those of ``views``."""
        batch = len(next(iter(patterns.values())))
        if self.grid is None:
            assert instance is not None
            size = self.options.data.size * scale
            index = self.pixels_of(on_device(views, self.device), batch, size)
            pieces = [self.rays(instance, part, scale) for part in index.split(self.chunk(batch), 1)]
        else:
            fine = tuple(scale * side for side in self.pool.shape)
            pieces = list(coords.grid(fine, self.device)[None].split(self.chunk(batch), dim=1))
        return torch.cat([predict(model, dict(patterns), piece).float() for piece in pieces], dim=1)

    def chunk(self, batch: int) -> int:
        """Points or rays of each instance in one pass."""
        samples = self.options.model.samples if self.kind == "views" else 1
        return max(1, self.options.train.chunk // (batch * samples))

    def measure(self, model: Model, instance: Instance, variant: Variant) -> Float[Tensor, " B"]:
        """PSNR of instances; of views, over those held out."""
        patterns = self.encode(model, instance, variant)
        views = self.held_out if self.kind == "views" else []
        truth = instance.signal[:, views] if views else instance.signal
        return psnr(self.decode(model, patterns, instance, views=views), cells(truth, self.kind), self.kind)

    def evaluate(self, sources: Sources, limit: int | None, skipped: list[str]) -> dict[str, dict[str, Any]]:
        """Metrics of every source's test part by its name: each instance counts once, whichever process has it."""
        return {
            config.title: self.evaluate_source(sources.test[config.title], limit, skipped)
            | {"held_out": config.weight == 0}
            for config in sources.configs
        }

    def evaluate_source(self, source: Source | Shards, limit: int | None, skipped: list[str]) -> dict[str, Any]:
        """Metrics of one test part."""
        variants, batch = self.variants, self.options.train.batch // self.world.size
        total, count = torch.zeros(len(variants), dtype=torch.float64), torch.zeros(1)
        with self.evaluating() as model:
            for instance in evaluation_batches(source, batch, world=self.world, limit=limit, skipped=skipped):
                instance = instance.to(self.device)
                total += torch.stack([self.measure(model, instance, variant).sum() for variant in variants]).cpu()
                count += len(instance.signal)
        if not reduce_sum(count).item():
            reason = f", for example {skipped[-1]}" if skipped else ""
            raise InputError(
                "data.root", f"{source.name}, of whose test part nothing can be read{reason}", "readable data"
            )
        mean = reduce_mean(total, count.expand(len(variants))).tolist()
        metrics: dict[str, Any] = {"psnr": mean[-1], "instances": int(reduce_sum(count))}
        if self.fits:
            metrics["psnr_by_inner_step"] = {
                str(v.inner_steps): value
                for v, value in zip(variants, mean, strict=True)
                if v.support_views == variants[-1].support_views
            }
        if self.kind == "views":
            metrics["psnr_by_support_views"] = {
                str(v.support_views): value
                for v, value in zip(variants, mean, strict=True)
                if v.inner_steps == variants[-1].inner_steps
            }
        return metrics

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
        }

    def own_state(self) -> dict[str, Any]:
        """What this process has for itself; its tensors on the CPU, for they go through process 0 to the checkpoint."""
        selector = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in self.selector.state_dict().items()}
        return {"selector": selector, "rows": self.rows.state_dict()}

    def load_shared_state(self, state: dict[str, Any]) -> None:
        """Go on from ``shared_state``; InputError where it doesn't fit the options."""
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
