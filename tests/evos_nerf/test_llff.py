"""LLFF scenes: conventions against closed forms, and the real fern against COLMAP's own points."""

import math
import struct
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F

from evos.errors import InputError

# The whole of it, because importorskip also silences what nerfstudio and its like warn of on import.
pytest.importorskip("nerfstudio.configs.method_configs", reason="needs the nerf extra")

from evos.llff import image_folder, load_llff, read_poses_bounds
from evos_nerf.llff import NERF_AXES, LlffDataParserConfig, apply_transform, average_pose, world_transform

pytestmark = pytest.mark.nerf


def random_poses(count: int) -> torch.Tensor:
    """Cameras around (0, 0, 5) that look roughly along -z, in OpenGL's axes."""
    turn = 0.2 * torch.randn(count, 3, dtype=torch.float64)
    rotation = torch.linalg.matrix_exp(torch.linalg.cross(torch.eye(3).double().expand(count, 3, 3), turn[:, None]))
    position = torch.tensor([0.0, 0.0, 5.0]) + torch.randn(count, 3)
    return torch.cat([rotation.float(), position[..., None]], dim=-1)


def write_llff(
    folder: Path, poses: torch.Tensor, full=(400, 600), focal=500.0, factors=(4,), bounds=(2.0, 10.0), count=None
) -> Path:
    right, up, back, position = poses.unbind(-1)
    shape = torch.tensor([*full, focal]).expand(len(poses), 3)
    rows = torch.stack([-up, right, back, position, shape], dim=-1).flatten(1)
    folder.mkdir(exist_ok=True)
    np.save(folder / "poses_bounds.npy", torch.cat([rows, torch.tensor(bounds).expand(len(poses), 2)], -1).numpy())
    for factor in factors:
        pictures = folder / ("images" if factor == 1 else f"images_{factor}")
        pictures.mkdir()
        for i in range(len(poses) if count is None else count):
            PIL.Image.new("RGB", (full[1] // factor, full[0] // factor), (i, 0, 0)).save(pictures / f"v{i:03}.png")
    return folder


@pytest.fixture
def scene(tmp_path) -> Path:
    return write_llff(tmp_path / "scene", random_poses(17))


def test_the_file_and_opengl_differ_by_the_order_of_axes(scene):
    torch.manual_seed(0)
    poses, shape_focal, bounds = read_poses_bounds(scene / "poses_bounds.npy")
    torch.testing.assert_close(poses, random_poses(17))
    assert torch.linalg.det(poses[:, :, :3]).tolist() == pytest.approx([1.0] * 17, abs=1e-5)
    assert shape_focal[3].tolist() == [400.0, 600.0, 500.0]
    assert bounds[16].tolist() == [2.0, 10.0]


def test_the_average_camera_goes_to_the_origin_and_looks_along_y_with_z_up():
    poses = random_poses(9)
    middle = average_pose(poses)
    torch.testing.assert_close(middle[:, 3], poses[:, :, 3].mean(0))
    torch.testing.assert_close(middle[:, :3].T @ middle[:, :3], torch.eye(3), atol=1e-5, rtol=0)
    moved = average_pose(apply_transform(world_transform(poses), 1.0, poses))
    right, up, back, position = moved.T
    for got, wanted in [(right, [1, 0, 0]), (up, [0, 0, 1]), (-back, [0, 1, 0]), (position, [0, 0, 0])]:
        torch.testing.assert_close(got, torch.tensor(wanted).float(), atol=1e-5, rtol=0)


def test_nerf_axes_give_nerfs_world():
    poses = random_poses(9)
    ours = apply_transform(world_transform(poses), 1.0, poses)
    nerf = average_pose(NERF_AXES @ ours)
    torch.testing.assert_close(nerf[:, :3], torch.eye(3), atol=1e-5, rtol=0)


def test_a_transform_moves_points_and_cameras_together():
    poses, point = random_poses(5), torch.randn(3)
    transform, scale = world_transform(poses), 0.37
    moved_point = scale * (transform[:, :3] @ point + transform[:, 3])
    moved = apply_transform(transform, scale, poses)
    before = torch.einsum("nij,ni->nj", poses[:, :, :3], point - poses[:, :, 3])
    after = torch.einsum("nij,ni->nj", moved[:, :, :3], moved_point - moved[:, :, 3])
    torch.testing.assert_close(after, scale * before, atol=1e-5, rtol=1e-4)


def test_every_eighth_view_is_held_out_and_nothing_else(scene):
    parser = LlffDataParserConfig(data=scene).setup()
    names = {
        split: [p.stem for p in parser.get_dataparser_outputs(split).image_filenames] for split in ("train", "test")
    }
    assert names["test"] == ["v000", "v008", "v016"]
    assert names["train"] == [f"v{i:03}" for i in range(17) if i % 8]
    assert [p.stem for p in parser.get_dataparser_outputs("val").image_filenames] == names["test"]


def test_focal_length_bounds_and_positions_are_scaled(scene):
    outputs = LlffDataParserConfig(data=scene, nearest=1.5).setup().get_dataparser_outputs("train")
    assert outputs.cameras.fx.unique().tolist() == pytest.approx([125.0])
    assert outputs.cameras.fy.unique().tolist() == pytest.approx([125.0])
    assert (outputs.cameras.width[0].item(), outputs.cameras.height[0].item()) == (150, 100)
    assert (outputs.cameras.cx[0].item(), outputs.cameras.cy[0].item()) == (75.0, 50.0)
    assert outputs.dataparser_scale == pytest.approx(0.75)
    assert outputs.metadata["bounds"].tolist() == [[1.5, 7.5]] * 14
    original = outputs.transform_poses_to_original_space(outputs.cameras.camera_to_worlds, "opengl")
    kept = torch.arange(17) % 8 != 0
    torch.testing.assert_close(original, load_llff(scene).poses[kept], atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")  # nerfstudio 1.1.5
def test_a_centred_ray_looks_where_the_file_says(scene):
    """The picture's middle looks along the third column, against it; y grows upwards on it, x to the right."""
    outputs = LlffDataParserConfig(data=scene).setup().get_dataparser_outputs("train")
    poses = outputs.cameras.camera_to_worlds
    rays = outputs.cameras.generate_rays(torch.tensor([[0], [0]]), coords=torch.tensor([[50.0, 75.0], [0.0, 0.0]]))
    middle, corner = rays.directions
    torch.testing.assert_close(middle, -poses[0, :, 2], atol=1e-5, rtol=0)
    wanted = F.normalize(poses[0, :, :3] @ torch.tensor([-75 / 125, 50 / 125, -1.0]), dim=0)
    torch.testing.assert_close(corner, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("factors", "asked", "wanted"),
    [((8,), None, "images_8"), ((1, 4, 8), None, "images_4"), ((1, 4, 8), 1, "images"), ((1,), None, "images")],
)
def test_the_finest_folder_that_is_small_enough_is_found(tmp_path, factors, asked, wanted):
    scene = write_llff(tmp_path / "s", random_poses(2), full=(1200, 1640), factors=factors)
    (scene / "images_old").mkdir()
    assert image_folder(scene, asked).name == wanted


def broken(scene: Path, how: str) -> Path:
    file = scene / "poses_bounds.npy"
    rows = np.load(file)
    if how == "missing":
        file.unlink()
    elif how == "text":
        file.write_text("poses")
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "fewer poses":
        np.save(file, rows[:5])
    elif how == "shape":
        np.save(file, rows[:, :15])
    elif how == "pickle":
        np.save(file, np.array([{"a": 1}]), allow_pickle=True)
    elif how == "nan":
        rows[3, 2] = math.nan
        np.save(file, rows)
    elif how == "bounds":
        rows[3, 15] = 20.0
        np.save(file, rows)
    elif how == "one smaller":
        PIL.Image.new("RGB", (150, 90)).save(scene / "images_4" / "v004.png")
    elif how == "another camera":
        rows[:, 4::5][:, :1] *= 2
        np.save(file, rows)
    elif how == "no pictures":
        (scene / "images_4").rename(scene / "pictures")
    return scene


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ("missing", "poses_bounds.npy: got No such file"),
        ("text", "no array"),
        ("empty", "no array"),
        ("pickle", "no array"),
        ("fewer poses", "got 17 images; allowed: 5, as many as poses_bounds.npy has poses"),
        ("shape", "shape (17, 15); allowed: numbers of shape (views, 17)"),
        ("nan", "row 3 with values that are not finite"),
        ("bounds", "bounds out of order"),
        ("one smaller", "v004.png: got 150 x 90 pixels; allowed: 150 x 100, as v000.png"),
        ("another camera", "as poses_bounds.npy has it, / 4"),
        ("no pictures", "a folder with images, images_4 or images_8"),
    ],
)
def test_a_bad_scene_is_one_line(scene, how, line):
    with pytest.raises(InputError) as caught:
        load_llff(broken(scene, how))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_options_are_refused(scene):
    for options, name in [({"downscale_factor": 0}, "downscale_factor"), ({"eval_interval": 1}, "eval_interval")]:
        with pytest.raises(InputError, match=name):
            LlffDataParserConfig(data=scene, **options)
    with pytest.raises(InputError, match="downscale_factor: got 8; allowed: 4"):
        load_llff(scene, 8)


def read_points(path: Path) -> tuple[torch.Tensor, torch.Tensor, list[list[int]]]:
    """COLMAP's sparse points: positions, colours in [0, 1], and the numbers of the images that see each."""
    data = path.read_bytes()
    (count,), offset = struct.unpack_from("<Q", data), 8
    points, colours, tracks = [], [], []
    for _ in range(count):
        _, x, y, z, r, g, b, _, length = struct.unpack_from("<QdddBBBdQ", data, offset)
        offset += struct.calcsize("<QdddBBBdQ")
        pairs = struct.unpack_from(f"<{2 * length}i", data, offset)
        offset += 8 * length
        points.append((x, y, z))
        colours.append((r / 255, g / 255, b / 255))
        tracks.append(list(pairs[::2]))
    return torch.tensor(points), torch.tensor(colours), tracks


def test_colmaps_points_of_the_fern_project_onto_their_colours(data_root):
    """Each point lies inside the views that saw it, and has their pixels' colour; shuffled views lose both."""
    folder = data_root / "nerf_llff_fern"
    if not (folder / "sparse").is_dir():
        pytest.skip(f"no {folder}")
    points, colours, tracks = read_points(folder / "sparse" / "0" / "points3D.bin")
    scene = load_llff(folder)
    parser = LlffDataParserConfig(data=folder).setup()
    outputs = [parser.get_dataparser_outputs(split) for split in ("train", "test")]
    pose_of = {
        path: (pose, fx)
        for o in outputs
        for path, pose, fx in zip(o.image_filenames, o.cameras.camera_to_worlds, o.cameras.fx, strict=True)
    }
    assert len(pose_of) == 20
    moved = outputs[0].dataparser_scale * (
        points @ outputs[0].dataparser_transform[:, :3].T + outputs[0].dataparser_transform[:, 3]
    )
    numbers = sorted({number for track in tracks for number in track})
    assert len(numbers) == 20
    seen = torch.tensor([[number in track for number in numbers] for track in tracks])

    def compare(shift: int) -> tuple[float, float]:
        inside, errors = [], []
        for i, path in enumerate(scene.images):
            pose, fx = pose_of[scene.images[(i + shift) % 20]]
            local = (moved[seen[:, i]] - pose[:, 3]) @ pose[:, :3]
            column = scene.width / 2 + fx * local[:, 0] / -local[:, 2]
            row = scene.height / 2 - fx * local[:, 1] / -local[:, 2]
            ok = (local[:, 2] < 0) & (column >= 0) & (column < scene.width) & (row >= 0) & (row < scene.height)
            inside.append(ok.float().mean())
            picture = torch.from_numpy(np.array(PIL.Image.open(path).convert("RGB"))).float() / 255
            errors.append((picture[row[ok].long(), column[ok].long()] - colours[seen[:, i]][ok]).abs().mean())
        return torch.stack(inside).mean().item(), torch.stack(errors).mean().item()

    inside, error = compare(0)
    _, shuffled_error = compare(7)
    assert inside > 0.99
    assert error < 0.6 * shuffled_error
    depth = ((moved[:, None] - torch.stack([p[:, 3] for p, _ in pose_of.values()])).norm(dim=-1)).median()
    assert 4 / 3 < depth < float(torch.cat([o.metadata["bounds"] for o in outputs]).max())
