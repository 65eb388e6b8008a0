"""Genomes and architectures: what there is, and that both say the same."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evonas.space import Space, SpaceConfig, as_text
from evos.errors import InputError

PAPER = Space(SpaceConfig())
TINY = Space(
    SpaceConfig(depths="[1, 2]", heads="[2, 4]", width=8, mlp_ratio="[1, 2]", state="[4, 8]", expand="[0.5, 1]")
)


def test_the_papers_space_has_its_size():
    assert len(PAPER) == 28 and PAPER.option_genes == 10
    assert PAPER.count == 6**4 * 4**3 * 5**3 * 3 * 15 * 255 * 15
    assert round(PAPER.count / 1e8) == 17846
    assert PAPER.widths == [64, 128, 256, 512] and PAPER.kinds == ["mixer"] * 3 + ["attention"]


def test_another_space_is_the_same_code():
    assert len(TINY) == 3 + 1 + 1 + 2 and TINY.count == 2**3 * 2 * 1 * 3


@pytest.mark.parametrize("space", [PAPER, TINY])
@given(seed=st.integers(0, 2**32))
def test_a_genome_survives_decoding(space, seed):
    genome = space.sample(np.random.default_rng(seed))
    assert space.encode(space.decode(genome)) == genome
    assert space.repair(genome) == genome


@given(genes=st.lists(st.integers(-9, 9), min_size=28, max_size=28))
def test_repair_gives_a_network_and_changes_no_more_than_it_must(genes):
    found = PAPER.repair(genes)
    assert PAPER.check(found) == found
    low, high = PAPER.bounds
    for place in PAPER.stage_genes():
        wanted = np.clip(genes[place], low[place], high[place]).tolist()
        assert found[place] == tuple(wanted if any(wanted) else [1, *wanted[1:]])
    assert list(found[:10]) == np.clip(genes[:10], low[:10], high[:10]).tolist()


def test_samples_are_uniform_over_the_networks():
    generator = np.random.default_rng(0)
    counts: dict = {}
    for _ in range(4800):
        genome = TINY.sample(generator)
        counts[genome] = counts.get(genome, 0) + 1
    assert len(counts) == TINY.count == 48
    chi_square = sum((count - 100) ** 2 / 100 for count in counts.values())
    assert chi_square < 85  # 47 degrees of freedom: p = 0.0006


def test_samples_keep_to_what_is_allowed():
    allowed = [(gene,) for gene in TINY.largest]
    allowed[1] = (0, 1)
    found = {TINY.sample(np.random.default_rng(i), allowed) for i in range(20)}
    assert found == {TINY.largest, (1, 0, *TINY.largest[2:])}


def test_the_smallest_and_the_largest_are_networks():
    largest, smallest = PAPER.decode(PAPER.largest), PAPER.decode(PAPER.smallest)
    assert [len(stage.blocks) for stage in largest] == [2, 4, 8, 4]
    assert [len(stage.blocks) for stage in smallest] == [1, 1, 1, 1]
    assert largest[0].mlp_ratio == 4 and smallest[3].mlp_ratio == 0.5
    assert as_text(smallest) == "1×(M0.5 N16 E0.5) 1×(M0.5 N16 E0.5) 1×(M0.5 N16 E0.5) 1×(M0.5)"


@pytest.mark.parametrize(
    ("genome", "words"),
    [
        ([0] * 27, "28 whole numbers"),
        ([0.5] * 28, "28 whole numbers"),
        ([6] + [0] * 9 + [1] * 18, "genes from 0 to"),
        ([0] * 10 + [0, 0] + [1] * 16, "at least one block in stage 1"),
    ],
)
def test_genomes_of_another_space_are_refused(genome, words):
    with pytest.raises(InputError, match=words):
        PAPER.decode(genome)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depths": "[2, 4, 8]"}, "heads: .*3 numbers"),
        ({"depths": "[2, 0, 8, 4]"}, "depths: .*whole numbers above 0"),
        ({"depths": "two"}, "depths: got two"),
        ({"heads": "[3, 4, 8, 16]"}, "heads: got 3; allowed: a divisor of the stage's width, 64"),
        ({"width": 4}, "width: got 4"),
        ({"attention_stages": 5}, "attention_stages: got 5; allowed: 0 to 4"),
        ({"state": "[16.5]"}, "state: .*whole numbers"),
        ({"mlp_ratio": "[2, 1]"}, "mlp_ratio: .*ascending"),
        ({"expand": "[0.01]"}, "expand: got 0.01; allowed: at least one feature in stage 1"),
        ({"mlp_ratio": "[.nan]"}, "mlp_ratio"),
    ],
)
def test_spaces_that_cannot_be_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        SpaceConfig(**options)


def test_an_architecture_of_another_space_is_refused():
    with pytest.raises(InputError, match="2 stages"):
        PAPER.encode(TINY.decode(TINY.largest))
    with pytest.raises(InputError, match="mlp_ratio of stage 1: got 4"):
        TINY.encode(PAPER.decode(PAPER.largest)[:2])
