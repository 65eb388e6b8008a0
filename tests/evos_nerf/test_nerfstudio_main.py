"""Another nerfstudio than the installed one: its main branch, whose version string is the same.

    EVOS_NERFSTUDIO=DIR pytest tests/evos_nerf/test_nerfstudio_main.py

DIR is put first on the path (several joined by colons: main of July 2025 also needs a Pillow below 11.3).
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.nerf, pytest.mark.slow]

TWO_STEPS = """
import copy, sys
from pathlib import Path
import nerfstudio
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
config = copy.deepcopy(all_methods["evos-nerfacto"])
data = config.pipeline.datamanager
data.data, data.dataparser = Path(sys.argv[1]), BlenderDataParserConfig()
data.train_num_rays_per_batch = data.eval_num_rays_per_batch = 32
config.pipeline.model.num_levels, config.pipeline.model.log2_hashmap_size = 2, 10
config.output_dir, config.timestamp, config.vis = Path(sys.argv[2]), "run", "tensorboard"
config.machine.device_type, config.max_num_iterations = "cpu", 2
config.set_timestamp()
config.save_config()
trainer = config.setup(local_rank=0, world_size=1)
trainer.setup()
trainer.train()
print("nerfstudio:", nerfstudio.__file__, "step:", trainer.pipeline.selection.step)
"""


def test_evos_nerfacto_trains_two_steps_on_another_nerfstudio(blender_scene, tmp_path):
    if not (other := os.environ.get("EVOS_NERFSTUDIO")):
        pytest.skip("EVOS_NERFSTUDIO names no other nerfstudio")
    path = os.pathsep.join([other, str(Path(__file__).parents[2])])
    words = [sys.executable, "-c", TWO_STEPS, str(blender_scene), str(tmp_path)]
    done = subprocess.run(words, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1].split()
    assert any(last[1].startswith(folder) for folder in other.split(os.pathsep)) and last[-1] == "2"
