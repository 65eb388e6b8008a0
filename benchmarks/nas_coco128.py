"""Detection on coco128's 96 pictures: the whole chain of stages runs, and mAP rises over training.

    python benchmarks/nas_coco128.py --data ../shared/data/coco128 [--epochs 200]

The set comes with boxes as YOLO writes them, a file of lines `class x y width height` (fractions of the picture) for
each picture; they are written as COCO's JSON first. Then all stages run with a tiny space and schedule, and the network
of least error that the search found is trained from scratch, with its mAP on the pictures trained on and on the others
along the way. 64 pictures of 80 classes are far too few to learn to detect: this shows that the chain works.
"""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from common import write_result

from evonas.data import SPLITS
from evonas.main import main as evonas
from evonas.options import parse
from evonas.search import pick, read_front
from evonas.space import Space
from evonas.supernet import Network, macs, parameters
from evonas.tasks import build_task
from evonas.training import Training, single_plan
from evos.images import read_image
from evos.runs import read_json, seed_everything

ROOT = Path(__file__).resolve().parents[1]
SPACE = ["space.width=16", "space.depths=[1,1,2,1]", "space.heads=[1,2,4,8]"]
FREED = ("state", "mlp_ratio", "expand", "blocks")
PHASES = f"[{{epochs: 10}}, {', '.join(f'{{epochs: 2, {name}: all}}' for name in FREED)}]"


def convert(data: Path, root: Path) -> None:
    """YOLO's layout as COCO's: annotations/instances_SPLIT2017.json, and the pictures linked."""
    names = yaml.safe_load((data / "object_detection" / "config.yaml").read_text())["names"]
    for split in ("train2017", "val2017"):
        images, annotations = [], []
        for number, path in enumerate(sorted((data / "images" / split).glob("*.jpg"))):
            height, width = read_image(path).pixels.shape[:2]
            images.append({"id": number, "file_name": path.name, "height": height, "width": width})
            label = data / "object_detection" / "labels" / split / f"{path.stem}.txt"
            for line in label.read_text().splitlines() if label.exists() else []:
                kind, x, y, w, h = (float(word) for word in line.split())
                box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
                annotations.append({"image_id": number, "category_id": int(kind), "bbox": box, "iscrowd": 0})
        categories = [{"id": kind, "name": name} for kind, name in names.items()]
        path = root / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
        if not (root / split).exists():
            (root / split).symlink_to((data / "images" / split).resolve(), target_is_directory=True)


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "coco128")
    parser.add_argument("--out", type=Path, default=Path("runs/coco128"))
    parser.add_argument("--epochs", type=int, default=200, help="of the found network, from scratch")
    args = parser.parse_args()
    convert(args.data, args.out / "data")
    words = ["--config", str(ROOT / "configs" / "evonas" / "coco.yaml"), f"data.root={args.out / 'data'}"]
    words += ["data.height=96", "data.width=128", "data.in_memory=true", *SPACE, f"train.phases={PHASES}"]
    words += ["train.batch=8", "train.lr=0.001", "train.clip=1.0", "distill.teacher=none"]
    words += ["search.population=8", "search.generations=3", "search.objectives=[error,macs]", "engine.engine=local"]
    words += ["retrain.epochs=10", "retrain.batch=8", "retrain.lr=0.0005", f"out={args.out / 'run'}", "--quiet"]
    evonas(["run", *words])
    _, options = parse(["run", *words])
    out, space = Path(options.run.out), Space(options.space)
    task = build_task(options.data, SPLITS)
    genome = pick(read_front(out / "search" / "front.csv", space), "error")
    seed_everything(0)
    network = Network(space, task.head, genome)
    config = replace(options.train, lr=0.002, schedule="cosine", warmup=50)
    steps = math.ceil(args.epochs * task.size("train") / config.batch)
    device = torch.device("cpu")
    training = Training(network, task, single_plan(space, genome, steps), config, seed=0, device=device)
    curve = []
    for step in range(1, steps + 1):
        training.step(step)
        if step % max(1, steps // 6) == 0:
            found = {split: task.evaluate(network, [genome], split, device)[0] for split in ("train", "test")}
            curve.append({"step": step, **found})
            print(curve[-1], flush=True)
    write_result(
        "nas_coco128",
        {
            "pictures": {split: task.size(split) for split in SPLITS},
            "chain": read_json(out / "evaluate" / "metrics.json"),
            "exported": sorted(path.name for path in (out / "export").iterdir()),
            "from_scratch": {"macs": macs(network, 96, 128), "parameters": parameters(network), "curve": curve},
        },
    )


if __name__ == "__main__":
    main()
