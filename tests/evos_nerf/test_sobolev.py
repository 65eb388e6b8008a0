"""Sobolev supervision: its targets, its differences to the next pixel, its place in the pipeline's loss."""

from unittest.mock import Mock

import pytest
import torch

pytest.importorskip("nerfstudio")

from evos.derivatives import SMOOTHING, spatial_gradient
from evos.errors import InputError
from evos.selection import Selection
from evos_nerf.datamanager import EvosDataManager, EvosDataManagerConfig
from evos_nerf.pixel_sampler import EvosPixelSampler, EvosPixelSamplerConfig
from evos_nerf.rays import RayPool, drawn_pixels
from evos_nerf.sobolev import DerivativeTerm, SobolevConfig, picture_derivative
from evos_nerf.tiles import build_grid

pytestmark = [pytest.mark.nerf, pytest.mark.filterwarnings("ignore")]

SIZES = [(5, 7), (6, 4)]


@pytest.fixture
def pictures():
    torch.manual_seed(0)
    return [torch.rand(height, width, 3) for height, width in SIZES]


def pool(pictures):
    return RayPool.of({"image": pictures, "image_idx": torch.arange(len(pictures))})


@pytest.mark.parametrize("operator", SMOOTHING)
def test_the_target_is_the_derivative_of_the_whole_picture(operator, pictures):
    points = torch.tensor(
        [[i, y, x] for i, (height, width) in enumerate(SIZES) for y in range(height) for x in range(width)]
    )
    found = picture_derivative(pool(pictures).colours, build_grid(SIZES, 2, "cpu"), points, operator)
    whole = [spatial_gradient(p.permute(2, 0, 1)[None], operator)[0].permute(2, 3, 0, 1) for p in pictures]
    torch.testing.assert_close(found, torch.cat([w.flatten(0, 1) for w in whole]), rtol=0, atol=1e-7)


class Painter(torch.nn.Module):
    """A model whose colours are a function of the pixel, plus jitter."""

    def __init__(self, pictures):
        super().__init__()
        self.pictures = pictures

    def forward(self, points):
        colours = torch.stack([self.pictures[i][y, x] for i, y, x in points.tolist()])
        return {"rgb": 3 * colours + torch.rand(len(points), 3)}


def test_differences_are_those_of_the_picture_whatever_the_jitter(pictures):
    points = torch.tensor([[0, 2, 3], [0, 4, 6], [1, 5, 0], [1, 0, 3]])
    model, grid = Painter(pictures).train(), build_grid(SIZES, 2, "cpu")
    weight = torch.tensor([[1.0, 2.0, 0.5, 0.5]])
    drawn = Mock(Selection, weight=weight)
    data = Mock(EvosDataManager, train_ray_generator=lambda points: points, last_batch={"indices": points})
    term = DerivativeTerm(SobolevConfig(lambda_der=0.5), model, data)
    sampler = Mock(EvosPixelSampler, grid=grid, rays=pool(pictures))
    outputs, after = model(points), torch.get_rng_state()
    losses = term.add_to({"rgb_loss": torch.ones(())}, outputs, model, sampler, drawn)
    assert torch.equal(torch.get_rng_state(), after)
    expected = 0.0
    for (i, y, x), factor in zip(points.tolist(), weight[0].tolist(), strict=True):
        a = y if y + 1 < SIZES[i][0] else y - 1
        b = x if x + 1 < SIZES[i][1] else x - 1
        p = pictures[i]
        # The model's differences are three times the picture's: their error is twice the picture's.
        expected += factor * 4 * float((p[a + 1, x] - p[a, x]).square().sum() + (p[y, b + 1] - p[y, b]).square().sum())
    assert losses["derivative_loss"].item() == pytest.approx(0.5 * expected / 4, rel=1e-5)
    assert losses["rgb_loss"] == 1
    only = DerivativeTerm(SobolevConfig("der", 0.5), model, data).add_to(losses, model(points), model, sampler, drawn)
    assert set(only) == {"derivative_loss"}


def test_differences_are_not_taken_across_the_edge_of_a_mask(pictures):
    """Of the next pixel, else of the previous one, else none; what is masked shows in neither of the two."""
    masks = [torch.ones(*size, 1, dtype=torch.bool) for size in SIZES]
    masks[0][3, 3], masks[0][2, 4], masks[0][2, 2] = False, False, False
    rays = RayPool.of({"image": pictures, "image_idx": torch.arange(2), "mask": masks})
    points = torch.tensor([[0, 2, 3], [0, 1, 2]])
    data = Mock(EvosDataManager, train_ray_generator=lambda points: points)
    term = DerivativeTerm(SobolevConfig(lambda_der=1.0), model := Painter(pictures).train(), data)
    outputs = model(points)
    found, target = term._differences(outputs["rgb"], model, rays, points)
    p = pictures[0]
    by_row, by_column = [p[2, 3] - p[1, 3], p[1, 2] - p[0, 2]], [torch.zeros(3), p[1, 3] - p[1, 2]]
    expected = torch.stack([torch.stack(by_row), torch.stack(by_column)], dim=-1)
    torch.testing.assert_close(target, expected)
    torch.testing.assert_close(found, 3 * expected, rtol=1e-5, atol=1e-6)


def test_nerfacto_learns_derivatives_too(method):
    config = method("evos-nerfacto")
    config.pipeline.sobolev = SobolevConfig(lambda_der=0.1)
    torch.manual_seed(0)
    pipeline = config.pipeline.setup(device="cpu", test_mode="val")
    outputs, losses, _ = pipeline.get_train_loss_dict(0)
    assert outputs["rgb"].shape == (32, 3) and losses["derivative_loss"].item() > 0
    losses["derivative_loss"].backward()
    assert pipeline.model.field.mlp_head.layers[0].weight.grad.abs().sum() > 0
    # As many random numbers are drawn as without: only the loss is another.
    config.pipeline.sobolev = SobolevConfig()
    state = torch.get_rng_state()
    torch.manual_seed(0)
    pipeline = config.pipeline.setup(device="cpu", test_mode="val")
    again, plain, _ = pipeline.get_train_loss_dict(0)
    assert torch.equal(again["rgb"], outputs["rgb"]) and "derivative_loss" not in plain
    assert torch.equal(torch.get_rng_state(), state)


def test_cameras_whose_rays_are_not_ours_are_refused(pictures):
    term = DerivativeTerm(SobolevConfig(lambda_der=1.0), Painter(pictures), Mock(EvosDataManager))
    with pytest.raises(InputError, match="equirectangular"):
        term.add_to({}, {}, Painter(pictures), None, None)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"lambda_der": -1.0}, "lambda_der"),
        ({"supervision": "both"}, "supervision"),
        ({"der_operator": "sobal"}, "did you mean sobel"),
        ({"supervision": "der"}, "lambda_der: got 0.0"),
    ],
)
def test_wrong_options_are_refused(options, name):
    with pytest.raises(InputError, match=name):
        SobolevConfig(**options)


def test_every_factor_th_pixel_within_the_masks_that_there_are():
    assert drawn_pixels(None, (5, 7), 3, None).nonzero().tolist() == [[y, x] for y in (0, 3) for x in (0, 3, 6)]
    given = torch.ones(6, 4, dtype=torch.bool)
    given[0] = False
    assert drawn_pixels(given, (6, 4), 3, None).nonzero().tolist() == [[3, 0], [3, 3]]


def test_a_factor_and_ignored_masks_are_refused():
    with pytest.raises(InputError, match="factor: got 4"):
        EvosDataManagerConfig(factor=4, pixel_sampler=EvosPixelSamplerConfig(ignore_mask=True))


def test_options_are_on_the_command_line():
    import tyro

    from evos_nerf.methods import evos_nerfacto

    words = ["--pipeline.sobolev.lambda-der", "0.1", "--pipeline.sobolev.der-operator", "diff"]
    config = tyro.cli(type(evos_nerfacto.config), default=evos_nerfacto.config, args=words)
    assert config.pipeline.sobolev == SobolevConfig(lambda_der=0.1, der_operator="diff")
