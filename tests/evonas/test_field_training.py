"""Training many fields as one: each as by itself and as image_regression would; successive halving keeps the best."""

from dataclasses import replace

import pytest
import torch

from evonas.field_space import Candidate
from evonas.field_training import (
    FieldBatch,
    FieldTrainConfig,
    StepTimes,
    Target,
    grouped,
    kind_of,
    survivors,
    train_bracket,
)
from evos.errors import InputError
from evos.fields import FIELDS
from evos.optimizers import RunningClip
from evos.signals import Signal, from_sound
from evos.sounds import Sound
from image_regression.options import from_values
from image_regression.trainer import Fit

CPU = torch.device("cpu")
SIZES = {"hidden_features": 12, "hidden_layers": 2}
GRID = {"levels": 3, "table_log2": 6, "finest_resolution": 32}


def candidate(name: str = "siren", optimizer: str = "adam", lr: float = 2e-3, **options) -> Candidate:
    own = SIZES | (GRID if name == "hashgrid" else {}) | options
    return Candidate(FIELDS[name](**own), optimizer, lr)


def picture(seed: int = 0, shape: tuple[int, int] = (16, 20)) -> Signal:
    """A smooth picture."""
    small = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    pixels = torch.nn.functional.interpolate(small, shape, mode="bicubic").clamp(0, 1)[0]
    return Signal(f"picture{seed}", pixels.permute(1, 2, 0).flatten(0, 1).contiguous(), shape)


@pytest.fixture(scope="module")
def targets() -> list[Target]:
    return [Target(picture(seed), CPU) for seed in range(2)]


def trained(fits: list, steps: int) -> FieldBatch:
    batch = FieldBatch(fits, total_steps=steps, seed=3, device=CPU)
    for _ in range(steps):
        batch.take_step()
    return batch


def assert_same(batch: FieldBatch, member: int, alone: FieldBatch, tolerance: float = 1e-5) -> None:
    for mine, theirs in zip(batch.stack.fields[member].parameters(), alone.stack.fields[0].parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=tolerance)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("optimizer", ["adam", "schedule_free"])
def test_a_batch_is_its_members_one_by_one(name, optimizer, targets):
    if name == "wire" and optimizer != "adam":
        pytest.skip("complex weights")
    free = {"siren": {"omega": 20.0, "init_scale": 0.7}, "fourier": {"sigma": 3.0}}.get(name, {})
    others = [candidate(name, optimizer), candidate(name, optimizer, 5e-4, **free)]
    fits = [(own, target) for own in others for target in targets]
    batch = trained(fits, 12)
    for member, fit in enumerate(fits):
        assert_same(batch, member, trained([fit], 12))


@pytest.mark.parametrize("optimizer", ["muon", "soap"])
def test_optimizers_of_matrices_go_along_in_a_batch(optimizer, targets):
    fits = [(candidate("relu", optimizer, lr), targets[0]) for lr in (1e-3, 5e-4)]
    batch = trained(fits, 4)
    for member, fit in enumerate(fits):
        assert_same(batch, member, trained([fit], 4), 1e-4)  # rounding decides on an eigenbasis's signs


@pytest.mark.parametrize("name, optimizer", [("siren", "schedule_free"), ("hashgrid", "adam"), ("gauss", "adam")])
def test_a_batch_trains_as_image_regression_does(name, optimizer, targets):
    own = candidate(name, optimizer)
    values = {"recipe": "fast", "decay": 1.0, "selector.keep_ratio": 0.1, **own.values(), "steps": 25, "seed": 3}
    options = from_values(values, {"selector": "error", "transform": "min_max", "field": name})
    fit = Fit(targets[0].signal, options, CPU)
    for step in range(1, 26):
        fit.step(step)
    batch = trained([(own, target) for target in targets], 25)
    for mine, theirs in zip(batch.stack.fields[0].parameters(), fit.field.parameters(), strict=True):
        # Rounding: 3e-5 of a Gaussian on some CPUs.
        assert torch.allclose(mine, theirs, atol=1e-4 if name == "gauss" else 1e-5)
    assert batch.psnrs()[0] == pytest.approx(fit.psnr(), abs=1e-3)
    assert batch.psnrs()[0] == pytest.approx(fit.psnr(), abs=1e-3)  # measuring changes nothing


@pytest.mark.parametrize("optimizer", ["adam", "schedule_free", "muon"])
def test_what_is_kept_goes_on_as_if_the_others_had_stayed(optimizer, targets):
    # Gradients of different sizes, so that a mean norm of another member would show.
    scales = [(1e-3, 1.0), (2e-3, 0.3), (3e-3, 2.0)]
    fits = [(candidate("siren", optimizer, lr, init_scale=scale), targets[0]) for lr, scale in scales]
    whole, cut = trained(fits, 12), trained(fits, 5)
    cut.psnrs()
    cut.keep([0, 2])
    for _ in range(7):
        cut.take_step()
    assert cut.psnrs() == pytest.approx([whole.psnrs()[i] for i in (0, 2)], abs=1e-3)
    assert torch.allclose(cut.stack.weights, whole.stack.weights[[0, 2]], atol=1e-4)
    assert len(cut) == 2 and cut.step == 12


def test_one_that_diverges_harms_no_other(targets):
    fits = [(candidate("siren"), targets[0]), (candidate("siren", lr=1e30), targets[0])]
    batch = trained(fits, 10)
    good, bad = batch.psnrs()
    assert good == pytest.approx(trained(fits[:1], 10).psnrs()[0], abs=1e-4) and good > 5
    assert bad == 0


def test_rows_are_clipped_as_networks_by_themselves():
    generator = torch.Generator().manual_seed(0)
    together, alone = RunningClip(1.05, "cpu"), [RunningClip(1.05, "cpu") for _ in range(3)]
    for step in range(8):
        gradients = torch.randn(3, 10, generator=generator) * (1 + 5 * (step % 3 == 2))
        if step == 5:
            gradients[1, 0] = torch.inf
        modules = [torch.nn.Parameter(torch.zeros(10)) for _ in range(3)]
        for clip, module, own in zip(alone, modules, gradients, strict=True):
            module.grad = own.clone()
            clip([module])
        together.rows(gradients)
        for own, module in zip(gradients, modules, strict=True):
            assert torch.allclose(own, module.grad, equal_nan=True)
    assert torch.allclose(together.mean, torch.stack([clip.mean for clip in alone]))


def test_sounds_are_measured_without_clamping():
    wave = 0.5 * torch.sin(torch.arange(300) / 9.0)[:, None]
    target = Target(from_sound("tone", Sound(wave, 8000, "PCM_16", "wav")), CPU)
    off = target.values + 0.1
    assert target.psnr(off) == pytest.approx(20, abs=1e-3)
    assert target.psnr(torch.full_like(off, torch.nan)) == 0
    batch = trained([(candidate("siren", first_omega=300.0), target)], 3)
    assert batch.psnrs()[0] > 0


# ---- groups, times, halving


def test_fits_are_grouped_by_shape_optimizer_and_length(targets, monkeypatch):
    wide = Target(picture(5, (30, 30)), CPU)
    kinds = [
        kind_of(candidate("siren", omega=20.0), targets[0]),
        kind_of(candidate("siren", omega=40.0, lr=1.0), targets[1]),
        kind_of(candidate("siren", "schedule_free"), targets[0]),
        kind_of(candidate("siren", hidden_features=13), targets[0]),
        kind_of(candidate("siren"), wide),
    ]
    assert kinds[0] == kinds[1] and len(set(kinds)) == 4
    monkeypatch.setattr("evonas.field_training.stack_size", lambda *sizes: 3)
    times = StepTimes(lambda: 0.0)
    config = FieldTrainConfig(steps=7, seconds=None, rungs=1)
    own = [candidate("siren", lr=lr) for lr in (1e-3, 2e-3)] + [candidate("relu")]
    found = train_bracket(own, lambda i, s: [], targets, config, seed=0, device=CPU, times=times)
    assert [(len(places), steps) for places, steps in grouped(found, targets, CPU)] == [(3, 7), (1, 7), (2, 7)]


def test_a_step_is_timed_once_a_kind_and_seconds_are_as_many_steps(targets):
    now = iter(range(10**6))
    times = StepTimes(lambda: 0.3 * next(now))  # a step takes 0.03 s: ten between two looks at the clock
    own = [candidate("siren", lr=lr) for lr in (1e-3, 2e-3)]
    config = FieldTrainConfig(steps=50, seconds=0.5, rungs=1)
    found = train_bracket(own, lambda i, s: [], targets, config, seed=0, device=CPU, times=times)
    assert len(times.known) == 1 and next(now) == 2
    assert [one.steps for one in found] == [[16, 16]] * 2
    assert [one.seconds for one in found] == [[0.5, 0.5]] * 2
    short = replace(config, steps=10)
    found = train_bracket(own[:1], lambda i, s: [], targets, short, seed=0, device=CPU, times=times)
    assert found[0].steps == [10, 10] and found[0].seconds == pytest.approx([0.3, 0.3])


def test_rungs_are_powers_of_the_reduction_up_to_the_end():
    config = FieldTrainConfig(rungs=3, reduction=3)
    assert config.rung_steps(90) == [10, 30, 90]
    assert config.rung_steps(100) == [12, 34, 100]
    assert config.rung_steps(1) == [1, 1, 1]
    assert FieldTrainConfig(rungs=1).rung_steps(7) == [7]


def test_the_undominated_go_on_first_and_among_them_those_of_least_error():
    costs = [(0.1, 9.0), (0.2, 9.0), (0.3, 1.0), (0.5, 2.0), (0.05, 9.5)]
    assert survivors(costs, 1) == [4]
    assert survivors(costs, 2) == [0, 4]
    assert survivors(costs, 3) == [0, 2, 4]  # 1 has less error than 2, but 0 beats it in that and costs no more
    assert survivors([(0.1,), (0.1,), (0.2,)], 2) == [0, 1]


def test_halving_keeps_the_best_and_the_others_keep_what_they_had(targets):
    lrs = [1e-5, 1e-3, 3e-3, 1e-4, 2e-3, 3e-5]
    own = [candidate("siren", lr=lr) for lr in lrs]
    config = FieldTrainConfig(steps=36, seconds=None, rungs=3, reduction=3)
    times = StepTimes(lambda: 0.0)
    found = train_bracket(own, lambda i, s: [], targets, config, seed=3, device=CPU, times=times)
    fits = [[(one, target) for target in targets] for one in own]
    ends = {n: [10 ** (-sum(trained(fit, n).psnrs()) / 40) for fit in fits] for n in (4, 12, 36)}
    order = sorted(range(6), key=lambda i: ends[4][i])
    best = min(order[:2], key=lambda i: ends[12][i])
    for i, one in enumerate(found):
        reached = 36 if i == best else 12 if i in order[:2] else 4
        assert one.error == pytest.approx(ends[reached][i], rel=1e-3)
    assert found[best].error == min(one.error for one in found)


def test_costs_other_than_the_error_let_cheap_ones_go_on(targets):
    own = [candidate("siren", lr=lr) for lr in (2e-3, 1e-3, 1e-5)]
    config = FieldTrainConfig(steps=12, seconds=None, rungs=2, reduction=1.5)
    prices = [2.0, 2.0, 1.0]
    found = train_bracket(
        own, lambda i, s: [prices[i]], targets, config, seed=3, device=CPU, times=StepTimes(lambda: 0.0)
    )
    alone = trained([(own[2], target) for target in targets], 12)
    assert found[2].psnrs == pytest.approx(alone.psnrs(), abs=1e-3)


@pytest.mark.parametrize(
    "option, value", [("steps", 0), ("seconds", 0.0), ("rungs", 0), ("reduction", 1.0), ("bracket", 0)]
)
def test_bad_options_are_refused(option, value):
    with pytest.raises(InputError, match=option):
        FieldTrainConfig(**{option: value})


def test_polling_may_stop_a_bracket(targets):
    class Stop(Exception):
        pass

    steps = iter(range(5))

    def poll() -> None:
        if next(steps) == 4:
            raise Stop

    config = FieldTrainConfig(steps=100, seconds=None)
    with pytest.raises(Stop):
        train_bracket([candidate()], lambda i, s: [], targets, config, seed=0, device=CPU, times=StepTimes(), poll=poll)
