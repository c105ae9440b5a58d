"""The learning rate rises to its full value, then falls to its share, and never leaves [0, 1]."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.recipes.schedule import Schedule
from client.settings import AdamW


@given(st.integers(1, 50), st.integers(0, 60), st.floats(0, 1))
def test_it_rises_through_the_warmup_and_falls_after_it(steps, warmup, final):
    schedule = Schedule(step_count=steps, warmup_steps=warmup, final_factor=final)
    factors = [schedule.factor(index) for index in range(steps)]
    assert all(0 <= factor <= 1 for factor in factors)
    rising, falling = factors[:warmup], factors[warmup:]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    if falling:
        assert falling[0] == 1
    if len(falling) > 1:
        assert falling[-1] == pytest.approx(final)


def test_where_time_passes_faster_than_steps_the_fall_keeps_up_with_it():
    schedule = Schedule(step_count=101, final_factor=0.0)
    assert schedule.factor(50, time_share=0.2) == 0.5
    assert schedule.factor(10, time_share=0.75) == 0.25
    assert Schedule(step_count=9, warmup_steps=3).factor(0, time_share=0.5) == 0.25


def test_only_the_learning_rate_changes():
    schedule = Schedule(step_count=5, warmup_steps=1, final_factor=0.1)
    settings = AdamW(learning_rate=0.2, weight_decay=0.3)
    assert schedule.adamw(settings, 0) == AdamW(learning_rate=0.1, weight_decay=0.3)
