"""The global generators of Python, NumPy and torch: seeded together, saved and restored as plain values."""

import random
from typing import Any

import numpy as np
import torch

from evos.errors import InputError


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch (all devices), NumPy's with the lower 32 bits of `seed`.

    Processes that must not draw the same numbers use ``evos.seeding.mixed_seed(seed, rank)``.

    Raises:
        InputError: `seed` outside [0, 2**63).
    """
    if not 0 <= seed < 2**63:
        raise InputError("seed", seed, "0 to 2**63 - 1")
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """State of all global generators as tensors and plain values, ready for `save_checkpoint`.

    CUDA's are included only if CUDA is initialized: reading them would create a context on every device.
    """
    algorithm, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (algorithm, torch.from_numpy(np.asarray(keys, np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore the global generators from `rng_state`, whose tensors may be on any device.

    A run may resume on another device: states of CUDA devices that this machine lacks are ignored, and a device without
    a state keeps its generator as it is. Only on the same device are the numbers that follow the same.

    Raises:
        InputError: a generator rejects its state, or one is missing.
    """
    try:
        random.setstate(state["python"])
        algorithm, keys, *rest = state["numpy"]
        np.random.set_state((algorithm, keys.cpu().numpy().astype(np.uint32), *rest))
        torch.set_rng_state(state["torch"].cpu())
        for device, cuda_state in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
            torch.cuda.set_rng_state(cuda_state.cpu(), device)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError("checkpoint", f"states of generators ({reason})", "those that this version saved") from error
