"""Depth data: layouts, splits, units, and what is refused."""

import shutil
from pathlib import Path

import pytest
import torch

from evonas.data import DataConfig, InMemory, OnDisk, random_crops
from evonas.tasks import build_task
from evonas.tasks.depth import colourised, read_pair, scene_of, write_depth
from evos.errors import InputError
from evos.images import read_image, write_image

CPU = torch.device("cpu")


def write_pair(colour: Path, depth: Path, number: int, size=(12, 16), scale=1000) -> None:
    """A grey picture of brightness number / 100, and a depth of number / 10 m, 0 in a corner."""
    for path in (colour, depth):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_image(colour, torch.full((*size, 3), number / 100))
    metres = torch.full(size, number / 10)
    metres[0, 0] = 0
    write_depth(depth, metres, scale)


@pytest.fixture
def sibling(tmp_path) -> Path:
    """20 pairs in rgb/ and depth/."""
    for i in range(10, 30):
        write_pair(tmp_path / "set" / "rgb" / f"{i}.png", tmp_path / "set" / "depth" / f"{i}.png", i)
    return tmp_path / "set"


def config(root: Path, **options) -> DataConfig:
    return DataConfig(root=str(root), height=12, width=16, **options)


def load_split(options: DataConfig, split: str) -> InMemory | OnDisk:
    """A split of the task that the options name."""
    return build_task(options, [split]).sets[split]


def numbers(found) -> list[int]:
    """The number of each pair, from its depth."""
    return (found.truth[:, 5, 5] * 10).round().int().tolist()


def test_a_flat_folder_is_split_into_runs_of_neighbours(sibling):
    found = {split: load_split(config(sibling), split) for split in ("train", "search", "test")}
    assert numbers(found["train"]) == list(range(10, 24))
    assert numbers(found["search"]) == [24, 25] and numbers(found["test"]) == [26, 27, 28, 29]
    assert found["train"].pictures[3, 4, 4].tolist() == [round(255 * 0.13)] * 3
    assert found["train"].truth[3, 0, 0] == 0


def test_the_benchmarks_crop_keeps_the_lowest_rows_and_the_middle_columns(tmp_path):
    colour, depth = tmp_path / "rgb" / "0.png", tmp_path / "depth" / "0.png"
    place = torch.stack(torch.meshgrid(torch.arange(370) / 370, torch.arange(1224) / 1224, indexing="ij"), -1)
    for path in (colour, depth):
        path.parent.mkdir()
    write_image(colour, torch.cat([place, torch.zeros(370, 1224, 1)], -1))
    write_depth(depth, 1 + 10 * place[..., 0], 1000)
    options = DataConfig(root=str(tmp_path), height=352, width=1216, max_depth=20, kb_crop=True)
    pixels, metres = read_pair(colour, depth, options, 1000)
    assert pixels[0, 0, :2].tolist() == [round(255 * 18 / 370), round(255 * 4 / 1224)]
    torch.testing.assert_close(metres[:, 7], 1 + 10 * place[18:, 0, 0], atol=1e-3, rtol=0)
    write_image(colour, torch.zeros(300, 1224, 3))
    write_depth(depth, torch.ones(300, 1224), 1000)
    with pytest.raises(InputError, match=r"kb_crop: got .*1224×300; allowed: at least 1216×352"):
        read_pair(colour, depth, options, 1000)


def test_random_crops_are_parts_of_their_pictures():
    place = torch.stack(torch.meshgrid(torch.arange(40.0), torch.arange(60.0), indexing="ij"), -1)
    pictures = torch.cat([place, torch.ones(40, 60, 1)], -1).expand(64, -1, -1, -1)
    found = random_crops(pictures, torch.Generator().manual_seed(0))
    assert torch.equal(found, random_crops(pictures, torch.Generator().manual_seed(0)))
    assert found.shape == pictures.shape and bool((found[..., 2] - 1).abs().max() < 1e-5)
    spans = found[:, -1, -1, :2] - found[:, 0, 0, :2]
    area = (spans[:, 0] + 1) * (spans[:, 1] + 1) / (40 * 60)
    assert 0.05 < float(area.min()) < 0.2 and 0.8 < float(area.max()) <= 1.001
    assert found[..., 0].min() >= 0 and found[..., 0].max() <= 39 and found[..., 1].max() <= 59
    stretch = (spans[:, 1] + 1) / 60 / ((spans[:, 0] + 1) / 40)
    assert float(stretch.min()) > 0.7 and float(stretch.max()) < 1.4 and float(stretch.std()) > 0.05


def test_folders_of_splits_are_taken_as_they_are(sibling, tmp_path):
    root = tmp_path / "split"
    for split in ("train", "search", "test"):
        shutil.copytree(sibling, root / split)
    assert len(load_split(config(root), "search").names) == 20
    shutil.rmtree(root / "search")
    assert numbers(load_split(config(root), "search")) == [28, 29]
    assert numbers(load_split(config(root), "train")) == list(range(10, 28))
    shutil.rmtree(root / "test")
    with pytest.raises(InputError, match="allowed: a folder test beside train"):
        load_split(config(root), "test")


@pytest.mark.parametrize(("colour", "depth"), [("{}.color", "{}.depth"), ("{}_rgb", "{}_depth")])
def test_pairs_are_found_by_their_suffixes(colour, depth, tmp_path):
    for i in (2, 10, 11, 12, 13):
        write_pair(tmp_path / f"{colour.format(i)}.png", tmp_path / f"{depth.format(i)}.png", i)
    assert numbers(load_split(config(tmp_path), "train")) == [2, 10, 11]


def test_seven_scenes_are_read(data_root):
    found = load_split(DataConfig(root=str(data_root / "rgbd_7scenes_redkitchen")), "test")
    assert found.pictures.shape == (16, 96, 128, 3) and 1 < found.truth[found.truth > 0].median() < 3


def test_lists_hold_out_whole_folders(tmp_path):
    lines = []
    for scene in "abcdefghij":
        for i in (10, 11):
            write_pair(tmp_path / scene / f"rgb_{i}.png", tmp_path / scene / f"sync_{i}.png", i)
            lines.append(f"/{scene}/rgb_{i}.png /{scene}/sync_{i}.png 518.8579")
    (tmp_path / "train.txt").write_text("\n".join([*lines[2:], "a/none.png None 721.5", ""]))
    (tmp_path / "test.txt").write_text("\n".join(lines[:2]))
    options = config(tmp_path, layout="lists", train_list="train.txt", test_list="test.txt", search_ratio=0.25)
    train, search = load_split(options, "train"), load_split(options, "search")
    assert numbers(search) == [10, 11] * 2 and len(train.names) == 14
    assert len(load_split(options, "test").names) == 2
    (tmp_path / "train.txt").write_text(lines[0] + "\n" + "x/rgb_1.png x/sync_1.png 1")
    with pytest.raises(InputError, match=r"data.train_list: got .*train.txt, line 2: .*x/rgb_1.png, which is missing"):
        load_split(options, "train")
    (tmp_path / "train.txt").write_text("only_one_word")
    with pytest.raises(InputError, match="line 1: only_one_word; allowed: lines `IMAGE DEPTH"):
        load_split(options, "train")


@pytest.mark.parametrize(
    ("names", "same"),
    [
        (("d/drive_1_sync/image_02/data/7.png", "d/drive_1_sync/image_03/data/8.png"), True),
        (("d/drive_1_sync/image_02/data/7.png", "d/drive_2_sync/image_02/data/7.png"), False),
        (("kitchen_0028a/rgb_1.jpg", "kitchen_0028b/rgb_2.jpg"), True),
        (("kitchen_0028a/rgb_1.jpg", "kitchen_0029a/rgb_1.jpg"), False),
        (("a/rgb/1.png", "b/rgb/1.png"), False),
        (("rgb/1.png", "image/2.png"), True),
    ],
)
def test_a_scene_is_one_place_seen_by_any_camera(names, same):
    assert (scene_of(Path(names[0])) == scene_of(Path(names[1]))) == same


def test_a_lone_recording_is_split_into_runs(tmp_path):
    lines = []
    for i in range(10, 20):
        write_pair(tmp_path / "a" / f"rgb_{i}.png", tmp_path / "a" / f"sync_{i}.png", i)
        lines.append(f"a/rgb_{i}.png a/sync_{i}.png")
    (tmp_path / "train.txt").write_text("\n".join(lines))
    options = config(tmp_path, train_list="train.txt", search_ratio=0.2)
    assert numbers(load_split(options, "train")) == list(range(10, 18))
    assert numbers(load_split(options, "search")) == [18, 19]


def test_depth_is_resized_by_the_nearest_pixel_and_colour_antialiased(tmp_path):
    depth = 1 + torch.arange(64.0).expand(48, 64) / 10
    # Dark at the middle of each of the 16 columns, half dark over their width.
    stripes = torch.tensor([1.0, 0.0, 0.0, 1.0]).repeat(16)[None, :, None].expand(48, 64, 3)
    write_image(tmp_path / "a_rgb.png", stripes)
    write_depth(tmp_path / "a_depth.png", depth, 1000)
    shutil.copy(tmp_path / "a_rgb.png", tmp_path / "b_rgb.png")
    shutil.copy(tmp_path / "a_depth.png", tmp_path / "b_depth.png")
    found = load_split(config(tmp_path), "test")
    torch.testing.assert_close(found.truth[0], (1.2 + 0.4 * torch.arange(16.0)).expand(12, 16))
    assert (found.pictures[0, :, 1:-1].float() - 127.5).abs().max() < 3


def test_the_unit_comes_from_the_data_set_or_the_option(tmp_path):
    for i in range(10, 20):
        write_pair(tmp_path / "rgb" / f"{i}.png", tmp_path / "depth" / f"{i}.png", i, scale=5000)
    (tmp_path / "dataset.json").write_text('{"depth_scale": 5000}')
    assert numbers(load_split(config(tmp_path), "train"))[0] == 10
    assert load_split(config(tmp_path, depth_scale=2500.0), "train").truth[0, 3, 3] == pytest.approx(2)


def test_a_limit_takes_pictures_from_everywhere(sibling):
    assert numbers(load_split(config(sibling, limit=4), "train")) == [10, 13, 17, 20]


def write_bad(root: Path, kind: str) -> None:
    """One defect in the set."""
    colour, depth = root / "rgb" / "12.png", root / "depth" / "12.png"
    if kind == "unpaired":
        depth.unlink()
    elif kind == "unpaired depth":
        colour.unlink()
    elif kind == "truncated depth":
        depth.write_bytes(depth.read_bytes()[:60])
    elif kind == "millimetres":
        for path in (root / "depth").iterdir():
            write_depth(path, torch.full((12, 16), 2.0), 1000.0)
        (root / "dataset.json").write_text('{"depth_scale": 1}')
    elif kind == "a list":
        (root / "dataset.json").write_text("[1000]")
    elif kind == "shape":
        write_depth(depth, torch.ones(16, 16), 1000)
    elif kind == "channels":
        write_image(depth, torch.ones(12, 16, 3))
    elif kind == "two-channel":
        write_image(depth, torch.ones(12, 16, 2))
    elif kind == "invalid":
        write_depth(depth, torch.zeros(12, 16), 1000)
    elif kind == "truncated":
        colour.write_bytes(colour.read_bytes()[:60])
    elif kind == "depth only":
        shutil.rmtree(root / "rgb")
    elif kind == "metres":
        for path in (root / "depth").iterdir():
            write_depth(path, torch.full((12, 16), 2.0), 1.0)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("unpaired", r"12.png, which has no depth"),
        ("unpaired depth", r"12.png, which has no picture; allowed: a colour picture for each depth picture"),
        ("truncated depth", r"depth.12.png: got a truncated"),
        ("millimetres", r"depth: got a median depth of 2e\+03 m at 1 units a metre; .*data.depth_scale 1000\?"),
        ("a list", r"depth_scale in .*dataset.json: got None; allowed: a number above 0"),
        ("shape", r"depth: got .*12.png of 16×16 for 16×12"),
        ("channels", r"depth: got .*12.png with 3 channels; allowed: one channel"),
        ("two-channel", r"depth: got .*12.png with 2 channels; allowed: one channel"),
        ("invalid", r"depth: got .*12.png, which is 0 everywhere"),
        ("truncated", r"12.png: got a truncated"),
        ("depth only", r"data.root: .*rgb, color"),
        ("metres", r"depth: got a median depth of 0.002 m at 1000 units a metre; .*data.depth_scale 1\?"),
    ],
)
def test_bad_data_is_one_line(kind, words, sibling):
    write_bad(sibling, kind)
    with pytest.raises(InputError, match=words) as error:
        load_split(config(sibling), "train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("root", [None, "/no/such/folder"])
def test_a_missing_folder_is_one_line(root):
    with pytest.raises(InputError, match=r"data.root: got .*allowed: the folder of a data set"):
        load_split(DataConfig(root=root), "train")


def test_sparse_depth_may_lose_a_picture_but_not_all_of_them(tmp_path):
    sparse = torch.zeros(48, 64)
    sparse[0, 0] = 2  # a nearest pixel of 12×16 is none of the first row
    for i in range(10, 20):
        write_pair(tmp_path / "rgb" / f"{i}.png", tmp_path / "depth" / f"{i}.png", i, size=(48, 64))
        if i > 10:
            write_depth(tmp_path / "depth" / f"{i}.png", sparse, 1000)
    assert (load_split(config(tmp_path), "train").truth > 0).any(2).any(1).tolist() == [True] + [False] * 6
    with pytest.raises(InputError, match=r"data.height: got 12 and data.width 16; allowed: a size that keeps some"):
        load_split(config(tmp_path), "test")


def test_an_empty_folder_is_one_line(tmp_path):
    with pytest.raises(InputError, match="a folder without images"):
        load_split(config(tmp_path), "train")


def test_augmentation_mirrors_both_and_changes_colours_alone(sibling):
    task = build_task(config(sibling), ["train"])
    found = task.sets["train"]
    ramp = torch.arange(16.0).expand(12, 16)
    found.truth[:] = 1 + ramp
    found.pictures[:] = (10 * ramp[..., None]).byte()
    pictures, depths = task.batch("train", torch.arange(14), CPU, torch.Generator().manual_seed(0))
    mirrored = depths[:, 0, 0] == 16
    assert 3 < mirrored.sum() < 11
    assert ((pictures[:, 0, 0, 0] > pictures[:, 0, 15, 0]) == mirrored).all()
    assert torch.equal(depths[~mirrored], found.truth[:14][~mirrored])
    plain, _ = task.batch("train", torch.arange(14), CPU)
    assert torch.equal(plain, found.pictures[:14].float() / 255)
    again, _ = task.batch("train", torch.arange(14), CPU, torch.Generator().manual_seed(0))
    assert torch.equal(again, pictures)


def test_depth_files_are_read_back(tmp_path):
    depth = torch.rand(5, 7) * 20
    write_depth(tmp_path / "d.png", depth, 5000)
    found = read_image(tmp_path / "d.png").pixels[..., 0] * 65535 / 5000
    assert (found - depth.clamp(max=65535 / 5000)).abs().max() <= 0.5 / 5000 + 1e-5


def test_colours_of_depth_darken_with_distance():
    shades = colourised(torch.tensor([[0.1, 1.0, 3.0, 10.0]]), 10.0).sum(-1)[0]
    assert (shades.diff() < 0).all()


def test_classes_are_read_from_both_layouts(tmp_path):
    for name in ("cat", "dog"):
        for i in range(20):
            (tmp_path / "flat" / name).mkdir(parents=True, exist_ok=True)
            write_image(tmp_path / "flat" / name / f"{i}.png", torch.full((9, 9, 1), i / 20))
    (tmp_path / "flat" / ".ipynb_checkpoints").mkdir()
    options = config(tmp_path / "flat", task="classification")
    train, test = load_split(options, "train"), load_split(options, "search")
    assert train.classes == ["cat", "dog"] and len(train.truth) == 36 and test.truth.tolist() == [0, 0, 1, 1]
    shutil.copytree(tmp_path / "flat", tmp_path / "net" / "train")
    shutil.copytree(tmp_path / "flat", tmp_path / "net" / "val")
    assert len(load_split(config(tmp_path / "net", task="classification"), "train").truth) == 40
    shutil.rmtree(tmp_path / "net" / "val" / "cat")
    (tmp_path / "net" / "val" / "bird").mkdir()
    with pytest.raises(InputError, match=r"pretrain.root: got .*val with other classes than .*train"):
        load_split(config(tmp_path / "net", task="classification"), "search")
    with pytest.raises(InputError, match=r"pretrain.root: .*two classes"):
        load_split(config(tmp_path / "flat" / "cat", task="classification"), "train")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"classes": 1}, "classes: got 1; allowed: at least 2"),
        ({"layout": "rgb"}, "layout: got rgb; allowed: did you mean rgbd?"),
        ({"depth_scale": 0.0}, "depth_scale: got 0.0; allowed: above 0"),
        ({"min_depth": 0.0}, "min_depth: got 0.0; allowed: above 0"),
        ({"max_depth": 0.5, "min_depth": 1.0}, "max_depth: got 0.5; allowed: above 1"),
        ({"search_ratio": 0.6}, "search_ratio: got 0.6; allowed: above 0 and at most 0.5"),
        ({"height": 4}, "height: got 4; allowed: at least 8"),
        ({"limit": 0}, "limit: got 0; allowed: at least 1"),
    ],
)
def test_options_out_of_range_are_refused(options, line):
    with pytest.raises(InputError) as error:
        DataConfig(**options)
    assert str(error.value).startswith(line)


def test_what_is_read_in_every_batch_is_what_memory_holds(sibling, tmp_path):
    for name in ("cat", "dog"):
        shutil.copytree(sibling / "rgb", tmp_path / "classes" / name)
    index = torch.tensor([3, 0, 13])
    for root, kind in ((sibling, "depth"), (tmp_path / "classes", "classification")):
        tasks = [build_task(config(root, task=kind, in_memory=flag), ["train"]) for flag in (True, False)]
        kept, read = (task.sets["train"] for task in tasks)
        assert isinstance(read, OnDisk) and len(read) == len(kept) >= 14 and read.names == kept.names
        for one, other in zip(*(task.batch("train", index, CPU) for task in tasks), strict=True):
            assert torch.equal(one, other)
    (sibling / "rgb" / "13.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"13\.png"):
        load_split(config(sibling, in_memory=False), "train").take(torch.tensor([3]))


@pytest.mark.parametrize(
    ("task", "layout", "allowed"),
    [
        ("depth", "folders", "auto, rgbd, lists for depth"),
        ("segmentation", "coco", "auto, ade20k, voc, camvid for segmentation"),
        ("detection", "camvid", "auto, coco for detection"),
    ],
)
def test_a_layout_of_another_task_is_refused(task, layout, allowed, tmp_path):
    with pytest.raises(InputError, match=f"data.layout: got {layout}; allowed: {allowed}"):
        build_task(config(tmp_path, task=task, layout=layout), ["train"])


def test_depth_may_have_a_root_of_its_own(sibling, tmp_path):
    (sibling / "train.txt").write_text("rgb/10.png 10.png\nrgb/11.png 11.png\n")
    options = config(sibling, train_list="train.txt", depth_root=str(sibling / "depth"))
    assert numbers(load_split(options, "train")) == [10]
