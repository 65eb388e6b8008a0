"""The scene: closed forms of its cameras, what its pictures show, and its files."""

import json
import math
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from evos.errors import InputError
from evos.ray_tracing import Sphere, Thing
from evos.textures import plain
from evos_nerf.scene import (
    CAMERA_ANGLE_X,
    RADIUS,
    SceneConfig,
    build_scene,
    camera_poses,
    camera_rays,
    look_at_centre,
    main,
    render,
    write_scene,
)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_cameras_stand_upright_on_the_upper_sphere_and_look_at_the_centre(split):
    poses = camera_poses(split, 12, torch.Generator().manual_seed(0))
    rotation, position = poses[:, :3, :3], poses[:, :3, 3]
    torch.testing.assert_close(rotation.mT @ rotation, torch.eye(3).expand(12, 3, 3), atol=1e-5, rtol=0)
    assert torch.linalg.det(rotation).min() > 0.99
    torch.testing.assert_close(position.norm(dim=-1), torch.full((12,), RADIUS))
    assert (position[:, 2] > 0).all()
    torch.testing.assert_close(-rotation[:, :, 2] * RADIUS, -position, atol=1e-4, rtol=0)
    assert rotation[:, 2, 0].abs().max() < 1e-5  # the picture's x axis is level
    assert (rotation[:, 2, 1] > 0).all()
    assert poses[:, 3].tolist() == [[0.0, 0.0, 0.0, 1.0]] * 12


def test_a_point_is_drawn_where_the_pinhole_formula_says():
    pose, size = look_at_centre(torch.tensor([2.0, -3.0, 1.7])), 64
    centre = torch.tensor([0.3, 0.2, -0.4])
    picture = render([Thing(Sphere(0.05), plain("ffffff"), centre)], pose, size)
    local = (centre - pose[:3, 3]) @ pose[:3, :3]
    focal = 0.5 * size / math.tan(0.5 * CAMERA_ANGLE_X)
    wanted = torch.tensor([size / 2 - focal * local[1] / -local[2], size / 2 + focal * local[0] / -local[2]])
    rows, columns = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    alpha = picture[..., 3]
    got = torch.stack([(alpha * rows).sum(), (alpha * columns).sum()]) / alpha.sum()
    torch.testing.assert_close(got, wanted, atol=0.3, rtol=0)
    assert set(alpha.unique().tolist()) <= {0.0, 0.25, 0.5, 0.75, 1.0}
    assert picture[alpha == 0].abs().max() == 0


def test_colour_is_straight_not_premultiplied():
    pose = look_at_centre(torch.tensor([0.0, -4.0, 0.5]))
    sky_only = render([Thing(Sphere(1.0), plain("000000"), torch.zeros(3))], pose, 32)
    white = render([Thing(Sphere(1.0), plain("ffffff"), torch.zeros(3))], pose, 32)
    edge = (white[..., 3] > 0) & (white[..., 3] < 1)
    assert edge.any()
    assert white[edge][:, 0].min() > 0.1
    assert sky_only[..., :3].max() == 0


def test_every_thing_fits_the_pictures_and_nothing_reaches_the_border():
    things = build_scene(torch.Generator().manual_seed(0))
    for pose in camera_poses("test", 6, torch.Generator()):
        alpha = render(things, pose, 50)[..., 3]
        border = torch.cat([alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]])
        assert border.max() == 0
        assert 0.1 < alpha.mean() < 0.6


def scene_files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_same_seed_gives_the_same_files_and_another_seed_others(tmp_path):
    made = {}
    for name, seed in [("a", 0), ("b", 0), ("c", 1)]:
        torch.rand(3)  # the global generator plays no part
        made[name] = scene_files(
            write_scene(SceneConfig(str(tmp_path / name), views=2, size=16, seed=seed), quiet=True)
        )
    assert made["a"] == made["b"]
    assert made["a"].keys() == made["c"].keys()
    assert made["a"]["train/r_0.png"] != made["c"]["train/r_0.png"]


def test_files_are_blenders(tmp_path):
    write_scene(SceneConfig(str(tmp_path / "s"), views=9, size=16), quiet=True)
    for split, count in [("train", 9), ("val", 2), ("test", 2)]:
        content = json.loads((tmp_path / "s" / f"transforms_{split}.json").read_text())
        assert content["camera_angle_x"] == CAMERA_ANGLE_X
        assert [f["file_path"] for f in content["frames"]] == [f"./{split}/r_{i}" for i in range(count)]
        for frame in content["frames"]:
            assert np.array(frame["transform_matrix"]).shape == (4, 4)
            with PIL.Image.open(tmp_path / "s" / f"{frame['file_path']}.png") as picture:
                assert (picture.size, picture.mode) == ((16, 16), "RGBA")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s"]


@pytest.mark.nerf
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")  # nerfstudio 1.1.5
def test_nerfstudio_sees_the_rays_that_were_traced(tmp_path):
    blender = pytest.importorskip("nerfstudio.data.dataparsers.blender_dataparser", reason="needs the nerf extra")
    folder = write_scene(SceneConfig(str(tmp_path / "s"), views=2, size=10), quiet=True)
    cameras = blender.BlenderDataParserConfig(data=folder).setup().get_dataparser_outputs("train").cameras
    theirs = cameras.generate_rays(torch.tensor([1]), keep_shape=True).directions.squeeze()
    pose = torch.tensor(json.loads((folder / "transforms_train.json").read_text())["frames"][1]["transform_matrix"])
    ours = camera_rays(pose, 10, samples=1)[1].view(10, 10, 3)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)


def test_an_existing_folder_is_refused_and_only_a_scene_of_ours_replaced(tmp_path):
    config = SceneConfig(str(tmp_path / "s"), views=1, size=8)
    write_scene(config, quiet=True)
    with pytest.raises(InputError, match=r"--out: .*allowed: a new folder, or --overwrite"):
        write_scene(config, quiet=True)
    again = SceneConfig(str(tmp_path / "s"), views=2, size=8, overwrite=True)
    write_scene(again, quiet=True)
    assert len(list((tmp_path / "s" / "train").iterdir())) == 2
    (tmp_path / "s" / "notes.txt").write_text("mine")
    before = scene_files(tmp_path / "s")
    with pytest.raises(InputError, match=r"--out: .*nothing in it but what this program wrote"):
        write_scene(again, quiet=True)
    assert scene_files(tmp_path / "s") == before


def test_a_folder_of_somebody_else_is_never_replaced(tmp_path):
    (tmp_path / "transforms_train.json").write_text('{"camera_angle_x": 0.7, "frames": []}')
    with pytest.raises(InputError, match="a scene that this program wrote"):
        write_scene(SceneConfig(str(tmp_path), views=1, size=8, overwrite=True), quiet=True)
    assert [p.name for p in tmp_path.iterdir()] == ["transforms_train.json"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--views", "0"], "error: --views: got 0; allowed: at least 1"),
        (["size=4"], "error: --size: got 4; allowed: at least 8 and at most 2048"),
        (["--size", "big"], "error: --size: got big; allowed: a whole number"),
        (["--sise", "9"], "error: option: got --sise; allowed: did you mean --size?"),
        (["--size"], "error: --size: got no value; allowed: a value"),
        (["--out", "/dev/null/x"], "error: --out: got /dev/null/x (Not a directory)"),
    ],
)
def test_bad_input_is_one_line_and_status_2(words, line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(words)
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert error.startswith(line)
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_options_come_from_the_command_line_and_from_files(tmp_path, monkeypatch, capsys):
    written = []
    monkeypatch.setattr("evos_nerf.scene.write_scene", lambda config: written.append(config))
    (tmp_path / "a.txt").write_text("views = 3\nsize = 9\n")
    main(["--config", str(tmp_path / "a.txt"), "size=10", "--overwrite"])
    assert written == [SceneConfig(views=3, size=10, overwrite=True)]
