"""Search: operators against slow twins, resuming against running through, fronts against random search."""

import csv
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymoo.core.population import Population
from pymoo.core.problem import Problem

from evonas.archive import Archive
from evonas.evolution import (
    Evolution,
    GeneCrossover,
    GeneMutation,
    OnlyNew,
    SearchConfig,
    SpaceRepair,
    fresh,
    non_dominated,
)
from evonas.search import Result, hypervolume, pick, points, read_front, search, write_front, write_report
from evonas.space import Genome, Space, SpaceConfig, as_text
from evos.errors import InputError
from evos.runs import Stopped

TINY = SpaceConfig(
    depths="[1, 2]", heads="[2, 2]", width=8, attention_stages=1, mlp_ratio="[1, 2]", state="[4, 8]", expand="[1, 2]"
)
SPACES = [Space(TINY), Space(SpaceConfig())]
SMALL = SearchConfig(population=8, generations=5, objectives="[error, macs]")


def objectives(space: Space, genome: Genome) -> dict[str, float]:
    """A conflict: large genes cost, and the error falls with them, unevenly and with ripples."""
    share = np.array(genome) / np.maximum(space.bounds[1], 1)
    weights = 1 + np.arange(len(genome)) % 5
    ripple = 0.05 * math.sin(7 * float(weights @ share))
    error = 0.1 + float((weights * (1 - share) ** 2).sum() / weights.sum()) + abs(ripple)
    cost = 1e6 * (1 + float((weights[::-1] * share).sum()))
    return {"error": error, "macs": cost, "latency": 1e-3 * (1 + float(share[::2].sum()))}


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch):
    """Thousands of results are on disk soon enough."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


class Toy:
    """Evaluates in reverse order, remembers what it was asked for, and dies after ``limit`` evaluations."""

    def __init__(self, space: Space, limit: float = math.inf) -> None:
        self.space, self.limit = space, limit
        self.asked: list[Genome] = []

    def __call__(self, genomes: Sequence[Genome]) -> Iterator[tuple[Genome, dict[str, float]]]:
        for genome in reversed(genomes):
            if len(self.asked) >= self.limit:
                raise KeyboardInterrupt
            self.asked.append(genome)
            yield genome, objectives(self.space, genome)


def run(folder, space: Space = SPACES[1], config: SearchConfig = SMALL, **options) -> Result:
    return search(space, config, Toy(space), folder, **options)


def problem_of(space: Space) -> Problem:
    low, high = space.bounds
    return Problem(n_var=len(space), n_obj=2, xl=low, xu=high)


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


# ---- operators


@settings(max_examples=30)
@given(space=st.sampled_from(SPACES), seed=st.integers(0, 2**32), crossover=st.floats(0, 1), eta=st.floats(0, 50))
def test_children_are_genomes_of_the_space(space, seed, crossover, eta):
    generator, problem = np.random.default_rng(seed), problem_of(space)
    parents = Population.new("X", np.array([space.sample(generator) for _ in range(20)]))
    pairs = generator.integers(0, 20, (30, 2))
    children = GeneCrossover(space.option_genes, crossover)(problem, parents, pairs, random_state=generator)
    children = GeneMutation(space.option_genes, 1.0, eta)(problem, children, random_state=generator)
    children = SpaceRepair(space)(problem, children)
    assert len(children) == 60
    for child in children.get("X"):
        assert space.check(child.tolist()) == tuple(child)


@pytest.mark.parametrize("space", SPACES)
def test_crossover_exchanges_options_between_two_cuts_and_blocks_by_coins(space):
    n, matings = space.option_genes, 4000
    parents = np.stack([np.zeros((matings, len(space)), int), np.ones((matings, len(space)), int)])
    first, second = GeneCrossover(n, 1.0)._do(None, parents, random_state=np.random.default_rng(0))
    assert (first + second == 1).all()  # what one child has, the other has not
    allowed = Counter()
    for a, b in combinations(range(n + 1), 2):
        allowed[tuple(int(a <= place < b) for place in range(n))] += 1
    counts = Counter(map(tuple, first[:, :n].tolist()))
    assert set(counts) == set(allowed)
    expected = matings / len(allowed)
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_square < len(allowed) + 5 * math.sqrt(2 * len(allowed))
    assert first[:, n:].mean(0) == pytest.approx(0.5, abs=0.04)
    assert np.cov(first[:, n:].T) == pytest.approx(np.eye(len(space) - n) / 4, abs=0.03)  # each coin by itself


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_only_that_fraction_of_parents_exchanges_genes(probability):
    space, generator = SPACES[1], np.random.default_rng(0)
    parents = Population.new("X", np.array([space.smallest, space.largest]))
    pairs = np.tile([0, 1], (4000, 1))
    children = GeneCrossover(space.option_genes, probability)(problem_of(space), parents, pairs, random_state=generator)
    same = sum(tuple(child) in (space.smallest, space.largest) for child in children.get("X")) / len(children)
    assert same == pytest.approx(1 - probability, abs=0.03)


def test_genes_mutate_at_one_over_their_number():
    space, generator = SPACES[1], np.random.default_rng(0)
    n, problem = space.option_genes, problem_of(SPACES[1])
    before = np.array([space.sample(generator) for _ in range(20000)])
    after = GeneMutation(n, 1.0, 0.0)._do(problem, before, random_state=generator)
    flipped = (before != after)[:, n:].mean(0)
    assert flipped == pytest.approx(1 / (len(space) - n), abs=0.006)
    # At eta 0 it goes down or up by a coin, uniformly as far as the bound; the half step around it is the old value.
    below = before[:, :n] + 0.5
    above = space.bounds[1][:n] + 1 - below
    stays = (0.5 / below + 0.5 / above) / 2
    assert (before != after)[:, :n].mean(0) == pytest.approx((1 - stays).mean(0) / n, abs=0.006)


def test_polynomial_mutation_is_that_of_the_formula():
    space, eta = SPACES[1], 1.0
    problem, n = problem_of(space), space.option_genes
    gene = 0  # six choices, 0 to 5
    before = np.tile(np.array(space.smallest), (60000, 1))
    before[:, gene] = 1
    after = GeneMutation(n, 1.0, eta)._do(problem, before, random_state=np.random.default_rng(0))[:, gene]
    # The same by the quantile function of Deb and Goyal, on a fine grid of its uniform variable; bounds -0.5 and 5.5.
    below, above, values = 1.5 / 6, 4.5 / 6, []
    for u in (np.arange(20000) + 0.5) / 20000:
        if u <= 0.5:
            delta = (2 * u + (1 - 2 * u) * (1 - below) ** (eta + 1)) ** (1 / (eta + 1)) - 1
        else:
            delta = 1 - (2 * (1 - u) + 2 * (u - 0.5) * (1 - above) ** (eta + 1)) ** (1 / (eta + 1))
        values.append(round(1 + 6 * delta))
    expected = np.bincount(np.clip(values, 0, 5), minlength=6) / len(values) / n
    expected[1] += 1 - 1 / n
    assert np.bincount(after, minlength=6) / len(after) == pytest.approx(expected, abs=0.003)


def test_that_fraction_of_offspring_mutates():
    space, generator = SPACES[1], np.random.default_rng(0)
    changed = {}
    for probability in (0.1, 1.0):
        before = np.array([space.sample(generator) for _ in range(8000)])
        children = Population.new("X", before.copy())
        after = GeneMutation(space.option_genes, probability, 1.0)(
            problem_of(space), children, random_state=generator
        ).get("X")
        changed[probability] = (before != after).any(1).mean()
    assert changed[0.1] == pytest.approx(0.1 * changed[1.0], abs=0.01)


def test_only_new_genomes_pass_each_once():
    new = OnlyNew()
    new.seen = {(0, 1)}
    others = Population.new("X", np.array([[2, 2]]))
    found = new.do(Population.new("X", np.array([[0, 1], [1, 1], [2, 2], [1, 1], [3, 0]])), others)
    assert found.get("X").tolist() == [[1, 1], [3, 0]]


def test_a_space_may_be_exhausted(tmp_path):
    space = SPACES[0]
    assert len(fresh(space, 60, np.random.default_rng(0))) == space.count == 48
    config = replace(SMALL, population=20, generations=50)
    for algorithm in ("nsga2", "random"):
        found = run(tmp_path / algorithm, space, replace(config, algorithm=algorithm))
        assert len(found.history) < 50
    assert len(found.evaluated) == space.count


@pytest.mark.parametrize(
    "count, population, partitions", [(2, 96, 95), (3, 96, 12), (4, 96, 6), (3, 91, 12), (3, 90, 11)]
)
def test_reference_directions_are_at_most_the_population(count, population, partitions):
    names = ["error", "latency", "macs", "parameters"][:count]
    config = SearchConfig(algorithm="nsga3", population=population, objectives=f"[{', '.join(names)}]")
    assert config.partitions == partitions
    assert len(Evolution(SPACES[1], config).algorithm.ref_dirs) <= population


# ---- the search


@pytest.mark.parametrize("algorithm", ["nsga2", "nsga3", "random"])
def test_a_seed_determines_the_search_and_no_genome_is_evaluated_twice(tmp_path, algorithm):
    config, space = replace(SMALL, algorithm=algorithm), SPACES[1]
    toy = Toy(space)
    first = search(space, config, toy, tmp_path / "a")
    np.random.seed(1)  # the global generator has no part in it
    second = run(tmp_path / "b", config=config)
    assert first == second
    assert max(Counter(toy.asked).values()) == 1 and len(toy.asked) == 8 * 5 == first.history[-1]["evaluations"]
    assert run(tmp_path / "c", config=replace(config, seed=1)).front != first.front
    for name in ("archive.jsonl", "generations/0005.json"):
        assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text()


@pytest.mark.parametrize("algorithm", ["nsga2", "nsga3", "random"])
def test_a_killed_search_ends_as_one_that_ran_through(tmp_path, algorithm):
    config, space = replace(SMALL, algorithm=algorithm), SPACES[1]
    whole = run(tmp_path / "whole", config=config)
    for limit in (0, 1, 7, 8, 9, 23, 39):
        folder, toy = tmp_path / str(limit), Toy(space, limit)
        with pytest.raises(KeyboardInterrupt):
            search(space, config, toy, folder)
        archive = folder / "archive.jsonl"
        if limit % 2:  # the kill came in the middle of a write
            archive.write_bytes(archive.read_bytes()[:-5])
            torn = toy.asked.pop()
        again = Toy(space)
        assert search(space, config, again, folder) == whole
        assert len(toy.asked) + len(again.asked) == 40
        if limit % 2:
            assert torn in again.asked
        assert not set(toy.asked) & set(again.asked)


def test_a_finished_search_is_replayed_without_an_evaluation_and_goes_on_from_there(tmp_path):
    found = run(tmp_path)
    assert search(SPACES[1], SMALL, Toy(SPACES[1], 0), tmp_path) == found
    longer = replace(SMALL, generations=7)
    toy = Toy(SPACES[1])
    assert search(SPACES[1], longer, toy, tmp_path) == run(tmp_path / "other", config=longer)
    assert len(toy.asked) == 2 * 8


def test_a_stop_keeps_every_result(tmp_path):
    toy = Toy(SPACES[1])
    with pytest.raises(Stopped) as stop:
        search(SPACES[1], SMALL, toy, tmp_path, stopped=lambda: 143 * (len(toy.asked) == 11))
    assert stop.value.exit_code == 143
    assert list(Archive(tmp_path / "archive.jsonl", SPACES[1]).values) == toy.asked and len(toy.asked) == 11
    assert run(tmp_path) == run(tmp_path / "other")


def test_a_replay_under_other_options_names_the_generation(tmp_path):
    run(tmp_path)
    with pytest.raises(InputError, match="generation 2, which differs"):
        run(tmp_path, config=replace(SMALL, mutation=1.0))
    path = tmp_path / "generations" / "0003.json"
    entry = json.loads(path.read_text())
    entry["F"][0][0] += 1e-16 + 1e-15
    path.write_text(json.dumps(entry))
    with pytest.raises(InputError, match="generation 3, which differs"):
        run(tmp_path)


def test_an_archive_of_another_space_or_a_damaged_one_is_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(InputError, match="an archive of another space"):
        run(tmp_path, SPACES[0])
    with pytest.raises(InputError, match="an archive of another space"):  # of as many genes, with other values
        run(tmp_path, Space(replace(SpaceConfig(), state="[16, 32, 48, 65]")))
    path = tmp_path / "archive.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for damage in (
        b"\n",
        b"{}\n",
        b"[1]\n",
        b"\xff\n",
        lines[3],
        lines[2][:-9] + b"\n",
        lines[2].replace(b"0, ", b"0.5, ", 1),
    ):
        path.write_bytes(b"".join([*lines[:2], damage, *lines[3:]]))
        with pytest.raises(InputError, match=r"damaged line [34]"):
            run(tmp_path)


def test_a_number_that_is_not_finite_stops_the_search(tmp_path):
    def broken(genomes):
        yield genomes[0], {"error": math.nan, "macs": 1.0}

    with pytest.raises(InputError, match=r"error: got nan; allowed: a finite number, for genome \[\d"):
        search(SPACES[1], SMALL, broken, tmp_path)


def test_a_missing_result_is_named(tmp_path):
    with pytest.raises(RuntimeError, match=r"gave no result for \(\d"):
        search(SPACES[1], SMALL, lambda genomes: [], tmp_path)


@pytest.mark.parametrize(
    "option, value",
    [
        ("objectives", "[error, latency, speed]"),
        ("objectives", "[error]"),
        ("objectives", "[error, macs, macs]"),
        ("objectives", "[macs, latency]"),
        ("objectives", "error"),
        ("algorithm", "nsga4"),
        ("population", 3),
        ("generations", 0),
        ("crossover", 1.1),
        ("mutation", -0.1),
        ("eta", -1.0),
        ("seed", -1),
    ],
)
def test_wrong_options_are_refused(option, value):
    with pytest.raises(InputError, match=option):
        SearchConfig(**asdict(SearchConfig()) | {option: value})


@pytest.mark.parametrize("algorithm", ["nsga2", "nsga3"])
@pytest.mark.parametrize("names", ["[error, macs]", "[error, latency, macs]"])
def test_evolution_beats_random_search_at_equal_evaluations(tmp_path, algorithm, names):
    for seed in range(3):
        config = SearchConfig(algorithm=algorithm, population=24, generations=25, objectives=names, seed=seed)
        found = run(tmp_path / f"{seed}", config=config)
        chance = run(tmp_path / f"random{seed}", config=replace(config, algorithm="random"))
        assert chance.reference == found.reference and chance.history[0] == found.history[0]  # the same first one
        assert chance.history[-1]["evaluations"] == found.history[-1]["evaluations"] == 600
        assert found.history[-1]["hypervolume"] > 1.02 * chance.history[-1]["hypervolume"]


def test_the_front_is_of_all_that_was_evaluated(tmp_path):
    for algorithm in ("nsga2", "random"):
        found = run(tmp_path / algorithm, config=replace(SMALL, algorithm=algorithm))
        F = {genome: [values["error"], values["macs"]] for genome, values in found.evaluated.items()}
        best = {g for g, own in F.items() if not any(dominates(other, own) for other in F.values())}
        assert {genome for genome, _ in found.front} == best
        errors = [values["error"] for _, values in found.front]
        assert errors == sorted(errors)
        volume = hypervolume(np.array(list(F.values())), np.array(found.reference))
        assert found.history[-1]["hypervolume"] == pytest.approx(volume)
    assert set(found.population) == best  # random search keeps the front


# ---- measures of fronts


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), max_size=30))
def test_non_dominated_points_are_those_of_a_loop(rows):
    F = np.array(rows, float).reshape(-1, 3)
    assert non_dominated(F).tolist() == [not any(dominates(b, a) for b in rows) for a in rows]


@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0, 2)), max_size=10))
def test_the_hypervolume_of_two_objectives_is_the_area_of_its_stairs(rows):
    reference, ideal = np.array([1.5, 1.0]), np.array([0.25, 0.0])
    area, height = 0.0, 1.0
    for x, y in sorted((max(x, 0.25), y) for x, y in rows):
        if x < 1.5 and y < height:
            area, height = area + (1.5 - x) * (height - y), y
    found = hypervolume(np.array(rows, float).reshape(-1, 2), reference, ideal)
    assert found == pytest.approx(area / 1.25, abs=1e-9)


def test_the_hypervolume_of_three_boxes_is_that_by_inclusion_and_exclusion():
    F = np.array([[2.0, 6, 8], [6, 2, 5], [9, 8, 1]])
    boxes = 10 - F
    volume = sum(
        (-1) ** (size + 1) * np.prod(np.min(list(own), axis=0))
        for size in (1, 2, 3)
        for own in combinations(boxes, size)
    )
    assert hypervolume(F, np.full(3, 10.0)) == pytest.approx(volume / 1000)
    assert hypervolume(np.array([[11.0, 0, 0]]), np.full(3, 10.0)) == 0


FRONT = [
    ((0, 0), {"error": 0.1, "latency": 9.0, "macs": 9.0}),
    ((0, 1), {"error": 0.2, "latency": 2.0, "macs": 3.0}),
    ((1, 0), {"error": 0.9, "latency": 1.0, "macs": 1.0}),
]


def test_picks_are_the_best_the_knee_and_the_fastest():
    assert [pick(FRONT, word) for word in ("error", "knee", "fast")] == [(0, 0), (0, 1), (1, 0)]
    without = [(genome, {name: own[name] for name in ("error", "macs")}) for genome, own in FRONT]
    assert pick(without, "fast") == (1, 0)
    assert pick(FRONT[:1], "knee") == (0, 0)
    with pytest.raises(InputError, match="pick: got best"):
        pick(FRONT, "best")
    with pytest.raises(InputError, match="front"):
        pick([], "knee")


def test_the_table_of_the_front_reads_back(tmp_path):
    space, found = SPACES[1], run(tmp_path)
    write_front(tmp_path / "front.csv", found.front, space)
    assert read_front(tmp_path / "front.csv", space) == found.front
    rows = list(csv.DictReader((tmp_path / "front.csv").read_text().splitlines()))
    assert list(rows[0]) == ["genome", "error", "latency", "macs", "parameters", "architecture"]
    for row, (genome, values) in zip(rows, found.front, strict=True):
        assert row["genome"] == " ".join(map(str, genome)) and float(row["error"]) == values["error"]
        assert float(row["macs"]) == values["macs"] and row["parameters"] == ""
        assert row["architecture"] == as_text(space.decode(genome))
    for text in ("genome,error\nx,1\n", "genome,error\n", "a,b\n1,2\n"):
        (tmp_path / "front.csv").write_text(text)
        with pytest.raises(InputError, match="damaged table"):
            read_front(tmp_path / "front.csv", space)
    with pytest.raises(InputError, match="No such file"):
        read_front(tmp_path / "none.csv", space)


def test_the_report_has_pictures_with_random_search_beside(tmp_path):
    found = run(tmp_path / "a", config=replace(SMALL, objectives="[error, latency, macs]"))
    chance = run(tmp_path / "b", config=replace(SMALL, objectives="[error, latency, macs]", algorithm="random"))
    write_report(found, SPACES[1], tmp_path, [chance])
    for name in ("pareto.png", "hypervolume.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert read_front(tmp_path / "front.csv", SPACES[1]) == found.front


def test_points_are_rows_in_the_order_of_the_names():
    rows = [{"error": 1.0, "macs": 2}, {"error": 3.0, "macs": 4}]
    assert points(rows, ["macs", "error"]).tolist() == [[2, 1], [4, 3]]
    assert points([], ["macs", "error"]).shape == (0, 2)
