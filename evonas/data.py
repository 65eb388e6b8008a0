"""Pictures with depth, and pictures of classes, kept in memory as bytes or read from their files in every batch.

Depth comes as 16-bit PNG with ``depth_scale`` units a metre, 0 where nothing was measured. Three layouts:

- ``rgbd``: pairs, either in sibling folders (rgb, color, colour, image or images; depth) or by suffixes
  (``NAME.color.jpg`` and ``NAME.depth.png``, or ``NAME_rgb``, ``NAME_depth``); with folders train, search and test or
  without, in which case contiguous runs of the sorted names are held out.
- ``lists``: text files of lines ``IMAGE DEPTH [FOCAL]``, as the Eigen splits of NYU v2 and KITTI come.
- ``folders``: classes, ``train/CLASS/*`` and ``val/CLASS/*`` (ImageNet) or ``CLASS/*``.
"""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from evos.config import check_choices, check_range
from evos.errors import InputError
from evos.images import EXTENSIONS, list_images, read_image, write_image
from evos.runs.files import read_json

COLOUR_FOLDERS = ("rgb", "color", "colour", "image", "images")
TEST_RATIO = 0.2
"""Held out for the test where a layout has no test split."""
SPLITS = ("train", "search", "test")


@dataclass(frozen=True)
class DataConfig:
    """Options of the data."""

    task: Literal["depth", "classification"] = "depth"
    """What is predicted."""

    layout: Literal["auto", "rgbd", "lists", "folders"] = "auto"
    """How files are laid out; auto: lists where train_list is given, folders for classes, else rgbd."""

    root: str | None = None
    """Folder of the data set."""

    train_list: str | None = None
    """Of the layout lists: the file of training lines, within ``root`` or a path."""

    test_list: str | None = None
    """Of the layout lists: the file of test lines."""

    height: int = 96
    """Height in pixels that pictures are resized to, antialiased, at least 8."""

    width: int = 128
    """Width in pixels, at least 8."""

    depth_scale: float | None = None
    """Units of a depth file a metre, above 0; none: what dataset.json in ``root`` says, else 1000."""

    min_depth: float = 0.001
    """Least depth that counts, in metres, above 0."""

    max_depth: float = 10.0
    """Greatest depth that counts, in metres, above ``min_depth``."""

    crop: Literal["none", "eigen", "garg"] = "none"
    """Part of the picture that is evaluated: eigen (NYU v2), garg (KITTI) or all of it."""

    search_ratio: float = 0.1
    """Fraction of the training scenes held out for choosing, where the layout has no search split; in (0, 0.5]."""

    augment: bool = True
    """Mirror training pictures and change their brightness and colour."""

    in_memory: bool = True
    """Read all pictures at the start and keep them, as bytes, with their depth; false: read each batch from its files,
    which are then only checked when they are read."""

    depth_root: str | None = None
    """Of the layout lists: the folder of the depth files where it is not ``root``, as of KITTI's ground truth."""

    limit: int | None = None
    """Most pictures of a split, evenly spread over it, at least 1; none: all."""

    def __post_init__(self) -> None:
        check_choices(self)
        if self.task == "depth" and self.layout == "folders":
            raise InputError("layout", self.layout, "auto, rgbd or lists for depth: folders is a layout of classes")
        check_range("height", self.height, 8)
        check_range("width", self.width, 8)
        check_range("depth_scale", self.depth_scale, 0, open_low=True)
        check_range("min_depth", self.min_depth, 0, open_low=True)
        check_range("max_depth", self.max_depth, self.min_depth, open_low=True)
        check_range("search_ratio", self.search_ratio, 0, 0.5, open_low=True)
        check_range("limit", self.limit, 1)


@dataclass(frozen=True)
class DepthSet:
    """A split of RGB-D pictures: depths in metres, 0 where invalid."""

    pictures: UInt8[Tensor, "N H W 3"]
    depths: Float[Tensor, "N H W"]
    names: list[str]

    def __len__(self) -> int:
        """How many pictures."""
        return len(self.names)

    def take(self, index: Int[Tensor, "B"]) -> tuple[UInt8[Tensor, "B H W 3"], Float[Tensor, "B H W"]]:
        """Pictures and their depths."""
        return self.pictures[index], self.depths[index]


@dataclass(frozen=True)
class ImageSet:
    """A split of pictures of classes."""

    pictures: UInt8[Tensor, "N H W 3"]
    labels: Int[Tensor, "N"]
    classes: list[str]

    def __len__(self) -> int:
        """How many pictures."""
        return len(self.labels)

    def take(self, index: Int[Tensor, "B"]) -> tuple[UInt8[Tensor, "B H W 3"], Int[Tensor, "B"]]:
        """Pictures and their labels."""
        return self.pictures[index], self.labels[index]


@dataclass(frozen=True)
class OnDisk:
    """A split that is read when it is needed, by several threads: ``read`` gives a picture and its truth."""

    read: Callable[[int], tuple[UInt8[Tensor, "H W 3"], Tensor]]
    names: list[str]
    classes: list[str]

    def __len__(self) -> int:
        """How many pictures."""
        return len(self.names)

    def take(self, index: Int[Tensor, "B"]) -> tuple[UInt8[Tensor, "B H W 3"], Tensor]:
        """Pictures and their truth; raises InputError where one can't be read."""
        found = list(reader().map(self.read, index.tolist()))
        return torch.stack([picture for picture, _ in found]), torch.stack([truth for _, truth in found])


@cache
def reader() -> ThreadPoolExecutor:
    """The threads that read files; decoders let others run meanwhile."""
    return ThreadPoolExecutor(8)


def batch(
    data: DepthSet | ImageSet | OnDisk,
    index: Int[Tensor, "B"],
    device: torch.device,
    generator: torch.Generator | None = None,
    augment: bool = False,
) -> tuple[Float[Tensor, "B H W 3"], Tensor]:
    """Pictures in [0, 1] and their truth; augmented by draws from a generator on the CPU.

    Half of the pictures are mirrored; gamma, brightness and each channel change by up to 10 %, as in BTS.
    """
    pictures, truth = (values.to(device) for values in data.take(index))
    pictures = pictures.float() / 255
    if not augment:
        return pictures, truth
    draws = torch.rand(len(index), 6, generator=generator).to(device)
    mirrored = draws[:, 0] < 0.5
    pictures = torch.where(mirrored[:, None, None, None], pictures.flip(2), pictures)
    if truth.ndim == 3:
        truth = torch.where(mirrored[:, None, None], truth.flip(2), truth)
    gains = 0.9 + 0.2 * draws[:, 1:]
    pictures = pictures ** gains[:, None, None, :1] * gains[:, None, None, 1:2] * gains[:, None, None, 2:]
    return pictures.clamp(0, 1), truth


# ---- depth


def load_split(config: DataConfig, split: str) -> DepthSet | OnDisk:
    """A split: train, search or test.

    Raises:
        InputError: missing folder, list or file; an unpaired, damaged or all-invalid file; depth of another shape than
            its picture, or in another unit.
    """
    root = data_root(config)
    listed = config.layout == "lists" or (config.layout == "auto" and config.train_list is not None)
    pairs = listed_pairs(config, root, split) if listed else found_pairs(config, root, split)
    if not pairs:
        raise InputError("data.root", str(root), f"a data set with pictures for the {split} split")
    pairs = limited(pairs, config.limit)
    scale = depth_scale(config, root)
    names = [colour.stem for colour, _ in pairs]
    found = OnDisk(lambda i: read_pair(pairs[i][0], pairs[i][1], config, scale), names, [])
    index = torch.arange(len(pairs)) if config.in_memory else torch.linspace(0, len(pairs) - 1, 8).round().long()
    pictures, depths = found.take(index)
    check_unit(depths, config, scale)
    return DepthSet(pictures, depths, names) if config.in_memory else found


def data_root(config: DataConfig, option: str = "data.root") -> Path:
    """The folder; raises InputError, about ``option``, where there is none."""
    if config.root is None or not Path(config.root).is_dir():
        raise InputError(option, config.root, "the folder of a data set")
    return Path(config.root)


def limited(items: list, limit: int | None) -> list:
    """At most ``limit`` of them, evenly spread."""
    if limit is None or len(items) <= limit:
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


def depth_scale(config: DataConfig, root: Path) -> float:
    """Units a metre."""
    if config.depth_scale is not None:
        return config.depth_scale
    about = root / "dataset.json"
    facts = read_json(about) if about.exists() else {}
    scale = facts.get("depth_scale", 1000) if isinstance(facts, dict) else None
    if not isinstance(scale, int | float) or not scale > 0:
        raise InputError(f"depth_scale in {about}", scale, "a number above 0")
    return float(scale)


Pair = tuple[Path, Path]


def found_pairs(config: DataConfig, root: Path, split: str) -> list[Pair]:
    """The pairs of the layout ``rgbd``."""
    if (root / "train").is_dir():
        if split == "test" and not (root / "test").is_dir():
            raise InputError("data.root", str(root), "a folder test beside train")
        if split == "test" or (root / "search").is_dir():
            return pairs_in(root / split)
        return held_out(pairs_in(root / "train"), config.search_ratio)[split == "search"]
    every = pairs_in(root)
    rest, test = held_out(every, TEST_RATIO)
    if split == "test":
        return test
    return held_out(rest, config.search_ratio)[split == "search"]


def held_out(pairs: list[Pair], ratio: float) -> tuple[list[Pair], list[Pair]]:
    """The first ones and, held out, the last ones: neighbouring frames are near-copies."""
    count = max(1, round(ratio * len(pairs)))
    return pairs[:-count], pairs[-count:]


def pairs_in(folder: Path) -> list[Pair]:
    """All pairs in a folder, in the natural order of their names.

    Raises:
        InputError: there is none, or a picture has no depth, or depth no picture.
    """
    depth = folder / "depth"
    if depth.is_dir():
        beside = [folder / name for name in COLOUR_FOLDERS if (folder / name).is_dir()]
        if not beside:
            raise InputError("data.root", str(folder), f"a folder {', '.join(COLOUR_FOLDERS)} beside depth")
        depths = list_images(depth)
        by_name = {path.stem: path for path in depths}
        pairs = [(path, by_name.get(path.stem)) for path in list_images(beside[0])]
    else:
        pattern = re.compile(r"(.*[._])(?:(rgb|colou?r|image)|depth)$")
        names = [(path, name) for path in list_images(folder) if (name := pattern.match(path.stem))]
        depths = [path for path, name in names if not name[2]]
        pairs = [(path, depth_beside(path, f"{name[1]}depth")) for path, name in names if name[2]]
    if not pairs:
        allowed = "folders rgb and depth, or pairs such as NAME.color.jpg and NAME.depth.png"
        raise InputError("data.root", str(folder), allowed)
    for colour, its_depth in pairs:
        if its_depth is None:
            raise InputError("data.root", f"{colour}, which has no depth", "a depth picture for each colour picture")
    paired = {its_depth for _, its_depth in pairs}
    for path in depths:
        if path not in paired:
            raise InputError("data.root", f"{path}, which has no picture", "a colour picture for each depth picture")
    return pairs  # type: ignore[return-value]


def depth_beside(path: Path, stem: str) -> Path | None:
    """The picture of that stem in the same folder."""
    return next(
        (path.with_name(f"{stem}.{ext}") for ext in EXTENSIONS if path.with_name(f"{stem}.{ext}").exists()), None
    )


def listed_pairs(config: DataConfig, root: Path, split: str) -> list[Pair]:
    """The pairs of the layout ``lists``; the search split has whole scenes of the training pictures."""
    name = "test_list" if split == "test" else "train_list"
    text = getattr(config, name)
    if text is None:
        raise InputError(f"data.{name}", None, "a file of lines `IMAGE DEPTH [FOCAL]`")
    path = root / text if (root / text).exists() else Path(text)
    depth_folder = root if config.depth_root is None else Path(config.depth_root)
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"data.{name}", f"{text} ({error})", "a text file that can be read") from None
    pairs = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[1:2] == ["None"]:
            continue
        if len(words) < 2:
            raise InputError(f"data.{name}", f"{path}, line {number}: {line}", "lines `IMAGE DEPTH [FOCAL]`")
        colour, depth = root / words[0].lstrip("/"), depth_folder / words[1].lstrip("/")
        for file in (colour, depth):
            if not file.exists():
                raise InputError(f"data.{name}", f"{path}, line {number}: {file}, which is missing", "files that exist")
        pairs.append((colour, depth))
    if split == "test":
        return pairs
    scenes = sorted({scene_of(colour) for colour, _ in pairs})
    if len(scenes) == 1:
        return held_out(pairs, config.search_ratio)[split == "search"]
    every = max(2, round(1 / config.search_ratio))
    search = set(scenes[every // 2 :: every]) or {scenes[-1]}
    return [pair for pair in pairs if (scene_of(pair[0]) in search) == (split == "search")]


def scene_of(picture: Path) -> str:
    """The recording that a listed picture is from: its folder, but one for both cameras of a drive (KITTI's
    DRIVE/image_02/data and image_03/data) and one for the parts a, b, ... of a scene of NYU v2 (kitchen_0028b).
    """
    folder = picture.parent
    while folder.name in ("data", *COLOUR_FOLDERS) or re.fullmatch(r"image_\d+", folder.name):
        folder = folder.parent
    return re.sub(r"(_\d{4})[a-z]$", r"\1", str(folder))


def read_pair(
    colour: Path, depth: Path, config: DataConfig, scale: float
) -> tuple[UInt8[Tensor, "H W 3"], Float[Tensor, "H W"]]:
    """A picture, antialiased, and its depth in metres, of the nearest pixels."""
    pixels, metres = read_colours(colour), read_image(depth)
    values = metres.pixels
    if values.shape[-1] != 1:
        raise InputError("depth", f"{depth} with {values.shape[-1]} channels", "one channel")
    ratios = [shape[1] / shape[0] for shape in (pixels.shape, values.shape)]
    if abs(ratios[0] / ratios[1] - 1) > 0.02:
        shapes = f"{depth} of {values.shape[1]}×{values.shape[0]} for {pixels.shape[1]}×{pixels.shape[0]}"
        raise InputError("depth", shapes, "the picture's aspect")
    if not (values > 0).any():
        raise InputError("depth", f"{depth}, which is 0 everywhere", "depth somewhere")
    largest = 1 if metres.bits == 32 else 2**metres.bits - 1
    found = F.interpolate(values[None, None, :, :, 0], (config.height, config.width), mode="nearest-exact")[0, 0]
    return resized(pixels, config), (found * largest / scale).nan_to_num(0, 0, 0)


def read_colours(path: Path) -> Float[Tensor, "H W 3"]:
    """A picture as RGB, whatever it holds; transparency is left out."""
    pixels = read_image(path).pixels
    return pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., :1].expand(-1, -1, 3)


def resized(pixels: Float[Tensor, "h w 3"], config: DataConfig) -> UInt8[Tensor, "H W 3"]:
    """At the training size, antialiased, as bytes."""
    planes, size = pixels.permute(2, 0, 1)[None], (config.height, config.width)
    if planes.shape[-2:] != size:
        planes = F.interpolate(planes, size, mode="bilinear", antialias=True)
    return (255 * planes[0].permute(1, 2, 0).clamp(0, 1)).round().byte()


def check_unit(depths: Float[Tensor, "N H W"], config: DataConfig, scale: float) -> None:
    """Raise InputError if most of the depths are out of range: another unit."""
    known = depths[depths > 0]
    if not len(known):  # measured here and there, as by a lidar, and all of it between the pixels kept
        raise InputError(
            "data.height", f"{config.height} and data.width {config.width}", "a size that keeps some depth"
        )
    median = float(known.median())
    if config.min_depth <= median <= config.max_depth and median >= 0.01 * config.max_depth:
        return
    usual = (1000, 5000, 256, 10000, 100, 1, 10)  # what data sets use, the commonest first
    fitting = [unit for unit in usual if 0.05 < scale * median / unit < config.max_depth]
    hint = f"data.depth_scale {fitting[0]}?" if fitting else "another data.depth_scale or data.max_depth"
    got = f"a median depth of {median:.3g} m at {scale:g} units a metre"
    raise InputError("depth", got, f"within {config.min_depth:g} to {config.max_depth:g} m: {hint}")


def write_depth(path: Path, depth: Float[Tensor, "H W"], scale: float) -> None:
    """A 16-bit PNG of ``scale`` units a metre; what exceeds its range is its largest value."""
    write_image(path, (depth * scale / 65535).clamp(0, 1)[..., None], bits=16)


def colourised(depth: Float[Tensor, "H W"], largest: float) -> Float[Tensor, "H W 3"]:
    """Near is bright: matplotlib's magma over the logarithm of depths from a twentieth of the largest."""
    import matplotlib

    place = 1 - (depth.clamp(min=largest / 20) * 20 / largest).log() / torch.tensor(20.0).log()
    return torch.as_tensor(matplotlib.colormaps["magma"](place.clamp(0, 1).numpy())[..., :3]).float()


# ---- classes


def load_classes(config: DataConfig, split: str) -> ImageSet | OnDisk:
    """Read a split of classes; search and test are the val folder, or every tenth picture where there is none.

    Raises:
        InputError: no classes, other classes in val, a class without pictures, a damaged picture.
    """
    root = data_root(config, "pretrain.root")
    parts = {"train": root / "train", "search": root / "val", "test": root / "val"}
    own = all(path.is_dir() for path in parts.values())
    folder = parts[split] if own else root
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if len(classes) < 2:
        raise InputError("pretrain.root", str(root), "a folder of at least two classes, each a folder of pictures")
    if own and classes != sorted(path.name for path in parts["train"].iterdir() if path.is_dir()):
        raise InputError("pretrain.root", f"{folder} with other classes than {parts['train']}", "the same classes")
    files: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        paths = list_images(folder / name)
        if not own:
            paths = [path for i, path in enumerate(paths) if (i % 10 == 9) != (split == "train")]
        files += [(path, label) for path in paths]
    if not files:
        raise InputError("pretrain.root", str(root), "ten pictures or more of a class, or folders train and val")
    files = limited(files, config.limit)
    labels = torch.tensor([label for _, label in files])
    names = [path.stem for path, _ in files]
    found = OnDisk(lambda i: (resized(read_colours(files[i][0]), config), labels[i]), names, classes)
    return ImageSet(*found.take(torch.arange(len(files))), classes) if config.in_memory else found
