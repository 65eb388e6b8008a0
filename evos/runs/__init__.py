"""What every application needs around its training: run folder, checkpoints, the training loop, seeds, progress.

An application implements `Trainable`; the loop does the rest, on one process or several::

    seed_everything(seed)
    trainable = MyTrainable(options)                    # a subclass of Trainable
    run = open_run("runs/cat", options, resume=True, overwrite=False)
    loop = TrainingLoop(trainable, run, steps=1000, label="cat", device=device)
    with Stopper() as stopper:
        loop.train(stopper)                             # raises Stopped on a signal, with the checkpoint written
    write_json(run.metrics_path, loop.metrics())
"""

from evos.runs.checkpoint import load_checkpoint, save_checkpoint
from evos.runs.clock import Clock
from evos.runs.events import EventLog
from evos.runs.files import read_json, replace_file, write_json
from evos.runs.folder import FREE_OPTIONS, Run, open_run
from evos.runs.loop import Trainable, TrainingDiverged, TrainingLoop, check_finite
from evos.runs.machine import (
    common_metrics,
    count_parameters,
    environment,
    keep_freed_memory,
    on_device,
    peak_memory_bytes,
    resolve_device,
)
from evos.runs.progress import Progress
from evos.runs.seeding import rng_state, seed_everything, set_rng_state
from evos.runs.stopping import Stopped, Stopper, resume_command

__all__ = [
    "FREE_OPTIONS",
    "Clock",
    "EventLog",
    "Progress",
    "Run",
    "Stopped",
    "Stopper",
    "Trainable",
    "TrainingDiverged",
    "TrainingLoop",
    "check_finite",
    "common_metrics",
    "count_parameters",
    "environment",
    "keep_freed_memory",
    "load_checkpoint",
    "on_device",
    "open_run",
    "peak_memory_bytes",
    "read_json",
    "replace_file",
    "resolve_device",
    "resume_command",
    "rng_state",
    "save_checkpoint",
    "seed_everything",
    "set_rng_state",
    "write_json",
]
