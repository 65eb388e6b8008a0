"""Runs survive kills, full disks, damaged files and careless flags, and resume exactly."""

import errno
import json
import os
import pickle
import platform
import random
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evos import runs
from evos.errors import InputError

ROOT = Path(__file__).parents[2]
OPTIONS = {"lr": 1e-3, "size": (64, 64), "field": {"name": "siren", "omega": 30.0}, "device": "cpu"}


def open_new(path: Path) -> runs.Run:
    return runs.open_run(path, OPTIONS, resume=False, overwrite=False)


def snapshot(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


# Run folders


def test_a_new_run_has_its_folders_and_its_options_on_disk(tmp_path):
    run = open_new(tmp_path / "deep" / "cat")
    assert run.path == tmp_path / "deep" / "cat" and run.images.is_dir() and not run.resuming
    assert run.checkpoint_path.parent == run.metrics_path.parent == run.path
    recorded = json.loads((run.path / "config.json").read_text())["options"]
    assert recorded == {**OPTIONS, "size": [64, 64]}


def test_an_empty_folder_is_as_good_as_a_new_one_and_so_is_one_killed_at_birth(tmp_path):
    (tmp_path / ".config.json.tmp").write_text("{")
    open_new(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "images"]


def test_an_existing_run_is_refused_without_a_flag_and_left_alone(tmp_path):
    open_new(tmp_path / "cat")
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=r"--out: got .*cat; allowed: a new folder, or --resume, or --overwrite"):
        open_new(tmp_path / "cat")
    assert snapshot(tmp_path) == before


def test_resume_and_overwrite_together_are_refused(tmp_path):
    with pytest.raises(InputError, match="one of the two"):
        runs.open_run(tmp_path, {}, resume=True, overwrite=True)


def test_overwrite_deletes_the_run_and_never_a_foreign_file(tmp_path):
    run = open_new(tmp_path / "cat")
    elsewhere = tmp_path / "elsewhere"
    foreign = [run.path / "notes.txt", run.path / "my.png", run.images / "raw.tif", run.path / "data" / "a.png"]
    foreign += [run.path / "events", run.path / "old" / "checkpoint.pt", elsewhere / "photo.png"]
    own = ["metrics.json", "report.png", "checkpoint.pt", "events.out.tfevents.1.host", ".checkpoint.pt.tmp"]
    own += ["images/step_100.png", "images/out.wav"]
    for file in [*foreign, *(run.path / name for name in own)]:
        file.parent.mkdir(exist_ok=True)
        file.write_text(file.name)
    (run.path / "report.png").unlink()
    (run.path / "report.png").symlink_to(elsewhere / "photo.png")
    again = runs.open_run(run.path, {"lr": 2.0}, resume=False, overwrite=True)
    assert not again.resuming
    assert [file for file in foreign if file.read_text() != file.name] == []
    assert [name for name in own if (run.path / name).exists()] == []
    assert runs.read_json(run.path / "config.json")["options"] == {"lr": 2.0}


def test_overwrite_does_not_reach_through_a_linked_images_folder(tmp_path):
    run = open_new(tmp_path / "cat")
    album = tmp_path / "album"
    album.mkdir()
    (album / "mother.png").write_text("dear")
    run.images.rmdir()
    run.images.symlink_to(album)
    runs.open_run(run.path, OPTIONS, resume=False, overwrite=True)
    assert (album / "mother.png").read_text() == "dear"


@pytest.mark.parametrize("config", [None, "", "{}", "[1]", '{"format": "evos", "version": 1}', '{"options": {}}'])
@pytest.mark.parametrize("flag", ["resume", "overwrite"])
def test_a_folder_that_is_no_run_is_neither_overwritten_nor_resumed(tmp_path, config, flag):
    (tmp_path / "checkpoint.pt").write_text("somebody else's")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=rf"--{flag}: .*config.json"):
        runs.open_run(tmp_path, OPTIONS, resume=flag == "resume", overwrite=flag == "overwrite")
    assert snapshot(tmp_path) == before


def test_resume_without_a_checkpoint_starts_afresh_and_with_one_goes_on(tmp_path):
    assert not runs.open_run(tmp_path / "cat", OPTIONS, resume=True, overwrite=False).resuming
    run = runs.open_run(tmp_path / "cat", OPTIONS, resume=True, overwrite=False)
    assert not run.resuming
    runs.save_checkpoint(run.checkpoint_path, {"step": 7})
    assert runs.open_run(tmp_path / "cat", OPTIONS, resume=True, overwrite=False).resuming
    assert runs.load_checkpoint(run.checkpoint_path) == {"step": 7}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({**OPTIONS, "lr": 0.5}, r"--lr: got 0\.5; allowed: 0\.001 as"),
        ({**OPTIONS, "field": {"name": "siren", "omega": 20.0}}, r"--field\.omega: got 20\.0; allowed: 30\.0 as"),
        ({**OPTIONS, "extra": 1}, r"--extra: got 1; allowed: 'nothing' as"),
        ({"size": (64, 64), "field": OPTIONS["field"]}, r"--lr: got nothing; allowed: 0\.001 as"),
    ],
)
def test_resume_names_the_first_option_that_differs_and_both_values(tmp_path, changed, message):
    open_new(tmp_path / "cat")
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=message):
        runs.open_run(tmp_path / "cat", changed, resume=True, overwrite=False)
    assert snapshot(tmp_path) == before


def test_free_options_may_change_on_resume_and_are_recorded(tmp_path):
    open_new(tmp_path)
    runs.open_run(tmp_path, {**OPTIONS, "device": "cuda", "quiet": True}, resume=True, overwrite=False)
    runs.open_run(
        tmp_path, {**OPTIONS, "device": "cuda", "lr": 3.0}, resume=True, overwrite=False, free={"lr", "quiet"}
    )
    assert runs.read_json(tmp_path / "config.json")["options"]["lr"] == 3.0


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "cat", tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match=r"--out: got .*; allowed: a folder that can be written"):
            open_new(path)

    def denied(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(InputError, match=r"Permission denied.*; allowed: a folder that can be written"):
        open_new(tmp_path / "cat")


# JSON


def test_json_takes_tensors_paths_dataclasses_and_numbers_that_are_not_finite(tmp_path):
    @dataclass(frozen=True)
    class Config:
        out: Path
        device: torch.device

    value = {
        "config": Config(Path("a/b"), torch.device("cpu")),
        "tensor": torch.tensor([[1.0, float("nan")]]),
        "array": np.arange(2),
        "scalars": (np.float32(0.5), np.float64("inf"), float("-inf"), None, True, 3, "ü"),
        "dtype": torch.float32,
        7: {},
    }
    runs.write_json(tmp_path / "a.json", value)
    assert runs.read_json(tmp_path / "a.json") == {
        "config": {"out": "a/b", "device": "cpu"},
        "tensor": [[1.0, None]],
        "array": [0, 1],
        "scalars": [0.5, float("inf"), -float("inf"), None, True, 3, "ü"],
        "dtype": "torch.float32",
        "7": {},
    }
    assert "NaN" not in (tmp_path / "a.json").read_text() and os.listdir(tmp_path) == ["a.json"]


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    runs.write_json(tmp_path / "a.json", 1)
    with pytest.raises(TypeError):
        runs.write_json(tmp_path / "a.json", {"x": object()})
    assert runs.read_json(tmp_path / "a.json") == 1


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe"])
def test_json_that_cannot_be_read_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match="JSON file"):
        runs.read_json(tmp_path / "a.json")


# Checkpoints


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
    with pytest.raises(InputError, match="no plain data"):
        runs.load_checkpoint(path)
    path.write_bytes(pickle.dumps(state))
    with pytest.raises(InputError, match="no plain data"):
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


# Seeds


def draw() -> tuple:
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), *torch.randn(3).tolist()


def test_generators_go_on_exactly_after_a_round_trip_through_a_checkpoint(tmp_path):
    runs.seed_everything(3)
    draw()  # leaves half a Gaussian pair cached in Python's and in NumPy's generator
    runs.save_checkpoint(tmp_path / "checkpoint.pt", {"rng": runs.rng_state()})
    expected = [draw() for _ in range(3)]
    runs.seed_everything(99)
    runs.set_rng_state(runs.load_checkpoint(tmp_path / "checkpoint.pt")["rng"])
    assert [draw() for _ in range(3)] == expected


def test_seeds_repeat_and_ranks_differ():
    draws = []
    for seed, rank in ((5, 0), (5, 0), (5, 1), (6, 0)):
        runs.seed_everything(seed, rank)
        draws.append(draw())
    assert draws[0] == draws[1] and draws[2] == draws[3]
    assert all(a != b for a, b in zip(draws[0], draws[2], strict=True))
    random.seed(5)
    assert draws[0][0] == random.random()


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(InputError, match=r"seed: got .*; allowed: 0 to 2\*\*32 - 1"):
        runs.seed_everything(seed)


# The machine


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


# The loop

CHILD = """
    import sys, time
    from evos.runs import Stopper, save_checkpoint
    step = 0
    with Stopper() as stopper:
        while not stopper.requested:
            print("step", flush=True)
            time.sleep(0.05)
            step += 1
    save_checkpoint(sys.argv[1], {"step": step})
    raise SystemExit(stopper.exit_code)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_the_loop_finish_its_step_and_save(tmp_path, number, code):
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(tmp_path / "checkpoint.pt")]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "step\n"
    os.kill(child.pid, number)
    rest, errors = child.communicate(timeout=30)
    assert (child.returncode, errors) == (code, "")
    assert runs.load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 1 + rest.count("step")


def test_a_second_interrupt_stops_at_once_and_the_old_handlers_come_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt), runs.Stopper() as stopper:
        assert not stopper.requested and stopper.exit_code == 0
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopper.requested and stopper.exit_code == 143
        os.kill(os.getpid(), signal.SIGINT)
    assert stopper.exit_code == 143
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_off_the_main_thread_the_stopper_does_nothing():
    requested = []

    def work():
        with runs.Stopper() as stopper:
            requested.append(stopper.requested)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert requested == [False] and signal.getsignal(signal.SIGINT) is before


class Time:
    """A clock the test moves by hand."""

    def __init__(self, monkeypatch, module: str) -> None:
        self.now = 100.0
        monkeypatch.setattr(f"{module}.perf_counter", lambda: self.now)


def test_the_clock_counts_between_start_and_pause_only(monkeypatch):
    time_ = Time(monkeypatch, "evos.runs.loop")
    clock = runs.Clock()
    time_.now += 5
    clock.start()
    time_.now += 2
    clock.start()
    assert clock.seconds == 2
    clock.pause()
    time_.now += 7
    clock.pause()
    assert clock.seconds == 2
    clock.start()
    time_.now += 1.5
    resumed = runs.Clock()
    resumed.load_state_dict(clock.state_dict())
    time_.now += 10
    assert (clock.seconds, resumed.seconds) == (13.5, 3.5)
    resumed.start()
    time_.now += 1
    assert resumed.seconds == 4.5


def test_a_clock_on_cuda_waits_for_the_device_at_pause_and_only_there(monkeypatch):
    waits = []
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    clock = runs.Clock("cuda:0")
    clock.start()
    assert clock.seconds >= 0 and waits == []
    clock.pause()
    clock.pause()
    assert waits == [torch.device("cuda:0")]


def test_a_loss_that_is_not_finite_names_its_step():
    runs.non_finite(1.0, 3)
    runs.non_finite(torch.tensor(0.0), 3)
    for value in (float("nan"), torch.tensor(float("inf"))):
        with pytest.raises(runs.TrainingDiverged, match=r"loss: got (nan|inf) at step 12; .*earlier steps stays"):
            runs.non_finite(value, 12)
    assert issubclass(runs.TrainingDiverged, InputError)


# Progress


def test_without_a_terminal_progress_is_a_plain_line_per_tenth_and_the_last(capsys, monkeypatch):
    time_ = Time(monkeypatch, "evos.runs.progress")
    with runs.Progress(200, "cat [red]") as progress:
        for step in range(1, 201):
            time_.now += 0.01
            progress.update(step, psnr=torch.tensor(step / 10), loss=0.25)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines] == [f"{step}/200" for step in range(20, 201, 20)]
    assert lines[4] == "cat [red] 100/200  50%  psnr 10  loss 0.25  left 0:01"
    assert lines[-1] == "cat [red] 200/200  100%  psnr 20  loss 0.25  took 0:02"
    assert "\x1b" not in "".join(lines)


def test_slow_steps_give_a_line_every_five_seconds_and_the_time_left_of_a_resumed_run(capsys, monkeypatch):
    time_ = Time(monkeypatch, "evos.runs.progress")
    with runs.Progress(100_000, "cat", start=50_000) as progress:
        for step in range(50_001, 50_014):
            time_.now += 2
            progress.update(step)
    lines = capsys.readouterr().out.splitlines()
    assert [int(line.split()[1].split("/")[0]) for line in lines] == [50_003, 50_006, 50_009, 50_012, 50_013]
    assert lines[0].endswith("left 27:46:34")  # 49,997 steps of 2 s


def test_between_lines_metrics_are_not_read_and_updates_are_cheap(capsys):
    progress = runs.Progress(10**7, "cat")
    unreadable = torch.empty(3)  # float() of it would raise
    began = time.perf_counter()
    for step in range(1, 1001):
        progress.update(step, psnr=unreadable)
    assert time.perf_counter() - began < 0.5
    assert capsys.readouterr().out == ""


def test_quiet_prints_nothing(capsys):
    with runs.Progress(10, "cat", quiet=True) as progress:
        for step in range(1, 11):
            progress.update(step, psnr=1.0)
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_a_bar_shows_the_metric_and_ends_at_the_last_step(monkeypatch):
    class Terminal(StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    time_ = Time(monkeypatch, "evos.runs.progress")
    with runs.Progress(1000, "cat [red]") as progress:
        for step in range(1, 1001):
            time_.now += 0.02
            progress.update(step, psnr=30 + step / 1000)
    text = screen.getvalue()
    assert "\x1b[" in text and "━" in text and "[red] 1000/1000  100%  psnr 31  took 0:20" in text
    assert text.count("/1000") < 210  # ten redraws a second, not one a step


# Event log


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_events_read_back_and_a_resumed_run_replaces_what_came_after_its_checkpoint(tmp_path):
    log = runs.EventLog(tmp_path)
    for step in range(4):
        log.scalars(step, {"psnr": torch.tensor(float(step)), "loss": 0.5})
    log.image(0, "picture", torch.rand(4, 5, 3) * 2)
    log.image(0, "grey", torch.rand(4, 5, 1))
    log.close()
    log.close()
    assert scalars(tmp_path, "psnr") == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)]
    time.sleep(1.1)  # event files are named and ordered by the second
    resumed = runs.EventLog(tmp_path, purge_step=2)
    resumed.scalars(2, {"psnr": 20.0})
    resumed.close()
    assert scalars(tmp_path, "psnr") == [(0, 0.0), (1, 1.0), (2, 20.0)]
    assert all(file.name.startswith("events.out.tfevents.") for file in tmp_path.iterdir())


def test_without_tensorboard_there_is_one_warning_and_no_events(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.warns(UserWarning, match="tensorboard package is not installed") as caught:
        log = runs.EventLog(tmp_path)
        log.scalars(0, {"psnr": 1.0})
        log.image(0, "picture", torch.rand(4, 5, 3))
        log.close()
    assert len(caught) == 1 and os.listdir(tmp_path) == []


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
