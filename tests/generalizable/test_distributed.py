"""evos.distributed: torchrun's environment, exact means, one verdict, a lost process."""

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta

import pytest
import torch

from evos.distributed import (
    PeerLost,
    World,
    any_process,
    from_main,
    gather,
    is_main,
    process_group,
    read_world,
    reduce_mean,
    reduce_min,
    reduce_sum,
    watching_peers,
)
from evos.errors import InputError
from evos.runs import Stopper, Trainable, TrainingDiverged, TrainingLoop, load_checkpoint, open_run
from generalizable.data import find_sources
from generalizable.options import parse
from generalizable.run import MetaTraining

CPU = torch.device("cpu")


def test_without_torchrun_a_process_is_alone():
    assert read_world({}) == World(rank=0, size=1, local_rank=0) and read_world({}).is_main and is_main()


def test_torchrun_says_which_process_this_is():
    world = read_world({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"})
    assert world == World(5, 8, 1) and not world.is_main


@pytest.mark.parametrize(
    ("environ", "argument"),
    [
        ({"RANK": "0"}, "WORLD_SIZE"),
        ({"RANK": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK"),
    ],
)
def test_a_wrong_environment_is_refused(environ, argument):
    with pytest.raises(InputError) as error:
        read_world(environ)
    assert error.value.argument == argument


def test_alone_a_mean_is_total_over_count():
    assert reduce_mean(torch.tensor([6.0, 1.0]), torch.tensor([3, 4])).tolist() == [2.0, 0.25]
    assert gather("x") == ["x"] and any_process(True) and not any_process(False)


def test_other_errors_are_not_taken_for_a_lost_process():
    with pytest.raises(RuntimeError, match="shapes") as error, watching_peers():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert not isinstance(error.value, PeerLost)
    with pytest.raises(PeerLost), watching_peers():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4711")


@pytest.mark.dist
def test_means_are_exact_over_uneven_batches(together):
    values = [[1.0, 2.0, 4.0], [10.0]]

    def work():
        world = read_world()
        with process_group(world, CPU):
            own = torch.tensor(values[world.rank])
            mean = float(reduce_mean(own.sum(), torch.tensor(float(len(own)))))
            assert mean == 17 / 4 and float(reduce_sum(own.sum())) == 17  # the mean of means is 6.17
            assert any_process(world.rank == 1) and not any_process(False)
            assert gather(world.rank * 2) == ([0, 2] if world.is_main else []) and is_main() == (world.rank == 0)

    processes = together(work)
    assert processes.wait() == [0, 0], processes.stderr(0) + processes.stderr(1)


@pytest.mark.dist
def test_process_zero_decides_and_its_refusal_ends_all(together):
    def work():
        world = read_world()
        with process_group(world, CPU):
            assert from_main(lambda: {"rank": world.rank}) == {"rank": 0}
            assert reduce_min(5.0 - world.rank) == 4.0

            def refuse():
                assert world.is_main  # it is called nowhere else
                raise InputError("out", "x", "another")

            try:
                from_main(refuse)
            except InputError:
                raise SystemExit(7) from None

    processes = together(work)
    assert processes.wait() == [7, 2], processes.stderr(0) + processes.stderr(1)


class Drift(Trainable):
    """A weight that each process moves by its own rank; process 1's loss breaks at step 3."""

    def __init__(self, world, breaks):
        self.world, self.breaks, self.weight = world, breaks, torch.zeros(1)

    def step(self, step):
        self.weight = self.weight + 1
        return torch.tensor(
            float("nan") if self.breaks and self.world.rank == 1 and step == 3 else 1.0 + self.world.rank
        )

    def evaluate(self, step, events, *, final):
        assert (events is not None) == self.world.is_main
        return {"psnr": float(step)}

    def parameters(self):
        return [self.weight]

    def state_dict(self):
        return {"weight": self.weight}

    def load_state_dict(self, state):
        self.weight = state["weight"]

    def process_state(self):
        return {"rank": self.world.rank}


def train_together(folder, breaks):
    world = read_world()
    with process_group(world, CPU):
        trainable = Drift(world, breaks)
        run = from_main(lambda: open_run(folder, {}, resume=False, overwrite=False))
        loop = TrainingLoop(
            trainable, run, steps=6, label="drift", device=CPU, world=world, eval_every=100, save_every=2, quiet=True
        )
        try:
            loop.train(Stopper())
        except TrainingDiverged as error:
            assert "at step 3;" in str(error)
            raise SystemExit(5) from None
        assert loop.loss_curve == [(6, 1.5)] and [entry["step"] for entry in loop.curve] == [6]


@pytest.mark.dist
def test_processes_average_their_losses_and_process_zero_keeps_the_state_of_each(together, tmp_path):
    processes = together(lambda: train_together(tmp_path / "run", breaks=False))
    assert processes.wait() == [0, 0], processes.stderr(0) + processes.stderr(1)
    state = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert [own["rank"] for own in state["processes"]] == [0, 1] and state["step"] == 6


@pytest.mark.dist
def test_a_loss_that_breaks_in_one_process_stops_all_at_its_step(together, tmp_path):
    processes = together(lambda: train_together(tmp_path / "run", breaks=True))
    assert processes.wait() == [5, 5], processes.stderr(0) + processes.stderr(1)
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] == 2


@pytest.mark.dist
def test_process_one_of_seed_zero_does_not_draw_the_noise_of_process_zero_of_seed_one(
    together, tiny, pictures, tmp_path
):
    def work():
        world = read_world()
        with process_group(world, CPU):
            for seed in (0, 1):
                options = parse([*tiny, f"data.root={pictures}", f"out={tmp_path}", f"seed={seed}"])
                sources = find_sources(options.sources, options.data, seed=seed, world=world)
                MetaTraining(options, sources, world, CPU)
                (tmp_path / f"seed_{seed}_rank_{world.rank}").write_text(str(float(torch.rand(1))))

    processes = together(work)
    assert processes.wait() == [0, 0], processes.stderr(0) + processes.stderr(1)
    assert len({path.read_text() for path in tmp_path.glob("seed_*")}) == 4


@pytest.mark.dist
def test_a_killed_process_is_noticed(together):
    def work():
        world = read_world()
        with process_group(world, CPU, timedelta(seconds=20)), watching_peers():
            reduce_sum(torch.ones(1))
            if world.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            reduce_sum(torch.ones(1))

    def survivor():
        try:
            work()
        except PeerLost as error:
            raise SystemExit(7) from error

    start = time.monotonic()
    assert together(survivor).wait() == [7, -signal.SIGKILL]
    assert time.monotonic() - start < 15  # by the closed connection, not by the time-out


LEAVING = """
import sys, torch
from torch.nn.parallel import DistributedDataParallel
from evos.distributed import process_group, read_world
with process_group(read_world(), torch.device("cpu")):
    model = DistributedDataParallel(torch.nn.Linear(2, 1))
    sys.setswitchinterval(1000)  # nobody else runs unless the GIL is given up on purpose
    torch.distributed.all_reduce(torch.ones(3_000_000), async_op=True)  # whose tensor is left to a worker thread
"""


@pytest.mark.dist
def test_a_process_ends_although_a_worker_waits_for_the_gil(environment_of):
    """Without the wait in process_group three runs in four abort at the end of the interpreter, or hang."""
    for _ in range(2):
        started = [subprocess.Popen([sys.executable, "-c", LEAVING], env=env) for env in environment_of(2)]
        assert [process.wait(60) for process in started] == [0, 0]
