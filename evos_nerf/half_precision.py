"""A selector's state in half precision, for checkpoints."""

from typing import Any

import torch
from torch import Tensor

HALF = torch.finfo(torch.float16)


def packed(state: dict[str, Any]) -> dict[str, Any]:
    """The state with its float maps of all cells in half precision; of sums, the means, and their counts in single.

    Sums grow with the visits, which few tiles have many of: beyond half precision's 65,504. Errors stay below.
    """
    cells = next((state[name].shape for name in ("seen", "visits") if name in state), None)

    def is_map(value: Any) -> bool:
        return isinstance(value, Tensor) and value.is_floating_point() and value.shape[:2] == cells

    found = dict(state)
    sums, counts = found.pop("sums", None), None
    if sums is not None:
        counts = sums[..., -1:]
        found["means"] = sums[..., :-1] / counts.clamp(min=torch.finfo(sums.dtype).tiny)
    found = {name: value.clamp(HALF.min, HALF.max).half() if is_map(value) else value for name, value in found.items()}
    return found if "sums" not in state else {**found, "counts": counts}


def unpacked(state: dict[str, Any]) -> dict[str, Any]:
    """The state that ``packed`` packed, in single precision."""
    half = torch.float16
    found = {n: v.float() if isinstance(v, Tensor) and v.dtype == half else v for n, v in state.items()}
    if "counts" in found:
        counts, means = found.pop("counts"), found.pop("means", None)
        found["sums"] = None if counts is None else torch.cat((means * counts, counts), dim=-1)
    return found
