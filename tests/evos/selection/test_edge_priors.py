"""Edge maps, EGRA and expansive supervision."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from evos.errors import InputError
from evos.selection import EgraConfig, ExpansiveConfig, Pool
from evos.selection.edges import canny_edges, gradient_magnitude

LOW, HIGH = 30 / 255, 40 / 255


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def half_dark(height: int, width: int, at: int) -> torch.Tensor:
    """A grey image, dark left of column ``at`` and bright from there on."""
    return (torch.arange(width) >= at).float().expand(height, width).reshape(1, -1, 1)


def slow_sobel(image: np.ndarray) -> np.ndarray:
    """Gradient magnitude by scipy, each kernel's absolute weights adding up to one."""
    return np.hypot(*(ndimage.sobel(image, axis, mode="nearest") / 8 for axis in (0, 1)))


def test_canny_edges_are_the_one_cell_wide_contour_of_a_step(device):
    edges = canny_edges(half_dark(9, 16, at=6).to(device), Pool(1, (9, 16)), LOW, HIGH).view(9, 16)
    assert edges.cpu().tolist() == [[float(column == 5) for column in range(16)]] * 9


def test_steps_below_the_thresholds_are_no_edges(device):
    for shape, target, steep in [
        ((9, 16), half_dark(9, 16, at=6), 0.3),
        ((16,), half_dark(1, 16, at=6), 0.05),
    ]:
        pool = Pool(1, shape)
        assert canny_edges((steep * target).to(device), pool, LOW, HIGH).any()
        assert not canny_edges((0.1 * steep * target).to(device), pool, LOW, HIGH).any()


def test_a_sound_s_edge_is_the_sample_before_the_jump(device):
    edges = canny_edges(half_dark(1, 16, at=6).to(device), Pool(1, (16,)), LOW, HIGH)
    assert edges[0].nonzero().flatten().tolist() == [5]


def test_views_of_a_stack_are_pictures_of_their_own(device):
    stack = torch.cat((half_dark(9, 16, at=6), torch.zeros(1, 144, 1)), dim=1).to(device)
    edges = canny_edges(stack, Pool(1, (2, 9, 16)), LOW, HIGH).view(2, 144)
    assert edges.sum(1).tolist() == [9, 0]


def test_the_gradient_magnitude_is_sobel_s_scaled_to_one_in_every_row(device):
    target, weights = noise(2, 63, 3), torch.tensor([0.2989, 0.587, 0.114])
    magnitude = gradient_magnitude(target.to(device), Pool(2, (7, 9))).cpu()
    for row in range(2):
        slow = slow_sobel((target[row] @ weights).view(7, 9).double().numpy())
        assert np.allclose(magnitude[row], slow.ravel() / slow.max(), atol=1e-3)


# ---- EGRA ----------------------------------------------------------------------------------------------------------


def column_shares(train, config: EgraConfig) -> np.ndarray:
    """How often each column of an image with an edge in column 8 is drawn."""
    training = train(config, Pool(400, (12, 32)), steps=12)
    edge = half_dark(12, 32, at=9).to(training.device)
    training.selector.edges = canny_edges(edge, Pool(1, (12, 32)), LOW, HIGH).expand(400, -1)
    columns = torch.cat([selection.index.flatten() for selection in training.run()]) % 32
    return torch.bincount(columns.cpu(), minlength=32).double().numpy() / len(columns)


@pytest.mark.parametrize("radius_high", [6, 9])
def test_egra_draws_shifted_edges_with_the_odds_it_says(train, radius_high):
    p, base = 0.05, 0.0064
    config = EgraConfig(keep_ratio=0.01, edge_odds=p, base_odds=base, radius_low=6, radius_high=radius_high)
    shares = column_shares(train, config)
    near = list(range(14, 8 + radius_high + 1))
    chance = 1 / len(near)  # of a cell of these columns to be hit by the random shift
    ratio = 1 + chance * p / ((1 - p) * base)
    far = [column for column in range(32) if column not in near]
    assert shares[near].mean() / shares[far].mean() == pytest.approx(ratio, rel=0.08)


def test_egra_with_all_odds_on_edges_draws_those_first_and_then_usable_cells(train):
    mask = noise(1, 384) < 0.5
    training = train(EgraConfig(keep_ratio=1.0, edge_odds=1.0), Pool(1, (12, 32), mask=mask))
    assert set(training.step(1).index[0].tolist()) == set(mask[0].nonzero().flatten().tolist())
    few = column_shares(train, EgraConfig(keep_ratio=0.02, edge_odds=1.0))
    assert few[14:18].sum() == pytest.approx(1)


def test_egra_options_are_checked():
    for options in ({"edge_odds": 1.5}, {"base_odds": 0.0}, {"radius_low": -1}, {"radius_low": 7, "radius_high": 6}):
        with pytest.raises(InputError):
            EgraConfig(**options)


# ---- expansive supervision -----------------------------------------------------------------------------------------


def test_anchors_are_the_strongest_edges_after_dilation_and_always_trained_on(train):
    training = train(ExpansiveConfig(keep_ratio=0.4, anchor_ratio=0.5), Pool(2, (8, 10)))
    weights = torch.tensor([0.2989, 0.587, 0.114])
    selections = training.run()
    for row in range(2):
        slow = slow_sobel((training.signal[row].cpu() @ weights).view(8, 10).double().numpy())
        strength = np.zeros_like(slow)
        for y, x in np.ndindex(8, 10):
            strength[y, x] = slow[max(0, y - 1) : y + 1, max(0, x - 1) : x + 1].max()
        strength = strength.ravel() / slow.max()
        anchors = training.selector.anchors[row].tolist()
        others = sorted(set(range(80)) - set(anchors))
        assert len(anchors) == 16 and strength[anchors].min() >= strength[others].max() - 1e-3
        for selection in selections:
            assert set(anchors) <= set(selection.index[row].tolist()) and selection.index.shape == (2, 32)


def test_the_other_cells_of_expansive_supervision_are_uniform(train, p_value):
    training = train(ExpansiveConfig(keep_ratio=0.5), Pool(1, (5, 8)), steps=1500)
    anchors = set(training.selector.anchors[0].tolist())
    drawn = [[cell for cell in s.index[0].tolist() if cell not in anchors] for s in training.run()]
    assert 1e-3 < p_value(torch.tensor(drawn), sorted(set(range(40)) - anchors)) < 1 - 1e-3


def test_anchors_of_a_flat_signal_are_spread_and_their_share_may_be_all_or_nothing(train):
    flat = train(ExpansiveConfig(keep_ratio=0.5), Pool(1, (20, 20)))
    flat.signal[:] = 0.5
    flat.__post_init__()
    assert len({cell // 20 for cell in flat.selector.anchors[0].tolist()}) > 10
    whole, none = (train(ExpansiveConfig(keep_ratio=0.29, anchor_ratio=share), Pool(1, (100,))) for share in (1.0, 0.0))
    assert set(whole.step(1).index[0].tolist()) == set(whole.selector.anchors[0].tolist())
    assert none.selector.anchors.shape == (1, 0) and none.step(1).index.shape == (1, 29)
