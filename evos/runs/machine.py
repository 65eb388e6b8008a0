"""The machine: choice of device, environment of a measurement, memory used and kept."""

import ctypes
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import evos
from evos.errors import InputError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's numbers of what ``mallopt`` sets (malloc.h)."""


def resolve_device(name: str) -> torch.device:
    """The device called `name`: ``auto`` (CUDA where there is one, else the CPU), ``cpu``, ``cuda`` or ``cuda:n``.

    Raises:
        InputError: any other name, or a CUDA device that this machine lacks.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if count else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InputError("--device", name, "auto, cpu, cuda or cuda:n")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= count:
        raise InputError("--device", name, f"auto or cpu; CUDA devices here: {count}")
    return device


def on_device(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Copy numbers from the host to a tensor on the device without waiting for the work queued there.

    ``torch.tensor(numbers, device=...)`` would wait, as it copies from pageable memory.
    """
    values = torch.tensor(numbers)
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)


def keep_freed_memory(device: str | torch.device, *, blocks: int = 2**30) -> None:
    """On the CPU with glibc, let this process keep the memory that it frees; elsewhere do nothing.

    ``blocks``: bytes above which a block is given back all the same. Kept blocks of a large signal's size fragment.

    By default glibc returns every large block to the system as soon as it is freed. A training step then page-faults
    on each of its activations, which can take longer than computing them.
    """
    if torch.device(device).type == "cpu":
        set_malloc_thresholds(mmap=blocks, trim=2**31 - 1)


def set_malloc_thresholds(*, mmap: int, trim: int) -> None:
    """Set the sizes above which glibc returns freed memory to the system; without glibc do nothing.

    Args:
        mmap: bytes above which a block is mapped by itself, and unmapped when freed.
        trim: free bytes at the top of the heap above which the heap is trimmed.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, mmap)
        libc.mallopt(M_TRIM_THRESHOLD, trim)


def environment(device: str | torch.device = "auto") -> dict[str, Any]:
    """Versions, platform, processor, device, git commit and date behind a result, ready for `write_json`.

    `commit` is None outside a git checkout of evos; `dirty` tells whether files differ from it.
    """
    resolved = resolve_device(str(device))
    commit, dirty = _git_commit(Path(evos.__file__).parents[1])
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "evos": evos.__version__,
        "platform": platform.platform(),
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(resolved) if resolved.type == "cuda" else "cpu",
        "commit": commit,
        "dirty": dirty,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def peak_memory_bytes(device: str | torch.device) -> int:
    """Peak memory so far in bytes: torch's allocations on a CUDA device, the whole process on the CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows, where the rest of this module works

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def count_parameters(parameters: Iterable[Tensor]) -> int:
    """Number of real parameters; a complex one counts as two."""
    return sum(weight.numel() * (2 if weight.is_complex() else 1) for weight in parameters)


def common_metrics(parameters: Iterable[Tensor], device: str | torch.device) -> dict[str, Any]:
    """What every metrics.json says of model and machine: parameter count, peak memory, device, environment."""
    return {
        "parameters": count_parameters(parameters),
        "peak_memory_bytes": peak_memory_bytes(device),
        "device": str(device),
        "versions": environment(device),
    }


def _processor_name() -> str:
    try:
        models = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
    except OSError:
        models = []
    return models[0] if models else platform.processor() or platform.machine()


def _git_commit(root: Path) -> tuple[str | None, bool | None]:
    if not (root / ".git").exists():  # an installed evos inside somebody else's checkout isn't that commit
        return None, None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    # Without optional locks: a measurement must not get in the way of a commit made beside it.
    environ = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10, env=environ)
    except (OSError, subprocess.SubprocessError):
        return None, None
    text = answer.stdout.strip()
    return text.removesuffix("-dirty"), text.endswith("-dirty")
