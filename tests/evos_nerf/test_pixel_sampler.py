"""The pixel sampler alone: which pixels it draws, what it learns, what it saves."""

from types import SimpleNamespace

import pytest
import torch
from scipy.stats import chisquare

pytest.importorskip("nerfstudio")

from benchmarks.common import Kernels
from evos.errors import InputError
from evos.selection import SoftConfig, TilesConfig
from evos_nerf.half_precision import packed, unpacked
from evos_nerf.pixel_sampler import (
    SELECTION,
    STRATEGIES,
    EvosPixelSamplerConfig,
    warn_of_fallback,
)
from evos_nerf.rays import RayPool
from evos_nerf.tiles import TILE_BYTES, largest_count

pytestmark = pytest.mark.nerf

NO_WARMUP = TilesConfig(warmup_steps=0)


def images(count=4, height=12, width=8, **more):
    """Images whose every value tells its place."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    stack = torch.stack([torch.stack((torch.full_like(y, i), y, x), -1) for i in range(count)]) / 100
    return {"image": stack, "image_idx": torch.arange(count), **more}


def sampler(rays=24, seed=0, **options):
    torch.manual_seed(seed)
    return EvosPixelSamplerConfig(**{"tiles": NO_WARMUP, "tile_side": 4, **options}).setup(num_rays_per_batch=rays)


def learn(one, batch, steps, error=lambda batch: batch["image"], start=0):
    """Train for some steps on errors that are a function of the pixel batch; the last batch."""
    for step in range(start, start + steps):
        pixels = one.sample(batch, step)
        one.observe(pixels[SELECTION], error(pixels))
    return pixels


@pytest.mark.parametrize("selector", STRATEGIES)
def test_a_batch_holds_the_pixels_at_its_indices(selector):
    batch = images(depth_image=torch.rand(4, 12, 8, 1))
    pixels = learn(sampler(selector=selector), batch, 5)
    image, y, x = pixels["indices"].unbind(1)
    assert len(image) == 24
    assert torch.equal(pixels["image"], batch["image"][image, y, x])
    assert torch.equal(pixels["depth_image"], batch["depth_image"][image, y, x])


@pytest.mark.parametrize("selector", STRATEGIES)
def test_images_of_different_sizes_come_as_lists(selector):
    mixed = [images(1, height, width)["image"][0] for height, width in ((12, 8), (9, 15), (5, 20))]
    pixels = learn(sampler(selector=selector, rays=14), {"image": mixed, "image_idx": torch.arange(3)}, 8)
    for (image, y, x), colour in zip(pixels["indices"].tolist(), pixels["image"], strict=True):
        assert torch.equal(colour, mixed[image][y, x])


@pytest.mark.parametrize("selector", STRATEGIES)
def test_masked_pixels_are_never_drawn(selector):
    mask = torch.rand(4, 12, 8, 1) < 0.4
    mask[0] = False
    one, drawn = sampler(selector=selector, rays=16, tile_side=3), []
    for step in range(60):
        drawn.append(learn(one, images(mask=mask), 1, lambda _: torch.rand(16, 3), start=step)["indices"])
    image, y, x = torch.cat(drawn).unbind(1)
    assert mask[image, y, x].all()
    ignoring = sampler(selector=selector, rays=16, ignore_mask=True)
    image, y, x = torch.cat([ignoring.sample(images(mask=mask), step)["indices"] for step in range(20)]).unbind(1)
    assert not mask[image, y, x].all()


ALL_MUTANTS = {"tiles": TilesConfig(keep_ratio=1.0, mutation_ratio=1.0, rank_interval=5, warmup_steps=0)}
ONLY_WARMUP = {"tiles": TilesConfig(warmup_steps=10**6)}


@pytest.mark.parametrize("options", [ALL_MUTANTS, ONLY_WARMUP, {"selector": "uniform"}])
def test_everybody_a_mutant_is_uniform_over_pixels(options):
    one, drawn = sampler(tile_side=5, rays=256, **options), []  # 5 divides neither 12 nor 8
    if "selector" in options:
        one = sampler(tile_side=1, rays=256, **options)
    for step in range(150):
        drawn.append(learn(one, images(), 1, lambda _: torch.rand(256, 3), start=step)["indices"])
    image, y, x = torch.cat(drawn).unbind(1)
    counts = torch.bincount((image * 12 + y) * 8 + x, minlength=4 * 96)
    # Draws without replacement within a step vary less than multinomial ones: the test is one-sided anyway.
    assert chisquare(counts).pvalue > 0.001


def test_survivors_go_where_the_error_is():
    tiles = TilesConfig(keep_ratio=0.25, mutation_ratio=0.5, full_exponent=0.0, rank_interval=5, warmup_steps=2)
    one, batch = sampler(rays=64, tiles=tiles), images()

    def error(pixels):  # one image in four is wrong
        return (pixels["indices"][:, :1] == 2).float().expand(-1, 3)

    learn(one, batch, 40, error)
    found = torch.cat([learn(one, batch, 1, error, start)["indices"][:, 0] for start in range(40, 80)])
    share = (found == 2).float().mean()
    # Half the rays are survivors, of an eighth of the tiles; mutants: 3 of the other 21 tiles lie in image 2.
    assert one.metrics()["survivor_ratio"] == pytest.approx(0.5)
    assert share == pytest.approx(0.5 + 0.5 * 3 / 21, abs=0.03)


def test_warm_up_is_uniform_and_its_errors_count():
    one = sampler(rays=64, tiles=TilesConfig(warmup_steps=16))
    learn(one, images(), 16, error=lambda pixels: (pixels["indices"][:, :1] == 1).float().expand(-1, 3))
    assert one.metrics()["survivor_ratio"] == 0
    one.flush_feedback()
    assert (one.selector.cache.visits > 0).all()
    learn(one, images(), 1, start=16)
    # The error lies in a quarter of the tiles: as concentrated as it takes for the tenth of mutants that is configured.
    assert one.metrics()["survivor_ratio"] == pytest.approx(0.9, abs=0.03)


def test_the_rays_of_a_step_may_change():
    one = sampler(rays=16)
    learn(one, images(), 3)
    one.set_num_rays_per_batch(40)
    assert len(learn(one, images(), 3, start=3)["indices"]) == 40


def test_every_step_has_its_share_of_the_rays_drawn_ahead():
    one = sampler(rays=24, tiles=TilesConfig(keep_ratio=0.25, mutation_ratio=0.5, rank_interval=10, warmup_steps=2))
    learn(one, images(), 15, lambda pixels: (pixels["indices"][:, :1] == 2).float().expand(-1, 3))
    fit = one.selector.order[0, :3]  # an eighth of 24 tiles, all in image 2
    share = [torch.isin(one.sample(images(), s)[SELECTION].index[0], fit).sum() for s in (15, 16, 17)]
    assert all(12 <= count <= 16 for count in share)  # 12 survivors, and 12 mutants of the 21 other tiles


def test_between_two_rankings_a_step_costs_the_device_next_to_nothing():
    one, batch, counts = sampler(), images(), []
    learn(one, batch, 32)
    for step in range(32, 64):
        error = torch.rand(24, 3)
        with Kernels() as kernels:
            one.observe(one.sample(batch, step)[SELECTION], error)
            one.metrics()
        counts.append(kernels.count)
    # Steps are counted from 0, key steps from 1: steps 32 and 48 rank, and draw for all up to the next one.
    assert {count for step, count in enumerate(counts, start=32) if step not in (32, 48)} == {1}
    assert max(counts) < 310


def test_while_the_number_of_rays_changes_a_step_costs_no_more_than_a_few_operations():
    """instant-ngp's changes in every step."""
    one, batch, counts, drawn = sampler(rays=1000), images(), [], []
    learn(one, batch, 32)
    for step in range(32, 64):
        rays = 1000 + (37 * step) % 90
        one.set_num_rays_per_batch(rays)
        with Kernels() as kernels:
            pixels = one.sample(batch, step)
        counts.append(kernels.count)
        assert len(pixels["indices"]) == pixels[SELECTION].index.shape[1] == rays
        drawn.append(pixels["indices"])
        one.observe(pixels[SELECTION], pixels["image"])
    # Two rankings, and once because the number changes for the first time; two steps have more rays than were drawn.
    assert sum(count > 1 for count in counts) <= 3


def test_fewer_rays_than_were_drawn_keep_the_fraction_of_survivors():
    one = sampler(rays=240, tiles=TilesConfig(keep_ratio=0.25, mutation_ratio=0.5, rank_interval=10, warmup_steps=2))
    learn(one, images(), 15, lambda pixels: (pixels["indices"][:, :1] == 2).float().expand(-1, 3))
    fit = one.selector.order[0, :3]
    for step, rays in ((15, 241), (16, 100), (17, 30)):
        one.set_num_rays_per_batch(rays)
        selected = one.sample(images(), step)[SELECTION].index[0]
        survivors = (torch.isin(selected, fit).float().mean() - 3 / 24) / (1 - 3 / 24)
        assert len(selected) == rays and survivors == pytest.approx(0.5, abs=0.12)


def test_no_more_rays_are_drawn_ahead_than_fit(monkeypatch):
    monkeypatch.setattr("evos_nerf.pixel_sampler.RAYS_AHEAD", 64)
    one, drawn = sampler(rays=16), []
    draw = type(one)._draw
    monkeypatch.setattr(type(one), "_draw", lambda *given: drawn.append(draw(*given)) or drawn[-1])
    learn(one, images(), 8)
    assert [len(ahead.cells) for ahead in drawn] == [4, 4]
    one.set_num_rays_per_batch(100)
    learn(one, images(), 1, start=8)
    assert len(drawn[-1].cells) == 1


def test_a_step_that_does_not_follow_the_last_one_is_drawn_alone_and_anew(monkeypatch):
    """ns-export asks for step 0 over and over."""
    one, drawn = sampler(), []
    draw = type(one)._draw
    monkeypatch.setattr(type(one), "_draw", lambda *given: drawn.append(draw(*given)) or drawn[-1])
    batches = [one.sample(images(), 0)["indices"] for _ in range(5)]
    assert [len(ahead.cells) for ahead in drawn] == [16, 1, 1, 1, 1]
    assert not any(torch.equal(batches[0], other) for other in batches[1:])


def test_soft_mining_has_a_point_for_each_ray():
    one = sampler(selector="soft", rays=7, soft=SoftConfig(keep_ratio=0.9))
    selection = learn(one, images(), 4)[SELECTION]
    assert selection.index.shape == (1, 7) and one.selector.count == 7
    weight = one.weigh(selection, torch.rand(7, 3)).weight[0]
    assert weight.shape == (7,) and (weight > 0).all()
    one.set_num_rays_per_batch(8)
    with pytest.raises(InputError, match="soft"):
        one.sample(images(), 5)


@pytest.mark.parametrize("selector", STRATEGIES)
def test_the_same_seed_draws_the_same_whatever_else_is_drawn(selector):
    one, other = sampler(selector=selector), sampler(selector=selector)
    for step in range(12):
        first = one.sample(images(), step)
        torch.rand(step + 1)
        second = other.sample(images(), step)
        assert torch.equal(first["indices"], second["indices"])
        one.observe(first[SELECTION], first["image"])
        other.observe(second[SELECTION], second["image"])
    third = sampler(selector=selector, seed=1).sample(images(), 0)
    assert not torch.equal(third["indices"], sampler(selector=selector).sample(images(), 0)["indices"])


@pytest.mark.parametrize("selector", STRATEGIES)
def test_who_resumes_and_who_goes_on_draw_the_same(selector, tmp_path):
    one, batch = sampler(selector=selector), images()
    learn(one, batch, 60)
    torch.save(one.state_dict(), tmp_path / "state.pt")
    other = sampler(selector=selector, seed=9)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for step in range(60, 120):
        ours, theirs = learn(one, batch, 1, start=step), learn(other, batch, 1, start=step)
        assert torch.equal(ours["indices"], theirs["indices"])


@pytest.mark.parametrize("selector", ["tiles", "expansive"])
def test_a_run_may_resume_with_more_rays_and_keeps_its_tiles(selector):
    one = sampler(selector=selector)
    learn(one, images(), 3)
    other = sampler(selector=selector, rays=50, tile_side=2)
    other.load_state_dict(one.state_dict())
    assert len(learn(other, images(), 2, start=3)["indices"]) == 50
    assert other.grid.side == 4


def test_errors_are_saved_in_half_precision():
    one = sampler(rays=64)
    learn(one, images(), 30, error=lambda pixels: torch.rand(64, 3))
    one.flush_feedback()
    before = one.selector.cache.sums.clone()
    state = one.state_dict()
    assert state["selector"]["means"].dtype == torch.float16
    count = before[..., -1:]
    means = torch.where(count > 0, before[..., :-1] / count, 0.0)
    torch.testing.assert_close(one.selector.cache.sums, torch.cat((means.half().float() * count, count), dim=-1))
    assert unpacked(packed({"seen": torch.ones(1, 2), "points": torch.ones(2)}))["points"].dtype == torch.float32


def test_a_resumed_run_keeps_the_length_it_was_planned_for():
    one = sampler()
    one.plan(100)
    learn(one, images(), 5)
    other = sampler()
    other.load_state_dict(one.state_dict())
    other.plan(50)
    assert other.state_dict()["total_steps"] == 100  # saved again before its first step
    learn(other, images(), 1, start=5)
    assert other.total_steps == 100 and other.selector.total_steps == 100
    learn(other, images(), 1, start=250)
    assert other.selector.total_steps == 100


def test_a_state_of_another_version_or_strategy_is_refused():
    one = sampler()
    learn(one, images(), 1)
    with pytest.raises(InputError, match="version 2"):
        sampler().load_state_dict({**one.state_dict(), "version": 1})
    with pytest.raises(InputError, match="tiles, as in the checkpoint"):
        sampler(selector="egra").load_state_dict(one.state_dict())


def test_images_of_other_sizes_than_in_the_checkpoint_begin_the_selector_afresh_and_say_so(capsys):
    one = sampler()
    one.plan(300)
    learn(one, images(), 40)
    other, fresh = sampler(seed=5), sampler(seed=5)
    other.load_state_dict(one.state_dict())
    fresh.plan(300)
    for step in range(40, 60):
        ours, theirs = (learn(some, images(4, 24, 16), 1, start=step) for some in (other, fresh))
        assert torch.equal(ours["indices"], theirs["indices"])
    said = [line for line in capsys.readouterr().out.splitlines() if "Warning" in line]
    assert len(said) == 1 and "other sizes than in the checkpoint" in said[0]
    other.load_state_dict(other.state_dict())
    learn(other, images(4, 24, 16), 1, start=60)
    assert "Warning" not in capsys.readouterr().out


def test_the_masks_of_now_hold_in_a_resumed_run_and_no_error_is_booked_on_a_neighbour():
    one, mask = sampler(rays=64), torch.rand(4, 12, 8, 1) < 0.5
    learn(one, images(), 40, lambda pixels: torch.rand(64, 3))
    mask[:2, :, :4] = False  # whole tiles
    other = sampler(rays=64)
    other.load_state_dict(one.state_dict())
    for step in range(40, 240):
        pixels = learn(other, images(mask=mask), 1, lambda pixels: torch.rand(64, 3), start=step)
        image, y, x = pixels["indices"].unbind(1)
        assert mask[image, y, x].all()
        assert torch.equal(pixels[SELECTION].index[0], (image * 3 + y // 4) * 2 + x // 4)
    other.flush_feedback()
    cache, usable = other.selector.cache, other.grid.usable
    assert not usable.all() and (cache.sums[0, ~usable] == 0).all() and (cache.visits[0, ~usable] == 0).all()
    assert (cache.visits[0, usable] > 0).all()


def test_a_model_that_drops_rays_is_told_at_once():
    one = sampler()
    selection = one.sample(images(), 0)[SELECTION]
    with pytest.raises(InputError, match="model: got colours of 20 rays; allowed: all 24 of the batch"):
        one.observe(selection, torch.rand(20, 3))


def test_bytes_give_the_rays_that_floats_give():
    values = (100 * images()["image"]).byte()
    rays = RayPool([(12, 8)] * 4, {"image": values.flatten(0, 2)}, torch.device("cpu"))
    floats = {"image": values.float() / 255, "image_idx": torch.arange(4)}
    for selector in (*STRATEGIES, "host"):
        one, other = sampler(selector=selector), sampler(selector=selector)
        for step in range(20):
            torch.manual_seed(step)
            ours = one.sample(rays, step)
            torch.manual_seed(step)
            theirs = other.sample(floats, step)
            assert torch.equal(ours["indices"], theirs["indices"]) and torch.equal(ours["image"], theirs["image"])
            if selector != "host":
                one.observe(ours[SELECTION], ours["image"])
                other.observe(theirs[SELECTION], theirs["image"])


def test_a_gpu_ranks_as_many_tiles_as_fit_in_a_sixteenth_of_its_memory(monkeypatch):
    assert largest_count(torch.device("cpu")) == 1 << 18
    for gib, tiles in ((8, (1 << 21, 1 << 22)), (24, (1 << 22, 1 << 23)), (80, (1 << 23, 1 << 23))):
        found = SimpleNamespace(total_memory=gib << 30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, found=found: found)
        count = largest_count(torch.device("cuda"))
        assert tiles[0] <= count <= tiles[1] and count * TILE_BYTES <= (gib << 30) / 16


def test_evaluation_is_nerfstudios_uniform_sampling():
    from nerfstudio.data.pixel_samplers import PixelSamplerConfig

    torch.manual_seed(1)
    theirs = PixelSamplerConfig().setup(num_rays_per_batch=24).sample(images())
    one = sampler()
    torch.manual_seed(1)
    ours = one.sample(images())
    assert torch.equal(ours["indices"], theirs["indices"]) and SELECTION not in ours


@pytest.mark.filterwarnings("ignore")  # the host's, that rejection fails
def test_evaluation_draws_some_pixels_twice_where_masks_leave_fewer_than_it_draws():
    mask = torch.zeros(4, 12, 8, 1, dtype=torch.bool)
    mask[1, 3, 5] = mask[2, 7, 0] = True
    found = sampler().sample(images(mask=mask))["indices"].tolist()
    assert len(found) == 24 and {*map(tuple, found)} == {(1, 3, 5), (2, 7, 0)}


def test_panoramas_fall_back_with_one_warning(capsys):
    camera = {"is_equirectangular": True}
    warn_of_fallback.cache_clear()
    EvosPixelSamplerConfig().setup(num_rays_per_batch=24, **camera).sample(images())  # as for evaluation
    one = EvosPixelSamplerConfig().setup(num_rays_per_batch=24, **camera)
    for step in range(3):
        batch = one.sample(images(), step)
        assert batch["indices"].shape == (24, 3) and SELECTION not in batch
    assert capsys.readouterr().out.count("Warning: equirectangular cameras") == 1
    assert one.state_dict() is None and one.maps(0) == {}


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"selector": "full"}, "selector: got full; allowed: tiles"),
        ({"selector": "int"}, "selector: got int; allowed: tiles"),
        ({"selector": "tile"}, "selector: got tile; allowed: did you mean tiles"),
        ({"visits": 0.0}, "visits"),
        ({"max_tiles": 0}, "max_tiles"),
        ({"tile_side": 0}, "tile_side"),
    ],
)
def test_wrong_options_are_refused(options, names):
    with pytest.raises(InputError, match=names):
        EvosPixelSamplerConfig(**options)


def test_some_of_the_images_or_another_order_are_refused():
    with pytest.raises(InputError, match="EvosDataManager"):
        sampler().sample({**images(), "image_idx": torch.tensor([1, 0, 2, 3])}, 0)


def test_maps_show_what_was_drawn_and_what_is_known():
    one = sampler(rays=64)
    learn(one, images(), 40, error=lambda pixels: (pixels["indices"][:, :1] == 1).float().expand(-1, 3))
    maps = one.maps(1)
    assert set(maps) == {"evos_drawn", "evos_error"}
    assert maps["evos_error"].shape == (12, 8, 3)
    top, bottom = maps["evos_error"][0, 0], maps["evos_error"][-1, -1]
    assert torch.allclose(top, bottom, atol=0.05)  # the same error everywhere
    assert not torch.equal(maps["evos_error"], one.maps(0)["evos_error"])
    assert one.drawn.sum() <= 40 * 64 and one.metrics()["sampler_ms"] > 0


def test_a_step_of_residuals_that_are_not_finite_leaves_the_rays_chosen_and_all_state_finite():
    """nerfacto's grad scaler skips such a step and goes on."""
    one, other, batch = sampler(rays=64), sampler(rays=64), images()

    def wrong(pixels):  # one image in four
        return (pixels["indices"][:, :1] == 2).float().expand(-1, 3)

    learn(one, batch, 40, wrong)
    last = learn(other, batch, 40, wrong)[SELECTION]
    one.observe(last, torch.full((64, 3), torch.nan))  # beside those of the same step that are finite
    learn(one, batch, 1, lambda pixels: torch.full((64, 3), torch.inf), start=40)
    learn(other, batch, 1, lambda pixels: torch.full((64, 3), 0.0), start=40)
    learn(one, batch, 40, wrong, start=41)
    learn(other, batch, 40, wrong, start=41)
    share = [float((sampling.sample(batch, 81)["indices"][:, 0] == 2).float().mean()) for sampling in (one, other)]
    assert share[0] > 0.8 and share[1] > 0.8
    state = one.state_dict()["selector"]
    assert all(bool(value.isfinite().all()) for value in state.values() if isinstance(value, torch.Tensor))


def test_a_single_residual_that_is_not_finite_costs_its_step_nothing_else():
    one, batch = sampler(rays=64), images()
    learn(one, batch, 20, lambda pixels: (pixels["indices"][:, :1] == 2).float().expand(-1, 3))
    selection = one.sample(batch, 20)[SELECTION]
    residual = torch.zeros(64, 3)
    residual[5, 1] = torch.nan
    before = one.selector.cache.visits.sum()
    one.observe(selection, residual)
    one.flush_feedback()
    # Of the steps since the last ranking (16 to 20) all rays but this one are visits.
    assert one.selector.cache.visits.sum() - before == 5 * 64 - 1
    assert one.selector.cache.sums.isfinite().all()


def stray_mask(stray=0.0024, count=4, height=96, width=96):
    """Images whose left half is unmasked, with single pixels elsewhere that make the fraction ``stray`` of all."""
    mask = torch.zeros(count, height, width, dtype=torch.bool)
    mask[:, :, : width // 2] = True
    inside = int(mask.sum())
    outside = (~mask).flatten().nonzero().squeeze(1)
    chosen = torch.randperm(len(outside), generator=torch.Generator().manual_seed(3))[: round(inside * stray)]
    mask.view(-1)[outside[chosen]] = True
    is_stray = torch.zeros_like(mask)
    is_stray.view(-1)[outside[chosen]] = True
    return mask[..., None], is_stray


UNIFORM = {
    "uniform": {"selector": "uniform"},
    "warm-up": {"tiles": TilesConfig(warmup_steps=10**6)},
    "all mutants": {"tiles": TilesConfig(keep_ratio=1.0, mutation_ratio=1.0, warmup_steps=0)},
}


@pytest.mark.parametrize("side", [3, 8, 32])
@pytest.mark.parametrize("name", UNIFORM)
def test_uniform_is_uniform_over_unmasked_pixels_as_it_is_with_nerfstudios_sampler(name, side):
    from nerfstudio.data.pixel_samplers import PixelSamplerConfig

    mask, is_stray = stray_mask()
    batch, rays = images(4, 96, 96, mask=mask), 2000
    one = sampler(rays=rays, tile_side=side, **UNIFORM[name])
    host = PixelSamplerConfig(rejection_sample_mask=False).setup(num_rays_per_batch=rays)
    counts = []
    for draw in (lambda step: learn(one, batch, 1, start=step), lambda step: host.sample(batch)):
        drawn = torch.cat([draw(step)["indices"] for step in range(100)])
        image, y, x = drawn.unbind(1)
        counts.append(torch.bincount(((image * 96 + y) * 96 + x), minlength=mask.numel())[mask.flatten()])
    ours, theirs = counts
    expected = float(is_stray.sum() / mask.sum())
    for found in counts:
        assert chisquare(found).pvalue > 1e-3
    stray = is_stray.flatten()[mask.flatten()]
    assert float(ours[stray].sum() / ours.sum()) == pytest.approx(expected, rel=0.2)
    assert float(theirs[stray].sum() / theirs.sum()) == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("side", [4, 32])
def test_stray_pixels_that_are_all_wrong_get_no_more_rays_than_their_share_of_the_fit(side):
    mask, is_stray = stray_mask()
    one, batch, share = sampler(rays=2000, tile_side=side, tiles=TilesConfig(warmup_steps=4)), images(4, 96, 96), []
    batch["mask"] = mask
    for step in range(48):
        pixels = one.sample(batch, step)
        image, y, x = pixels["indices"].unbind(1)
        found = is_stray[image, y, x]
        one.observe(pixels[SELECTION], 0.1 + 0.4 * found[:, None].float().expand(-1, 3))
        share.append(float(found.float().mean()))
    # The fit are at least 13.5 % of the pixels; these 0.24 % in it get at most 0.24 / 13.5 of the survivors.
    assert sum(share[16:]) / 32 < 0.0024 / 0.135 * 1.5


def test_however_many_rays_a_tile_gets_what_is_saved_is_finite():
    """Two tiles, and more rays between two rankings than half precision can count."""
    one, batch = sampler(rays=20_000, tile_side=12, tiles=TilesConfig()), images(2, 12, 8)
    learn(one, batch, 33, error=lambda pixels: torch.full((20_000, 3), 3.0))
    one.flush_feedback()
    assert one.selector.cache.sums.max() > torch.finfo(torch.float16).max
    known = one.selector.cache.errors(one.selector.all_rows)
    one.state_dict()
    torch.testing.assert_close(one.selector.cache.errors(one.selector.all_rows), known, rtol=1e-3, atol=1e-3)


def test_the_host_as_selector_is_nerfstudios_sampler_in_training_too():
    from nerfstudio.data.pixel_samplers import PixelSamplerConfig

    torch.manual_seed(1)
    host = PixelSamplerConfig().setup(num_rays_per_batch=24)
    theirs = [host.sample(images())["indices"] for _ in range(3)]
    one = sampler(selector="host")
    torch.manual_seed(1)
    for step in range(3):
        batch = one.sample(images(), step)
        assert torch.equal(batch["indices"], theirs[step]) and SELECTION not in batch
    assert one.state_dict() is None and one.maps(0) == {}
