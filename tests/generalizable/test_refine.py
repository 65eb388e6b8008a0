"""Patterns fitted to their signals by gradient steps, and to the bits of their file."""

import pytest
import torch

from generalizable.codec import Codec
from generalizable.encode import decode, encode, main, read_signals, refine
from generalizable.inner import predict
from generalizable.inner import refine as refine_patterns
from generalizable.instances import stack
from generalizable.main import main as train
from generalizable.patterns import Encoded, fit_levels, read_patterns
from generalizable.quantised import Steps

SMALL = ["--quiet", "device=cpu", "train.batch=4", "train.steps=6", "model.hidden_features=16", "model.features=8"]
HYPER = ["model.width=16", "model.blocks=1", "model.heads=2", "model.patch=4", "model.rank=8"]
KINDS = {
    "image": ["data.size=8", *HYPER],
    "sound": ["data.size=8", "data.task=sound", "data.seconds=0.1", "data.rate=4000", *HYPER],
    "views": ["data.size=8", "data.task=views", "data.views=6", "model.samples=4", "train.inner_rays=64", *HYPER],
    "inner": ["data.size=8", "model=meta_pattern_composer", "model.rank=8"],
}


@pytest.fixture(scope="module")
def codec_of(tmp_path_factory, request):
    """codec_of(kind) -> the codec of a run, trained once, and the folder of its signals."""
    made = {}

    def get(kind):
        root = request.getfixturevalue({"sound": "sounds", "views": "scenes"}.get(kind, "pictures"))
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind) / "run"
            train([*SMALL, *KINDS[kind], f"data.root={root}", f"out={made[kind]}"])
        return Codec.load(made[kind], "cpu"), root

    return get


def pieces_of(codec, root):
    return [(name, instance) for name, _, some in read_signals(codec, str(root)) for instance in some]


def rounded(signals, levels):
    return {
        name: Encoded({part: levels[part].rounded(pattern) for part, pattern in each.parts.items()}, each.form)
        for name, each in signals.items()
    }


def errors(codec, signals, root):
    """Mean squared error of each instance on what its pattern was made from."""
    views = codec.task.support_views(codec.variants[-1].support_views)
    found, taken = [], dict.fromkeys(signals, 0)
    for name, instance in pieces_of(codec, root):
        row = {part: pattern[taken[name]][None] for part, pattern in signals[name].parts.items()}
        taken[name] += 1
        with codec.evaluating() as model:
            data = codec.task.support_points(stack([instance]), views, 10**6, 0.0)
            found.append(float((predict(model, row, data["coords"]) - data["target"]).square().mean()))
    return torch.tensor(found)


@pytest.mark.parametrize("kind", KINDS)
def test_every_instance_comes_nearer_to_its_signal(codec_of, kind):
    codec, root = codec_of(kind)
    made = encode(codec, str(root))
    weights = codec.fingerprint
    better = refine(codec, made, pieces_of(codec, root), 60, 0.1)
    before, after = errors(codec, made, root), errors(codec, better, root)
    assert (after < before).all() and after.mean() < 0.9 * before.mean()
    assert codec.fingerprint == weights
    assert all(parameter.grad is None for parameter in codec.model.parameters())


def test_no_step_changes_nothing_and_a_batch_of_any_size_gives_the_same(codec_of):
    codec, root = codec_of("image")
    made = encode(codec, str(root))
    for name, each in refine(codec, made, pieces_of(codec, root), 0, 0.1).items():
        assert torch.equal(each.parts["pattern"], made[name].parts["pattern"]) and each.form == made[name].form
    one, five = (refine(codec, made, pieces_of(codec, root), 5, 0.1, batch=size) for size in (1, 5))
    for name in made:
        torch.testing.assert_close(one[name].parts["pattern"], five[name].parts["pattern"], rtol=1e-4, atol=1e-5)


def test_a_pattern_is_fitted_to_the_bits_of_its_file(codec_of, tmp_path):
    codec, root = codec_of("image")
    made = encode(codec, str(root))
    levels = fit_levels(made, 3)
    path = tmp_path / "p.safetensors"
    words = [f"run={codec.options.run.out}", f"input={root}", f"out={path}", "--quiet"]
    main([*words, "bits=3", "refine=60", "refine_lr=0.1"])
    read = read_patterns(path, codec)
    before, after = errors(codec, rounded(made, levels), root).mean(), errors(codec, read, root).mean()
    assert after < 0.9 * before
    # What is in the file is what the steps were taken for: the same levels.
    of_file = refine(codec, made, pieces_of(codec, root), 60, 0.1, levels)
    for name, each in read.items():
        torch.testing.assert_close(each.parts["pattern"], levels["pattern"].rounded(of_file[name].parts["pattern"]))
        assert decode(codec, each, 1).isfinite().all()
    # Fitted without regard for the bits and then rounded it is worse.
    blind = refine(codec, made, pieces_of(codec, root), 60, 0.1)
    assert after < errors(codec, rounded(blind, levels), root).mean()


def test_levels_round_to_the_nearest_and_pass_the_gradient():
    steps = Steps(2, -1.0, 2.0)
    values = torch.tensor([-3.0, -0.4, 0.6, 9.0], requires_grad=True)
    found = steps.rounded(values)
    assert found.tolist() == [-1.0, 0.0, 1.0, 2.0]
    (gradient,) = torch.autograd.grad(found.sum(), values)
    assert gradient.tolist() == [1.0] * 4


def test_each_step_takes_points_of_its_own_and_the_first_moves_by_the_rate(codec_of):
    codec, _ = codec_of("image")
    seen, start = [], {"pattern": torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0))}

    def points():
        seen.append(len(seen))
        return {"coords": torch.zeros(1, 4, 2), "target": torch.full((2, 4, 3), 0.25)}

    with codec.evaluating() as model:
        whole = refine_patterns(model, start, points, 40, 0.05)
        short = refine_patterns(model, start, points, 1, 0.05)
    assert len(seen) == 41
    # Adam's first step is the rate, in deviations of each instance's numbers.
    spread = start["pattern"].std((1, 2), correction=0, keepdim=True)
    moved = (short["pattern"] - start["pattern"]).abs() / spread
    assert float(moved.max()) == pytest.approx(0.05, rel=1e-3)
    assert not torch.equal(whole["pattern"], start["pattern"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["refine=-1"], "refine: got -1; allowed: at least 0"),
        (["refine_lr=0"], "refine_lr: got 0.0; allowed: above 0"),
        (["patterns=p", "refine=3"], "an option to encode, without patterns="),
    ],
)
def test_mistakes_are_one_line(codec_of, tmp_path, refused, words, message):
    codec, root = codec_of("image")
    inputs = [] if "patterns=p" in words else [f"input={root}"]
    assert message in refused(f"run={codec.options.run.out}", *inputs, f"out={tmp_path / 'x'}", *words, program=main)
