"""Runs the programs as processes of their own without the seconds that `import torch` takes: imports once, then forks.

Reads requests from stdin, a JSON object a line, and answers each with a line:
{"program", "argv", "output", ...} starts a program and answers its pid; {"wait": pid} answers its exit status.
"""

import json
import os
import resource
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import matplotlib.pyplot
import skimage.data
import torch.utils.tensorboard

import image_regression.compare
import image_regression.main

PRELOADED = (matplotlib.pyplot, skimage.data, torch.utils.tensorboard)
PROGRAMS = {"main": image_regression.main.main, "compare": image_regression.compare.main}


def kill_at(place: str) -> None:
    """Make this process die by SIGKILL at a place: "os.fsync 3" is just before its third call of os.fsync."""
    name, count = place.split()
    module, function = name.split(".")
    original, left = getattr(sys.modules[module], function), [int(count)]

    def counted(*args: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)

    setattr(sys.modules[module], function, counted)


def run(request: dict[str, Any]) -> int:
    """The program, in a forked process; returns its exit status."""
    output = Path(request["output"])
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(output / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if "kill_at" in request:
        kill_at(request["kill_at"])
    if "largest_file" in request:  # in bytes: what a full disk looks like, for this process alone
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest_file"], request["largest_file"]))
    try:
        PROGRAMS[request["program"]](request["argv"])
        return 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1


def serve() -> None:
    """Until stdin ends."""
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        elif (answer := os.fork()) == 0:
            status = run(request)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        print(answer, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve()
