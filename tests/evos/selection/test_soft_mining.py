"""Soft mining: where the points walk, what their loss weighs, and the slope they follow."""

import math

import pytest
import torch

from evos.errors import InputError
from evos.selection import (
    SELECTORS,
    EgraConfig,
    ExpansiveConfig,
    Feedback,
    Pool,
    Selection,
    SoftConfig,
    TilesConfig,
    UniformConfig,
    build_selector,
)

SIDE = 24
STILL = {"step_size": 0.0, "noise": 0.0, "uniform_ratio": 0.0, "restart_ratio": 0.0}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def bump(place: torch.Tensor) -> torch.Tensor:
    """A smooth error (1 channel) with its peak at row 6, column 16, at coordinates in [-1, 1]."""
    cells = (place + 1) * (SIDE - 1) / 2
    away = (cells - torch.tensor([6.0, 16.0], device=place.device)).square().sum(-1, keepdim=True)
    return torch.exp(-away / 32) + 0.02


@pytest.mark.parametrize("with_gradient", [False, True])
def test_points_gather_where_the_error_is(device, with_gradient):
    pool, target = Pool(1, (SIDE, SIDE)), noise(1, SIDE**2, 1)
    config = SoftConfig(keep_ratio=0.2, step_size=1.0)
    selector = build_selector(config, pool, total_steps=40, device=device, target=target)
    shares = []
    for step in range(1, 41):
        selection = selector.select(step)
        place = torch.stack((selection.index // SIDE, selection.index % SIDE), dim=-1) * (2 / (SIDE - 1)) - 1
        place.requires_grad_()
        residual = bump(place)
        selection = selector.weigh(selection, residual.detach())
        selection.reduce((2 * residual).square().mean(-1)).backward()
        selector.observe(selection, Feedback(residual.detach(), coord_grad=place.grad if with_gradient else None))
        cells = (place.detach() + 1) * (SIDE - 1) / 2
        inside = (cells - torch.tensor([6.0, 16.0], device=device)).norm(dim=-1) < 8
        shares.append(inside.float().mean().item())
    assert shares[0] < 0.45  # 32 % of the area
    assert sum(shares[-10:]) / 10 > 0.8


def test_weights_follow_one_over_the_error_to_a_rising_power_within_bounds(train):
    training = train(SoftConfig(keep_ratio=0.5, alpha=0.6, correction_warmup=0.5), steps=20)
    residual = 400 * noise(2, 21, 3).sub(0.5).to(training.device).pow(3)
    for step in (1, 3, 6, 7, 20):
        selection = Selection(training.selector.all_rows, noise(2, 42).argsort(1)[:, :21], step=step)
        weights = training.selector.weigh(selection, residual).weight
        power = min(step / 10, 0.6)
        for row in range(2):
            raw = [max(2 * sum(map(abs, r)) / 3, 0.0009765625) ** -power for r in residual[row].tolist()]
            mean = sum(raw) / 21
            bound = mean + math.sqrt(sum((w - mean) ** 2 for w in raw) / 21)
            assert weights[row].tolist() == pytest.approx([min(max(w, 0.2), bound) for w in raw], rel=1e-4)
    assert training.selector.weigh(selection, residual).index is selection.index


def test_without_softness_nothing_is_corrected(train):
    training = train(SoftConfig(alpha=0.0))
    for selection in training.run():
        assert torch.equal(selection.weight, torch.ones_like(selection.weight))


def test_the_slope_without_gradients_is_the_central_difference_of_the_errors_seen(train):
    training = train(SoftConfig(keep_ratio=0.5), Pool(1, (5, 6)))
    selector = training.selector
    index = noise(1, 30).argsort(1)[:, :15].to(training.device)
    residual = noise(1, 15, 3, seed=1).to(training.device)
    selector.observe(Selection(selector.all_rows, index), Feedback(residual))
    log_error = dict(zip(index[0].tolist(), residual[0].square().mean(-1).log().tolist(), strict=True))
    for k, cell in enumerate(index[0].tolist()):
        y, x = divmod(cell, 6)
        for axis, (dy, dx, size) in enumerate([(1, 0, 5), (0, 1, 6)]):
            rise = 0.0
            for side in (1, -1):
                j, i = y + side * dy, x + side * dx
                known = 0 <= j < 5 and 0 <= i < 6 and 6 * j + i in log_error
                rise += side * log_error[6 * j + i if known else cell]
            slope = rise / 2 / (2 / (size - 1))  # of a coordinate in [-1, 1]
            assert selector.log_error_grad[0, k, axis].item() == pytest.approx(slope / 15, abs=1e-5)


def test_the_slope_with_gradients_is_that_of_the_log_error_over_k(train):
    training = train(SoftConfig(keep_ratio=0.1), Pool(2, (SIDE, SIDE)), steps=10)
    selector = training.selector
    selection = selector.select(1)
    place = (2 * noise(2, selector.count, 2, seed=3) - 1).to(training.device).requires_grad_()
    residual = bump(place)
    selection = selector.weigh(selection, residual.detach())
    selection.reduce((2 * residual).square().mean(-1)).backward()
    selector.observe(selection, Feedback(residual.detach(), coord_grad=place.grad))
    (expected,) = torch.autograd.grad(bump(place).square().log().sum(), place)
    assert torch.allclose(selector.log_error_grad, expected / selector.count, atol=1e-6)


def test_in_its_raw_form_the_slope_is_that_per_cell():
    pool, target = Pool(1, (6, 10)), noise(1, 60, 1)
    slopes = []
    for raw in (False, True):
        config = SoftConfig(keep_ratio=0.5, pixel_gradient=raw)
        selector = build_selector(config, pool, total_steps=9, device="cpu", target=target)
        selection = selector.select(1)
        selector.observe(selection, Feedback(noise(1, 30, 1, seed=1), coord_grad=noise(1, 30, 2, seed=2)))
        slopes.append(selector.log_error_grad)
    torch.testing.assert_close(slopes[1], slopes[0] * torch.tensor([2 / 6, 2 / 10]))


def test_a_step_moves_the_points_along_the_slope(train):
    options = {**STILL, "step_size": 2.0}
    selector = train(SoftConfig(**options), Pool(1, (SIDE, SIDE))).selector
    selector.select(1)
    selector.observed[:] = True
    before = selector.points.clone()
    selector.log_error_grad = 0.01 * (0.5 - before)
    selector.select(2)
    assert torch.allclose(selector.points, before + 0.02 * (0.5 - before))


def test_points_that_leave_or_lose_their_way_and_those_of_least_error_restart_on_edges(device):
    target = torch.zeros(1, SIDE, SIDE, 1)
    target[:, :, 12:] = 1
    build = dict(total_steps=9, device=device, target=target.view(1, -1, 1))
    selector = build_selector(SoftConfig(**{**STILL, "restart_ratio": 0.25}), Pool(1, (SIDE, SIDE)), **build)
    selector.select(1)
    selector.points.fill_(0.25)
    selector.observed[:] = True
    selector.error = torch.arange(288.0, device=device)[None]
    selector.log_error_grad[:, 100:110] = float("nan")
    selector.config = SoftConfig(**{**STILL, "restart_ratio": 0.25, "step_size": 1.0})
    selector.log_error_grad[:, 110:120] = 1.0
    selector.select(2)
    columns = (selector.points[0, :, 1] * (SIDE - 1)).round()
    restarted = (selector.points[0] != 0.25).any(-1)
    assert restarted.nonzero().flatten().tolist() == [*range(72), *range(100, 120)]
    on_edge = ((columns == 11) | (columns == 12))[restarted].float().mean()
    assert on_edge > 0.9  # the few others come from the small gradient everywhere


def test_points_drawn_anew_are_uniform_over_the_cells(train, p_value):
    training = train(SoftConfig(keep_ratio=0.5, uniform_ratio=1.0), Pool(500, (5, 8)))
    for step in (1, 2):
        assert 1e-3 < p_value(training.step(step).index.reshape(-1, 1), range(40)) < 1 - 1e-3


def test_the_points_of_a_row_that_first_appears_late_stay_where_they_were_drawn(device):
    """They restart at edges only once an error is known there: 2 of 24 columns hold about a twelfth of uniform ones."""
    target = torch.zeros(2, SIDE, SIDE, 1)
    target[:, :, 12:] = 1
    build = dict(total_steps=9, device=device, target=target.view(2, -1, 1))
    selector = build_selector(SoftConfig(), Pool(2, (SIDE, SIDE)), **build)
    selector.select(1, torch.tensor([0], device=device))
    columns = selector.select(5, torch.tensor([1], device=device)).index % SIDE
    on_edge = ((columns == 11) | (columns == 12)).float().mean().item()
    assert 0.03 < on_edge < 0.17


def test_half_precision_errors_are_widened_before_they_are_squared(train):
    training = train(SoftConfig(keep_ratio=0.5), Pool(1, (5, 6)))
    selector = training.selector
    selection = selector.weigh(selector.select(1), torch.full((1, 15, 3), 1e-4, device=training.device))
    small = torch.full((1, 15, 3), 1e-4, dtype=torch.float16, device=training.device)
    selector.observe(selection, Feedback(small, coord_grad=torch.full((1, 15, 2), 1e-6, device=training.device)))
    assert selector.error.mean().item() == pytest.approx(1e-8, rel=1e-2)
    assert selector.log_error_grad.isfinite().all() and selector.log_error_grad.abs().min() > 1


def test_options_are_checked():
    bad = {"alpha": 1.1, "correction_warmup": 0.0, "step_size": -1.0, "noise": -1.0, "uniform_ratio": 2.0}
    for name, value in {**bad, "restart_ratio": -0.1, "keep_schedule": "linear"}.items():
        with pytest.raises(InputError, match=f"^{name}: got"):
            SoftConfig(**{name: value})


def test_the_number_of_points_may_be_given_once(device):
    build = dict(total_steps=9, device=device, target=noise(1, 30, 1))
    selector = build_selector(SoftConfig(), Pool(1, (5, 6)), **build)
    selection = selector.select(1, count=7)
    selector.observe(selection, Feedback(torch.ones(1, 7, 1, device=device)))
    assert selector.select(2, count=7).index.shape == (1, 7)
    with pytest.raises(InputError, match="soft; allowed: a number of points a step that stays 7, not 9"):
        selector.select(3, count=9)
    other = build_selector(SoftConfig(), Pool(1, (5, 6)), **build)
    other.load_state_dict(selector.state_dict())
    assert torch.equal(other.select(3, count=7).index, selector.select(3, count=7).index)


def test_where_there_is_no_float64_none_is_used(monkeypatch):
    """MPS has none."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from evos.selection.draws import widest_float

    class Single(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            assert getattr(result, "dtype", None) != torch.float64, func
            return result

    assert widest_float(torch.device("mps")) == torch.float32
    for module in ("soft_mining", "draws"):
        monkeypatch.setattr(f"evos.selection.{module}.widest_float", lambda device: torch.float32)
    for config in (SoftConfig(), TilesConfig(warmup_steps=0), UniformConfig(), EgraConfig(), ExpansiveConfig()):
        with Single():
            target = {"target": torch.rand(1, 64, 3)} if "target" in SELECTORS[config.name][1].needs else {}
            one = build_selector(config, Pool(1, (8, 8)), total_steps=20, device="cpu", **target)
            for step in range(1, 5):
                selection = one.weigh(one.select(step, count=12), torch.rand(1, 12, 3))
                one.observe(selection, Feedback(torch.rand(1, 12, 3)))
