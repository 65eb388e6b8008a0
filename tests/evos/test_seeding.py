"""Seeds of the processes of one run."""

import itertools

import numpy as np
import pytest
import torch

from evos.errors import InputError
from evos.seeding import mixed_seed


def first_draw(seed: int) -> float:
    return float(torch.rand(1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def test_process_one_of_seed_zero_does_not_draw_what_process_zero_of_seed_one_draws():
    assert first_draw(mixed_seed(0, 1)) != first_draw(mixed_seed(1, 0))


def test_every_seed_and_rank_draw_numbers_of_their_own_on_the_cpu():
    pairs = [*itertools.product(range(50), range(50)), (2**32, 0), (2**32, 1), (2**31, 0), (2**40, 3)]
    seeds = [mixed_seed(seed, rank) for seed, rank in pairs]
    assert all(0 <= seed < 2**63 for seed in seeds)
    # torch's CPU generator looks at the lower 32 bits only: these must differ as well.
    assert len({seed % 2**32 for seed in seeds}) == len({first_draw(seed) for seed in seeds}) == len(pairs)


def test_a_seed_is_the_same_on_every_machine():
    """NumPy promises that SeedSequence's stream never changes; the two numbers were written down once."""
    assert [mixed_seed(0, 0), mixed_seed(7, 3)] == [4334430513956379144, 3411976877185804603]


def test_bits_of_a_seed_are_as_often_one_as_zero():
    bits = np.array(
        [[mixed_seed(seed, rank) >> bit & 1 for bit in range(63)] for seed in range(40) for rank in range(40)]
    )
    assert abs(bits.mean(0) - 0.5).max() < 5 * 0.5 / np.sqrt(len(bits))


@pytest.mark.parametrize(("seed", "rank", "name"), [(-1, 0, "seed"), (0, -1, "rank")])
def test_negative_numbers_are_refused(seed, rank, name):
    with pytest.raises(InputError, match=f"{name}: got -1; allowed: a whole number of at least 0"):
        mixed_seed(seed, rank)
