"""Detection: COCO's layout, boxes through resizing, mirroring and suppression, metrics, and what is refused."""

import json
from pathlib import Path

import pytest
import torch

from evonas.data import DataConfig
from evonas.space import Space
from evonas.supernet import Network
from evonas.tasks import build_task
from evonas.tasks.detection import NOTHING, DetectionTask, real
from evonas.training import TrainConfig, Training, single_plan
from evos.errors import InputError
from evos.images import write_image
from evos.runs import seed_everything

CPU = torch.device("cpu")


def write_set(root: Path) -> Path:
    """Ten training and four test pictures 64×48, each with a bright square of 24 on dark; number 1 has none."""
    for split, numbers in (("train", range(10)), ("val", range(10, 14))):
        images, annotations = [], []
        for number in numbers:
            x, y = 3 * number, number
            picture = torch.full((48, 64, 3), 0.1)
            images.append({"id": number, "file_name": f"{number:03}.png", "width": 64, "height": 48})
            if number != 1:
                picture[y : y + 24, x : x + 24] = torch.tensor([1.0, 0.2, 0.2] if number % 2 else [0.2, 0.2, 1.0])
                about = {"image_id": number, "category_id": 5 if number % 2 else 90, "iscrowd": 0}
                annotations.append({"id": number, "bbox": [x, y, 24, 24], "area": 576, **about})
            path = root / f"{split}2017" / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_image(path, picture)
        annotations.append({"id": 99, "image_id": numbers[0], "category_id": 5, "bbox": [0, 0, 60, 40], "iscrowd": 1})
        categories = [{"id": 90, "name": "blue"}, {"id": 5, "name": "red"}]
        facts = {"images": images, "annotations": annotations, "categories": categories}
        path = root / "annotations" / f"instances_{split}2017.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(facts))
    return root


def config(root: Path, **options) -> DataConfig:
    return DataConfig(task="detection", root=str(root), **{"height": 48, "width": 64, **options})


@pytest.fixture
def task(tmp_path) -> DetectionTask:
    found = build_task(config(write_set(tmp_path / "set")), ["train", "search", "test"])
    assert isinstance(found, DetectionTask)
    return found


def test_boxes_are_read_scaled_and_without_crowds(task, tmp_path):
    assert task.classes == ["red", "blue"] and [task.size(s) for s in ("train", "search", "test")] == [9, 1, 4]
    truth = task.sets["train"].truth
    assert truth.shape == (9, 1, 6)
    assert truth[0, 0].tolist() == [0, 0, 24, 24, 1, 1] and truth[3, 0].tolist() == [9, 3, 33, 27, 0, 1]
    assert truth[1, 0, 4] == NOTHING and len(real(truth[1])) == 0
    small = build_task(config(tmp_path / "set", height=24, width=48), ["train"]).sets["train"].truth
    assert small[3, 0].tolist() == [6.75, 1.5, 24.75, 13.5, 0, 1]


def test_mirrored_pictures_have_mirrored_boxes(task):
    pictures, truth = task.batch("train", torch.arange(9), CPU, torch.Generator().manual_seed(0))
    flipped = 0
    for picture, row, plain in zip(pictures, truth[:, 0], task.sets["train"].truth[:, 0], strict=True):
        if row[4] != NOTHING:
            x1, y1, x2, y2 = row[:4].int().tolist()
            inside = picture[y1:y2, x1:x2].amax(-1)
            assert inside.min() > 0.5 and (picture.amax(-1) > 0.5).sum() == 24 * 24
            flipped += int(row[0] != plain[0])
        else:
            assert torch.equal(row, plain)
    assert 0 < flipped < 8


def perfect(task: DetectionTask, truth: torch.Tensor) -> torch.Tensor:
    """An output that says the truth: each anchor that fits a box well has its class and its offsets."""
    anchors = task.anchors(9 * (6 * 8 + 3 * 4), CPU)
    output = torch.full((len(truth), len(anchors), len(task.classes) + 4), -20.0)
    output[..., -4:] = 0
    for own, rows in zip(output, truth, strict=True):
        for row in real(rows):
            centre = (anchors[:, :2] + anchors[:, 2:]) / 2
            place = ((centre - (row[:2] + row[2:4]) / 2) ** 2).sum(1) + ((anchors[:, 2] - anchors[:, 0]) - 24).abs()
            best = place.argmin()
            own[best, int(row[4])] = 20
            own[best, -4:] = task.detector.box_coder.encode_single(row[None, :4], anchors[best][None])[0]
    return output


def test_a_perfect_output_gives_its_boxes_back_and_a_precision_of_1(task):
    truth = task.sets["test"].truth
    found = task.result(task.answer(perfect(task, truth)))
    for rows, own in zip(found, truth, strict=True):
        torch.testing.assert_close(real(rows)[:, :5], real(own)[:, :5], atol=1e-3, rtol=0)
    meter = task.meter(CPU)
    meter.update(found[:2], truth[:2])
    meter.update(found[2:], truth[2:])
    assert meter.compute() == {"map": 1, "map50": 1, "map75": 1} and task.error(meter.compute()) == 0
    double = task.result(task.answer(perfect(task, truth)), (96, 64))
    torch.testing.assert_close(real(double[0])[:, :4], real(truth[0])[:, :4] * torch.tensor([1, 2, 1, 2.0]))


def test_wrong_boxes_have_no_precision(task):
    truth = task.sets["test"].truth
    meter = task.meter(CPU)
    meter.update(task.result(task.answer(perfect(task, truth.flip(0)))), truth)
    assert meter.compute()["map"] < 0.1


def test_the_distance_from_a_teacher_is_0_for_itself_and_falls_towards_it(task):
    teacher = perfect(task, task.sets["test"].truth)
    assert task.distance(teacher, teacher) == 0
    other = torch.zeros_like(teacher)
    far, near = (task.distance(torch.lerp(other, teacher, share), teacher) for share in (0.2, 0.8))
    assert far > near > 0


@pytest.mark.slow
def test_precision_rises_in_training(task, tiny_space: Space):
    seed_everything(0)
    network = Network(tiny_space, task.head, tiny_space.largest)
    before = task.evaluate(network, [network.genome], "train", CPU)[0]["map50"]
    plan = single_plan(tiny_space, tiny_space.largest, 150)
    training = Training(network, task, plan, TrainConfig(batch=9, lr=3e-3, clip=1.0), seed=0, device=CPU)
    losses = [float(training.step(step)) for step in range(1, 151)]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    assert task.evaluate(network, [network.genome], "train", CPU)[0]["map50"] > before + 0.2


def test_results_are_written(task, tmp_path):
    truth = task.sets["test"].truth
    task.write(tmp_path, "a", torch.rand(48, 64, 3), task.result(task.answer(perfect(task, truth)))[0])
    (entry,) = json.loads((tmp_path / "a.json").read_text())
    assert entry["class"] == "blue" and entry["score"] == pytest.approx(1) and (tmp_path / "a_coloured.png").exists()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("no file", r"data.root: got 0 files annotations/instances_train\*.json"),
        ("another file", r"instances_train2017.json: got another file; allowed: COCO's images"),
        ("category", r"instances_train2017.json: got KeyError: 7; allowed: COCO's annotations"),
        ("picture", r"data.root: got .*train2017/004.png, which is missing"),
        ("outside", r"boxes: got one outside of .*003.png \(64×48\)"),
        ("list", r"none.json"),
    ],
)
def test_bad_data_is_one_line(kind, words, tmp_path):
    root = write_set(tmp_path / "set")
    path = root / "annotations" / "instances_train2017.json"
    facts = json.loads(path.read_text())
    if kind == "no file":
        path.unlink()
    elif kind == "another file":
        path.write_text("[1]")
    elif kind == "category":
        facts["annotations"][0]["category_id"] = 7
    elif kind == "picture":
        (root / "train2017" / "004.png").unlink()
    elif kind == "outside":
        facts["annotations"][2]["bbox"] = [50, 3, 24, 24]
    if kind in ("category", "outside"):
        path.write_text(json.dumps(facts))
    with pytest.raises(InputError, match=words) as error:
        build_task(config(root, **({"train_list": "none.json"} if kind == "list" else {})), ["train"])
    assert "\n" not in str(error.value)
