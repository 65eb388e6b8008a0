"""Validate a scene before training starts: a problem is reported in one line, before any file is written."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import PIL.Image
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGPDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.trainer import TrainerConfig

from evos.errors import InputError, exit_on_input_error
from evos.runs.files import read_json
from evos_nerf.llff import LlffDataParserConfig, image_size, load_llff
from evos_nerf.pixel_sampler import warn

Frame = dict[str, Any]
INTRINSICS = ("fl_x", "fl_y", "cx", "cy", "w", "h")
MASK_MODES = ("1", "L", "P", "I", "I;16")  # Pillow's names of images of one channel
FOCAL_OR_ANGLE = ("fl_x", "x_fov", "camera_angle_x")
KINDS = {"transforms.json": "", "transforms_train.json": " blender-data", "poses_bounds.npy": " llff-data"}
"""The data parser to name after `ns-train METHOD`, by the file that identifies a scene's format."""


@dataclass
class CheckedTrainerConfig(TrainerConfig):
    """Trainer options for `ns-train` that validate the scene before the run writes its first file.

    An invalid scene ends in one line on stderr and exit status 2. The check is made in ``save_config`` because
    config.yml is the first file that ns-train writes; the data manager is built later, and once per process.
    """

    @exit_on_input_error
    def save_config(self) -> None:
        """Check the scene, then write config.yml as nerfstudio does."""
        check_data(self.pipeline.datamanager)
        check_load_dir(self.load_dir)
        super().save_config()

    def setup(self, **kwargs: Any) -> Any:
        """The trainer, in which bad input that shows only later (a checkpoint of another selector) is one line, too."""
        trainer = super().setup(**kwargs)
        for name in ("setup", "train"):
            setattr(trainer, name, exit_on_input_error(getattr(trainer, name)))
        return trainer


def check_data(datamanager: Any) -> None:
    """Check the scene that a data manager's options point to; for data parsers not in `CHECKS`, only that it exists.

    Raises InputError as `check_scene`.
    """
    if not isinstance(datamanager, VanillaDataManagerConfig):
        return
    parser = datamanager.dataparser
    # As in nerfstudio, the data manager's own folder takes precedence over its parser's.
    data = Path(parser.data if datamanager.data is None else datamanager.data)
    check_exists(data)
    for kind, check in CHECKS.items():
        if isinstance(parser, kind):
            check(data, parser)


def check_load_dir(folder: Path | None) -> None:
    """Raise InputError unless the folder to resume from, if there is one, holds nerfstudio's checkpoints."""
    if folder is not None and not any(Path(folder).glob("step-*.ckpt")):
        allowed = "a folder of checkpoints (step-*.ckpt): nerfstudio_models in the folder of a run"
        raise InputError("--load-dir", str(folder), allowed)


def check_scene(path: Path) -> None:
    """Check a Blender, nerfstudio, instant-ngp or LLFF scene, recognised by its files.

    Raises InputError, naming the file, for a missing scene; an unreadable or malformed transforms file; frames without
    a file_path or a finite 4 x 4 transform_matrix; a missing focal length; images that are missing (names the first
    and their number), unreadable or of another size than stated; masks that are missing, of another size than their
    image or black everywhere; a poses_bounds.npy that doesn't match the images.
    """
    path = Path(path)
    check_exists(path)
    if path.suffix == ".json" or (path / "transforms.json").exists():
        check_transforms(path, FOCAL_OR_ANGLE)
    elif (path / "transforms_train.json").exists():
        check_blender(path)
    elif (path / "poses_bounds.npy").exists():
        load_llff(path)
    else:
        raise InputError(str(path), "a folder that holds no scene", f"a folder with one of {', '.join(KINDS)}")


def check_exists(path: Path) -> None:
    """Raise InputError unless the folder or file exists."""
    if not path.exists():
        raise InputError("--data", str(path), "the folder of a scene; this one doesn't exist")


def check_blender(folder: Path) -> None:
    """Check what training reads of a Blender scene: the splits train and val. Raises as `check_scene`."""
    folder = Path(folder)
    for split in ("train", "val"):
        path = folder / f"transforms_{split}.json"
        content, frames = read_transforms(path)
        angle = content.get("camera_angle_x")
        if not (_is_number(angle) and 0 < angle < math.pi):
            raise InputError(str(path), f"camera_angle_x {angle!r}", "radians between 0 and pi")
        images = _present(path, [folder / f"{frame['file_path'].replace('./', '')}.png" for frame in frames], "images")
        size = image_size(images[0])
        for image in images:
            if image_size(image) != size:
                raise InputError(str(image), _pixels(image_size(image)), f"{_pixels(size)}, as {images[0].name}")


def check_transforms(
    path: Path,
    focal: Sequence[str] = INTRINSICS,
    downscale_factor: int | None = None,
    *,
    skips_missing: bool = False,
) -> None:
    """Check a transforms.json with one camera or several. Raises InputError as `check_scene`.

    Args:
        path: the JSON file, or its folder.
        focal: keys that the file or each frame must have: all of `INTRINSICS`, or one of `FOCAL_OR_ANGLE`.
        downscale_factor: above 1, images are taken from images_N and masks from masks_N.
        skips_missing: the parser leaves out frames whose images are missing, while there are others.
    """
    path = Path(path) if Path(path).suffix == ".json" else Path(path) / "transforms.json"
    content, frames = read_transforms(path)
    for number, frame in enumerate(frames):
        _check_intrinsics(path, number, content | frame, focal)
    reduced = downscale_factor if (downscale_factor or 1) > 1 else None
    images = [_image_of(path.parent, frame["file_path"], reduced, "images") for frame in frames]
    if skips_missing and any(image.is_file() for image in images):
        there = [pair for pair in zip(frames, images, strict=True) if pair[1].is_file()]
        frames, images = (list(column) for column in zip(*there, strict=True))
    _present(path, images, "images")
    for frame, image in zip(frames, images, strict=True):
        size, stated = image_size(image), tuple((content | frame).get(key) for key in ("w", "h"))
        if reduced is None and None not in stated and size != stated:
            raise InputError(str(image), _pixels(size), f"{_pixels(stated)}, as {path.name} has it")
    masked = [i for i, frame in enumerate(frames) if "mask_path" in frame]
    if masked and len(masked) != len(frames):
        raise InputError(
            str(path), f"{len(masked)} mask_path in {len(frames)} frames", "one in every frame, or in none"
        )
    masks = [_image_of(path.parent, str(frames[i]["mask_path"]), reduced, "masks") for i in masked]
    kept = [check_mask(*pair) for pair in zip(_present(path, masks, "masks"), images, strict=bool(masks))]
    if masks and not any(kept):
        raise InputError(str(masks[0].parent), "masks that leave no pixel of any image", "masks that leave some")
    if not all(kept):
        left_out = f"{kept.count(False)} of {len(kept)} masks leave no pixel, first {masks[kept.index(False)]}"
        warn(f"{left_out}; no rays are drawn from their images")


def read_transforms(path: Path) -> tuple[dict[str, Any], list[Frame]]:
    """Read a transforms file; InputError unless each frame has a file_path and a finite 4 x 4 transform_matrix."""
    if not path.exists():
        raise _wrong_kind(path)
    content = read_json(path)
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not frames:
        raise InputError(str(path), "no frames", "an object with a list of frames")
    for number, frame in enumerate(frames):
        if not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str):
            raise InputError(str(path), f"frame {number} without a file_path", "a file_path in each frame")
        name = f"frame {number} ({frame['file_path']})"
        try:
            matrix = np.array(frame.get("transform_matrix"), dtype=np.float64)
        except (TypeError, ValueError):
            raise InputError(str(path), f"{name} whose transform_matrix is no matrix", "4 x 4 numbers") from None
        if matrix.shape != (4, 4):
            raise InputError(str(path), f"{name} with a transform_matrix of shape {matrix.shape}", "4 x 4 numbers")
        if not np.isfinite(matrix).all():
            raise InputError(str(path), f"{name} with a transform_matrix that is not finite", "finite numbers")
    return content, frames


def check_mask(mask: Path, image: Path) -> bool:
    """Whether a mask leaves any pixel of its image; InputError if they differ in size."""
    size = image_size(mask, MASK_MODES)
    if size != image_size(image):
        raise InputError(str(mask), _pixels(size), f"{_pixels(image_size(image))}, as its image {image.name}")
    try:
        with PIL.Image.open(mask) as opened:
            kept = np.asarray(opened)
    except OSError as error:
        raise InputError(str(mask), f"a damaged image ({error})", "a mask") from error
    return bool(kept.any())


def _check_intrinsics(path: Path, number: int, known: dict[str, Any], focal: Sequence[str]) -> None:
    missing = [key for key in focal if key not in known]
    if missing and (focal is INTRINSICS or len(missing) == len(focal)):
        allowed = f"{', '.join(focal)} in the file or in each frame" if focal is INTRINSICS else " or ".join(focal)
        raise InputError(str(path), f"frame {number} without {missing[0]}", allowed)
    for key in {*INTRINSICS, *focal} & known.keys():
        value = known[key]
        if not _is_number(value) or (value <= 0 and key not in ("cx", "cy")):
            raise InputError(str(path), f"{key} {json.dumps(value)}", "a number, above 0 but for cx and cy")


def _image_of(folder: Path, name: str, reduced: int | None, kind: str) -> Path:
    """Where nerfstudio looks for an image; instant-ngp scenes omit .png from the names."""
    path = folder / name if reduced is None else folder / f"{kind}_{reduced}" / Path(name).name
    plus_png = path.with_name(f"{path.name}.png")
    return plus_png if not path.exists() and plus_png.exists() else path


def _present(path: Path, files: list[Path], kind: str) -> list[Path]:
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise InputError(
            str(path), f"{len(missing)} of {len(files)} {kind} missing, first {missing[0]}", "files that exist"
        )
    return files


def _wrong_kind(path: Path) -> InputError:
    """The error for a missing transforms file, with a hint if the folder is for another data parser."""
    there = [name for name in KINDS if (path.parent / name).exists()]
    hint = f" (it has {there[0]}: ns-train METHOD{KINDS[there[0]]} --data FOLDER)" if there else ""
    return InputError(str(path.parent), "a folder without " + path.name, "a folder with it" + hint)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _pixels(size: Sequence[Any]) -> str:
    return "{} x {} pixels".format(*size)


CHECKS: dict[type[DataParserConfig], Callable[[Path, Any], None]] = {
    BlenderDataParserConfig: lambda data, _: check_blender(data),
    NerfstudioDataParserConfig: lambda data, parser: check_transforms(data, INTRINSICS, parser.downscale_factor),
    InstantNGPDataParserConfig: lambda data, _: check_transforms(data, FOCAL_OR_ANGLE, skips_missing=True),
    LlffDataParserConfig: lambda data, parser: load_llff(data, parser.downscale_factor) and None,
}
"""The check for each data parser; for any other only the folder's existence is checked."""
