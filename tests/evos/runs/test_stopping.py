"""Signals end a run between two steps."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from evos import runs

ROOT = Path(__file__).parents[3]


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
