"""Meshes become signed distances, and distances meshes."""

import numpy as np
import pytest
import torch
import trimesh

from evos.coords import grid
from evos.errors import InputError
from evos.shapes import FILLED, TRUNCATION, Mesh, chamfer, iou, read_shape, surface, write_mesh


@pytest.fixture(scope="module")
def ball():
    mesh = trimesh.creation.icosphere(4, radius=3.0)
    mesh.apply_translation([10, 20, 30])
    return mesh


def ball_values(points: int, radius: float = FILLED, centre: tuple[float, ...] = (0.0, 0.0, 0.0)) -> torch.Tensor:
    """The values of a ball, in closed form."""
    distance = (grid((points,) * 3) - torch.tensor(centre)).norm(dim=-1) - radius
    return (distance.clamp(-TRUNCATION, TRUNCATION) / (2 * TRUNCATION) + 0.5).view((points,) * 3)


@pytest.mark.parametrize("extension", ["obj", "ply", "stl", "off"])
def test_the_distances_of_a_ball_are_its_closed_form(extension, ball, tmp_path):
    ball.export(tmp_path / f"ball.{extension}")
    values, form, mesh = read_shape(tmp_path / f"ball.{extension}", 24)
    error = (values - ball_values(24)).abs().max() * 2 * TRUNCATION
    assert float(error) < 0.004  # the polyhedron lies within the ball
    assert form.centre == pytest.approx((10, 20, 30), abs=1e-5) and form.scale == pytest.approx(FILLED / 3, rel=1e-5)
    assert np.abs(np.linalg.norm(mesh.sampled(1000), axis=1) - FILLED).max() < 0.004


@pytest.mark.parametrize("turned", [slice(None), slice(100)], ids=["all", "some"])
def test_faces_that_are_turned_inside_out_do_not_matter(turned, ball, tmp_path):
    ball.export(tmp_path / "a.ply")
    faces = np.array(ball.faces)
    faces[turned] = faces[turned, ::-1]
    trimesh.Trimesh(ball.vertices, faces, process=False).export(tmp_path / "b.ply")
    values = [read_shape(tmp_path / name, 16)[0] for name in ("a.ply", "b.ply")]
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=1e-5)


def test_axes_of_the_grid_are_z_y_x(tmp_path):
    trimesh.creation.box((8, 4, 2)).export(tmp_path / "box.ply")
    values, _, _ = read_shape(tmp_path / "box.ply", 33)
    within = values < 0.5
    sides = [int(within.any(0).any(0).sum()), int(within.any(0).any(1).sum()), int(within.any(1).any(1).sum())]
    assert sides[0] > sides[1] > sides[2]
    assert [int(axis) for axis in sides] == [25, 13, 7]  # points within 1.6, 0.8 and 0.4 of 2 at 32 steps


def test_a_mesh_comes_back_where_it_was(ball, tmp_path):
    ball.export(tmp_path / "ball.ply")
    values, form, _ = read_shape(tmp_path / "ball.ply", 32)
    write_mesh(tmp_path / "out.ply", values, form)
    back = trimesh.load_mesh(tmp_path / "out.ply")
    assert back.is_watertight and back.volume == pytest.approx(4 / 3 * np.pi * 27, rel=0.02)
    np.testing.assert_allclose(back.bounds, ball.bounds, atol=0.05)


def test_the_surface_of_a_ball_has_its_radius_and_normals_outwards():
    mesh = surface(ball_values(40, 0.5))
    assert np.abs(np.linalg.norm(mesh.corners, axis=1) - 0.5).max() < 0.005
    a, b, c = (mesh.corners[mesh.faces[:, i]] for i in range(3))
    assert ((np.cross(b - a, c - a) * a).sum(1) >= -1e-9).all()


def test_iou_of_two_balls_is_that_of_counting():
    a, b = ball_values(40, 0.5), ball_values(40, 0.5, (0.0, 0.0, 0.3))
    within = [(values < 0.5).numpy() for values in (a, b)]
    expected = np.logical_and(*within).sum() / np.logical_or(*within).sum()
    assert iou(a, b) == pytest.approx(expected) and 0.3 < expected < 0.8
    assert iou(a, a) == 1 and iou(torch.ones(3), torch.ones(3)) == 1 and iou(torch.ones(3), torch.zeros(3)) == 0


def test_chamfer_of_two_concentric_balls_is_the_difference_of_their_radii():
    sphere = trimesh.creation.icosphere(5, radius=0.5)
    truth = Mesh(np.asarray(sphere.vertices), np.asarray(sphere.faces, dtype=np.int64))
    assert chamfer(ball_values(48, 0.6), truth) == pytest.approx(0.1, abs=0.002)
    assert chamfer(ball_values(48, 0.5), truth) == pytest.approx(0, abs=0.002)
    assert chamfer(torch.ones(8, 8, 8), truth) is None


def test_an_open_mesh_is_one_clear_line(ball, tmp_path):
    mesh = ball.copy()
    mesh.update_faces(np.arange(len(mesh.faces)) > 0)
    mesh.export(tmp_path / "open.ply")
    with pytest.raises(
        InputError, match=r"open\.ply: got an open mesh \(3 edges with one face\); allowed: a closed one"
    ):
        read_shape(tmp_path / "open.ply", 16)


@pytest.mark.parametrize("extension", ["obj", "ply", "stl", "off"])
def test_a_mesh_that_was_cut_is_refused_in_one_line(extension, ball, tmp_path):
    path = tmp_path / f"a.{extension}"
    ball.export(path)
    data = path.read_bytes()
    for end in (0, 20, len(data) // 2, len(data) - 100):
        path.write_bytes(data[:end])
        with pytest.raises(InputError) as error:
            read_shape(path, 16)
        assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
    with pytest.raises(InputError, match="no such file"):
        read_shape(tmp_path / f"missing.{extension}", 16)


def test_sizes_and_missing_surfaces_are_refused(ball, tmp_path):
    ball.export(tmp_path / "a.ply")
    for points in (7, 407):
        with pytest.raises(InputError, match="8 to 406 grid points"):
            read_shape(tmp_path / "a.ply", points)
    _, form, _ = read_shape(tmp_path / "a.ply", 8)
    with pytest.raises(InputError, match="without a surface"):
        write_mesh(tmp_path / "b.ply", torch.ones(8, 8, 8), form)
    with pytest.raises(InputError, match=r"the extension \.png"):
        write_mesh(tmp_path / "b.png", torch.ones(8, 8, 8), form)
