import pytest

from benchmarks.bench import NAIVE, OURS, PEAK, fraction_of_peak, tokens_per_second
from benchmarks.rounds import RoundPlan, Timings, measure


def test_a_ratio_is_the_median_of_the_ratios_within_the_rounds():
    # The machine is half as fast in the second round, for both.
    timings = Timings(seconds={OURS: [1.0, 2.0, 1.0], NAIVE: [3.0, 6.0, 4.0]})
    assert timings.ratio(NAIVE, OURS) == 3.0


def test_a_side_that_was_not_run_has_no_ratio():
    assert Timings(seconds={OURS: [1.0]}).ratio("torch_f32", OURS) is None


def test_the_fraction_of_the_peak_pairs_a_run_with_the_peak_of_its_round():
    timings = Timings(seconds={OURS: [1.0, 2.0, 4.0], PEAK: [0.1, 0.2, 0.2]})
    # 50 operations in a second, beside 100 in a tenth of one.
    assert fraction_of_peak(timings, 50.0, 100.0) == pytest.approx(0.05)


def test_tokens_per_second_are_counted_for_every_side_but_the_peak():
    timings = Timings(seconds={OURS: [1.0, 2.0, 4.0], PEAK: [1.0, 1.0, 1.0]})
    assert tokens_per_second(timings, 100) == {OURS: 50.0}


def test_the_sides_take_turns():
    order: list[str] = []

    def side(name: str):
        def run() -> float:
            order.append(name)
            return 1.0

        return run

    plan = RoundPlan(most_rounds=2, most_seconds=60)
    timings = measure({"ours": side("ours"), "naive": side("naive")}, plan)
    assert order == ["ours", "naive"] * 2
    assert timings.round_count == 2


def test_the_first_round_is_finished_however_long_it_takes():
    plan = RoundPlan(most_rounds=5, most_seconds=0)
    assert measure({"ours": lambda: 1.0}, plan).round_count == 1
