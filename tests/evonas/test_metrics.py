"""Metrics of depth beside slow loops."""

import math

import numpy as np
import pytest
import torch

from evonas.data import DataConfig
from evonas.tasks.depth import CROPS, depth_metrics, evaluated_part, valid_pixels


def slow(prediction, truth, low, high):
    """All metrics of one picture, pixel by pixel."""
    pairs = [
        (min(max(p, low), high), t)
        for p, t in zip(prediction.flatten().tolist(), truth.flatten().tolist(), strict=True)
        if low < t < high
    ]
    p, t = np.array(pairs).T
    logs = np.log(p) - np.log(t)
    ratio = np.maximum(p / t, t / p)
    return {
        "abs_rel": np.mean(abs(p - t) / t),
        "sq_rel": np.mean((p - t) ** 2 / t),
        "rmse": math.sqrt(np.mean((p - t) ** 2)),
        "rmse_log": math.sqrt(np.mean(logs**2)),
        "log10": np.mean(abs(np.log10(p / t))),
        "delta1": np.mean(ratio < 1.25),
        "delta2": np.mean(ratio < 1.25**2),
        "delta3": np.mean(ratio < 1.25**3),
        "silog": 100 * math.sqrt(np.mean(logs**2) - np.mean(logs) ** 2),
    }


def test_metrics_are_those_of_a_slow_loop():
    truth = 12 * torch.rand(3, 6, 7)
    truth[0, :3] = 0
    prediction = truth * torch.exp(0.5 * torch.randn(3, 6, 7)) + 0.2
    found = depth_metrics(prediction, truth, DataConfig())
    alone = [slow(p, t, 0.001, 10.0) for p, t in zip(prediction, truth, strict=True)]
    for name, value in found.items():
        assert value == pytest.approx(np.mean([one[name] for one in alone]), rel=1e-5), name
    assert found.keys() == alone[0].keys()


def test_a_constant_factor_costs_no_silog():
    truth = 1 + 5 * torch.rand(1, 8, 8)
    found = depth_metrics(1.3 * truth, truth, DataConfig())
    assert found["silog"] < 1e-3 and found["abs_rel"] == pytest.approx(0.3, rel=1e-5)
    assert (found["delta1"], found["delta2"]) == (0, 1)
    assert found["rmse_log"] == pytest.approx(math.log(1.3), rel=1e-5)


def test_pictures_without_a_valid_pixel_do_not_count():
    truth = torch.stack([torch.zeros(4, 4), torch.full((4, 4), 2.0)])
    assert depth_metrics(torch.full((2, 4, 4), 3.0), truth, DataConfig())["abs_rel"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("crop", "size", "rows", "columns"),
    [("none", (48, 64), (0, 48), (0, 64)), ("eigen", (480, 640), (45, 471), (41, 601)),
     ("garg", (375, 1242), (153, 371), (44, 1197))],
)  # fmt: skip
def test_crops_are_the_fields(crop, size, rows, columns):
    inside = valid_pixels(torch.ones(1, *size), DataConfig(crop=crop))[0]
    expected = torch.zeros(size, dtype=torch.bool)
    expected[rows[0] : rows[1], columns[0] : columns[1]] = True
    assert torch.equal(inside, expected)
    assert set(CROPS) == {"none", "eigen", "garg"}


def test_kittis_crops_stay_where_they_are_in_the_whole_picture():
    whole = evaluated_part(DataConfig(crop="garg"), 375, 1242)
    rows, columns = evaluated_part(DataConfig(crop="garg", kb_crop=True), 352, 1216)
    assert (rows.start + 23, rows.stop + 23) == (whole[0].start, whole[0].stop)
    assert (columns.start + 13, columns.stop + 13) == (whole[1].start, whole[1].stop)
    rows, columns = evaluated_part(DataConfig(crop="garg", kb_crop=True), 176, 608)  # trained at half the size
    assert (rows.start, rows.stop, columns.start, columns.stop) == (65, 174, 16, 592)
    assert evaluated_part(DataConfig(kb_crop=True), 352, 1216) == (slice(0, 352), slice(0, 1216))


def test_errors_outside_of_the_crop_do_not_count():
    truth = torch.full((1, 48, 64), 2.0)
    prediction = truth.clone()
    prediction[:, :, :4] = 4.0  # left of Eigen's first column
    assert depth_metrics(prediction, truth, DataConfig())["rmse"] == pytest.approx(math.sqrt(4 * 4 / 64))
    assert depth_metrics(prediction, truth, DataConfig(crop="eigen"))["rmse"] == 0
    prediction[:, 20, 20] = 3.0
    found = depth_metrics(prediction, truth, DataConfig(crop="eigen"))
    assert found["abs_rel"] == pytest.approx(0.5 / ((47 - 4) * (60 - 4)))


def test_predictions_are_clamped_to_the_range():
    truth = torch.full((1, 2, 2), 5.0)
    found = depth_metrics(torch.tensor([[[100.0, 10.0], [-3.0, 0.0]]]), truth, DataConfig(min_depth=1.0))
    assert found["abs_rel"] == pytest.approx((1 + 1 + 0.8 + 0.8) / 4)
    assert found["sq_rel"] == pytest.approx((5 + 5 + 3.2 + 3.2) / 4)
