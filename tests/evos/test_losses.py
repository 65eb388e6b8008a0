"""Losses against loops, and their gradients in float64."""

import pytest
import torch
from torch.autograd import gradcheck

from evos.losses import cross_frequency_loss, derivative_loss, value_loss
from evos.selection import Pool, Selection

ROWS = torch.arange(2)
POOL = Pool(2, (4, 5))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def points(count: int) -> Selection:
    return Selection(ROWS, noise(2, 20, seed=9).argsort(1)[:, :count])


def slow_cross_frequency(cached, index, residual) -> float:
    """The literal sum, cell by cell."""
    luma = (0.2989, 0.587, 0.114)
    total = []
    for b in range(2):
        grey = [sum(w * v for w, v in zip(luma, cell, strict=True)) for cell in cached[b].tolist()]
        for k, cell in enumerate(index[b].tolist()):
            grey[cell] = sum(w * v for w, v in zip(luma, residual[b, k].tolist(), strict=True))
        for cell in index[b].tolist():
            y, x = divmod(cell, 5)
            around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            inside = [5 * j + i for j, i in around if 0 <= j < 4 and 0 <= i < 5]
            total.append((sum(grey[c] for c in inside) - 4 * grey[cell]) ** 2)
    return sum(total) / len(total)


def test_the_value_loss_is_the_mean_squared_error_weighted_where_there_are_weights():
    prediction, target, weight = noise(2, 6, 3, seed=1), noise(2, 6, 3, seed=2), noise(2, 6, seed=3)
    plain = points(6)
    assert value_loss(prediction, target, plain) == pytest.approx(float((prediction - target).square().mean()))
    weighted = Selection(plain.rows, plain.index, weight)
    terms = [
        float(weight[b, k]) * sum((p - t) ** 2 for p, t in zip(prediction[b, k], target[b, k], strict=True)) / 3
        for b in range(2)
        for k in range(6)
    ]
    assert value_loss(prediction, target, weighted) == pytest.approx(float(sum(terms)) / 12)


def test_the_derivative_loss_sums_channels_and_axes_and_averages_points():
    jacobian, target, weight = noise(5, 3, 2, seed=1), noise(5, 3, 2, seed=2), noise(5, seed=3)
    terms = [sum(float(jacobian[n, c, d] - target[n, c, d]) ** 2 for c in range(3) for d in range(2)) for n in range(5)]
    assert derivative_loss(jacobian, target) == pytest.approx(sum(terms) / 5)
    weighted = sum(w * t for w, t in zip(weight.tolist(), terms, strict=True)) / 5
    assert derivative_loss(jacobian, target, weight) == pytest.approx(weighted)


def test_cross_frequency_supervision_equals_the_literal_sum_over_the_selected_cells():
    cached, residual, selection = noise(2, 20, 3, seed=1), noise(2, 7, 3, seed=2), points(7)
    loss = cross_frequency_loss(cached, selection, residual, POOL)
    assert loss == pytest.approx(slow_cross_frequency(cached, selection.index, residual))


def test_on_a_key_step_the_cache_plays_no_part():
    residual = noise(2, 20, 3, seed=2)
    all_cells = torch.arange(20).expand(2, 20)
    for cached in (noise(2, 20, 3), torch.zeros(2, 20, 3, dtype=torch.float64)):
        loss = cross_frequency_loss(cached, Selection(ROWS, None, is_key=True), residual, POOL)
        assert loss == pytest.approx(slow_cross_frequency(cached, all_cells, residual))


@pytest.mark.parametrize("count", [None, 40])
def test_cross_frequency_supervision_of_a_stack_is_the_mean_over_its_pictures(count):
    """Its pictures are no neighbours."""
    residual, index = noise(1, 40, 3, seed=2), torch.arange(20).expand(2, 20)
    selection = Selection(ROWS[:1], None if count is None else torch.arange(count)[None])
    loss = cross_frequency_loss(torch.zeros(1, 40, 3).double(), selection, residual, Pool(1, (2, 4, 5)))
    assert loss == pytest.approx(slow_cross_frequency(torch.zeros(2, 20, 3), index, residual.view(2, 20, 3)))


@pytest.mark.parametrize("count", [1, 7, 20])
def test_the_gradient_of_cross_frequency_supervision_is_right(count):
    cached, selection = noise(2, 20, 3, seed=1), points(count)
    residual = noise(2, count, 3, seed=2).requires_grad_()
    assert gradcheck(lambda live: cross_frequency_loss(cached, selection, live, POOL), (residual,))
    full = Selection(ROWS, None)
    whole = noise(2, 20, 3, seed=3).requires_grad_()
    assert gradcheck(lambda live: cross_frequency_loss(cached, full, live, POOL), (whole,))


def test_a_cell_selected_twice_counts_with_the_mean_of_its_residuals():
    """The loss's value and, by finite differences, its gradient."""
    cached, index = noise(2, 20, 3, seed=1), torch.tensor([[3, 3, 7], [11, 11, 11]])
    residual = noise(2, 3, 3, seed=2).requires_grad_()
    twice = Selection(ROWS, index)
    assert gradcheck(lambda live: cross_frequency_loss(cached, twice, live, POOL), (residual,))
    mean = residual.detach().clone()
    mean[0, :2] = mean[0, :2].mean(0)
    mean[1] = mean[1].mean(0)
    loss = cross_frequency_loss(cached, twice, residual, POOL)
    assert loss.item() == pytest.approx(slow_cross_frequency(cached, index, mean))


@pytest.mark.parametrize("key", [False, True])
def test_masked_cells_stay_out_of_cross_frequency_supervision(key):
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[:, [2, 8, 13]] = False
    pool = Pool(2, (4, 5), mask=mask)
    selection = Selection(ROWS, None, is_key=True) if key else points(20)
    losses = []
    for wild in (0.0, 7.0):
        residual = noise(2, 20, 3, seed=2)
        residual[~(mask if key else mask.gather(1, selection.index))] = wild
        losses.append(cross_frequency_loss(noise(2, 20, 3, seed=1), selection, residual, pool).item())
    assert losses[0] == losses[1]
    cells = torch.arange(20)[mask[0]].expand(2, -1)
    whole = noise(2, 20, 3, seed=2) if key else torch.zeros(2, 20, 3).double()
    if not key:
        whole[ROWS[:, None], selection.index] = noise(2, 20, 3, seed=2)
    zeroed = whole * mask[..., None]
    expected = slow_cross_frequency(zeroed, cells, zeroed[:, mask[0]])
    assert losses[0] == pytest.approx(expected)
