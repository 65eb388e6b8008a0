"""Pictures of every kind that a capture may hold are read as they are meant."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

pytest.importorskip("nerfstudio.configs.method_configs", reason="needs the nerf extra")

from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.datasets.base_dataset import InputDataset

from evos.errors import InputError
from evos.llff import image_size
from evos_nerf.check import check_data
from evos_nerf.datamanager import EvosDataManagerConfig
from evos_nerf.pictures import reading_all_kinds
from evos_nerf.views import EvosViewsConfig

pytestmark = [pytest.mark.nerf, pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")]

SIZE = (6, 8)
VIEWS = 3
PARSER = NerfstudioDataParserConfig(load_3D_points=False, downscale_factor=1)


def colours() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)


def grey() -> np.ndarray:
    return colours()[..., :1].repeat(3, axis=2)


def opaque(rgb: np.ndarray, alpha: int = 255) -> np.ndarray:
    return np.concatenate([rgb, np.full((*SIZE, 1), alpha, np.uint8)], axis=2)


def palette(path: Path) -> np.ndarray:
    """As many colours as a palette can hold."""
    picture = PIL.Image.fromarray(colours())
    picture.quantize(256).save(path)
    return colours()


def transparent_palette(path: Path) -> np.ndarray:
    PIL.Image.fromarray(colours()).quantize(256).save(path, transparency=bytes([255] * 256))
    return opaque(colours())


def inks(path: Path) -> np.ndarray:
    """Of each ink what its colour lacks, and no black."""
    ink = np.concatenate([255 - colours(), np.zeros((*SIZE, 1), np.uint8)], axis=2)
    PIL.Image.frombytes("CMYK", SIZE[::-1], ink.tobytes()).save(path, format="TIFF")
    return colours()


def deep_grey(path: Path) -> np.ndarray:
    """The lower byte is another one than the upper byte, which is what is meant."""
    PIL.Image.fromarray(colours()[..., 0].astype(np.uint16) * 257 + 60).save(path)
    return grey()


def one_bit(path: Path) -> np.ndarray:
    PIL.Image.fromarray(colours()[..., 0]).point(lambda value: 255 * (value > 127)).convert("1").save(path)
    return (255 * (grey() > 127)).astype(np.uint8)


def grey_and_alpha(path: Path) -> np.ndarray:
    PIL.Image.fromarray(np.stack([grey()[..., 0], np.full(SIZE, 90, np.uint8)], axis=2), mode="LA").save(path)
    return opaque(grey(), 90)


KINDS = (palette, transparent_palette, inks, deep_grey, one_bit, grey_and_alpha)


def capture(folder: Path, write) -> np.ndarray:
    """A scene in nerfstudio's format; what its pictures show."""
    (folder / "images").mkdir(parents=True)
    names = [f"images/{i}.png" for i in range(VIEWS)]
    for name in names:
        shown = write(folder / name)
    poses = [np.eye(4) for _ in names]
    for i, pose in enumerate(poses):
        pose[:3, 3] = [i, 0, 1]
    frames = [{"file_path": name, "transform_matrix": pose.tolist()} for name, pose in zip(names, poses, strict=True)]
    camera = {"fl_x": 9.0, "fl_y": 9.0, "cx": 4, "cy": 3, "w": SIZE[1], "h": SIZE[0], "frames": frames}
    splits = {"train_filenames": names[:2], "val_filenames": names[2:]}
    (folder / "transforms.json").write_text(json.dumps(camera | splits))
    return shown


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_rays_and_held_out_pictures_have_the_colours_that_a_picture_shows(kind, tmp_path):
    shown = capture(tmp_path / "s", kind) / np.float32(255)
    config = EvosDataManagerConfig(data=tmp_path / "s", dataparser=PARSER, train_num_rays_per_batch=4)
    check_data(config)
    manager = config.setup(device="cpu", test_mode="val", world_size=1, local_rank=0)
    for found in (manager.rays.picture(0), manager.eval_dataset[0]["image"]):
        np.testing.assert_allclose(found.numpy(), shown, atol=1e-6)


def test_whole_views_are_read_right(tmp_path):
    shown = capture(tmp_path / "s", deep_grey)
    config = EvosViewsConfig(data=tmp_path / "s", dataparser=PARSER, cache_images_type="uint8")
    manager = config.setup(device="cpu", test_mode="val", world_size=1, local_rank=0)
    _, batch = manager.next_train(0)
    np.testing.assert_array_equal(batch["image"].numpy(), shown)


def test_a_scaled_palette_mixes_colours_not_their_numbers(tmp_path):
    capture(tmp_path / "s", palette)
    config = EvosDataManagerConfig(
        data=tmp_path / "s", dataparser=PARSER, train_num_rays_per_batch=4, camera_res_scale_factor=0.5
    )
    manager = config.setup(device="cpu", test_mode="val", world_size=1, local_rank=0)
    half = PIL.Image.fromarray(colours()).resize((4, 3), resample=PIL.Image.Resampling.BILINEAR)
    np.testing.assert_allclose(255 * manager.rays.picture(0).numpy(), np.asarray(half), atol=1e-3)


def test_a_data_set_that_reads_in_its_own_way_is_left_alone(tmp_path):
    class Own(InputDataset):
        def __init__(self) -> None:
            pass

        def get_numpy_image(self, image_idx: int) -> np.ndarray:
            return colours()

    assert "get_numpy_image" not in vars(reading_all_kinds(Own()))


def test_pictures_of_floats_are_refused(tmp_path):
    PIL.Image.fromarray(np.ones(SIZE, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match="an image of mode F; allowed: 1, L, P, RGB"):
        image_size(tmp_path / "a.tif")
