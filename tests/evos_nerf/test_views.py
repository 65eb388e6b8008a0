"""Whole views chosen by their errors: the data manager of splatfacto, on the CPU with a stand-in for its model."""

import random
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

# The whole of it, because importorskip also silences what nerfstudio and its like warn of on import.
pytest.importorskip("nerfstudio.configs.method_configs", reason="needs the nerf extra")

from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.engine.callbacks import TrainingCallbackAttributes
from nerfstudio.models.base_model import Model, ModelConfig

from evos.errors import InputError
from evos_nerf.views import EvosViewsConfig, EvosViewsPipeline, EvosViewsPipelineConfig, view_options

pytestmark = pytest.mark.nerf

VIEWS = 12


@dataclass
class StandInConfig(ModelConfig):
    _target: type = field(default_factory=lambda: StandIn)
    measures: bool = True


class StandIn(Model):
    """One colour a view."""

    def populate_modules(self) -> None:
        self.collider = None
        self.colours = torch.nn.Parameter(torch.full((self.num_train_data, 3), 0.5))

    def get_param_groups(self) -> dict[str, list[torch.nn.Parameter]]:
        return {"colours": [self.colours]}

    def get_outputs(self, camera: Any) -> dict[str, torch.Tensor]:
        shape = (int(camera.height), int(camera.width), 3)
        return {"rgb": self.colours[camera.metadata["cam_idx"]].expand(shape)}

    def square(self, outputs: Any, batch: Any) -> torch.Tensor:
        return (outputs["rgb"] - batch["image"][..., :3]).square().mean()

    def get_metrics_dict(self, outputs: Any, batch: Any) -> dict[str, torch.Tensor]:
        return {"psnr": -10 * self.square(outputs, batch).log10()} if self.config.measures else {}

    def get_loss_dict(self, outputs: Any, batch: Any, metrics_dict: Any = None) -> dict[str, torch.Tensor]:
        return {"rgb_loss": self.square(outputs, batch)}

    def get_image_metrics_and_images(self, outputs: Any, batch: Any) -> Any:
        raise NotImplementedError


@pytest.fixture
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from evos_nerf.scene import SceneConfig, write_scene

    return write_scene(SceneConfig(str(tmp_path_factory.mktemp("views") / "s"), views=VIEWS, size=8), quiet=True)


def options(scene: Path, **changed: Any) -> EvosViewsConfig:
    return EvosViewsConfig(data=scene, dataparser=BlenderDataParserConfig(), **changed)


def manager(scene: Path, **changed: Any) -> Any:
    return options(scene, **changed).setup(device="cpu", test_mode="val", world_size=1, local_rank=0)


def epochs(data: Any, errors: torch.Tensor, count: int) -> np.ndarray:
    """How often each view is drawn in each epoch, where its squared error is and stays ``errors``."""
    drawn = np.zeros((count, VIEWS), int)
    for epoch in range(count):
        for _ in range(VIEWS):
            camera, _ = data.next_train(0)
            assert camera.metadata["cam_idx"] == data.last_view
            data.observe(errors[data.last_view])
            drawn[epoch, data.last_view] += 1
    return drawn


def test_views_are_drawn_by_their_errors_but_for_the_most_wrong_of_all(scene):
    views = view_options()
    object.__setattr__(views, "trim_ratio", 1 / VIEWS)
    errors = torch.full((VIEWS,), 1e-3)
    errors[:3], errors[7] = 0.05, 0.9
    drawn = epochs(manager(scene, views=views), errors, 60)
    assert (drawn[:2] == 1).all(), "each view once while EVOS warms up"
    assert (drawn.sum(1) == VIEWS).all()
    late = drawn[10:].mean(0)
    assert late[:3].mean() > 1.2 > 1 > late[[3, 4, 5, 6, 8, 9, 10, 11]].mean()
    assert late[7] < late[:3].min(), "what is still that wrong after four visits is left to the mutants"
    assert late[7] > 0


def test_views_of_equal_errors_are_drawn_alike(scene):
    normal = torch.randn(VIEWS, 1000, generator=torch.Generator().manual_seed(0)).square().mean(1)
    drawn = epochs(manager(scene), 0.01 * normal, 100)[10:].sum(0)
    expected = drawn.sum() / VIEWS
    # The selected half may be preferred by no more than chance: 5 standard deviations of a count.
    assert np.abs(drawn - expected).max() < 5 * np.sqrt(expected)


def test_the_host_draws_its_own_order(scene):
    data = manager(scene, selector="host")
    twin = random.Random(data.config.train_cameras_sampling_seed)
    expected = list(range(VIEWS))
    twin.shuffle(expected)
    assert [data.next_train(0) and data.last_view for _ in range(VIEWS)] == expected
    data.observe(torch.tensor(1.0))
    assert data._selector is None


def pipeline(scene: Path, **model: Any) -> EvosViewsPipeline:
    config = EvosViewsPipelineConfig(datamanager=options(scene), model=StandInConfig(**model))
    torch.manual_seed(0)
    return config.setup(device="cpu", test_mode="val", world_size=1, local_rank=0)


def trained(one: EvosViewsPipeline, steps: range) -> list[int]:
    optimizer = torch.optim.SGD(one.model.parameters(), lr=0.5)
    drawn = []
    for step in steps:
        _, losses, _ = one.get_train_loss_dict(step)
        optimizer.zero_grad()
        losses["rgb_loss"].backward()
        optimizer.step()
        drawn.append(one.datamanager.last_view)
    return drawn


def test_a_resumed_choice_of_views_goes_on_exactly(scene):
    whole = pipeline(scene)
    trained(whole, range(50))
    state = whole.state_dict()
    state["_extra_state"] = torch.load(saved(state["_extra_state"], scene), weights_only=True)
    other = pipeline(scene)
    other.load_state_dict(state)
    assert trained(other, range(50, 110)) == trained(whole, range(50, 110))
    assert torch.equal(other.model.colours, whole.model.colours)
    reported = float(whole.datamanager.selector.cache.visits.sum())
    assert reported == 9 * VIEWS - 1, "an epoch's last view is reported with the next epoch"


def saved(state: Any, folder: Path) -> Path:
    torch.save(state, folder / "state.pt")
    return folder / "state.pt"


def test_schedules_last_as_long_as_the_run_and_a_resumed_one_keeps_its_length(scene):
    def begin(data: Any, steps: int) -> None:
        trainer = SimpleNamespace(config=SimpleNamespace(max_num_iterations=steps))
        attributes = TrainingCallbackAttributes(None, None, None, trainer)
        assert data.get_training_callbacks(attributes) == []

    one, other = manager(scene), manager(scene)
    begin(one, 10 * VIEWS + 1)
    assert one.selector.total_steps == 11
    other.load_view_state(one.view_state())
    begin(other, 3 * VIEWS)
    assert other.selector.total_steps == 11


def test_a_checkpoint_of_another_number_of_views_is_refused(scene, tmp_path):
    from evos_nerf.scene import SceneConfig, write_scene

    state = pipeline(scene).state_dict()["_extra_state"]
    fewer = write_scene(SceneConfig(str(tmp_path / "fewer"), views=5, size=8), quiet=True)
    with pytest.raises(InputError, match=r"checkpoint: got 12 training views; allowed: 5"):
        pipeline(fewer).set_extra_state(state)


def test_a_model_that_measures_no_psnr_is_refused(scene):
    with pytest.raises(InputError, match="model: got metrics none; allowed: psnr among them"):
        pipeline(scene, measures=False).get_train_loss_dict(0)


def test_splatfacto_is_registered_with_its_options():
    import tyro
    from nerfstudio.configs.method_configs import all_methods, method_configs

    host, ours = method_configs["splatfacto"], all_methods["evos-splatfacto"]
    data = ours.pipeline.datamanager
    assert ours.pipeline.model == host.pipeline.model and ours.optimizers == host.optimizers
    assert data.cache_images_type == host.pipeline.datamanager.cache_images_type == "uint8"
    assert isinstance(data, EvosViewsConfig) and issubclass(ours.pipeline._target, EvosViewsPipeline)
    parsed = tyro.cli(type(data), default=data, args=["--selector", "host", "--views.trim-ratio", "0.1"])
    assert (parsed.selector, parsed.views.trim_ratio) == ("host", 0.1)
