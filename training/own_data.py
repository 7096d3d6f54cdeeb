"""Data of one's own for the trainings: a series in a CSV, texts with labels in a CSV, or a text.

What is wrong with a file is said with the row where it is, as a spreadsheet counts them (the heading is row 1).
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas

from seqexport.errors import FileError, InputError
from seqexport.text import Unit
from training.data import BLOCK, Review, Reviews, Series, Text, in_blocks, one_line, without_repeats
from training.packages import digest

FEWEST_VALUES = 200  # of a series: with fewer there is nothing to hold a model to
FEWEST_TEXTS = 20  # of a label: every tenth of them is in the test part
MOST_LABELS = 100
OTHER_ENCODINGS = ("gb18030", "cp1252", "utf-16")
HORIZON = 12  # steps that are forecast unless said


def add_series_reading(parser: Any) -> None:
    """The options of `read_series`."""
    parser.add_argument("--column", help="of the CSV, with the values (default: the last one of numbers)")
    parser.add_argument("--horizon", type=int, help=f"steps to forecast (default: {HORIZON})")
    parser.add_argument("--season", type=int, help="steps after which it repeats (default: found in the training part)")
    parser.add_argument("--gaps", choices=("refuse", "interpolate"), help="what to do with them (default: refuse)")
    parser.add_argument(
        "--transform", choices=("none", "root", "log"), help="that makes its noise even (default: none)"
    )


def add_reviews_reading(parser: Any) -> None:
    """The options of `read_reviews`."""
    parser.add_argument("--text-column", help="of the CSV, with the texts (default: text)")
    parser.add_argument("--label-column", help="of the CSV, with their labels (default: label)")
    parser.add_argument("--unit", choices=("word", "character"), help="that is read at a step (default: by the script)")


def add_text_reading(parser: Any) -> None:
    """The options of `read_text`: none besides the encoding."""


def read_series(
    path: Path,
    *,
    column: str | None = None,
    horizon: int = HORIZON,
    season: int | None = None,
    gaps: Literal["refuse", "interpolate"] = "refuse",
    transform: Literal["none", "root", "log"] = "none",
    encoding: str = "utf-8",
) -> Series:
    """A column of numbers of a CSV with a heading, one row a step, with or without a column of dates.

    Raises FileError for a file that can't be read, InputError for one that is no series: what is no number, a gap,
    dates that do not go on evenly, too few values.
    """
    content = _bytes(path)
    frame = _table(path, _decoded(path, content, encoding))
    name = _column(path, frame, column)
    if horizon < 1 or (season is not None and season < 1):
        raise InputError(f"The horizon is {horizon} and the season {season}; expected whole numbers from 1.")
    numbers = _numbers(path, frame[name], name)
    numbers, step = _evenly(path, frame, name, numbers, gaps)
    values, filled = _without_gaps(path, numbers, name, gaps)
    if len(values) < max(FEWEST_VALUES, 10 * horizon):
        raise InputError(
            f"{path} has {len(values)} values; expected at least {max(FEWEST_VALUES, 10 * horizon)} for a horizon of "
            f"{horizon}: give a longer series, or a shorter --horizon."
        )
    note = f", {filled} gaps filled along straight lines" if filled else ""
    return Series(
        name=path.stem,
        values=values,
        start=None,
        season=season or found_season(values[: len(values) * 7 // 10]),
        step=step,
        unit=name,
        licence="its owner's",
        source=f"the column {name} of {path.name}{note}",
        sha256=digest(content),
        transform=transform,
        horizon=horizon,
    )


def read_reviews(
    path: Path,
    *,
    text_column: str = "text",
    label_column: str = "label",
    unit: Unit | None = None,
    encoding: str = "utf-8",
) -> Reviews:
    """Texts with a label each, of a CSV with a heading. The labels are any words; a repeated text counts once.

    Raises FileError or InputError: a column or a label that is missing, a label with too few texts, a single label.
    """
    content = _bytes(path)
    frame = _table(path, _decoded(path, content, encoding))
    for name in (text_column, label_column):
        if name not in frame.columns:
            raise InputError(
                f"{path} has no column {name!r}; it has {', '.join(map(str, frame.columns))}: name them with "
                "--text-column and --label-column."
            )
    unlabelled = np.flatnonzero(frame[label_column].isna())
    if unlabelled.size:
        raise InputError(
            f"{path} has no label in row {unlabelled[0] + 2}{_and_more(unlabelled.size)}; expected one in every row: "
            "add them, or drop these rows."
        )
    names = sorted(frame[label_column].str.strip().unique())
    if not 2 <= len(names) <= MOST_LABELS:
        raise InputError(
            f"{path} has {len(names)} different labels ({', '.join(names[:5])}); expected 2 to {MOST_LABELS}: is "
            f"{label_column!r} the column of the labels?"
        )
    rows = zip(frame[text_column].fillna(""), frame[label_column].str.strip(), strict=True)
    texts = without_repeats(Review(one_line(text), names.index(label), path.stem) for text, label in rows)
    counts = Counter(names[text.label] for text in texts)
    few = min(names, key=lambda name: counts[name])
    if counts[few] < FEWEST_TEXTS:
        raise InputError(
            f"{path} has {counts[few]} different texts with the label {few!r}; expected at least {FEWEST_TEXTS} of "
            "each: add some, or drop that label's rows."
        )
    return Reviews(
        name=path.stem,
        parts=in_blocks(texts, min(BLOCK, max(1, counts[few] // 10))),
        unit=unit or _unit_of(texts),
        licence="their owner's",
        source=f"the columns {text_column} and {label_column} of {path.name}",
        sha256=digest(content),
        labels=tuple(names),
    )


def read_text(path: Path, *, encoding: str = "utf-8") -> Text:
    """A text, its line ends as \\n. Raises FileError."""
    content = _bytes(path)
    text = _decoded(path, content, encoding).replace("\r\n", "\n").replace("\r", "\n")
    return Text(path.stem, text, "its owner's", path.name, digest(content))


def found_season(values: np.ndarray) -> int:
    """The number of steps after which a series (length,) is most like itself: the highest of the autocorrelation's
    peaks, if it is above 0.2, up to a quarter of the length; otherwise 1."""
    centred = values - values.mean()
    power = np.abs(np.fft.rfft(centred, 2 * len(values))) ** 2  # the autocorrelation's transform (Wiener, Khinchin)
    correlation = np.fft.irfft(power)[: max(3, len(values) // 4)]
    correlation = correlation / max(correlation[0], 1e-300)
    inner = correlation[1:-1]
    peaks = 1 + np.flatnonzero((inner > correlation[:-2]) & (inner >= correlation[2:]) & (inner > 0.2))
    return int(peaks[correlation[peaks].argmax()]) if peaks.size else 1


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError(f"{path} could not be read ({error.strerror}): give a file with --file.") from error


def _decoded(path: Path, content: bytes, encoding: str) -> str:
    try:
        text = content.decode("utf-8-sig" if encoding.lower().replace("-", "") == "utf8" else encoding)
    except LookupError as error:
        raise InputError(f"There is no encoding {encoding!r}; expected one like utf-8 or gb18030.") from error
    except UnicodeDecodeError as error:
        others = " or ".join(name for name in OTHER_ENCODINGS if _decodes(content, name)) or "another one"
        raise FileError(
            f"{path} is not text in {encoding} (byte {error.start}): give its --encoding, perhaps {others}."
        ) from error
    if "\x00" in text:
        raise FileError(f"{path} is not a text: it holds a zero character at {text.index(chr(0))}.")
    if not text.strip():
        raise InputError(f"{path} is empty.")
    return text


def _decodes(content: bytes, encoding: str) -> bool:
    try:
        return "\x00" not in content.decode(encoding)
    except UnicodeDecodeError:
        return False


def _table(path: Path, text: str) -> pandas.DataFrame:
    """A CSV with a heading, separated by whatever it is separated by; all cells as text, NaN where there is nothing."""
    try:
        delimiter = csv.Sniffer().sniff(text.partition("\n")[0], ",;\t|").delimiter
    except csv.Error:
        delimiter = ","  # a single column
    try:
        rows = io.StringIO(text.rstrip("\r\n"))
        return pandas.read_csv(rows, sep=delimiter, dtype=str, skip_blank_lines=False, index_col=False)
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError, ValueError) as error:
        said = str(error).strip().rpartition(": ")[2]
        raise InputError(f"{path} is not a CSV ({said}): expected a heading and rows of as many cells.") from error


def _column(path: Path, frame: pandas.DataFrame, asked: str | None) -> str:
    """The column that is asked for; or the last one that begins with a number."""
    if asked is not None:
        if asked not in frame.columns:
            raise InputError(f"{path} has no column {asked!r}; it has {', '.join(map(str, frame.columns))}.")
        return asked
    for name in reversed(list(frame.columns)):
        first = frame[name].dropna().head(20)
        if len(first) and pandas.to_numeric(first, errors="coerce").notna().mean() > 0.5:
            return str(name)
    raise InputError(
        f"{path} has no column of numbers among {', '.join(map(str, frame.columns))}: name one by --column."
    )


def _numbers(path: Path, cells: pandas.Series, name: str) -> pandas.Series:
    """The cells as float64, NaN where there is nothing."""
    numbers = pandas.to_numeric(cells, errors="coerce").astype("float64")
    wrong = np.flatnonzero((numbers.isna() & cells.notna() & (cells.str.strip() != "")) | np.isinf(numbers))
    if wrong.size:
        raise InputError(
            f"{path} has {cells.iloc[wrong[0]]!r} in row {wrong[0] + 2} of {name!r}{_and_more(wrong.size)}; expected a "
            "finite number with a decimal point."
        )
    return numbers


def _evenly(
    path: Path, frame: pandas.DataFrame, name: str, numbers: pandas.Series, gaps: str
) -> tuple[pandas.Series, str]:
    """The numbers one a step, with NaN at dates that are left out; and what a step is. Without dates: as they are."""
    dates = _dates(frame, name)
    if dates is None:
        return numbers, "step"
    back = np.flatnonzero(dates.diff() <= pandas.Timedelta(0))
    if back.size:
        raise InputError(
            f"{path} goes back to {dates.iloc[back[0]]} in row {back[0] + 2}; expected dates in order, each once: "
            "sort the rows, and join what belongs to one date."
        )
    for words, period in (("month", "M"), ("year", "Y"), ("quarter", "Q")):
        count = dates.dt.to_period(period).astype("int64").diff().dropna()
        if (count == 1).all():
            return numbers, words
    step = dates.diff().mode()[0]
    jumps = np.flatnonzero(dates.diff().dropna() != step)
    if jumps.size and gaps == "refuse":
        at = jumps[0]
        raise InputError(
            f"{path} goes from {dates.iloc[at]} to {dates.iloc[at + 1]} in row {at + 3}, where the step is {step}"
            f"{_and_more(jumps.size)}: add the rows that are missing, or let --gaps interpolate fill them."
        )
    series = pandas.Series(numbers.to_numpy(), index=pandas.DatetimeIndex(dates))
    even = pandas.date_range(dates.iloc[0], dates.iloc[-1], freq=step)
    if len(even) > 10 * len(dates):
        raise InputError(f"{path} has {len(dates)} of {len(even)} steps of {step}: that is not a series with few gaps.")
    return series.reindex(even), _step_said(step)


def _dates(frame: pandas.DataFrame, name: str) -> pandas.Series | None:
    """The first column that is one of dates; None where there is none."""
    for other in frame.columns:
        cells = frame[other]
        if other == name or cells.isna().any() or pandas.to_numeric(cells.head(20), errors="coerce").notna().any():
            continue
        try:
            return pandas.to_datetime(cells, format="ISO8601").dt.tz_localize(None)
        except (ValueError, TypeError, AttributeError):
            continue
    return None


def _step_said(step: pandas.Timedelta) -> str:
    names = {3600: "hour", 1800: "half-hour", 86400: "day", 604800: "week", 60: "minute", 1: "second"}
    return names.get(int(step.total_seconds()), str(step))


def _without_gaps(path: Path, numbers: pandas.Series, name: str, gaps: str) -> tuple[np.ndarray, int]:
    """The values, and how many of them were gaps."""
    missing = np.flatnonzero(numbers.isna())
    if not missing.size:
        return numbers.to_numpy(), 0
    if gaps == "refuse":
        raise InputError(
            f"{path} has no value in row {missing[0] + 2} of {name!r}{_and_more(missing.size)}; a series has no gaps: "
            "fill them, or let --gaps interpolate do it along straight lines."
        )
    values = numbers.interpolate("linear", limit_area="inside").dropna().to_numpy()
    return values, int(missing.size) - (len(numbers) - len(values))


def _and_more(count: int) -> str:
    return f" (and {count - 1:,} more)" if count > 1 else ""


def _unit_of(texts: list[Review]) -> Unit:
    """Characters, where most letters are of a script without blanks between its words."""
    letters = [sign for text in texts[:200] for sign in text.text if sign.isalpha()]
    unspaced = sum("\u3040" <= sign <= "\u9fff" or "\u0e00" <= sign <= "\u0eff" for sign in letters)
    return "character" if unspaced > len(letters) / 2 else "word"
