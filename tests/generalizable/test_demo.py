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


def test_mistakes_end_in_one_line(tmp_path, refused):
    (tmp_path / "run").mkdir()
    assert "--overwrite" in refused(f"out={tmp_path}", program=main)
    assert "a divisor of 16" in refused(f"out={tmp_path}", "processes=3", program=main)
    assert "at least 16" in refused(f"out={tmp_path}", "photos=3", program=main)


@pytest.mark.slow
@pytest.mark.dist
def test_the_demonstration_runs_under_torchrun(tmp_path, monkeypatch, capfd):
    pytest.importorskip("skimage.data")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    main([f"out={tmp_path}", "photos=16", "steps=2"])
    assert "unseen photos:" in capfd.readouterr().out
    assert len(list_images(tmp_path / "photos" / "train")) == 16
    assert read_image(tmp_path / "report.png").pixels.shape == (4 * 96, 8 * 96, 3)
