"""Inner and outer step against closed forms, numerical derivatives and loops."""

import pytest
import torch

from evos.config import build_config
from generalizable.inner import inner_loop, inner_step, outer_loss, predict
from generalizable.models import MODELS, Task, build_model

META = ["meta_pattern_composer", "learned_init"]
OPTIONS = {"hidden_features": 8, "features": 8, "layers": 3, "inner_lr": 0.1}


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def small_model(name="meta_pattern_composer", task=None, **options):
    rank = {"rank": 4} if "composer" in name else {}
    return build_model(build_config(MODELS[name][0], {**OPTIONS, **rank, **options}), task or Task("image", (8, 8)))


def points(count=2, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coords = torch.rand(count, 12, 2, generator=generator) * 2 - 1
    return {"coords": coords, "target": torch.rand(count, 12, channels, generator=generator)}


def test_a_step_on_a_parabola_is_its_closed_form():
    goal, start = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.5, 0.5], [1.0, 1.0]])
    found = inner_step(lambda p: (p["b"] - goal).square().sum(1), {"b": start}, 0.1)
    torch.testing.assert_close(found["b"], start - 0.1 * 2 * (start - goal))


def test_weights_step_by_their_squared_length_and_each_instance_by_its_rate():
    weights, rates = torch.randn(2, 3, 4), torch.tensor([0.1, 0.02])
    found = inner_step(lambda p: p["w"].sum((1, 2)), {"w": weights}, rates)["w"]
    for n in range(2):
        torch.testing.assert_close(found[n], weights[n] - rates[n] * (weights[n] ** 2).sum())


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", META)
def test_second_order_gradients_are_those_of_finite_differences(name):
    model, data = small_model(name), points()
    coords, target = points(seed=1).values()
    loss = lambda: outer_loss(model, data, coords, target)[0]  # noqa: E731
    for parameter, slope in zip(model.parameters(), torch.autograd.grad(loss(), list(model.parameters())), strict=True):
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            step = 1e-6 * direction
            parameter += step
            above = loss()
            parameter -= 2 * step
            below = loss()
            parameter += step
        torch.testing.assert_close((slope * direction).sum(), (above - below) / 2e-6, atol=1e-7, rtol=1e-4)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", META)
def test_first_order_takes_the_inner_gradients_as_constants(name):
    model, data = small_model(name, first_order=True), points()
    coords, target = points(seed=1).values()
    found = torch.autograd.grad(outer_loss(model, data, coords, target)[0], list(model.parameters()))

    second = small_model(name)
    second.load_state_dict(model.state_dict())
    patterns = second.encode(data, inner_steps=0)
    for _ in range(second.inner_steps):
        # By hand: gradients by plain autograd, detached; the squared lengths are part of the graph.
        error = (second.decode(patterns, data["coords"]) - data["target"]).square().mean((1, 2)).sum()
        slopes = torch.autograd.grad(error, list(patterns.values()), retain_graph=True)
        patterns = {
            key: p - 0.1 * (p.square().sum((1, 2), keepdim=True) if p.ndim == 3 else 1) * slope.detach()
            for (key, p), slope in zip(patterns.items(), slopes, strict=True)
        }
    loss = (second.decode(patterns, coords) - target).square().mean()
    for one, other in zip(found, torch.autograd.grad(loss, list(second.parameters())), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", META)
def test_inner_steps_lower_the_instances_loss_and_none_leave_the_start(name):
    model, data = small_model(name, inner_lr=0.02), points()
    with torch.no_grad():
        losses = []
        for steps in (0, 1, 4):
            patterns = model.encode(data, inner_steps=steps)
            losses.append((predict(model, patterns, data["coords"]) - data["target"]).square().mean().item())
    assert losses[2] < losses[1] < losses[0]
    first = model.encode(data, inner_steps=0)
    assert all(torch.equal(pattern[0], pattern[1]) for pattern in first.values())


@pytest.mark.parametrize("name", META)
def test_an_instance_is_fitted_as_if_it_were_alone(name):
    model, data = small_model(name), points(3)
    together = model.encode(data)
    alone = model.encode({key: value[1:2] for key, value in data.items()})
    for key in together:
        torch.testing.assert_close(together[key][1], alone[key][0], atol=1e-5, rtol=1e-4)


def test_weights_of_points_and_rates_of_instances_count_in_the_inner_loop():
    model, data = small_model(), points()
    kept = torch.zeros(2, 12)
    kept[:, :5] = 12 / 5
    weighted = model.encode({**data, "weight": kept})
    subset = model.encode({key: value[:, :5] for key, value in data.items()})
    torch.testing.assert_close(weighted["pattern"], subset["pattern"])
    rated = model.encode({**data, "rate": torch.tensor([1.0, 0.0])})["pattern"]
    torch.testing.assert_close(rated[0], model.encode(data)["pattern"][0])
    torch.testing.assert_close(rated[1], model.pattern)


def test_evaluation_without_gradients_gives_the_same_patterns_and_no_graph():
    model, data = small_model(), points()
    with torch.no_grad():
        found = inner_loop(model, model.encode(data, inner_steps=0), data)["pattern"]
    assert not found.requires_grad
    torch.testing.assert_close(found, model.encode(data)["pattern"].detach())


def test_the_outer_loss_is_the_weighted_mean_and_the_residual_is_signed():
    model, data = small_model(), points()
    coords, target = points(seed=1).values()
    weight = torch.rand(2, 12)
    loss, residual = outer_loss(model, data, coords, target, weight)
    values = model.decode(model.encode(data), coords)
    torch.testing.assert_close(residual, (values - target).detach())
    torch.testing.assert_close(loss, (weight * ((values - target) ** 2).mean(-1)).mean())
    assert not residual.requires_grad


def test_a_sound_is_judged_in_its_own_units():
    model = small_model(task=Task("sound", (40,)))
    sound = {"coords": torch.rand(1, 40, 1), "target": torch.rand(2, 40, 1) * 2 - 1}
    values = predict(model, model.encode(sound), sound["coords"])
    assert values.shape == (2, 40, 1) and model.field.output_bias == 0


@pytest.mark.parametrize("name", META)
def test_views_are_fitted_through_the_rendering(name):
    model = small_model(name, Task("views", (1, 4, 4), near=0.5, far=2.0), samples=6, inner_lr=0.05).eval()
    rays = torch.randn(2, 10, 6)
    data = {"coords": rays, "target": torch.rand(2, 10, 3)}
    losses = []
    for steps in (0, 3):
        colours = predict(model, model.encode(data, inner_steps=steps), rays)
        losses.append((colours - data["target"]).square().mean())
    assert losses[1] < losses[0]
    losses[1].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.field.layers[1].parameters())


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("name", META)
def test_in_bf16_all_parameters_keep_a_gradient_close_to_that_of_float32(name, first_order):
    model, data = small_model(name, first_order=first_order), points()
    coords, target = points(seed=1).values()
    expected = torch.autograd.grad(outer_loss(model, data, coords, target)[0], list(model.parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = outer_loss(model, data, coords, target)
    for found, slope in zip(torch.autograd.grad(loss, list(model.parameters())), expected, strict=True):
        assert torch.nn.functional.cosine_similarity(found.flatten(), slope.flatten(), dim=0) > 0.9
