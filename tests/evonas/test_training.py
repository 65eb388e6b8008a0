"""Progressive training: its phases, its draws, and that a resumed run and several processes do the same."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch

from evonas.distillation import Distillation, DistillConfig
from evonas.space import Space, SpaceConfig
from evonas.supernet import DenseHead, Network, load_weights
from evonas.training import PAPER_PHASES, TrainConfig, Training, read_phases, single_plan
from evos.distributed import World, process_group, read_world
from evos.errors import InputError
from evos.runs import load_checkpoint, save_checkpoint, seed_everything

PAPER = Space(SpaceConfig())
CPU = torch.device("cpu")
PHASES = [
    {"steps": 3},
    {"steps": 3, "state": "[4, 8]"},
    {"steps": 6, "subnets": 2, "mlp_ratio": "all", "blocks": "all"},
]


@pytest.fixture
def make(tiny_space, slopes) -> Callable[..., Training]:
    """make(seed=0, batch=4, world=None, teacher=None) -> the same training of a supernet each time."""

    def build(seed: int = 0, batch: int = 4, world: World | None = None, teacher: str | None = None) -> Training:
        seed_everything(seed)
        network = Network(tiny_space, DenseHead)
        config = TrainConfig(batch=batch, lr=1e-2, clip=1.0)
        plan = read_phases(tiny_space, PHASES, 12, batch)
        distillation = Distillation(DistillConfig(teacher=teacher), network, slopes, CPU) if teacher else None
        return Training(network, slopes, plan, config, seed=seed, device=CPU, world=world, distillation=distillation)

    return build


def values_of(plan, gene: int, first: int, last: int) -> set[int]:
    return {genome[gene] for step in range(first, last + 1) for genome in plan.genomes(0, step)}


def test_the_papers_phases_free_one_option_after_the_other():
    plan = read_phases(PAPER, PAPER_PHASES, pictures=16, batch=8)
    assert [phase.steps for phase in plan.phases] == [80, 10, 40, 10, 40, 10, 40, 50]
    assert [phase.subnets for phase in plan.phases] == [1, 1, 1, 2, 2, 4, 4, 4]
    names = [option for _, option, _ in PAPER.choices]
    mlp, state, expand = (names.index(name) for name in ("mlp_ratio", "state", "expand"))
    ends = np.cumsum([0, 80, 10, 40, 10, 40, 10, 40, 50])
    seen = [[values_of(plan, gene, a + 1, b) for a, b in pairwise(ends)] for gene in (state, mlp)]
    assert seen[0] == [{3}, {2, 3}, *[{0, 1, 2, 3}] * 6]
    assert seen[1] == [{5}] * 3 + [{3, 4, 5}] + [set(range(6))] * 4
    assert values_of(plan, expand, 181, 190) <= {2, 3, 4} and values_of(plan, expand, 1, 180) == {4}
    blocks = [len(set(plan.genomes(0, step)[0][10:])) for step in range(1, 231)]
    assert set(blocks) == {1} and values_of(plan, 10, 231, 280) == {0, 1}


def test_each_step_has_networks_of_its_own_which_every_process_knows():
    plan = read_phases(PAPER, [{"steps": 9, "subnets": 3, "state": "all", "blocks": "all"}], 16, 8)
    drawn = [plan.genomes(5, step) for step in range(1, 10)]
    np.random.seed(3)
    assert drawn == [plan.genomes(5, step) for step in range(1, 10)]
    assert len({genome for genomes in drawn for genome in genomes}) == 27
    assert plan.genomes(6, 1) != drawn[0]


@pytest.mark.parametrize(
    ("phases", "words"),
    [
        ([], r"train.phases: got \[\]"),
        (["max"], r"train.phases\[0\]: got max"),
        ([{"state": "all"}], "either epochs or steps"),
        ([{"steps": 1, "epochs": 1}], "either epochs or steps"),
        ([{"steps": 1}, {"steps": 0}], r"train.phases\[1\].steps: got 0"),
        ([{"steps": 1, "state": "[5]"}], r"train.phases\[0\].state: got \[5\]; allowed: values of \[16, 32, 48, 64\]"),
        ([{"steps": 1, "depth": "all"}], r"train.phases\[0\].depth"),
        ([{"steps": 1, "blocks": "[1]"}], r"train.phases\[0\].blocks"),
        ([{"steps": 1, "subnets": "no"}], r"train.phases\[0\].subnets: got no"),
    ],
)
def test_phases_that_cannot_be_are_refused(phases, words):
    with pytest.raises(InputError, match=words):
        read_phases(PAPER, phases, 16, 8)


def test_phases_that_are_alike_train_different_networks():
    """Two phases in a row with the same words are as one of twice the length."""
    plan = read_phases(PAPER, [{"steps": 4, "state": "all", "blocks": "all"}] * 2, 16, 8)
    first, second = ([plan.genomes(0, step) for step in steps] for steps in (range(1, 5), range(5, 9)))
    assert plan.phases[0] == plan.phases[1] and all(one != other for one, other in zip(first, second, strict=True))


def test_an_epoch_shows_every_picture_once(make):
    training = make(batch=4)
    for first in (1, 4):
        shown = torch.cat([training.indices(step) for step in range(first, first + 3)])
        assert sorted(shown.tolist()) == list(range(12))
    assert not torch.equal(training.indices(1), training.indices(4))


def test_training_learns_and_keeps_the_best(make):
    training = make()
    before = training.evaluate(0, None, final=False)["error"]
    errors = []
    for step in range(1, 13):
        training.step(step)
        errors.append(training.evaluate(step, None, final=False)["error"])
    assert min(errors) < 0.8 * before
    assert training.best["error"] == min(before, *errors)
    assert training.best["step"] == [before, *errors].index(training.best["error"])
    load_weights(training.network, training.best["weights"], "best")
    assert training.evaluate(13, None, final=True)["error"] == training.best["error"]


def test_the_error_is_the_mean_over_fixed_networks(make, slopes):
    training = make()
    found = training.evaluate(0, None, final=False)
    alone = [
        slopes.evaluate(training.network.extract(genome), [genome], "search", CPU)[0]["abs_rel"]
        for genome in training.judges
    ]
    assert len(alone) == 6 and math.isclose(found["error"], sum(alone) / 6, rel_tol=1e-5)
    assert np.allclose([found[f"error/{i}"] for i in range(6)], alone, rtol=1e-5)


def test_half_a_training_and_the_other_half_are_a_whole_one(make, tmp_path):
    whole, first, second = make(), make(), make()
    losses = [float(whole.step(step)) for step in range(1, 13)]
    twin = [float(first.step(step)) for step in range(1, 6)]
    save_checkpoint(tmp_path / "half.pt", first.state_dict())
    torch.rand(7)
    second.load_state_dict(load_checkpoint(tmp_path / "half.pt"))
    twin += [float(second.step(step)) for step in range(6, 13)]
    assert twin == losses
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_single_network_is_trained_by_the_same_code(tiny_space, slopes):
    seed_everything(0)
    genome = tiny_space.smallest
    network = Network(tiny_space, DenseHead, genome)
    plan = single_plan(tiny_space, genome, 5)
    training = Training(network, slopes, plan, TrainConfig(batch=4, lr=1e-2), seed=0, device=CPU)
    assert plan.steps == 5 and plan.genomes(0, 3) == [genome]
    assert float(training.step(1)) > 0 and training.evaluate(1, None, final=True).keys() == {"error"}


def test_bf16_trains_nearly_alike_and_fp16_is_refused(tiny_space, slopes):
    losses = {}
    for precision in ("fp32", "bf16"):
        seed_everything(0)
        network = Network(tiny_space, DenseHead, tiny_space.largest)
        plan, config = single_plan(tiny_space, tiny_space.largest, 3), TrainConfig(batch=4)
        training = Training(network, slopes, plan, config, seed=0, device=CPU, precision=precision)
        losses[precision] = float(training.step(1))
    assert losses["bf16"] != losses["fp32"] and math.isclose(*losses.values(), rel_tol=0.02)
    with pytest.raises(InputError, match="precision: got fp16"):
        Training(network, slopes, plan, config, seed=0, device=CPU, precision="fp16")


def test_weights_of_another_width_are_refused(tiny_space):
    wider = Space(SpaceConfig(**{**vars(tiny_space.config), "width": 16}))
    with pytest.raises(InputError, match=r"stem.*of shape \[16.*allowed: \[8"):
        load_weights(Network(tiny_space, DenseHead), Network(wider, DenseHead).state_dict(), "checkpoint")
    deeper = Space(SpaceConfig(**{**vars(tiny_space.config), "depths": "[2, 2]"}))
    with pytest.raises(InputError, match="weights of other blocks"):
        load_weights(Network(deeper, DenseHead), Network(tiny_space, DenseHead).state_dict(), "checkpoint")


@pytest.mark.dist
@pytest.mark.parametrize("teacher", [None, "max", "ema"])
def test_two_processes_train_as_one(teacher, make, tmp_path, together):
    whole = make(batch=4, teacher=teacher)
    for step in range(1, 13):
        whole.step(step)

    def work() -> None:
        world = read_world()
        with process_group(world, CPU):
            training = make(batch=4, world=world, teacher=teacher)
            for step in range(1, 13):
                training.step(step)
            torch.save([weight.detach() for weight in training.trained], tmp_path / f"{world.rank}.pt")

    assert together(work).wait() == [0, 0]
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for a, b, expected in zip(one, other, whole.trained, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, expected.detach(), rtol=1e-3, atol=2e-4)


@pytest.mark.dist
@pytest.mark.slow
def test_all_genes_phases_and_a_teacher_give_two_processes_the_curve_of_one(slopes, tmp_path, together):
    """28 genes, every phase of the paper with a step, distillation from the average; half a batch each."""
    space = Space(SpaceConfig(width=16))
    phases = [{**phase, "epochs": 1 / 3} for phase in PAPER_PHASES]  # a step of 4 of 12 pictures

    def losses(world: World) -> list[float]:
        seed_everything(0)
        network = Network(space, DenseHead)
        plan, config = read_phases(space, phases, 12, 4), TrainConfig(batch=4, lr=1e-3, clip=1.0)
        teacher = Distillation(DistillConfig(teacher="ema"), network, slopes, CPU)
        training = Training(network, slopes, plan, config, seed=0, device=CPU, world=world, distillation=teacher)
        return [float(training.step(step)) for step in range(1, plan.steps + 1)]

    def work() -> None:
        world = read_world()
        with process_group(world, CPU):
            torch.save(losses(world), tmp_path / f"{world.rank}.pt")

    assert len(space) == 28
    whole = losses(World())
    assert together(work).wait() == [0, 0]
    halves = np.mean([torch.load(tmp_path / f"{rank}.pt") for rank in range(2)], 0)
    assert len(whole) == 8
    np.testing.assert_allclose(halves, whole, rtol=2e-3)
