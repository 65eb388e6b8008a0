"""A trunk that architecture search found encodes photos for a generalizable field."""

from pathlib import Path

import pytest
import torch

from evonas.exporting import Encoder, write_encoder
from evonas.space import Space, SpaceConfig
from evonas.supernet import DenseHead, Network
from evos.config import build_config
from evos.errors import InputError
from generalizable.models import MODELS, Task, build_model

SPACE = Space(SpaceConfig(depths="[1, 1, 2]", heads="[2, 2, 2]", width=8))
OPTIONS = {"width": 24, "heads": 2, "blocks": 2, "rank": 6, "hidden_features": 16, "features": 12}


def network() -> Network:
    torch.manual_seed(0)
    return Network(SPACE, DenseHead, SPACE.smallest)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("export") / "encoder.pt2"
    write_encoder(path, network(), (24, 32))
    return path


def model_of(encoder: object, task: Task):
    return build_model(build_config(MODELS["pattern_composer"][0], {**OPTIONS, "encoder": f"{encoder}"}), task)


def test_the_programs_features_are_the_trunks(encoder):
    model = model_of(f"evonet:{encoder}", Task("image", (24, 32)))
    pictures = torch.rand(3, 3, 24, 32)
    with torch.no_grad():
        found = model.hypernetwork.encoder(pictures)
        expected = Encoder(network()).eval()(pictures.permute(0, 2, 3, 1)).flatten(1, 2)[:, None]
    assert found.shape == (3, 1, 12, 48) and model.hypernetwork.places.shape == (12, 24)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_trunk_trains_with_the_model_and_its_weights_are_kept(encoder):
    model = model_of(f"evonet:{encoder}", Task("image", (20, 20)))
    patterns = model.encode(torch.rand(2, 3, 20, 20))
    sum(pattern.square().sum() for pattern in patterns.values()).backward()
    trunk = [weight for name, weight in model.named_parameters() if "encoder" in name]
    assert len(trunk) > 20 and all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in trunk[:4])
    twin = model_of(f"evonet:{encoder}", Task("image", (20, 20)))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.01)
    twin.load_state_dict(model.state_dict())
    data = torch.rand(1, 3, 20, 20)
    for name, value in model.encode(data).items():
        assert torch.equal(value, twin.encode(data)[name])


@pytest.mark.parametrize(
    ("encoder", "kind", "words"),
    [
        ("resnet", "image", r"encoder: got resnet; allowed: evonet:PATH, for photos"),
        ("evonet:/none.pt2", "image", r"encoder: got /none.pt2 \(.*\); allowed: an encoder.pt2"),
        (f"evonet:{__file__}", "image", r"encoder: got .*test_transfer.py \(.*\); allowed: an encoder.pt2"),
        ("evonet:x", "sound", r"encoder: got evonet:x; allowed: evonet:PATH, for photos"),
    ],
)
def test_what_is_no_encoder_is_one_line(encoder, kind, words):
    with pytest.raises(InputError, match=words) as error:
        model_of(encoder, Task(kind, (20, 20) if kind == "image" else (400,)))
    assert "\n" not in str(error.value)


def test_a_model_with_such_an_encoder_goes_into_training_and_back(encoder):
    model = model_of(f"evonet:{encoder}", Task("image", (20, 20)))
    assert model.train().hypernetwork.encoder.training and not model.eval().hypernetwork.encoder.training
    data = torch.rand(2, 3, 20, 20)
    for name, value in model.train().encode(data).items():
        assert torch.equal(value, model.eval().encode(data)[name])
