"""Our pipeline, data manager and options over those of a host method.

The classes are made when a method is registered and kept here by name, so that config.yml finds them again: whatever
loads one imports nerfstudio's methods, and with them ours.
"""

import copy
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, get_args, get_origin

from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanager, FullImageDatamanagerConfig
from nerfstudio.data.datamanagers.parallel_datamanager import ParallelDataManager, ParallelDataManagerConfig
from nerfstudio.data.pixel_samplers import PixelSampler
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
from evos_nerf.pixel_sampler import EvosPixelSamplerConfig
from evos_nerf.views import (
    EvosViews,
    EvosViewsConfig,
    EvosViewsManager,
    EvosViewsOptions,
    EvosViewsPipeline,
    EvosViewsPipelineConfig,
    ViewFeedback,
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
    # Of whole pictures, one a step.
    FullImageDatamanager: EvosViewsManager,
    FullImageDatamanagerConfig: EvosViewsConfig,
}
"""Our variant of nerfstudio's own classes."""

HOOKS = {
    VanillaDataManager: ("setup_train", "next_train", "_get_pixel_sampler"),
    FullImageDatamanager: ("sample_train_cameras", "next_train"),
}
"""Methods of a data manager in which ours reads images, draws rays and chooses views."""


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


def pipeline_class(host: type, *, of_views: bool) -> type:
    """Our variant of a host's pipeline; InputError for one that is not nerfstudio's or made from it."""
    if of_views and host is VanillaPipeline:
        return EvosViewsPipeline
    if host in OURS and not of_views:
        return OURS[host]
    if not issubclass(host, VanillaPipeline):
        raise InputError("pipeline", host.__name__, "VanillaPipeline or one derived from it")
    return over(ViewFeedback if of_views else EvosFeedback, host)


def data_manager_class(host: Any) -> Any:
    """Our variant of a host's data manager, for the same data set class.

    Raises InputError for one that does not draw rays from pixels, or reads images or draws rays in its own way: ours
    would not do what it does.
    """
    origin, dataset = get_origin(host) or host, get_args(host)
    if origin in OURS:
        return OURS[origin][dataset[0]] if dataset else OURS[origin]  # type: ignore
    base = next((base for base in HOOKS if issubclass(origin, base)), None)
    if base is None:
        got = f"{origin.__name__}, which draws no rays from the pixels of all views and no views from all"
        raise InputError("datamanager", got, "VanillaDataManager, FullImageDatamanager or one derived from them")
    own = [name for name in HOOKS[base] if getattr(origin, name) is not getattr(base, name)]
    if own:
        raise InputError("datamanager", f"{origin.__name__} with a {own[0]} of its own", f"{base.__name__}'s {own[0]}")
    made = over(EvosData if base is VanillaDataManager else EvosViews, origin)
    return made[dataset[0]] if dataset else made  # type: ignore


def config_over(mixin: type, host: Any, **changed: Any) -> Any:
    """The options of ``host`` in our variant of its class, with ``changed`` ones; those we do not have are left out."""
    made = OURS.get(type(host)) or over(mixin, type(host))
    names = {entry.name for entry in fields(made)}
    own = {key: value for key, value in vars(host).items() if key in names and key != "_target"}
    return made(**{**own, **changed})


def sampler_config(host: Any) -> EvosPixelSamplerConfig:
    """Our pixel sampler with the options of the host's; InputError where the host's draws in its own way."""
    if host._target is not PixelSampler:
        raise InputError("pixel_sampler", host._target.__name__, "PixelSampler, whose place EVOS takes")
    return EvosPixelSamplerConfig(**{key: value for key, value in vars(host).items() if key != "_target"})


def evos_config(host: TrainerConfig, name: str, trainer: type[CheckedTrainerConfig]) -> Any:
    """A ray-based method's config with our pipeline, data manager, pixel sampler and ``trainer`` options.

    Raises InputError, saying why, where the method's own parts leave no room for ours.
    """
    host = copy.deepcopy(host)
    pipeline: Any = host.pipeline
    data = pipeline.datamanager
    manager = data_manager_class(data._target)
    of_views = issubclass(get_origin(manager) or manager, EvosViews)
    if of_views:
        data = config_over(EvosViewsOptions, data, _target=manager)
    else:
        data = config_over(EvosDataOptions, data, _target=manager, pixel_sampler=sampler_config(data.pixel_sampler))
    target = pipeline_class(pipeline._target, of_views=of_views)
    if of_views and type(pipeline) is VanillaPipelineConfig:
        pipeline = EvosViewsPipelineConfig(**{**vars(pipeline), "_target": target, "datamanager": data})
    elif of_views:  # options of its own stay as they are
        pipeline = replace(pipeline, _target=target, datamanager=data)
    else:
        pipeline = config_over(EvosPipelineOptions, pipeline, _target=target, datamanager=data)
    made = trainer if type(host) is TrainerConfig else over(trainer, type(host))
    return made(**{**vars(host), "method_name": name, "pipeline": pipeline})


def __getattr__(name: str) -> Any:
    if name.startswith("Evos"):
        import nerfstudio.configs.method_configs  # noqa: F401  registers the methods, whose classes are made then

        if name in globals():
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
