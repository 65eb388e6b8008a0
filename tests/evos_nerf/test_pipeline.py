"""The pipeline: the errors it hands back, the pictures it shows, the checkpoints it resumes from."""

import copy
import math
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import yaml
from torch import nn

pytest.importorskip("nerfstudio")

from nerfstudio.engine.callbacks import TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.model_components.ray_generators import RayGenerator

from evos.errors import InputError
from evos.selection import SoftConfig, TilesConfig
from evos_nerf.pipeline import EvosPipeline

pytestmark = [pytest.mark.nerf, pytest.mark.filterwarnings("ignore")]

EAGER = TilesConfig(rank_interval=2, warmup_steps=2)


@pytest.fixture
def pipeline(method):
    """A pipeline before its first step: ``pipeline(name, **options of the pixel sampler)``."""

    def make(name="evos-nerfacto", background=None, **options):
        config = method(name, **options)
        if background is not None:
            config.pipeline.model.background_color = background
        torch.manual_seed(0)
        return config.pipeline.setup(device="cpu", test_mode="val")

    return make


def observed(pipeline, monkeypatch):
    """A list that gets every residual the sampler is told."""
    found = []
    original = pipeline.sampler.observe
    monkeypatch.setattr(pipeline.sampler, "observe", lambda *told: (found.append(told[1]), original(*told)))
    return found


def test_the_rays_of_all_steps_up_to_the_next_ranking_are_generated_at_once(pipeline, monkeypatch):
    """Inverting a lens' distortion costs a thousand operations, whatever the number of rays."""
    data = pipeline("evos-nerfacto", tiles=TilesConfig(warmup_steps=8, rank_interval=8)).datamanager
    generator = data.train_ray_generator
    cameras = generator.cameras
    cameras.distortion_params = torch.tensor([0.1, 0.02, 0, 0, 0.01, -0.01]).expand(len(cameras), 6)
    counts, forward = [], generator.forward
    monkeypatch.setattr(generator, "forward", lambda points: (counts.append(len(points)), forward(points))[1])
    drawn = [data.next_train(step) for step in range(8)]
    assert counts == [8 * 32]
    for rays, batch in drawn:
        alone = forward(batch["indices"])
        for name in ("origins", "directions", "pixel_area", "camera_indices"):
            assert torch.equal(getattr(rays, name), getattr(alone, name))
        assert torch.equal(rays.metadata["directions_norm"], alone.metadata["directions_norm"])


def test_a_ray_generator_of_the_host_s_own_is_asked_in_every_step(pipeline):
    class Turning(RayGenerator):
        steps = 0

        def forward(self, ray_indices):
            self.steps += 1
            rays = super().forward(ray_indices)
            rays.origins = rays.origins + self.steps
            return rays

    data = pipeline("evos-nerfacto").datamanager
    data.train_ray_generator = Turning(data.train_dataset.cameras)
    for step in range(3):
        rays, batch = data.next_train(step)
        plain = RayGenerator(data.train_dataset.cameras)(batch["indices"])
        assert torch.equal(rays.origins, plain.origins + step + 1)


@pytest.mark.parametrize(
    ("name", "loss"),
    [("evos-nerfacto", "rgb_loss"), ("evos-depth-nerfacto", "rgb_loss"), ("evos-vanilla-nerf", "rgb_loss_fine")],
)
def test_the_sampler_learns_the_errors_that_the_loss_saw(name, loss, pipeline, monkeypatch):
    one = pipeline(name, tiles=TilesConfig(keep_ratio=1.0, mutation_ratio=0.5, rank_interval=2, warmup_steps=2))
    found = observed(one, monkeypatch)
    for step in range(4):
        _, losses, metrics = one.get_train_loss_dict(step)
        assert losses[loss].item() == pytest.approx(found[-1].square().mean().item(), rel=1e-5)
        assert not found[-1].requires_grad and math.isfinite(metrics["sampler_ms"])
    assert 0 <= metrics["survivor_ratio"] == 1 - metrics["mutant_ratio"] <= 1
    assert int((one.sampler.selector.cache.visits > 0).sum()) > 8, "of the first two steps, ranked in the third"


def test_with_a_fixed_background_the_error_is_that_of_the_picture(pipeline, monkeypatch):
    one = pipeline(background="white")
    found = observed(one, monkeypatch)
    outputs, _, _ = one.get_train_loss_dict(0)
    truth = one.datamanager.last_batch["image"]
    assert torch.allclose(found[0], (outputs["rgb"] - truth).detach(), atol=1e-6)


def test_a_random_background_is_in_the_error(pipeline, monkeypatch):
    one = pipeline(background="random")
    found = observed(one, monkeypatch)
    outputs, _, _ = one.get_train_loss_dict(0)
    assert not torch.allclose(found[0], (outputs["rgb"] - one.datamanager.last_batch["image"]).detach(), atol=1e-3)


def test_a_model_with_a_loss_of_its_own_gets_the_plain_error(pipeline, monkeypatch):
    one = pipeline(background="white")
    one.model.rgb_loss = nn.MSELoss()  # not the one that was listened to
    found = observed(one, monkeypatch)
    outputs, _, _ = one.get_train_loss_dict(0)
    assert torch.equal(found[0], (outputs["rgb"] - one.datamanager.last_batch["image"]).detach())


@pytest.mark.parametrize("kind", [nn.MSELoss, nn.L1Loss])
def test_weights_enter_the_loss_and_not_the_error(kind, pipeline, monkeypatch):
    one = pipeline(selector="soft", soft=SoftConfig(correction_warmup=0.001))
    power = 2 if kind is nn.MSELoss else 1
    one.model.rgb_loss = kind()
    one.model.rgb_loss.register_forward_pre_hook(one._before_loss)
    found = observed(one, monkeypatch)
    _, losses, _ = one.get_train_loss_dict(3)
    weight = one.selection.weight[0]
    assert weight.min() < 1 < weight.max()
    expected = (weight[:, None] * found[0].abs() ** power).mean().item()
    assert losses["rgb_loss"].item() == pytest.approx(expected, rel=1e-5)


def test_weights_leave_the_gradient_that_of_a_weighted_loss(pipeline):
    one = pipeline(tiles=TilesConfig(warmup_steps=0))
    weight = torch.tensor([0.25, 1.0, 4.0])
    one.get_train_loss_dict(0)
    one.sampler.weigh = lambda selection, _: replace(selection, index=selection.index[:, :3], weight=weight[None])
    truth, prediction = torch.rand(3, 3, dtype=torch.float64), torch.rand(3, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(one.model.rgb_loss(truth, prediction), prediction)
    assert torch.allclose(gradient, weight[:, None] * 2 * (prediction - truth) / 9)


@pytest.mark.parametrize("selector", ["uniform", "soft", "egra", "expansive"])
def test_every_strategy_trains(selector, pipeline):
    one = pipeline(selector=selector)
    losses = [sum(one.get_train_loss_dict(step)[1].values()) for step in range(4)]
    assert all(math.isfinite(loss) for loss in losses)


def test_evaluation_teaches_the_sampler_nothing(pipeline):
    one = pipeline()
    one.get_train_loss_dict(0)
    one.sampler.flush_feedback()
    before = one.selection, one.sampler.selector.cache.sums.clone()
    one.get_eval_loss_dict(0)
    metrics, images = one.get_eval_image_metrics_and_images(0)
    assert one.selection is before[0] and torch.equal(one.sampler.selector.cache.sums, before[1])
    assert not any("lpips" in name for name in metrics) and images["evos_error"].shape == (16, 16, 3)


def test_the_maps_are_in_tensorboard(method, train):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = method("evos-nerfacto")
    config.steps_per_eval_image = 2
    events = EventAccumulator(str(train(config, 3).base_dir)).Reload().Tags()
    assert {"Eval Images/evos_drawn", "Eval Images/evos_error"} <= set(events["images"])
    kinds = ("sampler_ms", "survivor_ratio", "mutant_ratio")
    assert {f"Train Metrics Dict/{name}" for name in kinds} <= set(events["scalars"])


def test_the_viewer_shows_the_maps_on_the_training_cameras(pipeline, tmp_path):
    import viser._messages
    from nerfstudio.configs.base_config import ViewerConfig
    from nerfstudio.viewer.viewer import Viewer

    one = pipeline()
    viewer = Viewer(ViewerConfig(), tmp_path / "log" / "viewer.log", tmp_path, one)

    def shown():
        server = viewer.viser_server
        server.flush()
        messages = list(server._websock_server._broadcast_buffer.message_from_id.values())
        found = {m.name: m.image_binary for m in messages if isinstance(m, viser._messages.CameraFrustumMessage)}
        assert sorted(int(name[-5:]) for name in found) == list(range(6))
        return found

    def chosen(name, is_shown):
        """What is shown after a choice: the viewer calls back in a thread of its own."""
        one.training_views.gui_handle.value = name
        end = time.monotonic() + 60
        while not is_shown(found := shown()) and time.monotonic() < end:
            time.sleep(0.05)
        assert is_shown(found)
        return found

    def differs(*others):
        return lambda found: not any(found[name] == other[name] for other in others for name in found)

    try:
        viewer.init_scene(one.datamanager.train_dataset, "training")
        photos = shown()
        one.views_control.show()
        assert shown() == photos
        for step in range(4):
            one.get_train_loss_dict(step)
        errors = chosen("evos_error", differs(photos))
        drawn = chosen("evos_drawn", differs(photos, errors))
        one.get_train_loss_dict(4)
        one.latest_views.cb_hook(one.latest_views)
        assert shown() != drawn
        chosen("photo", lambda found: found == photos)
    finally:
        viewer.viser_server.stop()


def test_where_a_map_is_missing_the_viewer_shows_the_photo(pipeline):
    one = pipeline()
    data, control, shown = one.datamanager.train_dataset, one.views_control, []
    control.viewer = SimpleNamespace(init_scene=lambda views, _: shown.append(views), train_state="training")
    control.choice = SimpleNamespace(value="evos_error")
    control.show()  # nothing is known before a step
    (views,) = shown
    assert len(views) == len(data) and torch.equal(views[2]["image"], data[2]["image"])


def flattened(value, name=""):
    """The leaves of nested dicts and sequences, by path."""
    if isinstance(value, dict | list | tuple):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, part in pairs for k, v in flattened(part, f"{name}/{key}").items()}
    return {name: value}


def same(one, other):
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("selector", ["tiles", "soft"])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(selector, method, train):
    # More than the 10 steps after which the proposal networks learn in some steps only.
    def config(name):
        made = method("evos-nerfacto", selector=selector, tiles=EAGER, tile_side=2)
        made.timestamp, made.steps_per_save, made.save_only_latest_checkpoint = name, 1, False
        made.steps_per_eval_batch = made.steps_per_eval_image = 3
        return made

    whole = train(config("whole"), 24)
    part = config("part")
    part.load_dir, part.load_step = whole.checkpoint_dir, 11
    resumed = train(part, 12)
    names = [trainer.checkpoint_dir / "step-000000023.ckpt" for trainer in (whole, resumed)]
    one, other = (flattened(torch.load(name)) for name in names)
    assert one.keys() == other.keys() and len(one) > 100
    # Not Python's own generator: beartype, in this suite, draws from it when it checks a dict.
    different = [key for key in one if not same(one[key], other[key])]
    assert [key for key in different if "/generators/python/" not in key] == []


def test_the_same_seed_gives_the_same_psnr_twice(method, train):
    values = []
    for name in ("one", "two"):
        config = method("evos-nerfacto")
        config.timestamp = name
        values.append(train(config, 6).pipeline.get_average_eval_image_metrics()["psnr"])
    assert values[0] == values[1]


def test_a_checkpoint_of_another_model_is_refused(method, train, capsys):
    first = train(method("evos-nerfacto"), 1)
    config = method("evos-vanilla-nerf")
    config.load_dir = first.checkpoint_dir
    with pytest.raises(SystemExit):
        train(config, 1)
    assert "error: checkpoint: got one without field" in capsys.readouterr().err


def test_a_checkpoint_of_another_size_is_one_line(method, train, capsys):
    first = train(method("evos-nerfacto"), 1)
    config = method("evos-nerfacto")
    config.load_dir, config.pipeline.model.log2_hashmap_size = first.checkpoint_dir, 11
    with pytest.raises(SystemExit):
        train(config, 1)
    error = capsys.readouterr().err
    assert "error: checkpoint: got size mismatch for " in error and error.count("\n") == 1


def test_a_state_of_another_version_is_refused_in_training_only(pipeline):
    one = pipeline()
    one.get_train_loss_dict(0)
    state = one.get_extra_state()
    torch.rand(3)
    one.set_extra_state(state)
    assert one.get_extra_state()["processes"][0]["generators"] is state["processes"][0]["generators"]
    with pytest.raises(InputError, match="version 1"):
        one.set_extra_state({**state, "version": 2})
    one.eval()
    one.set_extra_state({**state, "version": 2})


def test_a_run_resumes_at_another_resolution_with_its_weights(method, train, capsys):
    first = train(method("evos-nerfacto", tiles=EAGER), 4)
    config = method("evos-nerfacto", tiles=EAGER)
    config.timestamp, config.load_dir = "resumed", first.checkpoint_dir
    config.pipeline.datamanager.camera_res_scale_factor = 0.5
    weights = {}

    def compared(pipeline, load=EvosPipeline.load_pipeline):
        def run(state, step):
            load(pipeline, state, step)
            weights.update({name: value.clone() for name, value in pipeline.model.state_dict().items()})

        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EvosPipeline, "load_pipeline", lambda self, state, step: compared(self)(state, step))
        second = train(config, 4)
    assert second.step == 7 and second.pipeline.sampler.grid.extent.tolist() == [[8, 8]] * 6
    saved = torch.load(first.checkpoint_dir / "step-000000003.ckpt")["pipeline"]
    assert all(torch.equal(value, saved[f"_model.{name}"]) for name, value in weights.items())
    assert capsys.readouterr().out.count("other sizes than in the checkpoint") == 1


def test_states_are_gathered_through_gloo_whatever_the_backend_of_the_others(pipeline, monkeypatch):
    gathered = []
    monkeypatch.setattr("evos_nerf.pipeline.comms.get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "new_group", lambda backend: f"a group of {backend}")
    monkeypatch.setattr("evos_nerf.pipeline.gather", lambda state, group: gathered.append(group) or [])
    pipeline().gather_states()
    assert gathered == ["a group of gloo"]


# ---- two processes


def state_of_two(rank: int, folder: Path) -> None:
    """Train three steps, gather before the save, save in the first process, restore in both, compare what follows."""
    config = yaml.load((folder / "config.yml").read_text(), Loader=yaml.Loader)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", world_size=2, rank=rank)

    def fresh(seed):
        torch.manual_seed(seed)
        return config.pipeline.setup(device="cpu", test_mode="val")

    one = fresh(100 + rank)
    trainer = SimpleNamespace(config=config, _start_step=0)
    (*_, gather) = one.get_training_callbacks(TrainingCallbackAttributes(None, None, one, trainer))
    for step in range(3):
        one.get_train_loss_dict(step)
        gather.run_callback_at_location(step, TrainingCallbackLocation.AFTER_TRAIN_ITERATION)
    if rank == 0:
        torch.save(one.state_dict(), folder / "pipeline.pt")
    dist.barrier()

    def goes_on(pipeline):
        drawn = []
        for step in range(3, 6):
            pipeline.get_train_loss_dict(step)
            drawn.append(pipeline.datamanager.last_batch["indices"])
        return torch.cat(drawn), torch.rand(3)  # of the global generator, which is every process' own, too

    one = goes_on(one)
    other = fresh(7)
    other.load_pipeline(torch.load(folder / "pipeline.pt"), step=2)
    torch.save({"one": one, "other": goes_on(other)}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def errors_of_two(rank: int, folder: Path) -> None:
    """Train three steps, in one process with fewer rays in some, and save what the selector knows at the ranking."""
    config = yaml.load((folder / "config.yml").read_text(), Loader=yaml.Loader)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", world_size=2, rank=rank)
    torch.manual_seed(100 + rank)
    one = config.pipeline.setup(device="cpu", test_mode="val")
    drawn = []
    for step in range(5):
        if step == 1 and rank == 1:
            one.sampler.set_num_rays_per_batch(20)
        one.get_train_loss_dict(step)
        if step < 4:
            drawn.append(one.selection.index[0])
    cache = one.sampler.selector.cache
    torch.save({"drawn": torch.cat(drawn), "visits": cache.visits[0], "sums": cache.sums}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def gradients_of_two(rank: int, folder: Path) -> None:
    """A step of the wrapped model, and the mean over both processes of what each finds by itself on the same rays."""
    config = yaml.load((folder / "config.yml").read_text(), Loader=yaml.Loader)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", world_size=2, rank=rank)
    torch.manual_seed(100 + rank)
    one = config.pipeline.setup(device="cpu", test_mode="val", world_size=2, local_rank=rank)
    rays = one.datamanager.next_train(0)
    one.datamanager.next_train = lambda step: copy.deepcopy(rays)  # the camera optimizer writes into them

    def gradient(context):
        one.zero_grad()
        torch.manual_seed(rank)  # the same places along the rays
        with context:
            loss = sum(one.get_train_loss_dict(0)[1].values())
            loss.backward()
        flat = [p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in one.model.parameters()]
        return loss.detach(), torch.cat(flat)

    loss, own = gradient(one._model.no_sync())
    mean = own.clone()
    dist.all_reduce(mean)
    torch.save({"loss": loss, "own": own, "mean": mean / 2, "ddp": gradient(nullcontext())[1]}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def run_two(process, config, folder) -> tuple[dict, dict]:
    """What two processes of a function saved."""
    (folder / "config.yml").write_text(yaml.dump(config))
    commands = [[sys.executable, __file__, process.__name__, str(rank), str(folder)] for rank in range(2)]
    root = {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen(command, env=os.environ | root, **pipes) for command in commands]
    try:
        output = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], output
    first, second = (torch.load(folder / f"{rank}.pt") for rank in range(2))
    return first, second


@pytest.mark.dist
def test_two_processes_average_their_gradients(method, tmp_path):
    first, second = run_two(gradients_of_two, method("evos-nerfacto"), tmp_path)
    assert first["loss"] != second["loss"] and not torch.allclose(first["own"], second["own"])
    for mine in (first, second):
        assert mine["mean"].abs().max() > 0
        torch.testing.assert_close(mine["ddp"], mine["mean"], rtol=1e-4, atol=1e-7)


@pytest.mark.dist
def test_every_process_gets_its_own_state_back(method, tmp_path):
    config = method("evos-nerfacto")
    config.max_num_iterations, config.steps_per_save = 3, 100
    first, second = run_two(state_of_two, config, tmp_path)
    for mine in (first, second):
        assert torch.equal(mine["one"][0], mine["other"][0]) and torch.equal(mine["one"][1], mine["other"][1])
    assert not torch.equal(first["one"][0], second["one"][0])


@pytest.mark.dist
def test_each_process_learns_the_errors_of_all(method, tmp_path):
    first, second = run_two(errors_of_two, method("evos-nerfacto", tiles=TilesConfig(warmup_steps=4)), tmp_path)
    assert len(first["drawn"]) == 4 * 32 and len(second["drawn"]) == 32 + 3 * 20
    expected = torch.bincount(torch.cat((first["drawn"], second["drawn"])), minlength=len(first["visits"]))
    for mine in (first, second):
        assert torch.equal(mine["visits"].long(), expected)
    assert torch.equal(first["sums"], second["sums"])


if __name__ == "__main__":
    globals()[sys.argv[1]](int(sys.argv[2]), Path(sys.argv[3]))
