"""Rendered rooms: their depth by a slow march, their files, and what replaces what."""

import json

import pytest
import torch

from evonas.data import DataConfig
from evonas.rooms import FIELD_OF_VIEW, RoomsConfig, main, room_of, write_rooms
from evonas.tasks.depth import DepthTask
from evos.images import read_image
from evos.ray_tracing import camera_rays

SMALL = {"train_rooms": 2, "search_rooms": 1, "test_rooms": 1, "views": 2, "height": 12, "width": 16, "quiet": True}


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    return write_rooms(RoomsConfig(out=str(tmp_path_factory.mktemp("rooms") / "set"), **SMALL))


def inside_something(room, points):
    """Whether points are in a thing or beyond the walls, from the shapes' own definitions."""
    outside = ((points < 0) | (points > room.size)).any(-1)
    for thing in room.things:
        own, shape = thing.inside(points), thing.shape
        kind = type(shape).__name__
        if kind == "Sphere":
            within = own.norm(dim=-1) < shape.radius
        elif kind == "Box":
            within = own.abs().amax(-1) < shape.half
        elif kind == "Cylinder":
            within = (own[:, :2].norm(dim=-1) < shape.radius) & (own[:, 2].abs() < shape.half)
        else:
            ring = torch.hypot(own[:, :2].norm(dim=-1) - shape.radius, own[:, 2])
            within = ring < shape.tube
        outside = outside | within
    return outside


@pytest.mark.parametrize("number", range(3))
def test_depth_is_where_a_slow_march_first_meets_something(number):
    room = room_of(7, "train", number)
    pose = room.pose()
    _, depth = room.view(pose, 12, 16)
    origin, direction = camera_rays(pose, 12, 16, FIELD_OF_VIEW, 1)
    cosine = direction @ -pose[:3, 2]
    step = 4e-3
    found = torch.full((192,), torch.inf)
    for distances in torch.arange(step, 12, step).split(200):
        places = origin[:, None] + distances[:, None] * direction[:, None]
        hit = inside_something(room, places.view(-1, 3)).view(192, -1)
        first = torch.where(hit.any(1), distances[hit.int().argmax(1)], torch.inf)
        found = torch.minimum(found, first)
    march = (found * cosine).view(12, 16)
    # Where rays graze a thin rod the march steps over it.
    assert (depth <= march + 1e-3).all()
    assert ((march - depth) < 2 * step).float().mean() > 0.97


def test_depth_is_measured_along_the_axis_and_colour_is_a_colour():
    room = room_of(0, "test", 0)
    colour, depth = room.view(room.pose(), 24, 32)
    assert colour.min() >= 0 and colour.max() <= 1 and colour.std() > 0.02
    assert depth.min() > 0.05 and depth.max() < torch.linalg.norm(room.size)


def test_a_pixel_is_the_mean_of_its_rays(monkeypatch):
    room = room_of(0, "test", 1)
    pose = room.pose()
    colour, _ = room.view(pose, 12, 16)
    monkeypatch.setattr("evonas.rooms.SAMPLES", 1)
    fine, _ = room.view(pose, 24, 32)
    torch.testing.assert_close(colour, fine.view(12, 2, 16, 2, 3).mean((1, 3)))
    assert (fine[::2, ::2] != fine[1::2, 1::2]).any()


def test_cameras_are_upright_and_in_the_room():
    room = room_of(0, "search", 3)
    for _ in range(5):
        pose = room.pose()
        torch.testing.assert_close(pose[:3, :3].T @ pose[:3, :3], torch.eye(3), atol=1e-5, rtol=0)
        assert (pose[:3, 3] > 0).all() and (pose[:3, 3] < room.size).all()
        assert pose[2, 1] > 0.65 and torch.linalg.det(pose[:3, :3]) > 0


def test_files_hold_what_was_rendered(rooms):
    room = room_of(0, "train", 1)
    room.view(room.pose(), 12, 16)
    colour, depth = room.view(room.pose(), 12, 16)
    written = read_image(rooms / "train" / "rgb" / "0001_01.png").pixels
    assert (written - colour).abs().max() <= 0.5 / 255 + 1e-6
    found = DepthTask(DataConfig(root=str(rooms), height=12, width=16, max_depth=12), ["train"]).sets["train"]
    assert found.names == ["0000_00", "0000_01", "0001_00", "0001_01"]
    assert (found.truth[3] - depth).abs().max() <= 0.5 / 5000 + 1e-6
    assert (found.pictures[3] - 255 * colour).abs().max() <= 0.5 + 1e-3


def test_the_same_seed_gives_the_same_rooms_however_many_there_are(rooms, tmp_path):
    more = write_rooms(RoomsConfig(out=str(tmp_path / "more"), **{**SMALL, "train_rooms": 3}))
    for file in sorted(rooms.rglob("*.png")):
        assert (more / file.relative_to(rooms)).read_bytes() == file.read_bytes()
    other = write_rooms(RoomsConfig(out=str(tmp_path / "other"), **SMALL, seed=1))
    same = [(other / f.relative_to(rooms)).read_bytes() == f.read_bytes() for f in rooms.rglob("*.png")]
    assert not any(same)


def test_splits_have_no_room_in_common():
    sizes = {
        tuple(room_of(0, split, number).size.tolist()) for split in ("train", "search", "test") for number in (0, 1)
    }
    assert len(sizes) == 6


def test_only_rooms_of_ours_are_replaced(rooms, tmp_path, refused):
    out = tmp_path / "set"
    words = [f"out={out}", *(f"{name}={value}" for name, value in SMALL.items() if name != "quiet"), "--quiet"]
    main(words)
    assert json.loads((out / "dataset.json").read_text())["depth_scale"] == 5000
    assert "out: got" in refused(*words, program=main)
    main([*words, "--overwrite"])
    (out / "mine.txt").write_text("mine")
    assert str(out) in refused(*words, "--overwrite", program=main)
    assert (out / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("views=0", "views: got 0; allowed: at least 1"),
        ("height=4", "height: got 4; allowed: at least 8 and at most 2048"),
        ("vews=3", "option: got --vews; allowed: did you mean --views?"),
    ],
)
def test_bad_options_are_one_line(word, line, refused, tmp_path):
    assert refused(f"out={tmp_path / 'x'}", word, program=main).startswith(line)
    assert not (tmp_path / "x").exists()
