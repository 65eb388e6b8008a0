"""Host pipelines extended by feedback to the pixel sampler, its state in checkpoints, and the derivative loss.

Residuals are captured where the model computes its loss, at ``model.rgb_loss(truth, prediction)``: they include the
background that the model blended in, and the strategy's importance weights are applied there. The derivative loss is in
evos_nerf/sobolev.py.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.models.base_model import ModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from nerfstudio.pipelines.dynamic_batch import DynamicBatchPipeline, DynamicBatchPipelineConfig
from nerfstudio.utils import comms
from nerfstudio.utils.external import TCNN_EXISTS
from nerfstudio.utils.misc import step_check
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from evos.distributed import gather
from evos.errors import InputError
from evos.runs import keep_freed_memory
from evos.runs.seeding import rng_state, set_rng_state
from evos.selection import Selection
from evos_nerf.compat import MissingLpips, optional_lpips
from evos_nerf.pixel_sampler import SELECTION, EvosPixelSampler
from evos_nerf.sobolev import DerivativeTerm, SobolevConfig
from evos_nerf.viewer import ViewsControl

UNSAVED = ("_step", "_steps_since_update", "depth_sigma")
"""State that nerfstudio's modules keep in plain attributes and leave out of checkpoints: the proposal sampler's step,
and its count of steps since its networks were last updated; the decaying uncertainty of the depth loss."""


def choose_implementation(model: ModelConfig, device: str | torch.device) -> None:
    """Select a model's torch implementation where tiny-cuda-nn cannot run; call before the model is built."""
    if hasattr(model, "implementation") and (torch.device(device).type != "cuda" or not TCNN_EXISTS):
        model.implementation = "torch"  # type: ignore


class EvosFeedback(MissingLpips):
    """Mixin for a host pipeline: feedback to the sampler, maps of what it drew, and checkpoints that resume exactly."""

    datamanager: Any

    def __init__(
        self,
        config: Any,
        device: str | torch.device,
        test_mode: Any = "val",
        world_size: int = 1,
        local_rank: int = 0,
        grad_scaler: Any = None,
    ) -> None:
        keep_freed_memory(device)
        choose_implementation(config.model, device)
        # World size 1: nerfstudio wraps the model in DDP on CUDA only; it is wrapped below. Each process has all data.
        with optional_lpips():
            super().__init__(config, device, test_mode, 1, local_rank, grad_scaler)  # type: ignore
        self.world_size = world_size
        if world_size > 1:
            devices = [local_rank] if torch.device(device).type == "cuda" else None
            self._model: Any = DistributedDataParallel(self._model, device_ids=devices, find_unused_parameters=True)
        # NCCL takes objects through the first GPU in every process; gloo does not need any.
        self._group: Any = dist.new_group(backend="gloo") if comms.get_world_size() > 1 else None
        if self.sampler is not None:
            self.sampler.group = self._group
        self._residual: Tensor | None = None
        self._gathered: list[Any] = []
        self._generators: dict[str, Any] | None = None
        if isinstance(loss := getattr(self.model, "rgb_loss", None), nn.Module):
            loss.register_forward_pre_hook(self._before_loss)
        if self.sampler is not None:  # the viewer finds its controls among a pipeline's attributes
            self.views_control = ViewsControl(self.datamanager.train_dataset, self.sampler)
            self.training_views, self.latest_views = self.views_control.choice, self.views_control.again
        self.sobolev = DerivativeTerm(config.sobolev, self.model, self.datamanager) if config.sobolev.is_on else None  # type: ignore

    @property
    def sampler(self) -> EvosPixelSampler | None:
        """The training pixel sampler if it is EVOS' and training data are loaded, else None."""
        sampler = getattr(self.datamanager, "train_pixel_sampler", None)
        return sampler if isinstance(sampler, EvosPixelSampler) else None

    # ---- feedback ----------------------------------------------------------------------------------------------

    def _before_loss(self, loss: nn.Module, arguments: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor] | None:
        """Record the residual that enters the loss, of the finest level, and apply importance weights."""
        sampler, selection = self.sampler, self.selection
        if not self.training or sampler is None or selection is None:
            return None
        truth, prediction = arguments
        self._residual = (prediction - truth).detach()
        weighted = self.datamanager.last_batch[SELECTION] = sampler.weigh(selection, self._residual)
        if weighted.weight is None:
            return None
        factor = weighted.weight[0] if isinstance(loss, nn.L1Loss) else weighted.weight[0].sqrt()
        return truth, truth + factor[:, None] * (prediction - truth)

    @property
    def selection(self) -> Selection | None:
        """What the rays of the last batch were drawn from, with their loss weights; None where the host drew them."""
        return getattr(self.datamanager, "last_batch", {}).get(SELECTION)

    def get_train_loss_dict(self, step: int) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """The host's training step and the derivative loss; the sampler receives the residuals of its rays."""
        if self._generators is not None:
            # Not restored on loading: writers and viewer draw random numbers between loading and the first step.
            set_rng_state(self._generators)
            self._generators = None
        self._residual = None
        outputs, losses, metrics = super().get_train_loss_dict(step)
        sampler, selection = self.sampler, self.selection
        if sampler is not None and selection is not None:
            residual = self._residual
            if residual is None:  # a model without rgb_loss
                residual = (outputs["rgb"] - self.datamanager.last_batch["image"][..., :3]).detach()
            sampler.observe(selection, residual)
            metrics |= sampler.metrics()
        if self.sobolev is not None:
            losses = self.sobolev.add_to(losses, outputs, self._model, sampler, selection)
        return outputs, losses, metrics

    # ---- evaluation --------------------------------------------------------------------------------------------

    def get_eval_image_metrics_and_images(self, step: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The host's metrics and images, and maps of the first training view: rays drawn and estimated error."""
        metrics, images = super().get_eval_image_metrics_and_images(step)
        if self.sampler is not None:
            images |= self.sampler.maps(0)
        return metrics, images

    # ---- checkpoints -------------------------------------------------------------------------------------------

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """The host's callbacks; with several processes also one that gathers their states before each checkpoint."""
        callbacks = super().get_training_callbacks(training_callback_attributes)
        trainer = training_callback_attributes.trainer
        if comms.get_world_size() == 1 or trainer is None:
            return callbacks
        last = trainer._start_step + trainer.config.max_num_iterations - 1

        def gather(step: int) -> None:
            # Only rank 0 saves, so the states of all ranks must be gathered beforehand.
            if step == last or step_check(step, trainer.config.steps_per_save):
                self.gather_states()

        return [*callbacks, TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], func=gather)]

    def gather_states(self) -> None:
        """Gather the states of all processes on rank 0; a collective that every process must call."""
        if self.sampler is not None:
            self.sampler.flush_feedback()
        self._gathered = gather(self._own_state(), self._group)

    def _own_state(self) -> dict[str, Any]:
        sampler = self.sampler
        plain = {
            f"{name}.{key}": vars(module)[key]
            for name, module in self.model.named_modules()
            for key in UNSAVED
            if key in vars(module)
        }
        return {
            "sampler": sampler and sampler.state_dict(),
            "generators": self._generators or rng_state(),
            "model": plain,
        }

    def get_extra_state(self) -> dict[str, Any]:
        """Of each process: sampler, random generators, and module state that nerfstudio doesn't save."""
        return {"version": 1, "processes": self._gathered or [self._own_state()]}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Resume this process exactly; a rank that the checkpoint doesn't have starts fresh. Ignored in evaluation."""
        if not self.training:
            return
        if state.get("version") != 1:
            raise InputError("checkpoint", f"version {state.get('version')} of the EVOS state", "version 1")
        if comms.get_rank() >= len(state["processes"]):
            return
        own = state["processes"][comms.get_rank()]
        if self.sampler is not None:
            self.sampler.load_state_dict(own["sampler"])
        self._generators = own["generators"]
        for name, value in own["model"].items():
            module, _, key = name.rpartition(".")
            setattr(self.model.get_submodule(module), key, value)

    def load_state_dict(self, state_dict: Any, strict: bool | None = None) -> None:
        """As the host's, but raises InputError for parameters of another size, and for missing ones, which the host
        would leave at random."""
        saved = {key.removeprefix("_model.").removeprefix("module.") for key in state_dict}
        missing = [key for key in self.model.state_dict() if key not in saved and not key.startswith("lpips.")]
        allowed = "one of this model, its size and implementation (torch or tcnn) included, and of as many views"
        if missing:
            raise InputError("checkpoint", f"one without {missing[0]}", allowed)
        try:
            super().load_state_dict(state_dict, strict)
        except RuntimeError as error:  # one parameter a line
            raise InputError("checkpoint", str(error).split("\n\t")[-1].strip(), allowed) from None


class EvosPipeline(EvosFeedback, VanillaPipeline):
    """``VanillaPipeline`` with feedback."""


class EvosDynamicBatchPipeline(EvosFeedback, DynamicBatchPipeline):
    """``DynamicBatchPipeline`` (instant-ngp: a fixed number of samples, not of rays) with feedback."""


@dataclass
class EvosPipelineOptions:
    """Mixin for the options of a host's pipeline: Sobolev supervision."""

    sobolev: SobolevConfig = field(default_factory=SobolevConfig)
    """Sobolev supervision: derivatives of the rendered colour by pixel."""


@dataclass
class EvosPipelineConfig(EvosPipelineOptions, VanillaPipelineConfig):
    """nerfstudio's options of a pipeline, and Sobolev supervision."""

    _target: type = field(default_factory=lambda: EvosPipeline)
    """The class to instantiate."""


@dataclass
class EvosDynamicBatchPipelineConfig(EvosPipelineOptions, DynamicBatchPipelineConfig):
    """nerfstudio's options of a pipeline with a fixed number of samples, and Sobolev supervision."""

    _target: type = field(default_factory=lambda: EvosDynamicBatchPipeline)
    """The class to instantiate."""
