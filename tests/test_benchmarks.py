"""Benchmarks: all can be started; and two versions of the project in one run, by toy trees with known times."""

import importlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "benchmarks"))  # as its scripts have it

import two_trees  # noqa: E402

SCRIPTS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_benchmark_finds_what_it_imports(name):
    if name in {"ray_derivatives", "nerf", "nerf_peers", "nerf_depth", "nerf_masks", "meta_views", "sobolev_fern"}:
        pytest.importorskip("nerfstudio")
    assert importlib.import_module(name).__doc__


# ---- peers


def test_the_blocks_of_the_peer_tile_every_image_however_they_are_divided():
    pytest.importorskip("nerfstudio")
    from nerf_peers import BlockSampler
    from nerfstudio.data.pixel_samplers import PixelSamplerConfig

    torch.manual_seed(0)
    images = torch.rand(3, 50, 70, 3)
    images[0] = 0.5  # nothing to see: large blocks
    sampler = PixelSamplerConfig(_target=BlockSampler, num_rays_per_batch=64).setup()
    batch = {"image": images, "image_idx": torch.arange(3)}
    for step in range(200):
        drawn = sampler.sample(batch)["indices"]
        sampler.observe(torch.where(drawn[:, :1] == 1, 0.5, 0.01).expand(-1, 3))
        if step in (0, 199):
            count = torch.zeros(3, 50, 70)
            for image, top, left, height, width in sampler.blocks.tolist():
                count[image, top : top + height, left : left + width] += 1
            assert bool((count == 1).all())
        if step == 0:
            sizes = [int((sampler.blocks[:, 0] == image).sum()) for image in range(3)]
            assert sizes[0] == 6 < sizes[1]
    share = (torch.cat([sampler.sample(batch)["indices"][:, 0] for _ in range(5)]) == 1).float().mean()
    assert share > 0.6


def test_hard_rays_are_the_wrong_ones():
    pytest.importorskip("nerfstudio")
    from nerf_peers import HardSampler
    from nerfstudio.data.pixel_samplers import PixelSamplerConfig

    torch.manual_seed(0)
    sampler = PixelSamplerConfig(_target=HardSampler, num_rays_per_batch=8).setup()
    batch = {"image": torch.rand(2, 9, 9, 3), "image_idx": torch.arange(2)}
    assert len(sampler.sample(batch)["indices"]) == 32
    residual = torch.full((32, 3), 1e-4)
    residual[::4] = -1.0
    assert set(range(0, 32, 4)) - set(sampler.choose(residual).tolist()) == set()


# ---- two trees

TOY = """
import sys, json
seconds = {seconds}
print("a library says hello")
for line in sys.stdin:
    with open({log!r}, "a") as file:
        file.write({name!r} + " " + line)
    word, side = line.split()
    assert side in sys.argv, "a side that was not asked for"
    if side == "breaks":
        sys.exit("no such side")
    print("chatter")
    answer = seconds.pop(0) if word == "step" else {{"step": {operations}}}
    print("answer: " + json.dumps(answer), flush=True)
"""


@pytest.fixture
def trees(monkeypatch, tmp_path):
    """trees(mine, theirs): toy trees whose steps take these seconds; the other's root, and a log."""
    log = tmp_path / "log"

    def make(mine: list[float], theirs: list[float]) -> tuple[Path, Path]:
        for name, seconds, operations in (("mine", mine, 7), ("theirs", theirs, 9)):
            folder = tmp_path / name / "benchmarks"
            folder.mkdir(parents=True)
            text = TOY.format(seconds=seconds, log=str(log), name=name, operations=operations)
            (folder / "toy.py").write_text(text)
        monkeypatch.setattr(two_trees, "__file__", str(tmp_path / "mine" / "benchmarks" / "two_trees.py"))
        monkeypatch.setattr(two_trees.Tree, "commit", lambda self: self.root.name)
        return tmp_path / "theirs", log

    return make


def compared(other: Path, *sides: tuple[str, str], repeats: int, warmup: int = 0):
    return two_trees.compare("toy.py", other, sides, lambda names: ["--sides", *names], repeats=repeats, warmup=warmup)


def test_the_ratio_is_that_of_steps_of_the_same_round_without_the_warm_up(trees):
    other, _ = trees([100.0, 2.0, 6.0, 4.0], [1.0, 1.0, 2.0, 4.0])
    found = compared(other, ("now", "then"), repeats=3, warmup=1)
    side = found["sides"]["now : then"]
    assert side["ratio"]["median"] == 2 and side["ratio"]["n"] == 3
    assert side["ratio_of_sums"] == pytest.approx(12 / 7)
    assert side["seconds"]["here"]["median"] == 4 and side["seconds"]["other"]["median"] == 2
    assert side["operations"] == {"here": {"step": 7}, "other": {"step": 9}}
    assert found["commits"] == {"here": "mine", "other": "theirs"}
    assert "now : then: time 2.000" in two_trees.summary(found) and "step 7 (9)" in two_trees.summary(found)


def test_the_trees_take_turns_and_turns_at_being_first(trees):
    other, log = trees([1.0] * 4, [1.0] * 4)
    compared(other, ("a", "a"), ("b", "c"), repeats=2)
    said = log.read_text().splitlines()
    first = ["theirs step a", "mine step a", "theirs step c", "mine step b"]
    second = ["mine step a", "theirs step a", "mine step b", "theirs step c"]
    assert said[:8] == first + second
    assert sorted(said[8:]) == ["mine operations a", "mine operations b", "theirs operations a", "theirs operations c"]


def test_a_tree_that_ends_is_named(trees):
    other, _ = trees([1.0], [1.0])
    with pytest.raises(RuntimeError, match=r"theirs ended without an answer to step breaks"):
        compared(other, ("now", "breaks"), repeats=1)


def test_serving_takes_the_named_step_and_counts_nothing_else(capsys):
    taken = []
    steps = {"a": lambda: taken.append("a"), "b": lambda: taken.append("b")}
    lines = io.StringIO("step b\nstep a\nstep a\noperations b\n")
    two_trees.serve(steps, lambda name: {"step": 3, "side": ord(name)}, lines)
    answers = [json.loads(line.removeprefix("answer: ")) for line in capsys.readouterr().out.splitlines()]
    assert taken == ["b", "a", "a"]
    assert all(0 <= seconds < 1 for seconds in answers[:3]) and answers[3] == {"step": 3, "side": 98}


# ---- nas_ranking.py


def test_both_supernets_get_as_many_steps_of_a_subnet():
    ranking = importlib.import_module("nas_ranking")
    space = ranking.Space(ranking.parse(["train", "space.width=16"])[1].space)
    plan = ranking.scaled(ranking.read_phases(space, ranking.parse(["train"])[1].phases, 100, 8), 3200)
    total = sum(phase.steps * phase.subnets for phase in plan.phases)
    random = ranking.random_plan(plan)
    assert abs(total - 3200) < 20 and random.steps == total
    assert len({gene for step in range(1, 99) for gene in random.genomes(0, step)[0][:1]}) == 6


def test_the_ranking_program_writes_what_its_trainings_found(monkeypatch, tmp_path):
    ranking = importlib.import_module("nas_ranking")
    chance, written = np.random.default_rng(0), {}

    def trained(jobs, cache, workers):
        return {job: chance.random(1 if job.startswith("scratch") else 4).tolist() for job in jobs}

    monkeypatch.setattr(ranking, "run_jobs", trained)
    monkeypatch.setattr(ranking, "write_result", lambda name, numbers: written.update({name: numbers}))
    words = ["--networks", "4", "--seeds", "0", "1", "--cache", str(tmp_path), "--rooms", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["nas_ranking.py", *words])
    ranking.main()
    errors = written["nas_ranking"]["errors"]
    assert {kind: {len(values) for values in own.values()} for kind, own in errors.items()} == {
        "progressive": {4},
        "random": {4},
        "scratch": {4},
    }
    assert -1 <= written["nas_ranking"]["summary"]["ceiling"]["tau"] <= 1


def test_tau_is_one_for_the_same_order_and_its_interval_holds_it():
    ranking = importlib.import_module("nas_ranking")
    errors = np.random.default_rng(0).random(12)
    noisy = errors + 0.1 * np.random.default_rng(1).random(12)
    kinds = {"scratch": {0: errors, 1: 2 * errors}, "progressive": {0: errors**3}, "random": {0: -errors}}
    found = ranking.summary(kinds, 12)
    assert [found[name]["tau"] for name in ("ceiling", "progressive", "random")] == [1, 1, -1]
    assert found["fraction_of_ceiling"] == 1 and found["progressive_minus_random"]["interval"] == [2, 2]
    low, high = ranking.summary({**kinds, "progressive": {0: noisy}}, 12)["progressive"]["interval"]
    assert 0 < low < ranking.tau([(noisy, errors)]) < high <= 1
