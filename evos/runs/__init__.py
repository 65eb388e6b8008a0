"""What every application needs around its training loop: run folder, checkpoints, resume, seeds, signals, progress.

::

    run = open_run("runs/cat", options, resume=True, overwrite=False)
    clock, step = Clock(device), 0
    if run.resuming:
        state = load_checkpoint(run.checkpoint_path)
        step = state["step"]
        clock.load_state_dict(state["clock"])
        set_rng_state(state["rng"])                     # last, so that nothing draws after it
    with Stopper() as stopper, Progress(total, "cat", start=step) as progress:
        while step < total and not stopper.requested:
            ...                                         # one training step
            step += 1
            progress.update(step, psnr=psnr)
    save_checkpoint(run.checkpoint_path, {"step": step, "clock": clock.state_dict(), "rng": rng_state(), ...})
"""

from evos.runs.checkpoint import load_checkpoint, save_checkpoint
from evos.runs.events import EventLog
from evos.runs.files import read_json, write_json
from evos.runs.folder import FREE_OPTIONS, Run, open_run
from evos.runs.loop import Clock, Stopper, TrainingDiverged, non_finite
from evos.runs.machine import environment, keep_freed_memory, on_device, peak_memory_bytes, resolve_device
from evos.runs.progress import Progress
from evos.runs.seeding import rng_state, seed_everything, set_rng_state

__all__ = [
    "FREE_OPTIONS",
    "Clock",
    "EventLog",
    "Progress",
    "Run",
    "Stopper",
    "TrainingDiverged",
    "environment",
    "keep_freed_memory",
    "load_checkpoint",
    "non_finite",
    "on_device",
    "open_run",
    "peak_memory_bytes",
    "read_json",
    "resolve_device",
    "rng_state",
    "save_checkpoint",
    "seed_everything",
    "set_rng_state",
    "write_json",
]
