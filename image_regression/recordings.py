"""What a run on a sound measures, logs and writes; pictures.py has the same functions for pictures."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from evos.fitted import FittedField
from evos.images import write_image
from evos.metrics import snr, stft_distance
from evos.runs import EventLog, Run
from evos.runs.files import save_figure
from evos.signals import Signal, SoundFormat
from evos.sounds import write_sound
from image_regression.grids import in_proportion
from image_regression.report import Panel
from image_regression.trainer import Fit

WINDOW = 1024
"""Samples in one spectrum, fewer in a sound that is shorter."""

COLUMNS = 1000
"""The most spectra that a picture shows, roughly."""

FLOOR = -80.0
"""What counts as silence in a picture, in dB below the loudest part of the truth."""


def measure(fit: Fit, values: Float[Tensor, "T C"], with_lpips: bool) -> dict[str, float | None]:
    """PSNR, SNR and distance of spectra of all samples; where not all are trained on, PSNR and SNR of the others.

    The PSNR takes twice the sound's peak for its range: 6.02 dB above one that takes the peak itself, as Sobolev
    training's does. Nothing is clamped. A silent sound has no SNR and no distance of
    spectra (None).
    """
    quality = sound_quality(fit.signal, values, fit.values, "")
    quality["stft_distance"] = stft_distance(fit.signal.samples(values), fit.signal.samples(fit.values))
    factor = fit.options.run.factor
    if factor == 1:
        return quality
    held_out = torch.arange(len(values), device=values.device) % factor > 0
    return quality | sound_quality(fit.signal, values[held_out], fit.values[held_out], "held_out_")


def final_metrics(fit: Fit, values: Float[Tensor, "T C"]) -> dict[str, Any]:
    """Nothing else."""
    return {}


def sound_quality(
    signal: Signal, prediction: Float[Tensor, "T C"], truth: Float[Tensor, "T C"], prefix: str
) -> dict[str, float | None]:
    """PSNR and SNR by name."""
    error = (prediction.double() - truth.double()).square().mean()
    noise = snr(signal.samples(prediction), signal.samples(truth))
    return {f"{prefix}psnr": (-10 * error.log10()).item(), f"{prefix}snr": noise}


def log(events: EventLog, fit: Fit, step: int, values: Float[Tensor, "T C"]) -> None:
    """Reconstruction, to hear and as a spectrogram, and selection for TensorBoard."""
    assert fit.signal.sound is not None
    events.audio(step, "reconstruction", fit.signal.samples(values), fit.signal.sound.rate)
    _, shown = panel(fit, values)
    events.image(step, "spectrogram", shown.reconstruction)
    events.image(step, "selection", selection_strip(fit))


def write(run: Run, fit: Fit, values: Float[Tensor, "T C"]) -> None:
    """The reconstruction with the rate and kind of sample of its source, its spectrogram, and the selection."""
    form = fit.signal.sound
    assert form is not None
    path = run.images / f"reconstruction.{form.extension}"
    write_sound(path, fit.signal.samples(values), form.rate, form.subtype)
    write_spectrograms(run.images / "spectrogram.png", fit, values)
    write_image(run.images / "selection.png", selection_strip(fit))


def panel(fit: Fit, values: Float[Tensor, "T C"]) -> tuple[Float[Tensor, "H W 1"], Panel]:
    """The truth's spectrogram, low notes below, and the run's part of the report."""
    truth, prediction = (decibels(fit.signal.samples(each)) for each in (fit.values, values))
    loudest = truth.max()
    pictures = [1 - (level - loudest).flip(0)[..., None].clamp(FLOOR, 0) / FLOOR for level in (truth, prediction)]
    return pictures[0], Panel(f"{fit.options.run.selector} selector", pictures[1], selection_strip(fit))


def resized(shape: tuple[int, ...], size: int | None, frames: int | None) -> tuple[int, ...]:
    """So many samples."""
    return in_proportion(shape, size)


def render(
    path: Path, fitted: FittedField, shape: tuple[int, ...], start: tuple[int, ...], size: tuple[int, ...]
) -> None:
    """Write a fitted sound, as long as it was, so at a rate in proportion."""
    values, form = fitted.window(shape, start, size), fitted.form
    assert isinstance(form, SoundFormat)
    rate = round(form.rate * len(values) / fitted.shape[0])
    write_sound(path, (2 * values - 1) * form.peak, rate)


def selection_strip(fit: Fit) -> Float[Tensor, "h w 1"]:
    """How often the samples of the training grid were selected, averaged over columns, the most frequent 1."""
    visits = F.adaptive_avg_pool1d(fit.visits.float()[None], min(COLUMNS, fit.pool.cells))[0]
    return repeat(visits / visits.max().clamp(min=1e-12), "w -> h w 1", h=max(1, len(visits) // 4))


def decibels(samples: Float[Tensor, "T C"]) -> Float[Tensor, "F S"]:
    """Magnitudes of short-time spectra (Hann windows) of all channels' mean in dB, 0 to half the rate."""
    window = 2 ** min(WINDOW.bit_length() - 1, len(samples).bit_length() - 1)
    # A quarter of a window, but about as many spectra as frequencies where a sound is short: a picture to look at.
    hop = max(1, min(window // 4, 2 * len(samples) // window), len(samples) // COLUMNS)
    shape = torch.hann_window(window, device=samples.device)
    spectra = torch.stft(samples.float().mean(-1), window, hop, window=shape, return_complex=True)
    return 20 * spectra.abs().clamp(min=1e-10).log10()


def write_spectrograms(path: Path, fit: Fit, values: Float[Tensor, "T C"]) -> None:
    """Spectrograms of truth, reconstruction and error, in dB of the truth's loudest part."""
    import matplotlib.pyplot as plt

    assert fit.signal.sound is not None
    truth, prediction = (fit.signal.samples(each) for each in (fit.values, values))
    levels = [decibels(each) for each in (truth, prediction, prediction - truth)]
    loudest = levels[0].max()
    seconds, highest = len(truth) / fit.signal.sound.rate, fit.signal.sound.rate / 2000
    figure, axes = plt.subplots(3, 1, figsize=(10, 9), sharex=True, layout="constrained")
    for axis, level, title in zip(axes, levels, ("truth", "reconstruction", "error"), strict=True):
        picture = (level - loudest).cpu().numpy()
        extent = (0.0, seconds, 0.0, highest)
        axis.imshow(picture, origin="lower", aspect="auto", extent=extent, vmin=FLOOR, vmax=0, cmap="magma")
        axis.set(title=title, ylabel="kHz")
    axes[-1].set(xlabel="seconds")
    figure.colorbar(axes[0].images[0], ax=axes, label="dB")
    save_figure(figure, path)
    plt.close(figure)
