"""A clock that the test moves by hand."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest


@dataclass
class Time:
    """What ``perf_counter`` says."""

    now: float = 100.0


@pytest.fixture
def time_of(monkeypatch) -> Callable[[str], Time]:
    """time_of(module) -> the time as that module has it from now on."""

    def replace(module: str) -> Time:
        time = Time()
        monkeypatch.setattr(f"{module}.perf_counter", lambda: time.now)
        return time

    return replace
