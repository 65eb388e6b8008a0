"""Python's, NumPy's and torch's global generators: seeded together, saved and restored as plain values."""

import random
from typing import Any

import numpy as np
import torch

from evos.errors import InputError


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed the global generators of Python, NumPy and torch (all devices) with `seed + rank`.

    Raises:
        InputError: `seed + rank` outside [0, 2**32), NumPy's range.
    """
    if not 0 <= seed + rank < 2**32:
        raise InputError("seed", seed, "0 to 2**32 - 1")
    random.seed(seed + rank)
    np.random.seed(seed + rank)
    torch.manual_seed(seed + rank)


def rng_state() -> dict[str, Any]:
    """State of all global generators as tensors and plain values, fit for `save_checkpoint`.

    CUDA's are included where CUDA is in use: asking for them would otherwise set up a context on every device.
    """
    algorithm, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (algorithm, torch.from_numpy(np.asarray(keys, np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put the global generators back to where `rng_state` found them; tensors may lie on any device.

    States of CUDA devices that this machine lacks are left out: equality is promised on the same device only.
    """
    random.setstate(state["python"])
    algorithm, keys, *rest = state["numpy"]
    np.random.set_state((algorithm, keys.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    for device, cuda_state in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
        torch.cuda.set_rng_state(cuda_state.cpu(), device)
