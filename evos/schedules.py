"""Schedules: pure functions from the step to a number.

Steps count from 1 to ``total``; past it, in a run that continues for more steps than planned, each schedule keeps its
final value. Sources: EVOS (CVPR 2025), section 3 and its released code; the nonparametric-teaching intervals are
those of INT (ICML 2024). Where a schedule there counts from 0, ``step - 1`` is used here.
"""

import math
from collections.abc import Callable


def constant(t: float, start: float, end: float) -> float:
    """``start`` throughout."""
    return start


def linear(t: float, start: float, end: float) -> float:
    """A straight line from ``start`` (t = 0) to ``end`` (t = 1)."""
    return start + (end - start) * t


def exponential(t: float, start: float, end: float) -> float:
    """A geometric path from ``start`` to ``end``; both must be positive."""
    return start * (end / start) ** t


def stairs(t: float, start: float, end: float) -> float:
    """Ten equal stages, each a tenth of the way from ``start`` to ``end`` above the last: 0.2, 0.28, ... 0.92."""
    return start + (end - start) * min(math.floor(t * 10 + 1e-9), 9) / 10


def cosine(t: float, start: float, end: float) -> float:
    """Half a cosine from ``start`` to ``end``."""
    return end - (end - start) * (1 + math.cos(math.pi * t)) / 2


KEEP_SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "constant": lambda t, ratio: ratio,
    "linear": lambda t, ratio: linear(t, ratio, 1.0),
    "step": lambda t, ratio: stairs(t, ratio, 1.0),
    "cosine": lambda t, ratio: cosine(t, ratio, 1.0),
    "reverse-cosine": lambda t, ratio: cosine(t, ratio, min(0.2, ratio)),
}

MUTATION_SCHEDULES: dict[str, Callable[[float, float, float], float]] = {
    "constant": constant,
    "linear": linear,
    "exp": exponential,
}

LR_SCHEDULES: dict[str, Callable[[float, float, float], float]] = {
    "geometric": exponential,
    "linear": linear,
    "cosine": cosine,
}


def learning_rate(schedule: str, step: int, total: int, end: float, warmup: float = 0.0) -> float:
    """Factor on the learning rate at ``step``, in [0, 1].

    It rises linearly from 0, before the first step, to 1 after a fraction ``warmup`` of the steps, then follows the
    named schedule to ``end``, reached at the last step.
    """
    step, first = min(step, total), max(1, round(warmup * total))
    if step < first:
        return step / first
    return LR_SCHEDULES[schedule]((step - first) / max(1, total - first), 1.0, end)


def keep_ratio(schedule: str, step: int, total: int, start: float) -> float:
    """Fraction of the cells trained on at ``step``, in (0, 1]: a named schedule that begins at ``start``.

    ``step`` (the paper's) rises from ``start`` by a tenth of the way to 1 at each tenth of training.
    """
    return KEEP_SCHEDULES[schedule]((min(step, total) - 1) / total, start)


def mutation_ratio(schedule: str, step: int, total: int, start: float, end: float) -> float:
    """Number of random cells (mutants) at ``step`` as a fraction of the initial number of kept cells, in [0, 1]."""
    return MUTATION_SCHEDULES[schedule](min(step, total) / total, start, end)


def key_interval(step: int, total: int, start: float, end: float) -> int:
    """Steps between two evaluations of the population, at least 1: linear from ``start`` to ``end``."""
    return max(1, int(linear(min(step, total) / total, start, end)))


def is_key_step(step: int, total: int, start: float, end: float) -> bool:
    """Whether ``step`` evaluates the whole population: ``step % interval == 1`` (EVOS; 72 times in 5,000 steps)."""
    interval = key_interval(step, total, start, end)
    return interval == 1 or step % interval == 1


def default_key_intervals(total: int) -> tuple[float, float]:
    """The paper's intervals, 100 -> 50; in runs of under 3,000 steps, steps/30 -> steps/60, at least 2."""
    return max(2.0, min(100.0, total / 30)), max(2.0, min(50.0, total / 60))


def teaching_interval(variant: str, step: int, total: int) -> int:
    """Steps between two selections of INT; selection happens where ``(step - 1) % interval == 0``.

    ``dense``: every step; ``dense2``: every second; ``incremental``: every step in the first quarter, then 10, 20,
    ... 50 in five stages; ``reverse-incremental``: 90, 80, ... 10, 1 in ten stages.
    """
    elapsed = min(step, total) - 1
    if variant == "dense":
        return 1
    if variant == "dense2":
        return 2
    if variant == "incremental":
        startup = total // 4
        stage_length = max(1, (total - startup) // 5)
        if elapsed < max(startup, stage_length):
            return 1
        return 10 * (max(1, elapsed - startup) // stage_length + 1)
    stage = min(9, elapsed // max(1, total // 10))
    return max(1, 10 * (9 - stage))
