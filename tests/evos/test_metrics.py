"""Image metrics against closed forms and scikit-image."""

import math
import warnings
from urllib.error import URLError

import jaxtyping
import numpy as np
import pytest
import torch
import torchvision
from skimage.metrics import structural_similarity

from evos import metrics
from evos.errors import InputError
from evos.metrics import held_out_metrics, image_metrics, lpips, luma, psnr, snr, ssim, stft_distance


def pair(height: int, width: int, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(height, width, channels, generator=generator)
    noise = 0.2 * torch.randn(height, width, channels, generator=generator)
    return (target + noise).clamp(0, 1), target


@pytest.fixture(autouse=True)
def forget_the_network():
    metrics.lpips_network.cache_clear()
    yield
    metrics.lpips_network.cache_clear()


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Downloads fail; the list says which were tried."""
    tried = []

    def fail(url: str, *args: object, **kwargs: object):
        tried.append(url)
        raise URLError("no network in this test")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail)
    return tried


@pytest.fixture
def random_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = torchvision.models.alexnet().state_dict()
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda *args, **kwargs: weights)


def test_psnr_is_ten_log_ten_of_one_over_the_mean_square() -> None:
    pred, target = pair(9, 7, 3)
    expected = -10 * math.log10(((pred.double() - target.double()) ** 2).mean().item())
    assert psnr(pred, target) == pytest.approx(expected, rel=1e-5)


def test_psnr_of_a_tenth_off_everywhere_is_20_dB() -> None:
    assert psnr(torch.full((4, 5, 1), 0.6), torch.full((4, 5, 1), 0.5)) == pytest.approx(20, abs=1e-4)
    assert psnr(torch.full((4, 5, 1), 60.0), torch.full((4, 5, 1), 50.0), data_range=100.0) == pytest.approx(
        20, abs=1e-4
    )


def test_predictions_are_clamped_first() -> None:
    pred, target = torch.tensor([[[-3.0], [4.0]]]), torch.tensor([[[0.1], [0.9]]])
    assert psnr(pred, target) == pytest.approx(20, abs=1e-4)
    assert ssim(pred, target) == ssim(pred.clamp(0, 1), target)


def test_equal_images_have_infinite_psnr_and_ssim_one() -> None:
    image = pair(12, 12, 3)[1]
    assert psnr(image, image) == math.inf
    assert ssim(image, image) == pytest.approx(1)


@pytest.mark.parametrize("shape", [(24, 31, 1), (24, 31, 3), (11, 40, 3), (8, 20, 1), (20, 5, 3), (3, 3, 1)])
def test_ssim_is_that_of_scikit_image_with_mirrored_borders(shape: tuple[int, int, int]) -> None:
    pred, target = pair(*shape)
    radius = (min(11, *shape[:2]) - 1) // 2
    margin = ((radius, radius), (radius, radius), (0, 0))  # scikit-image leaves out the border it can't see past
    expected = structural_similarity(
        *(np.pad(image.double().numpy(), margin, mode="reflect") for image in (pred, target)),
        gaussian_weights=True,
        sigma=0.3 * radius,
        use_sample_covariance=False,
        data_range=1.0,
        channel_axis=-1,
    )
    assert ssim(pred, target) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 50, 1), (2, 2, 3)])
def test_ssim_of_the_smallest_images_compares_pixel_by_pixel(shape: tuple[int, int, int]) -> None:
    pred, target = pair(*shape)
    expected = ((2 * pred * target + 1e-4) / (pred**2 + target**2 + 1e-4)).mean().item()
    assert ssim(pred, target) == pytest.approx(expected, abs=1e-5)


def test_different_shapes_are_refused_where_nothing_checks_annotations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for metric in (psnr, ssim, lpips):
        with pytest.raises(InputError, match="pred"):
            metric(torch.zeros(40, 40, 3), torch.zeros(40, 41, 3))


def test_lpips_without_weights_is_none_and_says_so_once(no_weights: list[str]) -> None:
    pred, target = pair(32, 32, 3)
    with pytest.warns(UserWarning, match="LPIPS is left out.*no network in this test") as warned:
        assert [lpips(pred, target) for _ in range(3)] == [None] * 3
    assert len(warned) == len(no_weights) == 1


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>busy</html>", b"\x80\x02c", bytes(range(256)) * 40])
def test_a_damaged_file_of_weights_costs_lpips_alone(tmp_path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(content)
    pred, target = pair(32, 32, 3)
    with pytest.warns(UserWarning, match=f"LPIPS is left out.*damaged file in {weights.parent}") as warned:
        found = image_metrics(pred, target, with_lpips=True)
    assert found == {"psnr": psnr(pred, target), "ssim": ssim(pred, target), "lpips": None}
    assert len(warned) == 1 and "\n" not in str(warned[0].message)


def test_lpips_of_a_small_image_is_none_without_a_word(no_weights: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lpips(*pair(31, 64, 3)) is None
    assert no_weights == []


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lpips_is_zero_for_equal_images_and_grows_with_noise(random_weights: None) -> None:
    pred, target = pair(40, 48, 3)
    assert lpips(target, target) == 0
    little, much = lpips(target.lerp(pred, 0.1), target), lpips(pred, target)
    assert little is not None and much is not None
    assert 0 < little < much
    assert lpips(pred, target) == much  # nothing is accumulated from call to call


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lpips_repeats_grey_and_leaves_alpha_out(random_weights: None) -> None:
    pred, target = pair(32, 32, 1)
    alpha = torch.rand(32, 32, 1)
    grey = lpips(pred.expand(-1, -1, 3), target.expand(-1, -1, 3))
    assert lpips(pred, target) == grey
    assert lpips(torch.cat([pred, alpha], -1), torch.cat([target, 1 - alpha], -1)) == grey


def test_image_metrics_names_what_it_was_asked_for() -> None:
    pred, target = pair(16, 16, 3)
    expected = {"psnr": psnr(pred, target), "ssim": ssim(pred, target)}
    assert image_metrics(pred, target, with_lpips=False) == expected
    assert image_metrics(pred, target, with_lpips=True) == {**expected, "lpips": None}  # too small


# ---- pixels that were not trained on


def test_luma_is_the_y_of_studio_range_video_without_its_offset() -> None:
    primaries = torch.eye(3)[None]
    assert luma(primaries)[0, :, 0].tolist() == pytest.approx([65.738 / 256, 129.057 / 256, 25.064 / 256])
    grey = torch.rand(4, 5, 2)
    assert torch.equal(luma(grey), grey[..., :1])
    pixels = torch.rand(4, 5, 4)
    assert torch.equal(luma(pixels), luma(pixels[..., :3]))  # without alpha


@pytest.mark.parametrize(("channels", "factor"), [(1, 2), (3, 4), (4, 3)])
def test_held_out_psnr_is_that_of_the_pixels_between_the_trained_ones(channels: int, factor: int) -> None:
    pred, target = pair(24, 18, channels)
    errors = []
    for row in range(24):
        for column in range(18):
            if row % factor or column % factor:
                error = (pred[row, column] - target[row, column]).double()
                weights = [65.738 / 256, 129.057 / 256, 25.064 / 256] if channels > 2 else [1.0]
                errors.append(sum(w * float(e) for w, e in zip(weights, error, strict=False)) ** 2)
    expected = -10 * math.log10(sum(errors) / len(errors))
    assert held_out_metrics(pred, target, factor)["held_out_psnr"] == pytest.approx(expected, abs=1e-4)


def test_held_out_ssim_leaves_the_borders_out() -> None:
    pred, target = pair(40, 36, 3)
    spoilt = pred.clone()
    spoilt[:4], spoilt[:, -4:] = 0, 1
    assert held_out_metrics(spoilt, target, 4)["held_out_ssim"] == held_out_metrics(pred, target, 4)["held_out_ssim"]
    lumas = ((image.double().numpy() @ [65.738, 129.057, 25.064] / 256)[4:-4, 4:-4] for image in (pred, target))
    expected = structural_similarity(
        *(np.pad(image, 5, mode="reflect") for image in lumas),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
    )
    assert held_out_metrics(pred, target, 4)["held_out_ssim"] == pytest.approx(expected, abs=1e-5)


def test_a_picture_that_is_all_border_has_no_held_out_ssim() -> None:
    pred, target = pair(8, 30, 1)
    assert held_out_metrics(pred, target, 4)["held_out_ssim"] is None
    with pytest.raises(InputError, match="factor"):
        held_out_metrics(pred, target, 1)


# ---- sounds


@pytest.mark.parametrize("decibels", [-6.0, 0.0, 20.0, 60.0])
def test_snr_is_the_energy_of_the_sound_over_that_of_the_error(decibels: float) -> None:
    target = torch.randn(500, 2)
    noise = torch.randn(500, 2)
    noise *= target.norm() / noise.norm() * 10 ** (-decibels / 20)
    assert snr(target + noise, target) == pytest.approx(decibels, abs=1e-3)


def test_snr_of_silence_is_undefined_and_that_of_equals_infinite() -> None:
    assert snr(torch.ones(5, 1), torch.zeros(5, 1)) is None
    assert snr(torch.ones(5, 1), torch.ones(5, 1)) == math.inf


def test_the_distance_of_spectra_is_that_of_numpys_spectra() -> None:
    rng = np.random.default_rng(0)
    target, pred = (0.3 * rng.standard_normal(600).astype(np.float32) for _ in range(2))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512)

    def magnitudes(wave: np.ndarray) -> np.ndarray:
        padded = np.pad(wave, 256)
        frames = [padded[at : at + 512] * window for at in range(0, len(padded) - 511, 128)]
        return np.maximum(np.abs(np.fft.rfft(frames)), 1e-5)

    a, b = magnitudes(pred), magnitudes(target)
    expected = np.linalg.norm(b - a) / np.linalg.norm(b) + np.abs(np.log(a) - np.log(b)).mean()
    found = stft_distance(*(torch.from_numpy(wave)[:, None] for wave in (pred, target)))
    assert found == pytest.approx(expected, rel=1e-3)


def test_the_distance_of_spectra_is_zero_for_equal_sounds_and_hears_no_sign() -> None:
    sound = torch.randn(3000, 2)
    assert stft_distance(sound, sound) == 0
    assert stft_distance(-sound, sound) == pytest.approx(0, abs=1e-6)  # a phase that no one hears
    assert stft_distance(torch.rand(40, 1), torch.zeros(40, 1)) is None  # nothing that it could be relative to
