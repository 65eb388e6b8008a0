"""Depth for radiance fields: cameras, sparse points, alignment, fusion, and what nerfstudio's parser makes of it."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from evonas.main import main
from evonas.networks import save_network
from evonas.scenes import (
    MILLIMETRES,
    Scene,
    View,
    agrees,
    aligned,
    fused,
    read_ply,
    read_points3d,
    read_scene,
    scale_and_shift,
    seen,
    write_ply,
    write_scene,
)
from evonas.supernet import Network
from evos.errors import InputError
from evos.images import write_image

HEIGHT, WIDTH = 24, 32


def look(x: float) -> np.ndarray:
    """A camera at (x, 0, 0) that looks along -z, y up."""
    pose = np.eye(4)[:3]
    pose[0, 3] = x
    return pose


def view(x: float = 0.0, picture: Path = Path("a.png"), distortion=(0.0, 0, 0, 0)) -> View:
    intrinsics = np.array([[30.0, 0, WIDTH / 2], [0, 28.0, HEIGHT / 2], [0, 0, 1]])
    return View(picture, look(x), intrinsics, np.array(distortion, float))


def wall(distance: float, count: int = 200) -> np.ndarray:
    """Points of a wall across the view."""
    places = np.random.default_rng(0).uniform(-0.4, 0.4, (count, 2)) * distance
    return np.concatenate([places, np.full((count, 1), -distance)], 1)


def test_a_point_on_the_axis_is_in_the_middle_and_right_is_right():
    places, depth = view().project(np.array([[0, 0, -5.0], [1, 0, -5.0], [0, 1, -5.0], [0, 0, 5.0]]))
    np.testing.assert_allclose(places[:3], [[16, 12], [16 + 6, 12], [16, 12 - 5.6]], atol=1e-9)
    np.testing.assert_allclose(depth, [5, 5, 5, -5])


@pytest.mark.parametrize("distortion", [(0, 0, 0, 0), (0.1, -0.05, 0.01, -0.02)])
def test_points_come_back_from_their_pixels(distortion):
    own = view(1.5, distortion=distortion)
    generator = np.random.default_rng(1)
    places, depth = generator.uniform(2, 20, (40, 2)), generator.uniform(1, 9, 40)
    found, own_depth = own.project(own.unproject(places, depth))
    np.testing.assert_allclose(found, places, atol=1e-3)
    np.testing.assert_allclose(own_depth, depth, atol=1e-9)


def test_scale_and_shift_are_found_among_hidden_points():
    generator = np.random.default_rng(0)
    predicted = generator.uniform(1, 4, 300)
    depth = 7 * predicted + 3
    hidden = generator.random(300) < 0.3
    depth[hidden] *= generator.uniform(1.2, 3, hidden.sum())
    scale, shift = scale_and_shift(predicted, depth)
    assert scale == pytest.approx(7, abs=0.2) and shift == pytest.approx(3, abs=0.5)
    assert scale_and_shift(predicted, 20 - 2 * predicted) == (0, pytest.approx(np.median(20 - 2 * predicted)))


def test_aligned_depth_is_in_the_scenes_unit_and_within_it():
    own = view()
    points = np.concatenate([wall(5.0), wall(10.0) + np.array([0, 3, 0])])
    predicted = np.broadcast_to(np.where(np.arange(HEIGHT)[:, None] < 9, 2.0, 1.0), (HEIGHT, WIDTH))
    found = aligned(own, np.ascontiguousarray(predicted, np.float32), points)
    assert found.shape == (HEIGHT, WIDTH) and found.min() >= 5 and found.max() <= 10
    assert np.median(found[14:]) == pytest.approx(5, abs=0.2)
    with pytest.raises(InputError, match=r"scene: got 0 sparse points in a.png; allowed: at least 10"):
        aligned(own, np.ones((HEIGHT, WIDTH), np.float32), -points)


def test_the_cloud_has_what_another_view_agrees_with():
    views = [view(-0.5), view(0.5)]
    right, wrong = np.full((HEIGHT, WIDTH), 6.0, np.float32), np.full((HEIGHT, WIDTH), 6.0, np.float32)
    wrong[:, :16] = 9
    colours = [np.full((HEIGHT, WIDTH, 3), i * 100, np.uint8) for i in range(2)]
    points, shades = fused(views, [right, right], colours, 100)
    assert len(points) == 100 and np.allclose(points[:, 2], -6) and set(np.unique(shades)) == {0, 100}
    points, _ = fused(views, [right, wrong], colours, 10000)
    assert np.allclose(points[:, 2], -6) and 0 < len(points) < 1.5 * HEIGHT * WIDTH
    alone, _ = fused(views[:1], [wrong], colours[:1], 10000)
    assert len(alone) == HEIGHT * WIDTH
    masked = np.where(np.arange(WIDTH) < 16, 0, right).astype(np.float32)
    alone, _ = fused(views[:1], [masked], colours[:1], 10000)
    assert len(alone) == HEIGHT * (WIDTH - 16) and np.allclose(alone[:, 2], -6)
    points, _ = fused(views, [masked, right], colours, 10000)  # nothing agrees with what is masked
    places, _ = views[0].project(points)
    assert len(points) and places[:, 0].min() >= 16
    assert agrees(views[0], right, wall(6.0), 0.1).mean() > 0.5 and not agrees(views[0], right, wall(8.0), 0.1).any()


def test_clouds_are_written_and_read(tmp_path):
    points, colours = wall(3.0), np.random.default_rng(0).integers(0, 255, (200, 3)).astype(np.uint8)
    write_ply(tmp_path / "a.ply", points, colours)
    np.testing.assert_allclose(read_ply(tmp_path / "a.ply"), points, atol=1e-5)
    (tmp_path / "b.ply").write_bytes(b"no cloud")
    with pytest.raises(InputError, match="a PLY of points"):
        read_ply(tmp_path / "b.ply")


def write_points3d(path: Path, points: np.ndarray) -> None:
    """COLMAP's format, with tracks of different lengths."""
    data = struct.pack("<Q", len(points))
    for number, point in enumerate(points):
        data += struct.pack("<QdddBBBd", number, *point, 1, 2, 3, 0.5)
        data += struct.pack("<Q", number % 3) + struct.pack("<ii", 1, 2) * (number % 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_colmaps_points_are_read(tmp_path):
    write_points3d(tmp_path / "p.bin", wall(4.0))
    np.testing.assert_allclose(read_points3d(tmp_path / "p.bin"), wall(4.0))
    (tmp_path / "p.bin").write_bytes((tmp_path / "p.bin").read_bytes()[:-100])
    with pytest.raises(InputError, match=r"scene: got .*p.bin, which is damaged"):
        read_points3d(tmp_path / "p.bin")
    with pytest.raises(InputError, match=r"scene: got .*none.bin: No such file"):
        read_points3d(tmp_path / "none.bin")


def write_transforms(folder: Path, views: int = 4, **extra) -> Path:
    """A scene of a wall at 6."""
    frames = []
    for i in range(views):
        folder.mkdir(parents=True, exist_ok=True)
        write_image(folder / f"{i}.png", torch.rand(HEIGHT, WIDTH, 3))
        pose = np.concatenate([look(0.3 * i), [[0, 0, 0, 1]]]).tolist()
        frames.append({"file_path": f"{i}.png", "transform_matrix": pose})
    write_ply(folder / "sparse.ply", wall(6.0), np.zeros((200, 3), np.uint8))
    camera = {"fl_x": 30.0, "fl_y": 28.0, "cx": WIDTH / 2, "cy": HEIGHT / 2, "w": WIDTH, "h": HEIGHT}
    meta = {**camera, "ply_file_path": "sparse.ply", "frames": frames, **extra}
    (folder / "transforms.json").write_text(json.dumps({k: v for k, v in meta.items() if v is not None}))
    return folder


@pytest.fixture
def network(tiny_space, slopes, tmp_path) -> Path:
    save_network(tmp_path / "network.pt", Network(tiny_space, slopes.head, tiny_space.largest), slopes.config, [])
    return tmp_path / "network.pt"


@pytest.fixture
def written(network, tmp_path) -> Path:
    """The stage's folder for a scene of four views, two of them to train on."""
    splits = {"train_filenames": ["0.png", "2.png"], "val_filenames": ["1.png"], "test_filenames": ["1.png"]}
    scene, out = write_transforms(tmp_path / "scene", **splits), tmp_path / "run"
    main(["points", "--quiet", "device=cpu", f"network={network}", f"scene={scene}", f"out={out}", "points=500"])
    return out / "points"


def test_a_scene_is_written_with_depth_and_a_cloud(written):
    facts = json.loads((written / "transforms.json").read_text())
    assert len(facts["frames"]) == 4 and len(facts["train_filenames"]) == 2
    depth = np.load(written / facts["frames"][0]["depth_file_path"])
    assert depth.shape == (HEIGHT, WIDTH) and np.allclose(depth / MILLIMETRES, 6, atol=0.01)
    cloud = read_ply(written / "points.ply")
    assert len(cloud) == 500 and np.allclose(cloud[:, 2], -6, atol=0.01)
    assert (written / "3_coloured.png").exists()
    again = read_scene(written)
    assert again.train == [0, 2] and np.allclose(again.views[3].pose, look(0.9))


@pytest.mark.parametrize("mode, black", [("L", 0), ("LA", (0, 255)), ("RGBA", (0, 0, 0, 255))])
def test_a_mask_hides_where_it_is_black_whatever_its_alpha(mode, black, tmp_path):
    picture = PIL.Image.new(mode, (WIDTH, HEIGHT), "white")
    picture.paste(black, (0, 0, 16, HEIGHT))
    picture.save(tmp_path / "mask.png")
    found = replace(view(0.0), mask=tmp_path / "mask.png").unmasked(np.full((HEIGHT, WIDTH), 6.0, np.float32))
    assert not found[:, :16].any() and (found[:, 16:] == 6).all()


def write_masks(folder, value, width=WIDTH):
    """Masks of one brightness for a scene of transforms.json."""
    facts = json.loads((folder / "transforms.json").read_text())
    for frame in facts["frames"]:
        frame["mask_path"] = f"mask_{frame['file_path']}"
        write_image(folder / frame["mask_path"], torch.full((HEIGHT, width, 1), value))
    (folder / "transforms.json").write_text(json.dumps(facts))
    return folder


def test_a_scene_keeps_its_masks(network, tmp_path):
    folder = write_masks(write_transforms(tmp_path / "scene"), 1.0)
    out = tmp_path / "run"
    main(["points", "--quiet", "device=cpu", f"network={network}", f"scene={folder}", f"out={out}", "points=500"])
    written = json.loads((out / "points" / "transforms.json").read_text())
    assert [frame["mask_path"] for frame in written["frames"]] == [str(folder / f"mask_{i}.png") for i in range(4)]


def test_what_is_masked_is_not_in_the_cloud(network, tmp_path, refused):
    words = ["--quiet", "device=cpu", f"network={network}", f"out={tmp_path / 'run'}", "points=500"]
    folder = write_masks(write_transforms(tmp_path / "scene"), 0.0)
    assert "no two agree" in refused("points", f"scene={folder}", *words)
    write_masks(folder, 1.0, width=2 * WIDTH)
    assert f"{2 * WIDTH}×{HEIGHT}; allowed: {WIDTH}×{HEIGHT}, as its picture has it" in refused(
        "points", f"scene={folder}", *words
    )


@pytest.mark.nerf
@pytest.mark.filterwarnings("ignore:unclosed file", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_nerfstudio_reads_the_written_scene(written):
    """Its parser leaves pictures open."""
    parsers = pytest.importorskip("nerfstudio.data.dataparsers.nerfstudio_dataparser", reason="needs the nerf extra")
    try:
        import open3d  # noqa: F401 - reads clouds for nerfstudio
    except (ImportError, OSError):
        clouds = False
    else:
        clouds = True
    config = parsers.NerfstudioDataParserConfig(data=written, load_3D_points=clouds, auto_scale_poses=False)
    found = config.setup().get_dataparser_outputs("train")
    assert [path.name for path in found.image_filenames] == ["0.png", "2.png"]
    assert [path.name for path in found.metadata["depth_filenames"]] == ["0.npy", "2.npy"]
    assert not clouds or found.metadata["points3D_xyz"].shape == (500, 3)
    from nerfstudio.data.utils.data_utils import get_depth_image_from_path

    path = found.metadata["depth_filenames"][0]
    read = get_depth_image_from_path(path, HEIGHT, WIDTH, found.metadata["depth_unit_scale_factor"])
    assert torch.allclose(read, torch.tensor(6.0), atol=0.01)


def test_fern_has_its_sparse_points_in_view(data_root):
    scene = read_scene(data_root / "nerf_llff_fern")
    assert len(scene.views) == 20 and scene.train[:3] == [1, 2, 3] and 8 not in scene.train
    _, depth = seen(scene.views[3], scene.points, (378, 504))
    assert len(depth) > 9000 and 15 < np.percentile(depth, 1) < np.percentile(depth, 99) < 80


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"ply_file_path": None}, r"scene: got .*transforms.json without ply_file_path; allowed: sparse points"),
        ({"camera_model": "OPENCV_FISHEYE"}, r"camera_model: got OPENCV_FISHEYE; allowed: OPENCV or PINHOLE"),
        ({"fl_x": None}, r"transforms.json: got 0.png without fl_x"),
        ({"fl_x": 0}, r"transforms.json: got fl_x 0; allowed: a number, above 0"),
        ({"k1": "x"}, r'transforms.json: got k1 "x"; allowed: a number'),
        ({"k3": 0.1}, r"transforms.json: got k3 0.1; allowed: distortion by k1, k2, p1, p2 alone"),
        ({"w": 2 * WIDTH}, r"0.png: got \d+×\d+; allowed: \d+×\d+, as its camera has it"),
        ({"frames": 3}, r"transforms.json: got no frames"),
        ({"frames": []}, r"transforms.json: got no frames"),
        (
            {"frames": [{"file_path": "0.png", "transform_matrix": [[1, 2], [3, 4]]}]},
            r"got frame 0 \(0.png\) with a tran",
        ),
        ({"frames": [{"file_path": "9.png", "transform_matrix": np.eye(4).tolist()}]}, r"9.png: got no such file"),
        ({"train_filenames": ["7.png"]}, r"transforms.json: got train_filenames \['7.png'\]"),
        ({"train_filenames": []}, r"transforms.json: got train_filenames \[\]"),
    ],
)
def test_scenes_that_cannot_be_used_are_one_line(extra, words, tmp_path):
    with pytest.raises(InputError, match=words) as error:
        read_scene(write_transforms(tmp_path / "scene", **extra))
    assert "\n" not in str(error.value)


def test_pictures_of_one_name_keep_depth_maps_of_their_own(network, tmp_path):
    scene = write_transforms(tmp_path / "scene")
    facts = json.loads((scene / "transforms.json").read_text())
    for i, frame in enumerate(facts["frames"]):
        frame["file_path"] = f"camera{i % 2}/{i // 2}.png"
        (scene / frame["file_path"]).parent.mkdir(exist_ok=True)
        (scene / f"{i}.png").rename(scene / frame["file_path"])
    (scene / "transforms.json").write_text(json.dumps(facts))
    main(["points", "--quiet", "device=cpu", f"network={network}", f"scene={scene}", f"output={tmp_path / 'out'}"])
    written = json.loads((tmp_path / "out" / "transforms.json").read_text())["frames"]
    assert [frame["depth_file_path"] for frame in written] == [f"depths/{i:04}_{i // 2}.npy" for i in range(4)]
    assert len(list((tmp_path / "out").glob("*_coloured.png"))) == 4


def test_a_scene_is_not_written_over(network, tmp_path, refused):
    scene = write_transforms(tmp_path / "scene")
    before = (scene / "transforms.json").read_bytes()
    words = ["points", "--quiet", f"network={network}", f"scene={scene}", f"output={scene}", "--overwrite"]
    assert "allowed: another folder than the one that is read" in refused(*words)
    assert (scene / "transforms.json").read_bytes() == before


def test_views_that_look_at_different_places_give_no_cloud(network, tmp_path, refused):
    scene = write_transforms(tmp_path / "scene", views=2)
    facts = json.loads((scene / "transforms.json").read_text())
    away = np.diag([-1.0, 1.0, -1.0, 1.0])  # half a turn about y
    facts["frames"][1]["transform_matrix"] = (away @ np.array(facts["frames"][1]["transform_matrix"])).tolist()
    both = np.concatenate([wall(6.0), wall(6.0) @ away[:3, :3]])
    write_ply(scene / "sparse.ply", both, np.zeros((len(both), 3), np.uint8))
    (scene / "transforms.json").write_text(json.dumps(facts))
    words = ["points", "--quiet", "device=cpu", f"network={network}", f"scene={scene}", f"out={tmp_path / 'run'}"]
    assert refused(*words) == "scene: got views of which no two agree on any depth; allowed: views that overlap"


def test_what_is_no_scene_is_one_line(tmp_path, network, capsys):
    with pytest.raises(InputError, match=r"scene: got .*; allowed: a folder with poses_bounds.npy or transforms.json"):
        read_scene(tmp_path)
    with pytest.raises(SystemExit) as error:
        main(["points", f"network={network}", f"out={tmp_path / 'run'}"])
    assert error.value.code == 2 and "scene: got None" in capsys.readouterr().err


def test_one_view_is_trained_and_reported(tmp_path):
    own = view(picture=tmp_path / "a.png")
    depth = np.full((HEIGHT, WIDTH), 6, np.float32)
    write_scene(tmp_path / "out", Scene([own], wall(6.0), [0]), [depth], (wall(6.0), np.zeros((200, 3), np.uint8)))
    written = json.loads((tmp_path / "out" / "transforms.json").read_text())
    assert written["train_filenames"] == written["test_filenames"] == [str(tmp_path / "a.png")]
