"""The published configurations, from one table.

    python generalizable/published.py

writes configs/generalizable/published/: the 48 that were released with instance pattern composers (Kim et al., CVPR
2023: pattern composers, TransINR and Learned Init), and those of LA-IPC (Lee et al., NeurIPS 2023), of which no code
was released. docs/published.md says what still differs, and why.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from generalizable.options import Options, as_yaml, from_values

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "generalizable" / "published"

COMPOSER, TRANSINR, META = "composer", "transinr", "meta_composer"
LEARNED_INIT, LOCAL = "learned_init", "locality_aware"
TITLES = {
    COMPOSER: "Pattern composer from a transformer (CVPR 2023)",
    TRANSINR: "TransINR (ECCV 2022), as the comparison of instance pattern composers (CVPR 2023)",
    META: "Pattern composer by two inner steps (CVPR 2023)",
    LEARNED_INIT: "Learned Init (CVPR 2021), as the comparison of instance pattern composers (CVPR 2023)",
    LOCAL: "Locality-aware fields (LA-IPC, NeurIPS 2023)",
}
MODELS: dict[str, dict[str, Any]] = {
    COMPOSER: {"name": "pattern_composer", "dropout": 0.1, "initial": "outputs"},
    TRANSINR: {"name": "transinr", "dropout": 0.1, "initial": "outputs"},
    META: {"name": "meta_pattern_composer", "initial": "outputs"},
    LEARNED_INIT: {"name": "learned_init", "adapt_biases": False, "initial": "normal"},
    LOCAL: {"name": "locality_aware", "dropout": 0.1},
}
"""What the released code fixes of each method, by options of ours."""
GRADIENT_FREE = (COMPOSER, TRANSINR, LOCAL)
"""Methods whose patterns come from a transformer."""


@dataclass(frozen=True)
class DataSet:
    """A data set as it was trained on: its options, and those of a model for it."""

    title: str
    train: int
    """Training instances; of scenes with their repetitions in an epoch."""
    data: dict[str, Any]
    model: dict[str, Any] = field(default_factory=dict)
    batch: int = 16
    """Instances of a step on the four GPUs of the released readme."""
    keep_ratio: float | None = None
    """Coordinates of a step; none: all."""


def photos(title: str, train: int, size: int, layout: str, **model: Any) -> DataSet:
    """A set of photos; those of 512² and more have two in a step of each GPU, and a tenth of their pixels."""
    large = size >= 512
    data = {"size": size, "resize": "bilinear", "layout": layout}
    data |= {"augment": True} if layout == "imagenette" else {}
    return DataSet(title, train, data, model, batch=8 if large else 16, keep_ratio=0.1 if large else None)


def speech(seconds: int) -> DataSet:
    """LibriSpeech; coordinates of 3 s are three times as wide in the released code, so ours have 3 × the frequency."""
    data = {"task": "sound", "seconds": float(seconds), "augment": True, "layout": "librispeech100"}
    model = {} if seconds == 1 else {"lowest": seconds * math.pi}
    return DataSet(f"LibriSpeech, {seconds} s", 28539, data, model, keep_ratio=None if seconds == 1 else 0.25)


def scenes(title: str, train: int, views: int) -> DataSet:
    """ShapeNet from ``views`` support views; 128 rays of 25 views of 128² in a step."""
    data = {"task": "views", "size": 128, "views": 25, "rays": "depth", "resize": "bilinear", "layout": "learnit"}
    data |= {"support_views": views, "eval_support_views": views}
    model = {"view_places": True} if views > 1 else {}
    return DataSet(f"ShapeNet {title}, {views} support view{'s' * (views > 1)}", train, data, model, 32, 0.0003125)


FFHQ = 60000
SETS: dict[str, DataSet] = {
    "imagenette178": photos("ImageNette, 178²", 9469, 178, "imagenette"),
    "celeba178": photos("CelebA, 178²", 162770, 178, "celeba", frequency=64.0),
    "ffhq178": photos("FFHQ, 178²", FFHQ, 178, "ffhq", frequency=64.0),
    "ffhq256": photos("FFHQ, 256²", FFHQ, 256, "ffhq", frequency=64.0),
    "ffhq512": photos("FFHQ, 512²", FFHQ, 512, "ffhq", patch=32),
    "ffhq1024": photos("FFHQ, 1024²", FFHQ, 1024, "ffhq", patch=32, frequency=256.0),
    "librispeech_1s": speech(1),
    "librispeech_3s": speech(3),
    **{
        f"{title}_{views}view{'s' * (views > 1)}": scenes(title, scenes_of_an_epoch, views)
        for title, scenes_of_an_epoch in (("cars", 2 * 2458), ("chairs", 4612), ("lamps", 3 * 1624))
        for views in range(1, 6)
    },
}
"""The data sets by name. Scenes of ShapeNet: as "learnit" lists them, cars twice and lamps three times in an epoch."""

EPOCHS = {"imagenette": 4000, "celeba": 300, "ffhq178": 1000, "ffhq": 400, "librispeech": 1000, "lamps": 400}
"""Of transformers, by how the name of the data set begins; the first that fits."""
EPOCHS_OF_INNER_LOOPS = {"imagenette178": 800, "ffhq256": 200}
INNER_LOOPS_ON_FFHQ: dict[str, tuple[float, float]] = {META: (0.01, 0.001), LEARNED_INIT: (0.001, 0.0003)}
"""Rates of the inner and the outer loop, which begins with half an epoch of warm-up."""
NOTES = {
    (TRANSINR, "chairs_5views"): (
        "As released it cannot run: 1280 wide blocks on tokens 768 wide, places for 512 of 1280 patches. This is what",
        "the other four numbers of views have.",
    )
}
"""What is said in a file's head, by method and data set."""
IN_THE_PAPER_OF_LOCAL = ("imagenette178", "celeba178", "ffhq178", "ffhq256", "ffhq512", "ffhq1024")


def epochs(name: str) -> int:
    """Of a transformer on a data set."""
    return next((count for start, count in EPOCHS.items() if name.startswith(start)), 1000)


def combinations() -> Iterator[tuple[str, str]]:
    """(method, data set) of every configuration."""
    for method in (COMPOSER, TRANSINR):
        yield from ((method, name) for name in SETS if name != "ffhq256")
    yield from ((method, name) for method in (META, LEARNED_INIT) for name in EPOCHS_OF_INNER_LOOPS)
    views = [name for name in SETS if name.endswith("_1view")]
    yield from ((LOCAL, name) for name in (*IN_THE_PAPER_OF_LOCAL, *views))


def values(method: str, name: str) -> dict[str, Any]:
    """The options of a configuration, nested, as ``options.from_values`` takes them."""
    of_transformer, data = method in GRADIENT_FREE, SETS[name]
    steps_of_epoch = math.ceil(data.train / data.batch)
    count = epochs(name) if of_transformer else EPOCHS_OF_INNER_LOOPS[name]
    train: dict[str, Any] = {"batch": data.batch, "steps": count * steps_of_epoch}
    model = MODELS[method] | {key: value for key, value in data.model.items() if of_transformer or key != "patch"}
    if method == LOCAL:  # its bands were published for 178²: the highest is 128 on each set
        model = {key: value for key, value in model.items() if key != "frequency"}
    if of_transformer and name.startswith("imagenette"):
        train["coord_noise"] = 1.0
    if not of_transformer and name.startswith("ffhq"):
        model["inner_lr"], train["lr"] = INNER_LOOPS_ON_FFHQ[method]
        train["warmup"] = steps_of_epoch // 2
    found: dict[str, Any] = {"model": model, "data": data.data, "train": train}
    if data.keep_ratio is not None:
        found["selector"] = {"name": "uniform", "keep_ratio": data.keep_ratio}
    return found


def options_of(method: str, name: str) -> Options:
    """The options of a configuration, without its data set's folder."""
    return from_values(values(method, name))


def config_text(method: str, name: str) -> str:
    """The config file of a configuration."""
    lines = [f"{TITLES[method]} on {SETS[name].title}.", *NOTES.get((method, name), ())]
    if method == LOCAL:
        lines.append("No code was released; options the paper leaves open are those of instance pattern composers.")
    lines.append("data.root=DIR out=runs/NAME; docs/published.md says what differs from the released code.")
    layout = f"data.layout: {SETS[name].data['layout']}\n"  # which as_yaml leaves to data.sources
    return "".join(f"# {line}\n" for line in lines) + as_yaml(options_of(method, name)) + layout


def files() -> dict[str, str]:
    """Every configuration: its file's name and text."""
    return {f"{method}_{name}.yaml": config_text(method, name) for method, name in combinations()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file_name, text in files().items():
        (FOLDER / file_name).write_text(text)
