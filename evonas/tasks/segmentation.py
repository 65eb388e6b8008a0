"""The class of each pixel.

Masks are pictures whose values are labels, void where nobody said what is there. Three layouts:

- ``ade20k``: images/training, images/validation, and masks of the same names in annotations/; 0 is void.
- ``voc``: JPEGImages, SegmentationClass, and lists of names in ImageSets/Segmentation/{train,val}.txt; 255 is void.
- ``camvid``: train, val, test, and masks of the same names in trainannot, valannot, testannot; 11 is void.

The search split is a run of the training pictures, since neighbouring frames are near-copies; what is reported is that
of the folder test, or of val where there is none.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from evonas.data import Data, DataConfig, OnDisk, data_root, held_out, kept, limited, read_colours, resized
from evonas.supernet import DenseHead, Head
from evonas.tasks.base import Meter, Task
from evos.errors import InputError
from evos.images import list_images, write_image

VOID = 255
"""The label of pixels that don't count."""


@dataclass(frozen=True)
class MaskLayout:
    """A layout: the folder that tells it apart, how many classes, the label of the first, and their names."""

    sign: str
    count: int
    first: int
    names: str = ""


LAYOUTS = {
    "ade20k": MaskLayout("annotations", 150, 1),
    "voc": MaskLayout(
        "SegmentationClass",
        21,
        0,
        "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
        "pottedplant sheep sofa train tvmonitor",
    ),
    "camvid": MaskLayout(
        "trainannot", 11, 0, "sky building pole road pavement tree sign fence car pedestrian bicyclist"
    ),
}


class SegmentationTask(Task):
    """Cross entropy over pixels; 1 minus the mean intersection over union is the error.

    An answer holds probabilities (B, H, W, classes), result and truth labels (B, H, W), ``VOID`` where none is known.
    """

    layouts = tuple(LAYOUTS)

    def load(self, split: str) -> Data:
        """Pictures and labels.

        Raises:
            InputError: another layout; a picture without a mask; a mask with other labels, or of another shape; a file
                that can't be read.
        """
        config, root = self.config, data_root(self.config)
        name = layout_of(config, root)
        pairs = limited(mask_pairs(config, root, name, split), config.limit)
        layout = LAYOUTS[name]
        count = config.classes or layout.count
        known = layout.names.split() if count == layout.count else []
        names = known or [str(i) for i in range(count)]

        def read(i: int) -> tuple[Tensor, Tensor]:
            picture, mask = pairs[i]
            return read_masked(picture, mask, config, layout.first, count)

        return kept(OnDisk(read, [picture.stem for picture, _ in pairs], names), config)

    @property
    def head(self) -> Head:
        """Scores of each pixel. The decoder is our own: those of libraries have batch norm, whose statistics would be
        another network's."""
        return partial(DenseHead, outputs=len(self.classes))

    def loss(self, output: Float[Tensor, "B H W K"], truth: UInt8[Tensor, "B H W"]) -> Float[Tensor, ""]:
        """Cross entropy, a mean over each picture's pixels that are not void."""
        each = F.cross_entropy(planes(output), truth.long(), ignore_index=VOID, reduction="none")
        return (each.sum((1, 2)) / (truth != VOID).sum((1, 2)).clamp(min=1)).mean()

    def distance(self, output: Float[Tensor, "B H W K"], teacher: Float[Tensor, "B H W K"]) -> Float[Tensor, ""]:
        """Kullback-Leibler divergence from the teacher's probabilities, a mean over pixels."""
        own, other = (values.float().log_softmax(-1) for values in (output, teacher))
        return (other.exp() * (other - own)).sum(-1).mean()

    def answer(self, output: Float[Tensor, "B H W K"]) -> Float[Tensor, "B H W K"]:
        """Probabilities."""
        return output.float().softmax(-1)

    def result(self, answer: Float[Tensor, "B H W K"], size: tuple[int, int] | None = None) -> UInt8[Tensor, "B h w"]:
        """The likeliest class, of probabilities that are enlarged first."""
        found = planes(answer)
        if size is not None:
            found = F.interpolate(found, size, mode="bilinear")
        return found.argmax(1).to(torch.uint8)

    def meter(self, device: torch.device) -> Meter:
        """``miou``, over the classes that occur in truth or results, and ``accuracy`` of pixels."""
        return SegmentationMeter(len(self.classes), device)

    def error(self, metrics: dict[str, float]) -> float:
        """1 - mIoU."""
        return 1 - metrics["miou"]

    def illustrate(self, pictures: Float[Tensor, "B H W 3"], found: UInt8[Tensor, "B H W"]) -> Float[Tensor, "B H W 3"]:
        """Half the picture, half a colour for each class; void is black."""
        import matplotlib

        hues = torch.arange(len(self.classes)) * 0.381966  # the golden section: neighbours differ
        table = torch.as_tensor(matplotlib.colormaps["hsv"]((hues % 1).numpy())[:, :3]).float()
        colours = torch.cat([table, torch.zeros(256 - len(table), 3)])[found.long().cpu()].to(pictures.device)
        return 0.4 * pictures + 0.6 * colours

    def mirrored(self, truth: UInt8[Tensor, "B H W"]) -> UInt8[Tensor, "B H W"]:
        """Left is right."""
        return truth.flip(2)

    def write(self, folder: Path, name: str, picture: Float[Tensor, "H W 3"], found: UInt8[Tensor, "H W"]) -> None:
        """NAME.png with the labels, counted from 0, and NAME_coloured.png."""
        write_image(folder / f"{name}.png", found.cpu()[..., None] / 255)
        super().write(folder, name, picture, found)


class SegmentationMeter:
    """A confusion matrix over all pixels that are not void."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self.confusion = MulticlassConfusionMatrix(classes, ignore_index=VOID).to(device)

    def update(self, found: UInt8[Tensor, "B H W"], truth: UInt8[Tensor, "B H W"]) -> None:
        """Count a batch."""
        self.confusion.update(found.long(), truth.long())

    def compute(self) -> dict[str, float]:
        """Intersection over union and accuracy."""
        counts = self.confusion.compute().double()
        hits, union = counts.diag(), counts.sum(0) + counts.sum(1) - counts.diag()
        return {"miou": float((hits / union)[union > 0].mean()), "accuracy": float(hits.sum() / counts.sum())}


def planes(values: Float[Tensor, "B H W K"]) -> Float[Tensor, "B K H W"]:
    """The classes as channels, in single precision."""
    return values.float().permute(0, 3, 1, 2)


# ---- data


def layout_of(config: DataConfig, root: Path) -> str:
    """The layout, told by its folders where the option doesn't; raises InputError where none fits."""
    if config.layout != "auto":
        return config.layout
    for name, layout in LAYOUTS.items():
        if (root / layout.sign).is_dir():
            return name
    signs = ", ".join(f"{layout.sign} ({name})" for name, layout in LAYOUTS.items())
    raise InputError("data.root", str(root), f"a data set with one of the folders {signs}")


def mask_pairs(config: DataConfig, root: Path, layout: str, split: str) -> list[tuple[Path, Path]]:
    """Pictures and their masks; raises InputError where a file is missing."""
    source = "test" if split == "test" else "train"
    if layout == "ade20k":
        folder = {"train": "training", "test": "validation"}[source]
        pictures, masks = list_images(root / "images" / folder), root / "annotations" / folder
    elif layout == "voc":
        names = root / "ImageSets" / "Segmentation" / ("val.txt" if source == "test" else "train.txt")
        try:
            stems = names.read_text().split()
        except OSError as error:
            raise InputError("data.root", f"{names}: {error.strerror}", "a list of names") from None
        pictures, masks = [root / "JPEGImages" / f"{stem}.jpg" for stem in stems], root / "SegmentationClass"
    else:
        folder = "val" if source == "test" and not (root / "test").is_dir() else source
        pictures, masks = list_images(root / folder), root / f"{folder}annot"
    pairs = [(path, masks / f"{path.stem}.png") for path in pictures]
    for path in (path for pair in pairs for path in pair):
        if not path.exists():
            raise InputError("data.root", f"{path}, which is missing", "a picture and a mask of each name")
    if source == "train":
        pairs = held_out(pairs, config.search_ratio)[split == "search"]
    if not pairs:
        raise InputError("data.root", str(root), f"a data set with pictures for the {split} split")
    return pairs


def read_masked(
    picture: Path, mask: Path, config: DataConfig, first: int, classes: int
) -> tuple[UInt8[Tensor, "H W 3"], UInt8[Tensor, "H W"]]:
    """A picture, antialiased, and the labels of the nearest pixels, counted from 0; void where below ``first``.

    The label after the last class is void as well, as in CamVid, and so is 255.
    """
    pixels = read_colours(picture)
    try:
        with Image.open(mask) as image:
            # Of a palette the numbers, not the colours.
            values = np.array(image if image.mode in ("L", "P", "I;16", "I") else None)
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError("mask", f"{mask}, which can't be read ({error})", "a picture of labels") from None
    if values.ndim != 2:
        raise InputError("mask", f"{mask} of several channels", "one channel or a palette")
    if values.shape != tuple(pixels.shape[:2]):
        shapes = f"{mask} of {values.shape[1]}×{values.shape[0]} for {pixels.shape[1]}×{pixels.shape[0]}"
        raise InputError("mask", shapes, "the picture's size")
    labels = values.astype(np.int64) - first
    known = (labels >= 0) & (labels < classes)
    void = (labels < 0) | (labels == classes) | (values == VOID)
    if not (known | void).all():
        wrong = int(values[~(known | void)].min())
        raise InputError("mask", f"{mask} with the label {wrong}", f"labels {first} to {classes + first - 1}, or void")
    found = torch.as_tensor(np.where(known, labels, VOID))[None, None].float()
    small = F.interpolate(found, (config.height, config.width), mode="nearest-exact")[0, 0]
    return resized(pixels, config), small.to(torch.uint8)
