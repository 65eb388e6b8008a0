"""Crossover against a transcription of the paper with sets and loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evos.selection.crossover import CROSSOVERS, cross_add, cross_none, cross_select, masked_mean


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def score_maps(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Both maps of one population: unrelated, with ties, constant, equal, opposite, or of unequal size."""
    cells = 1 + seed % 24
    low, high = noise(cells, seed=seed), noise(cells, seed=seed + 1000)
    kinds = [
        (low, high),
        ((4 * low).floor(), (3 * high).floor()),
        (torch.ones_like(low), torch.full_like(low, 2.0)),
        (low, 3 * low),
        (low, 1 - low),
        (1e-3 * low, high),
        (low, torch.zeros_like(low)),
    ]
    return kinds[seed % len(kinds)]


def test_select_breeds_the_offspring_of_the_paper_from_500_random_maps(device, slow_offspring):
    overlaps = set()
    for seed in range(500):
        low, high = score_maps(seed)
        for n in {0, 1, len(low) // 3, len(low) // 2, len(low)}:
            order = cross_select(low[None].to(device), high[None].to(device), n)[0].tolist()
            expected = slow_offspring(low.tolist(), high.tolist(), n)
            assert set(order[:n]) == expected and len(expected) == n
            assert sorted(order) == list(range(len(low)))
            parents = [set(m.argsort(descending=True, stable=True)[:n].tolist()) for m in (low, high)]
            overlaps.add("none" if not parents[0] & parents[1] else "all" if parents[0] == parents[1] else "some")
    assert overlaps == {"none", "some", "all"}


def test_none_and_add_put_the_largest_first_and_ties_by_index(device):
    for seed in range(50):
        low, high = score_maps(seed)
        cells = range(len(low))
        by_low = sorted(cells, key=lambda c: (-low[c].item(), c))
        by_sum = sorted(cells, key=lambda c: (-(low[c] + high[c]).item(), c))
        assert cross_none(low[None].to(device), high[None].to(device), 3)[0].tolist() == by_low
        assert cross_add(low[None].to(device), high[None].to(device), 3)[0].tolist() == by_sum


def test_everybody_who_did_not_survive_follows_by_falling_low_fitness(device):
    low, high = noise(1, 30, seed=1), noise(1, 30, seed=2)
    rest = cross_select(low.to(device), high.to(device), 12)[0, 12:].tolist()
    assert rest == sorted(rest, key=lambda c: -low[0, c].item())


def test_only_counted_cells_enter_the_share_of_the_parents(device):
    # Both maps agree about nothing: p alone decides how many of the four survivors come from low.
    low = torch.tensor([[8.0, 7, 6, 5, 0, 0, 0, 0, 100]], device=device)
    high = torch.tensor([[0.0, 0, 0, 0, 8, 7, 6, 5, 100]], device=device)
    counted = torch.tensor([[True] * 8 + [False]], device=device)
    order = cross_select(low.masked_fill(~counted, -1), (3 * high).masked_fill(~counted, -1), 4, counted)
    assert set(order[0, :4].tolist()) == {0, 4, 5, 6}  # p = 1 / (1 + 3)
    assert masked_mean(low, counted).item() == 26 / 8
    assert masked_mean(low, torch.zeros_like(counted)).item() == 0


quick = settings(max_examples=40)


@pytest.mark.parametrize("name", CROSSOVERS)
@quick
@given(rows=st.integers(1, 4), cells=st.integers(1, 20), seed=st.integers(0, 99), data=st.data())
def test_a_batch_equals_its_rows_and_permuted_rows_give_permuted_results(device, name, rows, cells, seed, data):
    cross, n = CROSSOVERS[name], data.draw(st.integers(0, cells))
    low, high = ((5 * noise(rows, cells, seed=seed + i)).floor().to(device) for i in (0, 100))
    together = cross(low, high, n)
    for row in range(rows):
        assert torch.equal(together[row], cross(low[row : row + 1], high[row : row + 1], n)[0])
    shuffled = torch.tensor(data.draw(st.permutations(range(rows))), device=device)
    assert torch.equal(cross(low[shuffled], high[shuffled], n), together[shuffled])


@quick
@given(cells=st.integers(1, 20), seed=st.integers(0, 99), data=st.data())
def test_renumbering_the_cells_renumbers_the_survivors(device, cells, seed, data):
    low, high = noise(1, cells, seed=seed), noise(1, cells, seed=seed + 100)
    n, names = data.draw(st.integers(0, cells)), torch.tensor(data.draw(st.permutations(range(cells))))
    survivors = cross_select(low.to(device), high.to(device), n)[0].cpu()
    renamed = cross_select(low[:, names].to(device), high[:, names].to(device), n)[0].cpu()
    assert torch.equal(names[renamed], survivors)
