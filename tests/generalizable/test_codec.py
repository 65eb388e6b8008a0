"""The codec of a finished run, its tasks, and how a grid of another resolution lies over the training grid."""

import ast
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import generalizable
from evos.runs import load_checkpoint, save_checkpoint
from generalizable.codec import Codec, Variant
from generalizable.encode import main as encode
from generalizable.instances import Instance, stack
from generalizable.main import main
from generalizable.models import KINDS, Model
from generalizable.options import DataConfig, Options
from generalizable.tasks import TASKS, ImageTask, build_task
from generalizable.trainer import Trainer


@pytest.fixture
def run(tmp_path, tiny, pictures):
    """A finished run that kept a moving average of its weights."""
    main([*tiny, f"data.root={pictures}", f"out={tmp_path / 'run'}", "train.ema=0.5", "train.lr=0.01"])
    return tmp_path / "run"


class Ramp(Model):
    """A field whose values are linear in the coordinates."""

    def __init__(self, task: ImageTask) -> None:
        super().__init__(None, task.model_task)

    def encode(self, data, inner_steps=None):
        raise NotImplementedError

    def decoder(self, coords):
        slopes = torch.tensor([[2.0, 0.0, 1.0], [-5.0, 3.0, 0.5]])
        return lambda patterns: patterns["offset"][:, None] + coords @ slopes


@pytest.mark.parametrize("scale", [2, 3])
def test_a_ramp_decoded_finer_averages_to_the_ramp_of_training(scale):
    data = DataConfig(size=8)
    codec = Codec(Ramp(ImageTask(data)), Options(data=data), torch.device("cpu"))
    offset = {"offset": torch.rand(2, 3)}
    coarse = codec.decode(offset).reshape(2, 8, 8, 3)
    fine = codec.decode(offset, scale=scale).reshape(2, 8, scale, 8, scale, 3)
    assert torch.allclose(fine.mean((2, 4)), coarse, atol=1e-5)
    y, x = torch.meshgrid(*[(torch.arange(8 * scale) + 0.5) / (4 * scale) - 1] * 2, indexing="ij")
    first = offset["offset"][0, 0] + 2 * y - 5 * x
    assert torch.allclose(fine.reshape(2, 8 * scale, 8 * scale, 3)[0, ..., 0], first, atol=1e-5)


def test_a_loaded_run_measures_what_the_run_reported(run, pictures):
    codec = Codec.load(run, "cpu")
    instance = stack([codec.task.load(pictures / "09.png")])  # the tenth is held out
    with codec.evaluating():
        found = float(codec.measure(instance, Variant()))
    assert found == pytest.approx(json.loads((run / "metrics.json").read_text())["psnr"], abs=1e-6)


def test_the_moving_average_is_loaded_and_the_generator_left_alone(run):
    state = torch.get_rng_state()
    codec = Codec.load(run, "cpu")
    assert torch.equal(torch.get_rng_state(), state)
    checkpoint = load_checkpoint(run / "checkpoint.pt")
    name = "field.layers.0.weight"
    assert torch.equal(codec.model.state_dict()[name], checkpoint["ema"][f"module.{name}"])
    assert not torch.equal(codec.model.state_dict()[name], checkpoint["model"][name])


def test_decoding_builds_neither_optimizer_nor_selector(run, pictures, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a trainer was built")

    monkeypatch.setattr(Trainer, "__init__", refuse)
    monkeypatch.setattr("generalizable.trainer.build_optimizer", refuse)
    monkeypatch.setattr("generalizable.trainer.build_selector", refuse)
    encode([f"run={run}", f"input={pictures}", f"out={tmp_path / 'p.safetensors'}"])
    encode([f"run={run}", f"patterns={tmp_path / 'p.safetensors'}", f"out={tmp_path / 'out'}"])
    assert len(list((tmp_path / "out").iterdir())) == 12


def test_a_run_recorded_without_its_centres_is_refused(run, tiny, pictures, tmp_path, refused):
    words = [*tiny, f"data.root={pictures}", f"out={run}", "train.ema=0.5", "train.lr=0.01"]
    decode = [f"run={run}", f"input={pictures}", f"out={tmp_path / 'p'}"]
    assert "data.centres" in refused(*words, "data.centres=corner", "--resume")
    assert "data.centres: got corner; allowed: cell" in refused(*words, "data.centres=corner", "--eval")
    state = load_checkpoint(run / "checkpoint.pt")
    del state["centres"]
    save_checkpoint(run / "checkpoint.pt", state)
    for line in (refused(*words, "--eval"), refused(*decode, program=encode)):
        assert "data.centres: got a checkpoint recorded without it" in line
    config = json.loads((run / "config.json").read_text())
    del config["options"]["data"]["centres"]
    (run / "config.json").write_text(json.dumps(config))
    assert "recorded without data.centres" in refused(*decode, program=encode)
    assert not (tmp_path / "p").exists()


def test_a_folder_of_another_program_is_no_run(tmp_path, pictures, refused):
    for options in ({}, [], {"options": {"data": 3}}, {"options": {"data": {}}}):
        (tmp_path / "config.json").write_text(json.dumps(options))
        line = refused(f"run={tmp_path}", f"input={pictures}", f"out={tmp_path / 'p'}", program=encode)
        assert "a run of generalizable/main.py" in line


def test_every_kind_of_signal_has_a_task():
    assert set(TASKS) == set(KINDS)
    for name in TASKS:
        task = build_task(DataConfig(task=name, size=8, views=6))
        assert task.name == name == task.model_task.kind


def test_residuals_are_relative_to_the_range_of_values():
    residual = torch.tensor([[[0.5], [-2.0]]])
    assert torch.equal(build_task(DataConfig()).relative(residual), residual)
    assert torch.equal(build_task(DataConfig(task="sound")).relative(residual), residual / 2)


def test_a_view_is_decoded_through_the_rays_of_its_own_pixels(pose):
    task = build_task(DataConfig(task="views", size=8, views=6))
    signal = torch.rand(2, 6, 3, 8, 8)
    poses = torch.tensor([[pose(0.3 * i + j)[:3] for i in range(6)] for j in range(2)])
    instance = Instance(signal, poses, torch.tensor([5.0, 6.0]))
    whole = task.points(instance)
    cpu = torch.device("cpu")
    pieces = list(task.decoding_points(instance, [4, 1], 1, 2, 50, cpu))
    assert [piece.shape[1] for piece in pieces] == [50, 50, 28]
    assert torch.equal(torch.cat(pieces, 1), torch.cat([whole[:, 256:320], whole[:, 64:128]], 1))
    # Twice as fine: the four rays around a coarse pixel's centre point, on the whole, where its own ray does.
    fine = torch.cat(list(task.decoding_points(instance, [4], 2, 2, 1000, cpu)), 1)[..., 3:].reshape(2, 8, 2, 8, 2, 3)
    mean = nn.functional.normalize(fine.mean((2, 4)), dim=-1).reshape(2, 64, 3)
    assert torch.allclose(mean, whole[:, 256:320, 3:], atol=2e-3)


def test_no_module_but_the_options_asks_for_the_kind_of_signal_by_name():
    package = Path(generalizable.__file__).parent
    asked = []
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            inside = ast.walk(node) if isinstance(node, ast.Compare | ast.match_case) else ()
            if any(isinstance(part, ast.Constant) and part.value in KINDS for part in inside):
                asked.append(f"{path.relative_to(package)}:{node.lineno if isinstance(node, ast.Compare) else ''}")
    assert [place for place in asked if not place.startswith("options.py")] == []
