"""A tiny scene, and nerfstudio's trainer on it without a command line."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch


@pytest.fixture
def no_lpips_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """No download of AlexNet, whatever network there is."""
    monkeypatch.setattr("evos_nerf.compat.lpips_network", lambda: None)


@pytest.fixture(scope="session")
def blender_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 training and 2 test views of 16 x 16."""
    from evos_nerf.scene import SceneConfig, write_scene

    return write_scene(SceneConfig(str(tmp_path_factory.mktemp("scenes") / "blender"), views=6, size=16), quiet=True)


@pytest.fixture(scope="session")
def depth_scene(blender_scene: Path) -> Path:
    """The same views in nerfstudio's format, with a depth map each."""
    folder = blender_scene.with_name("depth")
    folder.mkdir()
    content = json.loads((blender_scene / "transforms_train.json").read_text())
    focal = 8 / np.tan(content["camera_angle_x"] / 2)
    frames = []
    for number, frame in enumerate(content["frames"]):
        np.save(folder / f"{number}.npy", np.full((16, 16), 4000, np.float32))
        image = str(blender_scene / f"{frame['file_path']}.png")
        frames.append({**frame, "file_path": image, "depth_file_path": f"{number}.npy"})
    intrinsics = {"fl_x": focal, "fl_y": focal, "cx": 8, "cy": 8, "w": 16, "h": 16}
    (folder / "transforms.json").write_text(json.dumps({**intrinsics, "camera_model": "OPENCV", "frames": frames}))
    return folder


SMALL = {
    "log2_hashmap_size": 10,
    "num_levels": 2,
    "hidden_dim": 8,
    "hidden_dim_color": 8,
    "num_proposal_samples_per_ray": (8, 4),
    "num_nerf_samples_per_ray": 4,
    "num_coarse_samples": 4,
    "num_importance_samples": 4,
    "init_resolution": 8,
    "final_resolution": 8,
    "num_samples": 4,
    "num_uniform_samples": 8,
}


@pytest.fixture
def method(blender_scene: Path, depth_scene: Path, tmp_path: Path, no_lpips_weights: None) -> Callable[..., Any]:
    """The config of a method, made small, on the tiny scene: ``method(name, **options of the pixel sampler)``."""
    from nerfstudio.configs.method_configs import all_methods
    from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig

    from evos.selection import TilesConfig

    def make(name: str, **options: Any) -> Any:
        config = copy.deepcopy(all_methods[name])
        data = config.pipeline.datamanager
        if "depth" in name:
            data.data, data.dataparser.eval_mode, data.dataparser.eval_interval = depth_scene, "interval", 3
        else:
            data.data, data.dataparser = blender_scene, BlenderDataParserConfig()
        data.train_num_rays_per_batch = data.eval_num_rays_per_batch = 32
        for key, value in {"tiles": TilesConfig(warmup_steps=2), "tile_side": 4, **options}.items():
            setattr(data.pixel_sampler, key, value)
        for key, value in SMALL.items():
            if hasattr(config.pipeline.model, key):
                setattr(config.pipeline.model, key, value)
        config.output_dir, config.timestamp, config.vis = tmp_path, "run", "tensorboard"
        config.machine.device_type = "cpu"
        config.logging.local_writer.enable = False
        config.steps_per_eval_batch = config.steps_per_eval_image = config.steps_per_save = 0
        config.set_experiment_name()
        return config

    return make


@pytest.fixture
def train() -> Callable[..., Any]:
    """A finished trainer: ``train(config, steps)``."""
    from nerfstudio.scripts.train import _set_random_seed
    from nerfstudio.utils import profiler, writer

    def run(config: Any, steps: int) -> Any:
        writer.EVENT_WRITERS.clear()
        writer.EVENT_STORAGE.clear()
        writer.GLOBAL_BUFFER.clear()
        profiler.PROFILER.clear()
        config.max_num_iterations = steps
        config.save_config()
        _set_random_seed(config.machine.seed)
        trainer = config.setup()
        trainer.setup()
        trainer.train()
        return trainer

    yield run
    torch.set_grad_enabled(True)
