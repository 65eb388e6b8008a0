"""How close a prediction is to its target.

PSNR, SSIM and LPIPS of one image, as torchmetrics computes them; SNR and the distance of spectra of a sound.

Images are (H, W, C) in [0, 1]; both are clamped to that range first, because predictions may leave it.
"""

import math
import socket
import warnings
from functools import cache
from pathlib import Path

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

from evos.errors import InputError

SSIM_WINDOW = 11
STRIP_PIXELS = 2**17
"""Pixels of a strip of an image; larger images are measured strip by strip, in memory that does not grow with them."""
LUMA = (65.738 / 256, 129.057 / 256, 25.064 / 256)
LPIPS_SMALLEST = 32
STFT_WINDOWS = (512, 1024, 2048)
STFT_FLOOR = 1e-5  # of magnitudes: silence has no logarithm
DOWNLOAD_TIMEOUT = 10.0  # seconds without an answer before the download of the LPIPS weights is given up


def psnr(pred: Float[Tensor, "H W C"], target: Float[Tensor, "H W C"], data_range: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB over all values, clamped to [0, data_range]; `inf` for equal images.

    Raises InputError where the shapes differ.
    """
    _check_shapes(pred, target)
    error = mean_square_error(pred, target, data_range)
    return 10 * math.log10(data_range**2 / error) if error else math.inf


def mean_square_error(pred: Float[Tensor, "*N C"], target: Float[Tensor, "*N C"], largest: float = 1.0) -> float:
    """Mean over all values of the squared error, both clamped to [0, largest]."""
    pieces = zip(*(each.flatten(0, -2).split(STRIP_PIXELS) for each in (pred, target)), strict=True)
    return sum(squared_error(a, b, largest) for a, b in pieces) / pred.numel()


def squared_error(pred: Float[Tensor, "*N C"], target: Float[Tensor, "*N C"], largest: float = 1.0) -> float:
    """Sum of the squared errors, both clamped to [0, largest]."""
    return (pred.clamp(0, largest) - target.clamp(0, largest)).square().sum(dtype=torch.float64).item()


def ssim(pred: Float[Tensor, "H W C"], target: Float[Tensor, "H W C"]) -> float:
    """Structural similarity in [-1, 1], the mean over pixels and channels, at most 1 for equal images.

    The window is the usual 11 x 11 Gaussian of sigma 1.5 with mirrored borders. An image with a side below 11 px is
    compared with the largest odd window that fits its shorter side, and sigma reduced in proportion.

    Raises InputError where the shapes differ. Source: Wang et al., "Image quality assessment" (2004), equation 13.
    """
    _check_shapes(pred, target)
    radius = (min(SSIM_WINDOW, *pred.shape[:2]) - 1) // 2
    # torchmetrics derives the window from sigma (radius = round(3.5 sigma)); below 1/7 it is one pixel.
    sigma = 0.3 * radius if radius else 0.1
    # The mean is over the pixels that are at least ``radius`` from every side, so strips that overlap by twice as much
    # have it among them.
    height, width = pred.shape[:2]
    rows = max(1, STRIP_PIXELS // width)
    total = 0.0
    for first in range(0, height - 2 * radius, rows):
        strip = slice(first, first + rows + 2 * radius)
        a, b = (rearrange(image[strip].clamp(0, 1), "H W C -> 1 C H W") for image in (pred, target))
        value = structural_similarity_index_measure(a, b, sigma=sigma, data_range=1.0)
        total += torch.as_tensor(value).item() * (a.shape[2] - 2 * radius)
    return total / (height - 2 * radius)


@torch.no_grad()
def lpips(pred: Float[Tensor, "H W C"], target: Float[Tensor, "H W C"]) -> float | None:
    """Learned perceptual distance (AlexNet), 0 for equal images; None where it can't be computed.

    That is: a side below 32 px, or weights that can't be downloaded or whose file in torch.hub's cache is damaged (one
    warning a process, the failure is remembered). Grey is repeated to three channels, alpha left out.

    Raises InputError where the shapes differ. Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as
    a Perceptual Metric" (CVPR 2018).
    """
    _check_shapes(pred, target)
    if min(pred.shape[:2]) < LPIPS_SMALLEST or (network := lpips_network()) is None:
        return None
    network.to(pred.device).reset()
    return network(_colour(pred), _colour(target)).item()


def image_metrics(
    pred: Float[Tensor, "H W C"], target: Float[Tensor, "H W C"], with_lpips: bool
) -> dict[str, float | None]:
    """`psnr`, `ssim` and, where asked for, `lpips`, by name."""
    metrics: dict[str, float | None] = {"psnr": psnr(pred, target), "ssim": ssim(pred, target)}
    return metrics | {"lpips": lpips(pred, target)} if with_lpips else metrics


def luma(pixels: Float[Tensor, "H W C"]) -> Float[Tensor, "H W 1"]:
    """Y of YCbCr (ITU-R BT.601, studio range without its offset of 16/256) of RGB in [0, 1]; grey as it is.

    Alpha is left out. White is 0.859, as in the evaluations of super-resolution and Sobolev training.
    """
    if pixels.shape[-1] < 3:
        return pixels[..., :1]
    return (pixels[..., :3] * pixels.new_tensor(LUMA)).sum(-1, keepdim=True)


def held_out_metrics(
    pred: Float[Tensor, "H W C"], target: Float[Tensor, "H W C"], factor: int
) -> dict[str, float | None]:
    """PSNR and SSIM of a fit that was trained on every ``factor``-th row and column, from the first.

    ``held_out_psnr``: over the pixels not trained on; ``held_out_ssim``: of the image without ``factor`` pixels at each
    side (None where nothing is left). Both are of the luma, with a peak of 1.

    Raises InputError where the shapes differ, or no pixel is held out. Source: the released evaluation of Sobolev
    training (ECCV 2022, arXiv 2207.10395); SSIM here mirrors the borders as ``ssim`` does.
    """
    _check_shapes(pred, target)
    a, b = (luma(image.clamp(0, 1)) for image in (pred, target))
    held_out = torch.ones(a.shape[:2], dtype=torch.bool, device=a.device)
    held_out[::factor, ::factor] = False
    if not held_out.any():
        raise InputError("factor", factor, "one that leaves pixels to test on")
    inside = (slice(factor, -factor), slice(factor, -factor))
    some = min(a.shape[:2]) > 2 * factor
    return {
        "held_out_psnr": psnr(a[held_out][None], b[held_out][None]),
        "held_out_ssim": ssim(a[inside], b[inside]) if some else None,
    }


def snr(pred: Float[Tensor, "T C"], target: Float[Tensor, "T C"]) -> float | None:
    """Signal-to-noise ratio in dB of amplitudes around 0, over all samples and channels.

    The target's energy over that of the error; `inf` for equal signals, None where the target is silent.

    Raises InputError where the shapes differ.
    """
    _check_shapes(pred, target)
    energy = target.double().square().sum()
    error = (pred.double() - target.double()).square().sum()
    return (10 * (energy / error).log10()).item() if energy > 0 else None


def stft_distance(pred: Float[Tensor, "T C"], target: Float[Tensor, "T C"]) -> float | None:
    """Distance of short-time spectra, at least 0, 0 for equal sounds: what is heard, where SNR counts phases.

    None where the target is silent: the distance is relative to it.

    The mean over windows of 512, 1024 and 2048 samples (Hann, a quarter apart, none longer than the sound) of spectral
    convergence ‖|S| − |Ŝ|‖ / ‖|S|‖ plus the mean of |log |S| − log |Ŝ||; magnitudes are at least 1e-5.

    Raises InputError where the shapes differ. Source: Yamamoto et al., "Parallel WaveGAN" (2020, arXiv 1910.11480), its
    multi-resolution loss.
    """
    _check_shapes(pred, target)
    if not target.any():
        return None
    waves = rearrange(torch.stack([pred, target]).float(), "s t c -> (s c) t")
    total, windows = 0.0, [window for window in STFT_WINDOWS if window <= len(pred)] or [len(pred)]
    for window in windows:
        hann, hop = torch.hann_window(window, device=waves.device), max(1, window // 4)
        spectra = torch.stft(waves, window, hop, window=hann, pad_mode="constant", return_complex=True)
        found, truth = spectra.abs().clamp(min=STFT_FLOOR).chunk(2)
        total += float((truth - found).norm() / truth.norm() + (truth.log() - found.log()).abs().mean())
    return total / len(windows)


@cache
def lpips_network() -> LearnedPerceptualImagePatchSimilarity | None:
    """LPIPS with its AlexNet; None, with one warning and one attempt a process, where it can't be loaded."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)  # torch.hub sets none and would wait forever on a silent network
    try:
        return LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)
    except Exception as error:  # no network, no torchvision; a damaged file makes the unpickler raise nearly anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        cached = Path(torch.hub.get_dir(), "checkpoints")
        advice = f"a damaged file in {cached} can be deleted"
        warnings.warn(f"LPIPS is left out: AlexNet's weights can't be loaded ({reason}); {advice}", stacklevel=3)
        return None
    finally:
        socket.setdefaulttimeout(before)


def _colour(image: Float[Tensor, "H W C"]) -> Float[Tensor, "1 3 H W"]:
    if image.shape[-1] < 3:
        return repeat(image[..., 0].float().clamp(0, 1), "H W -> 1 3 H W")
    return rearrange(image[..., :3].float().clamp(0, 1), "H W C -> 1 C H W")


def _check_shapes(pred: Tensor, target: Tensor) -> None:
    if pred.shape != target.shape:
        raise InputError("pred", tuple(pred.shape), f"the target's shape {tuple(target.shape)}")
