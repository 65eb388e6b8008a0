"""What every strategy promises: counts, masks, seeds, exact resume, and never a wait for the host."""

import io

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from evos.errors import InputError
from evos.selection import FullConfig, Pool, SelectorConfig, UniformConfig, build_selector

# Points of soft mining walk freely, those of tiles are drawn with replacement: these may coincide.
MAY_COINCIDE = ("error", "soft", "tiles", "tile_error")


def random_mask(rows: int, cells: int) -> torch.Tensor:
    """Unequal numbers of usable cells in the rows."""
    mask = torch.rand(rows, cells, generator=torch.Generator().manual_seed(3)) < 0.7
    mask[0, : cells // 2] = False
    return mask


def equal(one, other) -> bool:
    return all(
        (a is None) == (b is None) and (a is None or torch.equal(a, b))
        for x, y in zip(one, other, strict=True)
        for a, b in ((x.index, y.index), (x.weight, y.weight))
    )


@pytest.mark.parametrize("shape", [(42,), (6, 7), (2, 3, 7), (1, 9), (1,), (2, 1)])
def test_points_lie_in_the_pool_and_are_distinct_and_their_weights_finite(train, strategy, shape):
    if strategy == "egra" and len(shape) == 2 and min(shape) < 2:
        with pytest.raises(InputError, match="at least 2x2"):
            train(strategy, Pool(1, shape))
        return
    for rows in (1, 2):
        for selection in train(strategy, Pool(rows, shape)).run():
            if selection.weight is not None:
                assert selection.weight.isfinite().all()
            if selection.index is None:
                continue
            assert 0 <= selection.index.min() and selection.index.max() < torch.Size(shape).numel()
            for row in selection.index.tolist():
                assert strategy in MAY_COINCIDE or len(set(row)) == len(row)


def test_masked_cells_are_never_drawn_and_have_no_weight_where_all_are(train, strategy):
    mask = random_mask(2, 42)
    for selection in train(strategy, Pool(2, (6, 7), mask=mask)).run():
        if selection.index is None:
            error = torch.rand(2, 42, generator=torch.Generator().manual_seed(1))
            assert not selection.weight[~mask].any()
            row_means = [error[row][mask[row]].mean() for row in range(2)]
            assert torch.allclose(selection.reduce(error.to(selection.weight)).cpu(), sum(row_means) / 2)
        else:
            assert_only_usable(selection, mask)


def assert_only_usable(selection, mask):
    """Masked cells fill up a row alone that has no others left, and then with weight 0."""
    drawn = mask.gather(1, selection.index.cpu())
    if not drawn.all():
        assert not selection.weight.cpu()[~drawn].any()
        assert torch.allclose(selection.weight.mean(1), torch.ones(len(mask), device=selection.weight.device))
        for row in range(len(mask)):
            assert drawn[row].all() or int(drawn[row].sum()) == int(mask[row].sum())


def test_rows_of_a_batch_are_selected_without_masked_cells_whenever_they_come(train, strategy):
    mask = random_mask(3, 42)
    training = train(strategy, Pool(3, (6, 7), mask=mask))
    for step in range(1, 9):
        rows = torch.tensor([step % 3, (step + 1) % 3])
        selection = training.step(step, rows.to(training.device))
        assert torch.equal(selection.rows.cpu(), rows)
        if selection.index is not None:
            assert_only_usable(selection, mask[rows])


def test_the_number_of_points_does_not_depend_on_data(train, strategy):
    one, other = train(strategy), train(strategy, seed=5)
    other.signal = 1 - 2 * other.signal
    shapes = [[s.index is not None and s.index.shape for s in training.run()] for training in (one, other)]
    assert shapes[0] == shapes[1]


def test_the_same_seed_selects_the_same_whatever_happens_to_the_global_generator(train, strategy):
    torch.manual_seed(1)
    first = train(strategy).run()
    torch.manual_seed(2)
    torch.rand(5)
    assert equal(first, train(strategy).run())
    assert equal(first, train(strategy, seed=0, rank=0).run())


@pytest.mark.parametrize("other", [{"seed": 1}, {"rank": 1}])
def test_another_seed_and_another_rank_select_differently(train, strategy, other):
    if strategy in ("full", "int"):
        pytest.skip("nothing is drawn")
    assert not equal(train(strategy).run(), train(strategy, **other).run())


def test_rank_1_of_seed_0_does_not_draw_what_rank_0_of_seed_1_draws(train, strategy):
    if strategy in ("full", "int"):
        pytest.skip("nothing is drawn")
    assert not equal(train(strategy, seed=0, rank=1).run(), train(strategy, seed=1, rank=0).run())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e20])
def test_one_error_that_is_not_finite_moves_nothing_but_its_own_cell(train, strategy, bad):
    """A key step with it: later steps go on, and what is remembered stays finite."""
    training = train(strategy)
    clean = training.residuals

    def residuals(step):
        found = clean(step).clone()
        if step in (1, 2, 5):
            found[0, 7] = bad
        return found

    training.residuals = residuals
    selections = training.run()
    assert len(selections) == training.steps
    for value in training.selector.state_dict().values():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            assert value[1:].isfinite().all(), "another row"
            if strategy != "soft":  # whose point restarts, its own error being what it is
                assert value.isfinite().all()


def test_a_forgotten_row_is_selected_from_as_one_never_seen(train, strategy):
    """Of many alike rows the forgotten ones no longer favour what they did."""
    if strategy in ("full", "uniform", "egra", "expansive", "int"):
        pytest.skip("remembers nothing between steps, or what its target says")
    training = train(strategy, Pool(400, (6, 7)))
    training.signal[:] = training.signal[0].clone()
    for step in (1, 2, 3, 4, 5):
        training.step(step)
    selector, forgotten = training.selector, torch.arange(200, 400, device=training.device)
    selector.forget(forgotten)
    state = {name: value for name, value in selector.state_dict().items() if isinstance(value, torch.Tensor)}
    fresh = train(strategy, Pool(400, (6, 7)), seed=5).selector.state_dict()
    for name, value in state.items():
        if name == "generator":
            continue
        if value.is_floating_point() or value.dtype == torch.bool or name == "visits":
            if name != "points":
                expected = 0 if fresh[name] is None else fresh[name][200:].to(value)
                assert (value[200:] == expected).all(), name
        else:
            assert not torch.equal(value[200], value[201]), "random again"
    index = selector.select(6, forgotten).index
    counts = torch.bincount(index.flatten().cpu(), minlength=42).double()
    expected = counts.sum() / 42
    assert (counts - expected).abs().max() < 6 * expected.sqrt()


def test_a_generator_of_another_kind_of_device_goes_on_from_a_seed_of_its_state(train, strategy):
    one, other, third = train(strategy), train(strategy, seed=3), train(strategy, seed=4)
    state = one.selector.state_dict()
    state["generator"] = torch.arange(16, dtype=torch.uint8)  # as long as CUDA's
    for training in (other, third):
        training.selector.load_state_dict(state)
    assert equal([other.step(step) for step in range(2, 7)], [third.step(step) for step in range(2, 7)])


def test_steps_past_the_planned_end_go_on_as_the_last(train, strategy):
    training = train(strategy)
    shapes = [s.index.shape for s in training.run() if s.index is not None]
    past = [training.step(step) for step in range(training.steps + 1, 3 * training.steps)]
    # int looks at every second step: at its last look it had not reached the end of its schedule yet.
    allowed = {*shapes[-1:], (2, training.selector.keep_count(training.steps))}
    assert {selection.index.shape for selection in past if selection.index is not None} <= allowed


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(train, strategy):
    whole = train(strategy).run()
    for stop in (1, 6, 7):
        before = train(strategy)
        for step in range(1, stop + 1):
            before.step(step)
        file = io.BytesIO()
        torch.save(before.selector.state_dict(), file)
        file.seek(0)
        after = train(strategy, seed=99)
        after.selector.load_state_dict(torch.load(file, weights_only=True))
        torch.manual_seed(stop)
        torch.rand(3)
        assert equal(after.run(first=stop + 1), whole[stop:])


def test_a_loaded_state_is_a_copy(train, strategy):
    source, copy = train(strategy), train(strategy)
    source.step(1)
    copy.selector.load_state_dict(source.selector.state_dict())
    expected = [source.step(step) for step in range(2, 7)]
    assert equal([copy.step(step) for step in range(2, 7)], expected)


def test_the_state_of_another_strategy_version_or_pool_is_refused(train, strategy):
    selector = train(strategy).selector
    for wrong in ({}, {**selector.state_dict(), "name": "other"}, {**selector.state_dict(), "version": 1}):
        with pytest.raises(InputError, match=f"selector state: .* allowed: {selector.config.name} version 2"):
            selector.load_state_dict(wrong)
    stranger = train("uniform" if strategy == "full" else "full").selector
    with pytest.raises(InputError, match="selector state"):
        selector.load_state_dict(stranger.state_dict())
    if selector.state:
        for pool in (Pool(3, (6, 7)), Pool(2, (12, 7))):
            larger = train(strategy, pool)
            larger.step(1)
            with pytest.raises(InputError, match="selector state"):
                selector.load_state_dict(larger.selector.state_dict())
        lacking = selector.state_dict()
        del lacking[selector.state[0]]
        with pytest.raises(InputError, match="selector state"):
            selector.load_state_dict(lacking)


def test_unknown_strategies_and_missing_targets_are_refused(train, strategy):
    training = train(strategy)
    if "target" in training.selector.needs:
        with pytest.raises(InputError, match="target"):
            build_selector(training.config, training.pool, total_steps=9, device="cpu")
    with pytest.raises(InputError, match="selector"):
        build_selector(SelectorConfig(), training.pool, total_steps=9, device="cpu")


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.1, float("nan")])
def test_a_keep_ratio_outside_its_range_is_refused(ratio):
    with pytest.raises(InputError, match=r"keep_ratio: .* above 0 and at most 1"):
        UniformConfig(keep_ratio=ratio)
    with pytest.raises(InputError, match="did you mean cosine"):
        FullConfig(keep_schedule="cosinus")


# ---- no wait for the host ------------------------------------------------------------------------------------------


class NoHostSync(TorchDispatchMode):
    """Fails on operations whose result the host must wait for on an accelerator."""

    WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        boolean = "index" in name and any(
            isinstance(i, torch.Tensor) and i.dtype == torch.bool
            for given in args
            if isinstance(given, list | tuple)
            for i in given
        )
        assert name not in self.WAITS and not boolean, f"{name} makes the host wait"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def no_host_sync(monkeypatch):
    """A context in which waiting for the host, or copying from it, fails."""

    def forbidden(*args, **kwargs):
        raise AssertionError("the host waits for a tensor's values")

    class Context(NoHostSync):
        def __enter__(self):
            self.patch = monkeypatch.context()
            patch = self.patch.__enter__()
            for name in ("item", "tolist", "nonzero", "numpy", "cpu", "new_tensor", "__bool__", "__int__", "__float__"):
                patch.setattr(torch.Tensor, name, forbidden)
            for name in ("tensor", "as_tensor"):
                patch.setattr(torch, name, forbidden)
            return super().__enter__()

        def __exit__(self, *error):
            super().__exit__(*error)
            self.patch.__exit__(*error)

    return Context


def test_the_guard_against_waiting_notices_it(no_host_sync):
    x = torch.arange(3)
    waits = [
        lambda: x.item(),
        lambda: x.tolist(),
        lambda: bool(x.any()),
        lambda: int(x[0]),
        lambda: x[x > 1],
        lambda: x.clone().__setitem__(x > 1, 0),
        lambda: torch.nonzero(x),
        lambda: x.masked_select(x > 1),
        lambda: x.new_tensor([1]),
    ]
    for wait in waits:
        with no_host_sync(), pytest.raises(AssertionError):
            wait()


@pytest.mark.parametrize("masked", [False, True])
def test_no_step_waits_for_the_host(train, strategy, masked, no_host_sync):
    mask = random_mask(2, 42) if masked else None
    training = train(strategy, Pool(2, (6, 7), mask=mask))
    rows = torch.tensor([1], device=training.device)
    with no_host_sync():
        keys = [training.step(step).is_key for step in range(1, 10)]
        training.step(10, rows)
    if strategy in ("evos", "evos add", "nint", "tiles"):
        assert keys == [step % 4 == 1 for step in range(1, 10)]


@pytest.mark.gpu
@pytest.mark.parametrize("masked", [False, True])
def test_no_step_synchronises_with_a_gpu(train, strategy, masked):
    mask = random_mask(2, 42) if masked else None
    training = train(strategy, Pool(2, (6, 7), mask=mask), on=torch.device("cuda"))
    rows = torch.tensor([1], device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(1, 10):
            training.step(step)
        training.step(10, rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")
