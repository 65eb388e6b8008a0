"""TinyNeRF in nerfstudio: its derivatives against its own cameras' neighbours, and the method as a user meets it."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

pytest.importorskip("nerfstudio")

from nerfstudio.cameras.rays import RayBundle

from evos.derivatives import spatial_gradient
from evos.errors import InputError
from evos.selection import TilesConfig
from evos_nerf.llff import LlffDataParserConfig
from evos_nerf.rendering import WithTangents, pinhole_tangents
from evos_nerf.sobolev import SobolevConfig
from evos_nerf.tiny_nerf import TinyNerfModelConfig

pytestmark = [pytest.mark.nerf, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    """4 views of 16 x 24 that look along -z from about the origin at the same smooth picture."""
    folder = tmp_path_factory.mktemp("llff")
    generator = np.random.default_rng(0)
    small = PIL.Image.fromarray(generator.integers(0, 256, (2, 3, 3), dtype=np.uint8))
    rows = []
    for number in range(4):
        # LLFF's columns: down, right, backward, position, (height, width, focal).
        matrix = np.stack([[0, -1, 0], [1, 0, 0], [0, 0, 1], 0.02 * generator.normal(size=3), [16, 24, 20]], axis=1)
        rows.append([*matrix.flatten(), 2.0, 10.0])
        (folder / "images").mkdir(exist_ok=True)
        small.resize((24, 16)).save(folder / "images" / f"{number}.png")
    np.save(folder / "poses_bounds.npy", np.array(rows))
    return folder


@pytest.fixture
def config(scene, tmp_path, monkeypatch):
    """The method's config, made small, on the tiny scene."""
    from nerfstudio.configs.method_configs import all_methods

    from evos_nerf.methods import sobolev_nerf

    # As if installed: an environment may be older than the method.
    monkeypatch.setitem(all_methods, "sobolev-nerf", sobolev_nerf.config)
    monkeypatch.setattr("evos.metrics.lpips_network", lambda: None)

    def make(name="run"):
        config = copy.deepcopy(sobolev_nerf.config)
        data, model = config.pipeline.datamanager, config.pipeline.model
        data.data, data.dataparser.eval_interval = scene, 2
        data.train_num_rays_per_batch = data.eval_num_rays_per_batch = 32
        data.pixel_sampler.tile_side = 4
        model.layers, model.hidden_features, model.samples = 2, 16, 8
        config.output_dir, config.timestamp, config.vis = tmp_path, name, "tensorboard"
        config.machine.device_type = "cpu"
        config.logging.local_writer.enable = False
        config.steps_per_eval_batch = config.steps_per_eval_image = config.steps_per_save = 0
        config.set_experiment_name()
        return config

    return make


@pytest.fixture
def pipeline(config):
    def make(**options):
        made = config()
        for key, value in options.items():
            setattr(made.pipeline, key, value)
        torch.manual_seed(0)
        return made.pipeline.setup(device="cpu", test_mode="val")

    return make


def test_rays_turn_as_nerfstudios_do(pipeline):
    cameras = pipeline().datamanager.train_dataset.cameras
    coords, index = torch.tensor([[3.5, 7.5], [9.5, 20.5]]), torch.tensor([[0], [1]])

    def directions(shift):
        rays = cameras.generate_rays(index, coords=coords + torch.tensor(shift))
        return rays.directions * rays.metadata["directions_norm"]

    focal = torch.cat([cameras.fx[index[:, 0]], cameras.fy[index[:, 0]]], dim=-1)
    tangents = pinhole_tangents(cameras.camera_to_worlds[index[:, 0], :, :3], focal)
    for axis, shift in enumerate([[4.0, 0.0], [0.0, 4.0]]):  # affine: any step gives the derivative
        torch.testing.assert_close(tangents[axis], (directions(shift) - directions([0.0, 0.0])) / 4, atol=1e-6, rtol=0)


@pytest.mark.parametrize("activation", ["relu", "sine"])
def test_the_derivative_is_that_of_colours_between_pixels(activation, pipeline):
    one = pipeline(model=TinyNerfModelConfig(activation=activation, layers=2, hidden_features=16, samples=8))
    one.model.double().eval()
    index = torch.tensor([[0], [1]])
    rays = one.datamanager.train_dataset.cameras.generate_rays(index, coords=torch.tensor([[3.5, 7.5], [9.5, 20.5]]))
    rays.origins, rays.directions = rays.origins.double(), rays.directions.double()
    tangents = 0.1 * torch.randn(2, 2, 3, dtype=torch.float64)

    def outputs(axis, step, **more):
        moved = rays.directions + step * tangents[:, axis]
        bundle = RayBundle(rays.origins, moved, rays.pixel_area)
        bundle.metadata = {"directions_norm": torch.ones(2, 1), **more}
        return one.model(bundle)

    found = outputs(0, 0.0, pixel_tangents=tangents)["rgb_by_pixel"]
    differences = [(outputs(axis, 1e-6)["rgb"] - outputs(axis, -1e-6)["rgb"]) / 2e-6 for axis in (0, 1)]
    torch.testing.assert_close(found, torch.stack(differences, dim=-1), atol=1e-7, rtol=1e-4)
    assert found.abs().max() > 1e-3


def test_a_wall_is_as_far_as_it_is(pipeline):
    one = pipeline()
    model = one.model.eval()
    model.config.samples = 512
    camera = one.datamanager.train_dataset.cameras[0]

    def wall(points, views):  # at 3 units along y: third NDC coordinate 1 - 2 near / 3
        raw = torch.zeros(*points.value.shape[:-1], 4)
        raw[..., 3] = torch.where(points.value[..., 2] < 1 - 2 / 3, -60.0, 1e4)
        return WithTangents.constant(raw)

    model.field = None
    object.__setattr__(model, "field", wall)
    rays = camera.generate_rays(0, coords=torch.tensor([[8.0, 12.0], [2.5, 20.5]]))
    outputs = model(rays)
    reached = rays.origins + outputs["depth"] * rays.directions
    torch.testing.assert_close(reached[:, 1], torch.full((2,), 3.0), atol=0.02, rtol=0)
    torch.testing.assert_close(outputs["rgb"], torch.full((2, 3), 0.5))
    torch.testing.assert_close(outputs["accumulation"], torch.ones(2, 1))


def test_the_loss_is_that_of_colours_and_derivatives_at_every_fourth_pixel(pipeline):
    one = pipeline(sobolev=SobolevConfig(lambda_der=2.0, der_operator="scharr"))
    outputs, losses, metrics = one.get_train_loss_dict(0)
    batch = one.datamanager.last_batch
    assert not (batch["indices"][:, 1:] % 4).any() and len(batch["indices"].unique(dim=0)) > 20
    rays = one.datamanager.rays
    images = torch.stack([rays.picture(number) for number in range(len(rays.sizes))]).permute(0, 3, 1, 2)
    image, y, x = batch["indices"].unbind(-1)
    target = spatial_gradient(images, "scharr").permute(0, 3, 4, 1, 2)[image, y, x]
    expected = 2 * (outputs["rgb_by_pixel"] - target).square().sum((1, 2)).mean()
    assert losses["derivative_loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    error = (outputs["rgb"] - images[image, :, y, x]).square().mean()
    assert losses["rgb_loss"].item() == pytest.approx(error.item(), rel=1e-5)
    assert metrics["psnr"].item() == pytest.approx(-10 * math.log10(error.item()), rel=1e-5)


@pytest.mark.parametrize("supervision", ["val", "der"])
def test_supervision_may_be_of_one_kind_only(supervision, pipeline):
    outputs, losses, _ = pipeline(sobolev=SobolevConfig(supervision, 1.0)).get_train_loss_dict(0)
    assert set(losses) == {"rgb_loss" if supervision == "val" else "derivative_loss"}
    assert ("rgb_by_pixel" in outputs) == (supervision == "der")


def test_a_held_out_view_is_learnt_with_evos_rays(config, train):
    made = config()
    made.pipeline.datamanager.pixel_sampler.selector = "tiles"
    made.pipeline.datamanager.pixel_sampler.tiles = TilesConfig(warmup_steps=2)
    made.optimizers["fields"]["optimizer"].lr = 1e-2
    made.optimizers["fields"]["scheduler"] = None
    before = train(made, 1).pipeline.get_average_eval_image_metrics()
    pipeline = train(made, 100).pipeline
    assert pipeline.get_average_eval_image_metrics()["psnr"] > before["psnr"] + 2
    assert "survivor_ratio" in pipeline.sampler.metrics()


def test_the_method_trains_saves_resumes_bit_for_bit_evaluates_and_renders(config, train, tmp_path):
    from nerfstudio.scripts.eval import ComputePSNR
    from nerfstudio.scripts.render import DatasetRender

    whole = config("whole")
    whole.steps_per_save, whole.save_only_latest_checkpoint = 2, False
    first = train(whole, 5)
    part = config("part")
    part.load_dir, part.load_step = first.checkpoint_dir, 2
    second = train(part, 2)
    names = [trainer.checkpoint_dir / "step-000000004.ckpt" for trainer in (first, second)]
    one, other = (torch.load(name)["pipeline"] for name in names)
    weights = [key for key in one if key.startswith("_model.")]
    assert len(weights) > 8 and all(torch.equal(one[key], other[key]) for key in weights)

    saved = first.base_dir / "config.yml"
    ComputePSNR(load_config=saved, output_path=tmp_path / "eval.json").main()
    results = json.loads((tmp_path / "eval.json").read_text())["results"]
    assert 3 < results["psnr"] < 40 and -1 < results["ssim"] < 1
    DatasetRender(load_config=saved, output_path=tmp_path / "renders", rendered_output_names=["rgb"]).main()
    assert len(list((tmp_path / "renders" / "test" / "rgb").glob("*.jpg"))) == 2


def test_a_scene_of_another_kind_leaves_nothing_behind(config, blender_scene, tmp_path, capsys):
    from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig

    made = config()
    made.pipeline.datamanager.data, made.pipeline.datamanager.dataparser = blender_scene, BlenderDataParserConfig()
    with pytest.raises(SystemExit) as stopped:
        made.save_config()
    assert stopped.value.code == 2 and "allowed: llff-data" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_method_has_the_papers_settings():
    from evos_nerf.methods import sobolev_nerf

    config = sobolev_nerf.config
    model, data = config.pipeline.model, config.pipeline.datamanager
    assert (model.layers, model.hidden_features, model.samples, model.activation) == (8, 256, 128, "relu")
    assert (data.train_num_rays_per_batch, data.factor, config.max_num_iterations) == (1024, 4, 400_000)
    assert config.pipeline.sobolev == SobolevConfig("val_der", 1.0, "sobel")
    assert isinstance(data.dataparser, LlffDataParserConfig) and data.dataparser.eval_interval == 8


@pytest.mark.parametrize("option", ["layers", "hidden_features", "samples"])
def test_sizes_that_make_no_network_are_refused(option):
    with pytest.raises(InputError, match=option):
        TinyNerfModelConfig(**{option: 0})
