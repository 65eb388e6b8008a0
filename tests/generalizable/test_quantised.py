"""Quantised patterns: steps, the entropy code, files of few bits."""

import math
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from evos.errors import InputError
from generalizable.base import Task
from generalizable.codec import Codec
from generalizable.encode import encode, main
from generalizable.inner import outer_loss
from generalizable.main import main as train
from generalizable.models import build_model
from generalizable.models.pattern_composer import PatternComposerConfig
from generalizable.patterns import read_patterns
from generalizable.quantised import SPREAD, entropy_code, entropy_decode, fit_steps, rounded


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_a_value_is_at_most_half_a_step_from_its_level(bits):
    values = torch.randn(3, 500).clamp(-3, 3)
    steps = fit_steps(values, bits)
    levels = steps.quantise(values)
    assert int(levels.max()) == 2**bits - 1 and int(levels.min()) == 0
    assert float((steps.values(levels) - values).abs().max()) <= steps.width / 2 + 1e-6


def test_a_few_far_values_do_not_make_the_steps_coarse():
    values = torch.cat([torch.randn(10000), torch.tensor([1000.0])])
    steps = fit_steps(values, 8)
    assert steps.high == pytest.approx(float(values.mean() + SPREAD * values.std()), rel=1e-3) and steps.low > -5
    flat = fit_steps(torch.full((7,), 2.5), 5)
    assert flat.values(flat.quantise(torch.full((7,), 2.5))).tolist() == [2.5] * 7
    with pytest.raises(InputError, match="not finite"):
        fit_steps(torch.tensor([math.inf, 1.0]), 5)


@pytest.mark.parametrize("bits", [1, 5])
def test_training_rounds_as_a_file_does_and_passes_the_gradient(bits):
    values = torch.cat([torch.randn(2000), torch.tensor([50.0])]).requires_grad_()
    found = rounded(values, bits)
    steps = fit_steps(values.detach(), bits)
    torch.testing.assert_close(found, steps.values(steps.quantise(values.detach())), atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad((3 * found).sum(), values)
    assert gradient.unique().tolist() == [3.0]
    assert rounded(torch.full((4,), 2.5), bits).tolist() == [2.5] * 4


def test_the_outer_loss_sees_the_rounded_patterns():
    model = build_model(
        PatternComposerConfig(hidden_features=8, features=4, rank=2, width=8, heads=2, blocks=1, patch=4),
        Task("image", (8, 8)),
    )
    data, coords, target = torch.rand(2, 3, 8, 8), torch.rand(1, 5, 2), torch.rand(2, 5, 3)
    patterns = {name: rounded(pattern, 2) for name, pattern in model.encode(data).items()}
    expected = (model.decode(patterns, coords) - target).square().mean()
    found, _ = outer_loss(model, data, coords, target, bits=2)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, outer_loss(model, data, coords, target)[0], rtol=1e-4)


@pytest.mark.parametrize("bits", [3, 6])
def test_the_code_is_near_the_entropy(bits):
    values = torch.randn(60000)
    levels = fit_steps(values, bits).quantise(values)
    share = torch.bincount(levels.long()) / len(levels)
    entropy = -float((share[share > 0] * share[share > 0].log2()).sum())
    code = entropy_code(levels.numpy().tobytes())
    assert entropy <= 8 * len(code) / len(levels) < entropy + 0.15
    assert entropy_decode(code, len(levels)) == levels.numpy().tobytes()
    for damaged in (code[:-9], b"", b"x" * 50):
        with pytest.raises(InputError, match="a file that this program wrote"):
            entropy_decode(damaged, len(levels))


@pytest.fixture(scope="module")
def run(tmp_path_factory, request):
    words = ["--quiet", "device=cpu", "data.size=8", "train.batch=4", "train.steps=6", "model.hidden_features=32"]
    words += ["model.features=8", "model.width=16", "model.blocks=1", "model.heads=2", "model.patch=4", "model.rank=16"]
    folder = tmp_path_factory.mktemp("quantised") / "run"
    train([*words, f"data.root={request.getfixturevalue('pictures')}", f"out={folder}"])
    return folder


def test_a_file_of_few_bits_holds_the_patterns_and_is_small(run, pictures, tmp_path, capsys):
    codec = Codec.load(run, "cpu")
    exact = encode(codec, str(pictures))
    values = torch.cat([each.parts["pattern"] for each in exact.values()])
    for bits in (3, 8):
        path = tmp_path / f"{bits}.safetensors"
        main([f"run={run}", f"input={pictures}", f"out={path}", f"bits={bits}", "--quiet"])
        found = read_patterns(path, codec)
        width = fit_steps(values, bits).width
        assert list(found) == list(exact)
        for name, each in exact.items():
            assert found[name].form == each.form
            error = (found[name].parts["pattern"] - each.parts["pattern"]).abs()
            assert float(error.quantile(0.99)) <= width / 2 + 1e-6
        size = path.stat().st_size
        assert size < values.numel() * bits / 8 + 1500 and f"{size:,} bytes" in capsys.readouterr().out
    main([f"run={run}", f"patterns={tmp_path / '8.safetensors'}", f"out={tmp_path / 'out'}"])
    assert len(list((tmp_path / "out").iterdir())) == 12


def test_a_damaged_file_of_few_bits_is_one_line(run, pictures, tmp_path, refused):
    main([f"run={run}", f"input={pictures}", f"out={tmp_path / 'good'}", "bits=5", "--quiet"])
    tensors = load_file(tmp_path / "good")
    with safe_open(tmp_path / "good", "pt") as file:
        metadata = file.metadata()
    for name, tensor in tensors.items():
        for damaged in (tensor[:-3], tensor.flip(0), tensor + 1):
            save_file(tensors | {name: damaged.contiguous()}, tmp_path / "bad", metadata)
            words = [f"run={run}", f"patterns={tmp_path / 'bad'}", f"out={tmp_path / 'out'}"]
            assert re.search("a file that this program wrote", refused(*words, program=main))
    assert "bits: got 9; allowed: at least 1 and at most 8" in refused(
        f"run={run}", f"input={pictures}", f"out={tmp_path / 'x'}", "bits=9", program=main
    )
