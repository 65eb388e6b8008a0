"""The demonstration: its photos, and the whole of it in a few steps."""

import pytest
import torch

from evos.images import list_images, read_image
from generalizable.demo import cut, main


def test_photos_are_square_pieces_of_a_picture():
    picture = torch.rand(150, 200, 3)
    first, second = cut([picture], 2, seed=0)
    assert torch.equal(cut([picture], 2, seed=0)[1], second)
    side = first.shape[0]
    assert first.shape == (side, side, 3) and 64 <= side <= 144
    ((y, x),) = (picture == first[0, 0]).all(-1).nonzero().tolist()
    assert torch.equal(picture[y : y + side, x : x + side], first)


@pytest.mark.parametrize("name", ["run/report.png", "photos/train/0000.png", "photos/notes.txt", "report.png"])
def test_files_of_others_stay(tmp_path, refused, name, monkeypatch):
    monkeypatch.setattr("generalizable.demo.train", lambda *args: pytest.fail("trained"))
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    for words in ([], ["--overwrite"]):
        assert str(tmp_path) in refused(f"out={tmp_path}", *words, program=main)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]
    assert (tmp_path / name).read_text() == "mine"


def test_a_demonstration_is_replaced_but_for_notes_among_its_photos(tmp_path, refused, monkeypatch):
    class Trained(Exception):
        pass

    def train(*args: object) -> None:
        raise Trained

    monkeypatch.setattr("generalizable.demo.train", train)
    for photos, words in ((20, []), (16, ["--overwrite"])):
        with pytest.raises(Trained):
            main([f"out={tmp_path}", f"photos={photos}", *words])
        assert len(list_images(tmp_path / "photos" / "train")) == photos
    (tmp_path / "photos" / "notes.txt").write_text("mine")
    assert "nothing in it but what" in refused(f"out={tmp_path}", "photos=17", "--overwrite", program=main)
    assert len(list_images(tmp_path / "photos" / "train")) == 16


def test_mistakes_end_in_one_line(tmp_path, refused):
    assert "a divisor of 16" in refused(f"out={tmp_path}", "processes=3", program=main)
    assert "at least 16" in refused(f"out={tmp_path}", "photos=3", program=main)


@pytest.mark.slow
@pytest.mark.dist
def test_the_demonstration_runs_under_torchrun(tmp_path, monkeypatch, capfd):
    pytest.importorskip("skimage.data")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    main([f"out={tmp_path}", "photos=16", "steps=2"])
    printed = capfd.readouterr().out
    assert "unseen photos:" in printed and "patterns.safetensors: " in printed and "bits a pixel" in printed
    assert (tmp_path / "patterns.safetensors").stat().st_size < 8 * 128 * 64  # 8 patterns in less than a byte a number
    assert len(list_images(tmp_path / "photos" / "train")) == 16
    assert read_image(tmp_path / "report.png").pixels.shape == (5 * 96, 8 * 96, 3)
