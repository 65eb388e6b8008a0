"""The machine: devices by name, what a result was measured on, memory."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evos import runs
from evos.errors import InputError

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [("auto", 0, "cpu"), ("auto", 2, "cuda"), ("cpu", 2, "cpu"), ("cuda", 1, "cuda"), ("cuda:1", 2, "cuda:1")],
)
def test_devices_are_found_by_name(monkeypatch, name, count, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert runs.resolve_device(name) == torch.device(expected)


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("gpu", 1, "allowed: auto, cpu, cuda or cuda:n"),
        ("cuda:", 1, "allowed: auto"),
        ("", 1, "allowed: auto"),
        ("cpu:0", 1, "allowed: auto"),
        ("cuda", 0, "CUDA devices here: 0"),
        ("cuda:2", 2, "CUDA devices here: 2"),
    ],
)
def test_devices_that_are_not_there_are_refused(monkeypatch, name, count, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(InputError, match=f"--device: got .*{message}"):
        runs.resolve_device(name)


def test_the_environment_says_what_a_result_was_measured_on():
    found = runs.environment("cpu")
    assert json.loads(json.dumps(found)) == found
    assert (found["torch"], found["device"]) == (torch.__version__, "cpu")
    assert found["threads"] == torch.get_num_threads() and found["cores"] == os.cpu_count()
    assert found["processor"] and found["date"].endswith("+00:00")


def test_the_commit_is_the_checkout_s_and_says_whether_it_is_dirty(tmp_path, monkeypatch):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr("evos.__file__", str(tmp_path / "evos" / "__init__.py"))
    assert runs.environment("cpu")["commit"] is None
    git("init")
    assert runs.environment("cpu")["commit"] is None
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "a")
    git("tag", "-a", "v1", "-m", "v1")
    clean = runs.environment("cpu")
    assert (clean["commit"], clean["dirty"]) == (git("rev-parse", "HEAD"), False)
    (tmp_path / "a").write_text("2")
    changed = runs.environment("cpu")
    assert (changed["commit"], changed["dirty"]) == (clean["commit"], True)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="compares with Linux's /proc")
def test_peak_memory_is_the_high_water_mark_of_the_process_in_bytes():
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    assert runs.peak_memory_bytes("cpu") == pytest.approx(1024 * int(line.split()[1]), rel=0.1)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what is kept is glibc's")
@pytest.mark.parametrize(("device", "kept"), [("cpu", True), ("cuda", False)])
def test_a_cpu_run_keeps_the_memory_it_frees(device, kept):
    program = f"""
import resource, torch
from evos.runs import keep_freed_memory
keep_freed_memory({device!r})
for repeat in range(20):  # the first few may still find no hole that is large enough
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)  # 64 MB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert (int(result.stdout) < 10) == kept  # else a page fault per page, of 4 KB or 2 MB
