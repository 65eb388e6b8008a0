"""All stages on tiny rooms: what they write, that they go on, and what is refused."""

import csv
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from evonas import stages
from evonas.main import main
from evonas.networks import load_network
from evonas.options import PROGRAM, STAGES, parse
from evonas.rooms import RoomsConfig, write_rooms
from evonas.space import Space
from evonas.training import PAPER_PHASES
from evos.distributed import World
from evos.errors import InputError
from evos.images import read_image, write_image
from evos.runs import Stopper, load_checkpoint, read_json, save_checkpoint

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    *("--quiet", "device=cpu", "data.height=16", "data.width=24", "data.max_depth=12"),
    *("space.depths=[1, 2]", "space.heads=[2, 2]", "space.width=8", "space.mlp_ratio=[1, 2]"),
    *("space.state=[4, 8]", "space.expand=[0.5, 1]", "train.batch=4", "train.lr=0.01"),
    "train.phases=[{steps: 3}, {steps: 3, subnets: 2, state: all, mlp_ratio: all, expand: all, blocks: all}]",
    *("search.population=4", "search.generations=3", "search.objectives=[error, macs, parameters]"),
    *("retrain.steps=2", "retrain.batch=4", "retrain.lr=0.01"),
]


@pytest.fixture(scope="module")
def rooms(tmp_path_factory) -> Path:
    sizes = {"train_rooms": 4, "search_rooms": 2, "test_rooms": 2, "views": 2, "height": 16, "width": 24, "quiet": True}
    return write_rooms(RoomsConfig(out=str(tmp_path_factory.mktemp("rooms") / "set"), **sizes))


@pytest.fixture(scope="module")
def done(rooms, tmp_path_factory) -> Path:
    """The folder of all stages."""
    out = tmp_path_factory.mktemp("nas") / "run"
    main(["run", *TINY, f"data.root={rooms}", f"out={out}"])
    return out


@pytest.fixture
def copy(done, tmp_path) -> Path:
    shutil.copytree(done, tmp_path / "run")
    return tmp_path / "run"


def front_of(out: Path) -> list[dict[str, str]]:
    with (out / "search" / "front.csv").open() as file:
        return list(csv.DictReader(file))


def test_run_goes_through_all_stages(done):
    space = Space(parse(["train", *TINY])[1].space)
    front = front_of(done)
    for row in front:
        space.check([int(gene) for gene in row["genome"].split()])
    assert [float(row["error"]) for row in front] == sorted(float(row["error"]) for row in front)
    assert len((done / "search" / "archive.jsonl").read_text().splitlines()) >= 12
    assert {path.name for path in (done / "retrain").iterdir()} == {"error", "knee", "fast"}
    results = read_json(done / "evaluate" / "metrics.json")
    assert results["pictures"] == 4 and set(results["networks"]) == {"error", "knee", "fast"}
    for name, found in results["networks"].items():
        assert 0 < found["abs_rel"] < 5 and 0 <= found["delta1"] <= found["delta2"] <= found["delta3"] <= 1, name
    for name in ("pareto.png", "hypervolume.png"):
        assert read_image(done / "search" / name).pixels.std() > 0.01
    assert read_json(done / "train" / "metrics.json")["steps"] == 6
    for name in ("train", "search", "retrain/knee"):
        assert len(list((done / name).glob("events.out.tfevents.*"))) == 1


def test_the_error_in_the_front_is_that_of_the_supernet_on_the_search_rooms(done, rooms):
    _, options = parse(["search", *TINY, f"data.root={rooms}", f"out={done}"])
    row = front_of(done)[0]
    genome = tuple(int(gene) for gene in row["genome"].split())
    (error,) = stages.ErrorsOnSearch(options)()([genome])
    assert error == float(row["error"])


def test_run_changes_nothing_where_everything_is_there(copy, rooms):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.suffix in (".pt", ".json", ".csv", ".jsonl")}
    main(["run", *TINY, f"data.root={rooms}", f"out={copy}"])
    changed = [path.name for path, content in before.items() if path.read_bytes() != content]
    assert changed == []


def test_a_search_without_its_end_goes_on_to_the_same_front(copy, done, rooms):
    lines = (copy / "search" / "archive.jsonl").read_text().splitlines(keepends=True)
    (copy / "search" / "archive.jsonl").write_text("".join(lines[:6]) + lines[6][:9])
    for name in ("errors.jsonl", "front.csv"):
        (copy / "search" / name).unlink()
    shutil.rmtree(copy / "search" / "generations")
    main(["search", *TINY, f"data.root={rooms}", f"out={copy}", "--resume"])
    assert front_of(copy) == front_of(done)


def test_overwriting_evaluates_again(copy, rooms):
    archive, marker = copy / "search" / "archive.jsonl", "once"
    (copy / "search" / "mine.txt").write_text(marker)
    archive.write_text(archive.read_text() + "\n")
    before = archive.read_text()
    main(["search", *TINY, f"data.root={rooms}", f"out={copy}", "--overwrite", "search.seed=5"])
    assert len(archive.read_text().splitlines()) >= 12 and archive.read_text() != before
    assert front_of(copy) and (copy / "search" / "mine.txt").read_text() == marker


def test_a_stopped_training_goes_on_to_the_same_supernet(done, rooms, tmp_path, capsys, monkeypatch):
    words = ["train", *TINY, f"data.root={rooms}", f"out={tmp_path / 'run'}"]
    step = stages.Training.step

    def stopping(self, number):
        if number == 4:
            signal.raise_signal(signal.SIGTERM)
        return step(self, number)

    monkeypatch.setattr(stages.Training, "step", stopping)
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 143 and "stopped; go on with: " in capsys.readouterr().err
    monkeypatch.setattr(stages.Training, "step", step)
    main([*words, "--resume"])
    whole, resumed = (load_checkpoint(out / "train" / "best.pt") for out in (done, tmp_path / "run"))
    assert whole["error"] == resumed["error"]
    assert all(torch.equal(whole["weights"][name], resumed["weights"][name]) for name in whole["weights"])


def test_a_network_from_scratch_inherits_nothing(copy, rooms):
    main(["retrain", *TINY, f"data.root={rooms}", f"out={copy}", "from=scratch", "retrain.picks=[knee]", "seed=3"])
    one, other = (load_checkpoint(copy / "retrain" / name / "network.pt") for name in ("knee", "knee-scratch"))
    assert one["genome"] == other["genome"]
    name = "stem.0.convolution.weight"
    assert (one["weights"][name] - other["weights"][name]).abs().max() > 0.1


def test_predictions_are_depth_at_the_pictures_own_size(done, rooms, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    name = "0000_00.png"
    shutil.copy(rooms / "test" / "rgb" / name, pictures)
    words = [
        "predict",
        *TINY,
        f"out={done}",
        f"input={pictures}",
        f"output={tmp_path / 'depth'}",
        "data.depth_scale=2000",
    ]
    main(words)
    depth = read_image(tmp_path / "depth" / name)
    assert depth.bits == 16 and depth.pixels.shape == (16, 24, 1)
    network, task = load_network(done / "retrain" / "knee", torch.device("cpu"))
    with torch.no_grad():
        expected = task.answer(network(read_image(pictures / name).pixels[None]))[0]
    assert (depth.pixels[..., 0] * 65535 / 2000 - expected).abs().max() < 1e-3
    assert read_image(tmp_path / "depth" / "0000_00_coloured.png").pixels.shape == (16, 24, 3)


def test_pictures_of_any_kind_are_predicted_alike(done, rooms, tmp_path):
    """Grey, grey with transparency, and both as colour: one depth."""
    grey = read_image(rooms / "test" / "rgb" / "0000_00.png").pixels[..., :1]
    kinds = {"grey": grey, "alpha": torch.cat([grey, torch.ones_like(grey)], -1), "colour": grey.expand(-1, -1, 3)}
    (tmp_path / "pictures").mkdir()
    for name, pixels in kinds.items():
        write_image(tmp_path / "pictures" / f"{name}.png", pixels)
    main(["predict", *TINY, f"out={done}", f"input={tmp_path / 'pictures'}", f"output={tmp_path / 'depth'}"])
    found = [read_image(tmp_path / "depth" / f"{name}.png").pixels for name in kinds]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2]) and found[0].std() > 0


def test_predictions_write_over_nothing(done, rooms, tmp_path, refused):
    photos, words = tmp_path / "photos", ["predict", *TINY, f"out={done}", f"input={tmp_path / 'photos'}"]
    photos.mkdir()
    write_image(photos / "a.png", torch.rand(9, 12, 3))
    before = (photos / "a.png").read_bytes()
    assert "allowed: another folder than the one that is read" in refused(*words, f"output={photos}", "--overwrite")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.png").write_bytes(b"mine")
    assert "allowed: a new folder, or --overwrite" in refused(*words, f"output={tmp_path / 'other'}")
    write_image(photos / "a.jpg", torch.rand(9, 12, 3))
    line = "input: got a, a_coloured: results of several pictures; allowed: pictures of different names"
    assert refused(*words, f"output={tmp_path / 'third'}") == line
    assert (photos / "a.png").read_bytes() == before and (tmp_path / "other" / "a.png").read_bytes() == b"mine"
    assert not (tmp_path / "third").exists()


def test_depth_that_16_bits_do_not_reach_is_one_line(done, rooms, tmp_path, refused):
    words = ["predict", *TINY, f"out={done}", f"input={rooms / 'test' / 'rgb'}", f"output={tmp_path / 'depth'}"]
    line = "data.depth_scale: got 6000.0; allowed: at most 5461 units a metre, with which 16 bits reach 12 m"
    assert refused(*words, "data.depth_scale=6000") == line


def test_a_network_is_evaluated_in_its_own_range_of_depth(done, rooms, tmp_path):
    words = ["evaluate", *TINY, f"data.root={rooms}", f"network={done / 'retrain' / 'knee'}", "data.min_depth=0.001"]
    main([*words, f"out={tmp_path / 'a'}"])
    main([*words, "data.max_depth=100", f"out={tmp_path / 'b'}"])
    one, other = (read_json(tmp_path / name / "evaluate" / "metrics.json")["networks"] for name in "ab")
    assert one == other  # all depths of the rooms are below 12


def test_a_search_is_only_replaced_once_its_engine_runs(copy, rooms, refused):
    before = (copy / "search" / "archive.jsonl").read_bytes()
    words = ["search", *TINY, f"data.root={rooms}", f"out={copy}", "engine.engine=ray", "engine.address=127.0.0.1:1"]
    assert "engine.address: got 127.0.0.1:1" in refused(*words, "--overwrite")
    assert (copy / "search" / "archive.jsonl").read_bytes() == before


def test_exported_networks_say_what_they_are(done):
    from safetensors import safe_open

    with safe_open(done / "export" / "network.safetensors", "pt") as file:
        about = file.metadata()
        assert [json.loads(about["data"])[name] for name in ("height", "width")] == [16, 24]
        weights = load_checkpoint(done / "retrain" / "knee" / "network.pt")["weights"]
        assert all(torch.equal(file.get_tensor(name), weight) for name, weight in weights.items())
    import onnxruntime

    session = onnxruntime.InferenceSession(done / "export" / "network.onnx", providers=["CPUExecutionProvider"])
    picture = torch.rand(1, 16, 24, 3)
    network, task = load_network(done / "retrain" / "knee", torch.device("cpu"))
    with torch.no_grad():
        expected = task.answer(network(picture)).numpy()
    np.testing.assert_allclose(session.run(None, {"pictures": picture.numpy()})[0], expected, atol=1e-4)


def test_pretraining_gives_the_supernet_its_trunk(rooms, tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / "classes" / split).mkdir(parents=True, exist_ok=True)
            shutil.copytree(rooms / "search" / "rgb", tmp_path / "classes" / split / name)
    words = [*TINY, f"data.root={rooms}", f"out={tmp_path / 'run'}", f"pretrain.root={tmp_path / 'classes'}"]
    main(["pretrain", *words, "pretrain.steps=2", "pretrain.lr=0.01", "pretrain.batch=4"])
    start = load_checkpoint(tmp_path / "run" / "pretrain" / "best.pt")["weights"]
    main(["train", *words, "train.phases=[{steps: 1}]", "train.lr=1e-9", "train.weight_decay=0"])
    after = load_checkpoint(tmp_path / "run" / "train" / "best.pt")["weights"]
    trunk = [name for name in after if not name.startswith("head.")]
    assert all(torch.allclose(start[name], after[name], atol=1e-6) for name in trunk)


def test_a_classifier_follows_the_features_of_its_teacher(rooms, tmp_path):
    transformers = pytest.importorskip("transformers")
    for name in ("cat", "dog"):
        shutil.copytree(rooms / "search" / "rgb", tmp_path / "classes" / "train" / name)
        shutil.copytree(rooms / "search" / "rgb", tmp_path / "classes" / "val" / name)
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    transformers.ResNetModel(config).save_pretrained(tmp_path / "teacher")
    words = ["pretrain", *TINY, f"data.root={rooms}", f"pretrain.root={tmp_path / 'classes'}"]
    words += ["pretrain.steps=2", "pretrain.lr=0.01", "pretrain.batch=4"]
    teacher = f"pretrain.teacher=transformers:{tmp_path / 'teacher'}"
    main([*words, f"out={tmp_path / 'alone'}"])
    main([*words, f"out={tmp_path / 'taught'}", teacher])
    main([*words, f"out={tmp_path / 'unheard'}", teacher, "distill.spatial=0", "distill.frequency_weight=0"])
    folders = [tmp_path / name / "pretrain" for name in ("alone", "taught", "unheard")]
    alone, taught, unheard = (load_checkpoint(folder / "best.pt")["weights"] for folder in folders)
    assert alone.keys() == taught.keys()
    assert not all(torch.allclose(alone[name], taught[name]) for name in alone)
    assert all(torch.equal(alone[name], unheard[name]) for name in alone)
    recorded = [json.loads((folder / "config.json").read_text()) for folder in folders]
    assert "distill" not in json.dumps(recorded[0]) and teacher.partition("=")[2] in json.dumps(recorded[1])


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, Path]:
    """A small data set of each task but depth: bright squares on dark, 24×16."""
    root = tmp_path_factory.mktemp("sets")
    facts: dict[str, dict] = {}
    for split, count in (("train", 12), ("val", 6)):
        images, boxes = [], []
        for number in range(count):
            x, y = number % 4 * 3, number % 3
            picture, mask = torch.full((16, 24, 3), 0.1), torch.zeros(16, 24, 1)
            picture[y : y + 12, x : x + 12, number % 3] = 1
            mask[y : y + 12, x : x + 12] = 1 / 255
            images.append({"id": number, "file_name": f"{number:02}.png"})
            boxes.append({"image_id": number, "category_id": 1, "bbox": [x, y, 12, 12]})
            for folder, pixels in ((split, picture), (f"{split}annot", mask), (f"{split}2017", picture)):
                (root / folder).mkdir(exist_ok=True)
                write_image(root / folder / f"{number:02}.png", pixels)
        facts[split] = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "square"}]}
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(facts[split]))
    return {"segmentation": root, "detection": root}


@pytest.mark.parametrize(
    ("task", "metric", "words"),
    [("segmentation", "miou", ["data.layout=camvid", "data.classes=2"]), ("detection", "map50", [])],
)
def test_every_task_goes_through_all_stages(task, metric, words, sets, tmp_path):
    options = [*TINY, f"data.task={task}", f"data.root={sets[task]}", *words, "distill.teacher=ema"]
    main(["run", *options, f"out={tmp_path / 'run'}"])
    found = read_json(tmp_path / "run" / "evaluate" / "metrics.json")
    assert found["pictures"] == 6 and all(0 <= own[metric] <= 1 for own in found["networks"].values())
    assert (tmp_path / "run" / "evaluate" / "report.png").exists()
    main(["predict", *options, f"out={tmp_path / 'run'}", f"input={sets[task] / 'val'}"])
    names = {path.name for path in (tmp_path / "run" / "predict").iterdir()}
    assert {"00_coloured.png", "00.json" if task == "detection" else "00.png"} <= names
    _, own_task = load_network(tmp_path / "run" / "retrain" / "knee", torch.device("cpu"))
    assert own_task.classes == (["square"] if task == "detection" else ["0", "1"])
    with pytest.raises(SystemExit) as error:
        main(["evaluate", *TINY, f"data.root={sets[task]}", f"out={tmp_path / 'run'}"])
    assert error.value.code == 2


def test_a_teacher_helps_to_train_and_to_retrain(rooms, done, tmp_path):
    """Whatever it is; the runs record it."""
    without = load_checkpoint(done / "train" / "best.pt")["weights"]["stem.0.norm.bias"]
    for number, teacher in enumerate(("max", str(done / "retrain" / "error"))):
        out = tmp_path / str(number)
        options = [*TINY, f"data.root={rooms}", f"out={out}", f"distill.teacher={teacher}"]
        main(["run", *options])
        weights = load_checkpoint(out / "train" / "best.pt")["weights"]["stem.0.norm.bias"]
        assert not torch.equal(weights, without)
        assert read_json(out / "train" / "config.json")["options"]["distill"]["teacher"] == teacher
        main(["retrain", *options, "from=scratch"])


# ---- refused


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "STAGE: got None; allowed: one of pretrain, train"),
        (["tran"], "STAGE: got tran; allowed: did you mean train?"),
        (["train", "search.populaton=3"], "--search.populaton"),
        (["train", "space.width=6"], "--space.width: got 6"),
        (["train", "data.root=/no/such"], "data.root: got /no/such; allowed: the folder of a data set"),
        (["search"], "checkpoint: got "),
        (["retrain", "retrain.genome=[1, 2]"], "genome: got [1, 2]; allowed: 7 whole numbers"),
        (["retrain", "retrain.genome=x"], "retrain.genome: got x"),
        (["retrain", "retrain.picks=[best]"], "--retrain.picks"),
        (["predict"], "input: got None"),
        (["predict", "input=/no/such/picture.png"], "network: got None"),
        (["export", "network=/no/such.pt"], "checkpoint: got /no/such.pt"),
        (["evaluate"], "network: got None"),
        (["pretrain"], "pretrain.root: got None"),
        (["pretrain", "pretrain.teacher=max"], "--pretrain.teacher: got max; allowed: timm:NAME"),
        (["pretrain", "pretrain.root=/no/such"], "pretrain.root: got /no/such; allowed: the folder of a data set"),
        (["train", "data.height=4"], "--data.height: got 4"),
        (["train", "train.phases=[{steps: 0}]"], "train.phases[0].steps: got 0"),
        (
            ["train", "train.phases=[{steps: 2, subnets: 1.5}]"],
            "train.phases[0].subnets: got 1.5; allowed: a whole",
        ),
        (["train", "train.phases=[{steps: 1.5}]"], "train.phases[0].steps: got 1.5; allowed: a whole"),
    ],
)
def test_bad_input_is_one_line(words, line, rooms, tmp_path, refused):
    given = [*words[:1], *TINY, f"data.root={rooms}", f"out={tmp_path / 'run'}", *words[1:]]
    text = refused(*given)
    assert line in text or line.replace("--", "") in text


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("train", ["data.root=/none"]),
        ("train", ["distill.teacher=nowhere"]),
        ("train", ["train.batch=3"]),
        ("pretrain", ["pretrain.root=/none"]),
        ("pretrain", []),
        ("retrain", ["retrain.genome=[1]"]),
    ],
)
def test_of_several_processes_the_first_alone_refuses(stage, words, rooms, tmp_path, monkeypatch):
    monkeypatch.setattr("evos.distributed.time.sleep", lambda seconds: None)
    _, options = parse([stage, *TINY, f"data.root={rooms}", f"out={tmp_path / 'run'}", *words])
    with Stopper() as stopper:
        with pytest.raises(InputError):
            stages.STAGE_FUNCTIONS[stage](options, World(rank=0, size=2), stopper)
        with pytest.raises(SystemExit) as error:
            stages.STAGE_FUNCTIONS[stage](options, World(rank=1, size=2), stopper)
    assert error.value.code == 2 and not (tmp_path / "run").exists()


def test_a_supernet_of_another_width_is_one_line(done, rooms, refused):
    words = ["search", *TINY, f"data.root={rooms}", f"out={done}", "--resume", "space.width=16"]
    assert "of shape [8" in refused(*words)


def test_a_search_of_another_space_is_not_continued(copy, rooms, refused):
    words = ["search", *TINY, f"data.root={rooms}", f"out={copy}", "--resume", "search.population=8"]
    assert "search.population" in refused(*words)


def test_an_old_folder_is_refused(done, rooms, refused):
    text = refused("train", *TINY, f"data.root={rooms}", f"out={done}")
    assert "a new folder, or --resume, or --overwrite" in text


def test_another_kind_of_checkpoint_is_no_network(done, refused, tmp_path):
    save_checkpoint(tmp_path / "x.pt", {"weights": {}})
    assert "a network.pt that the stage retrain wrote" in refused("export", f"network={tmp_path / 'x.pt'}")


# ---- options


def test_every_config_is_read_and_has_the_papers_settings():
    paths = [path for path in (ROOT / "configs" / "evonas").glob("*.yaml") if not path.stem.startswith("field")]
    configs = {path.stem: parse(["run", f"--config={path}"])[1] for path in paths}
    assert set(configs) == {"nyu", "kitti", "ade20k", "coco", "camvid", "rooms", "rgbd", "demo"}
    for name in ("nyu", "kitti"):
        options = configs[name]
        assert options.phases == PAPER_PHASES and len(Space(options.space)) == 28
        assert (options.search.population, options.search.generations, options.train.lr) == (96, 200, 5e-5)
    assert (configs["kitti"].data.max_depth, configs["kitti"].data.crop) == (80, "garg")
    assert len(Space(configs["rooms"].space)) == len(Space(configs["camvid"].space)) == 28
    weights = {name: (own.distill.output, own.distill.spatial, own.distill.reduction) for name, own in configs.items()}
    assert weights["nyu"] == weights["kitti"] == (0.1, 0.08, "places")
    assert weights["coco"] == (0.5, 150, "mean") and weights["ade20k"] == (0.5, 3e-5, "sum")
    assert [phase["epochs"] for phase in configs["coco"].phases] == list(map(str, (12, 2, 8, 2, 8, 2, 8, 12)))


def test_stages_come_first_and_are_known():
    assert set(STAGES) == {*stages.STAGE_FUNCTIONS, "run"}
    assert "train.phases" in PROGRAM.own_options()
    with pytest.raises(InputError, match="STAGE"):
        parse(["out=x"])
