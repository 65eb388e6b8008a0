"""The data manager: keeps the pixels of all training images, in the bytes of their files, and passes the step on.

nerfacto's data manager draws pixels in worker processes, which residuals cannot reach; nerfstudio's others cache images
in random order. This one works for any ray-based method.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, get_args

from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import TDataset, VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from nerfstudio.model_components.ray_generators import RayGenerator
from nerfstudio.utils.misc import get_orig_class
from nerfstudio.utils.rich_utils import CONSOLE

from evos.config import check_range
from evos.errors import InputError
from evos_nerf.pictures import ReadsPictures
from evos_nerf.pixel_sampler import BUNDLE, EvosPixelSampler, EvosPixelSamplerConfig, warn
from evos_nerf.rays import RayPool, load_rays

if TYPE_CHECKING:
    Host, HostConfig = VanillaDataManager[Any], VanillaDataManagerConfig
else:
    Host = HostConfig = object


@dataclass
class EvosDataOptions(HostConfig):
    """Mixin for the options of a host's data manager: the EVOS pixel sampler."""

    pixel_sampler: EvosPixelSamplerConfig = field(default_factory=EvosPixelSamplerConfig)
    """The sampler of training pixels; evaluation samples uniformly."""

    factor: int = 1
    """Train on every factor-th row and column of the training views, from the first; at least 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch_size != 1:
            raise InputError("patch_size", self.patch_size, "1 (EVOS selects pixel by pixel)")
        check_range("factor", self.factor, 1)
        check_range("train_num_rays_per_batch", self.train_num_rays_per_batch, 1)
        if self.factor > 1 and self.pixel_sampler.ignore_mask:
            raise InputError("factor", self.factor, "1 with a pixel sampler that ignores masks, which this is one of")


@dataclass
class EvosDataManagerConfig(EvosDataOptions, VanillaDataManagerConfig):
    """nerfstudio's options, with the EVOS pixel sampler."""

    # Any, not type: EvosDataManager[DepthDataset] is an alias.
    _target: Any = field(default_factory=lambda: EvosDataManager)
    """The class to instantiate."""


class EvosData(ReadsPictures, Host):
    """Mixin for a host's data manager: keeps the pixels of all training images, in the host's memory unless the options
    put them on the GPU, and draws the rays of each step by the EVOS pixel sampler."""

    config: Any
    train_pixel_sampler: EvosPixelSampler
    rays: RayPool
    """All pixels to train on."""
    last_batch: dict[str, Any]
    """That of the last step, with the selection that it was drawn from."""

    def setup_train(self) -> None:
        """Load the pixels of all training images."""
        if self.config.train_num_images_to_sample_from not in (-1, math.inf):  # all of them; inf on nerfstudio's main
            got = self.config.train_num_images_to_sample_from
            warn(f"train_num_images_to_sample_from {got}: EVOS keeps all images instead, in the bytes of their files")
        CONSOLE.print("Setting up training dataset...")
        on_gpu = {"image": self.config.images_on_gpu, "mask": self.config.masks_on_gpu}
        on_host = {key for key in (*self.exclude_batch_keys_from_device, *on_gpu) if not on_gpu.get(key)}
        radius = (self.train_dataset.cameras.metadata or {}).get("fisheye_crop_radius")
        self.rays = load_rays(
            self.train_dataset, self.device, on_host=on_host, factor=self.config.factor, radius=radius
        )
        self.train_pixel_sampler = self._get_pixel_sampler(self.train_dataset, self.config.train_num_rays_per_batch)  # type: ignore
        self.train_ray_generator = RayGenerator(self.train_dataset.cameras.to(self.device)).to(self.device)

    def setup_eval(self) -> None:
        """As the host does; InputError for an image that cannot be read."""
        try:
            super().setup_eval()
        except OSError as error:
            raise InputError(
                "--data", f"a held-out image that can't be read ({error})", "files that are whole"
            ) from error

    def next_train(self, step: int) -> tuple[RayBundle, dict[str, Any]]:
        """The rays of ``step``, chosen by the sampler, and their pixels."""
        self.train_count += 1
        # A host's own may learn, or differ from step to step.
        is_fixed = type(self.train_ray_generator) is RayGenerator
        self.train_pixel_sampler.ray_generator = self.train_ray_generator if is_fixed else None
        self.last_batch = self.train_pixel_sampler.sample(self.rays, step)
        bundle = self.last_batch.pop(BUNDLE, None)
        if bundle is None:
            bundle = self.train_ray_generator(self.last_batch["indices"])
        return bundle, self.last_batch

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """The host's; this is where the trainer, and with it the number of steps, first becomes available."""
        if training_callback_attributes.trainer is not None:
            self.train_pixel_sampler.plan(training_callback_attributes.trainer.config.max_num_iterations)
        return super().get_training_callbacks(training_callback_attributes)


class DatasetInBrackets:
    """Mixin for a generic data manager: ``Manager[DepthDataset]`` uses that dataset class."""

    @cached_property
    def dataset_type(self) -> Any:
        """The dataset class given in brackets; by default plain images."""
        alias = get_orig_class(self)
        return get_args(alias)[0] if alias is not None else InputDataset


class EvosDataManager(DatasetInBrackets, EvosData, VanillaDataManager[TDataset], Generic[TDataset]):
    """``VanillaDataManager`` with EVOS' rays; ``EvosDataManager[DepthDataset]`` uses another dataset class."""
