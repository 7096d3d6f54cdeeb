"""Times that can be compared: calls take turns in random order, and a ratio is told with its interval."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

LEVEL = 0.95  # of the intervals
WIDTH = 0.05  # of an interval, relatively, at which enough was measured
ROUNDS = (8, 200)  # at least, before an interval is believed; at most
SLOW_ROUNDS = 3  # of a call that would take the time of all others
SHARE = 20  # a call is slow where SHARE of it would fill the time that there is
BLOCK = 0.005  # seconds of a turn, for calls shorter than that: within one turn they are repeated
REPEATS = 50  # at most in a turn
MANY = {0.5: 1, 0.9: 10, 0.99: 100}  # a quantile → the calls from which on it says something


@dataclass(frozen=True)
class Job:
    """What is timed. call: the round's number → anything. ready: what is set around a turn, outside of the time."""

    call: Callable[[int], Any]
    ready: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext


@dataclass(frozen=True)
class Ratio:
    """By what factor one is faster than another, with the interval's ends; None where there were too few rounds."""

    value: float
    low: float | None
    high: float | None

    @property
    def width(self) -> float:
        """(high - low) / value; infinite without an interval."""
        return math.inf if self.low is None or self.high is None else (self.high - self.low) / self.value

    def to_dict(self) -> dict[str, float | None]:
        """As plain JSON types."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass
class Times:
    """The seconds of one job's calls, a list for each round that it took part in."""

    rounds: dict[int, list[float]] = field(default_factory=dict)

    def quantile(self, share: float) -> float | None:
        """Seconds within which that share of the calls ended; None where there were too few of them."""
        calls = [seconds for taken in self.rounds.values() for seconds in taken]
        return float(np.quantile(calls, share)) if len(calls) >= MANY.get(share, 1) else None

    @property
    def medians(self) -> dict[int, float]:
        """Round → the median of its calls."""
        return {number: float(np.median(taken)) for number, taken in self.rounds.items()}

    @property
    def calls(self) -> int:
        """How many calls were timed."""
        return sum(map(len, self.rounds.values()))

    def interval(self) -> tuple[float, float] | None:
        """Where the median of the rounds lies, in seconds."""
        return median_interval(list(self.medians.values()))


@dataclass(frozen=True)
class Measured:
    """What came of taking turns. ended: why no more rounds were run. seconds: that it took in all."""

    times: Mapping[str, Times]
    ended: str
    seconds: float

    def ratio(self, name: str, to: str) -> Ratio | None:
        """By what factor `name` is faster than `to`: the time of `to` over that of `name`, by `compared`."""
        if name not in self.times or to not in self.times:
            return None
        return compared(self.times[name], self.times[to])


def compared(one: Times, other: Times) -> Ratio | None:
    """By what factor the one is faster: the median over rounds of the ratios of what both took in the same round, so
    that what slows a whole round down, as another program does, falls out."""
    a, b = one.medians, other.medians
    logs = [math.log(b[number] / a[number]) for number in a if number in b]
    if not logs:
        return None
    ends = median_interval(logs)
    low, high = (math.exp(ends[0]), math.exp(ends[1])) if ends else (None, None)
    return Ratio(math.exp(float(np.median(logs))), low, high)


def median_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """An interval for the median of what the values are drawn from, of any distribution; None for fewer than 6 values.

    The j-th smallest and the j-th largest value, with the greatest j at which P(Binomial(n, 1/2) < j) is at most
    (1 - level) / 2: the interval that belongs to the sign test (Conover, Practical Nonparametric Statistics, 3rd
    edition, section 3.2). Rounds are stopped when it is narrow, so that its level is a little below what it says.
    """
    ordered, total, below, j = sorted(values), 2.0 ** len(values), 0.0, 0
    while j < len(ordered) // 2:
        below += math.comb(len(ordered), j) / total
        if below > (1 - level) / 2:
            break
        j += 1
    return (ordered[j - 1], ordered[-j]) if j else None


def take_turns(
    jobs: Mapping[str, Job],
    seconds: float,
    against: Sequence[str] = (),
    *,
    clock: Callable[[], float] = time.perf_counter,
    seed: int = 0,
) -> Measured:
    """Time the jobs in rounds, each once a round in random order, after a call or two to warm up.

    It ends when the interval of every job's ratio to each of `against` is narrower than WIDTH, or when another round
    would not fit into `seconds`; one round there always is. Jobs that are slow take part in the first rounds only.
    """
    rng, start = np.random.default_rng(seed), clock()
    times = {name: Times() for name in jobs}
    once = {name: _warm_up(job, seconds / SHARE, clock) for name, job in jobs.items()}
    repeats = {name: int(min(REPEATS, max(1, BLOCK // max(taken, 1e-9)))) for name, taken in once.items()}
    slow = {name for name, taken in once.items() if taken * SHARE > seconds and len(jobs) > 1}
    ended = "as many rounds as were asked for"
    for number in range(ROUNDS[1]):
        taking = [name for name in jobs if number < SLOW_ROUNDS or name not in slow]
        if not taking:
            ended = "all are slow"
            break
        expected = sum(once[name] * repeats[name] for name in taking)
        if number and clock() - start + expected > seconds:
            ended = "the time was used up"
            break
        for index in rng.permutation(len(taking)):
            name = taking[int(index)]
            times[name].rounds[number] = _turn(jobs[name], number, repeats[name], clock)
        if number + 1 >= ROUNDS[0] and _settled(times, [name for name in jobs if name not in slow], against):
            ended = f"all intervals are narrower than {100 * WIDTH:.0f} %"
            break
    return Measured(times, ended, clock() - start)


def _warm_up(job: Job, enough: float, clock: Callable[[], float]) -> float:
    """The seconds of a second call, or of the first, where that was long already or there is no time left."""
    with job.ready():
        for _ in range(2):
            start = clock()
            job.call(0)
            taken = clock() - start
            if taken >= enough:
                break
    return taken


def _turn(job: Job, number: int, repeats: int, clock: Callable[[], float]) -> list[float]:
    taken = []
    with job.ready():
        for _ in range(repeats):
            start = clock()
            job.call(number)
            taken.append(clock() - start)
    return taken


def _settled(times: Mapping[str, Times], names: Sequence[str], against: Sequence[str]) -> bool:
    pairs = [(one, other) for one in names for other in against if one != other and other in names]
    ratios = [compared(times[one], times[other]) for one, other in pairs]
    return bool(ratios) and all(ratio is not None and ratio.width < WIDTH for ratio in ratios)
