"""The ray tracer against a slow search along the ray, closed forms of the camera, and its files."""

import json
import math
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F

from evos.errors import InputError
from evos_nerf.scene import (
    CAMERA_ANGLE_X,
    RADIUS,
    Box,
    Cylinder,
    SceneConfig,
    Sphere,
    Thing,
    Torus,
    build_scene,
    camera_poses,
    camera_rays,
    frame_along,
    look_at_centre,
    main,
    plain,
    render,
    trace,
    write_scene,
)

SHAPES = {
    "sphere": (Sphere(0.5), lambda p: p.norm(dim=-1) - 0.5),
    "box": (Box(0.4), lambda p: p.abs().amax(-1) - 0.4),
    "disc": (Cylinder(0.6, 0.1), lambda p: torch.maximum(p[..., :2].norm(dim=-1) - 0.6, p[..., 2].abs() - 0.1)),
    "rod": (Cylinder(0.1, 0.7), lambda p: torch.maximum(p[..., :2].norm(dim=-1) - 0.1, p[..., 2].abs() - 0.7)),
    "torus": (Torus(0.4, 0.15), lambda p: torch.hypot(p[..., :2].norm(dim=-1) - 0.4, p[..., 2]) - 0.15),
}
"""Each shape with a function that is negative inside and positive outside."""


def rays(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rays from a sphere of radius 2 to points near the centre."""
    origin = 2 * F.normalize(torch.randn(count, 3), dim=-1)
    return origin, F.normalize(0.5 * torch.randn(count, 3) - origin, dim=-1)


@pytest.mark.parametrize("name", SHAPES)
def test_a_hit_is_where_a_fine_search_first_enters(name):
    shape, outside = SHAPES[name]
    origin, direction = rays(300)
    t = torch.linspace(0, 4, 8001)
    signs = outside(origin[:, None] + t[:, None] * direction[:, None]) < 0
    slow = torch.where(signs.any(1), t[signs.int().argmax(1)], math.inf)
    fast = shape.hit(origin, direction)
    both = slow.isfinite() & fast.isfinite()
    assert 0.1 < both.float().mean() < 0.95
    torch.testing.assert_close(fast[both], slow[both], atol=1e-2, rtol=0)
    # Rays that graze the surface between two steps of the search may be missed by it.
    assert (slow.isfinite() != fast.isfinite()).sum() <= 3


@pytest.mark.parametrize("name", SHAPES)
def test_normals_are_the_gradient_of_the_distance(name):
    shape, outside = SHAPES[name]
    origin, direction = rays(300)
    distance = shape.hit(origin, direction)
    hit = distance.isfinite()
    point = (origin + distance[:, None] * direction)[hit].requires_grad_()
    outside(point).sum().backward()
    torch.testing.assert_close(shape.normal(point.detach()), F.normalize(point.grad, dim=-1), atol=2e-3, rtol=0)


def test_things_behind_the_camera_are_not_seen():
    origin = torch.tensor([[0.0, 0.0, 3.0]])
    for shape, _ in SHAPES.values():
        assert shape.hit(origin, torch.tensor([[0.0, 0.6, 0.8]])).isinf().all()


def test_a_moved_and_turned_shape_is_hit_where_it_went():
    thing = Thing(
        Cylinder(0.1, 1.0), plain("ffffff"), torch.tensor([0.0, 2.0, 0.0]), frame_along(torch.tensor([1.0, 0, 0]))
    )
    colour, hit = trace([thing], torch.tensor([[0.9, 2.0, 3.0], [0.0, 2.5, 3.0]]), torch.tensor([[0.0, 0.0, -1.0]] * 2))
    assert hit.tolist() == [True, False]
    assert colour[0].min() > 0.3
    assert colour[1].tolist() == [0.0, 0.0, 0.0]


def test_light_is_lamberts_and_a_shadow_leaves_the_sky():
    ground = Thing(Cylinder(2.0, 0.5), plain("ffffff"), torch.tensor([0.0, 0.0, -0.5]))
    light = F.normalize(torch.tensor([0.5, -0.35, 0.9]), dim=0)
    ball = Thing(Sphere(0.2), plain("ffffff"), 2 * light)
    origin, down = torch.tensor([[0.0, 0.0, 1.0], [1.0, 1.0, 1.0]]), torch.tensor([[0.0, 0.0, -1.0]] * 2)
    colour, _ = trace([ground, ball], origin, down)
    assert colour[0].tolist() == pytest.approx([0.5] * 3, abs=1e-5)
    assert colour[1].tolist() == pytest.approx([min(1.0, 0.5 + 0.7 * float(light[2]))] * 3, abs=1e-5)


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
