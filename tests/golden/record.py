"""Record the loss curves that tests compare with: python tests/golden/record.py

To be done only where a change is meant to change training; the difference in git then shows by how much.
"""

import json
from pathlib import Path

import torch

from evos.signals import Signal, astronaut, from_sound
from evos.sounds import Sound
from image_regression.options import parse
from image_regression.trainer import Fit

RUNS = {
    "full": ["--selector", "full"],
    "uniform": ["--selector", "uniform"],
    "evos": ["--selector", "evos"],
    "evos_step": ["--selector", "evos", "--selector.keep_ratio", "0.2", "--selector.keep_schedule", "step"],
    "soft": ["--selector", "soft"],
    "int": ["--selector", "int"],
    "nint": ["--selector", "nint"],
    "egra": ["--selector", "egra"],
    "expansive": ["--selector", "expansive"],
    "int_dense": ["--selector", "int", "--selector.variant", "dense2"],
    "evos_add": ["--selector", "evos", "--selector.crossover", "add"],
    "evos_no_cfs": ["--selector", "evos", "--cfs_weight", "0"],
    "uniform_cfs": ["--selector", "uniform", "--cfs_weight", "0.65"],
    "val_der": ["--selector", "full", "--supervision", "val_der", "--factor", "2"],
    "sound_val_der": ["--selector", "full", "--supervision", "val_der", "--factor", "2", "--der_operator", "diff"],
    "fast": ["--recipe", "fast", "--field", "siren"],
    "fast_grid": ["--recipe", "fast", "--lr", "2e-2"],
}
STEPS = 50


def chirp() -> Signal:
    """A rising tone of 400 samples."""
    time = torch.linspace(0, 1, 400)
    return from_sound("chirp", Sound(torch.sin(40 * time.square())[:, None], 400, "FLOAT", "wav"))


def curve(name: str) -> list[float]:
    """The loss at each step of a run of image_regression: a photo of 24 px or a chirp, SIREN 3x32 or grid."""
    options = parse(["--lr", "1e-3", "--steps", str(STEPS), "--field.hidden_features", "32", *RUNS[name]])
    fit = Fit(chirp() if name.startswith("sound") else astronaut(24), options, torch.device("cpu"))
    return [float(fit.step(step)) for step in range(1, STEPS + 1)]


if __name__ == "__main__":
    curves = {name: curve(name) for name in RUNS}
    Path(__file__).with_name("image_regression.json").write_text(json.dumps(curves, indent=1) + "\n")
