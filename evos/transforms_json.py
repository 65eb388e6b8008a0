"""Lists of pictures with their cameras: nerfstudio's transforms.json, and the transforms_train.json of Blender scenes.

Source of the latter: Mildenhall et al., "NeRF" (2020).
"""

import json
import math
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from jaxtyping import Float

from evos.errors import InputError
from evos.folders import read_list

Frame = dict[str, Any]
CAMERA = ("fl_x", "fl_y", "cx", "cy", "w", "h")
"""The numbers of a camera, in pixels: focal lengths, centre, size; in the file or in a frame of it."""
DISTORTION = ("k1", "k2", "p1", "p2")
"""Those of OpenCV's distortion, each 0 where it is not given."""


def read_transforms(path: Path) -> tuple[dict[str, Any], list[Frame]]:
    """What a list holds, and its frames, at least one, each with a ``file_path`` and a ``transform_matrix``.

    Raises:
        InputError: the file can't be read, or a frame has no file_path or no finite matrix of 3 or 4 rows.
    """
    try:
        content = json.loads(read_list(path))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(str(path), str(error), "a JSON file") from None
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
        if matrix.shape not in ((4, 4), (3, 4)):
            raise InputError(str(path), f"{name} with a transform_matrix of shape {matrix.shape}", "4 x 4 numbers")
        if not np.isfinite(matrix).all():
            raise InputError(str(path), f"{name} with a transform_matrix that is not finite", "finite numbers")
    return content, frames


def camera_matrix(frame: Frame) -> Float[np.ndarray, "3 4"]:
    """Camera to world, looking along -z with y up (OpenGL's convention), of a frame that was read."""
    return np.array(frame["transform_matrix"], dtype=np.float64)[:3]


def check_camera(path: Path, known: dict[str, Any], keys: tuple[str, ...] = CAMERA) -> None:
    """Raise InputError where one of these, the width or the height, is no finite number, or a length not above 0.

    ``known``: a frame with what the list says of all of them.
    """
    for key in {*keys, "w", "h"} & known.keys():
        value = known[key]
        signed = key in ("cx", "cy", *DISTORTION)
        if not is_number(value) or (float(value) <= 0 and not signed):
            raise InputError(str(path), f"{key} {json.dumps(value)}", "a number" if signed else "a number, above 0")


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number, or the text of one, which nerfstudio's parsers read, too."""
    try:
        return not isinstance(value, bool) and math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
