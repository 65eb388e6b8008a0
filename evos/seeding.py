"""Seeds for the processes of one run, from the one seed that a user gives."""

import numpy as np

from evos.errors import InputError


def mixed_seed(seed: int, rank: int) -> int:
    """A seed in [0, 2**63) for process `rank` of a run with `seed`: a hash of the two, the same on every machine.

    Not `seed + rank`: process 1 of seed 0 would draw what process 0 of seed 1 draws. The lower 32 bits, all that
    torch's CPU generator looks at, are a hash of the two as well.

    Raises:
        InputError: `seed` or `rank` below 0.
    """
    for name, value in (("seed", seed), ("rank", rank)):
        if value < 0:
            raise InputError(name, value, "a whole number of at least 0")
    # A spawn key is padded apart from the seed: as one list, [2**32, 0] and [0, 1] would be the same words.
    (word,) = np.random.SeedSequence(seed, spawn_key=(rank,)).generate_state(1, np.uint64)
    return int(word >> np.uint64(1))
