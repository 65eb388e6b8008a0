"""The global generators: seeded together, saved, put back."""

import random

import numpy as np
import pytest
import torch

from evos import runs
from evos.errors import InputError
from evos.seeding import mixed_seed


def draw() -> tuple:
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), *torch.randn(3).tolist()


def test_generators_go_on_exactly_after_a_round_trip_through_a_checkpoint(tmp_path):
    runs.seed_everything(3)
    draw()  # leaves half a Gaussian pair cached in Python's and in NumPy's generator
    runs.save_checkpoint(tmp_path / "checkpoint.pt", {"rng": runs.rng_state()})
    expected = [draw() for _ in range(3)]
    runs.seed_everything(99)
    runs.set_rng_state(runs.load_checkpoint(tmp_path / "checkpoint.pt")["rng"])
    assert [draw() for _ in range(3)] == expected


def test_seeds_repeat_and_differ():
    draws = []
    for seed in (5, 5, 6, 5 + 2**32):
        runs.seed_everything(seed)
        draws.append(draw())
    assert draws[0] == draws[1]
    assert all(a != b for a, b in zip(draws[0], draws[2], strict=True))
    assert draws[3][0] != draws[0][0]  # Python's looks at all bits
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    assert draw() == draws[0]


def test_a_seed_of_63_bits_seeds_all_generators():
    runs.seed_everything(mixed_seed(3, 1))
    first = draw()
    runs.seed_everything(mixed_seed(3, 1))
    assert draw() == first
    runs.seed_everything(mixed_seed(4, 0))
    assert all(a != b for a, b in zip(first, draw(), strict=True))


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(InputError, match=r"seed: got .*; allowed: 0 to 2\*\*63 - 1"):
        runs.seed_everything(seed)


def test_a_run_from_a_machine_with_cuda_goes_on_without(monkeypatch):
    runs.seed_everything(3)
    state = runs.rng_state() | {"cuda": [torch.zeros(16, dtype=torch.uint8)] * 2}
    expected = draw()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    runs.set_rng_state(state)
    assert draw() == expected


def test_a_run_without_cuda_goes_on_with_it(monkeypatch):
    restored = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *arguments: restored.append(arguments))
    runs.seed_everything(3)
    state = runs.rng_state() | {"cuda": []}
    expected = draw()
    runs.set_rng_state(state)
    assert draw() == expected and restored == []


def test_a_state_that_a_generator_does_not_take_is_one_line(monkeypatch):
    def refuse(*arguments):
        raise RuntimeError("RNG state is wrong size\nand a stack trace")

    good = runs.rng_state()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_rng_state", refuse)
    short = good | {"torch": good["torch"][:16]}
    for state in (good | {"cuda": [torch.zeros(3, dtype=torch.uint8)]}, short, {"python": good["python"]}):
        with pytest.raises(
            InputError, match=r"checkpoint: got states of generators \(.*; allowed: those that"
        ) as caught:
            runs.set_rng_state(state)
        assert "\n" not in str(caught.value)
