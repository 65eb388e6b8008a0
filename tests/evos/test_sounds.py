"""Sound files: every kind of sample there and back, and what is no whole sound."""

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from evos.errors import InputError
from evos.sounds import is_sound, read_sound, write_sound

BITS = {"PCM_U8": 8, "PCM_S8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}
LOSSLESS = [("wav", kind) for kind in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")]
LOSSLESS += [("flac", kind) for kind in ("PCM_S8", "PCM_16", "PCM_24")]


def noise(bits: int, channels: int = 2, length: int = 300) -> torch.Tensor:
    """Amplitudes that ``bits`` (24 of them at most, as float32 holds) express exactly, both ends among them."""
    half = 2 ** (min(bits, 24) - 1)
    steps = torch.randint(-half, half, (length, channels))
    steps[0], steps[1] = -half, half - 1
    return steps / half


def wav(samples: bytes, bits: int, code: int = 1, channels: int = 1, rate: int = 8000) -> bytes:
    """A WAV file made by hand, byte by byte."""
    width = bits // 8 * channels
    form = struct.pack("<HHIIHH", code, channels, rate, rate * width, width, bits)
    body = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(("extension", "subtype"), LOSSLESS)
@pytest.mark.parametrize("channels", [1, 2])
def test_every_lossless_kind_of_sample_comes_back_bit_for_bit(extension, subtype, channels, tmp_path):
    samples = noise(BITS.get(subtype, 24), channels)
    write_sound(tmp_path / f"a.{extension}", samples, 11025, subtype)
    sound = read_sound(tmp_path / f"a.{extension}")
    assert torch.equal(sound.samples, samples)
    assert (sound.rate, sound.subtype, sound.extension) == (11025, subtype, extension)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (wav(bytes([0, 64, 128, 255]), 8), [-1, -0.5, 0, 127 / 128]),
        (wav(struct.pack("<3h", -32768, 0, 16384), 16), [-1, 0, 0.5]),
        (wav(b"\0\0\x80" + b"\0\0\x20", 24), [-1, 0.25]),
        (wav(struct.pack("<2i", -(2**31), 2**29), 32), [-1, 0.25]),
        (wav(struct.pack("<3f", -0.3, 0.7, 1.5), 32, code=3), [-0.3, 0.7, 1.5]),
        (wav(struct.pack("<2d", 0.1, -1), 64, code=3), [0.1, -1]),
    ],
)
def test_a_sample_s_bytes_are_read_as_the_amplitude_they_stand_for(content, expected, tmp_path):
    (tmp_path / "a.wav").write_bytes(content)
    sound = read_sound(tmp_path / "a.wav")
    assert sound.samples[:, 0].tolist() == pytest.approx(expected, abs=1e-7) and sound.rate == 8000


def test_vorbis_keeps_the_sound_if_not_its_samples(tmp_path):
    seconds = torch.arange(100_000) / 22050  # more than one block
    samples = torch.stack([0.5 * torch.sin(2 * torch.pi * 440 * seconds), 0.3 * torch.cos(2000 * seconds)], dim=-1)
    write_sound(tmp_path / "a.ogg", samples, 22050, "VORBIS")
    sound = read_sound(tmp_path / "a.ogg")
    assert sound.samples.shape == samples.shape and (sound.extension, sound.rate) == ("ogg", 22050)
    assert (sound.samples - samples)[2000:-2000].abs().max() < 0.05


@pytest.mark.parametrize("channels", [1, 2])
def test_an_mp3_keeps_the_sound_if_not_its_samples(channels, tmp_path):
    seconds = torch.arange(50_000) / 22050
    samples = (0.5 * torch.sin(2 * torch.pi * 440 * seconds))[:, None].repeat(1, channels)
    path = tmp_path / "a.mp3"
    write_sound(path, samples, 22050, "MPEG_LAYER_III")
    sound = read_sound(path)
    assert sound.samples.shape == samples.shape
    assert (sound.extension, sound.rate, sound.subtype) == ("mp3", 22050, "MPEG_LAYER_III")
    assert (sound.samples - samples)[2000:-2000].abs().max() < 0.02


def test_a_wav_of_a_codec_that_cannot_seek_is_read_whole(tmp_path):
    samples = 0.5 * np.sin(2 * np.pi * 300 * np.arange(3200) / 8000)
    soundfile.write(tmp_path / "a.wav", samples, 8000, subtype="GSM610")
    sound = read_sound(tmp_path / "a.wav")
    assert (sound.subtype, len(sound.samples)) == ("GSM610", 3200)
    assert np.abs(sound.samples[400:, 0].numpy() - samples[400:]).max() < 0.1
    write_sound(tmp_path / "b.wav", sound.samples, sound.rate, sound.subtype)
    assert len(read_sound(tmp_path / "b.wav").samples) == 3200
    (tmp_path / "a.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:300])
    assert "truncated" in refusal(tmp_path / "a.wav")


def test_any_error_of_the_decoder_is_one_line(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("frames must be specified")

    monkeypatch.setattr(soundfile.SoundFile, "read", fail)
    (tmp_path / "a.wav").write_bytes(wav(bytes(100), 16))
    assert "frames must be specified" in refusal(tmp_path / "a.wav")


def test_amplitudes_beyond_the_range_are_clipped_in_integers_and_kept_in_floats(tmp_path):
    samples = torch.tensor([[1.5], [-2.0], [0.25]])
    for subtype, expected in (("PCM_16", [32767 / 32768, -1, 0.25]), ("FLOAT", [1.5, -2, 0.25])):
        write_sound(tmp_path / "a.wav", samples, 8000, subtype)
        assert read_sound(tmp_path / "a.wav").samples[:, 0].tolist() == expected


def test_a_sound_is_known_by_its_content_or_else_by_its_extension(tmp_path):
    whole = wav(bytes(100), 8)
    for name, content, expected in (
        ("a.png", whole, True),
        ("a", whole, True),
        ("a.txt", b"fLaC and more", True),
        ("a.wav", b"text", True),
        ("b.FLAC", b"", True),
        ("a.webp", b"RIFF\0\0\0\0WEBPVP8 ", False),
        ("a.jpg", b"", False),
        ("photo.jpg", b"\xff\xd8\xff\xe0", False),
        ("utf16.txt", b"\xff\xfea\0", False),
        ("a.dat", b"ID3\x04", True),
        ("b.dat", b"\xff\xfb\x90\xc4", True),
    ):
        (tmp_path / name).write_bytes(content)
        assert is_sound(tmp_path / name) is expected, name
    assert is_sound(tmp_path / "missing.wav") and not is_sound(tmp_path / "missing") and not is_sound(tmp_path)
    (tmp_path / "c.ogg").write_bytes(whole)
    assert read_sound(tmp_path / "c.ogg").extension == "wav"


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as error:
        read_sound(path)
    assert error.value.argument == str(path)
    return str(error.value)


def test_what_is_no_whole_sound_is_refused(tmp_path):
    whole, path = wav(bytes(1000), 16), tmp_path / "a.wav"
    infinite = wav(struct.pack("<2f", 0.5, float("inf")), 32, code=3)
    for content, part in (
        (b"", "an empty file"),
        (b"no sound at all" * 9, "not a sound"),
        (whole[:500], "truncated"),
        (whole[:30], "damaged"),
        (wav(b"", 16), "without samples"),
        (infinite, "not finite"),
    ):
        path.write_bytes(content)
        assert part in refusal(path), part
    assert "no such file" in refusal(tmp_path / "missing.wav") and "a folder" in refusal(tmp_path)


@pytest.mark.parametrize(("extension", "subtype"), [("flac", "PCM_16"), ("ogg", "VORBIS"), ("mp3", "MPEG_LAYER_III")])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_half_a_compressed_sound_is_refused(extension, subtype, share, tmp_path):
    path = tmp_path / f"a.{extension}"
    write_sound(path, noise(16, length=40_000), 8000, subtype)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    refusal(path)


def test_a_streamed_wav_whose_header_knows_no_length_is_read(tmp_path):
    content = bytearray(wav(struct.pack("<3h", 1, 2, 3), 16))
    for place in (4, 40):
        content[place : place + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "a.wav").write_bytes(content)
    assert torch.equal(read_sound(tmp_path / "a.wav").samples[:, 0] * 32768, torch.tensor([1.0, 2, 3]))


def test_a_sound_of_another_format_is_refused_by_its_name(tmp_path):
    soundfile.write(tmp_path / "a.aiff", np.zeros(9), 8000)
    (tmp_path / "a.aiff").rename(tmp_path / "a.wav")
    assert "AIFF" in refusal(tmp_path / "a.wav")


def test_what_can_t_be_written_is_refused_and_leaves_nothing(tmp_path):
    samples = noise(16)
    for name, values, subtype in (
        ("a.mp4", samples, "PCM_16"),
        ("a.flac", samples, "FLOAT"),
        ("a.wav", samples, "VORBIS"),
        ("a.wav", samples * torch.nan, "PCM_16"),
        ("no/a.wav", samples, "PCM_16"),
        ("a.flac", torch.zeros(9, 20), "PCM_16"),
    ):
        with pytest.raises(InputError):
            write_sound(tmp_path / name, values, 8000, subtype)
    assert list(tmp_path.iterdir()) == []


def test_real_sounds_come_back(data_root, tmp_path):
    folder = data_root / "siren_audio"
    if not folder.is_dir():
        pytest.skip("no sounds there")
    for name, length in (("gt_bach", 308_207), ("gt_counting", 537_936)):
        sound = read_sound(folder / f"{name}.wav")
        assert (len(sound.samples), sound.rate, sound.subtype) == (length, 44100, "FLOAT")
        write_sound(tmp_path / "a.wav", sound.samples, sound.rate, sound.subtype)
        assert torch.equal(read_sound(tmp_path / "a.wav").samples, sound.samples)
