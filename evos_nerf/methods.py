"""The methods that ``ns-train`` lists: each is a host method's own config with EVOS' parts put in.

Made when asked for, not on import: nerfstudio looks for plugins while it is itself being imported.
"""

import copy
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, get_args

from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.plugins.types import MethodSpecification

from evos.errors import unknown_name
from evos_nerf import compat
from evos_nerf.check import CheckedTrainerConfig
from evos_nerf.datamanager import EvosDataManager, EvosDataManagerConfig
from evos_nerf.pipeline import PIPELINES, choose_implementation

compat.install()

HOSTS = {
    "evos_nerfacto": ("nerfacto", "Nerfacto whose rays go where the error is (EVOS)."),
    "evos_instant_ngp": ("instant-ngp", "Instant-NGP whose rays go where the error is (EVOS). Needs a GPU."),
    "evos_depth_nerfacto": ("depth-nerfacto", "Depth-supervised nerfacto whose rays go where the error is (EVOS)."),
    "evos_vanilla_nerf": ("vanilla-nerf", "The original NeRF whose rays go where the error is (EVOS)."),
}
"""Entry point: (host method, description)."""


@dataclass
class EvosTrainerConfig(CheckedTrainerConfig):
    """nerfstudio's options of a training run, whose scene is looked at before anything is written."""

    def save_config(self) -> None:
        """Write config.yml, with the implementation that will run."""
        choose_implementation(self.pipeline.model, self.machine.device_type)
        super().save_config()


def evos_method(host: TrainerConfig, name: str, description: str) -> MethodSpecification:
    """The EVOS kind of a ray-based method: its own config, with EVOS' data manager, pixel sampler and pipeline.

    Raises InputError for a method whose pipeline is not one of ``PIPELINES``.
    """
    config = EvosTrainerConfig(**{**vars(copy.deepcopy(host)), "method_name": name})
    pipeline, data = config.pipeline, config.pipeline.datamanager
    if pipeline._target not in PIPELINES or not isinstance(data, VanillaDataManagerConfig):
        raise unknown_name("pipeline", pipeline._target.__name__, [kind.__name__ for kind in PIPELINES])
    pipeline._target = PIPELINES[pipeline._target]
    kept = {entry.name for entry in fields(VanillaDataManagerConfig)} - {"_target", "pixel_sampler"}
    dataset = get_args(data._target)
    pipeline.datamanager = EvosDataManagerConfig(
        _target=EvosDataManager[dataset[0]] if dataset else EvosDataManager,  # type: ignore
        **{key: value for key, value in vars(data).items() if key in kept},
    )
    return MethodSpecification(config, description)


@cache
def _specification(entry_point: str) -> MethodSpecification:
    from nerfstudio.configs.method_configs import method_configs

    host, description = HOSTS[entry_point]
    return evos_method(method_configs[host], f"evos-{host}", description)  # type: ignore


def __getattr__(name: str) -> Any:
    if name not in HOSTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _specification(name)
