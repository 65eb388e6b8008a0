"""NINT: cells ranked by how the field changes there along the loss's gradient."""

import pytest
import torch

from evos.derivatives import parameter_jvp
from evos.errors import InputError
from evos.fields import SirenConfig, build_field
from evos.selection import Feedback, NintConfig, Pool, build_selector


def observed(config, residual, update, shape):
    """A selector that has seen one key step."""
    selector = build_selector(config, Pool(len(residual), shape), total_steps=100, device="cpu")
    selector.observe(selector.select(1), Feedback(residual, update=update))
    return selector


def test_the_parameter_jvp_the_gradient_is_the_tangent_kernel_times_the_gradient_by_the_values():
    """J, row by row in reverse mode, and K = J Jᵀ in full, in float64."""
    field = build_field(SirenConfig(hidden_features=5, hidden_layers=1), 2, 3, seed=1).double()
    coords = torch.rand(7, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2 - 1
    target = torch.rand(7, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    weights = dict(field.named_parameters())
    values = field(coords)
    rows = [torch.autograd.grad(value, weights.values(), retain_graph=True) for value in values.flatten()]
    jacobian = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
    loss = (values - target).square().mean()
    by_values = 2 * (values - target).detach().flatten() / 21
    expected = (jacobian @ jacobian.T @ by_values).view(7, 3)

    gradient = dict(zip(weights, torch.autograd.grad(loss, weights.values()), strict=True))
    detached = {name: weight.detach() for name, weight in weights.items()}
    torch.testing.assert_close(parameter_jvp(field, coords, detached, gradient), expected, rtol=1e-10, atol=1e-12)


def test_nint_trains_on_the_cells_that_change_most_and_on_others_at_random(p_value):
    rows = 1500
    generator = torch.Generator().manual_seed(1)
    update = torch.rand(1, 40, 3, generator=generator).expand(rows, -1, -1)
    config = NintConfig(keep_ratio=0.5, uniform_ratio=0.7)
    selector = observed(config, torch.rand(rows, 40, 3, generator=generator), update, (5, 8))
    index = selector.select(2).index
    best = sorted(range(40), key=lambda cell: -float(update[0, cell].norm()))[:6]
    assert index.shape == (rows, 20)
    assert all(set(row[:6]) == set(best) for row in index.tolist())
    assert 1e-3 < p_value(index[:, 6:], [cell for cell in range(40) if cell not in best]) < 1 - 1e-3
    assert selector.select(11).is_key and not selector.select(10).is_key


def test_updates_are_refused_where_nobody_follows_them():
    selector = build_selector(NintConfig(), Pool(1, (9,)), total_steps=9, device="cpu")
    with pytest.raises(InputError, match="selector: got nint; allowed: another"):
        selector.observe(selector.select(1), Feedback(torch.zeros(1, 9, 1)))
    for name in ("uniform_ratio", "key_interval"):
        with pytest.raises(InputError, match=f"^{name}: got"):
            NintConfig(**{name: -1.0})


def test_masked_cells_come_last_whatever_their_update():
    mask = torch.arange(20)[None] % 2 > 0
    selector = build_selector(NintConfig(), Pool(1, (20,), mask=mask), total_steps=100, device="cpu")
    update = torch.where(mask[..., None], 1.0, 9.0)
    selector.observe(selector.select(1), Feedback(torch.rand(1, 20, 1), update=update))
    assert mask[0, selector.order[0, :10]].all()
    assert mask[0, selector.select(2).index[0]].all()
