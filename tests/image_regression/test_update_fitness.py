"""The training loop tells a selector that asks how its step changes the field."""

import pytest
import torch


@pytest.mark.parametrize("pieces", [[], ["--chunk", "100"]])
def test_nint_is_told_on_key_steps_how_the_field_changes_everywhere(pieces, fit, photo):
    """Against the central difference, in float64, of the whole field moved a little back and forth."""
    argv = ["--selector", "nint", "--selector.key_interval", "2", "--steps", "9"]
    run, seen = fit(*argv, *pieces), []
    run.selector.observe = lambda selection, feedback: seen.append(feedback.update)
    run.step(1)
    run.step(2)
    before = run.weights()
    run.step(3)
    weights = dict(run.field.named_parameters())
    moves = {name: now.grad for name, now in weights.items()}
    twin, moved = run.field.double(), []
    for sign in (1, -1):
        state = {name: before[name].double() + sign * 1e-4 * moves[name].double() for name in before}
        twin.load_state_dict(state, strict=False)
        moved.append(twin(run.source.coords.double()).detach())
    low, high = float(photo.values.min()), float(photo.values.max())
    expected = (moved[0] - moved[1]) / 2e-4 / 2 * (high - low)
    assert [update is None for update in seen] == [False, True, False]
    torch.testing.assert_close(seen[2][0].double(), expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    assert seen[2].shape == (1, 256, 3)


def test_only_a_selector_that_asks_pays(fit):
    plain, told = (fit("--selector", name, "--selector.key_interval", "2", "--steps", "9") for name in ("evos", "nint"))
    for run in (plain, told):
        run.step(1)
    assert (plain.work.evaluated, told.work.evaluated) == (256, 512)
