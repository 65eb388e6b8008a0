"""Every way in which a scene is commonly broken ends in one line, before a run writes its first file."""

import json
import shutil
import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

# The whole of it, because importorskip also silences what nerfstudio and its like warn of on import.
pytest.importorskip("nerfstudio.configs.method_configs", reason="needs the nerf extra")

from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGPDataParserConfig
from nerfstudio.data.dataparsers.minimal_dataparser import MinimalDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.plugins.registry_dataparser import DataParserSpecification

from evos.errors import InputError
from evos_nerf.check import check_checkpoint, check_data, quiet
from evos_nerf.datamanager import EvosDataManagerConfig
from evos_nerf.llff import LlffDataParserConfig

pytestmark = pytest.mark.nerf

VIEWS = 12
TRAINED = 11
"""Views in the host's train split."""


def picture(path: Path, size: tuple[int, int] = (8, 6), mode: str = "RGB", value: int = 255) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.full((size[1], size[0]), value, np.uint8)).convert(mode).save(path)


def floats(path: Path) -> None:
    """A TIFF of floats, whatever its name."""
    PIL.Image.fromarray(np.ones((6, 8), np.float32)).save(path, format="TIFF")


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


def check(folder: Path, parser: type = NerfstudioDataParserConfig, **options: object) -> None:
    check_data(EvosDataManagerConfig(data=folder, dataparser=parser(**options)))


def edit(folder: Path, change: Callable[[dict], dict | None], name: str = "transforms.json") -> None:
    """Write what ``change`` returns of a transforms file, or what it made of it."""
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
        f"1 of {TRAINED} images missing, first",
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
    "a centre that is no number": (lambda f: edit(f, lambda c: c.update(cx=float("nan"))), "cx NaN; allowed: a number"),
    "a distortion that is no number": (
        lambda f: edit(f, lambda c: c.update(k1=float("nan"))),
        "cameras that are not fin",
    ),
    "a lens without its parameters": (
        lambda f: edit(f, lambda c: c.update(camera_model="FISHEYE624")),
        "cameras of the train split that nerfstudio makes no rays of",
    ),
    "focal length null": (lambda f: edit(f, lambda c: c.update(fl_x=None)), "fl_x null"),
    "image of another size": (lambda f: picture(f / "images" / "2.png", (4, 3)), "4 x 3 pixels; allowed: 8 x 6 pixels"),
    "image that is none": (lambda f: (f / "images" / "2.png").write_text("?"), "2.png: got a file that is no image"),
    "empty image": (lambda f: (f / "images" / "2.png").write_bytes(b""), "2.png: got a file that is no image"),
    "floats": (lambda f: floats(f / "images" / "2.png"), "an image of mode F; allowed: 1, L, P, RGB, CMYK"),
    "mask of another size": (lambda f: picture(f / "masks" / "2.png", (6, 8), "L"), "6 x 8 pixels; allowed: 8 x 6"),
    "all masked": (
        lambda f: [picture(f / "masks" / f"{i}.png", mode="L", value=0) for i in range(VIEWS)],
        "masks that leave no pixel of any image",
    ),
    "mask in colour": (lambda f: picture(f / "masks" / "2.png"), "an image of mode RGB"),
    "a mask missing": (lambda f: (f / "masks" / "2.png").unlink(), f"1 of {TRAINED} masks missing"),
    "not all with masks": (lambda f: edit_frame(f, mask_path=None), f"{VIEWS - 1} mask_path in {VIEWS} frames"),
    "no transforms": (lambda f: (f / "transforms.json").unlink(), "a folder without transforms.json"),
    "an unknown camera": (lambda f: edit(f, lambda c: c.update(camera_model="BOX")), "nothing known as 'BOX'"),
    "names without an ending": (
        lambda f: edit_frame(f, file_path="images/2"),
        f"1 of {TRAINED} images missing, first",
    ),
    "another split's masks missing": (
        lambda f: edit(
            f,
            lambda c: frames_of(c, lambda frame: "/8" in frame["file_path"] and frame.update(mask_path="masks/-")),
        ),
        "1 of 1 masks missing",
    ),
    "one frame": (lambda f: edit(f, lambda c: c.update(frames=c["frames"][:1])), "1 frame; allowed: at least two"),
    "nothing to evaluate on": (
        lambda f: edit(f, lambda c: c.update(frames=c["frames"][:2])),
        "no view in the val split; allowed: at least one in each of train and val; --eval-mode all",
    ),
    "a list of files for one split only": (
        lambda f: edit(f, lambda c: c.update(train_filenames=["images/2.png"])),
        "list of filenames for split val is missing",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_capture_is_one_line(capture, how):
    check(capture)
    change, line = BROKEN[how]
    change(capture)
    with pytest.raises(InputError) as caught:
        check(capture)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def frames_of(content: dict, change: Callable[[dict], object]) -> None:
    for frame in content["frames"]:
        change(frame)


def intrinsics_in_frames(content: dict) -> dict:
    keys = [key for key in content if key != "frames"]
    return {"frames": [{**frame, **{key: content[key] for key in keys}} for frame in content["frames"]]}


TRAINED_ON = {
    "numbers of the camera in every frame": lambda f: edit(f, intrinsics_in_frames),
    "other, stale numbers in the frames": lambda f: edit(
        f, lambda c: frames_of(c, lambda frame: frame.update(w=800, h=600, fl_x=0))
    ),
    "numbers written as text": lambda f: edit(f, lambda c: c.update(fl_x="9.0", w="8")),
    "frames of no split without pictures": lambda f: (
        edit(f, lambda c: c.update(train_filenames=["images/0.png", "images/1.png"], val_filenames=["images/3.png"])),
        (f / "images" / "2.png").unlink(),
        (f / "masks" / "2.png").unlink(),
    ),
    "frames of the test split without pictures": lambda f: (
        edit(
            f,
            lambda c: c.update(
                train_filenames=["images/0.png"], val_filenames=["images/3.png"], test_filenames=["images/2.png"]
            ),
        ),
        (f / "images" / "2.png").unlink(),
    ),
}


@pytest.mark.parametrize("how", TRAINED_ON)
def test_what_the_host_trains_on_passes(capture, how):
    TRAINED_ON[how](capture)
    assert host_views(capture, NerfstudioDataParserConfig()) > 0
    check(capture)
    if (capture / "images" / "2.png").exists():
        check(capture / "transforms.json")


def test_reduced_images_and_masks_are_looked_for_where_nerfstudio_looks(capture):
    with pytest.raises(InputError, match=rf"{TRAINED} of {TRAINED} images missing, first .*images_2"):
        check(capture, downscale_factor=2)
    for i in range(VIEWS):
        picture(capture / "images_2" / f"{i}.png", (4, 3))
    with pytest.raises(InputError, match=rf"{TRAINED} of {TRAINED} masks missing, first .*masks_2"):
        check(capture, downscale_factor=2)
    for i in range(VIEWS):
        picture(capture / "masks_2" / f"{i}.png", (4, 3), "L")
    check(capture, downscale_factor=2)
    picture(capture / "images_2" / "2.png", (8, 6))
    with pytest.raises(InputError, match="8 x 6 pixels; allowed: 4 x 3 pixels"):
        check(capture, downscale_factor=2)


def test_masks_of_the_factor_that_nerfstudio_chooses_by_itself_are_looked_for(capture):
    """Pictures above 1,600 px are halved where there is a folder of the halved."""
    edit(capture, lambda c: c.update(w=1700, h=6))
    for i in range(VIEWS):
        picture(capture / "images" / f"{i}.png", (1700, 6))
        picture(capture / "images_2" / f"{i}.png", (850, 3))
    with pytest.raises(InputError, match=rf"{TRAINED} of {TRAINED} masks missing, first .*masks_2"):
        check(capture)


def host_views(folder: Path, parser) -> int:
    """How many training views the host's own parser finds."""
    parser.data = folder
    with quiet():
        return len(parser.setup().get_dataparser_outputs(split="train").image_filenames)


def test_frames_whose_images_are_missing_are_left_out_as_by_the_instant_ngp_parser(capture):
    parser = InstantNGPDataParserConfig(eval_mode="all")
    edit(capture, lambda c: c.update(camera_angle_x=1.0))
    edit_frame(capture, transform_matrix=matrix(float("nan")))
    (capture / "images" / "2.png").unlink()
    assert host_views(capture, parser) == VIEWS - 1
    check(capture, InstantNGPDataParserConfig, eval_mode="all")
    edit_frame(capture, transform_matrix=matrix(1.0))
    for image in (capture / "images").iterdir():
        image.unlink()
    with pytest.raises(InputError, match=f"{VIEWS} of {VIEWS} images missing"):
        check(capture, InstantNGPDataParserConfig, eval_mode="all")


def test_instant_ngp_scenes_omit_endings_and_the_last_row_of_matrices(capture):
    def change(content: dict) -> None:
        content["camera_angle_x"] = 1.0
        frames_of(content, lambda frame: frame.update(file_path=frame["file_path"].removesuffix(".png"), w=0))
        frames_of(content, lambda frame: frame.update(transform_matrix=frame["transform_matrix"][:3]))

    edit(capture, change)
    check(capture, InstantNGPDataParserConfig, eval_mode="all")


def test_one_evaluated_view_of_the_instant_ngp_parser_is_refused_as_no_rays_are_made_of_it(capture):
    edit(capture, lambda c: c.update(camera_angle_x=1.0, frames=c["frames"][:10]))
    with pytest.raises(
        InputError, match=r"cameras of the val split that nerfstudio makes no rays of \(AssertionError.*--eval-mode"
    ):
        check(capture, InstantNGPDataParserConfig)


def test_the_instant_ngp_parser_reads_no_focal_length_from_the_frames(capture):
    def change(content: dict) -> None:
        frames_of(content, lambda frame: frame.update(fl_x=content["fl_x"]))
        del content["fl_x"], content["fl_y"]

    edit(capture, change)
    with pytest.raises(InputError, match=r"without fl_x; allowed: .* in the file"):
        check(capture, InstantNGPDataParserConfig)


def test_one_mask_that_leaves_nothing_is_a_warning(capture, capsys):
    picture(capture / "masks" / "2.png", mode="L", value=0)
    check(capture)
    assert f"1 of {TRAINED} masks leave no pixel, first" in capsys.readouterr().out


def test_masks_that_leave_pixels_of_evaluated_views_alone_are_an_error(capture):
    edit(capture, lambda c: c.update(train_filenames=["images/0.png"], val_filenames=["images/1.png"]))
    picture(capture / "masks" / "0.png", mode="L", value=0)
    with pytest.raises(InputError, match="masks that leave no pixel of any image"):
        check(capture)


def test_a_blender_scene_is_trained_on_without_its_test_pictures(blender_scene, tmp_path):
    shutil.copytree(blender_scene, tmp_path / "s", ignore=shutil.ignore_patterns("test"))
    assert host_views(tmp_path / "s", BlenderDataParserConfig()) == 6
    check(tmp_path / "s", BlenderDataParserConfig)
    for split in ("train", "val"):
        edit(tmp_path / "s", lambda c: c.update(camera_angle_x=str(c["camera_angle_x"])), f"transforms_{split}.json")
    check(tmp_path / "s", BlenderDataParserConfig)


def test_the_checkpoint_to_resume_from_is_where_the_options_say(tmp_path):
    config, folder = TrainerConfig(), tmp_path / "nerfstudio_models"
    check_checkpoint(config)
    folder.mkdir()
    torch.save({"step": 12}, folder / "step-000000012.ckpt")
    config.load_dir = folder
    check_checkpoint(config)
    config.load_step = 12
    check_checkpoint(config)
    config.load_step = 7
    with pytest.raises(InputError, match="--load-step: got 7; allowed: 12"):
        check_checkpoint(config)
    config.load_dir = tmp_path
    with pytest.raises(InputError, match=r"--load-dir: got .*nerfstudio_models in the folder of a run"):
        check_checkpoint(config)
    config.load_dir, config.load_checkpoint = None, folder / "step-000000007.ckpt"
    with pytest.raises(InputError, match=r"--load-checkpoint: got .*that exists"):
        check_checkpoint(config)


@pytest.mark.parametrize("option", ["load_dir", "load_checkpoint"])
def test_a_checkpoint_that_was_cut_off_is_one_line(option, tmp_path):
    file = tmp_path / "step-000000012.ckpt"
    torch.save({"step": 12, "values": torch.zeros(100)}, file)
    config = TrainerConfig(**{option: tmp_path if option == "load_dir" else file})
    check_checkpoint(config)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"step-000000012.ckpt: got a damaged checkpoint"):
        check_checkpoint(config)


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
    check(blender_scene, BlenderDataParserConfig)
    for file in blender_scene.rglob("*.*"):
        target = tmp_path / "s" / file.relative_to(blender_scene)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    edit(tmp_path / "s", lambda c: change(c), f"transforms_{split}.json")
    with pytest.raises(InputError) as caught:
        check(tmp_path / "s", BlenderDataParserConfig)
    assert line in str(caught.value)


def test_an_option_that_the_parser_refuses_is_one_line(blender_scene):
    with pytest.raises(InputError, match="random is not a valid preset color"):
        check(blender_scene, BlenderDataParserConfig, alpha_color="random")


def test_pictures_of_a_blender_scene_have_one_size(blender_scene, tmp_path):
    (tmp_path / "transforms_train.json").write_text((blender_scene / "transforms_train.json").read_text())
    for i in range(6):
        picture(tmp_path / "train" / f"r_{i}.png", (16, 16 if i < 4 else 15), "RGBA")
    with pytest.raises(InputError, match=r"r_4.png: got 16 x 15 pixels; allowed: 16 x 16 pixels, as its camera has it"):
        check(tmp_path, BlenderDataParserConfig)


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
    assert f"1 of {TRAINED} images missing" in error
    assert error.count("\n") == 1
    assert not config.output_dir.exists()


def test_real_scenes_pass(data_root):
    parsers = {
        "nerf_llff_fern": LlffDataParserConfig,
        "nerf_synthetic_lego": BlenderDataParserConfig,
        "nerfstudio_fox": NerfstudioDataParserConfig,
    }
    for name, parser in parsers.items():
        if (data_root / name).is_dir():
            check(data_root / name, parser)


def test_the_llff_parser_is_an_entry_point():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    module, name = project["entry-points"]["nerfstudio.dataparser_configs"]["llff-data"].split(":")
    assert isinstance(getattr(import_module(module), name), DataParserSpecification)


def data_manager(folder: Path, **options: object) -> Any:
    config = EvosDataManagerConfig(data=folder, dataparser=NerfstudioDataParserConfig(), **options)
    check_data(config)
    return config.setup(device="cpu", test_mode="val", world_size=1, local_rank=0)


@pytest.mark.filterwarnings("ignore")  # the host leaves the file open
@pytest.mark.parametrize(("view", "line"), [("2", "2.png: got an image or mask that can't be read"), ("8", "held-out")])
def test_a_truncated_picture_is_one_line_although_its_header_says_what_it_should(capture, view, line):
    path = capture / "images" / f"{view}.png"
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(InputError, match=line):
        data_manager(capture)


@pytest.mark.filterwarnings("ignore")  # the host's data loaders
def test_masks_of_pictures_of_several_sizes_are_evaluated_on(capture):
    for i in range(1, VIEWS, 2):
        picture(capture / "images" / f"{i}.png", (6, 8))
        picture(capture / "masks" / f"{i}.png", (6, 8), "L")

    def change(content: dict) -> dict:
        content = intrinsics_in_frames(content)
        for frame in content["frames"]:
            if int(Path(frame["file_path"]).stem) % 2:
                frame.update(w=6, h=8)
        return {**content, "train_filenames": names[:6], "val_filenames": names[6:]}

    names = [f"images/{i}.png" for i in range(VIEWS)]
    mask = np.zeros((6, 8), np.uint8)
    mask[2:4, 5] = 255
    PIL.Image.fromarray(mask).save(capture / "masks" / "8.png")
    edit(capture, change)
    manager = data_manager(capture, eval_num_rays_per_batch=600)
    _, batch = manager.next_eval(0)
    image, y, x = batch["indices"].T
    assert sorted(set(image.tolist())) == list(range(6))
    last = image == 4  # in the order of names: 10, 11, 6, 7, 8, 9
    drawn = set(zip(y[last].tolist(), x[last].tolist(), strict=True))
    assert drawn == {(2, 5), (3, 5)}, "the unmasked pixels of view 8"


@pytest.mark.filterwarnings("ignore")  # the host's data loaders
def test_all_images_are_kept_whatever_number_the_host_would_cache(capture, capsys):
    manager = data_manager(capture, train_num_images_to_sample_from=3)
    assert "train_num_images_to_sample_from 3: EVOS keeps all images" in capsys.readouterr().out
    assert len(manager.rays.sizes) == TRAINED


@pytest.mark.filterwarnings("ignore")  # the host's data loaders
def test_of_fisheye_cameras_the_circle_is_drawn(capture):
    def change(content: dict) -> None:
        content.update(camera_model="OPENCV_FISHEYE", fisheye_crop_radius=2.0)
        frames_of(content, lambda frame: frame.pop("mask_path"))

    edit(capture, change)
    manager = data_manager(capture)
    _, batch = manager.next_train(0)
    y, x = batch["indices"][:, 1:].T
    assert "evos_selection" in batch and {*y.tolist()} == {1, 2, 3, 4} and {*x.tolist()} == {2, 3, 4, 5}
