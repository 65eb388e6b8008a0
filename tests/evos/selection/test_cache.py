import pytest
import torch

from evos.errors import InputError
from evos.selection import Pool, Selection, TilesConfig, build_selector
from evos.selection.cache import ErrorCache, ResidualCache, RunningCache, pooled_means


def selection(*cells, rows=(0,)):
    return Selection(torch.tensor(rows), torch.tensor([cells]))


def block_means(sums, visits, strength):
    """The slow twin: recursion from the mean of all maps down to every cell of one map."""
    maps, height, width = sums.shape
    everything = sums.sum() / max(visits.sum(), 1e-12)

    def estimate(index, y, x, size):
        own = (index, slice(y * size, (y + 1) * size), slice(x * size, (x + 1) * size))
        whole = size >= max(height, width)
        above = everything if whole else estimate(index, y // 2, x // 2, 2 * size)
        return (sums[own].sum() + strength * above) / (visits[own].sum() + strength)

    return torch.stack([estimate(i, y, x, 1) for i in range(maps) for y in range(height) for x in range(width)])


@pytest.mark.parametrize("shape", [(2, 4, 4), (3, 5, 7), (1, 1, 6), (2, 1, 1)])
def test_pooled_means_are_those_of_a_slow_recursion(shape):
    generator = torch.Generator().manual_seed(0)
    visits = torch.randint(0, 3, shape, generator=generator).double()
    sums = torch.rand(shape, generator=generator, dtype=torch.float64) * visits
    pooled = pooled_means(torch.stack((sums, visits))[None], 2.0)
    assert torch.allclose(pooled.flatten(), block_means(sums, visits, 2.0), rtol=1e-12)


def test_pooled_means_of_nothing_seen_are_zero_and_of_much_seen_are_the_cells_own():
    assert (pooled_means(torch.zeros(1, 3, 1, 3, 3), 2.0) == 0).all()
    values, visits = torch.rand(1, 1, 1, 3, 3), torch.full((1, 1, 1, 3, 3), 1e7)
    assert torch.allclose(pooled_means(torch.cat((values * visits, visits), dim=1), 1.0), values, atol=1e-5)


def test_an_error_cache_keeps_the_size_of_the_last_residual_and_tells_none_from_never_seen():
    cache = ErrorCache(Pool(2, (1, 4)), torch.device("cpu"))
    both = torch.tensor([0, 1])
    cache.write(selection(0, 1, 2, rows=(1,)), torch.tensor([[[3.0, -4.0], [0.0, 0.0], [1.0, 1.0]]]))
    assert torch.allclose(cache.read_error(both)[1, [0, 2]], torch.tensor([12.5**0.5, 1.0]))
    assert 0 < cache.error[1, 1] < 1e-30 and cache.error[1, 3] == 0 and (cache.error[0] == 0).all()
    cache.write(selection(0, 2, rows=(1,)), torch.tensor([[[torch.nan, 1.0], [-2.0, 2.0]]]))
    size, square = cache.errors(both)
    assert torch.allclose(square[1, [0, 2]], torch.tensor([12.5, 4.0])) and torch.equal(size[..., 0], cache.error)
    cache.write(Selection(torch.tensor([0]), None), torch.full((1, 4, 2), 1e9))
    assert (cache.error[0] == 1e6).all(), "clamped like residuals"
    cache.forget(torch.tensor([1]))
    assert (cache.error[1] == 0).all()


def test_a_running_cache_keeps_means_weighted_by_age():
    cache = RunningCache(Pool(2, (1, 3)), torch.device("cpu"), momentum=0.5, pooling=1e-6)
    cache.write(selection(0, 2, rows=(1,)), torch.tensor([[[1.0, 3.0], [2.0, 2.0]]]))
    cache.write(selection(2, rows=(1,)), torch.tensor([[[-1.0, 0.0]]]))
    mean = cache.read(torch.tensor([1]))[0]
    assert torch.allclose(mean[0], torch.tensor([1.0, 3.0]), atol=1e-4)
    assert torch.allclose(mean[2], torch.tensor([(0.5 * 2 - 1) / 1.5, (0.5 * 2 + 0) / 1.5]), atol=1e-4)
    square = cache.mean_square(torch.tensor([1]))[0, [0, 2]]
    assert torch.allclose(square, torch.tensor([5.0, (0.5 * 4 + 0.5) / 1.5]), atol=1e-4)
    assert cache.sums[1, :, -1].tolist() == [1.0, 0.0, 1.5], "only cells that are visited age"
    assert cache.visits.tolist() == [[0] * 3, [1, 0, 2]]
    assert (cache.read(torch.tensor([0])) == 0).all()


def test_a_cell_drawn_twice_in_a_step_counts_both_residuals_and_ages_once():
    cache = RunningCache(Pool(1, (1, 2)), torch.device("cpu"), momentum=0.5, pooling=1e-6)
    cache.write(selection(1), torch.tensor([[[8.0]]]))
    cache.write(selection(1, 1), torch.tensor([[[1.0], [4.0]]]))
    assert cache.read(torch.tensor([0]))[0, 1].item() == pytest.approx((4 + 1 + 4) / 2.5, rel=1e-4)


def test_a_pooled_cache_estimates_unseen_cells_by_their_neighbourhood():
    cache = RunningCache(Pool(1, (2, 4, 4)), torch.device("cpu"), momentum=0.9, pooling=1.0)
    cache.write(selection(0, 1, 31), torch.tensor([[[1.0], [1.0], [-3.0]]]))
    square = cache.mean_square(torch.tensor([0]))[0].view(2, 4, 4)
    # Beside errors of 1 in the first picture, and of 9 in the other; far from both within each.
    assert square[0, 1, 1] < square[0, 3, 3] < square[1, 0, 0] < square[1, 2, 2] < square[1, 3, 3]
    sums, visits = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4)
    sums.view(-1)[[0, 1, 31]], visits.view(-1)[[0, 1, 31]] = torch.tensor([1.0, 1, 9]), 1.0
    assert torch.allclose(square.flatten(), block_means(sums, visits, 1.0))


def test_signals_of_one_axis_are_pooled_along_it():
    cache = RunningCache(Pool(2, (8,)), torch.device("cpu"), momentum=0.9, pooling=1.0)
    cache.write(Selection(torch.tensor([0, 1]), torch.tensor([[0], [5]])), torch.tensor([[[2.0]], [[4.0]]]))
    first, second = cache.mean_square(torch.tensor([0, 1]))
    # One visit in the row: whichever way a mean is drawn to itself, it stays.
    assert torch.allclose(first, torch.full((8,), 4.0)) and torch.allclose(second, torch.full((8,), 16.0))


def test_the_last_residual_is_what_a_plain_cache_knows():
    cache = ResidualCache(Pool(1, (3,)), torch.device("cpu"))
    cache.write(selection(1), torch.tensor([[[1.0, 2.0]]]))
    cache.write(selection(1), torch.tensor([[[3.0, 5.0]]]))
    assert cache.read(torch.tensor([0]))[0].tolist() == [[0, 0], [3, 5], [0, 0]]
    assert cache.mean_square(torch.tensor([0])).tolist() == [[0, 17, 0]]
    assert cache.seen.tolist() == [[False, True, False]]


@pytest.mark.parametrize("running", [False, True])
def test_a_forgotten_row_is_as_if_never_seen(running):
    pool, device = Pool(2, (1, 3)), torch.device("cpu")
    cache = RunningCache(pool, device, momentum=0.5, pooling=1e-6) if running else ResidualCache(pool, device)
    cache.write(Selection(torch.tensor([0, 1]), torch.tensor([[1], [2]])), torch.ones(2, 1, 1))
    cache.forget(torch.tensor([1]))
    cache.write(selection(0, rows=(1,)), torch.tensor([[[4.0]]]))
    seen = cache.visits > 0 if running else cache.seen
    known = cache.read(torch.tensor([0, 1]))[..., 0] * seen
    assert torch.allclose(known, torch.tensor([[0.0, 1, 0], [4, 0, 0]]), atol=1e-4)
    assert seen.tolist() == [[False, True, False], [True, False, False]]


def test_a_state_without_the_map_is_refused_not_taken_for_an_empty_one():
    pool, config = Pool(1, (2, 2)), TilesConfig()
    one = build_selector(config, pool, total_steps=4, device="cpu")
    state = one.state_dict()
    one.load_state_dict(state)  # nothing written yet: the map is there, and None
    del state["sums"]
    with pytest.raises(InputError, match="selector state sums: got nothing"):
        one.load_state_dict(state)


BAD = (float("nan"), float("inf"), -float("inf"))


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("bad", BAD)
def test_a_residual_that_is_not_finite_leaves_its_cell_as_it_was(running, bad):
    pool, device = Pool(1, (1, 3)), torch.device("cpu")
    cache = RunningCache(pool, device, momentum=0.5, pooling=1.0) if running else ResidualCache(pool, device)
    cache.write(selection(0), torch.tensor([[[2.0, 2.0]]]))
    before = [part.clone() for part in cache.errors(torch.tensor([0]))]
    cache.write(selection(0, 1), torch.tensor([[[1.0, bad], [bad, 1.0]]]))
    after = cache.errors(torch.tensor([0]))
    assert all(part.isfinite().all() for part in after)
    assert after[0][0, 0].tolist() == pytest.approx(before[0][0, 0].tolist())
    seen = cache.visits > 0 if running else cache.seen
    assert seen.tolist() == [[True, False, False]]


def test_a_residual_whose_square_overflows_is_remembered_as_a_large_one():
    cache = ResidualCache(Pool(1, (2,)), torch.device("cpu"))
    cache.write(selection(0, 1), torch.tensor([[[1e20], [-1e30]]]))
    assert cache.read(torch.tensor([0])).flatten().tolist() == [1e6, -1e6]
    assert cache.mean_square(torch.tensor([0])).sum().isfinite()


def test_pools_of_three_axes_are_pooled_over_three():
    """Two halves of a volume, apart along its first axis: over two axes its slices would not know of each other."""
    cache = RunningCache(Pool(1, (4, 2, 2), axes=3), torch.device("cpu"), momentum=0.5, pooling=1.0)
    cache.write(selection(0, 15), torch.tensor([[[1.0], [3.0]]]))
    square = cache.mean_square(torch.tensor([0])).view(4, 4)
    whole = 5.0
    block = [(1 + whole) / 2, (9 + whole) / 2]  # of 2 x 2 x 2 cells, below the whole: (1 + 9 + 5 · 1) / 3 = 5
    for depth, near in ((1, 0), (2, 1)):
        assert square[depth].tolist() == pytest.approx([block[near]] * 4)
    assert square[0, 0].item() == pytest.approx((1 + block[0]) / 2)


def test_visits_are_restored():
    one = build_selector(TilesConfig(), Pool(1, (2, 2)), total_steps=4, device="cpu")
    one.cache.write(selection(0, 0, 3), torch.ones(1, 3, 1))
    other = build_selector(TilesConfig(), Pool(1, (2, 2)), total_steps=4, device="cpu")
    other.load_state_dict(one.state_dict())
    assert other.cache.sums[0, :, -1].tolist() == [2.0, 0.0, 0.0, 1.0]
    assert other.cache.visits.tolist() == one.cache.visits.tolist() == [[2, 0, 0, 1]]
