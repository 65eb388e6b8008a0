"""One instance from its file: a square picture, a second of sound, the posed views of a scene."""

from dataclasses import dataclass, replace
from math import gcd, inf, nan, tan
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int
from scipy.signal import resample_poly
from torch import Tensor

from evos.errors import InputError
from evos.images import read_image
from evos.sounds import read_header, read_stretch
from evos.transforms_json import camera_matrix, read_transforms

Resize = Literal["bicubic", "bilinear"]
"""How pictures are resized."""


@dataclass(frozen=True)
class Instance:
    """A signal, and for views the cameras; of a batch, every tensor has the instances in front."""

    signal: Float[Tensor, "*S"]
    """Picture (3, H, W) in [0, 1], sound (1, T) in [-1, 1], or views (V, 3, H, W) in [0, 1]."""
    poses: Float[Tensor, "*B V 3 4"] | None = None
    """Camera to world, looking along -z with y up (OpenGL's convention)."""
    focal: Float[Tensor, "*B"] | None = None
    """Focal length in pixels."""
    finer: Float[Tensor, "*B 3 H W"] | None = None
    """The picture at a higher resolution, where training values are taken from one."""

    def to(self, device: torch.device) -> "Instance":
        """The same on a device."""
        found = {name: value for name, value in vars(self).items() if value is not None}
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in found.items()})


def stack(instances: list[Instance]) -> Instance:
    """Instances as a batch."""
    names = [name for name, value in vars(instances[0]).items() if value is not None]
    return Instance(**{name: torch.stack([getattr(instance, name) for instance in instances]) for name in names})


def picture(
    path: Path, size: int, generator: np.random.Generator | None = None, resize: Resize = "bicubic"
) -> Float[Tensor, "3 H W"]:
    """The middle square of a picture at size², antialiased; grey becomes colour, transparency white.

    With a ``generator`` a window of size² anywhere in the picture (of its shorter side where that is smaller),
    mirrored in half of the cases: the augmentation of Kim et al. (CVPR 2023) on ImageNette.
    """
    return square(colours(path, size, generator), size, resize)


def colours(path: Path, size: int, generator: np.random.Generator | None = None) -> Float[Tensor, "H W 3"]:
    """A picture in front of white, of which ``picture`` takes the middle square; of a ``generator`` the window."""
    pixels = on_white(read_image(path).pixels)
    if generator is None:
        return pixels
    side = min(size, *pixels.shape[:2])
    top, left = (int(generator.integers(length - side + 1)) for length in pixels.shape[:2])
    pixels = pixels[top : top + side, left : left + side]
    return pixels.flip(1) if generator.random() < 0.5 else pixels


def on_white(pixels: Float[Tensor, "H W C"]) -> Float[Tensor, "H W 3"]:
    """Colours of grey, grey + alpha, RGB or RGB + alpha in front of white."""
    if pixels.shape[-1] in (2, 4):
        pixels = 1 - pixels[..., -1:] * (1 - pixels[..., :-1])
    return pixels if pixels.shape[-1] == 3 else repeat(pixels, "h w 1 -> h w c", c=3)


def square(pixels: Float[Tensor, "H W C"], size: int, resize: Resize = "bicubic") -> Float[Tensor, "C size size"]:
    """The middle square, ``resized``."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return resized(pixels[top : top + side, left : left + side], (size, size), resize)


def resized(
    pixels: Float[Tensor, "H W C"], shape: tuple[int, int], resize: Resize = "bicubic"
) -> Float[Tensor, "C h w"]:
    """A picture at another size (antialiased, clamped to [0, 1])."""
    image = rearrange(pixels, "h w c -> 1 c h w")
    if image.shape[2:] != shape:
        image = F.interpolate(image, shape, mode=resize, align_corners=False, antialias=True)
    return image[0].clamp(0, 1).contiguous()


def sound(
    path: Path, piece: int, samples: int, rate: int, generator: np.random.Generator | None = None
) -> Float[Tensor, "1 T"]:
    """The ``piece``-th stretch (with a ``generator``, any) of ``samples`` samples at ``rate``, channels averaged.

    A stretch that reaches beyond the end goes on in silence. Only the stretch is decoded; it is resampled by itself
    (polyphase, antialiased).
    """
    header = read_header(path)
    length = -(-samples * header.rate // rate)
    if piece and piece * length >= header.frames:
        raise InputError(str(path), f"{header.frames} samples", f"more than {piece * length}")
    start = piece * length if generator is None else int(generator.integers(max(1, header.frames - length + 1)))
    values, _ = read_stretch(path, start, length)
    wave = resampled(values.mean(1, keepdim=True), header.rate, rate)[:samples].T
    return F.pad(wave, (0, samples - wave.shape[1]))


def resampled(values: Float[Tensor, "T C"], own_rate: int, rate: int) -> Float[Tensor, "N C"]:
    """A sound at another rate (polyphase, antialiased), clipped to [-1, 1]."""
    if own_rate == rate:
        return values
    common = gcd(own_rate, rate)
    found = resample_poly(values.numpy(), rate // common, own_rate // common, axis=0)
    return torch.from_numpy(found).float().clamp(-1, 1)


def count_pieces(path: Path, samples: int, rate: int) -> int:
    """How many whole stretches of ``samples`` at ``rate`` a recording has, at least 1; from its header alone."""
    try:
        header = read_header(path)
    except InputError:
        return 1  # reading it will say what is wrong with it
    return max(1, header.frames * rate // (header.rate * samples))


def scene(path: Path, views: int, size: int, resize: Resize = "bicubic") -> Instance:
    """The first ``views`` views of a scene folder: transforms.json, or transforms_train, _val and _test one by one."""
    single = path / "transforms.json"
    names = ("train", "val", "test")
    lists = [single] if single.exists() else [path / f"transforms_{name}.json" for name in names]
    images, poses, focal = [], [], None
    for listed in lists:
        if len(images) == views or not listed.exists():
            continue
        content, frames = read_transforms(listed)
        for frame in frames[: views - len(images)]:
            pixels = read_image(frame_file(path, frame["file_path"])).pixels
            focal = focal or focal_length(listed, content, pixels.shape[1]) * size / min(pixels.shape[:2])
            images.append(square(on_white(pixels), size, resize))
            poses.append(torch.from_numpy(camera_matrix(frame)).float())
    if len(images) < views:
        raise InputError(str(path), f"{len(images)} views", f"at least {views} (data.views)")
    return Instance(torch.stack(images), torch.stack(poses), torch.tensor(focal, dtype=torch.float32))


def frame_file(folder: Path, name: str) -> Path:
    """The picture of a frame: as listed, with .png where no extension is given, or beside the list ("learnit")."""
    listed = folder / name if Path(name).suffix else folder / f"{name}.png"
    return listed if listed.exists() else folder / listed.name


def focal_length(path: Path, content: dict[str, Any], width: int) -> float:
    """In pixels of a picture ``width`` wide."""
    if "fl_x" not in content and "camera_angle_x" not in content:
        raise InputError(str(path), "neither camera_angle_x nor fl_x", "one of the two")
    try:
        if "fl_x" in content:
            found = float(content["fl_x"]) * width / float(content.get("w", width))
        else:
            found = width / 2 / tan(float(content["camera_angle_x"]) / 2)
    except (TypeError, ValueError, ZeroDivisionError):
        found = nan
    if not 0 < found < inf:
        shown = {name: content[name] for name in ("fl_x", "w", "camera_angle_x") if name in content}
        raise InputError(str(path), f"the camera {shown}", "a focal length above 0, in pixels, or an angle in radians")
    return found


def pixel_rays(
    poses: Float[Tensor, "B V 3 4"],
    focal: Float[Tensor, " B"],
    size: int,
    index: Int[Tensor, "B K"],
    *,
    normalized: bool = True,
) -> Float[Tensor, "B K 6"]:
    """Rays (origin, direction) through the centres of some pixels, numbered in C order over (V, size, size).

    Directions have length 1, or, without ``normalized``, depth 1 along the camera's axis.
    """
    view, y, x = index // size**2, index // size % size, index % size
    half = size / 2
    flat = torch.stack([x + 0.5 - half, half - y - 0.5], dim=-1) / focal[:, None, None]
    directions = F.pad(flat, (0, 1), value=-1.0)
    directions = F.normalize(directions, dim=-1) if normalized else directions
    camera = poses[torch.arange(len(poses), device=poses.device)[:, None], view]
    turned = torch.einsum("b k i j, b k j -> b k i", camera[..., :3], directions)
    return torch.cat([camera[..., 3], turned], dim=-1)
