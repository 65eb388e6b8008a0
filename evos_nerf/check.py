"""Validate a scene before training starts: a problem is reported in one line, before any file is written.

What the host's own parser reads is what is checked: the pictures and masks of the views that this command trains and
evaluates on. Only where the parser fails, or returns cameras that are not finite, the files are read for the reason.
"""

import math
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanagerConfig
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig, DataparserOutputs
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGPDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.model_components.ray_generators import RayGenerator
from nerfstudio.utils.rich_utils import CONSOLE

from evos.errors import InputError, exit_on_input_error
from evos.llff import image_size
from evos.transforms_json import CAMERA, Frame, check_camera, is_number, read_transforms
from evos_nerf.llff import LlffDataParserConfig
from evos_nerf.pixel_sampler import warn

MASK_MODES = ("1", "L", "P", "I", "I;16")  # Pillow's names of images of one channel
SPLITS = ("train", "val")
"""What ns-train reads; the test split is read by ns-eval."""
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
        check_checkpoint(self)
        super().save_config()

    def setup(self, **kwargs: Any) -> Any:
        """The trainer, in which bad input that shows only later (a checkpoint of another selector) is one line, too."""
        trainer = super().setup(**kwargs)
        for name in ("setup", "train"):
            setattr(trainer, name, exit_on_input_error(getattr(trainer, name)))
        return trainer


def check_data(datamanager: Any) -> None:
    """Check the scene that a data manager's options point to; for data parsers not in `CHECKED`, only that it exists.

    Raises InputError, naming the file, for what the parser cannot read; cameras that are not finite, or that nerfstudio
    makes no rays of; a split without a view; images that are missing (names the first and their number), unreadable or
    of another size than stated; masks that are missing, of another size than their image or black in all training
    views.
    """
    if not isinstance(datamanager, VanillaDataManagerConfig | FullImageDatamanagerConfig):
        return
    parser = datamanager.dataparser
    # As in nerfstudio, the data manager's own folder takes precedence over its parser's.
    data = Path(parser.data if datamanager.data is None else datamanager.data)
    if not data.exists():
        raise InputError("--data", str(data), "the folder of a scene; this one doesn't exist")
    if isinstance(parser, CHECKED):
        check_scene(replace(parser, data=data))


def check_scene(parser: DataParserConfig) -> None:
    """Check what the parser finds in its folder; raises as `check_data`."""
    reads = getattr(parser, "load_3D_points", False)  # it may ask the user whether to make a point cloud
    for split in SPLITS:
        try:
            with quiet():
                maker: Any = (replace(parser, load_3D_points=False) if reads else parser).setup()  # type: ignore
                outputs = maker.get_dataparser_outputs(split=split)
        except InputError:
            raise
        except Exception as error:
            explain(parser, split)
            allowed = f"what the {parser._target.__name__} data parser reads"
            raise InputError(str(parser.data), _reason(error), allowed) from None
        cameras = outputs.cameras
        hint = "; --eval-mode all has every view in both" if hasattr(parser, "eval_mode") else ""
        if not len(outputs.image_filenames):
            allowed = f"at least one in each of {' and '.join(SPLITS)}{hint}"
            raise InputError(str(parser.data), f"no view in the {split} split", allowed)
        numbers = [cameras.camera_to_worlds, cameras.fx, cameras.fy, cameras.cx, cameras.cy, cameras.distortion_params]
        finite = all(some.isfinite().all() for some in numbers if some is not None)
        if not (finite and ((cameras.fx > 0) & (cameras.fy > 0)).all()):
            explain(parser, split)
            raise InputError(str(parser.data), "cameras that are not finite", "finite numbers, focal lengths above 0")
        try:
            with quiet():
                RayGenerator(cameras)(torch.zeros(2, 3, dtype=torch.long))
        except Exception as error:
            got = f"cameras of the {split} split that nerfstudio makes no rays of ({_reason(error)})"
            # Of a single view the instant-ngp parser makes a camera that is no batch, and no rays are made of it.
            allowed = "cameras that it makes rays of" + (hint if len(outputs.image_filenames) == 1 else "")
            raise InputError(str(parser.data), got, allowed) from None
        check_images(parser.data, outputs, reduced=(getattr(maker, "downscale_factor", None) or 1) > 1)
        if outputs.mask_filenames is not None:
            check_masks(parser.data, outputs, trained_on=split == "train")


@contextmanager
def quiet() -> Iterator[None]:
    """nerfstudio's console does not print, nor does it warn, as it will say the same in training."""
    before, CONSOLE.quiet = CONSOLE.quiet, True
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        CONSOLE.quiet = before


def check_images(data: Path, outputs: DataparserOutputs, *, reduced: bool) -> None:
    """Check the pictures of a split. Those of a downscaled folder may be rounded otherwise than the cameras are."""
    images = present(data, outputs.image_filenames, "images")
    cameras = outputs.cameras
    sizes = torch.stack([part.expand(len(images), 1)[:, 0] for part in (cameras.width, cameras.height)], dim=1).tolist()
    for image, stated in zip(images, sizes, strict=True):
        size = image_size(image)
        if max(abs(a - b) for a, b in zip(size, stated, strict=True)) > (1 if reduced else 0):
            raise InputError(str(image), _pixels(size), f"{_pixels(stated)}, as its camera has it")


def check_masks(data: Path, outputs: DataparserOutputs, *, trained_on: bool) -> None:
    """Check the masks of a split; that some training views have no pixel left is a warning."""
    masks = present(data, outputs.mask_filenames or [], "masks")
    kept = [check_mask(mask, image) for mask, image in zip(masks, outputs.image_filenames, strict=True)]
    if trained_on and not any(kept):
        raise InputError(str(masks[0].parent), "masks that leave no pixel of any image", "masks that leave some")
    if trained_on and not all(kept):
        left_out = f"{kept.count(False)} of {len(kept)} masks leave no pixel, first {masks[kept.index(False)]}"
        warn(f"{left_out}; no rays are drawn from their images")


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


def present(data: Path, files: Sequence[Path], kind: str) -> list[Path]:
    """The files; InputError if any is missing, with their number and the first."""
    missing = [file for file in files if not file.is_file()]
    if missing:
        got = f"{len(missing)} of {len(files)} {kind} missing, first {missing[0]}"
        raise InputError(str(data), got, "files that exist")
    return [Path(file) for file in files]


def check_checkpoint(config: TrainerConfig) -> None:
    """Raise InputError unless the checkpoint to resume from, if there is one, is where the options say, and whole."""
    folder, step, file = config.load_dir, config.load_step, config.load_checkpoint
    if folder is not None:
        steps = sorted(int(path.stem.removeprefix("step-")) for path in Path(folder).glob("step-*.ckpt"))
        if not steps:
            allowed = "a folder of checkpoints (step-*.ckpt): nerfstudio_models in the folder of a run"
            raise InputError("--load-dir", str(folder), allowed)
        if step is not None and step not in steps:
            raise InputError("--load-step", step, ", ".join(map(str, steps)))
        file = Path(folder) / f"step-{steps[-1] if step is None else step:09d}.ckpt"
    elif file is not None and not Path(file).is_file():
        raise InputError("--load-checkpoint", str(file), "a checkpoint (step-*.ckpt) that exists")
    # torch's checkpoints are archives, whose list of contents is at the end: there is none in one that was cut off.
    if file is not None and not zipfile.is_zipfile(file):
        raise InputError(str(file), "a damaged checkpoint, or another file", "a checkpoint as nerfstudio saves it")


# ---- why a parser failed


def explain(parser: DataParserConfig, split: str) -> None:
    """Raise InputError with the reason for which a parser failed, if its files show one."""
    path = Path(parser.data)
    if isinstance(parser, BlenderDataParserConfig):
        content, frames = transforms_in(path / f"transforms_{split}.json")
        angle = content.get("camera_angle_x")
        if not (is_number(angle) and 0 < float(angle) < math.pi):
            name = str(path / f"transforms_{split}.json")
            raise InputError(name, f"camera_angle_x {angle!r}", "radians between 0 and pi")
        images = [path / f"{frame['file_path'].replace('./', '')}.png" for frame in frames]
        present(path / f"transforms_{split}.json", images, "images")
    elif isinstance(parser, NerfstudioDataParserConfig | InstantNGPDataParserConfig):
        file = path if path.suffix == ".json" else path / "transforms.json"
        content, frames = transforms_in(file)
        host = isinstance(parser, NerfstudioDataParserConfig)
        for number, frame in enumerate(frames):
            check_intrinsics(file, number, content if not host else frame | content, all_of=host)
        if not getattr(parser, "downscale_factor", None):
            images = [file.parent / frame["file_path"] for frame in frames]
            present(file, images if host else [_with_png(image) for image in images], "images")
        if len(frames) < 2:
            raise InputError(str(file), "1 frame", "at least two: one to train on and one to evaluate on")
        masked = sum("mask_path" in frame for frame in frames)
        if masked not in (0, len(frames)):
            got = f"{masked} mask_path in {len(frames)} frames"
            raise InputError(str(file), got, "one in every frame, or in none")


def transforms_in(path: Path) -> tuple[dict[str, Any], list[Frame]]:
    """As ``read_transforms``; a missing file is reported with the data parser that the folder may be for."""
    if not path.exists():
        raise _wrong_kind(path)
    return read_transforms(path)


def check_intrinsics(path: Path, number: int, known: dict[str, Any], *, all_of: bool) -> None:
    """Raise InputError unless a frame's numbers are there: all of the camera's, or one that says the focal length."""
    keys = CAMERA if all_of else FOCAL_OR_ANGLE
    missing = [key for key in keys if key not in known]
    if missing and (all_of or len(missing) == len(keys)):
        allowed = f"{', '.join(keys)} in the file or in each frame" if all_of else f"{' or '.join(keys)} in the file"
        raise InputError(str(path), f"frame {number} without {missing[0]}", allowed)
    check_camera(path, known, keys)


def _with_png(path: Path) -> Path:
    """Where the instant-ngp parser looks for an image; its scenes omit .png from the names."""
    return path if path.exists() else path.with_name(f"{path.name}.png")


def _wrong_kind(path: Path) -> InputError:
    """The error for a missing transforms file, with a hint if the folder is for another data parser."""
    there = [name for name in KINDS if (path.parent / name).exists()]
    hint = f" (it has {there[0]}: ns-train METHOD{KINDS[there[0]]} --data FOLDER)" if there else ""
    return InputError(str(path.parent), "a folder without " + path.name, "a folder with it" + hint)


def _reason(error: Exception) -> str:
    """What an error of the host's says, in one line."""
    if isinstance(error, KeyError):
        return f"nothing known as {error}"
    return " ".join(str(error).split()) or type(error).__name__


def _pixels(size: Sequence[Any]) -> str:
    return "{} x {} pixels".format(*size)


CHECKED = (BlenderDataParserConfig, NerfstudioDataParserConfig, InstantNGPDataParserConfig, LlffDataParserConfig)
"""Data parsers whose scenes are checked; others may take minutes, ask questions or write files when they are called."""
