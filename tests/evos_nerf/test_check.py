"""Every way in which a scene is commonly broken ends in one line, before a run writes its first file."""

import json
import shutil
import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

# The whole of it, because importorskip also silences what nerfstudio and its like warn of on import.
pytest.importorskip("nerfstudio.configs.method_configs", reason="needs the nerf extra")

from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGPDataParserConfig
from nerfstudio.data.dataparsers.minimal_dataparser import MinimalDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.plugins.registry_dataparser import DataParserSpecification

from evos.errors import InputError
from evos_nerf.check import check_blender, check_data, check_load_dir, check_scene, check_transforms
from evos_nerf.datamanager import EvosDataManagerConfig
from evos_nerf.llff import LlffDataParserConfig

pytestmark = pytest.mark.nerf

VIEWS = 4


def picture(path: Path, size: tuple[int, int] = (8, 6), mode: str = "RGB", value: int = 255) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.full((size[1], size[0]), value, np.uint8)).convert(mode).save(path)


@pytest.fixture
def capture(tmp_path) -> Path:
    """A scene in nerfstudio's format with masks."""
    folder = tmp_path / "capture"
    frames = []
    for i in range(VIEWS):
        picture(folder / "images" / f"{i}.png")
        picture(folder / "masks" / f"{i}.png", mode="L")
        pose = np.eye(4)
        pose[:3, 3] = [i, 0, 1]
        frames.append(
            {"file_path": f"images/{i}.png", "mask_path": f"masks/{i}.png", "transform_matrix": pose.tolist()}
        )
    edit(folder, lambda _: {"fl_x": 9.0, "fl_y": 9.0, "cx": 4, "cy": 3, "w": 8, "h": 6, "frames": frames})
    return folder


def edit(folder: Path, change: Callable[[dict], dict | None], name: str = "transforms.json") -> None:
    path = folder / name
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(change(content) or content))


def edit_frame(folder: Path, **change: object) -> None:
    """Change the third frame; None removes a key."""

    def changed(content: dict) -> None:
        frame = content["frames"][2]
        frame.update(change)
        content["frames"][2] = {key: value for key, value in frame.items() if value is not None}

    edit(folder, changed)


def matrix(value: float) -> list[list[float]]:
    return [[value] * 4] * 4


BROKEN = {
    "one image missing": (
        lambda f: (f / "images" / "2.png").unlink(),
        f"1 of {VIEWS} images missing, first",
    ),
    "all images missing": (
        lambda f: (f / "images").rename(f / "pictures"),
        f"{VIEWS} of {VIEWS} images missing, first",
    ),
    "3 x 3 matrix": (lambda f: edit_frame(f, transform_matrix=np.eye(3).tolist()), "transform_matrix of shape (3, 3)"),
    "ragged matrix": (lambda f: edit_frame(f, transform_matrix=[[1, 2], [3]]), "transform_matrix is no matrix"),
    "matrix of text": (lambda f: edit_frame(f, transform_matrix=[["a"] * 4] * 4), "transform_matrix is no matrix"),
    "no matrix": (lambda f: edit_frame(f, transform_matrix=None), "transform_matrix of shape ()"),
    "NaN": (lambda f: edit_frame(f, transform_matrix=matrix(float("nan"))), "frame 2 (images/2.png) with a transform_"),
    "infinity": (lambda f: edit_frame(f, transform_matrix=matrix(float("inf"))), "that is not finite"),
    "no file_path": (lambda f: edit_frame(f, file_path=None), "frame 2 without a file_path"),
    "not JSON": (lambda f: (f / "transforms.json").write_text("{"), "allowed: a JSON file"),
    "a list": (lambda f: (f / "transforms.json").write_text("[]"), "an object with a list of frames"),
    "no frames": (lambda f: edit(f, lambda c: c.update(frames=[])), "no frames"),
    "no focal length": (lambda f: edit(f, lambda c: {"w": 8, "h": 6, "frames": c["frames"]}), "without fl_x"),
    "focal length 0": (lambda f: edit(f, lambda c: c.update(fl_x=0)), "fl_x 0; allowed: a number, above 0"),
    "focal length null": (lambda f: edit(f, lambda c: c.update(fl_x=None)), "fl_x null"),
    "image of another size": (lambda f: picture(f / "images" / "2.png", (4, 3)), "4 x 3 pixels; allowed: 8 x 6 pixels"),
    "image that is none": (lambda f: (f / "images" / "2.png").write_text("?"), "2.png: got a file that is no image"),
    "empty image": (lambda f: (f / "images" / "2.png").write_bytes(b""), "2.png: got a file that is no image"),
    "palette image": (lambda f: picture(f / "images" / "2.png", mode="P"), "an image of mode P; allowed: L, RGB, RGBA"),
    "mask of another size": (lambda f: picture(f / "masks" / "2.png", (6, 8), "L"), "6 x 8 pixels; allowed: 8 x 6"),
    "all masked": (
        lambda f: [picture(f / "masks" / f"{i}.png", mode="L", value=0) for i in range(VIEWS)],
        "masks that leave no pixel of any image",
    ),
    "mask in colour": (lambda f: picture(f / "masks" / "2.png"), "an image of mode RGB"),
    "a mask missing": (lambda f: (f / "masks" / "2.png").unlink(), f"1 of {VIEWS} masks missing"),
    "not all with masks": (lambda f: edit_frame(f, mask_path=None), f"3 mask_path in {VIEWS} frames"),
    "no transforms": (lambda f: (f / "transforms.json").unlink(), "a folder that holds no scene"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_capture_is_one_line(capture, how):
    check_scene(capture)
    change, line = BROKEN[how]
    change(capture)
    with pytest.raises(InputError) as caught:
        check_scene(capture)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_intrinsics_may_stand_in_the_frames_and_names_may_lack_png(capture):
    def change(content: dict) -> dict:
        keys = [key for key in content if key != "frames"]
        frames = [{**frame, **{key: content[key] for key in keys}} for frame in content["frames"]]
        return {"frames": [{**frame, "file_path": frame["file_path"].removesuffix(".png")} for frame in frames]}

    edit(capture, change)
    check_scene(capture)
    check_scene(capture / "transforms.json")


def test_reduced_images_and_masks_are_looked_for_where_nerfstudio_looks(capture):
    with pytest.raises(InputError, match=r"4 of 4 images missing, first .*images_2"):
        check_transforms(capture, downscale_factor=2)
    for i in range(VIEWS):
        picture(capture / "images_2" / f"{i}.png", (4, 3))
        picture(capture / "masks_2" / f"{i}.png", (4, 3), "L")
    check_transforms(capture, downscale_factor=2)


def host_views(folder: Path, parser) -> int:
    """How many training views the host's own parser finds."""
    parser.data = folder
    return len(parser.setup().get_dataparser_outputs(split="train").image_filenames)


def test_frames_whose_images_are_missing_are_left_out_as_by_the_instant_ngp_parser(capture):
    parser = InstantNGPDataParserConfig(eval_mode="all")
    edit(capture, lambda c: c.update(camera_angle_x=1.0))
    (capture / "images" / "2.png").unlink()
    assert host_views(capture, parser) == VIEWS - 1
    check_data(EvosDataManagerConfig(data=capture, dataparser=parser))
    for image in (capture / "images").iterdir():
        image.unlink()
    with pytest.raises(InputError, match="4 of 4 images missing"):
        check_data(EvosDataManagerConfig(data=capture, dataparser=parser))


def test_one_mask_that_leaves_nothing_is_a_warning(capture, capsys):
    picture(capture / "masks" / "2.png", mode="L", value=0)
    check_scene(capture)
    assert "1 of 4 masks leave no pixel, first" in capsys.readouterr().out


def test_a_blender_scene_is_trained_on_without_its_test_pictures(blender_scene, tmp_path):
    shutil.copytree(blender_scene, tmp_path / "s", ignore=shutil.ignore_patterns("test"))
    assert host_views(tmp_path / "s", BlenderDataParserConfig()) == 6
    check_scene(tmp_path / "s")


def test_a_run_is_no_folder_of_checkpoints(tmp_path):
    check_load_dir(None)
    (tmp_path / "nerfstudio_models").mkdir()
    (tmp_path / "nerfstudio_models" / "step-000000001.ckpt").touch()
    check_load_dir(tmp_path / "nerfstudio_models")
    with pytest.raises(InputError, match=r"--load-dir: got .*nerfstudio_models in the folder of a run"):
        check_load_dir(tmp_path)


@pytest.mark.parametrize(
    ("split", "change", "line"),
    [
        ("val", lambda c: c.update(camera_angle_x=None), "camera_angle_x None; allowed: radians between 0 and pi"),
        ("train", lambda c: c.update(camera_angle_x=4.0), "camera_angle_x 4.0"),
        ("val", lambda c: c["frames"][1].update(file_path="./val/r_9"), "1 of 2 images missing, first"),
        (
            "train",
            lambda c: c["frames"][5].update(transform_matrix=[1]),
            "frame 5 (./train/r_5) with a transform_matrix",
        ),
    ],
)
def test_a_broken_blender_scene_is_one_line(blender_scene, tmp_path, split, change, line):
    check_scene(blender_scene)
    for file in blender_scene.rglob("*.*"):
        target = tmp_path / "s" / file.relative_to(blender_scene)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    edit(tmp_path / "s", lambda c: change(c), f"transforms_{split}.json")
    with pytest.raises(InputError) as caught:
        check_scene(tmp_path / "s")
    assert line in str(caught.value)


def test_pictures_of_a_blender_scene_have_one_size(blender_scene, tmp_path):
    (tmp_path / "transforms_train.json").write_text((blender_scene / "transforms_train.json").read_text())
    for i in range(6):
        picture(tmp_path / "train" / f"r_{i}.png", (16, 16 if i < 4 else 15), "RGBA")
    with pytest.raises(InputError, match=r"r_4.png: got 16 x 15 pixels; allowed: 16 x 16 pixels, as r_0.png"):
        check_blender(tmp_path)


@pytest.mark.parametrize(
    ("parser", "line"),
    [
        (NerfstudioDataParserConfig, "it has transforms_train.json: ns-train METHOD blender-data"),
        (InstantNGPDataParserConfig, "it has transforms_train.json: ns-train METHOD blender-data"),
        (LlffDataParserConfig, "poses_bounds.npy: got No such file"),
        (BlenderDataParserConfig, None),
        (MinimalDataParserConfig, None),  # not known here: only the folder is looked for
    ],
)
def test_the_check_is_the_data_parsers(blender_scene, parser, line):
    config = EvosDataManagerConfig(data=blender_scene, dataparser=parser())
    if line is None:
        check_data(config)
    else:
        with pytest.raises(InputError, match=line):
            check_data(config)
    with pytest.raises(InputError, match=r"--data: got /nowhere; allowed: .*doesn't exist"):
        check_data(EvosDataManagerConfig(data=Path("/nowhere"), dataparser=parser()))


def test_the_data_parsers_own_folder_is_checked_too(capture):
    BROKEN["NaN"][0](capture)
    with pytest.raises(InputError, match="not finite"):
        check_data(EvosDataManagerConfig(dataparser=NerfstudioDataParserConfig(data=capture)))


def test_ns_train_ends_with_one_line_and_status_2_and_writes_nothing(method, capture, tmp_path, capsys):
    BROKEN["one image missing"][0](capture)
    from nerfstudio.scripts.train import main as ns_train

    config = method("evos-nerfacto")
    config.output_dir = tmp_path / "outputs"
    config.data, config.pipeline.datamanager.dataparser = capture, NerfstudioDataParserConfig()
    with pytest.raises(SystemExit) as caught:
        ns_train(config)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "1 of 4 images missing" in error
    assert error.count("\n") == 1
    assert not config.output_dir.exists()


def test_real_scenes_pass(data_root):
    for name in ("nerf_llff_fern", "nerf_synthetic_lego", "nerfstudio_fox"):
        if (data_root / name).is_dir():
            check_scene(data_root / name)


def test_the_llff_parser_is_an_entry_point():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    module, name = project["entry-points"]["nerfstudio.dataparser_configs"]["llff-data"].split(":")
    assert isinstance(getattr(import_module(module), name), DataParserSpecification)
