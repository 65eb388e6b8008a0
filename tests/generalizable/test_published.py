"""The published configurations: the files are the table's, and the table has what was released."""

import json
import math
from pathlib import Path

import pytest
import torch

from generalizable import published
from generalizable.main import main
from generalizable.models import build_model
from generalizable.options import parse
from generalizable.tasks import build_task

RELEASED = json.loads((Path(__file__).parent / "released_configs.json").read_text())
"""What the 48 released files say, by their path, as far as it is used: facts, recorded from the authors' repository."""
TRAIN = {"imagenette": 9469, "celeba": 162770, "ffhq": 60000, "librispeech": 28539}
TRAIN |= {"LearnitShapenet-cars": 2458, "LearnitShapenet-chairs": 4612, "LearnitShapenet-lamps": 1624}


def our_name(path: str) -> tuple[str, str]:
    """(method, data set) of a released file."""
    folder, _, stem = path.rpartition("/")
    method = {
        "low_rank_modulated_transinr": "composer",
        "low_rank_transinr_nerf": "composer",
        "transinr": "transinr",
        "transinr_nerf": "transinr",
        "low_rank_modulated_meta": "meta_composer",
        "learned_init": "learned_init",
    }[folder.rpartition("/")[2]]
    if folder.startswith("nvs"):
        title, _, views = stem.partition("shapenet_")[2].partition("_")
        return method, f"{title}_{views or '1view'}"
    if folder.startswith("audio"):
        return method, f"librispeech_{stem.rpartition('_')[2]}"
    return method, stem.partition("_")[0]


def test_the_files_are_what_the_table_says():
    found = {path.name: path.read_text() for path in published.FOLDER.glob("*")}
    assert found == published.files()
    assert max(len(line) for text in found.values() for line in text.splitlines()) <= 120


def test_every_released_configuration_is_there_once():
    named = [our_name(path) for path in RELEASED]
    ours = list(published.combinations())
    assert len(set(named)) == len(named) == 48
    assert {pair for pair in ours if pair[0] != "locality_aware"} == set(named) and len(ours) == 57


@pytest.mark.parametrize("path", RELEASED)
def test_the_options_are_the_released_ones(path):
    method, name = our_name(path)
    options = published.options_of(method, name)
    theirs, (model, data, train) = RELEASED[path], (options.model, options.data, options.train)
    arch = {key.removeprefix("arch."): value for key, value in theirs.items() if key.startswith("arch.")}
    kind, is_views = model.settings(build_task(data).model_task), arch["type"].endswith("nerf")
    # The field.
    sigma, wide = arch["hyponet.fourier_mapping.ff_sigma"], arch["coord_sampler.coord_range"][1]
    assert kind.features == arch["hyponet.fourier_mapping.ff_dim"]
    assert kind.frequency == (2**sigma if is_views else sigma)
    assert kind.lowest == pytest.approx(1 if is_views else math.pi * wide)
    assert (kind.layers, [model.hidden_features]) == (arch["hyponet.n_layer"], arch["hyponet.hidden_dim"])
    assert kind.output_bias == arch["hyponet.output_bias"]
    # Where patterns come from.
    if arch["type"].startswith("meta"):
        assert (model.name == "meta_pattern_composer") == arch["use_factorization"]
        assert (model.inner_lr, model.inner_steps) == (arch["inner_lr"], arch["n_inner_step"])
    else:
        assert kind.patch == arch["data_encoder.encoder_spec.patch_size"]
        assert (model.heads, model.blocks) == (arch["transformer.block.n_head"], arch["transformer.n_layer"])
        assert model.dropout == 0.1
    if model.name in ("pattern_composer", "meta_pattern_composer"):
        assert [model.rank] == arch.get("n_weight_groups", arch.get("rank"))
        assert [model.modulated] == arch["modulated_layer_idxs"]
    if model.name == "transinr":
        assert [model.groups or kind.weight_tokens] == arch["n_weight_groups"]
    # What is trained on, and how long.
    rays = theirs.get("loss.subsample.train_num_rays")
    ratio = rays / (25 * 128**2) if rays else theirs["loss.subsample.ratio"]
    if theirs["loss.subsample.type"] is None:
        assert options.selector.name == "full"
    else:
        assert (options.selector.name, options.selector.keep_ratio) == ("uniform", pytest.approx(ratio))
    assert train.coord_noise == (1.0 if theirs.get("loss.coord_noise") == "coordwise" else 0.0)
    assert train.batch == 4 * theirs["experiment.batch_size"]
    epoch = math.ceil(TRAIN[theirs["dataset.type"]] * theirs.get("dataset.train_config.repeat", 1) / train.batch)
    assert train.steps == theirs["experiment.epochs"] * epoch
    assert train.lr_at(train.steps) == theirs["optimizer.init_lr"]
    assert train.warmup == theirs["optimizer.warmup.epoch"] * epoch
    if is_views:
        assert data.support_views == data.eval_support_views == theirs["dataset.train_config.n_support"]
    elif "dataset.transforms.patch_secs" in theirs:
        assert data.seconds == theirs["dataset.transforms.patch_secs"] and data.layout == "librispeech100"
    else:
        assert theirs["dataset.transforms.type"].endswith(f"{data.size}x{data.size}")


@pytest.mark.parametrize(("method", "name"), list(published.combinations()))
def test_every_file_is_read_and_its_model_built(method, name):
    options = parse(["--config", str(published.FOLDER / f"{method}_{name}.yaml"), "data.root=a"])
    expected = published.options_of(method, name)
    assert (options.model, options.train, options.selector) == (expected.model, expected.train, expected.selector)
    assert (options.data, options.sources[0].layout) == (
        parse([f"data.{key}={value}" for key, value in published.SETS[name].data.items()] + ["data.root=a"]).data,
        published.SETS[name].data["layout"],
    )
    with torch.device("meta"):
        model = build_model(options.model, build_task(options.data).model_task)
    released = {our_name(path): values for path, values in RELEASED.items()}.get((method, name), {})
    places = released.get("arch.latent_mapping.n_patches")
    if places is not None and (method, name) != ("transinr", "chairs_5views"):
        assert model.hypernetwork.places.shape == (places, 768)
    elif name == "chairs_5views":
        assert model.hypernetwork.places.shape == (1280, 768)


def test_a_published_configuration_trains_at_a_small_size(tmp_path, scenes):
    small = ["model.width=8", "model.blocks=1", "model.heads=2", "model.hidden_features=8", "model.features=6"]
    words = [f"--config={published.FOLDER / 'composer_cars_2views.yaml'}", "--quiet", "device=cpu", *small]
    words += ["data.size=8", "data.views=6", "data.layout=auto", f"data.root={scenes}", f"out={tmp_path / 'run'}"]
    main([*words, "train.steps=3", "train.batch=2", "model.rank=4", "selector.keep_ratio=0.1", "model.samples=4"])
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    (source,) = metrics["sources"].values()
    assert math.isfinite(metrics["psnr"]) and list(source["psnr_by_support_views"]) == ["1", "2"]
