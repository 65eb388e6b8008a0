"""Our classes over those of hosts: nerfstudio's methods, and methods with parts of their own."""

import copy
import math
from dataclasses import dataclass, field

import pytest
import torch
import yaml

pytest.importorskip("nerfstudio")

from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.pixel_samplers import PairPixelSamplerConfig, PixelSamplerConfig
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig

from evos.errors import InputError
from evos_nerf import hosts
from evos_nerf.datamanager import EvosData
from evos_nerf.methods import EvosTrainerConfig, evos_method
from evos_nerf.pipeline import EvosFeedback
from evos_nerf.pixel_sampler import EvosPixelSampler, EvosPixelSamplerConfig

pytestmark = [pytest.mark.nerf, pytest.mark.filterwarnings("ignore")]


class HostPipeline(VanillaPipeline):
    """A pipeline with a loss of its own."""

    def get_train_loss_dict(self, step):
        outputs, losses, metrics = super().get_train_loss_dict(step)
        return outputs, losses | {"own_loss": self.config.own_weight * outputs["rgb"].mean()}, metrics


class HostDataManager(VanillaDataManager):
    """A data manager with something of its own that is not our affair."""

    def setup_eval(self):
        super().setup_eval()
        self.own = self.config.own_number

    def get_training_callbacks(self, training_callback_attributes):
        return [TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], self.count, args=[2])]

    def count(self, number, step):
        self.own += number


@dataclass
class HostPipelineConfig(VanillaPipelineConfig):
    _target: type = field(default_factory=lambda: HostPipeline)
    own_weight: float = 0.5


@dataclass
class HostDataManagerConfig(VanillaDataManagerConfig):
    _target: type = field(default_factory=lambda: HostDataManager)
    own_number: int = 3


@dataclass
class HostTrainerConfig(TrainerConfig):
    own_word: str = "mine"


@pytest.fixture
def host(method):
    """A method whose trainer, pipeline and data manager are its own, on the tiny scene; made ours by the test."""
    from nerfstudio.configs.method_configs import method_configs

    ours, theirs = method("evos-nerfacto"), method_configs["nerfacto"]
    data = HostDataManagerConfig(dataparser=ours.pipeline.datamanager.dataparser, train_num_rays_per_batch=32)
    data.data, data.eval_num_rays_per_batch = ours.pipeline.datamanager.data, 32
    made = HostTrainerConfig(**{key: value for key, value in vars(ours).items() if key != "pipeline"})
    made.optimizers = copy.deepcopy(theirs.optimizers)
    made.pipeline = HostPipelineConfig(datamanager=data, model=ours.pipeline.model, own_weight=0.25)
    yield made
    for name in ("EvosHostPipeline", "EvosHostDataManager", "EvosHostPipelineConfig", "EvosHostDataManagerConfig"):
        vars(hosts).pop(name, None)
    vars(hosts).pop("EvosHostTrainerConfig", None)
    hosts.over.cache_clear()


def test_a_hosts_own_pipeline_data_manager_and_options_are_kept(host, train):
    config = evos_method(host, "evos-own", "").config
    assert isinstance(config, (EvosTrainerConfig, HostTrainerConfig)) and config.own_word == "mine"
    trainer = train(config, 2)
    pipeline = trainer.pipeline
    assert [isinstance(pipeline, kind) for kind in (EvosFeedback, HostPipeline)] == [True, True]
    assert type(pipeline).__name__ == "EvosHostPipeline" and pipeline.config.own_weight == 0.25
    data = pipeline.datamanager
    assert [isinstance(data, kind) for kind in (EvosData, HostDataManager)] == [True, True]
    assert data.own == 3 + 2 * 2, "its callback in both steps"
    assert isinstance(data.train_pixel_sampler, EvosPixelSampler) and pipeline.selection.step == 2
    _, losses, _ = pipeline.get_train_loss_dict(2)
    assert {"own_loss", "rgb_loss"} <= set(losses)


def test_the_config_of_a_made_class_is_read_back(host):
    config = evos_method(host, "evos-own", "").config
    again = yaml.load(yaml.dump(config), Loader=yaml.Loader)
    assert type(again) is type(config) and again.pipeline.own_weight == 0.25
    assert again.pipeline.datamanager == config.pipeline.datamanager
    assert again.pipeline.datamanager._target is config.pipeline.datamanager._target


def test_the_options_of_a_made_class_are_on_the_command_line(host):
    import tyro

    config = evos_method(host, "evos-own", "").config.pipeline.datamanager
    words = ["--own-number", "7", "--pixel-sampler.selector", "uniform"]
    parsed = tyro.cli(type(config), default=config, args=words)
    assert (parsed.own_number, parsed.pixel_sampler.selector, parsed._target) == (7, "uniform", config._target)


@pytest.mark.parametrize("name", ["next_train", "_get_pixel_sampler"])
def test_a_host_that_draws_rays_in_its_own_way_is_refused_with_the_reason(name, host):
    host.pipeline.datamanager._target = type("Own", (HostDataManager,), {name: lambda *arguments: None})
    with pytest.raises(InputError, match=rf"datamanager: got Own with a {name} of its own"):
        evos_method(host, "evos-own", "")


def test_a_hosts_pixel_sampler_is_refused_and_the_options_of_nerfstudios_are_kept(host):
    host.pipeline.datamanager.pixel_sampler = PixelSamplerConfig(ignore_mask=True, max_num_iterations=7)
    sampler = evos_method(host, "evos-own", "").config.pipeline.datamanager.pixel_sampler
    assert (type(sampler), sampler._target) == (EvosPixelSamplerConfig, EvosPixelSampler)
    assert (sampler.ignore_mask, sampler.max_num_iterations, sampler.selector) == (True, 7, "tiles")
    host.pipeline.datamanager.pixel_sampler = PairPixelSamplerConfig()
    with pytest.raises(InputError, match="pixel_sampler: got PairPixelSampler; allowed: PixelSampler, whose place"):
        evos_method(host, "evos-own", "")


def test_nerfstudios_methods_that_train_on_no_pictures_are_refused_with_the_reason():
    from nerfstudio.configs.method_configs import method_configs

    with pytest.raises(InputError, match=r"datamanager: got \w+, which draws no rays from the pixels"):
        evos_method(method_configs["generfacto"], "evos-generfacto", "")


def test_a_second_class_of_the_same_name_is_refused(host):
    evos_method(host, "evos-own", "")
    host.pipeline._target = type("HostPipeline", (VanillaPipeline,), {})
    with pytest.raises(InputError, match="HostPipeline: got the name of two classes"):
        evos_method(host, "evos-own", "")


@pytest.mark.parametrize("name", ["evos-nerfacto-big", "evos-mipnerf", "evos-tensorf"])
def test_a_host_trains_two_steps_with_our_rays(name, method, train):
    trainer = train(method(name), 2)
    selector = trainer.pipeline.sampler.selector
    trainer.pipeline.sampler.flush_feedback()
    assert trainer.pipeline.selection.step == 2 and int(selector.cache.visits.sum()) == 64
    assert all(torch.isfinite(values).all() for values in trainer.pipeline.model.parameters())
    assert all(math.isfinite(loss) for loss in trainer.pipeline.get_train_loss_dict(2)[1].values())
