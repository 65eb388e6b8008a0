"""nerfstudio on today's torch and without network."""

import math
import pickle
import subprocess
import sys
import urllib.error

import numpy as np
import pytest
import torch

pytest.importorskip("nerfstudio")

from evos_nerf import compat

pytestmark = [pytest.mark.nerf, pytest.mark.filterwarnings("ignore")]


def test_checkpoints_with_numpy_scalars_are_read_without_unsafe_pickles(tmp_path):
    compat.allow_checkpoints()
    content = {"a": np.float64(0.25), "b": np.float32(0.5), "c": np.int64(7), "d": np.bool_(True)}
    torch.save(content, tmp_path / "step.ckpt")
    assert torch.load(tmp_path / "step.ckpt", map_location="cpu") == content


def test_code_in_a_checkpoint_is_still_refused(tmp_path):
    compat.allow_checkpoints()

    class Attack:
        def __reduce__(self):
            return print, ("attacked",)

    torch.save(Attack(), tmp_path / "step.ckpt")
    with pytest.raises(pickle.UnpicklingError, match="Unsupported global"):
        torch.load(tmp_path / "step.ckpt")


def test_missing_weights_are_asked_for_once_and_warned_of_once(monkeypatch):
    import torchmetrics.image.lpip as lpip

    from evos.metrics import lpips_network

    asked = []

    def no_network(*args, **kwargs):
        asked.append(args)
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", no_network)
    monkeypatch.setattr("torchvision._internally_replaced_utils.load_state_dict_from_url", no_network)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    monkeypatch.setattr(compat, "lpips_network", lpips_network)
    lpips_network.cache_clear()
    with pytest.warns(UserWarning, match="LPIPS is left out") as warned, compat.optional_lpips():
        metrics = [lpip.LearnedPerceptualImagePatchSimilarity(normalize=True) for _ in range(3)]
    lpips_network.cache_clear()
    assert len(asked) == 1 and sum("LPIPS" in str(w.message) for w in warned) == 1
    image = torch.rand(1, 3, 64, 64)
    assert all(math.isnan(float(metric(image, image))) for metric in metrics)
    assert metrics[0].state_dict() == {}


def test_an_lpips_that_is_nan_is_left_out_and_nothing_else():
    metrics = {"psnr": math.nan, "lpips": math.nan, "fine_lpips": torch.tensor(math.nan), "cc_lpips": 0.25}
    assert set(compat.without_missing_lpips(metrics)) == {"psnr", "cc_lpips"}


def test_nerfacto_in_our_pipelines_starts_and_evaluates_without_network(no_lpips_weights):
    from nerfstudio.data.scene_box import SceneBox
    from nerfstudio.models.nerfacto import NerfactoModelConfig

    config = NerfactoModelConfig(implementation="torch", log2_hashmap_size=8, num_levels=2)
    with compat.optional_lpips():
        box = SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3]))
        model = config.setup(scene_box=box, num_train_data=2, device="cpu")
    image, ones = torch.full((16, 16, 3), 0.5), torch.ones(16, 16, 1)
    outputs = {"rgb": image + 0.1, "accumulation": ones, "depth": ones}
    outputs |= {f"prop_depth_{i}": ones for i in range(config.num_proposal_iterations)}
    metrics, _ = model.get_image_metrics_and_images(outputs, {"image": image})
    assert metrics["psnr"] == pytest.approx(20.0, abs=1e-3) and math.isnan(metrics["lpips"])


def test_the_plugin_leaves_the_hosts_own_methods_their_lpips():
    code = """
import nerfstudio.configs.method_configs as methods, torchmetrics.image.lpip as lpip
import evos_nerf.methods
made = evos_nerf.methods.evos_nerfacto.config
print(lpip.LearnedPerceptualImagePatchSimilarity.__module__)
"""
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "torchmetrics.image.lpip"
