"""The space of fields: one genome a field, sizes within the limit, bad lists refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evonas import field_space
from evonas.evolution import Evolution, RandomSearch, first_generation
from evonas.field_search import FieldSearchConfig
from evonas.field_space import FieldSpace, FieldSpaceConfig, field_parameters
from evos.errors import InputError
from evos.fields import FIELDS, build_field

SMALL = FieldSpaceConfig(
    hidden_features="[8, 16]",
    hidden_layers="[1, 2]",
    table_log2="[4, 6, 8, 10, 12]",
    levels="[1, 2, 3]",
    base_resolution="[4, 16]",
    finest_resolution="[8, 16, 32]",
    optimizer="[adam, muon, schedule_free]",
)
SPACES = [FieldSpace(SMALL), FieldSpace(FieldSpaceConfig(max_parameters=5000)), FieldSpace(SMALL, axes=1, channels=1)]


def raw_genes(space: FieldSpace) -> st.SearchStrategy[list[int]]:
    return st.tuples(*(st.integers(-1, int(high) + 1) for high in space.bounds[1])).map(list)


spaces_and_genes = st.sampled_from(SPACES).flatmap(lambda space: st.tuples(st.just(space), raw_genes(space)))


@settings(max_examples=150)
@given(spaces_and_genes)
def test_repair_gives_a_genome_that_stays_and_comes_back_from_its_field(pair):
    space, genes = pair
    genome = space.repair(genes)
    assert space.repair(genome) == genome == space.check(list(genome))
    assert space.encode(space.decode(genome)) == genome
    limit = space.config.max_parameters
    assert limit is None or space.parameters(genome) <= limit


@settings(max_examples=60)
@given(st.sampled_from([SPACES[0], SPACES[2]]).flatmap(lambda space: st.tuples(st.just(space), raw_genes(space))))
def test_the_canonical_form_is_the_same_field(pair):
    """Where nothing is out of bounds or too large, repair may change genes, but no value of the field."""
    space, genes = pair
    genes = np.clip(genes, *space.bounds).tolist()
    named = dict(zip(space.names, genes, strict=True))
    given_, canonical = space.candidate(named), space.decode(space.repair(genes))
    if given_.field.name == "hashgrid" and given_.field.finest_resolution < given_.field.base_resolution:
        return  # no field at all
    assert canonical.lr == given_.lr
    assert canonical.optimizer == ("adam" if given_.field.name == "wire" else given_.optimizer)
    coords = 2 * torch.rand(20, space.axes) - 1
    one, other = (build_field(own.field, space.axes, space.channels, seed=1) for own in (given_, canonical))
    assert torch.equal(one(coords), other(coords))


def genome_of(space: FieldSpace, **values) -> tuple[int, ...]:
    genes = {name: 0 for name in space.names}
    genes |= {name: space.choices[name].index(value) for name, value in values.items()}
    return space.repair([genes[name] for name in space.names])


def test_options_of_other_families_make_no_second_genome():
    space = SPACES[0]
    plain = genome_of(space, family="siren", omega=30)
    assert genome_of(space, family="siren", omega=30, levels=3, sigma=20, frequencies=8) == plain
    assert genome_of(space, family="siren", omega=20) != plain
    # 32 × 32 vertices fit 2^10 rows: a larger table is the same.
    grids = [genome_of(space, family="hashgrid", levels=2, finest_resolution=32, table_log2=n) for n in (8, 10, 12)]
    assert grids[0] != grids[1] == grids[2]
    # One level has no finest resolution; a finest one below the base is raised to it.
    one = {"family": "hashgrid", "levels": 1, "base_resolution": 16, "table_log2": 12}
    assert len({genome_of(space, **one, finest_resolution=n) for n in (8, 16, 32)}) == 1
    assert space.decode(genome_of(space, **one)).field.finest_resolution == 16
    assert space.decode(genome_of(space, family="wire", optimizer="muon")).optimizer == "adam"
    with pytest.raises(InputError, match="canonical"):
        space.check([*genome_of(space, family="relu")[:3], 1, *genome_of(space, family="relu")[4:]])


def test_parameters_are_those_of_the_layers():
    config = FIELDS["siren"](hidden_features=256, hidden_layers=3)
    assert field_parameters(config, 2, 3) == 3 * 256 + 3 * (256 * 256 + 256) + 257 * 3 == 198915
    wire = FIELDS["wire"](hidden_features=16, hidden_layers=1)  # 11 complex features
    assert field_parameters(wire, 2, 3) == 3 * 11 + 2 * (12 * 11 + 12 * 3)


def test_grids_are_counted_without_being_built(monkeypatch):
    config = FIELDS["hashgrid"](levels=4, table_log2=8, finest_resolution=64)
    built = sum(p.numel() for p in build_field(config, 2, 3, seed=0).parameters())
    monkeypatch.setattr(field_space, "build_field", None)
    assert field_parameters(config, 2, 3) == built
    assert field_parameters(replace(config, table_log2=24, finest_resolution=8192), 2, 3) > 2**24


def test_too_large_fields_shrink_as_little_as_they_must():
    space = FieldSpace(replace(SMALL, family="[siren]", max_parameters=600))
    unlimited = FieldSpace(replace(SMALL, family="[siren]"))
    wanted = genome_of(unlimited, family="siren", hidden_features=16, hidden_layers=2)  # 643
    assert unlimited.parameters(wanted) == 643
    found = space.decode(space.repair(wanted)).field
    assert (found.hidden_layers, found.hidden_features) == (1, 16)  # 371; 8 features would leave 195


def test_random_genomes_have_every_family_alike():
    space, generator = SPACES[0], np.random.default_rng(0)
    families = [space.sample(generator)[0] for _ in range(1600)]
    assert np.bincount(families) == pytest.approx(np.full(8, 200), abs=60)


def test_genes_that_mean_nothing_are_drawn_anew_and_others_stay():
    space, generator = SPACES[0], np.random.default_rng(0)
    genome = np.array(genome_of(space, family="siren", omega=45))
    filled = space.fill(np.tile(genome, (4, 500, 1)), generator)
    used = np.isin(space.names, ["family", "optimizer", "lr", *space.used("siren")])
    assert used.sum() == 8 and (filled[..., used] == genome[used]).all()
    for gene in np.flatnonzero(~used):
        count = len(space.choices[space.names[gene]])
        shares = np.bincount(filled[..., gene].ravel(), minlength=count) / 2000
        assert shares == pytest.approx(np.full(count, 1 / count), abs=0.05)


@pytest.mark.parametrize(
    "option, text, line",
    [
        ("family", "[sirene]", "family: got"),
        ("family", "[]", "family: got"),
        ("hidden_features", "[16, 8]", "ascending"),
        ("hidden_features", "[1.5]", "whole numbers"),
        ("omega", "30", "omega: got 30"),
        ("lr", "[0]", "lr: got"),
        ("optimizer", "[schedule_free]", "adam among them"),
        ("level_features", "[9]", "level_features"),
        ("levels", "[33]", "levels"),
        ("base_resolution", "[1024]", "finest_resolution"),
        ("base_resolution", "[1]", "base_resolution"),
        ("max_parameters", 0, "max_parameters"),
        ("max_parameters", 50, "max_parameters: got 50"),
    ],
)
def test_bad_options_are_refused(option, text, line):
    with pytest.raises(InputError, match=line):
        FieldSpace(FieldSpaceConfig(**{option: text}))


def test_a_field_of_another_space_is_refused():
    space = SPACES[0]
    found = space.decode(genome_of(space, family="siren"))
    with pytest.raises(InputError, match="omega: got 31"):
        space.encode(replace(found, field=replace(found.field, omega=31.0)))
    small = FieldSpace(replace(SMALL, family="[siren]", max_parameters=300))
    with pytest.raises(InputError, match="300 parameters"):
        small.encode(replace(found, field=replace(found.field, hidden_features=16)))


def test_the_first_generation_holds_the_fields_that_ship_and_random_ones():
    space = FieldSpace(FieldSpaceConfig())
    siren, grid, small = (space.decode(genome) for genome in space.start)
    assert (siren.field.name, siren.field.hidden_layers, siren.field.hidden_features) == ("siren", 3, 256)
    assert (siren.field.init_scale, siren.optimizer, siren.lr) == (1.5, "schedule_free", 1e-3)
    assert grid.field == FIELDS["hashgrid"]() and small.field == FIELDS["hashgrid"](table_log2=12)
    assert (grid.optimizer, grid.lr) == ("adam", 1e-2)
    first = first_generation(space, 8, np.random.default_rng(0))
    assert first[:3] == space.start and len(set(first)) == 8
    assert first_generation(space, 2, np.random.default_rng(0)) == space.start[:2]
    for algorithm in ("nsga2", "random"):
        config = FieldSearchConfig(algorithm=algorithm, population=6, generations=2)
        method = RandomSearch(space, config) if algorithm == "random" else Evolution(space, config)
        assert set(space.start) <= set(method.ask())


def test_what_a_search_begins_with_is_fitted_to_the_space():
    space = FieldSpace(FieldSpaceConfig(hidden_features="[8, 100, 300]", lr="[0.001, 0.004]", max_parameters=30000))
    assert all(space.parameters(genome) <= 30000 for genome in space.start)
    own = space.decode(space.nearest({"family": "siren", "hidden_features": "170", "lr": 0.0021}))
    assert own.field.hidden_features == 100 and own.lr == 0.004 and own.optimizer == "adam"
    assert FieldSpace(FieldSpaceConfig(family="[relu]")).start == [] == FieldSpace(FieldSpaceConfig(start="[]")).start
    twice = "[{family: siren, first_omega: 29}, {family: siren, first_omega: 31}]"
    assert len(FieldSpace(FieldSpaceConfig(start=twice)).start) == 1


@pytest.mark.parametrize(
    "start",
    [
        "siren",
        "[siren]",
        "[{family: mlp}]",
        "[{hidden_layers: 2}]",
        "[{family: siren, sigma: 2}]",
        "[{family: [siren]}]",
        "[{family: siren, lr: fast}]",
        "[{family: siren, lr: -1}]",
        "[{family: siren, lr: [1]}]",
        "[{family: siren, optimizer: adams}]",
    ],
)
def test_what_no_field_is_cannot_begin_a_search(start):
    with pytest.raises(InputError, match="start"):
        FieldSpace(FieldSpaceConfig(start=start))
