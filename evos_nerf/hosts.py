"""Our pipeline, data manager and options over those of a host method.

The classes are made when a method is registered and kept here by name, so that config.yml finds them again: whatever
loads one imports nerfstudio's methods, and with them ours.
"""

import copy
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, get_args, get_origin

from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.datamanagers.parallel_datamanager import ParallelDataManager, ParallelDataManagerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from nerfstudio.pipelines.dynamic_batch import DynamicBatchPipeline, DynamicBatchPipelineConfig

from evos.errors import InputError
from evos_nerf.check import CheckedTrainerConfig
from evos_nerf.datamanager import EvosData, EvosDataManager, EvosDataManagerConfig, EvosDataOptions
from evos_nerf.pipeline import (
    EvosDynamicBatchPipeline,
    EvosDynamicBatchPipelineConfig,
    EvosFeedback,
    EvosPipeline,
    EvosPipelineConfig,
    EvosPipelineOptions,
)

OURS: dict[type, type] = {
    VanillaPipeline: EvosPipeline,
    VanillaPipelineConfig: EvosPipelineConfig,
    DynamicBatchPipeline: EvosDynamicBatchPipeline,
    DynamicBatchPipelineConfig: EvosDynamicBatchPipelineConfig,
    VanillaDataManager: EvosDataManager,
    VanillaDataManagerConfig: EvosDataManagerConfig,
    # It draws in worker processes, which no residual reaches.
    ParallelDataManager: EvosDataManager,
    ParallelDataManagerConfig: EvosDataManagerConfig,
}
"""Our variant of nerfstudio's own classes."""

HOOKS = ("setup_train", "next_train")
"""Methods of a data manager in which ours reads images and draws rays."""


@cache
def over(mixin: type, host: type) -> type:
    """``mixin`` over ``host`` (a dataclass over a dataclass), kept in this module as "Evos" and the host's name.

    Raises InputError for a second host of that name.
    """
    name = f"Evos{host.__name__}"
    if name in globals():
        raise InputError(host.__name__, "the name of two classes", "one of another name")
    made = type(name, (mixin, host), {"__module__": __name__, "__doc__": f"{host.__name__} with EVOS."})
    globals()[name] = dataclass(made) if "__dataclass_fields__" in vars(host) else made
    return globals()[name]


def pipeline_class(host: type) -> type:
    """Our variant of a host's pipeline; InputError for one that is not nerfstudio's or made from it."""
    if host in OURS:
        return OURS[host]
    if not issubclass(host, VanillaPipeline):
        raise InputError("pipeline", host.__name__, "VanillaPipeline or one derived from it")
    return over(EvosFeedback, host)


def data_manager_class(host: Any) -> Any:
    """Our variant of a host's data manager, for the same data set class.

    Raises InputError for one that does not draw rays from pixels, or reads images or draws rays in its own way: ours
    would not do what it does.
    """
    origin, dataset = get_origin(host) or host, get_args(host)
    if origin in OURS:
        return OURS[origin][dataset[0]] if dataset else OURS[origin]  # type: ignore
    if not issubclass(origin, VanillaDataManager):
        got = f"{origin.__name__}, which draws no rays from the pixels of all views"
        raise InputError("datamanager", got, "VanillaDataManager or one derived from it")
    own = [name for name in HOOKS if getattr(origin, name) is not getattr(VanillaDataManager, name)]
    if own:
        raise InputError(
            "datamanager", f"{origin.__name__} with a {own[0]} of its own", f"VanillaDataManager's {own[0]}"
        )
    made = over(EvosData, origin)
    return made[dataset[0]] if dataset else made  # type: ignore


def config_over(mixin: type, host: Any, **changed: Any) -> Any:
    """The options of ``host`` in our variant of its class, with ``changed`` ones; those we do not have are left out."""
    made = OURS.get(type(host)) or over(mixin, type(host))
    names = {entry.name for entry in fields(made)}
    own = {key: value for key, value in vars(host).items() if key in names and key not in ("_target", "pixel_sampler")}
    return made(**{**own, **changed})


def evos_config(host: TrainerConfig, name: str, trainer: type[CheckedTrainerConfig]) -> Any:
    """A ray-based method's config with our pipeline, data manager, pixel sampler and ``trainer`` options.

    Raises InputError, saying why, where the method's own parts leave no room for ours.
    """
    host = copy.deepcopy(host)
    pipeline: Any = host.pipeline
    data = pipeline.datamanager
    manager = data_manager_class(data._target)
    data = config_over(EvosDataOptions, data, _target=manager)
    pipeline = config_over(EvosPipelineOptions, pipeline, _target=pipeline_class(pipeline._target), datamanager=data)
    made = trainer if type(host) is TrainerConfig else over(trainer, type(host))
    return made(**{**vars(host), "method_name": name, "pipeline": pipeline})


def __getattr__(name: str) -> Any:
    if name.startswith("Evos"):
        import nerfstudio.configs.method_configs  # noqa: F401  registers the methods, whose classes are made then

        if name in globals():
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
