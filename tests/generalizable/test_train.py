"""Training: the step, several processes, stopping, resuming, evaluation, what a run leaves behind."""

import json
import math
import os
import shutil
import signal
import tarfile

import numpy as np
import pytest
import soundfile
import torch

from evos.coords import grid
from evos.distributed import World
from evos.errors import InputError
from evos.images import read_image
from evos.metrics import ssim
from evos.runs import load_checkpoint
from generalizable.codec import Variant
from generalizable.data import Batch, Instances, collate, find_sources, training_batches
from generalizable.inner import predict
from generalizable.instances import square
from generalizable.main import main
from generalizable.options import DataConfig, SourceConfig, TrainConfig, parse
from generalizable.tasks import ImageTask, SoundTask, ViewTask, take, waveform
from generalizable.trainer import Trainer, learning_rate

CPU = torch.device("cpu")
EXACT = ["train.coord_noise=0", "selector=full"]
META = ["model=meta_pattern_composer", "model.rank=4", "model.inner_lr=0.1"]


def without_hypernetwork(words):
    return [
        word for word in words if not word.startswith(("model.width", "model.blocks", "model.heads", "model.patch"))
    ]


def build(words, root) -> tuple[Trainer, Instances]:
    options = parse([*words, f"data.root={root}", "out=none"])
    sources = find_sources(options.sources, options.data, seed=0, world=World())
    return Trainer(options, World(), CPU, 11), Instances(sources.train, None)


def batch_of(instances: Instances, *indices: int) -> Batch:
    return collate([instances[0, index, 0] for index in indices])


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def losses(folder):
    return [loss for _, loss in metrics_of(folder)["loss_curve"]]


# ---- pure functions


def test_cells_are_in_the_order_of_coordinates():
    image = torch.rand(2, 3, 4, 5)
    values = ImageTask(DataConfig()).cells(image)
    for i, (y, x) in enumerate((grid((4, 5)) + 1) / 2):
        assert torch.equal(values[:, i], image[:, :, round(float(y * 3)), round(float(x * 4))])
    views = torch.rand(2, 6, 3, 4, 4)
    assert torch.equal(ViewTask(DataConfig(task="views")).cells(views)[:, 3 * 16 + 2 * 4 + 1], views[:, 3, :, 2, 1])
    index = torch.tensor([[3, 1], [7, 0]])
    assert torch.equal(take(values, index)[1, 0], values[1, 7]) and take(values, None) is values


def test_psnr_is_that_of_each_instance():
    truth = torch.full((2, 10, 3), 0.5)
    found = ImageTask(DataConfig()).psnr(torch.stack([truth[0] + 0.1, truth[1] + 5]), truth)
    assert found.tolist() == pytest.approx([20, -20 * math.log10(0.5)], abs=1e-4)
    sound = SoundTask(DataConfig(task="sound"))
    assert float(sound.psnr(torch.zeros(1, 4, 1), torch.full((1, 4, 1), -0.1))) == pytest.approx(20, abs=1e-4)


def test_the_learning_rate_warms_up_and_falls():
    config = TrainConfig(steps=110, warmup=10, lr=2.0, schedule="cosine")
    rates = [learning_rate(config, step) for step in (1, 10, 60, 110)]
    assert rates == pytest.approx([0.2, 2.0, 1.0, 0.0])
    assert learning_rate(TrainConfig(lr=2.0), 99) == 2.0


def test_a_waveform_is_drawn_where_the_sound_is():
    picture = waveform(torch.cat([torch.full((256,), 1.0), torch.full((256,), -1.0)]), height=5, width=2)
    assert picture[0].tolist() == [[0, 1], [1, 1], [1, 1], [1, 1], [1, 0]]
    short = waveform(torch.tensor([1.0, -1.0]), height=5, width=4)  # shorter than the picture is wide
    assert short[0].tolist() == [[0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]]


# ---- one step


@pytest.mark.parametrize("model", ["hyper", "meta"])
def test_a_step_is_adam_on_the_mean_squared_error_of_the_selected_points(tiny, pictures, model):
    words = [*tiny, "selector=uniform", "selector.keep_ratio=0.25", "train.lr=0.01"]
    words = words if model == "hyper" else [*without_hypernetwork(words), *META]
    trainer, instances = build(words, pictures)
    twin, _ = build(words, pictures)
    batch = batch_of(instances, 2, 5, 7, 10)
    selection = twin.selector.select(1, torch.arange(4))
    assert selection.index.shape == (4, 16)
    signal = batch.instance.signal
    data = (
        {"coords": grid((8, 8), centres="cell")[None], "target": twin.task.cells(signal)} if model == "meta" else signal
    )
    prediction = predict(twin.model, twin.model.encode(data), grid((8, 8), centres="cell")[selection.index])
    target = torch.stack([twin.task.cells(signal)[i, selection.index[i]] for i in range(4)])
    loss = (prediction - target).square().mean()
    loss.backward()
    torch.optim.Adam(twin.model.parameters(), lr=0.01).step()
    assert float(trainer.step(1, batch)) == pytest.approx(float(loss.detach()), rel=1e-6)
    for mine, theirs in zip(trainer.model.parameters(), twin.model.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_errors_are_remembered_by_instance_and_set_the_odds(tiny, pictures):
    words = [*tiny, "selector=error", "selector.keep_ratio=0.5", "selector.uniform_ratio=0", "train.lr=1e-9"]
    trainer, instances = build(words, pictures)
    for step, indices in enumerate(((0, 1, 2, 3), (4, 5, 6, 7), (3, 2, 1, 0)), start=1):
        trainer.step(step, batch_of(instances, *indices))
    seen = trainer.selector.cache.error > 0
    assert bool(seen[:4].any(1).all()) and not bool(seen[8:].any())
    batch = batch_of(instances, 2, 9, 0, 4)
    with trainer.codec.evaluating() as model:  # the weights have not moved: the residual is what it was
        truth = trainer.task.cells(batch.instance.signal)
        values = predict(model, model.encode(batch.instance.signal), grid((8, 8), centres="cell")[None])
        error = (values - truth).square().mean(-1)
    rows = trainer.assign(batch.keys)
    assert rows.tolist() == [2, 8, 0, 4]
    odds, seen = trainer.selector.odds(rows), seen[rows]
    assert odds[1].tolist() == [1.0] * 64  # an instance of which nothing is known
    for i in (0, 2, 3):
        expected = error[i].sqrt() / error[i].sqrt()[seen[i]].mean()
        assert torch.allclose(odds[i][seen[i]], expected[seen[i]], rtol=1e-3)
        assert (odds[i][~seen[i]] == 1).all()


def test_another_seed_selects_other_points(tiny, pictures):
    words = [*tiny, "selector=uniform", "selector.keep_ratio=0.5"]
    points = [build([*words, f"seed={seed}"], pictures)[0].selector.select(1).index for seed in (3, 3, 4)]
    assert torch.equal(points[0], points[1]) and not torch.equal(points[0], points[2])


def test_a_row_that_changes_hands_forgets(tiny, pictures):
    trainer, instances = build([*tiny, "selector=error", "selector.keep_ratio=0.5", "train.cache_rows=4"], pictures)
    trainer.step(1, batch_of(instances, 0, 1, 2, 3))
    assert trainer.rows.capacity == 4 and bool((trainer.selector.cache.error > 0).any(1).all())
    assert trainer.assign(batch_of(instances, 3, 8, 1, 9).keys).tolist() == [3, 0, 1, 2]
    assert (trainer.selector.cache.error > 0).any(1).tolist() == [False, True, False, True]


def test_the_inner_loop_may_see_the_selected_points_alone(tiny, pictures):
    words = [*without_hypernetwork(tiny), *META, "selector=uniform", "selector.keep_ratio=0.25"]
    for option, count in (("all", 64), ("selected", 16)):
        trainer, instances = build([*words, f"train.inner_points={option}"], pictures)
        instance = batch_of(instances, 0, 1).instance
        chosen = (torch.rand(2, 16, 2), torch.rand(2, 16, 3))
        data = trainer.support(instance, [], *chosen)
        assert data["coords"].shape[1] == data["target"].shape[1] == count
        assert option == "all" or data["target"] is chosen[1]
        assert trainer.codec.support(instance, [])["target"].shape[1] == 64  # evaluation


def test_noise_stays_in_its_cell(tiny, pictures):
    trainer, instances = build([*tiny, "train.coord_noise=1"], pictures)
    offset = trainer.task.points(batch_of(instances, 0).instance, noise=1.0) - grid((8, 8), centres="cell")
    assert 0.8 / 8 < float(offset.abs().max()) <= 1 / 8 and abs(float(offset.mean())) < 0.02


@pytest.mark.parametrize("chosen", ["all", "some"])
def test_of_finer_pictures_a_random_pixel_of_each_cell_is_trained_on(tiny, pictures, chosen):
    trainer, instances = build([*tiny, "data.size=8", "data.fine=3"], pictures)
    instance = batch_of(instances, 0, 1).instance
    assert instance.signal.shape == (2, 3, 8, 8) and instance.finer.shape == (2, 3, 24, 24)
    means = instance.finer.unfold(2, 3, 3).unfold(3, 3, 3).mean((-1, -2))
    assert (instance.signal - means).abs().mean() < 0.02
    index = None if chosen == "all" else torch.tensor([[0, 9, 63, 9], [5, 5, 62, 1]])
    places = []
    for _ in range(20):
        points, target = trainer.task.training_points(instance, index, 0.0)
        assert points.shape == ((1, 64, 2) if index is None else (2, 4, 2)) and len(target) == 2
        row, column = ((points + 1) / 2 * 24 - 0.5).round().long().unbind(-1)  # cells' centres
        cells = torch.arange(64)[None] if index is None else index
        assert torch.equal(row // 3 * 8 + column // 3, cells)
        for one in range(2):
            at = one if index is not None else 0
            assert torch.equal(target[one], instance.finer[one][:, row[at], column[at]].T)
        places.append(torch.stack((row % 3, column % 3)))
    assert all((torch.stack(places) == place).any() for place in range(3))
    assert trainer.task.evaluation_target(instance).shape == (2, 64, 3)


def test_finer_pictures_are_read_for_training_alone(tiny, pictures, monkeypatch):
    sides: list[tuple[int, ...]] = []
    monkeypatch.setattr("generalizable.tasks.square", lambda *args: (sides.append(args[1]), square(*args))[1])
    argv = [*tiny, "data.size=8", "data.fine=3", f"data.root={pictures}"]
    options = parse(argv)
    found = find_sources(options.sources, options.data, seed=0, world=World())
    (train,), (test,) = found.train, found.test.values()
    instance = train.get(0)
    assert instance.finer.shape == (3, 24, 24) and sides == [24, 8]
    assert test.get(0).finer is None and sides == [24, 8, 8]
    # Patterns are made from the same picture in training, in evaluations and by evos encode.
    path, _ = train.entries[0]
    _, (whole,) = train.task.cut(path, crop=True)
    assert torch.equal(instance.signal, whole.signal)


def test_views_are_made_from_support_rays_and_judged_on_held_out_ones(tiny, scenes):
    words = [*tiny, "data.task=views", "data.views=6", "data.eval_support_views=3", "model.samples=4"]
    trainer, instances = build(words, scenes)
    instance = batch_of(instances, 0, 1).instance
    data = trainer.codec.support(instance, [2, 4])
    assert torch.equal(data["images"], instance.signal[:, [2, 4]])
    assert torch.allclose(data["origins"][:, 1, :, 3, 5], instance.poses[:, 4, :, 3])
    assert data["directions"].norm(dim=2).sub(1).abs().max() < 1e-6
    assert trainer.task.evaluation_views == [3, 4, 5]
    assert trainer.codec.variants == [Variant(2), Variant(3), Variant(1)]
    meta, _ = build([*without_hypernetwork(words), *META, "train.inner_rays=10"], scenes)
    support = meta.codec.support(instance, [2])
    assert support["coords"].shape == (2, 10, 6) and meta.codec.adapts_in_inner_loop
    view = meta.task.cells(instance.signal[:, [2]])
    assert all(any(torch.equal(ray, pixel) for pixel in view[0]) for ray in support["target"][0])


def test_chunks_do_not_change_an_evaluation(tiny, pictures):
    whole, instances = build(tiny, pictures)
    chunked, _ = build([*tiny, "train.chunk=10"], pictures)
    instance = batch_of(instances, 0, 1, 2).instance
    with whole.codec.evaluating(), chunked.codec.evaluating():
        found = [trainer.codec.measure(instance, Variant()) for trainer in (whole, chunked)]
    assert torch.allclose(*found, atol=1e-5) and chunked.codec.points_in_a_pass(3) == 3


def test_an_evaluation_draws_nothing_from_the_trainings_generators(tiny, scenes):
    words = [*without_hypernetwork(tiny), *META, "data.task=views", "data.views=6", "train.inner_rays=10"]
    trainer, instances = build([*words, "model.samples=4"], scenes)
    before = torch.get_rng_state()
    with trainer.codec.evaluating():
        first = trainer.codec.measure(batch_of(instances, 0).instance, Variant(1, 1))
    assert torch.equal(torch.get_rng_state(), before)
    with trainer.codec.evaluating():
        assert torch.equal(trainer.codec.measure(batch_of(instances, 0).instance, Variant(1, 1)), first)


# ---- runs


def test_a_run_leaves_metrics_pictures_and_what_repeats_it(tiny, pictures, tmp_path):
    main([*tiny, f"data.root={pictures}", f"out={tmp_path / 'a'}", "train.ema=0.5", "train.clip=0.1", "precision=bf16"])
    metrics = metrics_of(tmp_path / "a")
    assert metrics["psnr"] == metrics["sources"][pictures.name]["psnr"] > 3
    assert metrics["sources"][pictures.name]["instances"] == 1 and metrics["skipped"]["count"] == 0
    assert metrics["points_trained"] == 6 * 4 * 64 and len(metrics["loss_curve"]) == 6
    for scale in (1, 3):
        shown = read_image(tmp_path / "a" / "images" / f"{pictures.name}_{scale}x.png").pixels
        assert shown.shape == (2 * 8 * scale, 8 * scale, 3)
    main(["--config", str(tmp_path / "a" / "config.yaml"), f"out={tmp_path / 'b'}"])
    assert losses(tmp_path / "b") == losses(tmp_path / "a")
    assert (tmp_path / "a" / "config.yaml").read_text().startswith("# Repeats this run")


def test_the_moving_average_is_what_is_evaluated(tiny, pictures):
    trainer, instances = build([*tiny, "train.ema=0.5", "train.lr=0.1"], pictures)
    before = trainer.model.field.layers[0].weight.detach().clone()
    trainer.step(1, batch_of(instances, 0, 1, 2, 3))
    first = trainer.model.field.layers[0].weight.detach().clone()
    trainer.step(2, batch_of(instances, 0, 1, 2, 3))
    second = trainer.model.field.layers[0].weight.detach()
    # The first update copies the weights.
    assert torch.allclose(trainer.best.field.layers[0].weight, 0.5 * first + 0.5 * second) and not first.equal(before)


def test_several_sources_are_reported_one_by_one_and_held_out_ones_are_not_trained_on(
    tiny, pictures, tmp_path, write_picture
):
    for i in range(3):
        write_picture(tmp_path / "other" / f"{i}.png", 90 + i)
    sources = f"data.sources=[{{root: {pictures}, name: a}}, {{root: {tmp_path / 'other'}, weight: 0}}]"
    main([*tiny, sources, f"out={tmp_path / 'run'}"])
    metrics = metrics_of(tmp_path / "run")
    assert [(name, entry["held_out"]) for name, entry in metrics["sources"].items()] == [("a", False), ("other", True)]
    assert metrics["psnr"] == metrics["sources"]["a"]["psnr"] and len(load_checkpoint(tmp_path / "run/checkpoint.pt"))


def test_sounds_are_written_to_listen_to(tiny, sounds, tmp_path):
    words = [*tiny, "data.task=sound", "data.seconds=0.1", "data.rate=4000", f"data.root={sounds}"]
    main([*words, f"out={tmp_path / 'run'}", "selector=error"])
    wave, rate = soundfile.read(tmp_path / "run" / "images" / f"{sounds.name}_0_3x.wav")
    assert (len(wave), rate) == (1200, 12000)
    truth, rate = soundfile.read(tmp_path / "run" / "images" / f"{sounds.name}_0_truth.wav")
    assert (len(truth), rate) == (400, 4000) and np.abs(truth).max() == pytest.approx(0.5, abs=0.02)


def test_views_are_reported_by_support_views_and_by_inner_step(tiny, scenes, tmp_path):
    words = [*without_hypernetwork(tiny), *META, "data.task=views", "data.views=6", "train.inner_rays=16"]
    words += ["model.samples=4", "selector=error", "selector.keep_ratio=0.05", f"data.root={scenes}"]
    main([*words, "data.eval_support_views=2", f"out={tmp_path / 'run'}"])
    entry = metrics_of(tmp_path / "run")["sources"][scenes.name]
    assert sorted(entry["psnr_by_support_views"]) == ["1", "2"]
    assert list(entry["psnr_by_inner_step"]) == ["0", "1", "2"]
    assert entry["psnr"] == entry["psnr_by_support_views"]["1"] == entry["psnr_by_inner_step"]["2"]


def test_damaged_files_are_counted_and_named(tiny, pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "data")
    (tmp_path / "data" / "03.png").write_bytes(b"x")
    main([*tiny, f"data.root={tmp_path / 'data'}", f"out={tmp_path / 'run'}"])
    skipped = metrics_of(tmp_path / "run")["skipped"]
    assert skipped["count"] == 1 and "03.png" in skipped["files"][0]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_part_in_which_nothing_can_be_read_is_one_line_before_training(tiny, pictures, tmp_path, refused, workers):
    words = [*tiny, f"data.workers={workers}", f"out={tmp_path / 'run'}"]
    for part, others in (("test", "train"), ("train", "test")):
        folder = tmp_path / part
        shutil.copytree(pictures, folder / others)
        (folder / part).mkdir()
        for i in range(3):
            (folder / part / f"{i}.png").write_bytes(b"x")
        line = refused(*words, f"data.root={folder}")
        assert f"of whose {'test' if part == 'test' else 'training'} part nothing can be read" in line
        assert "0.png" in line or "2.png" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_data_that_vanish_in_training_are_one_line(tiny, pictures, tmp_path, workers):
    shutil.copytree(pictures, tmp_path / "data")
    config = DataConfig(size=8, workers=workers)
    sources = find_sources([SourceConfig(root=str(tmp_path / "data"))], config, seed=0, world=World())
    for path in (tmp_path / "data").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(InputError, match="nothing can be read, for example"):
        next(training_batches(sources, config, 4, seed=0, world=World()))


def test_a_run_says_how_many_instances_it_trains_on_and_skips(tiny, pictures, tmp_path, capsys, write_picture):
    shutil.copytree(pictures, tmp_path / "a")
    for name in ("00", "05"):
        (tmp_path / "a" / f"{name}.png").write_bytes(b"x")
    for i in range(5):
        write_picture(tmp_path / "b" / f"{i}.png", 90 + i)
    words = [word for word in tiny if word != "--quiet"]
    sources = f"data.sources=[{tmp_path / 'a'}, {{root: {tmp_path / 'b'}, weight: 0}}]"
    main([*words, sources, f"out={tmp_path / 'run'}"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["a: 11 to train on, 1 held out", "b: 0 to train on, 1 held out"]
    (line,) = [line for line in lines if "skipped" in line]
    assert line.startswith("a: skipped 2: ") and "0.png" in line and "1 more in the run's metrics" in line
    metrics = metrics_of(tmp_path / "run")
    assert [entry["trained_on"] for entry in metrics["sources"].values()] == [11, 0]


def test_a_finished_run_goes_on_for_more_steps(tiny, pictures, tmp_path, capsys, refused):
    words = [*tiny, f"data.root={pictures}", f"out={tmp_path / 'run'}", "train.schedule=cosine", "train.lr=0.01"]
    main(words)
    first = metrics_of(tmp_path / "run")
    capsys.readouterr()
    main([*words, "--resume", "train.steps=9"])
    assert "notice: train.steps: 6 before, 9 now" in capsys.readouterr().err
    metrics = metrics_of(tmp_path / "run")
    assert metrics["steps"] == 9 and metrics["loss_curve"][:6] == first["loss_curve"]
    assert metrics["points_trained"] == first["points_trained"] * 3 // 2
    assert "9 as" in refused(*words, "--resume", "train.steps=8")


def test_mistakes_end_in_one_line(tiny, pictures, tmp_path, refused):
    run = f"out={tmp_path / 'run'}"
    assert "data.root: got None" in refused(*tiny, run)
    assert "a folder that exists" in refused(*tiny, run, "data.root=none/here")
    assert "did you mean --train.batch" in refused(*tiny, run, "train.bach=3")
    assert "a checkpoint, for --eval" in refused(*tiny, run, f"data.root={pictures}", "--eval")
    assert not (tmp_path / "run").exists()
    main([*tiny, run, f"data.root={pictures}"])
    assert "--resume, or --overwrite" in refused(*tiny, run, f"data.root={pictures}")
    assert "train.lr" in refused(*tiny, run, f"data.root={pictures}", "train.lr=3", "--resume")


def test_a_diverging_loss_ends_the_run_and_keeps_the_checkpoint(tiny, pictures, tmp_path, refused):
    run = [*tiny, f"data.root={pictures}", f"out={tmp_path / 'run'}", "train.lr=1e30", "save_every=1"]
    assert refused(*run).startswith("loss: got nan at step")
    assert not (tmp_path / "run" / "metrics.json").exists()


# ---- stopping and going on


def stop_after(monkeypatch, steps):
    """Send this process a SIGTERM in step ``steps``."""
    original = Trainer.step

    def step(self, number, batch):
        if number == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, number, batch)

    monkeypatch.setattr(Trainer, "step", step)


@pytest.mark.parametrize(("model", "optimizer"), [("hyper", "adam"), ("meta", "adam"), ("hyper", "muon")])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    tiny, pictures, tmp_path, monkeypatch, capsys, model, optimizer
):
    words = [*tiny, f"data.root={pictures}", "selector=error", "train.coord_noise=1", "train.ema=0.9"]
    words += [f"train.optimizer={optimizer}", "train.clip_ratio=1"]
    words = words if model == "hyper" else [*without_hypernetwork(words), *META]
    main([*words, f"out={tmp_path / 'whole'}"])
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(SystemExit) as stopped:
            main([*words, f"out={tmp_path / 'parts'}"])
    assert stopped.value.code == 143 and "--resume" in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "parts" / "checkpoint.pt")["step"] == 3
    main([*words, f"out={tmp_path / 'parts'}", "--resume"])
    whole, parts = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("whole", "parts"))
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    for name, tensor in whole["model"].items():
        assert torch.equal(parts["model"][name], tensor)
    assert whole["gradient_norm"] > 0 and torch.equal(parts["gradient_norm"], whole["gradient_norm"])
    for name in ("error", "generator"):
        own = [state["processes"][0]["selector"][name] for state in (whole, parts)]
        assert torch.equal(*own)
    assert metrics_of(tmp_path / "parts")["psnr"] == metrics_of(tmp_path / "whole")["psnr"]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_resumed_run_on_shards_equals_the_uninterrupted_one(tiny, pictures, tmp_path, monkeypatch, streamed):
    for part in range(3):
        with tarfile.open(tmp_path / f"{part}.tar", "w") as shard:
            for i, file in enumerate(sorted(pictures.glob("*.png"))[4 * part : 4 * part + 4]):
                shard.add(file, arcname=f"{i}.png")
    root = f"pipe:cat {tmp_path}/{{0,1,2}}.tar" if streamed else str(tmp_path)
    words = [*tiny, f"data.sources=[{{root: '{root}', name: s}}]", "selector=error", "train.lr=0.01"]
    main([*words, f"out={tmp_path / 'whole'}"])
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(SystemExit):
            main([*words, f"out={tmp_path / 'parts'}"])
    main([*words, f"out={tmp_path / 'parts'}", "--resume"])
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    whole, parts = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("whole", "parts"))
    for name, tensor in whole["model"].items():
        assert torch.equal(parts["model"][name], tensor)
    assert parts["processes"][0]["rows"] == whole["processes"][0]["rows"]


def test_muon_steps_differ_from_adams_in_the_matrices_within_and_nowhere_else(tiny, pictures, tmp_path):
    after = {}
    for name in ("adam", "muon"):
        main([*tiny, f"data.root={pictures}", "train.steps=1", f"train.optimizer={name}", f"out={tmp_path / name}"])
        after[name] = load_checkpoint(tmp_path / name / "checkpoint.pt")["model"]
    differ = {name for name, tensor in after["adam"].items() if not torch.equal(tensor, after["muon"][name])}
    assert "hypernetwork.blocks.0.qkv.weight" in differ and "field.layers.1.weight" in differ
    assert differ.isdisjoint({"field.layers.0.weight", "head.1.weight", "hypernetwork.places", "field.layers.1.bias"})


def test_resuming_a_finished_run_only_reports_it(tiny, pictures, tmp_path, capsys):
    words = [*tiny, f"data.root={pictures}", f"out={tmp_path / 'run'}"]
    main(words)
    first = capsys.readouterr().out
    before = (tmp_path / "run" / "metrics.json").read_bytes()
    main([*words, "--resume"])
    assert (tmp_path / "run" / "metrics.json").read_bytes() == before and capsys.readouterr().out == first


# ---- fine-tuning


def test_a_run_begins_with_the_weights_of_another(tiny, pictures, tmp_path, write_picture, refused):
    for i in range(12):
        write_picture(tmp_path / "others" / f"{i:02}.png", 50 + i)
    own = [word for word in tiny if not word.startswith("model.")]
    first = [*tiny, f"data.root={pictures}", f"out={tmp_path / 'first'}", "train.lr=0.01", "train.ema=0.5"]
    main(first)
    tuned = [*own, f"data.root={tmp_path / 'others'}", f"train.init={tmp_path / 'first'}", "train.ema=0.9"]
    # A rate of (nearly) 0 leaves what the training began with: the average of the first run.
    main([*tuned, f"out={tmp_path / 'still'}", "train.lr=1e-12", "train.steps=1"])
    state = load_checkpoint(tmp_path / "first" / "checkpoint.pt")["ema"]
    still = load_checkpoint(tmp_path / "still" / "checkpoint.pt")["model"]
    for name, tensor in still.items():
        assert torch.allclose(tensor, state[f"module.{name}"], atol=1e-6)
    # A resumption needs the first run no more, and repeats the run.
    main([*tuned, f"out={tmp_path / 'tuned'}"])
    with_file = ["--config", str(tmp_path / "tuned" / "config.yaml"), f"out={tmp_path / 'again'}"]
    main(with_file)
    assert losses(tmp_path / "again") == losses(tmp_path / "tuned")
    (tmp_path / "first").rename(tmp_path / "gone")
    main([*tuned, f"out={tmp_path / 'tuned'}", "--resume", "train.steps=7"])
    assert metrics_of(tmp_path / "tuned")["steps"] == 7
    (tmp_path / "gone").rename(tmp_path / "first")
    for word in ("model.rank=5", "model=transinr", "data.centres=corner"):
        line = refused(*tuned, word, f"out={tmp_path / 'no'}")
        assert "config.json has it, with train.init" in line
    assert "a run with a checkpoint" in refused(*tuned, f"train.init={tmp_path / 'none'}", f"out={tmp_path / 'no'}")
    assert not (tmp_path / "no").exists()


# ---- SSIM


def test_the_ssim_of_pictures_and_views_is_that_of_each_picture():
    truth, noise = torch.rand(2, 3 * 144, 3), 0.1 * torch.randn(2, 3 * 144, 3)
    found = ViewTask(DataConfig(task="views", size=12)).similarity(truth + noise, truth)["ssim"]
    for i in range(2):
        a, b = (values[i].reshape(3, 12, 12, 3) for values in (truth + noise, truth))
        assert float(found[i]) == pytest.approx(sum(ssim(a[v], b[v]) for v in range(3)) / 3, abs=1e-6)
    same = ImageTask(DataConfig(size=12)).similarity(truth[:, :144], truth[:, :144])
    assert same["ssim"].tolist() == pytest.approx([1, 1], abs=1e-6)


def test_lpips_is_measured_where_it_is_asked_for_and_to_be_had(monkeypatch):
    task, truth = ImageTask(DataConfig(size=12)), torch.rand(2, 144, 3)
    assert "lpips" not in task.similarity(truth, truth, with_lpips=True)  # pictures too small for it
    monkeypatch.setattr("evos.metrics.lpips", lambda a, b: float((a - b).abs().mean()))
    assert task.similarity(truth, truth + 0.25, with_lpips=True)["lpips"].tolist() == pytest.approx([0.25] * 2)
    assert "lpips" not in task.similarity(truth, truth)


def test_the_last_evaluation_has_ssim_or_the_distance_of_spectra(tiny, pictures, sounds, tmp_path, capsys):
    main([*tiny, f"data.root={pictures}", f"out={tmp_path / 'run'}"])
    entry = metrics_of(tmp_path / "run")["sources"][pictures.name]
    assert -1 <= entry["ssim"] <= 1 and f"SSIM {entry['ssim']:.3f}" in capsys.readouterr().out
    words = [*tiny, "data.task=sound", "data.seconds=0.1", "data.rate=4000", f"data.root={sounds}"]
    main([*words, f"out={tmp_path / 'sound'}"])
    entry = metrics_of(tmp_path / "sound")["sources"][sounds.name]
    assert "ssim" not in entry and entry["stft_distance"] > 0
    assert f"STFT distance {entry['stft_distance']:.3f}" in capsys.readouterr().out


def test_silent_recordings_do_not_count_in_the_distance_of_spectra(tiny, sounds, tmp_path, capsys):
    words = [*tiny, "data.task=sound", "data.seconds=0.1", "data.rate=4000", f"data.root={sounds}"]
    main([*words, f"out={tmp_path / 'run'}"])
    loud = metrics_of(tmp_path / "run")["sources"][sounds.name]["stft_distance"]
    for kind, names in {"mixed": ["silence", "sound"], "silent": ["silence", "more"]}.items():
        for part, name in [("train", "sound"), *(("test", name) for name in names)]:
            (tmp_path / kind / part).mkdir(parents=True, exist_ok=True)
            wave = np.random.default_rng(0).uniform(-0.5, 0.5, 800) * (name == "sound")
            soundfile.write(tmp_path / kind / part / f"{name}.wav", wave, 4000)
        capsys.readouterr()
        main([*words, f"out={tmp_path / 'run'}", f"data.root={tmp_path / kind}", "--eval"])
        entry = json.loads((tmp_path / "run" / "eval" / f"{kind}.json").read_text())
        assert entry["instances"] == 2
        if kind == "mixed":
            assert 0 < entry["stft_distance"] < 10 * loud
        else:
            assert entry["stft_distance"] is None and "STFT" not in capsys.readouterr().out


# ---- several processes


@pytest.mark.dist
@pytest.mark.parametrize("model", ["hyper", "meta"])
def test_two_processes_train_as_one_with_twice_the_batch(tiny, pictures, tmp_path, together, model):
    words = [*tiny, *EXACT, f"data.root={pictures}", "data.test_ratio=0.25", "train.lr=0.01", "train.batch=2"]
    words = words if model == "hyper" else [*without_hypernetwork(words), *META]
    processes = together(lambda: main([*words, f"out={tmp_path / 'two'}"]))
    assert processes.wait() == [0, 0], processes.stderr(0) + processes.stderr(1)
    main([*words, f"out={tmp_path / 'one'}"])
    one, two = metrics_of(tmp_path / "one"), metrics_of(tmp_path / "two")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    # Three instances: two are measured by one process, one by the other.
    assert one["sources"][pictures.name]["instances"] == two["sources"][pictures.name]["instances"] == 3
    assert two["psnr"] == pytest.approx(one["psnr"], abs=1e-3) and two["points_trained"] == one["points_trained"]
    weights = [load_checkpoint(tmp_path / name / "checkpoint.pt")["model"] for name in ("one", "two")]
    # Not the attention's key biases: their gradient is 0 but for rounding, which Adam makes steps of.
    for name in (name for name in weights[0] if name.startswith("field")):
        assert torch.allclose(weights[0][name], weights[1][name], atol=1e-4)


@pytest.mark.dist
def test_a_run_of_two_processes_goes_on_in_one(tiny, pictures, tmp_path, together, monkeypatch):
    words = [*tiny, *EXACT, f"data.root={pictures}"]
    main([*words, f"out={tmp_path / 'whole'}"])
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        processes = together(lambda: main([*words, f"out={tmp_path / 'parts'}"]))
        assert processes.wait() == [143, 143], processes.stderr(0)
    main([*words, f"out={tmp_path / 'parts'}", "--resume"])
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)


@pytest.mark.dist
def test_a_signal_to_one_process_stops_both_after_the_same_step(tiny, pictures, tmp_path, together, monkeypatch):
    original = Trainer.step

    def step(self, number, batch):
        if number == 3 and self.world.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, number, batch)

    monkeypatch.setattr(Trainer, "step", step)
    processes = together(lambda: main([*tiny, f"data.root={pictures}", f"out={tmp_path / 'run'}", "selector=error"]))
    assert processes.wait() == [143, 143]
    state = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert state["step"] == 3 and len(state["processes"]) == 2
    assert "--resume" in processes.stderr(0) and not processes.stderr(1)


@pytest.mark.dist
@pytest.mark.parametrize("victim", [0, 1])
def test_a_dead_process_ends_the_run_with_one_line_and_a_usable_checkpoint(
    tiny, pictures, tmp_path, together, monkeypatch, victim
):
    original = Trainer.step

    def step(self, number, batch):
        if number == 5 and self.world.rank == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, number, batch)

    words = [*tiny, f"data.root={pictures}", f"out={tmp_path / 'run'}", "selector=error", "save_every=2"]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        processes = together(lambda: main(words))
        statuses = processes.wait()
    assert statuses[victim] == -signal.SIGKILL and statuses[1 - victim] == 2
    (line,) = processes.stderr(1 - victim).splitlines()
    assert line.startswith("error: process group: got a process that no longer answers")
    assert "the checkpoint of step 4 is kept: go on with --resume" in line
    main([*words, "--resume"])
    assert metrics_of(tmp_path / "run")["steps"] == 6


@pytest.mark.dist
def test_a_mistake_is_told_once(tiny, tmp_path, together, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    processes = together(lambda: main([*tiny, "data.root=none/here", f"out={tmp_path / 'run'}"]))
    assert processes.wait() == [2, 2]
    assert len(processes.stderr(0).splitlines()) == 1 and not processes.stderr(1)


@pytest.mark.dist
def test_a_taken_folder_is_refused_by_all(tiny, pictures, tmp_path, together):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    processes = together(lambda: main([*tiny, f"data.root={pictures}", f"out={tmp_path / 'taken'}"]))
    assert processes.wait() == [2, 2]
    assert "a new folder" in processes.stderr(0) and not processes.stderr(1)


def test_a_data_set_is_named_without_folders(tiny, pictures, tmp_path, refused):
    """Its pictures are written by its name: one that leads elsewhere is refused before the training, not after."""
    for name in ("../../up", "a/b", ".."):
        sources = f"data.sources=[{{root: {pictures}, name: {name}}}]"
        assert "data.sources[0].name: got" in refused(*tiny, sources, f"out={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()
