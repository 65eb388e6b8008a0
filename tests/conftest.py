"""What every test may use: the device it runs on, the folder of real data, fixed seeds."""

import os
import random
from collections.abc import Callable
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
