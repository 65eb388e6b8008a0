"""Checkpoints survive kills, full disks and damage, and run no code."""

import collections
import errno
import os
import pickle
import random
import resource
import signal
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evos import runs
from evos.errors import InputError


def trained_state() -> dict:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(5, 2)).square().mean().backward()
        optimizer.step()
        schedule.step()
    parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    return {"step": 3, "best": 31.5, "name": "cat", "none": None, "list": [1, (True, 2.0)], **parts}


def assert_same(a, b):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert type(a) is type(b) and len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b and type(a) is type(b)


def test_a_checkpoint_gives_back_what_was_saved(tmp_path):
    state = trained_state()
    runs.save_checkpoint(tmp_path / "checkpoint.pt", state)
    assert_same(state, runs.load_checkpoint(tmp_path / "checkpoint.pt"))
    raw = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert raw["format"] == "evos" and raw["version"] == 1 and "format" not in state
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"a": [np.float64(1.0)]}, r"state\['a'\]\[0\].*numpy\.float64"),
        ({"a": {"b": Path("x")}}, r"state\['a'\]\['b'\]"),
        ({"a": {(1, print): 2}}, "a key of state"),
        ({"a": lambda: None}, "function"),
        ({"a": torch.device("cpu")}, "device"),
        ({"a": {1, 2}}, "set"),
        ({"a": collections.defaultdict(list, b=[1])}, r"state\['a'\].*collections\.defaultdict"),
        ({"a": collections.Counter("b")}, r"state\['a'\].*collections\.Counter"),
        ({"a": collections.namedtuple("Pair", "x y")(1, 2)}, "Pair"),
    ],
)
def test_what_could_not_be_loaded_without_running_code_is_not_saved(tmp_path, value, where):
    with pytest.raises(TypeError, match=where):
        runs.save_checkpoint(tmp_path / "checkpoint.pt", value)
    assert os.listdir(tmp_path) == []


def test_a_file_too_large_for_the_disk_leaves_the_previous_checkpoint(tmp_path):
    path = tmp_path / "checkpoint.pt"
    runs.save_checkpoint(path, {"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(InputError, match=r"checkpoint\.pt: got File too large; allowed: a writable folder"):
            runs.save_checkpoint(path, {"weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert runs.load_checkpoint(path) == {"step": 1} and os.listdir(tmp_path) == ["checkpoint.pt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_at_any_call_leaves_the_previous_checkpoint(tmp_path, monkeypatch, call):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "checkpoint.pt"
    runs.save_checkpoint(path, {"step": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(InputError, match="No space left on device"):
            runs.save_checkpoint(path, {"step": 2})
    assert runs.load_checkpoint(path) == {"step": 1} and os.listdir(tmp_path) == ["checkpoint.pt"]


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    path, size = tmp_path / "checkpoint.pt", 2_000_000
    moments = random.Random(0)
    runs.save_checkpoint(path, {"step": 0, "bytes": torch.frombuffer(bytearray(size), dtype=torch.uint8)})
    last = 0
    for _ in range(12):
        child = os.fork()
        if not child:  # no tensor arithmetic here: the threads it may want aren't there after a fork
            for step in range(last + 1, last + 200):
                payload = bytearray([step % 256]) * size
                runs.save_checkpoint(path, {"step": step, "bytes": torch.frombuffer(payload, dtype=torch.uint8)})
            os._exit(1)
        time.sleep(moments.uniform(0.02, 0.15))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        state = runs.load_checkpoint(path)
        assert state["step"] >= last and state["bytes"].eq(state["step"] % 256).all()
        last = state["step"]
    assert last > 0
    runs.save_checkpoint(path, {"step": -1})
    assert os.listdir(tmp_path) == ["checkpoint.pt"]  # what the kills left behind is gone with the next save


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "checkpoint.pt"
    runs.save_checkpoint(path, trained_state())
    return path.read_bytes()


same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=80)


@same_folder
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_checkpoint_truncated_anywhere_is_refused(tmp_path, whole, share):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"checkpoint: got .*checkpoint\.pt"):
        runs.load_checkpoint(path)


@same_folder
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_checkpoint_with_a_flipped_bit_is_refused_unless_nothing_is_lost(tmp_path, whole, share, bit):
    damaged = bytearray(whole)
    damaged[int(share * len(whole))] ^= 1 << bit
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(damaged)
    try:
        state = runs.load_checkpoint(path)
    except InputError:
        return
    assert_same(trained_state(), state)  # the bit was padding


@same_folder
@given(content=st.binary(max_size=64) | st.binary(max_size=64).map(lambda tail: b"PK\x03\x04" + tail))
def test_any_bytes_are_refused_as_a_checkpoint(tmp_path, content):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"checkpoint: got .*checkpoint\.pt"):
        runs.load_checkpoint(path)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_with_code_is_refused_and_the_code_not_run(tmp_path, zipped):
    path, proof = tmp_path / "checkpoint.pt", tmp_path / "the code ran"
    state = {"format": "evos", "version": 1, "step": Malicious(proof)}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match="not plain data"):
        runs.load_checkpoint(path)
    path.write_bytes(pickle.dumps(state))
    with pytest.raises(InputError, match="not plain data"):
        runs.load_checkpoint(path)
    assert not proof.exists()
    torch.load(_saved(tmp_path / "check.pt", state), weights_only=False)
    assert proof.exists()  # the code would have run


def _saved(path: Path, state: object) -> Path:
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("state", "allowed"),
    [
        ({"model": {}}, "written by evos"),
        ({"format": "other", "version": 1}, "written by evos"),
        ([1, 2], "written by evos"),
        ({"format": "evos", "version": 2}, "of version 2; allowed: version 1"),
        ({"format": "evos"}, "of version None; allowed: version 1"),
    ],
)
def test_files_that_are_not_ours_or_of_another_version_are_refused(tmp_path, state, allowed):
    with pytest.raises(InputError, match=allowed):
        runs.load_checkpoint(_saved(tmp_path / "checkpoint.pt", state))


def test_missing_empty_and_foreign_files_are_each_one_line(tmp_path):
    (tmp_path / "empty.pt").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("a.txt", "hello")
    for name, message in {
        "none.pt": "No such file",
        "empty.pt": r"\(empty\)",
        "zip.pt": "damaged",
        ".": "Is a directory",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            runs.load_checkpoint(tmp_path / name)
        assert "\n" not in str(caught.value)
