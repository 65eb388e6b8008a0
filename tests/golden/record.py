"""Record the loss curves that tests compare with: python tests/golden/record.py

To be done only where a change is meant to change training; the difference in git then shows by how much.
"""

import json
from pathlib import Path

import torch

from image_regression.options import parse
from image_regression.signals import astronaut
from image_regression.trainer import Fit

RUNS = {
    "full": ["--selector", "full"],
    "uniform": ["--selector", "uniform"],
    "evos": ["--selector", "evos"],
    "evos_step": ["--selector", "evos", "--selector.keep_ratio", "0.2", "--selector.keep_schedule", "step"],
    "soft": ["--selector", "soft"],
    "int": ["--selector", "int"],
}
STEPS = 50


def curve(name: str) -> list[float]:
    """The loss at each step of a run of image_regression: a photo of 24 px, SIREN 3x32, on the CPU."""
    options = parse([*RUNS[name], "--steps", str(STEPS), "--field.hidden_features", "32", "--lr", "1e-3"])
    fit = Fit(astronaut(24), options, torch.device("cpu"))
    return [float(fit.step(step)) for step in range(1, STEPS + 1)]


if __name__ == "__main__":
    curves = {name: curve(name) for name in RUNS}
    Path(__file__).with_name("image_regression.json").write_text(json.dumps(curves, indent=1) + "\n")
