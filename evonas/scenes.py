"""Predicted depth for radiance fields: depth of a scene's views, aligned to its sparse points, and a cloud of them.

    python evonas/main.py points scene=SCENE out=RUN

A scene is an LLFF folder with COLMAP's sparse/0/points3D.bin, or a transforms.json with a ``ply_file_path``. What is
written is a scene for nerfstudio's own parser: ``ns-train evos-depth-nerfacto --data RUN/points`` is supervised by the
depth maps, and ``ns-train splatfacto --data RUN/points`` starts from the cloud.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from evonas.data import read_colours
from evos.errors import InputError
from evos.llff import image_size, load_llff
from evos.runs.files import replace_file, write_json
from evos.transforms_json import CAMERA, DISTORTION, camera_matrix, check_camera, read_transforms

HELD_OUT = 8
"""Every so many views of an LLFF scene, from the first, one is held out, as NeRF does."""
LEAST_POINTS = 10
"""Sparse points that a view's scale and shift take at least."""
MILLIMETRES = 1000
"""nerfstudio reads depth in thousandths of the scene's unit."""
OPENGL = np.diag([1.0, -1.0, -1.0])
"""Turns OpenGL's camera axes (y up, z backwards) into OpenCV's (y down, z forward), and back."""


@dataclass(frozen=True)
class View:
    """A picture and its camera: OpenCV's model, OpenGL's camera-to-world matrix."""

    picture: Path
    pose: Float[np.ndarray, "3 4"]
    intrinsics: Float[np.ndarray, "3 3"]
    distortion: Float[np.ndarray, "4"] = field(default_factory=lambda: np.zeros(4))
    mask: Path | None = None
    """A picture that is black where nothing is to be trained on."""

    def unmasked(self, depth: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "H W"]:
        """The depth, 0 where the mask is black."""
        if self.mask is None:
            return depth
        return np.where((read_colours(self.mask) > 0).any(-1), depth, 0).astype(depth.dtype)

    def project(self, points: Float[np.ndarray, "P 3"]) -> tuple[Float[np.ndarray, "P 2"], Float[np.ndarray, "P"]]:
        """Places (x, y) in pixels, and depths along the camera's axis; below 0 behind it."""
        camera = (points - self.pose[:, 3]) @ self.pose[:, :3] @ OPENGL
        front = np.where(camera[:, 2:] > 0, camera, [0.0, 0.0, 1.0])
        places, _ = cv2.projectPoints(front, np.zeros(3), np.zeros(3), self.intrinsics, self.distortion)
        return places[:, 0], camera[:, 2]

    def inside(
        self, points: Float[np.ndarray, "P 3"], size: tuple[int, int]
    ) -> tuple[Float[np.ndarray, "P 2"], Float[np.ndarray, "P"], Bool[np.ndarray, "P"]]:
        """As ``project``, and which points are in front of the camera and inside its picture (height, width)."""
        places, depth = self.project(points)
        return places, depth, (depth > 0) & (places >= 0).all(1) & (places < (size[1], size[0])).all(1)

    def unproject(self, places: Float[np.ndarray, "P 2"], depth: Float[np.ndarray, "P"]) -> Float[np.ndarray, "P 3"]:
        """The points of places at depths along the camera's axis."""
        flat = cv2.undistortPoints(places[:, None].astype(np.float64), self.intrinsics, self.distortion)[:, 0]
        camera = np.concatenate([flat, np.ones((len(flat), 1))], 1) * depth[:, None]
        return camera @ OPENGL @ self.pose[:, :3].T + self.pose[:, 3]


@dataclass(frozen=True)
class Scene:
    """Views, sparse points, and what is trained on; ``meta`` is what else goes into a transforms.json."""

    views: list[View]
    points: Float[np.ndarray, "P 3"]
    train: list[int]
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Of each view its picture's, after its number where pictures of several folders have the same."""
        stems = [view.picture.stem for view in self.views]
        return stems if len(set(stems)) == len(stems) else [f"{i:04}_{stem}" for i, stem in enumerate(stems)]


# ---- reading


def read_scene(folder: str | Path) -> Scene:
    """A scene of either kind.

    Raises:
        InputError: neither of them, or files that are missing or damaged.
    """
    folder = Path(folder)
    if (folder / "poses_bounds.npy").exists():
        found = load_llff(folder)
        views = []
        for picture, pose, focal in zip(found.images, found.poses.numpy(), found.focal.numpy(), strict=True):
            fx, fy = (float(value) for value in focal)
            intrinsics = np.array([[fx, 0, found.width / 2], [0, fy, found.height / 2], [0, 0, 1]])
            views.append(View(picture, pose.astype(float), intrinsics))
        train = [i for i in range(len(views)) if i % HELD_OUT] or [0]
        return Scene(views, read_points3d(folder / "sparse" / "0" / "points3D.bin"), train)
    if (folder / "transforms.json").exists():
        return read_cameras(folder)
    raise InputError("scene", str(folder), "a folder with poses_bounds.npy or transforms.json")


def read_points3d(path: Path) -> Float[np.ndarray, "P 3"]:
    """The points of COLMAP's points3D.bin; raises InputError if it is missing or damaged."""
    try:
        data = path.read_bytes()
        (count,), place, points = struct.unpack_from("<Q", data), 8, []
        for _ in range(count):
            *_, x, y, z = struct.unpack_from("<Qddd", data, place)
            (length,) = struct.unpack_from("<Q", data, place + 43)
            points.append((x, y, z))
            place += 51 + 8 * length
    except OSError as error:
        raise InputError("scene", f"{path}: {error.strerror}", "COLMAP's sparse points") from None
    except struct.error as error:
        raise InputError("scene", f"{path}, which is damaged ({error})", "COLMAP's sparse points") from None
    return np.array(points, float).reshape(-1, 3)


def read_cameras(folder: Path) -> Scene:
    """A transforms.json as nerfstudio's parser reads it; raises InputError as ``read_scene``."""
    path = folder / "transforms.json"
    meta, frames = read_transforms(path)
    if meta.get("camera_model", "OPENCV") not in ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE"):
        raise InputError("camera_model", meta["camera_model"], "OPENCV or PINHOLE")
    if "ply_file_path" not in meta:
        raise InputError("scene", f"{path} without ply_file_path", "sparse points, which give the scale of the scene")
    views, kept = [], {}
    for frame in frames:
        kept[frame["file_path"]] = len(views)
        views.append(view_of(path, meta | frame))
    splits = {name: meta[name] for name in ("train_filenames", "val_filenames", "test_filenames") if name in meta}
    for name, files in splits.items():
        if not isinstance(files, list) or not files or not set(map(str, files)) <= kept.keys():
            raise InputError(str(path), f"{name} {files}", "a list of its frames' file_path, at least one")
        splits[name] = [str((folder / file).resolve()) for file in files]
    train = [kept[name] for name in meta.get("train_filenames", kept)]
    return Scene(views, read_ply(folder / str(meta["ply_file_path"])), train, splits)


def view_of(path: Path, own: dict[str, Any]) -> View:
    """The view of a frame, with what the list says of all of them.

    Raises:
        InputError: a number of its camera is missing, out of range or of a model that is not known here, or the
            picture or its mask is missing or of another size.
    """
    if missing := [key for key in CAMERA if key not in own]:
        raise InputError(str(path), f"{own['file_path']} without {missing[0]}", f"{', '.join(CAMERA)} of each frame")
    check_camera(path, own, (*CAMERA, *DISTORTION))
    if unknown := [key for key in ("k3", "k4") if own.get(key)]:
        raise InputError(str(path), f"{unknown[0]} {own[unknown[0]]}", f"distortion by {', '.join(DISTORTION)} alone")
    picture = path.parent / own["file_path"]
    stated = (int(float(own["w"])), int(float(own["h"])))
    if (size := image_size(picture)) != stated:
        raise InputError(str(picture), f"{size[0]}×{size[1]}", f"{stated[0]}×{stated[1]}, as its camera has it")
    fx, fy, cx, cy = (float(own[key]) for key in CAMERA[:4])
    distortion = np.array([float(own.get(name, 0)) for name in DISTORTION])
    mask = path.parent / own["mask_path"] if own.get("mask_path") else None
    if mask is not None and (size := image_size(mask)) != stated:
        raise InputError(str(mask), f"{size[0]}×{size[1]}", f"{stated[0]}×{stated[1]}, as its picture has it")
    return View(picture, camera_matrix(own), np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), distortion, mask)


# ---- clouds


def read_ply(path: Path) -> Float[np.ndarray, "P 3"]:
    """The points of a PLY; raises InputError if it can't be read."""
    import trimesh

    try:
        return np.asarray(trimesh.load(path).vertices, float)  # type: ignore[union-attr]
    except (OSError, ValueError, AttributeError, IndexError, KeyError) as error:
        raise InputError("scene", f"{path} ({error})", "a PLY of points") from None


def write_ply(path: Path, points: Float[np.ndarray, "P 3"], colours: UInt8[np.ndarray, "P 3"]) -> None:
    """A binary PLY of coloured points."""
    kinds = [(name, "<f4") for name in "xyz"] + [(name, "u1") for name in ("red", "green", "blue")]
    rows = np.empty(len(points), kinds)
    for name, values in zip(rows.dtype.names or (), [*points.T, *colours.T], strict=True):
        rows[name] = values
    names = {"<f4": "float", "u1": "uchar"}
    lines = [f"property {names[kind]} {name}" for name, kind in kinds]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}", *lines, "end_header", ""]
    replace_file(path, "\n".join(header).encode() + rows.tobytes())


# ---- depth


def scale_and_shift(
    predicted: Float[np.ndarray, "P"], depth: Float[np.ndarray, "P"], rounds: int = 50
) -> tuple[float, float]:
    """The numbers for which scale · predicted + shift is nearest to depth, by the mean relative absolute error.

    By reweighted least squares, so that points which are hidden in this view don't count for much. Where depth does not
    rise with what was predicted, the scale is 0 and the shift the median depth.
    """
    columns, weight = np.stack([predicted, np.ones_like(predicted)], 1), 1 / depth
    scale, shift = 0.0, float(np.median(depth))
    for _ in range(rounds):
        scale, shift = np.linalg.lstsq(columns * weight[:, None], depth * weight, rcond=None)[0]
        error = np.abs(columns @ [scale, shift] - depth) / depth
        weight = 1 / (depth * np.sqrt(np.maximum(error, 1e-3)))
    return (float(scale), float(shift)) if scale > 0 else (0.0, float(np.median(depth)))


def seen(view: View, points: Float[np.ndarray, "P 3"], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Whole pixels (x, y) and depths of the points in front of a camera and inside its picture (height, width)."""
    places, depth, inside = view.inside(points, size)
    return places[inside].astype(int), depth[inside]


def aligned(
    view: View, predicted: Float[np.ndarray, "H W"], points: Float[np.ndarray, "P 3"]
) -> Float[np.ndarray, "H W"]:
    """Depth in the scene's unit, within what its sparse points have.

    Raises:
        InputError: too few sparse points in the view.
    """
    height, width = predicted.shape
    places, depth = seen(view, points, (height, width))
    if len(depth) < LEAST_POINTS:
        raise InputError("scene", f"{len(depth)} sparse points in {view.picture}", f"at least {LEAST_POINTS}")
    scale, shift = scale_and_shift(predicted[places[:, 1], places[:, 0]].astype(float), depth)
    low, high = np.percentile(depth, [1, 99])
    return np.clip(scale * predicted + shift, low, high).astype(np.float32)


def fused(
    views: Sequence[View],
    depths: Sequence[Float[np.ndarray, "H W"]],
    colours: Sequence[UInt8[np.ndarray, "H W 3"]],
    count: int,
    tolerance: float = 0.1,
) -> tuple[Float[np.ndarray, "P 3"], UInt8[np.ndarray, "P 3"]]:
    """About ``count`` points of all views, of those whose depth some other view agrees with, within ``tolerance``.

    With one view all of its points. Where a depth is 0 there is none, and no agreement.
    """
    generator = np.random.default_rng(0)
    points, shades = [np.empty((0, 3))], [np.empty((0, 3), np.uint8)]
    for i, (view, depth, colour) in enumerate(zip(views, depths, colours, strict=True)):
        known = np.flatnonzero(depth)
        if not len(known):
            continue
        place = generator.choice(known, min(len(known), 2 * count // len(views) + 1), replace=False)
        rows, columns = np.divmod(place, depth.shape[1])
        found = view.unproject(np.stack([columns, rows], 1) + 0.5, depth[rows, columns])
        keep = np.full(len(found), len(views) == 1)
        for j, other in enumerate(views):
            if j != i:
                keep |= agrees(other, depths[j], found, tolerance)
        points.append(found[keep])
        shades.append(colour[rows, columns][keep])
    points, shades = np.concatenate(points), np.concatenate(shades)
    order = generator.permutation(len(points))[:count]
    return points[order], shades[order]


def agrees(
    view: View, depth: Float[np.ndarray, "H W"], points: Float[np.ndarray, "P 3"], tolerance: float
) -> Bool[np.ndarray, "P"]:
    """Whether a view has points where its depth map says that there is something."""
    places, own, inside = view.inside(points, (depth.shape[0], depth.shape[1]))
    column, row = np.where(inside[:, None], places, 0).astype(int).T
    return inside & (np.abs(depth[row, column] / np.where(own > 0, own, 1) - 1) < tolerance)


def write_scene(folder: Path, scene: Scene, depths: Sequence[np.ndarray], cloud: tuple[np.ndarray, np.ndarray]) -> None:
    """A transforms.json with depth maps and a cloud; pictures stay where they are."""
    (folder / "depths").mkdir(parents=True, exist_ok=True)
    frames = []
    for view, own, depth in zip(scene.views, scene.names, depths, strict=True):
        name, (height, width) = f"depths/{own}.npy", depth.shape
        with (folder / name).open("wb") as file:
            np.save(file, MILLIMETRES * depth)
        k = view.intrinsics
        frames.append(
            {
                "file_path": str(view.picture.resolve()),
                "depth_file_path": name,
                **({} if view.mask is None else {"mask_path": str(view.mask.resolve())}),
                "transform_matrix": [*view.pose.tolist(), [0.0, 0.0, 0.0, 1.0]],
                **{"fl_x": k[0, 0], "fl_y": k[1, 1], "cx": k[0, 2], "cy": k[1, 2], "w": width, "h": height},
                **dict(zip(DISTORTION, view.distortion.tolist(), strict=True)),
            }
        )
    files = [frame["file_path"] for frame in frames]
    held_out = [file for i, file in enumerate(files) if i not in set(scene.train)] or files
    splits = {"train_filenames": [files[i] for i in scene.train]}
    splits |= {"val_filenames": held_out, "test_filenames": held_out}
    write_ply(folder / "points.ply", *cloud)
    meta = {"camera_model": "OPENCV", "ply_file_path": "points.ply", **splits, **scene.meta, "frames": frames}
    write_json(folder / "transforms.json", meta)


def to_bytes(picture: torch.Tensor) -> UInt8[np.ndarray, "H W 3"]:
    """A picture in [0, 1] as bytes."""
    return (255 * picture.clamp(0, 1)).round().byte().numpy()
