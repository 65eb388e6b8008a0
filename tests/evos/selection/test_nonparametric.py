"""Nonparametric teaching: the largest errors at every look, kept until the next."""

import pytest
import torch

from evos.errors import InputError
from evos.schedules import teaching_interval
from evos.selection import IntConfig, Pool, build_selector


@pytest.mark.parametrize("variant", ["incremental", "reverse-incremental", "dense", "dense2"])
def test_the_largest_errors_are_taken_at_every_look_and_kept_until_the_next(train, variant):
    training = train(IntConfig(variant=variant, keep_ratio=0.2), Pool(3, (6, 7)), steps=60)
    looks = [step for step in range(1, 61) if (step - 1) % teaching_interval(variant, step, 60) == 0]
    chosen = None
    for selection in training.run():
        assert selection.is_key == (selection.step in looks)
        if selection.is_key:
            error = training.residuals(selection.step).abs().sum(-1).tolist()
            chosen = [set(sorted(range(42), key=lambda cell, e=row: -e[cell])[:8]) for row in error]
        assert [set(row) for row in selection.index.tolist()] == chosen
    assert looks[0] == 1 and (variant == "dense") == (len(looks) == 60)


def test_the_signal_is_evaluated_only_at_looks_and_only_in_the_rows_asked_for(train):
    training = train(IntConfig(variant="dense2"), Pool(3, (6, 7)))
    asked = []

    def evaluate(rows):
        asked.append(rows.tolist())
        return training.residuals(1)[rows]

    rows = torch.tensor([2, 0], device=training.device)
    for step, some in [(1, None), (2, None), (3, None), (4, rows)]:
        training.selector.select(step, some, evaluate=evaluate)
    assert asked == [[0, 1, 2], [0, 1, 2], [2, 0]]


def test_the_chosen_grow_with_the_keep_schedule_at_looks(train):
    config = IntConfig(variant="dense2", keep_ratio=0.2, keep_schedule="step")
    training = train(config, Pool(1, (100,)), steps=10)
    assert [s.index.shape[1] for s in training.run()] == [20, 20, 36, 36, 52, 52, 68, 68, 84, 84]


def test_keeping_everything_needs_no_look(device):
    selector = build_selector(IntConfig(keep_ratio=1.0), Pool(1, (9,)), total_steps=4, device=device)
    assert selector.select(1).index is None


def test_a_look_without_the_means_to_evaluate_is_refused(device):
    selector = build_selector(IntConfig(), Pool(1, (9,)), total_steps=4, device=device)
    with pytest.raises(InputError, match="selector: got int"):
        selector.select(1)
    with pytest.raises(InputError, match="variant: got incremntal; allowed: did you mean incremental"):
        IntConfig(variant="incremntal")
