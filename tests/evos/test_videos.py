"""Videos are read whole or refused in one line, and written back as they were."""

import imageio.v3 as iio
import numpy as np
import PIL.Image
import pytest
import torch

from evos.errors import InputError
from evos.videos import is_video, read_frames, read_video, write_video


def blocks(frames: int = 6, height: int = 24, width: int = 32) -> torch.Tensor:
    """A bright square that moves over a coloured ground."""
    film = torch.tensor([0.2, 0.4, 0.6]).expand(frames, height, width, 3).clone()
    for index in range(frames):
        film[index, 4:12, 2 + 3 * index : 10 + 3 * index] = torch.tensor([0.9, 0.7, 0.1])
    return film


def test_a_film_that_is_to_be_turned_is_turned(tmp_path):
    write_video(tmp_path / "a.mp4", blocks(), 10)
    data = (tmp_path / "a.mp4").read_bytes()
    whole, one = 0x10000.to_bytes(4, "big"), 0x40000000.to_bytes(4, "big")
    upright = whole + bytes(12) + whole + bytes(12) + one
    a_quarter = bytes(4) + whole + bytes(4) + (2**32 - 0x10000).to_bytes(4, "big") + bytes(16) + one
    track = data.index(b"tkhd")
    place = data.index(upright, track)
    turned = data[:place] + a_quarter + data[place + len(upright) :]
    (tmp_path / "turned.mp4").write_bytes(turned)
    film, found = (read_video(tmp_path / name)[0] for name in ("a.mp4", "turned.mp4"))
    torch.testing.assert_close(found, film.rot90(-1, (1, 2)), rtol=0, atol=0)  # clockwise, as a phone held upright


@pytest.mark.parametrize("extension", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize("size", [(24, 32), (23, 31)], ids=["even", "odd"])
def test_a_film_comes_back_within_a_few_grey_levels(extension, size, tmp_path):
    film = blocks(6, *size)
    write_video(tmp_path / f"a.{extension}", film, 12.5)
    found, form = read_video(tmp_path / f"a.{extension}")
    assert (form.rate, form.extension) == (12.5, "mp4")
    assert float((found - film).square().mean().sqrt()) * 255 < 1.5


def test_a_gif_of_few_colours_comes_back_exactly(tmp_path):
    film = (blocks() * 255).round() / 255
    write_video(tmp_path / "a.gif", film, 10)
    found, form = read_video(tmp_path / "a.gif")
    assert form.extension == "gif" and form.rate == pytest.approx(10)
    torch.testing.assert_close(found, film, rtol=0, atol=1e-6)


def test_frames_that_a_gif_keeps_once_are_shown_as_often_as_they_were(tmp_path):
    film = blocks()[[0, 0, 0, 1, 2, 2]]
    write_video(tmp_path / "a.gif", film, 20)
    found, form = read_video(tmp_path / "a.gif")
    assert form.rate == pytest.approx(20)
    torch.testing.assert_close(found, film, rtol=0, atol=1 / 255)


def test_the_first_frames_are_read_and_each_is_reduced(tmp_path):
    colours = torch.rand(3, 4, 3, generator=torch.Generator().manual_seed(0))
    film = colours.repeat_interleave(16, 0).repeat_interleave(16, 1).expand(8, -1, -1, -1)
    write_video(tmp_path / "a.mp4", film, 5)
    found, _ = read_video(tmp_path / "a.mp4", longer_side=16, most_frames=3)
    assert found.shape == (3, 12, 16, 3)
    within = found.unflatten(1, (3, 4)).unflatten(3, (4, 4))[:, :, 1:3, :, 1:3].mean((2, 4))
    assert float((within - colours).abs().max()) < 0.02


def test_pictures_are_frames_in_their_natural_order(tmp_path):
    for number in (10, 2, 1):
        PIL.Image.new("RGB", (5, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
    files = [tmp_path / f"{number}.png" for number in (1, 2, 10)]
    found, form = read_frames(files)
    assert (found[:, 0, 0, 0] * 255).round().tolist() == [1, 2, 10] and form.rate == 25
    PIL.Image.new("RGB", (4, 4)).save(files[1])
    with pytest.raises(InputError, match=r"2\.png: got a picture of \(4, 4, 3\); allowed: \(4, 5, 3\)"):
        read_frames(files)


def test_a_film_that_was_cut_anywhere_is_refused_in_one_line(tmp_path):
    write_video(tmp_path / "whole.mp4", blocks(30), 10)
    write_video(tmp_path / "whole.gif", blocks(30), 10)
    for name, some in (("mp4", (0, 10, 100, -100, -1000)), ("gif", (0, 10, 400, -100))):
        data = (tmp_path / f"whole.{name}").read_bytes()
        for end in some:
            (tmp_path / f"cut.{name}").write_bytes(data[:end])
            with pytest.raises(InputError) as error:
                read_video(tmp_path / f"cut.{name}")
            assert str(error.value).startswith(str(tmp_path / f"cut.{name}")) and "\n" not in str(error.value)


def test_a_film_of_fewer_frames_than_its_header_says_is_refused(tmp_path):
    """An index at the front, as films for the web have, survives the loss of the end."""
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mp4"), "w", options={"movflags": "faststart"}) as file:
        stream = file.add_stream("libx264", 10, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv444p"
        noise = np.random.default_rng(0).integers(0, 255, (20, 64, 64, 3), np.uint8)
        for frame in noise:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    data = (tmp_path / "a.mp4").read_bytes()
    assert len(read_video(tmp_path / "a.mp4")[0]) == 20
    with av.open(str(tmp_path / "a.mp4")) as file:
        ends = sorted(packet.pos + packet.size for packet in file.demux(video=0) if packet.size)
    (tmp_path / "a.mp4").write_bytes(data[: ends[9]])  # between two frames, so that no decoder complains
    with pytest.raises(InputError, match="a truncated video, of 10 frames in place of 20"):
        read_video(tmp_path / "a.mp4")
    assert len(read_video(tmp_path / "a.mp4", most_frames=5)[0]) == 5


def test_a_film_that_ends_before_its_time_is_refused_where_no_frames_are_counted(tmp_path):
    write_video(tmp_path / "a.mkv", torch.rand(40, 48, 64, 3), 10)
    data = (tmp_path / "a.mkv").read_bytes()
    assert len(read_video(tmp_path / "a.mkv")[0]) == 40
    (tmp_path / "a.mkv").write_bytes(data[: int(0.6 * len(data))])
    with pytest.raises(InputError, match=r"a truncated video, of 2\.\d s in place of 4\.0 s"):
        read_video(tmp_path / "a.mkv")
    assert len(read_video(tmp_path / "a.mkv", most_frames=5)[0]) == 5


def test_one_frame_is_no_video(tmp_path):
    (tmp_path / "a.gif").write_bytes(iio.imwrite("<bytes>", np.zeros((4, 4, 3), np.uint8), extension=".gif"))
    with pytest.raises(InputError, match="a video of 1 frames; allowed: at least 2"):
        read_video(tmp_path / "a.gif")


def test_more_pixels_than_memory_is_meant_for_are_refused_while_they_are_read(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", blocks(), 10)
    monkeypatch.setattr("evos.videos.MOST", 4 * 24 * 32)
    with pytest.raises(InputError, match="see --frames and --longer_side"):
        read_video(tmp_path / "a.mp4")
    assert len(read_video(tmp_path / "a.mp4", most_frames=4)[0]) == 4


def test_a_video_is_known_by_its_content_or_its_extension(tmp_path):
    write_video(tmp_path / "a.mp4", blocks(), 10)
    (tmp_path / "a.mp4").rename(tmp_path / "film.png")
    (tmp_path / "a.webm").touch()
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    assert [is_video(tmp_path / name) for name in ("film.png", "a.webm", "b.png")] == [True, True, False]


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"the extension \.avi"):
        write_video(tmp_path / "a.avi", blocks(), 10)
    with pytest.raises(InputError, match="not finite"):
        write_video(tmp_path / "a.mp4", blocks() * torch.nan, 10)
    assert not list(tmp_path.iterdir())
