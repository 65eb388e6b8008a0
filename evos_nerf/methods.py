"""The methods added to ``ns-train``: host methods with EVOS' data manager, sampler and pipeline; and sobolev-nerf.

They are built on first access, not on import, because nerfstudio discovers plugins during its own import.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.models.base_model import ModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.plugins.types import MethodSpecification

from evos.errors import InputError, exit_on_input_error
from evos_nerf import compat
from evos_nerf.check import CheckedTrainerConfig
from evos_nerf.hosts import evos_config
from evos_nerf.llff import LlffDataParserConfig
from evos_nerf.pipeline import choose_implementation
from evos_nerf.sobolev import SobolevConfig
from evos_nerf.tiny_nerf import TinyNerfModelConfig, check_parser

compat.allow_checkpoints()

HOSTS = {
    "evos_nerfacto": ("nerfacto", "Nerfacto whose rays go where the error is (EVOS)."),
    "evos_instant_ngp": ("instant-ngp", "Instant-NGP whose rays go where the error is (EVOS). Needs a GPU."),
    "evos_depth_nerfacto": ("depth-nerfacto", "Depth-supervised nerfacto whose rays go where the error is (EVOS)."),
    "evos_nerfacto_big": ("nerfacto-big", "The larger nerfacto whose rays go where the error is (EVOS)."),
    "evos_mipnerf": ("mipnerf", "Mip-NeRF whose rays go where the error is (EVOS)."),
    "evos_tensorf": ("tensorf", "TensoRF whose rays go where the error is (EVOS)."),
    "evos_splatfacto": ("splatfacto", "Splatfacto whose views are chosen by their errors (EVOS). Needs a GPU."),
    "evos_vanilla_nerf": ("vanilla-nerf", "The original NeRF whose rays go where the error is (EVOS)."),
}
"""(host method, description) by entry point."""


@dataclass
class EvosTrainerConfig(CheckedTrainerConfig):
    """nerfstudio's trainer options, with the scene validated before anything is written."""

    @exit_on_input_error
    def save_config(self) -> None:
        """Resolve the model's implementation, check that it supports the scene's format, and write config.yml."""
        check_device(self.pipeline.model, self.machine.device_type)
        choose_implementation(self.pipeline.model, self.machine.device_type)
        if isinstance(self.pipeline.model, TinyNerfModelConfig):
            check_parser(self.pipeline.datamanager)
        super().save_config()


def check_device(model: ModelConfig, device: str) -> None:
    """Raise InputError for a model whose kernels exist for CUDA alone, on another device."""
    from nerfstudio.models.instant_ngp import InstantNGPModelConfig
    from nerfstudio.models.splatfacto import SplatfactoModelConfig

    kernels = {InstantNGPModelConfig: "nerfacc", SplatfactoModelConfig: "gsplat"}
    library = next((name for kind, name in kernels.items() if isinstance(model, kind)), None)
    if library is not None and device != "cuda":
        raise InputError("--machine.device-type", device, f"cuda, for which alone {library} has kernels")


def evos_method(host: TrainerConfig, name: str, description: str) -> MethodSpecification:
    """The EVOS variant of a ray-based method: its config with our data manager, sampler and pipeline over its own.

    Raises InputError, saying why, for a method whose data manager or pipeline leaves no room for ours.
    """
    return MethodSpecification(evos_config(host, name, EvosTrainerConfig), description)


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
