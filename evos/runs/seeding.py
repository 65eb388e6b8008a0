"""Python's, NumPy's and torch's global generators: seeded together, saved and restored as plain values."""

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

    A run may go on on another device: states of CUDA devices that this machine lacks are left out, and a device without
    a state keeps its generator as it is. Exactly the same numbers are promised on the same device only.

    Raises:
        InputError: a generator of this machine doesn't take its state.
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
