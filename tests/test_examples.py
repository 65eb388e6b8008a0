"""The examples and the README's code run as they stand, at small sizes."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def example(name):
    """The module of an example."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_plain_loop_fits_the_astronaut(capsys):
    pytest.importorskip("skimage")
    example("plain_loop").main(["--size", "64", "--steps", "120", "--device", "cpu"])
    found = dict(re.findall(r"^(\w+): ([\d.]+) dB$", capsys.readouterr().out, re.MULTILINE))
    # The mean colour alone has about 10 dB.
    assert set(found) == {"error", "uniform"} and all(float(quality) > 16 for quality in found.values())


def test_the_loop_in_the_readme_trains():
    code = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(code) == 1 and "build_selector" in code[0]
    from evos import build_field, field_config, grid

    height, width, steps, device = 16, 12, 150, "cpu"
    coords = grid((height, width))
    target = (0.5 + 0.5 * coords.prod(-1, keepdim=True)).expand(-1, 3)[None]
    field = build_field(field_config("siren", {"first_omega": 3, "omega": 10}), 2, 3, seed=0)
    optimizer = torch.optim.Adam(field.parameters(), lr=1e-3)
    names = dict(
        height=height, width=width, steps=steps, device=device, coords=coords, target=target, field=field,
        optimizer=optimizer,
    )  # fmt: skip
    before = (field(coords) - target[0]).square().mean().item()
    exec(code[0], names)
    assert names["selection"].index.shape == (1, 19)  # a tenth of 192
    assert (field(coords) - target[0]).square().mean().item() < 0.1 * before


@pytest.mark.nerf
@pytest.mark.filterwarnings("ignore")
def test_a_nerfstudio_method_of_ones_own_trains(tmp_path, capsys):
    pytest.importorskip("nerfstudio")
    module = example("nerfstudio_method")
    try:
        module.main(["--steps", "2", "--size", "16", "--views", "3", "--out", str(tmp_path)])
    finally:
        torch.set_grad_enabled(True)
    assert "rays drawn by TilesSelector" in capsys.readouterr().out
    assert len(list(tmp_path.rglob("step-000000001.ckpt"))) == 1


def test_a_folder_is_encoded_and_decoded(tmp_path, capsys):
    pytest.importorskip("safetensors")
    from evos.images import read_image, write_image
    from generalizable.main import main as train

    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(8):
        write_image(photos / f"{number}.png", torch.full((16, 16, 3), number / 8))
    words = ["model.name=pattern_composer", "data.size=16", "model.hidden_features=8", "model.rank=4", "model.width=16"]
    words += ["model.blocks=1", "model.heads=2", "model.patch=8", "train.batch=4", "train.steps=2", "device=cpu"]
    train([*words, f"data.root={photos}", f"out={tmp_path / 'run'}"])
    options = ["--run", str(tmp_path / "run"), "--input", str(photos), "--out", str(tmp_path / "out"), "--scale", "3"]
    capsys.readouterr()
    example("encode_folder").main(options)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8 and all(re.fullmatch(r"\d: \d+ numbers, [\d.]+ dB", line) for line in lines)
    assert read_image(tmp_path / "out" / "7.png").pixels.shape == (48, 48, 3)
