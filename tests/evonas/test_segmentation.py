"""Segmentation: layouts, labels, loss and metrics beside slow loops, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evonas.data import DataConfig
from evonas.tasks import build_task
from evonas.tasks.segmentation import VOID, SegmentationMeter, SegmentationTask
from evos.errors import InputError
from evos.images import read_image, write_image

CPU = torch.device("cpu")
PATHS = {
    "camvid": ("train/{}.png", "trainannot/{}.png", "val/{}.png", "valannot/{}.png"),
    "ade20k": (
        "images/training/{}.png",
        "annotations/training/{}.png",
        "images/validation/{}.png",
        "annotations/validation/{}.png",
    ),
    "voc": ("JPEGImages/{}.jpg", "SegmentationClass/{}.png", "JPEGImages/{}.jpg", "SegmentationClass/{}.png"),
}


def write_mask(path: Path, labels: np.ndarray, mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels.astype(np.uint8), "L" if mode == "L" else None)
    if mode == "P":
        image = Image.fromarray(labels.astype(np.uint8))
        image.putpalette([7 * i % 256 for i in range(768)])
    image.save(path)


def write_set(root: Path, layout: str, first: int) -> Path:
    """Ten training and three test pictures 16×12: the left half is of class number % 3, the right half void."""
    names: dict[str, list[str]] = {"train": [], "val": []}
    for number in range(13):
        split = "train" if number < 10 else "val"
        picture, mask = (root / path.format(f"{number:03}") for path in PATHS[layout][0 if number < 10 else 2 :][:2])
        picture.parent.mkdir(parents=True, exist_ok=True)
        write_image(picture, torch.full((12, 16, 3), number / 20))
        labels = np.full((12, 16), 255)
        labels[:, :8] = number % 3 + first
        write_mask(mask, labels, "P" if layout == "voc" else "L")
        names[split].append(picture.stem)
    for split, stems in names.items() if layout == "voc" else ():
        path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(stems))
    return root


def config(root: Path, **options) -> DataConfig:
    return DataConfig(task="segmentation", root=str(root), **{"height": 12, "width": 16, **options})


@pytest.mark.parametrize(("layout", "first", "count"), [("camvid", 0, 11), ("ade20k", 1, 150), ("voc", 0, 21)])
def test_layouts_are_told_apart_and_labels_counted_from_0(layout, first, count, tmp_path):
    task = build_task(config(write_set(tmp_path, layout, first)), ["train", "search", "test"])
    assert len(task.classes) == count
    assert [task.size(split) for split in ("train", "search", "test")] == [9, 1, 3]
    labels = [task.sets[split].truth[:, 0, 0].tolist() for split in ("train", "search", "test")]
    assert labels == [[0, 1, 2] * 3, [0], [1, 2, 0]]
    assert (task.sets["train"].truth[:, :, 8:] == VOID).all()
    assert task.sets["test"].pictures[0, 0, 0, 0] == pytest.approx(255 * 10 / 20, abs=2)


def test_camvid_is_read(data_root):
    task = build_task(config(data_root / "camvid", height=48, width=64), ["test"])
    assert task.size("test") == 40 and task.classes[3] == "road"
    truth = task.sets["test"].truth
    assert set(truth.unique().tolist()) <= {*range(11), VOID} and (truth == 3).float().mean() > 0.1


@pytest.fixture
def task(tmp_path) -> SegmentationTask:
    found = build_task(config(write_set(tmp_path / "set", "camvid", 0), classes=4), ["train", "test"])
    assert isinstance(found, SegmentationTask) and found.classes == ["0", "1", "2", "3"]
    return found


def test_loss_is_the_mean_over_pictures_of_the_known_pixels(task):
    output, truth = torch.randn(3, 12, 16, 4), torch.randint(4, (3, 12, 16), dtype=torch.uint8)
    truth[0, :, 3:] = VOID
    truth[1] = VOID
    slow = []
    for values, labels in zip(output, truth, strict=True):
        known = [(v, label) for v, label in zip(values.view(-1, 4), labels.view(-1).tolist(), strict=True) if label < 4]
        slow.append(sum(-v.log_softmax(0)[label] for v, label in known) / max(1, len(known)))
    torch.testing.assert_close(task.loss(output, truth), torch.stack(list(map(torch.as_tensor, slow))).mean())
    assert task.distance(output, output) == 0 and task.distance(output, output.flip(0)) > 0.1


def test_metrics_are_those_of_a_slow_loop():
    meter = SegmentationMeter(5, CPU)
    found, truth = (torch.randint(4, (4, 6, 7), dtype=torch.uint8) for _ in range(2))
    truth[0, :3] = VOID
    for part in (slice(0, 2), slice(2, 4)):
        meter.update(found[part], truth[part])
    known = truth != VOID
    ratios = []
    for label in range(4):  # class 4 occurs nowhere
        a, b = (found == label) & known, (truth == label) & known
        ratios.append(float((a & b).sum() / (a | b).sum()))
    values = meter.compute()
    assert values["miou"] == pytest.approx(np.mean(ratios))
    assert values["accuracy"] == pytest.approx(float((found == truth)[known].float().mean()))


def test_mirrored_pictures_have_mirrored_masks(task):
    _, truth = task.batch("train", torch.arange(9), CPU, torch.Generator().manual_seed(1))
    mirrored = truth[:, 0, 0] == VOID
    assert 0 < mirrored.sum() < 9
    assert (truth[~mirrored] == task.sets["train"].truth[~mirrored]).all()
    assert (truth[mirrored].flip(2) == task.sets["train"].truth[mirrored]).all()


def test_results_are_enlarged_and_written(task, tmp_path):
    answer = torch.zeros(1, 12, 16, 4)
    answer[:, :, :8, 2] = 1
    answer[:, :, 8:, 1] = 1
    found = task.result(answer, (24, 32))[0]
    assert (found[:, :15] == 2).all() and (found[:, 17:] == 1).all()
    task.write(tmp_path, "a", torch.rand(24, 32, 3), found)
    assert torch.equal((255 * read_image(tmp_path / "a.png").pixels[..., 0]).round().byte(), found)
    assert read_image(tmp_path / "a_coloured.png").pixels.shape == (24, 32, 3)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", r"data.root: got .*trainannot/003.png, which is missing; allowed: a picture and a mask"),
        ("labels", r"mask: got .*003.png with the label 13; allowed: labels 0 to 10, or void"),
        ("shape", r"mask: got .*003.png of 8×12 for 16×12"),
        ("colours", r"mask: got .*003.png.*allowed: "),
        ("damaged", r"mask: got .*003.png, which can't be read"),
        (
            "layout",
            r"data.root: got .* folders annotations \(ade20k\), SegmentationClass \(voc\), trainannot \(camvid\)",
        ),
    ],
)
def test_bad_data_is_one_line(kind, words, tmp_path):
    root = write_set(tmp_path / "set", "camvid", 0)
    mask = root / "trainannot" / "003.png"
    if kind == "missing":
        mask.unlink()
    elif kind == "labels":
        write_mask(mask, np.full((12, 16), 13))
    elif kind == "shape":
        write_mask(mask, np.zeros((12, 8)))
    elif kind == "colours":
        write_image(mask, torch.rand(12, 16, 3))
    elif kind == "damaged":
        mask.write_bytes(mask.read_bytes()[:40])
    else:
        (root / "trainannot").rename(root / "masks")
    with pytest.raises(InputError, match=words) as error:
        build_task(config(root), ["train"])
    assert "\n" not in str(error.value)
