"""Shapes: closed meshes as signed distances on a grid, and back by marching cubes.

The box [-1, 1]^3 holds the mesh with its longest side from -0.8 to 0.8. Distances, in that box's units and below 0
inside, are cut off at ± ``TRUNCATION``; a signal's value is 0.5 + distance / (2 · TRUNCATION), so 0.5 on the surface.
Points are (x, y, z); axes of grids are z, y, x.
"""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from evos.coords import grid
from evos.errors import InputError
from evos.runs.files import replace_file
from evos.videos import MOST

EXTENSIONS = ("obj", "ply", "stl", "off")
TRUNCATION = 0.1
FILLED = 0.8
"""Half the mesh's longest side in the box."""
POINTS = 64
"""Grid points along each axis, where none are given."""
SAMPLES = 30_000
"""Points of a surface whose distances to another one are measured."""

_WHOLE = f"a whole mesh ({', '.join(EXTENSIONS)})"


@dataclass(frozen=True)
class ShapeFormat:
    """How a shape's box lies in its file: a point p of the file is at (p - centre) · scale in the box."""

    kind: ClassVar[str] = "shape"
    centre: tuple[float, ...]
    scale: float


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles in the box."""

    corners: Float[np.ndarray, "V 3"]
    faces: Int[np.ndarray, "F 3"]

    def sampled(self, points: int) -> Float[np.ndarray, "S 3"]:
        """Points drawn uniformly by area, the same ones every time."""
        trimesh = _imported("trimesh")
        mesh = trimesh.Trimesh(self.corners, self.faces, process=False)
        return np.asarray(trimesh.sample.sample_surface(mesh, points, seed=0)[0], dtype=np.float64)

    def distance(self, points: Float[np.ndarray, "S 3"]) -> Float[np.ndarray, " S"]:
        """Distance of each point to the nearest triangle."""
        squares = _imported("igl", "libigl").point_mesh_squared_distance(points, self.corners, self.faces)[0]
        return np.sqrt(squares)


def is_shape(path: Path) -> bool:
    """Whether a file is a mesh by its extension."""
    return path.suffix[1:].lower() in EXTENSIONS


def read_shape(path: Path, points: int | None = None) -> tuple[Float[Tensor, "Z Y X"], ShapeFormat, Mesh]:
    """The values of a mesh on a grid of ``points`` (64) along each axis, its format, and the mesh in the box.

    Raises:
        InputError: missing, unreadable, truncated or damaged file; a mesh that is not closed; less than 8 points, or
            more than 406.
    """
    points = POINTS if points is None else points
    if not 8 <= points <= int(MOST ** (1 / 3)):
        raise InputError("--longer_side", points, f"8 to {int(MOST ** (1 / 3))} grid points along an axis of a shape")
    trimesh = _imported("trimesh")
    try:
        data = path.read_bytes()
        mesh = trimesh.load_mesh(BytesIO(data), file_type=path.suffix[1:].lower())
        if mesh.is_watertight and not mesh.is_volume:  # some faces, or all, are turned inside out
            mesh.fix_normals()
        corners = np.asarray(mesh.vertices, dtype=np.float64)
        faces = np.asarray(mesh.faces, dtype=np.int64)
    except OSError as error:
        raise InputError(str(path), (error.strerror or str(error)).lower(), "a mesh that can be read") from error
    except Exception as error:  # damage makes readers raise nearly anything
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(str(path), f"a truncated or damaged mesh ({reason})", _WHOLE) from None
    if not len(faces) or not np.isfinite(corners).all():
        raise InputError(str(path), "a mesh without faces, or with corners that are not finite", _WHOLE)
    if not mesh.is_watertight:
        allowed = "a closed one, of which every edge has two faces: only that has an inside"
        raise InputError(str(path), f"an open mesh ({open_edges(faces):,} edges with one face)", allowed)
    sides = np.ptp(corners, axis=0)
    form = ShapeFormat(tuple((corners.min(0) + sides / 2).tolist()), 2 * FILLED / float(sides.max()))
    boxed = Mesh((corners - form.centre) * form.scale, faces)
    values = signed_distance(boxed, points) / (2 * TRUNCATION) + 0.5
    return values.clamp(0, 1), form, boxed


def open_edges(faces: np.ndarray) -> int:
    """How many edges do not have two faces."""
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    return int((np.unique(edges, axis=0, return_counts=True)[1] != 2).sum())


def signed_distance(mesh: Mesh, points: int) -> Float[Tensor, "Z Y X"]:
    """Distances at the points of the box's grid, below 0 inside, cut off at ± TRUNCATION.

    Distances to the nearest face by libigl, sides by fast winding numbers (Barill et al. 2018), which also make sense
    where a mesh intersects itself.
    """
    igl = _imported("igl", "libigl")
    places = np.ascontiguousarray(grid((points,) * 3).flip(-1).double().numpy())
    near = igl.signed_distance(
        places,
        mesh.corners,
        mesh.faces,
        sign_type=igl.SIGNED_DISTANCE_TYPE_FAST_WINDING_NUMBER,
        lower_bound=-TRUNCATION,
        upper_bound=TRUNCATION,
    )[0]
    inside = igl.fast_winding_number(mesh.corners, mesh.faces, places) > 0.5
    far = np.where(inside, -TRUNCATION, TRUNCATION)
    found = np.where(np.isnan(near), far, near).clip(-TRUNCATION, TRUNCATION)  # nan is beyond the bounds
    return torch.from_numpy(found).float().view(points, points, points)


def has_surface(values: Float[Tensor, "Z Y X"]) -> bool:
    """Whether some points are inside and some outside."""
    return min(values.shape) > 1 and bool(values.min() < 0.5) and bool(values.max() > 0.5)


def surface(values: Float[Tensor, "Z Y X"]) -> Mesh | None:
    """The surface of value 0.5 in the box, with normals outwards; None where there is none.

    Source: marching cubes (Lewiner et al. 2003), by scikit-image.
    """
    from skimage.measure import marching_cubes

    if not has_surface(values):
        return None
    array = values.detach().cpu().float().numpy()
    found, faces, _, _ = marching_cubes(array, 0.5)
    corners = 2 * found.astype(np.float64) / (np.array(array.shape) - 1) - 1
    # From (z, y, x) to (x, y, z), which mirrors the box.
    corners, faces = np.ascontiguousarray(corners[:, ::-1]), faces.astype(np.int64)
    a, b, c = (corners[faces[:, i]] for i in range(3))
    volume = np.einsum("fi,fi->", a, np.cross(b, c))
    return Mesh(corners, faces if volume >= 0 else np.ascontiguousarray(faces[:, ::-1]))


def write_mesh(path: str | Path, values: Float[Tensor, "Z Y X"], form: ShapeFormat) -> None:
    """Write the surface of value 0.5, in the coordinates of the mesh that was read, atomically.

    Raises:
        InputError: another extension, a file that can't be written, or values without such a surface.
    """
    path = Path(path)
    if not is_shape(path):
        raise InputError(str(path), f"the extension {path.suffix or '(none)'}", ", ".join(EXTENSIONS))
    found = surface(values)
    if found is None:
        raise InputError(str(path), "a fit without a surface", "one of which some values are inside, some outside")
    mesh = _imported("trimesh").Trimesh(found.corners / form.scale + form.centre, found.faces, process=False)
    data = mesh.export(file_type=path.suffix[1:].lower())
    replace_file(path, data.encode() if isinstance(data, str) else data)


def inside(values: Float[Tensor, "*N"]) -> Bool[Tensor, "*N"]:
    """Whether values are those of points inside a shape."""
    return values < 0.5


def iou(prediction: Float[Tensor, "*N"], truth: Float[Tensor, "*N"]) -> float:
    """Intersection over union of what is inside, in [0, 1]; 1 where nothing is in either."""
    a, b = inside(prediction), inside(truth)
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def chamfer(values: Float[Tensor, "Z Y X"], truth: Mesh) -> float | None:
    """Mean distance between points of the surface of value 0.5 and another mesh, of both directions, in box units.

    Points are drawn by area; their distances to the triangles are exact. None where there is no such surface.
    """
    found = surface(values)
    if found is None:
        return None
    there, back = truth.distance(found.sampled(SAMPLES)), found.distance(truth.sampled(SAMPLES))
    return float((there.mean() + back.mean()) / 2)


def _imported(name: str, package: str | None = None) -> Any:
    """A package for meshes, imported late: other signals don't need it."""
    from importlib import import_module

    try:
        if name == "trimesh":
            import_module("trimesh.sample")
        return import_module(name)
    except (ImportError, OSError) as error:
        raise InputError(package or name, f"not installed ({error})", f"pip install {package or name}") from None
