"""Schedules against tables built another way, closed forms and the paper's counts."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evos.schedules import (
    KEEP_SCHEDULES,
    LR_SCHEDULES,
    default_key_intervals,
    is_key_step,
    keep_ratio,
    key_interval,
    learning_rate,
    mutation_ratio,
    teaching_interval,
)

PAPER_STEPS = 5000


def test_the_paper_has_72_key_steps_in_5000():
    keys = [s for s in range(1, 5001) if is_key_step(s, 5000, *default_key_intervals(5000))]
    assert keys == [s for s in range(1, 5001) if s % int(100 - 50 / 5000 * s) == 1]
    assert len(keys) == 72 and keys[0] == 1


@pytest.mark.parametrize(
    ("steps", "intervals"), [(5000, (100, 50)), (100_000, (100, 50)), (300, (10, 5)), (10, (2, 2))]
)
def test_default_intervals_shrink_with_short_runs_only(steps, intervals):
    assert default_key_intervals(steps) == intervals


def test_equal_and_unit_intervals_make_the_key_steps_they_say():
    assert [s for s in range(1, 12) if is_key_step(s, 11, 5.0, 5.0)] == [1, 6, 11]
    assert all(is_key_step(s, 11, 1.0, 1.0) for s in range(1, 12))
    assert key_interval(11, 11, 5.0, 2.0) == 2


def test_the_step_schedule_climbs_from_20_to_92_percent_in_ten_equal_stages():
    table = [round(0.2 + 0.08 * stage, 2) for stage in range(10) for _ in range(500)]
    assert [round(keep_ratio("step", s, 5000, 0.2), 9) for s in range(1, 5001)] == table
    assert (table[0], table[-1]) == (0.2, 0.92)


@given(total=st.integers(10, 9999), data=st.data())
def test_the_stages_of_the_step_schedule_begin_exactly_at_the_tenths(total, data):
    stage = data.draw(st.integers(0, 9))
    first = -(-stage * total // 10) + 1  # the first step that has the tenths behind it
    assert keep_ratio("step", first, total, 0.2) == pytest.approx(0.2 + 0.08 * ((first - 1) * 10 // total))


@given(start=st.floats(0.2, 1), total=st.integers(1, 9999), data=st.data())
def test_smooth_keep_schedules_follow_their_closed_forms(start, total, data):
    step = data.draw(st.integers(1, total))
    t = (step - 1) / total
    rise = math.sin(math.pi * t / 2) ** 2  # = (1 - cos πt) / 2
    expected = {
        "constant": start,
        "linear": start * (1 - t) + t,
        "cosine": start * (1 - rise) + rise,
        "reverse-cosine": start * (1 - rise) + 0.2 * rise,
    }
    for schedule, value in expected.items():
        assert keep_ratio(schedule, step, total, start) == pytest.approx(value, abs=1e-12)


@given(start=st.floats(0.001, 1), total=st.integers(1, 9999), data=st.data())
def test_every_keep_ratio_lies_in_its_range_and_begins_at_its_start(start, total, data):
    step = data.draw(st.integers(1, total))
    for schedule in KEEP_SCHEDULES:
        assert 0 < keep_ratio(schedule, step, total, start) <= 1
        assert keep_ratio(schedule, 1, total, start) == pytest.approx(start)


@given(total=st.integers(2, 9999), end=st.floats(0.001, 1), warmup=st.floats(0, 0.9), data=st.data())
def test_the_learning_rate_climbs_in_a_line_and_falls_by_the_closed_forms(total, end, warmup, data):
    step = data.draw(st.integers(1, total))
    top = max(1, round(warmup * total))  # the step with the highest rate
    t = max(0, step - top) / max(1, total - top)
    falls = {
        "geometric": math.exp(t * math.log(end)),
        "linear": (1 - t) + t * end,
        "cosine": end + (1 - end) * math.cos(math.pi * t / 2) ** 2,
    }
    for schedule, fall in falls.items():
        expected = step / top if step < top else fall
        assert learning_rate(schedule, step, total, end, warmup) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("schedule", LR_SCHEDULES)
def test_the_learning_rate_stays_exactly_where_it_is_without_decay_and_warm_up(schedule):
    assert {learning_rate(schedule, step, 300, 1.0) for step in range(1, 301)} == {1.0}
    assert learning_rate(schedule, 1, 1, 0.5) == 1.0  # a run of one step


def test_linear_and_cosine_end_at_nothing():
    assert learning_rate("linear", 300, 300, 0.0) == 0
    assert learning_rate("cosine", 300, 300, 0.0) == pytest.approx(0, abs=1e-12)
    rates = [learning_rate("linear", step, 11, 0.0, 0.5) for step in range(1, 12)]  # round(5.5) = 6 steps up
    assert rates == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 0.8, 0.6, 0.4, 0.2, 0])


@given(start=st.floats(0.01, 1), end=st.floats(0.01, 1), step=st.integers(1, PAPER_STEPS))
def test_mutation_schedules_follow_their_closed_forms(start, end, step):
    t = step / PAPER_STEPS
    assert mutation_ratio("constant", step, PAPER_STEPS, start, end) == start
    assert mutation_ratio("linear", step, PAPER_STEPS, start, end) == pytest.approx((1 - t) * start + t * end)
    geometric = math.exp((1 - t) * math.log(start) + t * math.log(end))
    assert mutation_ratio("exp", step, PAPER_STEPS, start, end) == pytest.approx(geometric)


TEACHING = {
    "dense": [1] * 5000,
    "dense2": [2] * 5000,
    "incremental": [1] * 1250 + [10] * 750 + [20] * 750 + [30] * 750 + [40] * 750 + [50] * 750,
    "reverse-incremental": [i for i in (90, 80, 70, 60, 50, 40, 30, 20, 10, 1) for _ in range(500)],
}


@pytest.mark.parametrize("variant", TEACHING)
def test_teaching_intervals_follow_the_table_of_the_paper(variant):
    assert [teaching_interval(variant, s, PAPER_STEPS) for s in range(1, PAPER_STEPS + 1)] == TEACHING[variant]


@given(variant=st.sampled_from(sorted(TEACHING)), total=st.integers(1, 50), data=st.data())
def test_teaching_intervals_are_positive_in_runs_of_any_length(variant, total, data):
    assert teaching_interval(variant, data.draw(st.integers(1, total)), total) >= 1


@given(total=st.integers(1, 60), past=st.integers(1, 300))
def test_past_the_planned_end_every_schedule_stays_where_it_ended(total, past):
    for schedule in KEEP_SCHEDULES:
        assert keep_ratio(schedule, total + past, total, 0.3) == keep_ratio(schedule, total, total, 0.3)
    for schedule in ("constant", "linear", "exp"):
        now, end = (mutation_ratio(schedule, step, total, 0.2, 0.9) for step in (total + past, total))
        assert now == end
    for schedule in LR_SCHEDULES:
        now, end = (learning_rate(schedule, step, total, 0.1, 0.2) for step in (total + past, total))
        assert now == end
    assert key_interval(total + past, total, 100.0, 50.0) == key_interval(total, total, 100.0, 50.0)
    for variant in TEACHING:
        assert teaching_interval(variant, total + past, total) == teaching_interval(variant, total, total)
