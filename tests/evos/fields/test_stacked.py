"""Stacked fields: each is what it is by itself, and gets the gradients that it would get by itself."""

import pytest
import torch

from evos.errors import InputError
from evos.fields import FIELDS, build_field, field_config
from evos.fields.stacked import MAY_DIFFER, StackedFields, alike, stack_size

SMALL = {"hidden_features": 12, "hidden_layers": 2}
OTHERS = {"omega": 17.0, "first_omega": 23.0, "init_scale": 0.7, "first_bias_scale": 2.0, "scale": 4.0, "sigma": 3.0}


def configs(name: str) -> list:
    """Three configs of a family that differ in whatever they may."""
    options = {"siren": {}, "hashgrid": {"levels": 3, "table_log2": 6}, "fourier": {"features": 5}}.get(name, {})
    free = MAY_DIFFER.get(name, ())
    return [
        field_config(name, {**SMALL, **options, **{n: OTHERS[n] for n in free[:count]}}) for count in (0, 1, len(free))
    ]


def pairs(name: str, axes: int = 2):
    """Fields to stack, and the same ones alone."""
    return [[build_field(config, axes, 3, seed=i) for i, config in enumerate(configs(name))] for _ in range(2)]


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("axes", [1, 2])
def test_values_and_gradients_are_those_of_each_field_alone(name, axes):
    assert len(set(map(alike, configs(name)))) == 1
    fields, alone = pairs(name, axes)
    stack = StackedFields(fields)
    coords = 2 * torch.rand(3, 50, axes) - 1
    values = stack(coords)
    stack.backward(values.square().mean((1, 2)).sum())
    for own, field, x, found in zip(fields, alone, coords, values, strict=True):
        expected = field(x)
        expected.square().mean().backward()
        assert torch.allclose(found, expected, atol=1e-5, rtol=1e-4)
        for (label, mine), theirs in zip(own.named_parameters(), field.parameters(), strict=True):
            assert mine.grad is not None and theirs.grad is not None
            assert torch.allclose(mine.grad, theirs.grad, atol=1e-5 * float(theirs.grad.abs().max())), label


@pytest.mark.parametrize("name", ["siren", "wire", "hashgrid"])
def test_fields_and_matrix_share_their_numbers(name):
    fields, alone = pairs(name)
    stack = StackedFields(fields)
    for field, other in zip(fields, alone, strict=True):
        for mine, theirs in zip(field.parameters(), other.parameters(), strict=True):
            assert torch.equal(mine, theirs)
    stack.weights.mul_(0.5)
    with torch.no_grad():
        for parameter in fields[1].parameters():
            parameter.add_(0.1)
    for i, (field, other) in enumerate(zip(fields, alone, strict=True)):
        for mine, theirs in zip(field.parameters(), other.parameters(), strict=True):
            assert torch.allclose(mine, theirs / 2 + 0.1 * (i == 1))
    x = torch.rand(3, 7, 2)
    assert torch.allclose(stack(x)[1], fields[1](x[1]), atol=1e-4)


def test_what_is_kept_is_unchanged_and_the_rest_is_gone():
    fields, _ = pairs("siren")
    stack = StackedFields(fields)
    x = torch.rand(3, 9, 2)
    before = stack(x)
    stack.keep([2, 0])
    assert stack.fields == [fields[2], fields[0]] and stack.weights.shape[0] == 2
    assert torch.allclose(stack(x[[2, 0]]), before[[2, 0]], atol=1e-6)


def test_many_points_go_through_in_pieces(monkeypatch):
    fields, _ = pairs("siren")
    stack, x = StackedFields(fields), torch.rand(3, 50, 2)
    whole = stack(x)
    monkeypatch.setattr("evos.fields.stacked.CACHED_NUMBERS", 7 * 12 * 3)
    assert torch.allclose(stack(x), whole, atol=1e-6)


def test_fields_of_other_shapes_are_refused():
    siren, wide = (build_field(field_config("siren", {"hidden_features": n}), 2, 3, seed=0) for n in (8, 9))
    for fields in ([], [siren, wide]):
        with pytest.raises(InputError, match="fields"):
            StackedFields(fields)


def test_options_that_activations_use_keep_fields_apart():
    for name, option in (("finer", "omega"), ("wire", "scale"), ("siren", "hidden_layers"), ("hashgrid", "levels")):
        assert alike(field_config(name, {option: 3})) != alike(field_config(name, {option: 4}))
    assert alike(field_config("siren", {"omega": 3})) == alike(field_config("siren", {"omega": 4}))


def test_no_more_are_stacked_than_the_cache_holds():
    cpu = torch.device("cpu")
    assert [stack_size(width, 410, cpu) for width in (16, 64, 256)] == [159, 39, 9]
    assert stack_size(256, 10**6, cpu) == 1
