"""EVOS over whole views, for methods that train on one picture a step: splatfacto.

The cameras of a training are a pool like any other. The data manager asks for the next ones whenever its list is empty;
the selector ranks the views by their errors, leaves out the most wrong of them (a wrong pose or exposure stays wrong),
and draws as many as there are views: an epoch. A view's error is the mean squared error that the model itself measures,
from the PSNR among its metrics, so nothing is rendered for selection.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datamanagers.base_datamanager import TDataset
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanager, FullImageDatamanagerConfig
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from torch import Tensor

from evos.config import check_choice
from evos.errors import InputError
from evos.selection import Feedback, Pool, Selection, TilesConfig, build_selector
from evos_nerf.compat import MissingLpips, optional_lpips
from evos_nerf.datamanager import DatasetInBrackets
from evos_nerf.pictures import ReadsPictures

if TYPE_CHECKING:
    Host, HostConfig = FullImageDatamanager[Any], FullImageDatamanagerConfig
else:
    Host = HostConfig = object


def view_options() -> TilesConfig:
    """Views have no neighbours to differ from (no Laplacian) or to borrow from (hardly any pooling: after the warm-up
    all were seen), and each is drawn about once between two rankings."""
    return TilesConfig(
        keep_ratio=0.5,
        full_exponent=0.0,
        mutation_ratio=0.5,
        crossover="none",
        rank_interval=1,
        warmup_steps=2,
        momentum=0.5,
        pooling=0.01,
    )


@dataclass
class EvosViewsOptions(HostConfig):
    """Mixin for the options of a data manager of whole pictures: how the next views are chosen."""

    selector: Literal["tiles", "host"] = "tiles"
    """Strategy that chooses the views: tiles is EVOS, a view being a tile; host: nerfstudio's own order."""

    views: TilesConfig = field(default_factory=view_options)
    """Options of EVOS over views; its steps are epochs of as many draws as there are views."""


@dataclass
class EvosViewsConfig(EvosViewsOptions, FullImageDatamanagerConfig):
    """nerfstudio's options of a data manager of whole pictures, and how views are chosen."""

    # Any, not type: EvosViewsManager[DepthDataset] is an alias.
    _target: Any = field(default_factory=lambda: EvosViewsManager)
    """The class to instantiate."""


class EvosViews(ReadsPictures, Host):
    """Mixin for a host's data manager of whole pictures: the next views are chosen by EVOS."""

    config: Any

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        check_choice("selector", config.selector, ("tiles", "host"))
        self.seed = int(torch.randint(2**31, ()))  # from the global generator, which nerfstudio seeds with seed + rank
        self.epoch = 0
        self.total_epochs: int | None = None
        self._selector: Any = None
        self._unobserved: list[tuple[int, Tensor]] = []
        self.last_view = 0
        super().__init__(config, *args, **kwargs)

    @property
    def selector(self) -> Any:
        """The selector over the views, made when it is first asked for."""
        if self._selector is None:
            pool = Pool(1, (len(self.train_dataset),))
            total = self.total_epochs or 1
            self._selector = build_selector(self.config.views, pool, total_steps=total, device="cpu", seed=self.seed)
        return self._selector

    def sample_train_cameras(self) -> list[int]:
        """The views of the next epoch in random order; while EVOS warms up each of them once."""
        if self.config.selector == "host":
            return super().sample_train_cameras()
        self.flush_feedback()
        self.epoch += 1
        views = len(self.train_dataset)
        order = torch.randperm(views, generator=self.selector.generator)
        if self.epoch <= self.config.views.warmup_steps:
            return order.tolist()
        return self.selector.select(self.epoch, count=views).index[0, order].tolist()

    def next_train(self, step: int) -> tuple[Cameras, dict[str, Any]]:
        """The next camera and its picture."""
        self.last_view = self.train_unseen_cameras[0]
        return super().next_train(step)

    def observe(self, square: Tensor) -> None:
        """Record the mean squared error of the last view, in [0, 1] units, without waiting for the device."""
        if self.config.selector != "host":
            self._unobserved.append((self.last_view, square.detach()))

    def flush_feedback(self) -> None:
        """Report the recorded errors to the selector; this waits for the device, once an epoch."""
        if self._unobserved:
            views, squares = zip(*self._unobserved, strict=True)
            self._unobserved.clear()
            residual = torch.stack(squares).cpu().float().sqrt().view(1, -1, 1)
            index = torch.tensor(views)[None]
            self.selector.observe(Selection(self.selector.all_rows, index), Feedback(residual))

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """The host's; this is where the trainer, and with it the number of steps, first becomes available. A resumed
        run keeps its original length."""
        if training_callback_attributes.trainer is not None and self.total_epochs is None:
            steps = training_callback_attributes.trainer.config.max_num_iterations
            self.total_epochs = self.selector.total_steps = -(-steps // len(self.train_dataset))
        return super().get_training_callbacks(training_callback_attributes)

    def view_state(self) -> dict[str, Any]:
        """Selector, epoch, and what is left of it."""
        self.flush_feedback()
        return {
            "selector": self.selector.state_dict(),
            "seed": self.seed,
            "epoch": [self.epoch, self.total_epochs],
            "left": list(self.train_unseen_cameras),
        }

    def load_view_state(self, state: dict[str, Any]) -> None:
        """Resume from what ``view_state`` returned; InputError where it is of another number of views."""
        views = state["selector"]["order"].shape[1]
        if views != len(self.train_dataset):
            raise InputError("checkpoint", f"{views} training views", f"{len(self.train_dataset)}, as there are now")
        self.epoch, self.total_epochs = state["epoch"]
        self.seed, self._selector = state["seed"], None
        self._unobserved.clear()
        self.selector.load_state_dict(state["selector"])
        self.train_unseen_cameras = list(state["left"])


class EvosViewsManager(DatasetInBrackets, EvosViews, FullImageDatamanager[TDataset], Generic[TDataset]):
    """``FullImageDatamanager`` with EVOS' views; ``EvosViewsManager[DepthDataset]`` uses another dataset class."""


class ViewFeedback(MissingLpips):
    """Mixin for a host pipeline: reports the error of each view to its data manager, and saves its state."""

    datamanager: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with optional_lpips():
            super().__init__(*args, **kwargs)

    def get_train_loss_dict(self, step: int) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """The host's training step, and the feedback; InputError for a model without a PSNR among its metrics."""
        outputs, losses, metrics = super().get_train_loss_dict(step)
        if "psnr" not in metrics:
            raise InputError("model", f"metrics {', '.join(metrics) or 'none'}", "psnr among them, by which EVOS ranks")
        self.datamanager.observe(10 ** (-torch.as_tensor(metrics["psnr"]) / 10))
        return outputs, losses, metrics

    def get_extra_state(self) -> dict[str, Any]:
        """The state of the choice of views."""
        return {"version": 1, "views": self.datamanager.view_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Resume the choice of views; ignored in evaluation."""
        if self.training:
            self.datamanager.load_view_state(state["views"])


class EvosViewsPipeline(ViewFeedback, VanillaPipeline):
    """``VanillaPipeline`` with feedback of whole views."""


@dataclass
class EvosViewsPipelineConfig(VanillaPipelineConfig):
    """nerfstudio's options of a pipeline."""

    _target: type = field(default_factory=lambda: EvosViewsPipeline)
    """The class to instantiate."""
