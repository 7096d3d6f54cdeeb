"""Times are compared within a round, with an interval that says how much is known; the clock here is made."""

import contextlib
import math

import numpy as np
import pytest

from seqexport import timing
from seqexport.timing import Job, Measured, Ratio, Times, compared, median_interval, take_turns


class Clock:
    """Time that passes only where a job says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def job(self, seconds, log=None, name=""):
        def call(number):
            if log is not None:
                log.append((number, name))
            self.now += seconds(number) if callable(seconds) else seconds

        return Job(call)


def times(values):
    return Times({number: [value] for number, value in enumerate(values)})


@pytest.mark.parametrize("count, place", [(5, None), (6, 1), (8, 1), (9, 2), (20, 6), (100, 40)])
def test_the_interval_is_that_of_the_sign_test(count, place):
    """The places that tables of the sign test give at 95 %."""
    values = list(np.random.default_rng(0).permutation(count).astype(float))
    ordered = sorted(values)
    expected = None if place is None else (ordered[place - 1], ordered[-place])
    assert median_interval(values) == expected


def test_the_interval_holds_the_median_as_often_as_it_says():
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(1000):
        low, high = median_interval(list(rng.lognormal(0, 1, 25)))  # skewed, with a median of 1
        held += low <= 1 <= high
    assert 930 <= held <= 990


def test_what_slows_a_whole_round_falls_out_of_the_ratio():
    rng = np.random.default_rng(2)
    disturbed = rng.lognormal(0, 1, 40)  # by up to a factor of ten
    noise = rng.normal(1, 0.01, (2, 40))
    ratio = compared(times(disturbed * noise[0]), times(3 * disturbed * noise[1]))
    assert ratio.low < 3 < ratio.high
    assert ratio.width < 0.02


def test_only_rounds_that_both_took_part_in_count():
    one, other = times([1.0] * 10), Times({3: [2.0, 2.0, 50.0]})
    assert compared(one, other) == Ratio(2.0, None, None)
    assert compared(Times({0: [1.0]}), Times({1: [1.0]})) is None
    assert compared(one, other).width == math.inf


def test_everyone_takes_a_turn_a_round_in_random_order():
    clock, log = Clock(), []
    jobs = {name: clock.job(0.01, log, name) for name in "abcd"}
    measured = take_turns(jobs, 100, ["a"], clock=clock)
    del log[:8]  # the warm-up: two calls each
    assert set(log[:4]) == {(0, name) for name in "abcd"}
    orders = {tuple(name for _, name in log[place : place + 4]) for place in range(0, len(log), 4)}
    assert len(orders) > 3
    assert measured.ended == "all intervals are narrower than 5 %"
    assert len(measured.times["a"].rounds) == timing.ROUNDS[0]


def test_a_known_ratio_is_found():
    clock, rng = Clock(), np.random.default_rng(3)
    jobs = {
        "slow": clock.job(lambda number: 0.04 * rng.lognormal(0, 0.05)),
        "fast": clock.job(lambda number: 0.01 * rng.lognormal(0, 0.05)),
    }
    ratio = take_turns(jobs, 1000, ["slow"], clock=clock).ratio("fast", "slow")
    assert ratio.low < 4 < ratio.high
    assert ratio.width < timing.WIDTH


def test_noise_takes_more_rounds():
    def rounds(noise):
        clock, rng = Clock(), np.random.default_rng(4)
        jobs = {name: clock.job(lambda number: 0.01 * rng.lognormal(0, noise)) for name in "ab"}
        return len(take_turns(jobs, 1e6, ["a"], clock=clock).times["a"].rounds)

    assert rounds(0.001) == timing.ROUNDS[0] < rounds(0.05) < rounds(1.0) == timing.ROUNDS[1]


def test_the_time_is_not_used_twice():
    clock, rng = Clock(), np.random.default_rng(5)
    jobs = {name: clock.job(lambda number: 0.1 * rng.lognormal(0, 0.3)) for name in "ab"}
    measured = take_turns(jobs, 5.0, ["a"], clock=clock)
    assert measured.ended == "the time was used up"
    assert 4 < measured.seconds <= 5.3
    assert measured.seconds == clock.now


def test_there_is_one_round_however_short_the_time():
    clock = Clock()
    measured = take_turns({"a": clock.job(3.0), "b": clock.job(1.0)}, 1.0, ["a"], clock=clock)
    assert [len(taken.rounds) for taken in measured.times.values()] == [1, 1]
    ratio = measured.ratio("b", "a")
    assert (ratio.value, ratio.low, ratio.high) == (pytest.approx(3), None, None)


@pytest.mark.parametrize("seconds", [0.0, 1e-9])
def test_without_any_time_left_each_is_called_twice_and_no_more(seconds):
    clock, log = Clock(), []
    measured = take_turns({name: clock.job(1.0, log, name) for name in "ab"}, seconds, ["a"], clock=clock)
    assert sorted(name for _, name in log) == ["a", "a", "b", "b"]  # to warm up, and in the one round
    assert [taken.calls for taken in measured.times.values()] == [1, 1]


def test_a_slow_one_leaves_the_time_to_the_others():
    clock = Clock()
    jobs = {"slow": clock.job(1.0), "a": clock.job(0.01), "b": clock.job(0.02)}
    measured = take_turns(jobs, 15.0, ["a"], clock=clock)
    assert len(measured.times["slow"].rounds) == timing.SLOW_ROUNDS
    assert len(measured.times["a"].rounds) >= timing.ROUNDS[0]
    assert measured.ended.startswith("all intervals")


def test_short_calls_are_repeated_within_a_turn_and_all_of_them_count():
    clock = Clock()
    measured = take_turns({"a": clock.job(0.0005), "b": clock.job(0.1)}, 100, ["b"], clock=clock)
    rounds = len(measured.times["a"].rounds)
    assert (measured.times["a"].calls, measured.times["b"].calls) == (10 * rounds, rounds)


def test_a_quantile_needs_calls_enough():
    taken = times(np.arange(1, 51) / 1000)
    assert taken.quantile(0.5) == pytest.approx(0.0255)
    assert taken.quantile(0.9) == pytest.approx(0.0451)
    assert taken.quantile(0.99) is None
    assert Times().quantile(0.5) is None
    assert taken.interval()[0] < 0.0255 < taken.interval()[1]


def test_what_is_set_around_a_turn_is_not_timed():
    clock = Clock()

    @contextlib.contextmanager
    def ready():
        clock.now += 10
        yield

    measured = take_turns({"a": Job(clock.job(0.1).call, ready)}, 25, clock=clock)
    assert measured.times["a"].quantile(0.5) == pytest.approx(0.1)


def test_nobody_to_time_is_no_error():
    assert take_turns({}, 1).times == {}
    assert Measured({}, "", 0).ratio("a", "b") is None
