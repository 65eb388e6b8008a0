"""Depth from one picture.

Depth comes as 16-bit PNG with ``depth_scale`` units a metre, 0 where nothing was measured. Two layouts:

- ``rgbd``: pairs, either in sibling folders (rgb, color, colour, image or images; depth) or by suffixes
  (``NAME.color.jpg`` and ``NAME.depth.png``, or ``NAME_rgb``, ``NAME_depth``); with folders train, search and test or
  without, in which case contiguous runs of the sorted names are held out.
- ``lists``: text files of lines ``IMAGE DEPTH [FOCAL]``, as the Eigen splits of NYU v2 and KITTI come.

Metrics are those that the field reports (Eigen et al. 2014; KITTI's SILog).
"""

import re
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from evonas.data import (
    TEST_RATIO,
    Data,
    DataConfig,
    InMemory,
    OnDisk,
    data_root,
    held_out,
    kept,
    limited,
    read_colours,
    resized,
)
from evonas.supernet import DenseHead, Head
from evonas.tasks.base import MeanMeter, Meter, Task
from evos.errors import InputError
from evos.images import EXTENSIONS, list_images, read_image, write_image
from evos.runs.files import read_json

COLOUR_FOLDERS = ("rgb", "color", "colour", "image", "images")


class DepthTask(Task):
    """SILog loss, Abs Rel as the error. An answer is depth in metres (B, H, W), and so are result and truth."""

    layouts = ("rgbd", "lists")

    def load(self, split: str) -> Data:
        """A split of RGB-D pictures.

        Raises:
            InputError: missing folder, list or file; an unpaired, damaged or all-invalid file; depth of another shape
                than its picture, or in another unit.
        """
        config = self.config
        root = data_root(config)
        listed = config.layout == "lists" or (config.layout == "auto" and config.train_list is not None)
        pairs = listed_pairs(config, root, split) if listed else found_pairs(config, root, split)
        if not pairs:
            raise InputError("data.root", str(root), f"a data set with pictures for the {split} split")
        pairs = limited(pairs, config.limit)
        scale = depth_scale(config, root)

        def read(i: int) -> tuple[Tensor, Tensor]:
            colour, depth = pairs[i]
            return read_pair(colour, depth, config, scale)

        found = kept(OnDisk(read, [colour.stem for colour, _ in pairs]), config)
        if isinstance(found, InMemory):
            check_unit(found.truth, config, scale)
        else:
            some = torch.linspace(0, len(pairs) - 1, 8).round().long()
            check_unit(found.take(some)[1], config, scale)
        return found

    @property
    def head(self) -> Head:
        """One number a pixel."""
        return DenseHead

    def answer(self, output: Float[Tensor, "B H W 1"]) -> Float[Tensor, "B H W"]:
        """Depths in metres within the data's range, by a sigmoid of what the network gives."""
        low, high = self.config.min_depth, self.config.max_depth
        found = torch.sigmoid(output[..., 0].float())
        return high * (found + (1 - found) * low / high)

    def result(self, answer: Float[Tensor, "B H W"], size: tuple[int, int] | None = None) -> Float[Tensor, "B h w"]:
        """Depths, bilinearly at another size."""
        return answer if size is None else F.interpolate(answer[:, None], size, mode="bilinear")[:, 0]

    def loss(self, output: Float[Tensor, "B H W 1"], truth: Float[Tensor, "B H W"]) -> Float[Tensor, ""]:
        """Scale-invariant logarithmic loss (Eigen et al. 2014): 10 √(mean d² - 0.85 mean(d)²) as in BTS."""
        valid = (truth > self.config.min_depth) & (truth < self.config.max_depth)
        weight = valid / valid.sum((1, 2), keepdim=True).clamp(min=1)
        difference = torch.log(self.answer(output)) - torch.log(torch.where(valid, truth, 1.0))
        mean, square = ((weight * d).sum((1, 2)) for d in (difference, difference.square()))
        return 10 * (square - 0.85 * mean.square()).clamp(min=1e-6).sqrt().mean()

    def distance(self, output: Float[Tensor, "B H W 1"], teacher: Float[Tensor, "B H W 1"]) -> Float[Tensor, ""]:
        """The training loss, with the teacher's depths as the truth."""
        return self.loss(output, self.answer(teacher))

    def meter(self, device: torch.device) -> Meter:
        """Abs Rel, RMSE, δ and the others, of the pictures with a valid pixel."""
        count = lambda truth: int(valid_pixels(truth, self.config).flatten(1).any(1).sum())  # noqa: E731
        return MeanMeter(partial(depth_metrics, config=self.config), count)

    def error(self, metrics: dict[str, float]) -> float:
        """Abs Rel."""
        return metrics["abs_rel"]

    def illustrate(self, pictures: Float[Tensor, "B H W 3"], found: Float[Tensor, "B H W"]) -> Float[Tensor, "B H W 3"]:
        """Near is bright."""
        return colourised(found, self.config.max_depth)

    def mirrored(self, truth: Float[Tensor, "B H W"]) -> Float[Tensor, "B H W"]:
        """Left is right."""
        return truth.flip(2)

    @property
    def meaning(self) -> str:
        """Depth, within which range."""
        return f"depth from {self.config.min_depth:g} to {self.config.max_depth:g} m"

    def write(self, folder: Path, name: str, picture: Float[Tensor, "H W 3"], found: Float[Tensor, "H W"]) -> None:
        """NAME.png, 16-bit with ``depth_scale`` (1000 by default) units a metre, and NAME_coloured.png.

        Raises:
            InputError: 16 bits don't reach the greatest depth.
        """
        scale, largest = self.config.depth_scale or 1000, self.config.max_depth
        if scale * largest > 65535:
            allowed = f"at most {65535 / largest:.0f} units a metre, with which 16 bits reach {largest:g} m"
            raise InputError("data.depth_scale", scale, allowed)
        write_depth(folder / f"{name}.png", found, scale)
        super().write(folder, name, picture, found)


# ---- metrics


CROPS = {
    "none": (0.0, 1.0, 0.0, 1.0),
    "eigen": (45 / 480, 471 / 480, 41 / 640, 601 / 640),
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
}
"""Evaluated part of a picture (top, bottom, left, right as fractions): Eigen's of NYU v2, Garg's of KITTI."""
KB_SIZE = (352, 1216)
"""Height and width that KITTI's depth benchmark cuts pictures to."""
KITTI_SIZE = (375, 1242)
"""Height and width of most of KITTI's pictures; the others differ by up to 6 rows and 18 columns."""


def valid_pixels(truth: Float[Tensor, "B H W"], config: DataConfig) -> Bool[Tensor, "B H W"]:
    """Where depth was measured, within the data's range and crop."""
    inside = torch.zeros(truth.shape[1:], dtype=torch.bool, device=truth.device)
    inside[evaluated_part(config, *truth.shape[1:])] = True
    return (truth > config.min_depth) & (truth < config.max_depth) & inside


def evaluated_part(config: DataConfig, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of pictures of that size that are evaluated."""
    top, bottom, left, right = CROPS[config.crop]
    if not config.kb_crop or config.crop == "none":
        return slice(int(top * height), int(bottom * height)), slice(int(left * width), int(right * width))
    # Of the whole picture, in the picture cut to the benchmark's size, which may have been resized since.
    (tall, wide), (low, middle) = KITTI_SIZE, KB_SIZE
    rows = [(int(edge * tall) - (tall - low)) * height / low for edge in (top, bottom)]
    columns = [(int(edge * wide) - (wide - middle) // 2) * width / middle for edge in (left, right)]
    return slice(*(max(0, round(edge)) for edge in rows)), slice(*(max(0, round(edge)) for edge in columns))


def depth_metrics(
    prediction: Float[Tensor, "B H W"], truth: Float[Tensor, "B H W"], config: DataConfig
) -> dict[str, float]:
    """Abs Rel, Sq Rel (m), RMSE (m), RMSE of logarithms, log10, δ < 1.25, 1.25², 1.25³, and SILog (100 times).

    Predictions are clamped to the data's range. Each picture counts once; pictures without a valid pixel are left out.
    """
    valid = valid_pixels(truth, config)
    weight = valid.double() / valid.sum((1, 2), keepdim=True).clamp(min=1)
    truth = torch.where(valid, truth, 1.0).double()
    prediction = torch.where(valid, prediction, 1.0).double().clamp(config.min_depth, config.max_depth)

    def mean(values: Float[Tensor, "B H W"]) -> Float[Tensor, "B"]:
        return (weight * values).sum((1, 2))

    error, logs = prediction - truth, prediction.log() - truth.log()
    ratio = torch.maximum(prediction / truth, truth / prediction)
    found = {
        "abs_rel": mean(error.abs() / truth),
        "sq_rel": mean(error.square() / truth),
        "rmse": mean(error.square()).sqrt(),
        "rmse_log": mean(logs.square()).sqrt(),
        "log10": mean((prediction.log10() - truth.log10()).abs()),
        **{f"delta{n}": mean((ratio < 1.25**n).double()) for n in (1, 2, 3)},
        "silog": 100 * (mean(logs.square()) - mean(logs).square()).clamp(min=0).sqrt(),
    }
    seen = valid.any(2).any(1)
    return {name: float(values[seen].mean()) for name, values in found.items()}


# ---- data


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
    if config.kb_crop:
        pixels, values = (cut_to_benchmark(each, colour) for each in (pixels, values))
    largest = 1 if metres.bits == 32 else 2**metres.bits - 1
    found = F.interpolate(values[None, None, :, :, 0], (config.height, config.width), mode="nearest-exact")[0, 0]
    return resized(pixels, config), (found * largest / scale).nan_to_num(0, 0, 0)


def cut_to_benchmark(pixels: Float[Tensor, "h w c"], path: Path) -> Float[Tensor, "H W c"]:
    """The lowest rows and the middle columns, as many as KITTI's benchmark has."""
    height, width = pixels.shape[:2]
    if height < KB_SIZE[0] or width < KB_SIZE[1]:
        raise InputError("data.kb_crop", f"{path} of {width}×{height}", f"at least {KB_SIZE[1]}×{KB_SIZE[0]}")
    left = (width - KB_SIZE[1]) // 2
    return pixels[height - KB_SIZE[0] :, left : left + KB_SIZE[1]]


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


def colourised(depth: Float[Tensor, "*B H W"], largest: float) -> Float[Tensor, "*B H W 3"]:
    """Near is bright: matplotlib's magma over the logarithm of depths from a twentieth of the largest."""
    import matplotlib

    place = 1 - (depth.clamp(min=largest / 20) * 20 / largest).log() / torch.tensor(20.0).log()
    return torch.as_tensor(matplotlib.colormaps["magma"](place.clamp(0, 1).cpu().numpy())[..., :3]).float()
