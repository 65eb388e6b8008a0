"""The methods added to ``ns-train``: host methods with EVOS' data manager, sampler and pipeline; and sobolev-nerf.

They are built on first access, not on import, because nerfstudio discovers plugins during its own import.
"""

import copy
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, get_args

from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.plugins.types import MethodSpecification

from evos.errors import exit_on_input_error, unknown_name
from evos_nerf import compat
from evos_nerf.check import CheckedTrainerConfig
from evos_nerf.datamanager import EvosDataManager, EvosDataManagerConfig
from evos_nerf.llff import LlffDataParserConfig
from evos_nerf.pipeline import PIPELINES, choose_implementation
from evos_nerf.sobolev import SobolevConfig
from evos_nerf.tiny_nerf import TinyNerfModelConfig, check_parser

compat.install()

HOSTS = {
    "evos_nerfacto": ("nerfacto", "Nerfacto whose rays go where the error is (EVOS)."),
    "evos_instant_ngp": ("instant-ngp", "Instant-NGP whose rays go where the error is (EVOS). Needs a GPU."),
    "evos_depth_nerfacto": ("depth-nerfacto", "Depth-supervised nerfacto whose rays go where the error is (EVOS)."),
    "evos_vanilla_nerf": ("vanilla-nerf", "The original NeRF whose rays go where the error is (EVOS)."),
}
"""(host method, description) by entry point."""


@dataclass
class EvosTrainerConfig(CheckedTrainerConfig):
    """nerfstudio's trainer options, with the scene validated before anything is written."""

    @exit_on_input_error
    def save_config(self) -> None:
        """Resolve the model's implementation, check that it supports the scene's format, and write config.yml."""
        choose_implementation(self.pipeline.model, self.machine.device_type)
        if isinstance(self.pipeline.model, TinyNerfModelConfig):
            check_parser(self.pipeline.datamanager)
        super().save_config()


def evos_method(host: TrainerConfig, name: str, description: str) -> MethodSpecification:
    """The EVOS variant of a ray-based method: its config with EVOS' data manager, pixel sampler and pipeline.

    Raises InputError for a method whose pipeline is not one of ``PIPELINES``.
    """
    config = EvosTrainerConfig(**{**vars(copy.deepcopy(host)), "method_name": name})
    pipeline, data = config.pipeline, config.pipeline.datamanager
    if pipeline._target not in PIPELINES or not isinstance(data, VanillaDataManagerConfig):
        raise unknown_name("pipeline", pipeline._target.__name__, [kind.__name__ for kind in PIPELINES])
    kept = {entry.name for entry in fields(VanillaDataManagerConfig)} - {"_target", "pixel_sampler"}
    dataset = get_args(data._target)
    datamanager = EvosDataManagerConfig(
        _target=EvosDataManager[dataset[0]] if dataset else EvosDataManager,  # type: ignore
        **{key: value for key, value in vars(data).items() if key in kept},
    )
    own = {key: value for key, value in vars(pipeline).items() if key != "_target"}
    config.pipeline = PIPELINES[pipeline._target](**{**own, "datamanager": datamanager})
    return MethodSpecification(config, description)


@cache
def _specification(entry_point: str) -> MethodSpecification:
    from nerfstudio.configs.method_configs import method_configs

    host, description = HOSTS[entry_point]
    return evos_method(method_configs[host], f"evos-{host}", description)  # type: ignore


@cache
def _sobolev_nerf() -> MethodSpecification:
    """TinyNeRF with the Sobolev paper's settings: uniform rays, 1,024 a step, over every fourth pixel; weight 1.

    The learning rate, NeRF's, falls to a tenth in 250,000 steps.
    """
    steps = 400_000
    host = TrainerConfig(
        method_name="tiny-nerf",
        steps_per_eval_batch=500,
        max_num_iterations=steps,
        pipeline=VanillaPipelineConfig(
            datamanager=VanillaDataManagerConfig(
                dataparser=LlffDataParserConfig(), train_num_rays_per_batch=1024, eval_num_rays_per_batch=1024
            ),
            model=TinyNerfModelConfig(),
        ),
        optimizers={
            "fields": {
                "optimizer": AdamOptimizerConfig(lr=5e-4),
                "scheduler": ExponentialDecaySchedulerConfig(lr_final=5e-4 * 0.1 ** (steps / 250_000), max_steps=steps),
            }
        },
    )
    description = "Small NeRF of LLFF scenes trained on colours and their derivatives by pixel (EVOS, Sobolev)."
    made = evos_method(host, "sobolev-nerf", description)
    data: Any = made.config.pipeline.datamanager
    data.factor, data.pixel_sampler.selector = 4, "uniform"
    made.config.pipeline.sobolev = SobolevConfig(lambda_der=1.0)  # type: ignore
    return made


def __getattr__(name: str) -> Any:
    if name == "sobolev_nerf":
        return _sobolev_nerf()
    if name not in HOSTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _specification(name)
