"""What every test may use: the device it runs on, the folder of real data, fixed seeds."""

import faulthandler
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

# Set, not passed: the programs that tests start draw without a screen, too.
os.environ.setdefault("MPLBACKEND", "Agg")

# On a shared machine a slow example is no failure; the same examples in every run are what CI needs.
hypothesis.settings.register_profile("evos", deadline=None, derandomize=True)
hypothesis.settings.load_profile("evos")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device of the tests that take one: cpu (default), cuda, cuda:1")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and there is none")


@pytest.fixture(autouse=True)
def seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device named by --device."""
    device = torch.device(request.config.getoption("--device"))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        pytest.skip(f"--device {device} asked for, and there is none")
    return device


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], program: Callable[[list[str]], None]) -> Callable[..., str]:
    """refused(*argv, program=program) -> the one line that the program ends in; it must exit with status 2."""

    def run(*argv: str, program: Callable[[list[str]], None] = program) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            program(list(argv))
        lines = capsys.readouterr().err.splitlines()
        assert stop.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
        return lines[0].removeprefix("error: ")

    return run


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data: EVOS_TEST_DATA, or shared/data beside the project."""
    folder = Path(os.environ.get("EVOS_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is absent (EVOS_TEST_DATA names its folder)")
    return folder


# ---- several processes


@dataclass
class Processes:
    """Forked processes with torchrun's environment."""

    pids: list[int]
    folder: Path

    def wait(self, seconds: float = 120) -> list[int]:
        """Their exit statuses: minus the number of the signal that killed one."""
        found: dict[int, int] = {}
        end = time.monotonic() + seconds
        while len(found) < len(self.pids) and time.monotonic() < end:
            for pid in self.pids:
                if pid not in found and (done := os.waitpid(pid, os.WNOHANG))[0]:
                    found[pid] = os.waitstatus_to_exitcode(done[1])
            time.sleep(0.02)
        for pid in set(self.pids) - set(found):
            os.kill(pid, signal.SIGABRT)  # faulthandler writes to stderr where it waits
            os.waitpid(pid, 0)
        assert len(found) == len(self.pids), f"still running: {[self.stderr(rank) for rank in range(len(self.pids))]}"
        return [found[pid] for pid in self.pids]

    def stderr(self, rank: int) -> str:
        return (self.folder / f"stderr{rank}").read_text()


@pytest.fixture
def together(tmp_path) -> Callable[..., Processes]:
    """together(work, size=2) -> Processes, each of which has called work() in an environment like torchrun's."""

    def start(work: Callable[[], object], size: int = 2) -> Processes:
        return Processes(
            [fork(work, rank, numbers, tmp_path) for rank, numbers in enumerate(torchrun_variables(size))], tmp_path
        )

    return start


@pytest.fixture
def environment_of() -> Callable[[int], list[dict[str, str]]]:
    """environment_of(size) -> the environment of each process, for a new interpreter."""
    ours = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return lambda size: [ours | numbers for numbers in torchrun_variables(size)]


def torchrun_variables(size: int) -> list[dict[str, str]]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def fork(work: Callable[[], object], rank: int, numbers: dict[str, str], folder: Path) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return pid
    status = 1
    try:
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(folder / f"{name}{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        os.environ |= numbers
        torch.set_num_threads(1)
        faulthandler.enable(sys.stderr)
        work()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
