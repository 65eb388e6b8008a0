"""Distributed training under torchrun: rank and world size, the process group, exact means, joint decisions.

Without a process group each function acts for the single process, so that callers need no separate branch.
"""

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from evos.errors import InputError

T = TypeVar("T")

TIMEOUT = timedelta(minutes=10)
"""Timeout of a collective: long enough for a few evaluations on rank 0, short enough to notice a dead machine."""

_KEPT: list[Any] = []
"""Process groups that were destroyed, kept referenced: see process_group."""

_LOST = re.compile(r"closed by peer|reset by peer|broken pipe|gloo|nccl|timed? ?out|TCPStore", re.IGNORECASE)


class PeerLost(InputError):
    """Another process of the run is gone: front ends print one line and exit with status 2, as for bad input."""


@dataclass(frozen=True)
class World:
    """The processes of a run: ``rank`` of ``size``, ``local_rank`` on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that writes files and prints."""
        return self.rank == 0


def read_world(environ: Mapping[str, str] = os.environ) -> World:
    """Read RANK, WORLD_SIZE and LOCAL_RANK, as torchrun sets them; a single process without them.

    Raises:
        InputError: a part of the variables is missing, or they contradict one another.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    texts = [environ.get(name) for name in names]
    if texts == [None] * 3:
        return World()
    for name, text in zip(names, texts, strict=True):
        if text is None or not re.fullmatch(r"\d+", text):
            raise InputError(name, text, "whole numbers in RANK, WORLD_SIZE and LOCAL_RANK")
    rank, size, local_rank = map(int, filter(None, texts))
    if not local_rank <= rank < size:
        raise InputError("RANK", f"{rank} of {size}, {local_rank} here", "LOCAL_RANK <= RANK < WORLD_SIZE")
    return World(rank, size, local_rank)


@contextmanager
def refusing_once(world: World) -> Iterator[None]:
    """A context for checks that fail in all processes alike: process 0 alone raises their InputError.

    The others exit with status 2, later: torchrun ends all processes with the first, which must be the one that says
    why.
    """
    try:
        yield
    except InputError:
        if world.is_main:
            raise
        time.sleep(2)
        raise SystemExit(2) from None


@contextmanager
def process_group(world: World, device: torch.device, timeout: timedelta = TIMEOUT) -> Iterator[None]:
    """Join the processes of ``world`` while the block runs: gloo for tensors on the CPU, NCCL beside it for CUDA's.

    Raises:
        PeerLost: the processes don't all arrive in time.
    """
    if world.size == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with watching_peers():
        dist.init_process_group(backend, timeout=timeout)
    try:
        yield
    finally:
        # Gloo's worker threads need the GIL to let go of the last tensors, and its destructor joins them while it
        # holds the GIL (torch 2.11): let them finish first, and keep the group until the process ends.
        time.sleep(0.1)
        _KEPT.append(dist.group.WORLD)
        dist.destroy_process_group()


@contextmanager
def watching_peers() -> Iterator[None]:
    """Convert the error of a collective that lost another process into PeerLost; other errors pass through."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, InputError) or not (isinstance(error, dist.DistError) or _LOST.search(str(error))):
            raise
        reason = str(error).splitlines()[0]
        raise PeerLost("process group", f"a process that no longer answers ({reason})", "all of them") from error


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return not dist.is_initialized() or dist.get_rank() == 0


def reduce_sum(values: Float[Tensor, "*S"] | Int[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """Sum over all processes, in float64 and on the CPU, the same in each."""
    total = values.detach().to("cpu", torch.float64, copy=True)
    if dist.is_initialized():
        dist.all_reduce(total)
    return total


def reduce_mean(total: Float[Tensor, "*S"], count: Float[Tensor, "*S"] | Int[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """Mean over the items of all processes: the sum of their totals over the sum of their counts.

    Exact for unequal counts, unlike a mean of means. NaN where the total count is 0.
    """
    return reduce_sum(total) / reduce_sum(count)


def reduce_min(value: float) -> float:
    """Minimum over all processes, the same in each."""
    least = torch.tensor(value, dtype=torch.float64)
    if dist.is_initialized():
        dist.all_reduce(least, dist.ReduceOp.MIN)
    return float(least)


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; used to stop all of them after the same step."""
    return flag if not dist.is_initialized() else bool(reduce_sum(torch.tensor(float(flag))) > 0)


def from_main(make: Callable[[], T]) -> T:
    """Call `make` on process 0 alone and broadcast what it returns, as a pickle.

    Raises:
        InputError: on process 0, where `make` raises it; the other processes exit with status 2, silently.
    """
    if not dist.is_initialized():
        return make()
    answer: list[Any] = [None, False]
    refusal = None
    if is_main():
        try:
            answer = [make(), True]
        except InputError as error:
            refusal = error
    dist.broadcast_object_list(answer)
    if not answer[1]:
        raise refusal or SystemExit(2)
    return answer[0]


def gather(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """The values of all processes by rank; on other ranks than 0 an empty list. They are pickled: pass plain data.

    Under NCCL ``group`` is one of gloo, or the pickled bytes go through device 0 of every process.
    """
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size() if is_main() else []
    dist.gather_object(value, values or None, group=group)
    return values


def gather_rows(rows: Shaped[Tensor, "K ..."], group: dist.ProcessGroup | None) -> Shaped[Tensor, "G ..."]:
    """The rows of all processes, by rank and in each process: K of each, K being the largest number of rows of any.

    A process with fewer repeats its last row, with values that are not finite: NaN.

    Args:
        rows: at least one; on the device of the default process group's backend.
        group: a gloo group, which agrees on K without waiting for a device.
    """
    most = torch.tensor(len(rows))
    dist.all_reduce(most, dist.ReduceOp.MAX, group=group)
    missing = int(most) - len(rows)
    last = rows[-1:] if not rows.is_floating_point() else torch.full_like(rows[-1:], torch.nan)
    own = torch.cat((rows, last.expand(missing, *rows.shape[1:])))
    found = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(found, own)
    return torch.cat(found)
