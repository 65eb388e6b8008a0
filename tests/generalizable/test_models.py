"""The models against the papers' formulas written out (benchmarks/literal_composer.py), and what they promise."""

import math

import pytest
import torch
from einops import rearrange

from benchmarks import literal_composer
from evos.config import build_config
from evos.errors import InputError
from generalizable.inner import outer_loss
from generalizable.models import KINDS, MODELS, Task, build_model
from generalizable.models.hypernetwork import Block, HypernetworkConfig, attend, patches

SMALL = {
    "pattern_composer": {"width": 24, "heads": 2, "blocks": 2, "rank": 6},
    "meta_pattern_composer": {"rank": 6, "inner_lr": 0.05},
    "transinr": {"width": 24, "heads": 2, "blocks": 2, "groups": 4},
    "learned_init": {"inner_lr": 0.05},
    "locality_aware": {"width": 24, "heads": 2, "blocks": 2, "latents": 6, "bands": 3},
}
TASKS = {"image": Task("image", (20, 13)), "sound": Task("sound", (450,)), "views": Task("views", (2, 16, 16))}
FIELD = {"hidden_features": 16, "features": 12}
MODEL_TASKS = [(name, kind) for name in MODELS for kind in ("image", "sound")] + [
    (name, "views") for name in ("pattern_composer", "transinr", "locality_aware")
]


def small_model(name, kind="image", **options):
    config = build_config(MODELS[name][0], {**FIELD, **SMALL[name], **options})
    return build_model(config, TASKS[kind])


def support(task, count=3, views=2):
    """What a hypernetwork encodes."""
    if task.kind == "views":
        return {name: torch.rand(count, views, 3, *task.grid) for name in ("images", "origins", "directions")}
    return torch.rand(count, KINDS[task.kind].channels, *task.grid)


def literal_patches(model, data):
    """Tokens before the embedding, by loops or by F.unfold."""
    if model.task.kind == "image":
        return literal_composer.unfolded(model, data)
    if model.task.kind == "sound":  # 450 samples: 75 zeros on each side, then three patches of 200
        padded = torch.cat([torch.zeros(len(data), 75), data[:, 0], torch.zeros(len(data), 75)], dim=1)
        return torch.stack([padded[:, start : start + 200] for start in (0, 200, 400)], dim=1)
    stacked = torch.cat([data["images"], data["origins"], data["directions"]], dim=2)
    views = [literal_composer.unfolded(model, stacked[:, view]) for view in range(stacked.shape[1])]
    return torch.cat(views, dim=1)


def both_sides(model, coords, target):
    """Values, loss and gradients: ours, then the literal ones."""
    names = [name for name, _ in model.named_parameters()]
    data = {"coords": coords, "target": target} if model.inner_steps else support(model.task, len(target))
    points = coords.expand(len(target), -1, -1)
    literal = (points, target) if model.inner_steps else literal_patches(model, data)
    formula = getattr(literal_composer, next(name for name in MODELS if isinstance(model, MODELS[name][1])))
    if model.task.kind == "views":
        values = model.decode(model.encode(data), coords)
        loss, residual = (values - target).square().mean(), (values - target).detach()
    else:
        loss, residual = outer_loss(model, data, coords, target)
    expected = formula(model, literal, points)
    expected_loss = (expected - target).square().mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    expected_gradients = torch.autograd.grad(expected_loss, list(model.parameters()))
    pairs = dict(zip(names, zip(gradients, expected_gradients, strict=True), strict=True))
    return (residual + target, expected.detach()), (loss, expected_loss), pairs


@pytest.mark.parametrize("rows", ["its own points", "the same points"])
@pytest.mark.parametrize(("name", "kind"), MODEL_TASKS)
def test_values_loss_and_gradients_are_those_of_the_formulas(name, kind, rows):
    model = small_model(name, kind)
    coords = 2 * torch.rand(3 if rows == "its own points" else 1, 31, model.task.in_features) - 1
    values, losses, gradients = both_sides(model, coords, torch.rand(3, 31, model.task.out_features))
    torch.testing.assert_close(*values, atol=1e-5, rtol=0)
    torch.testing.assert_close(*losses, atol=1e-6, rtol=1e-5)
    for parameter, (found, expected) in gradients.items():
        assert expected.abs().max() > 0, parameter
        torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4, msg=parameter)


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("learned_init", "image", {"adapt_biases": False}),
        ("pattern_composer", "views", {"view_places": True}),
        ("transinr", "sound", {"lowest": 3 * math.pi}),
    ],
)
def test_options_of_the_released_code_are_those_of_the_formulas(name, kind, options):
    model = small_model(name, kind, **options)
    coords = 2 * torch.rand(3, 31, model.task.in_features) - 1
    values, losses, gradients = both_sides(model, coords, torch.rand(3, 31, model.task.out_features))
    torch.testing.assert_close(*values, atol=1e-5, rtol=0)
    torch.testing.assert_close(*losses, atol=1e-6, rtol=1e-5)
    for parameter, (found, expected) in gradients.items():
        torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4, msg=parameter)
    if kind == "sound":
        assert float(model.field.encoding.frequencies[0]) == pytest.approx(3 * math.pi)


def test_biases_left_out_of_the_inner_loop_are_shared():
    model = small_model("learned_init", adapt_biases=False)
    data = {"coords": torch.rand(3, 9, 2), "target": torch.rand(3, 9, 3)}
    assert list(model.encode(data)) == [f"layer{i}.weight" for i in range(5)]


@pytest.mark.parametrize(
    ("initial", "most", "deviation"),
    [
        ("inputs", 48**-0.5, (3 * 48) ** -0.5),
        ("outputs", 16**-0.5, (3 * 16) ** -0.5),
        ("normal", 1.0, 48**-0.5),
    ],
)
def test_first_weights_are_as_long_as_asked_for(initial, most, deviation):
    weight = small_model("learned_init", "image", features=24, initial=initial).field.layers[0].weight.detach()
    assert weight.shape == (16, 48) and float(weight.abs().max()) <= most * (1 + 1e-6)
    assert float(weight.std()) == pytest.approx(deviation, rel=0.1)


@pytest.mark.parametrize("name", MODELS)
def test_a_rank_below_the_break_even_gives_the_same_values(name):
    options = {"rank": 2, "modulated": 2} if "composer" in name else {}
    model = small_model(name, **options).double()
    coords = torch.rand(2, 5, 2).double()
    torch.set_default_dtype(torch.float64)
    try:
        values, _, gradients = both_sides(model, coords, torch.rand(2, 5, 3))
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(*values, atol=1e-11, rtol=0)
    for found, expected in gradients.values():
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-7)


# ---- tokens


def test_an_image_of_178_pixels_becomes_400_patches_of_9_by_9_with_one_pixel_of_padding():
    image = torch.rand(1, 3, 178, 178)
    expected = torch.nn.functional.unfold(image, 9, stride=9, padding=1).mT
    torch.testing.assert_close(patches(image, 9), expected)
    assert expected.shape == (1, 400, 243)


def test_a_second_of_sound_becomes_80_patches_of_200_samples():
    sound = torch.arange(16000.0)[None, None]
    assert torch.equal(patches(sound, 200)[0, 3], torch.arange(600.0, 800.0))
    assert patches(sound, 200).shape == (1, 80, 200)


def test_the_gain_makes_a_quiet_sound_as_loud_as_another():
    quiet, loud = small_model("pattern_composer", "sound", gain=20.0), small_model("pattern_composer", "sound")
    quiet.load_state_dict(loud.state_dict())
    sound = support(TASKS["sound"])
    torch.testing.assert_close(quiet.encode(sound / 20)["pattern"], loud.encode(sound)["pattern"])


def test_any_number_of_support_views_can_come():
    model = small_model("pattern_composer", "views").eval()
    data = support(model.task, count=2, views=3)
    three = model.encode(data)["pattern"]
    one = model.encode({name: part[:, :1] for name, part in data.items()})["pattern"]
    shuffled = model.encode({name: part[:, [2, 0, 1]] for name, part in data.items()})["pattern"]
    assert three.shape == one.shape and not torch.allclose(three, one, atol=1e-3)
    torch.testing.assert_close(three, shuffled, atol=1e-5, rtol=1e-4)  # rays, not places, tell views apart


def test_views_with_places_of_their_own_are_told_apart_by_their_order():
    model = small_model("pattern_composer", "views", view_places=True).eval()
    data = support(model.task)
    swapped = {name: part[:, [1, 0]] for name, part in data.items()}
    assert len(model.hypernetwork.places) == 2 * 4
    assert not torch.allclose(model.encode(data)["pattern"], model.encode(swapped)["pattern"], atol=1e-3)
    one = {name: part[:, :1] for name, part in data.items()}
    expected = literal_composer.transformer(model, literal_patches(model, one))
    torch.testing.assert_close(model.hypernetwork(one), expected, atol=1e-5, rtol=1e-4)


def test_plain_attention_in_bf16_is_the_fused_one():
    q, k, v = torch.randn(3, 1, 2, 5, 8).bfloat16()
    expected = torch.nn.functional.scaled_dot_product_attention(q.float(), k.float(), v.float())
    torch.testing.assert_close(attend(q, k, v).float(), expected, atol=0.03, rtol=0.03)


def test_the_last_tokens_of_a_block_are_those_of_the_whole_block():
    block, x = Block(HypernetworkConfig(width=16, heads=2)), torch.randn(2, 7, 16)
    torch.testing.assert_close(block(x, 3), block(x, 7)[:, -3:])


def test_blocks_start_from_different_weights():
    first, second = small_model("pattern_composer").hypernetwork.blocks
    assert not torch.equal(first.qkv.weight, second.qkv.weight)


def test_dropout_is_off_in_evaluation():
    model, images = small_model("pattern_composer", dropout=0.5), support(TASKS["image"])
    assert not torch.equal(model.encode(images)["pattern"], model.encode(images)["pattern"])
    model.eval()
    assert torch.equal(model.encode(images)["pattern"], model.encode(images)["pattern"])


# ---- the protocol


@pytest.mark.parametrize(
    ("kind", "shape", "widths", "lowest", "highest"),
    [
        ("image", (178, 178), [256, 256, 256, 256, 256, 3], math.pi, 128 * math.pi),
        ("sound", (16000,), [4096, 256, 256, 256, 256, 1], math.pi, 1024 * math.pi),
        ("views", (1, 128, 128), [120, 256, 256, 256, 256, 256, 4], 1.0, 256.0),
    ],
)
def test_the_defaults_are_the_papers_for_the_kind_of_signal(kind, shape, widths, lowest, highest):
    with torch.device("meta"):
        model = build_model(MODELS["pattern_composer"][0](), Task(kind, shape))
    assert model.field.widths == widths
    assert len(model.hypernetwork.places) == {"image": 400, "sound": 80, "views": 256}[kind]
    field = small_model("meta_pattern_composer", {"image": "image"}.get(kind, kind), features=None).field
    assert float(field.encoding.frequencies[0]) == pytest.approx(lowest)
    assert float(field.encoding.frequencies[-1]) == pytest.approx(highest)


def test_short_codes_make_the_locality_aware_patterns_small():
    model = small_model("locality_aware", code=3)
    patterns = model.encode(torch.rand(2, 3, 8, 8))
    assert patterns["latents"].shape == (2, 6, 3)
    coords = torch.rand(1, 5, 2)
    query, features = model.field.lift(coords)
    expected = model.field(query, features, model.expand(patterns["latents"]))
    assert torch.equal(model.decode(patterns, coords), expected)


def test_the_locality_aware_bands_are_the_papers_on_images():
    field = small_model("locality_aware", features=None, bands=2).field
    encodings = [field.query_encoding, *field.band_encodings]
    assert [float(e.frequencies[0]) / math.pi for e in encodings] == pytest.approx([1, 1, 1])
    assert [float(e.frequencies[-1]) / math.pi for e in encodings] == pytest.approx([16, 32, 128], rel=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_patterns_are_named_tensors_with_one_row_an_instance(name):
    model = small_model(name)
    coords, target = torch.rand(3, 8, 2), torch.rand(3, 8, 3)
    patterns = model.encode({"coords": coords, "target": target} if model.inner_steps else support(model.task))
    assert all(len(pattern) == 3 for pattern in patterns.values())
    one = {key: pattern[1:2] for key, pattern in patterns.items()}
    torch.testing.assert_close(model.decode(one, coords[1:2])[0], model.decode(patterns, coords)[1])


@pytest.mark.parametrize("name", MODELS)
def test_a_few_steps_lower_the_loss(name):
    model, task = small_model(name, hidden_features=32), TASKS["image"]
    images = rearrange(torch.linspace(0, 1, 2 * 3 * 20 * 13), "(b c h w) -> b c h w", b=2, c=3, h=20)
    coords = torch.rand(1, 64, 2) * 2 - 1
    target = coords.sum(-1, keepdim=True).sin().expand(2, -1, 3)
    data = {"coords": coords, "target": target} if model.inner_steps else images
    optimizer, losses = torch.optim.Adam(model.parameters(), 3e-3), []
    for _ in range(30):
        loss, _ = outer_loss(model, data, coords, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0], task


@pytest.mark.parametrize(
    ("argument", "make"),
    [
        ("shape", lambda: Task("image", (4,))),
        ("kind", lambda: Task("picture", (4, 4))),
        ("far", lambda: Task("views", (1, 4, 4), near=2.0, far=1.0)),
        ("width", lambda: small_model("transinr", width=25)),
        ("groups", lambda: small_model("transinr", groups=3)),
        ("modulated", lambda: small_model("pattern_composer", modulated=5)),
        ("rank", lambda: small_model("meta_pattern_composer", rank=0)),
        ("inner_lr", lambda: small_model("learned_init", inner_lr=0)),
        ("dropout", lambda: small_model("transinr", dropout=1.5)),
        ("decoder_heads", lambda: small_model("locality_aware", decoder_heads=3)),
        ("gain", lambda: small_model("transinr", gain=0)),
        ("bands", lambda: small_model("locality_aware", bands=0)),
    ],
)
def test_options_that_cannot_be_are_refused_by_name(argument, make):
    with pytest.raises(InputError) as error:
        make()
    assert error.value.argument == argument
