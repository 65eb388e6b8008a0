"""The field with instance weights: both ways of evaluating them, frequencies, and a loop over instances."""

import math

import pytest
import torch

from evos.errors import InputError
from evos.fields.instance_mlp import (
    InstanceMLP,
    LogFourierFeatures,
    column_norms,
    composing_is_cheaper,
    instance_linear,
    shared_linear,
)


def field(ranks=None, **options):
    return InstanceMLP(LogFourierFeatures(2, 8, 1.0, 16.0), 12, 4, 3, ranks=ranks, **options).double()


def test_features_are_cosines_then_sines_of_log_spaced_frequencies_an_axis():
    features = LogFourierFeatures(2, 7, math.pi, 4 * math.pi)  # 7 // 2 axes: 3 frequencies
    found = features(torch.tensor([[0.5, -0.25]]))
    angles = [math.pi * x * f for x in (0.5, -0.25) for f in (1, 2, 4)]
    expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
    assert features.out_features == 12
    torch.testing.assert_close(found, torch.tensor([expected]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("points", "rank"), [(3, 2), (400, 5)])
def test_both_orders_of_evaluation_give_the_product_with_each_instances_weights(points, rank, normalize):
    x, v = torch.randn(2, points, 7).double(), torch.randn(2, 7, rank).double()
    u, bias = torch.randn(rank, 6).double(), torch.randn(1, 6).double()
    assert composing_is_cheaper(points, 7, rank, 6) == (rank == 5)
    weights = [v[n] @ u for n in range(2)]
    if normalize:
        weights = [w / w.norm(dim=0) for w in weights]
    expected = torch.stack([x[n] @ weights[n] + bias[0] for n in range(2)])
    torch.testing.assert_close(instance_linear(x, v, u, bias, normalize), expected)


def test_fewer_multiplications_are_what_decides():
    for points, inputs, rank, outputs in [(100, 8, 8, 8), (100, 8, 2, 8), (1, 8, 8, 8), (7, 256, 256, 256)]:
        composed = inputs * rank * outputs + points * inputs * outputs
        apart = points * inputs * rank + points * rank * outputs
        assert composing_is_cheaper(points, inputs, rank, outputs) == (composed < apart)


def test_column_norms_are_those_of_the_product():
    v, u = torch.randn(3, 7, 2).double(), torch.randn(2, 6).double()
    torch.testing.assert_close(column_norms(v, u), (v @ u).norm(dim=1, keepdim=True))


@pytest.mark.parametrize("rank", [1, 12])
def test_one_row_of_points_serves_all_instances(rank):
    one, pattern, coords = field({1: rank}), torch.randn(3, 12, rank).double(), torch.rand(1, 50, 2).double()
    shared = one(one.lift(coords, 1), {1: pattern})
    repeated = one(one.lift(coords.repeat(3, 1, 1), 1), {1: pattern})
    torch.testing.assert_close(shared, repeated)


def test_a_batch_equals_its_instances_one_by_one():
    one, pattern, coords = field({1: 5}), torch.randn(3, 12, 5).double(), torch.rand(3, 9, 2).double()
    together = one(one.lift(coords, 1), {1: pattern})
    alone = [one(one.lift(coords[n : n + 1], 1), {1: pattern[n : n + 1]})[0] for n in range(3)]
    torch.testing.assert_close(together, torch.stack(alone))


def test_a_shared_layer_keeps_the_order_in_memory():
    x, weight, bias = torch.randn(9, 3, 7), torch.randn(6, 7), torch.randn(6)
    found = shared_linear(x.transpose(0, 1), weight, bias)
    torch.testing.assert_close(found, torch.einsum("kbi,oi->bko", x, weight) + bias)
    assert found.transpose(0, 1).is_contiguous()


def test_normalised_layers_forget_the_length_of_their_weights():
    one, pattern, coords = field({1: 5}), torch.randn(2, 12, 5).double(), torch.rand(2, 9, 2).double()
    before = one(one.lift(coords, 1), {1: pattern})
    with torch.no_grad():
        one.layers[0].weight.mul_(3)
    torch.testing.assert_close(one(one.lift(coords, 1), {1: 7 * pattern}), before)


def test_the_gradient_of_the_field_is_right_twice_over():
    one = InstanceMLP(LogFourierFeatures(2, 4, 1.0, 16.0), 4, 3, 1, ranks={1: 2}).double()
    coords, pattern = torch.rand(1, 3, 2).double(), torch.randn(2, 4, 2).double().requires_grad_()
    lifted = one.lift(coords, 1).detach()
    run = lambda p: torch.tanh(one(lifted, {1: p}))  # noqa: E731
    assert torch.autograd.gradcheck(run, pattern)
    assert torch.autograd.gradgradcheck(run, pattern)


def test_values_start_at_the_output_bias_and_u_at_the_papers_spread():
    torch.manual_seed(0)
    one = InstanceMLP(LogFourierFeatures(2, 256, 1.0, 2.0), 256, 5, 3, ranks={1: 256}, output_bias=0.5)
    assert one.output_bias == 0.5 and all(layer.bias.abs().max() == 0 for layer in one.layers)
    assert one.layers[1].weight.std().item() == pytest.approx(1 / 256, rel=0.02)


@pytest.mark.parametrize(
    ("argument", "make"),
    [
        ("layers", lambda: InstanceMLP(LogFourierFeatures(2, 8, 1.0, 2.0), 4, 1, 3)),
        ("ranks", lambda: field({4: 2})),
        ("features", lambda: LogFourierFeatures(3, 2, 1.0, 2.0)),
    ],
)
def test_impossible_shapes_are_refused_by_name(argument, make):
    with pytest.raises(InputError) as error:
        make()
    assert error.value.argument == argument
