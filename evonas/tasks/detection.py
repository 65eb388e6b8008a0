"""Boxes around things: COCO's layout, RetinaNet's head and loss from torchvision on the networks' pyramid.

annotations/instances_train*.json names the training pictures, which are in the folder train*, in images/train* or
beside each other in ``root``; instances_val*.json those that are reported. Crowds don't count.
"""

import json
import math
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FeaturePyramidNetwork, batched_nms, clip_boxes_to_image
from torchvision.utils import draw_bounding_boxes

from evonas.data import Data, DataConfig, OnDisk, data_root, held_out, kept, limited, read_colours, resized
from evonas.supernet import Head, Pyramid, TaskHead
from evonas.tasks.base import Meter, Task
from evos.errors import InputError
from evos.runs.files import read_json, replace_file

NOTHING = -1.0
"""The label in rows that hold no box."""
STEM_STRIDE, FEATURES, CONVOLUTIONS = 4, 256, 4
RATIOS, SCALES = (0.5, 1.0, 2.0), (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
CANDIDATES, KEPT, LEAST_SCORE, OVERLAP = 1000, 100, 0.05, 0.5
"""Boxes that suppression starts from and ends with, the score below which none is one, and their largest overlap."""


class DetectionHead(TaskHead):
    """A feature pyramid over all stages but the first, and RetinaNet's towers; features follow the networks' width.

    Gives for each anchor the scores of the classes and four numbers of its box.
    """

    def __init__(self, widths: Any, classes: int) -> None:
        super().__init__()
        self.classes, self.inputs, self.features = classes, list(widths[1:]), min(FEATURES, 2 * widths[0])
        self.fpn = FeaturePyramidNetwork(self.inputs, self.features)
        self.towers = RetinaNetHead(self.features, len(RATIOS) * len(SCALES), classes)

    def forward(self, pyramid: Pyramid, size: tuple[int, int]) -> Float[Tensor, "B A K4"]:
        """For each anchor, from the finest level to the coarsest."""
        levels = {str(i): level.permute(0, 3, 1, 2) for i, level in enumerate(pyramid[1:])}
        found = self.towers(list(self.fpn(levels).values()))
        return torch.cat([found["cls_logits"], found["bbox_regression"]], -1)

    def macs(self, places: Any) -> int:
        """Laterals, 3×3 convolutions of the pyramid and of the towers, at all levels but the first."""
        wide, anchors = self.features, len(RATIOS) * len(SCALES)
        towers = 2 * CONVOLUTIONS * 9 * wide**2 + 9 * wide * anchors * (self.classes + 4)
        each = zip(places[1:], self.inputs, strict=True)
        return sum(n * (width * wide + 9 * wide**2 + towers) for n, width in each)


class DetectionTask(Task):
    """Focal loss and L1; 1 minus COCO's mean average precision is the error.

    An answer holds for each anchor probabilities of the classes and a box (x1, y1, x2, y2 in pixels); result and truth
    rows (x1, y1, x2, y2, label, score), as many for each picture, the label ``NOTHING`` where there is no box.
    """

    layouts = ("coco",)

    def load(self, split: str) -> Data:
        """Pictures and boxes.

        Raises:
            InputError: a missing or damaged JSON, a missing picture, a box outside its picture.
        """
        config, root = self.config, data_root(self.config)
        path, facts = read_annotations(config, root, "test" if split == "test" else "train")
        entries, names = boxes_of(facts, path)
        paths = picture_paths(root, path, [entry["file_name"] for entry, _ in entries])
        items = list(zip(paths, entries, strict=True))
        if split != "test":
            items = held_out(items, config.search_ratio)[split == "search"]
        if not (items := limited(items, config.limit)):
            raise InputError("data.root", str(root), f"a data set with pictures for the {split} split")
        most = max(1, *(len(rows) for _, (_, rows) in items))

        def read(i: int) -> tuple[Tensor, Tensor]:
            path, (_, rows) = items[i]
            return read_boxed(path, rows, most, config)

        return kept(OnDisk(read, [path.stem for path, _ in items], names), config)

    @property
    def head(self) -> Head:
        """Scores and boxes of anchors."""
        return partial(DetectionHead, classes=len(self.classes))

    def anchors(self, count: int, device: torch.device) -> Float[Tensor, "A 4"]:
        """Of one picture, of the networks with so many: the levels are as many as it takes."""
        size, levels, found = (self.config.height, self.config.width), [], 0
        places = tuple(math.ceil(n / STEM_STRIDE) for n in size)
        while found < count:
            places = (math.ceil(places[0] / 2), math.ceil(places[1] / 2))
            levels.append(places)
            found += len(RATIOS) * len(SCALES) * math.prod(places)
        strides = [STEM_STRIDE * 2 ** (i + 1) for i in range(len(levels))]
        generator = AnchorGenerator(
            tuple(tuple(4 * stride * scale for scale in SCALES) for stride in strides), (RATIOS,) * len(levels)
        )
        nothing = torch.zeros(1, 1, 1, 1, device=device)  # the generator asks for shapes alone
        maps = [nothing.expand(1, 1, *places) for places in levels]
        return generator(ImageList(nothing.expand(1, 1, *size), [size]), maps)[0]

    @cached_property
    def detector(self) -> RetinaNet:
        """Matching, losses and coding of boxes; its own weights are not used."""
        backbone = nn.Identity()
        backbone.out_channels = 1  # type: ignore[assignment]
        return RetinaNet(backbone, len(self.classes), head=RetinaNetHead(1, 1, 1))

    def loss(self, output: Float[Tensor, "B A K4"], truth: Float[Tensor, "B M 6"]) -> Float[Tensor, ""]:
        """Focal loss of the classes plus L1 of the boxes, as torchvision computes them."""
        anchors = [self.anchors(output.shape[1], output.device)] * len(output)
        output = output.float()
        targets = [{"boxes": rows[:, :4], "labels": rows[:, 4].long()} for rows in map(real, truth)]
        scores, boxes = output[..., :-4], output[..., -4:]
        losses = self.detector.compute_loss(targets, {"cls_logits": scores, "bbox_regression": boxes}, anchors)
        return losses["classification"] + losses["bbox_regression"]

    def distance(self, output: Float[Tensor, "B A K4"], teacher: Float[Tensor, "B A K4"]) -> Float[Tensor, ""]:
        """Squared differences of all probabilities, and L1 of the boxes, by the teacher's score; both for each anchor
        that the teacher believes in."""
        own, other = output.float(), teacher.float()
        wanted = other[..., :-4].sigmoid()
        weight = wanted.amax(-1)
        boxes = (weight * (own[..., -4:] - other[..., -4:]).abs().sum(-1)).sum(1)
        scores = (own[..., :-4].sigmoid() - wanted).square().sum((1, 2))
        return ((scores + boxes) / weight.sum(1).clamp(min=1)).mean()

    def answer(self, output: Float[Tensor, "B A K4"]) -> Float[Tensor, "B A K4"]:
        """Probabilities and boxes."""
        anchors, output = self.anchors(output.shape[1], output.device), output.float()
        boxes = self.detector.box_coder.decode_single(output[..., -4:].flatten(0, 1), anchors.repeat(len(output), 1))
        boxes = clip_boxes_to_image(boxes, (self.config.height, self.config.width))
        return torch.cat([output[..., :-4].sigmoid(), boxes.view(*output.shape[:2], 4)], -1)

    def result(self, answer: Float[Tensor, "B A K4"], size: tuple[int, int] | None = None) -> Float[Tensor, "B M 6"]:
        """The best boxes after non-maximum suppression in each class."""
        own = (self.config.height, self.config.width)
        height, width = size or own
        scale = torch.tensor([width / own[1], height / own[0]] * 2, device=answer.device)
        found = answer.new_zeros(len(answer), KEPT, 6)
        found[..., 4] = NOTHING
        for rows, picture in zip(found, answer, strict=True):
            scores, place = picture[:, :-4].flatten().topk(min(CANDIDATES, picture[:, :-4].numel()))
            place = place[scores > LEAST_SCORE]
            scores = scores[scores > LEAST_SCORE]
            boxes, labels = picture[place // len(self.classes), -4:], place % len(self.classes)
            best = batched_nms(boxes, scores, labels, OVERLAP)[:KEPT]
            rows[: len(best)] = torch.cat([boxes[best] * scale, labels[best, None], scores[best, None]], 1)
        return found

    def meter(self, device: torch.device) -> Meter:
        """``map`` over overlaps of 0.5 to 0.95, ``map50``, ``map75``."""
        return DetectionMeter()

    def error(self, metrics: dict[str, float]) -> float:
        """1 - mAP."""
        return 1 - metrics["map"]

    def illustrate(self, pictures: Float[Tensor, "B H W 3"], found: Float[Tensor, "B M 6"]) -> Float[Tensor, "B H W 3"]:
        """Boxes of a score of at least 0.3, with their classes."""
        shown = []
        for picture, rows in zip(pictures.cpu(), found.cpu(), strict=True):
            rows = real(rows)
            rows = rows[rows[:, 5] >= 0.3]
            planes = (255 * picture.permute(2, 0, 1)).round().byte()
            labels = [self.classes[int(label)] for label in rows[:, 4]]
            planes = draw_bounding_boxes(planes, rows[:, :4], labels, colors="yellow") if len(rows) else planes
            shown.append(planes.permute(1, 2, 0).float() / 255)
        return torch.stack(shown).to(pictures.device)

    def mirrored(self, truth: Float[Tensor, "B M 6"]) -> Float[Tensor, "B M 6"]:
        """Left is right."""
        left, top, right, bottom, label, score = truth.unbind(-1)
        width = self.config.width
        flipped = torch.stack([width - right, top, width - left, bottom, label, score], -1)
        return torch.where(truth[..., 4:5] == NOTHING, truth, flipped)

    def write(self, folder: Path, name: str, picture: Float[Tensor, "H W 3"], found: Float[Tensor, "M 6"]) -> None:
        """NAME.json with boxes, classes and scores, and NAME_coloured.png."""
        rows = []
        for *box, label, score in real(found).tolist():
            rows.append({"box": box, "class": self.classes[int(label)], "score": score})
        replace_file(folder / f"{name}.json", json.dumps(rows, indent=1).encode())
        super().write(folder, name, picture, found)


class DetectionMeter:
    """Mean average precision by torchmetrics, with pycocotools."""

    def __init__(self) -> None:
        self.precision = MeanAveragePrecision()

    def update(self, found: Float[Tensor, "B N 6"], truth: Float[Tensor, "B M 6"]) -> None:
        """Count a batch."""
        kinds = [
            [
                {"boxes": rows[:, :4], "labels": rows[:, 4].long(), "scores": rows[:, 5]}
                for rows in map(real, values.cpu())
            ]
            for values in (found, truth)
        ]
        self.precision.update(*kinds)

    def compute(self) -> dict[str, float]:
        """The metrics of all batches; 0 where nothing was to be found."""
        found, names = self.precision.compute(), {"map": "map", "map50": "map_50", "map75": "map_75"}
        return {name: max(0.0, float(found[key])) for name, key in names.items()}


def real(rows: Float[Tensor, "M 6"]) -> Float[Tensor, "N 6"]:
    """Those that hold a box."""
    return rows[rows[:, 4] != NOTHING]


# ---- data


def read_annotations(config: DataConfig, root: Path, source: str) -> tuple[Path, dict[str, Any]]:
    """The JSON of a split; raises InputError where there is none or it is damaged."""
    given = config.train_list if source == "train" else config.test_list
    name = "val" if source == "test" else "train"
    if given is not None:
        path = root / given if (root / given).exists() else Path(given)
    else:
        found = sorted((root / "annotations").glob(f"instances_{name}*.json"))
        if len(found) != 1:
            got = f"{len(found)} files annotations/instances_{name}*.json in {root}"
            raise InputError("data.root", got, f"one, or data.{source}_list")
        path = found[0]
    facts = read_json(path)
    if not isinstance(facts, dict) or not {"images", "annotations", "categories"} <= facts.keys():
        raise InputError(str(path), "another file", "COCO's images, annotations and categories")
    return path, facts


def boxes_of(facts: dict[str, Any], path: Path) -> tuple[list[tuple[dict, list]], list[str]]:
    """Each picture's entry with its rows (x, y, width, height, label), by name, and the classes, by their numbers."""
    try:
        categories = sorted(facts["categories"], key=lambda own: own["id"])
        labels = {own["id"]: label for label, own in enumerate(categories)}
        rows: dict[Any, list] = {own["id"]: [] for own in facts["images"]}
        for own in facts["annotations"]:
            if not own.get("iscrowd"):
                x, y, width, height = own["bbox"]
                if width > 0 and height > 0:
                    rows[own["image_id"]].append([x, y, width, height, labels[own["category_id"]]])
        entries = [(own, rows[own["id"]]) for own in sorted(facts["images"], key=lambda own: own["file_name"])]
        return entries, [str(own["name"]) for own in categories]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(str(path), f"{type(error).__name__}: {error}", "COCO's annotations") from None


def picture_paths(root: Path, annotations: Path, names: list[str]) -> list[Path]:
    """Where the pictures are; raises InputError where one is missing."""
    split = annotations.stem.removeprefix("instances_")
    folders = (root / split, root / "images" / split, root / "images", root)
    folder = next((own for own in folders if names and (own / names[0]).exists()), folders[0])
    paths = [folder / name for name in names]
    for path in paths:
        if not path.exists():
            raise InputError("data.root", f"{path}, which is missing", "every picture that the annotations name")
    return paths


def read_boxed(path: Path, rows: list, most: int, config: DataConfig) -> tuple[Tensor, Tensor]:
    """A picture, antialiased, and its boxes in the training size."""
    pixels = read_colours(path)
    height, width = pixels.shape[:2]
    found = torch.zeros(most, 6)
    found[:, 4] = NOTHING
    if rows:
        x, y, wide, high, label = torch.tensor(rows, dtype=torch.float32).unbind(1)
        boxes = torch.stack([x, y, x + wide, y + high], 1)
        if (boxes.amax(0) > torch.tensor([width, height] * 2) + 1).any() or (boxes < -1).any():
            raise InputError("boxes", f"one outside of {path} ({width}×{height})", "boxes within their picture")
        scale = torch.tensor([config.width / width, config.height / height] * 2)
        found[: len(rows)] = torch.cat([boxes * scale, label[:, None], torch.ones(len(rows), 1)], 1)
    return resized(pixels, config), found
