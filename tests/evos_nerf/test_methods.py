"""The methods as a user meets them: listed, trained, saved, resumed, evaluated, rendered."""

import copy
import json
import math
from importlib.metadata import entry_points

import pytest
import torch
import yaml

pytest.importorskip("nerfstudio")

from evos.errors import InputError
from evos_nerf.datamanager import EvosDataManager, EvosDataManagerConfig
from evos_nerf.methods import HOSTS, EvosTrainerConfig, evos_method
from evos_nerf.pipeline import EvosDynamicBatchPipeline, EvosPipeline
from evos_nerf.pixel_sampler import EvosPixelSamplerConfig

pytestmark = [pytest.mark.nerf, pytest.mark.filterwarnings("ignore")]

NAMES = [f"evos-{host}" for host, _ in HOSTS.values()]
ON_CPU = [name for name in NAMES if "ngp" not in name and "splat" not in name]
OURS = {"factor", "_target", "pixel_sampler"}


def test_nerfstudio_lists_every_method():
    from nerfstudio.configs.method_configs import all_descriptions, all_methods

    found = {entry.name for entry in entry_points(group="nerfstudio.method_configs")}
    if not found >= set(NAMES):
        pytest.skip("evos is not installed: pip install -e .[nerf]")
    assert set(all_methods) >= set(NAMES)
    assert all("EVOS" in all_descriptions[name] for name in NAMES)


@pytest.mark.parametrize("entry_point", [name for name in HOSTS if name != "evos_splatfacto"])  # see test_views.py
def test_a_method_is_its_host_with_our_parts(entry_point):
    from nerfstudio.configs.method_configs import method_configs
    from nerfstudio.data.datasets.depth_dataset import DepthDataset

    import evos_nerf.methods

    host = method_configs[HOSTS[entry_point][0]]
    config = getattr(evos_nerf.methods, entry_point).config
    assert config.method_name == f"evos-{HOSTS[entry_point][0]}"
    assert config.pipeline._target is (EvosDynamicBatchPipeline if "ngp" in entry_point else EvosPipeline)
    data, theirs = config.pipeline.datamanager, host.pipeline.datamanager
    assert isinstance(data.pixel_sampler, EvosPixelSamplerConfig)
    assert data._target == (EvosDataManager[DepthDataset] if "depth" in entry_point else EvosDataManager)
    kept = {key: value for key, value in vars(data).items() if key not in OURS | {"dataparser", "collate_fn"}}
    assert kept == {key: vars(theirs)[key] for key in kept}
    assert data.dataparser == theirs.dataparser and data.dataparser is not theirs.dataparser
    assert config.pipeline.model == host.pipeline.model and config.pipeline.model is not host.pipeline.model
    ours = {key: value for key, value in vars(config).items() if key not in ("pipeline", "method_name")}
    assert ours == {key: vars(host)[key] for key in ours}


def test_the_config_survives_yaml(method):
    config = method("evos-depth-nerfacto", selector="soft")
    again = yaml.load(yaml.dump(config), Loader=yaml.Loader)
    assert isinstance(again, EvosTrainerConfig)
    assert again.pipeline.datamanager.pixel_sampler == config.pipeline.datamanager.pixel_sampler
    assert again.pipeline.datamanager._target == config.pipeline.datamanager._target


def test_options_are_on_the_command_line():
    import tyro

    arguments = ["--pixel-sampler.selector", "soft", "--pixel-sampler.soft.alpha", "0.25", "blender-data"]
    config = tyro.cli(EvosDataManagerConfig, args=[*arguments, "--scale-factor", "2.0"])
    assert config.pixel_sampler.selector == "soft" and config.pixel_sampler.soft.alpha == 0.25
    assert config.dataparser.scale_factor == 2.0


@pytest.mark.parametrize("wrong", ["--pixel-sampler.selector=full", "--pixel-sampler.tiles.keep-ratio=2"])
def test_a_wrong_option_ends_in_a_message(wrong, capsys):
    import tyro

    with pytest.raises(SystemExit) as stopped:
        tyro.cli(EvosDataManagerConfig, args=[wrong])
    assert stopped.value.code == 2
    assert "keep_ratio: got 2.0" in capsys.readouterr().err or "full" in wrong


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"patch_size": 4}, "patch_size"),
        ({"factor": 0}, "factor"),
        ({"train_num_rays_per_batch": 0}, "train_num_rays_per"),
    ],
)
def test_what_cannot_be_selected_from_is_refused(options, name):
    with pytest.raises(InputError, match=name):
        EvosDataManagerConfig(**options)


def test_a_host_is_left_as_it_was():
    from nerfstudio.configs.method_configs import method_configs

    host = copy.deepcopy(method_configs["tensorf"])
    assert evos_method(host, "evos-tensorf", "mine").config.pipeline._target is EvosPipeline
    assert host == method_configs["tensorf"]


def test_instant_ngp_is_ready_but_for_its_model(method):
    config = method("evos-instant-ngp")
    data = config.pipeline.datamanager.setup(device="cpu", test_mode="val")
    data.train_pixel_sampler.set_num_rays_per_batch(48)  # as its pipeline does in every step
    rays, batch = data.next_train(0)
    assert len(rays) == len(batch["image"]) == 48
    if not torch.cuda.is_available():
        pytest.skip("nerfacc's occupancy grid needs CUDA")


@pytest.mark.parametrize("entry_point, library", [("evos_instant_ngp", "nerfacc"), ("evos_splatfacto", "gsplat")])
def test_a_method_of_the_gpu_is_refused_on_the_cpu_before_anything_is_written(
    entry_point, library, blender_scene, tmp_path, capsys
):
    from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig

    import evos_nerf.methods

    config = copy.deepcopy(getattr(evos_nerf.methods, entry_point).config)
    config.output_dir, config.data, config.machine.device_type = tmp_path, blender_scene, "cpu"
    config.pipeline.datamanager.dataparser = BlenderDataParserConfig(data=blender_scene)
    config.set_experiment_name()
    with pytest.raises(SystemExit) as stop:
        config.save_config()
    assert stop.value.code == 2 and not list(tmp_path.iterdir())
    line = f"error: --machine.device-type: got cpu; allowed: cuda, for which alone {library} has kernels"
    assert line in capsys.readouterr().err


@pytest.mark.parametrize("name", ON_CPU)
def test_a_method_trains_saves_resumes_evaluates_and_renders(name, method, train, tmp_path):
    from nerfstudio.scripts.eval import ComputePSNR
    from nerfstudio.scripts.render import DatasetRender

    first = train(method(name), 2)
    config = method(name)
    config.timestamp, config.load_dir = "resumed", first.checkpoint_dir
    second = train(config, 2)
    assert second.step == 3 and (second.checkpoint_dir / "step-000000003.ckpt").exists()
    assert all(scheduler.last_epoch == 4 for scheduler in second.optimizers.schedulers.values())
    assert second.pipeline.selection.step == 4

    saved = second.base_dir / "config.yml"
    ComputePSNR(load_config=saved, output_path=tmp_path / "eval.json").main()
    results = json.loads((tmp_path / "eval.json").read_text())["results"]
    assert math.isfinite(results.get("psnr", results.get("fine_psnr"))) and not any("lpips" in key for key in results)
    _, images = second.pipeline.get_eval_image_metrics_and_images(3)
    assert {"evos_drawn", "evos_error"} <= set(images)

    names = ["rgb_fine" if name in ("evos-vanilla-nerf", "evos-mipnerf") else "rgb"]
    DatasetRender(load_config=saved, output_path=tmp_path / "renders", rendered_output_names=names).main()
    assert len(list((tmp_path / "renders" / "test" / names[0]).glob("*.jpg"))) == 2


def test_a_bad_scene_leaves_nothing_behind(method, blender_scene, tmp_path, capsys):
    config = method("evos-nerfacto")
    config.pipeline.datamanager.data = blender_scene / "nothing"
    with pytest.raises(SystemExit) as stopped:
        config.save_config()
    assert stopped.value.code == 2 and capsys.readouterr().err.startswith("error: --data: got")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_selector_ends_in_one_line(method, train, capsys):
    first = train(method("evos-nerfacto"), 1)
    config = method("evos-nerfacto", selector="uniform")
    config.timestamp, config.load_dir = "resumed", first.checkpoint_dir
    with pytest.raises(SystemExit) as stopped:
        train(config, 2)
    assert stopped.value.code == 2
    assert (
        capsys.readouterr().err.splitlines()[-1] == "error: selector: got uniform; allowed: tiles, as in the checkpoint"
    )


def test_the_written_config_names_the_implementation_that_runs(method, train):
    trainer = train(method("evos-nerfacto"), 1)
    saved = yaml.load((trainer.base_dir / "config.yml").read_text(), Loader=yaml.Loader)
    assert saved.pipeline.model.implementation == "torch"
