"""Optimizers against their formulas written out in float64, and averages against closed forms."""

import copy
import math
import sys

import pytest
import torch
from torch import Tensor, nn

from evos.errors import InputError
from evos.fields import build_field, field_config
from evos.optimizers import OPTIMIZERS, RunningClip, build_optimizer, evaluation_weights, update_average
from evos.runs import load_checkpoint, save_checkpoint

PACKAGED = ("soap", "schedule_free")
"""Those from pytorch-optimizer, which is in the extra `regress` only."""


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))


def build(name: str, module: nn.Module, lr: float = 1e-2):
    if name in PACKAGED:
        pytest.importorskip("pytorch_optimizer")
    return build_optimizer(name, module, lr)


def train(module: nn.Module, optimizer, steps: int, first: int = 0) -> list[float]:
    losses = []
    for step in range(first, first + steps):
        x = torch.randn(32, 2, generator=torch.Generator().manual_seed(step))
        loss = (module(x) - x.sin().sum(-1, keepdim=True)).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def weights(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def gradients(module: nn.Module, seed: int) -> list[Tensor]:
    """Random gradients, given to the parameters."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return [parameter.grad.double() for parameter in module.parameters()]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns(name):
    module = network()
    losses = train(module, build(name, module), 200)
    assert sum(losses[-20:]) < 0.3 * sum(losses[:20])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_half_a_training_and_the_other_half_are_a_whole_training(name, tmp_path):
    module = network()
    optimizer = build(name, module)
    train(module, optimizer, 15)
    save_checkpoint(tmp_path / "half.pt", {"module": module.state_dict(), "optimizer": optimizer.state_dict()})
    losses = train(module, optimizer, 15, first=15)
    other = network()
    other_optimizer = build(name, other)
    state = load_checkpoint(tmp_path / "half.pt")
    other.load_state_dict(state["module"])
    other_optimizer.load_state_dict(state["optimizer"])
    assert train(other, other_optimizer, 15, first=15) == losses
    assert all(map(torch.equal, weights(other), weights(module)))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_learning_rate_of_every_weight_can_be_set(name):
    module = network()
    optimizer = build(name, module)
    train(module, optimizer, 3)
    before = weights(module)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    gradients(module, 0)
    optimizer.step()
    if name == "schedule_free":  # which still averages its points
        return
    assert all(map(torch.equal, weights(module), before))


def test_muon_turns_hidden_matrices_by_an_orthogonal_step_and_leaves_the_rest_to_adam():
    module = network()
    twin = copy.deepcopy(module)
    optimizer, adam = build_optimizer("muon", module, 1e-2), torch.optim.Adam(twin.parameters(), lr=1e-2)
    before = weights(module)
    grads = gradients(module, 1)
    gradients(twin, 1)
    optimizer.step()
    adam.step()
    steps = [old.double() - new.double() for old, new in zip(before, weights(module), strict=True)]
    adams = [old.double() - new.double() for old, new in zip(before, weights(twin), strict=True)]
    hidden = 2  # weight, bias, weight: the matrix from 8 to 6 features
    for place, (step, its) in enumerate(zip(steps, adams, strict=True)):
        if place != hidden:
            torch.testing.assert_close(step, its, rtol=1e-4, atol=1e-8)
    # U V^T of the gradient, in float64; Newton-Schulz gets its singular values to within about 0.7 and 1.2 of 1.
    u, _, v = torch.linalg.svd(grads[hidden], full_matrices=False)
    scale = 1e-2 * 0.2 * math.sqrt(8)
    values = torch.diagonal(u.T @ steps[hidden] @ v.T) / scale
    assert values.min() > 0.6 and values.max() < 1.3
    torch.testing.assert_close(u @ torch.diag(values) @ v * scale, steps[hidden], atol=0.05 * scale, rtol=0)


def test_muon_is_adam_where_there_is_no_hidden_matrix():
    module = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3))
    assert isinstance(build_optimizer("muon", module, 1e-2), torch.optim.Adam)


def test_muon_leaves_a_hash_table_to_adam():
    field = build_field(field_config("hashgrid", {"hidden_layers": 2, "hidden_features": 64}), 2, 3, seed=0)
    optimizer = build_optimizer("muon", field, 1e-2)
    hidden = [weight for group in optimizer.param_groups if "ns_steps" in group for weight in group["params"]]
    assert hidden and all(weight.shape == (64, 64) for weight in hidden)
    every = [id(weight) for group in optimizer.param_groups for weight in group["params"]]
    assert sorted(every) == sorted(id(weight) for weight in field.parameters())


def test_soap_is_adam_in_the_eigenbasis_of_the_first_gradients():
    """Until its basis is renewed, at the tenth step: rotate the gradients, take Adam's step, rotate it back."""
    pytest.importorskip("pytorch_optimizer")
    module = nn.Linear(5, 4, bias=False)
    optimizer = build_optimizer("soap", module, 1e-2)
    (start,) = weights(module)
    expected, first, second, bases = start.double(), 0.0, 0.0, None
    for step in range(6):
        (gradient,) = gradients(module, step)
        optimizer.step()
        if bases is None:
            bases = torch.linalg.eigh(gradient @ gradient.T)[1], torch.linalg.eigh(gradient.T @ gradient)[1]
            assert torch.equal(weights(module)[0], start)  # the first step gathers statistics
            continue
        left, right = bases
        first = 0.95 * first + 0.05 * gradient
        second = 0.95 * second + 0.05 * (left.T @ gradient @ right).square()
        corrected = math.sqrt(1 - 0.95**step) / (1 - 0.95**step)
        expected = expected - 1e-2 * corrected * left @ ((left.T @ first @ right) / (second.sqrt() + 1e-8)) @ right.T
    torch.testing.assert_close(weights(module)[0].double(), expected, rtol=1e-4, atol=1e-5)


def test_schedule_free_measures_the_average_of_its_points():
    """Averages of z, the points of plain Adam without momentum at gradients that do not depend on them."""
    pytest.importorskip("pytorch_optimizer")
    module = nn.Linear(3, 2, bias=False)
    optimizer = build_optimizer("schedule_free", module, 1e-2)
    (z,), points, second = [weight.double() for weight in weights(module)], [], 0.0
    for step in range(1, 8):
        (gradient,) = gradients(module, step)
        optimizer.step()
        second = 0.999 * second + 0.001 * gradient.square()
        z = z - 1e-2 * gradient / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        points.append(z)
    average = torch.stack(points).mean(0)
    with evaluation_weights(module, optimizer) as averaged:
        assert averaged
        torch.testing.assert_close(weights(module)[0].double(), average, rtol=1e-4, atol=1e-6)


# ---- averages


def test_an_average_is_the_sum_that_defines_it_and_forgets_what_was_there():
    decay, average = 0.9, [torch.full((3,), 1e6), torch.zeros(2, 2, dtype=torch.complex64)]
    seen: list[list[Tensor]] = []
    for step in range(1, 30):
        seen.append([torch.randn(3), torch.randn(2, 2, dtype=torch.complex64)])
        update_average(average, seen[-1], decay, step)
        factors = [decay ** (step - i) for i in range(1, step + 1)]
        for place, mine in enumerate(average):
            expected = sum(factor * each[place] for factor, each in zip(factors, seen, strict=True)) / sum(factors)
            torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("averages", [False, True])
def test_measuring_leaves_the_training_weights_bit_for_bit(name, averages):
    module = network()
    optimizer = build(name, module)
    train(module, optimizer, 5)
    before, average = weights(module), [torch.full_like(weight, 7.0) for weight in weights(module)]
    with pytest.raises(KeyError), evaluation_weights(module, optimizer, average if averages else None) as differs:
        assert differs == (averages or name == "schedule_free")
        same = [torch.equal(old, new) for old, new in zip(before, weights(module), strict=True)]
        assert all(same) != differs
        assert not averages or all(
            torch.equal(mine, other) for mine, other in zip(weights(module), average, strict=True)
        )
        raise KeyError
    assert all(map(torch.equal, weights(module), before))
    twin = network()
    twin_optimizer = build(name, twin)
    train(twin, twin_optimizer, 5)
    assert train(module, optimizer, 5, first=5) == train(twin, twin_optimizer, 5, first=5)


def test_nothing_is_averaged_before_the_first_step():
    pytest.importorskip("pytorch_optimizer")
    module = network()
    before = weights(module)
    with evaluation_weights(module, build_optimizer("schedule_free", module, 1e-2)):
        assert all(map(torch.equal, weights(module), before))


# ---- refusals


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_complex_weights_are_for_adam_alone(name):
    field = build_field(field_config("wire", {"hidden_features": 16}), 2, 3, seed=0)
    if name == "adam":
        before = weights(field)
        optimizer = build_optimizer(name, field, 1e-2)
        field(torch.rand(8, 2)).square().mean().backward()
        optimizer.step()
        assert not any(map(torch.equal, weights(field), before))
    else:
        with pytest.raises(InputError, match="adam where weights are complex"):
            build_optimizer(name, field, 1e-2)


def test_an_unknown_optimizer_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"optimizer: got adamm; allowed: did you mean adam\?"):
        build_optimizer("adamm", network(), 1e-2)


@pytest.mark.parametrize("name", PACKAGED)
def test_a_missing_package_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(InputError, match=r"pip install .*regress"):
        build_optimizer(name, network(), 1e-2)


def test_an_old_torch_is_named(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(InputError, match=r"torch 2\.9 or later"):
        build_optimizer("muon", network(), 1e-2)


def test_a_gradient_is_clipped_to_a_multiple_of_the_running_mean_of_the_clipped_norms():
    weights = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(3))]
    clip, mean = RunningClip(1.5, "cpu"), None
    for norm in (2.0, 1.0, 10.0, 3.0):
        # The third weight takes no part, as one without a gradient.
        weights[0].grad, weights[1].grad = torch.tensor([0.6, 0.0]) * norm, torch.tensor([0.8]) * norm
        clip(weights)
        allowed = norm if mean is None else min(norm, 1.5 * mean)
        mean = allowed if mean is None else 0.98 * mean + 0.02 * allowed
        torch.testing.assert_close(weights[0].grad, torch.tensor([0.6 * allowed, 0.0]))
        torch.testing.assert_close(weights[1].grad, torch.tensor([0.8 * allowed]))
        assert clip.mean.item() == pytest.approx(mean)


def test_a_gradient_of_nothing_stays_nothing_and_one_that_is_not_finite_is_passed_on():
    weight = nn.Parameter(torch.zeros(2))
    clip = RunningClip(1.0, "cpu")
    weight.grad = torch.zeros(2)
    clip([weight])
    assert torch.equal(weight.grad, torch.zeros(2))
    weight.grad = torch.tensor([1.0, torch.nan])
    clip([weight])
    assert not weight.grad.isfinite().all()


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan, 1e30])  # the square of the last overflows
@pytest.mark.parametrize("first", [True, False])
def test_the_running_mean_survives_a_gradient_that_is_not_finite(bad, first):
    weight, clip = nn.Parameter(torch.zeros(2)), RunningClip(1.5, "cpu")
    norms = ([] if first else [2.0]) + [bad] + [2.0] * 3
    for norm in norms:
        weight.grad = torch.tensor([norm, 0.0])
        clip([weight])
    assert clip.mean.item() == pytest.approx(2.0)
    weight.grad = torch.tensor([0.0, 30.0])
    clip([weight])
    torch.testing.assert_close(weight.grad, torch.tensor([0.0, 3.0]))


@pytest.mark.parametrize("length", [1e-30, 1e-3, 1e6])
def test_clipping_knows_no_smallest_or_largest_gradient(length):
    weight, clip = nn.Parameter(torch.zeros(1)), RunningClip(2.0, "cpu")
    for norm in (1.0, 5.0):
        weight.grad = torch.tensor([norm * length])
        clip([weight])
    assert weight.grad is not None and weight.grad.item() == pytest.approx(2 * length, rel=1e-5)
