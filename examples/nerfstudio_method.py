"""A nerfstudio method of your own whose rays go where the error is.

    python examples/nerfstudio_method.py --steps 200

To train it with ns-train, name ``method`` in your package's entry points, group ``nerfstudio.method_configs``:
``my-method = "my_package.my_module:method"``. Here it is trained on a small ray-traced scene, without a command line.
"""

import argparse
import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nerfstudio.configs.method_configs import all_methods
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig

from evos_nerf.methods import evos_method
from evos_nerf.scene import SceneConfig, write_scene

# Any method whose data manager is VanillaDataManagerConfig will do; here a smaller nerfacto.
host: Any = copy.deepcopy(all_methods["nerfacto"])
host.pipeline.model.log2_hashmap_size = 15
host.pipeline.model.num_proposal_samples_per_ray = (48, 32)
host.pipeline.model.num_nerf_samples_per_ray = 24
host.pipeline.datamanager.train_num_rays_per_batch = 512

method = evos_method(host, "my-method", "A small nerfacto whose rays go where the error is.")


def train(scene: Path, out: Path, steps: int, device: str) -> Any:
    """nerfstudio's trainer after ``steps`` steps on a Blender scene."""
    config: Any = copy.deepcopy(method.config)
    config.pipeline.datamanager.data = scene
    config.pipeline.datamanager.dataparser = BlenderDataParserConfig()
    config.output_dir, config.timestamp, config.vis = out, "run", "tensorboard"
    config.max_num_iterations, config.machine.device_type = steps, device
    config.steps_per_eval_batch = config.steps_per_eval_image = 0
    config.set_experiment_name()
    config.save_config()
    trainer = config.setup()
    trainer.setup()
    trainer.train()
    return trainer


def main(argv: Sequence[str] | None = None) -> None:
    """The program."""
    parser = argparse.ArgumentParser(description="Train a custom nerfstudio method on a ray-traced scene.")
    parser.add_argument("--steps", type=int, default=200, help="training steps")
    parser.add_argument("--size", type=int, default=64, help="side of the scene's views in pixels")
    parser.add_argument("--views", type=int, default=20, help="training views")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--out", type=Path, default=Path("runs/nerfstudio_method"), help="folder of the run")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        scene = write_scene(SceneConfig(str(Path(folder) / "scene"), args.views, args.size), quiet=True)
        trainer = train(scene, args.out, args.steps, args.device)
    sampler = trainer.pipeline.datamanager.train_pixel_sampler
    name = type(sampler.selector).__name__
    print(f"{args.steps} steps, rays drawn by {name}; checkpoint in {trainer.checkpoint_dir}")


if __name__ == "__main__":
    main()
