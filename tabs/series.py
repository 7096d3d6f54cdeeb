"""The Forecast tab's series: those that ship, cut where a forecast starts; pasted numbers; and the times of each.

The shipped ones are the CSVs that training.publish wrote into exported/, of times and values. Their last values are
the test part, on which no net was trained, and forecasts start there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from seqexport.errors import FileError, InputError
from tabs import racing
from tabs.languages import ENGLISH, Words

CELLS = ("RNN", "LSTM", "GRU")  # of each series' nets
MAX_VALUES, MAX_SIZE, MAX_HORIZON = 20_000, 1e9, 600


@dataclass(frozen=True)
class Shipped:
    """A series in exported/. tested: its last values, which are the test part. horizon: steps that are forecast unless
    said. stride: steps from one start that is offered to the next; opening: the start on which the page opens."""

    tested: int
    step: str
    horizon: int
    stride: int
    opening: str


SHIPPED: Mapping[str, Shipped] = {
    "sunspots": Shipped(626, "month", 132, 1, "1998-01"),  # the last January after which a whole cycle is known
    "electricity": Shipped(5261, "hour", 24, 24, "2014-10-13T00"),
    "uk-demand": Shipped(807, "half-hour", 48, 48, "2000-08-21T00:00"),
}
MINUTES = {"hour": 60, "half-hour": 30, "minute": 1, "day": 1440, "week": 10080}


def label_of(name: str, words: Words = ENGLISH) -> str:
    """A shipped series' name within a sentence."""
    return {
        "sunspots": words("sunspots"),
        "electricity": words("electricity use"),
        "uk-demand": words("UK demand"),
    }[name]


def unit_said(unit: str, words: Words = ENGLISH) -> str:
    """What the values of a shipped series are."""
    return {
        "sunspot number": words("sunspot number"),
        "mean use (kW)": words("mean use (kW)"),
        "demand (MW)": words("demand (MW)"),
    }.get(unit, unit)


def steps_said(step: str, words: Words = ENGLISH) -> str:
    """The plural of a step."""
    return {
        "month": words("months"),
        "hour": words("hours"),
        "half-hour": words("half-hours"),
        "day": words("days"),
        "week": words("weeks"),
        "year": words("years"),
    }.get(step) or words("values")


@dataclass(frozen=True)
class Series:
    """A history (T,) to roll on, float32, and the truth after it (0 to N values). times: of all of them, datetime64;
    None where they have none and are counted. spacing: from one time to the next. notes: what was done to make it."""

    history: np.ndarray
    truth: np.ndarray
    unit: str = ""
    step: str = "value"
    times: np.ndarray | None = None
    spacing: np.timedelta64 | None = None
    notes: Sequence[str] = field(default=())

    def axis(self, first: int, last: int) -> np.ndarray:
        """The times of the values `first` to `last`, counted from the history's first: datetime64, or their numbers
        from 1. They go on after the last one that is known."""
        count = np.arange(first, last)
        if self.times is None or self.spacing is None:
            return count + 1
        return self.times[0] + count * self.spacing


@functools.cache
def shipped(name: str) -> tuple[np.ndarray, np.ndarray]:
    """A shipped series: its times, datetime64, and its values, float32. Raises FileError where it is not there."""
    path = racing.EXPORTED / f"{name}.csv"
    try:
        rows = path.read_text(encoding="utf-8").split()[1:]
    except OSError:
        raise FileError(
            f"There is no series {path.name} in {racing.EXPORTED.name}/ yet: run python -m training.publish."
        ) from None
    times, values = zip(*(row.split(",") for row in rows), strict=True)
    return np.array(times, "datetime64"), np.array(values, np.float32)


def offered() -> list[str]:
    """The series that are here. Raises FileError where there is none."""
    here = [name for name in SHIPPED if (racing.EXPORTED / f"{name}.csv").is_file()]
    if not here:
        raise FileError(f"There are no models in {racing.EXPORTED.name}/ yet: run python -m training.publish.")
    return here


def nets() -> list[str]:
    """The series of which there are nets here, whether or not their numbers are here too."""
    return [name for name in SHIPPED if (racing.EXPORTED / f"{name}-gru").is_dir()]


@functools.cache
def starts(name: str) -> np.ndarray:
    """The positions in a shipped series at which a forecast may start: within the test part, every stride, of days
    from midnight on."""
    about = SHIPPED[name]
    times, values = shipped(name)
    positions = np.arange(len(values) - about.tested, len(values))
    if about.stride == 1:
        return positions
    midnight = times[positions] == times[positions].astype("datetime64[D]")
    return positions[midnight]


def opening(name: str) -> int:
    """The number of the start on which the page opens."""
    times, _ = shipped(name)
    return int(np.flatnonzero(times[starts(name)] == np.datetime64(SHIPPED[name].opening))[0])


def start_said(name: str, start: int, words: Words = ENGLISH) -> str:
    """The time of start number `start`, to read."""
    return said(shipped(name)[0][starts(name)[start]], SHIPPED[name].step, words)


def said(time: np.datetime64, step: str, words: Words = ENGLISH) -> str:
    """A time to read: a month, a day, or a day with its hour."""
    year, month, day, clock = _parts(time, words)
    if step == "month":
        return words("{month} {year}", month=month, year=year)
    date = words("{day} {month} {year}", day=day, month=month, year=year)
    return date if step in ("day", "week") else f"{date}, {clock}"


def _parts(time: np.datetime64, words: Words) -> tuple[int, str, int, str]:
    moment = time.astype("datetime64[s]").astype(object)  # a datetime
    months = words("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec").split()
    return moment.year, months[moment.month - 1], moment.day, f"{moment:%H:%M}"


def ticks(axis: np.ndarray, most: int = 5, words: Words = ENGLISH) -> list[tuple[float, str]]:
    """At most so many places on an axis that is evenly spaced, from 0 (its first value) to 1 (its last), and what is
    written there."""
    low, high = axis[0], axis[-1]
    if axis.dtype.kind != "M":
        step = max(1, nice((high - low) / most))
        counts = np.arange(math.ceil(low / step), high // step + 1) * step
        return [(_share(count, low, high), f"{count:,.0f}") for count in counts]
    low, high = low.astype("datetime64[s]"), high.astype("datetime64[s]")
    for unit, count in _CALENDAR:
        first, last = (int(time.astype(f"datetime64[{unit}]").astype(int)) for time in (low, high))
        if (last - first) // count > most:  # told before they are made: of a thousand years there are many hours
            continue
        places = _calendar(low, high, unit, count)
        if len(places) <= most:
            return [(_share(place, low, high), _tick(place, unit, words)) for place in places]
    return []


# What may lie between two ticks of dates.
_CALENDAR = (
    *(("h", count) for count in (1, 3, 6, 12)),
    *(("D", count) for count in (1, 2, 4, 7, 14)),
    *(("M", count) for count in (1, 2, 3, 6)),
    *(("Y", count) for count in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)),
)


def _calendar(low: np.datetime64, high: np.datetime64, unit: str, count: int) -> np.ndarray:
    first, last = (int(time.astype(f"datetime64[{unit}]").astype(int)) for time in (low, high))
    offset = 1970 if unit == "Y" else 0  # so that tens of years are round
    numbers = np.arange(math.ceil((first + offset) / count) * count, last + offset + 1, count) - offset
    places = np.array([np.datetime64(int(number), unit) for number in numbers], "datetime64[s]")  # type: ignore[call-overload]
    return places[(places >= low) & (places <= high)]


def _tick(time: np.datetime64, unit: str, words: Words) -> str:
    year, month, day, clock = _parts(time, words)
    if unit == "h":
        return clock if clock != "00:00" else words("{day} {month}", day=day, month=month)
    if unit == "D":
        return words("{day} {month}", day=day, month=month)
    return words("{month} {year}", month=month, year=year) if unit == "M" else str(year)


def _share(value: Any, low: Any, high: Any) -> float:
    return float((value - low) / (high - low)) if high > low else 0.5


def nice(step: float) -> float:
    """The next of 1, 2 and 5 times a power of ten that is not less."""
    power = 10.0 ** math.floor(math.log10(max(step, 1e-12)))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def cut(name: str, start: int, horizon: int, context: int, unit: str) -> Series:
    """A shipped series before its start number `start`, and the truth from then on as far as it is known."""
    times, values = shipped(name)
    begin = int(starts(name)[start])
    first = max(0, begin - context)
    return Series(
        values[first:begin],
        values[begin : begin + horizon],
        unit,
        SHIPPED[name].step,
        times[first : begin + horizon],
        times[1] - times[0],
    )


def parse_numbers(values: str | Sequence[Any] | None) -> np.ndarray:
    """A list of numbers, or a text with commas, semicolons, blanks or new lines between them → float32 (T,).

    Raises InputError where they are too few or too many, or with the first that is not a number of a usable size.
    """
    if not isinstance(values, list):
        values = str(values or "").replace(",", " ").replace(";", " ").split()
    if not 2 <= len(values) <= MAX_VALUES:
        raise InputError(f"The series has the length {len(values):,}; expected 2 to {MAX_VALUES:,} values.")
    numbers = np.empty(len(values), dtype=np.float32)
    for index, value in enumerate(values):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not abs(number) <= MAX_SIZE:  # NaN is not either
            problem = f"is “{value!s:.20}”; expected a number of at most {MAX_SIZE:,.0f} in size"
            raise InputError(f"Value {index + 1} of the series {problem}.")
        numbers[index] = number
    return numbers
