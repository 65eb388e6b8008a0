"""The training loop, with an application that is three weights and a few lists of what was asked of it."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from evos import runs
from evos.distributed import World
from evos.errors import InputError
from evos.runs.loop import all_finite, interval

CPU = torch.device("cpu")


class Toy(runs.Trainable):
    """Walks three weights at random by the global generator; loss of step k is ``losses(k)``."""

    def __init__(self, losses=float, at_step=lambda step: None) -> None:
        self.losses, self.at_step = losses, at_step
        self.weights = torch.zeros(3)
        self.steps: list[int] = []
        self.evaluations: list[tuple[int, bool]] = []
        self.memory = 0  # of this process alone

    def step(self, step):
        self.steps.append(step)
        self.weights = self.weights + torch.randn(3)
        self.memory += step
        self.at_step(step)
        return torch.tensor(self.losses(step))

    def evaluate(self, step, events, *, final):
        self.evaluations.append((step, final))
        return {"psnr": float(self.weights.sum()), "ssim": None}

    def parameters(self):
        return [self.weights]

    def scalars(self, step):
        return {"lr": 1 / step}

    def state_dict(self):
        return {"weights": self.weights}

    def load_state_dict(self, state):
        self.weights = state["weights"]

    def process_state(self):
        return {"memory": self.memory}

    def load_process_state(self, state):
        self.memory = state["memory"]


class FakeStopper(runs.Stopper):
    """Is asked to stop once ``step`` steps are done."""

    def __init__(self, toy: Toy, step: int = 10**9, exit_code: int = 143) -> None:
        super().__init__()
        self.toy, self.step, self.code = toy, step, exit_code

    @property
    def requested(self):
        return len(self.toy.steps) > 0 and self.toy.steps[-1] >= self.step

    @property
    def exit_code(self):
        return self.code


@dataclass
class Setup:
    """A run folder that loops of toys are made in."""

    path: Path

    def loop(self, toy: Toy, **options: Any) -> runs.TrainingLoop:
        run = runs.open_run(self.path, {}, resume=self.path.exists(), overwrite=False)
        return runs.TrainingLoop(toy, run, **{"label": "toy", "device": CPU, "quiet": True, **options})

    @property
    def checkpoint(self) -> dict[str, Any]:
        return runs.load_checkpoint(self.path / "checkpoint.pt")


@pytest.fixture
def setup(tmp_path) -> Setup:
    runs.seed_everything(0)
    return Setup(tmp_path / "run")


def without_seconds(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in curve]


# ---- a whole run


def test_every_step_is_trained_once_and_evaluations_and_checkpoints_come_when_due(setup, monkeypatch):
    saved, save = [], runs.save_checkpoint
    monkeypatch.setattr(
        "evos.runs.loop.save_checkpoint", lambda path, state: (saved.append(state["step"]), save(path, state))
    )
    toy = Toy()
    loop = setup.loop(toy, steps=20, eval_every=6, save_every=8)
    loop.train(FakeStopper(toy))
    assert toy.steps == list(range(1, 21))
    assert toy.evaluations == [(6, False), (12, False), (18, False), (20, True)]
    assert saved == [8, 16, 20]
    assert [entry["step"] for entry in loop.curve] == [6, 12, 18, 20]
    assert loop.curve[-1]["psnr"] == float(toy.weights.sum()) and loop.curve[-1]["ssim"] is None


def test_the_last_evaluation_is_in_the_curve_even_where_evaluations_are_due_never_or_at_the_end(setup):
    for every, steps in ((100, [10]), (5, [5, 10])):
        folder = Setup(setup.path / str(every))
        toy = Toy()
        loop = folder.loop(toy, steps=10, eval_every=every)
        loop.train(FakeStopper(toy))
        assert [entry["step"] for entry in loop.curve] == steps and toy.evaluations[-1] == (10, True)


@pytest.mark.parametrize(
    ("every", "steps", "times", "expected"), [(None, 200, 20, 10), (None, 7, 20, 1), (3, 200, 20, 3)]
)
def test_by_default_an_interval_is_a_part_of_the_run_and_at_least_a_step(every, steps, times, expected):
    assert interval(every, steps, times) == expected


def test_by_default_a_run_is_evaluated_twenty_times_and_saved_ten_times(setup, monkeypatch):
    saved = []
    monkeypatch.setattr("evos.runs.loop.save_checkpoint", lambda path, state: saved.append(state["step"]))
    toy = Toy()
    setup.loop(toy, steps=100).train(FakeStopper(toy))
    assert [step for step, _ in toy.evaluations] == list(range(5, 101, 5)) and saved == list(range(10, 101, 10))


def test_losses_are_read_every_fifty_steps_and_not_between(setup, monkeypatch):
    reads = []
    pause = runs.Clock.pause
    monkeypatch.setattr(runs.Clock, "pause", lambda clock: (reads.append(toy.steps[-1]), pause(clock)))
    toy = Toy()
    loop = setup.loop(toy, steps=120, eval_every=1000, save_every=1000)
    loop.train(FakeStopper(toy))
    assert reads == [50, 100, 120]
    assert loop.loss_curve == [(50, 25.5), (100, 75.5), (120, 110.5)]  # means of 1..50, 51..100, 101..120


def test_only_training_counts_as_training_time(setup, time_of, monkeypatch):
    clock = time_of("evos.runs.clock")

    class Slow(Toy):
        def step(self, step):
            clock.now += 1
            return super().step(step)

        def evaluate(self, step, events, *, final):
            clock.now += 100
            return super().evaluate(step, events, final=final)

    save = runs.save_checkpoint

    def slow_save(path, state):
        clock.now += 1000
        save(path, state)

    monkeypatch.setattr("evos.runs.loop.save_checkpoint", slow_save)
    toy = Slow()
    loop = setup.loop(toy, steps=10, eval_every=4, save_every=3)
    loop.train(FakeStopper(toy))
    assert [entry["seconds"] for entry in loop.curve] == [4, 8, 10] and loop.metrics()["train_seconds"] == 10


def test_events_hold_the_loss_the_evaluations_and_what_the_application_adds(setup):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    toy = Toy()
    loop = setup.loop(toy, steps=4, eval_every=2)
    loop.train(FakeStopper(toy))
    events = EventAccumulator(str(setup.path)).Reload()
    found = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert found["loss"] == [(2, 1.5), (4, 3.5)] and found["lr"] == [(2, 0.5), (4, 0.25)]
    assert found["psnr"] == [(e["step"], pytest.approx(e["psnr"], rel=1e-6)) for e in loop.curve]
    assert set(found) == {"loss", "lr", "psnr"}


def test_metrics_say_what_every_run_has_in_common(setup):
    toy = Toy()
    loop = setup.loop(toy, steps=3, eval_every=1)
    loop.train(FakeStopper(toy))
    metrics = loop.metrics()
    assert (metrics["steps"], metrics["parameters"], metrics["device"]) == (3, 3, "cpu")
    assert metrics["curve"] == loop.curve and metrics["loss_curve"] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert metrics["versions"]["torch"] == torch.__version__ and metrics["peak_memory_bytes"] > 10**6


def test_a_complex_weight_is_two_numbers():
    assert runs.count_parameters([torch.zeros(2, 3), torch.zeros(5, dtype=torch.complex64)]) == 16


def test_progress_shows_the_loss_and_the_metric_and_ends_with_the_final_evaluation(setup, capsys):
    toy = Toy()
    loop = setup.loop(toy, steps=10, eval_every=5, quiet=False)
    loop.train(FakeStopper(toy))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10 and lines[0].startswith("toy 1/10  10%")
    assert lines[-1].startswith(f"toy 10/10  100%  loss 8  psnr {loop.curve[-1]['psnr']:.4g}  took")


# ---- losses that are not finite


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_loss_stops_the_run_at_its_step_and_keeps_the_last_good_checkpoint(setup, value):
    """Steps 8 to 12 are read together, before the checkpoint of step 12: the first bad one is named."""
    toy = Toy(losses=lambda step: value if step >= 9 else float(step))
    with pytest.raises(runs.TrainingDiverged, match=f"loss: got {value} at step 9; .*earlier steps stays"):
        setup.loop(toy, steps=20, eval_every=7, save_every=4).train(FakeStopper(toy))
    assert toy.steps[-1] == 12 and setup.checkpoint["step"] == 8
    assert setup.checkpoint["loss_curve"] == [(7, 4.0)] and setup.checkpoint["pending_loss"] == [8.0, 1.0]


def test_weights_that_are_not_finite_never_reach_a_checkpoint(setup):
    def break_weights(step):
        if step == 8:
            toy.weights = torch.tensor([1.0, float("nan"), 0.0])

    toy = Toy(at_step=break_weights)
    with pytest.raises(runs.TrainingDiverged, match="weights: got nan at step 8"):
        setup.loop(toy, steps=20, eval_every=100, save_every=4).train(FakeStopper(toy))
    assert setup.checkpoint["step"] == 4 and bool(setup.checkpoint["weights"].isfinite().all())


def test_a_stop_saves_nothing_that_is_not_finite(setup):
    toy = Toy(losses=lambda step: float("nan") if step == 6 else 1.0)
    with pytest.raises(runs.TrainingDiverged, match="at step 6"):
        setup.loop(toy, steps=20, eval_every=100, save_every=5).train(FakeStopper(toy, step=7))
    assert setup.checkpoint["step"] == 5


def test_a_number_that_is_not_finite_is_named_with_its_step():
    runs.check_finite(1.0, 3)
    runs.check_finite(torch.tensor(0.0), 3)
    for value in (float("nan"), torch.tensor(float("inf"))):
        with pytest.raises(runs.TrainingDiverged, match=r"loss: got (nan|inf) at step 12; .*earlier steps stays"):
            runs.check_finite(value, 12)
    assert issubclass(runs.TrainingDiverged, InputError)


def test_weights_are_finite_if_all_are():
    good, bad = torch.zeros(2, dtype=torch.complex64), torch.tensor([1.0, -float("inf")])
    assert all_finite([]) and all_finite([good, torch.ones(3)]) and not all_finite([good, bad])


# ---- stopping and resuming


@pytest.mark.parametrize("stop", [1, 7, 10, 53, 119])
def test_a_resumed_run_equals_an_uninterrupted_one(setup, stop):
    def losses(step: int) -> float:
        return 0.1 * step + 1 / 3

    options = {"steps": 120, "eval_every": 30, "save_every": 25}
    whole = Toy(losses)
    uninterrupted = Setup(setup.path / "whole").loop(whole, **options)
    uninterrupted.train(FakeStopper(whole))
    runs.seed_everything(0)
    first, second, folder = Toy(losses), Toy(losses), Setup(setup.path / "parts")
    with pytest.raises(runs.Stopped):
        folder.loop(first, **options).train(FakeStopper(first, stop))
    assert folder.checkpoint["step"] == stop
    runs.seed_everything(99)
    resumed = folder.loop(second, **options)
    resumed.train(FakeStopper(second))
    assert first.steps + second.steps == list(range(1, 121))
    assert torch.equal(second.weights, whole.weights) and second.memory == whole.memory
    assert without_seconds(resumed.curve) == without_seconds(uninterrupted.curve)
    assert resumed.loss_curve == uninterrupted.loss_curve


def test_seconds_go_on_and_events_after_the_checkpoint_are_hidden_on_resume(setup, time_of):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    clock = time_of("evos.runs.clock")

    def tick(step):
        clock.now += 2
        if step == 6 and not resumed:
            raise KeyboardInterrupt

    resumed = False
    first, second = Toy(at_step=tick), Toy(lambda step: 10.0 * step, at_step=tick)
    with pytest.raises(KeyboardInterrupt):
        setup.loop(first, steps=8, eval_every=1, save_every=3).train(FakeStopper(first))
    resumed = True
    time.sleep(1.1)  # event files are named and ordered by the second
    loop = setup.loop(second, steps=8, eval_every=1, save_every=3)
    loop.train(FakeStopper(second))
    assert [entry["seconds"] for entry in loop.curve] == [2.0 * step for step in range(1, 9)]
    losses = EventAccumulator(str(setup.path)).Reload().Scalars("loss")
    assert [(loss.step, loss.value) for loss in losses] == [
        (step, step * (1 if step < 4 else 10)) for step in range(1, 9)
    ]


def test_a_stop_says_with_which_status_to_exit(setup):
    toy = Toy()
    with pytest.raises(runs.Stopped) as stopped:
        setup.loop(toy, steps=10).train(FakeStopper(toy, 3, exit_code=130))
    assert stopped.value.exit_code == 130 and toy.evaluations == [(1, False), (2, False), (3, False)]


def test_progress_ends_with_the_step_that_a_run_stopped_after(setup, capsys):
    toy = Toy()
    with pytest.raises(runs.Stopped):
        setup.loop(toy, steps=100, quiet=False).train(FakeStopper(toy, 3))
    assert capsys.readouterr().out.splitlines()[-1].startswith("toy 3/100  3%")


def test_sigterm_in_the_middle_of_a_step_finishes_it_and_saves(setup):
    toy = Toy(at_step=lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 4 else None)
    with runs.Stopper() as stopper, pytest.raises(runs.Stopped) as stopped:
        setup.loop(toy, steps=10, save_every=100).train(stopper)
    assert stopped.value.exit_code == 143 and toy.steps == [1, 2, 3, 4]
    assert setup.checkpoint["step"] == 4 and torch.equal(setup.checkpoint["weights"], toy.weights)


def test_a_signal_in_the_last_step_lets_the_run_end(setup):
    toy = Toy()
    loop = setup.loop(toy, steps=5)
    loop.train(FakeStopper(toy, 5))
    assert toy.evaluations[-1] == (5, True) and loop.curve[-1]["step"] == 5


def test_a_final_evaluation_that_fails_is_repeated_by_resuming_without_a_step(setup):
    class Failing(Toy):
        def evaluate(self, step, events, *, final):
            if final:
                raise MemoryError
            return super().evaluate(step, events, final=final)

    with pytest.raises(MemoryError):
        setup.loop(toy := Failing(), steps=10, eval_every=5).train(FakeStopper(toy))
    again = Toy()
    loop = setup.loop(again, steps=10, eval_every=5)
    loop.train(FakeStopper(again))
    assert again.steps == [] and again.evaluations == [(10, True)]
    assert [entry["step"] for entry in loop.curve] == [5, 10]


def test_with_another_number_of_processes_what_each_had_begins_anew(setup):
    toy = Toy()
    with pytest.raises(runs.Stopped):
        setup.loop(toy, steps=10).train(FakeStopper(toy, 6))
    state = setup.checkpoint
    runs.save_checkpoint(setup.path / "checkpoint.pt", state | {"processes": state["processes"] * 2})
    draws = []
    for seed in (1, 1, 2):
        again = Toy()
        loop = setup.loop(again, steps=10, seed=seed)
        draws.append(torch.rand(1))
        assert again.memory == 0 and torch.equal(again.weights, toy.weights) and loop.step == 6
    assert draws[0] == draws[1] != draws[2]


def test_with_another_number_of_processes_each_draws_what_no_other_and_no_earlier_part_drew(setup):
    toy = Toy()
    with pytest.raises(runs.Stopped):
        setup.loop(toy, steps=10).train(FakeStopper(toy, 6))
    state, draws = setup.checkpoint, set()
    for step in (6, 7):
        runs.save_checkpoint(setup.path / "checkpoint.pt", state | {"step": step})
        for rank in (0, 1):
            setup.loop(Toy(), steps=10, world=World(rank, 2))
            draws.add(float(torch.rand(1)))
    runs.seed_everything(0)
    draws.add(float(torch.rand(1)))  # of a run from its start
    assert len(draws) == 5


@pytest.mark.parametrize("key", ["weights", "step", "pending_loss", "processes"])
def test_a_checkpoint_of_another_program_is_one_line(setup, key):
    toy = Toy()
    setup.loop(toy, steps=2).train(FakeStopper(toy))
    state = setup.checkpoint
    del state[key]
    runs.save_checkpoint(setup.path / "checkpoint.pt", state)
    with pytest.raises(InputError, match=f"checkpoint: got one without '{key}'; allowed: one of the same program"):
        setup.loop(Toy(), steps=2)


def test_an_application_cannot_overwrite_what_the_loop_saves(setup):
    class Clashing(Toy):
        def state_dict(self):
            return {"step": 0}

    with pytest.raises(ValueError, match="step"):
        setup.loop(toy := Clashing(), steps=2).train(FakeStopper(toy))
