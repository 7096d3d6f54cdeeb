"""What a browser needs to run the exported files by itself: our own scripts, onnxruntime-web, the files.

    python -m tabs.webfiles

brings onnxruntime-web, which is not in this repository: `npm pack` downloads the pinned version, its sha512 is checked,
and the three files of it that a page needs (18 MB, compressed 4 MB) go into .browser/. The demo serves them from there,
and says so where they are missing; importing this module downloads nothing.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from seqexport.clients import javascript_module
from seqexport.errors import FileError, SeqExportError
from seqexport.files import write_folder

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
# File of the package → how a page knows it. Not .mjs: some file servers give that a type that browsers refuse.
TAKEN = {
    "package/dist/ort.wasm.min.mjs": "ort.js",
    "package/dist/ort-wasm-simd-threaded.mjs": "ort-wasm.js",
    "package/dist/ort-wasm-simd-threaded.wasm": "ort-wasm.wasm.gz",
}
ROOT = Path(__file__).parents[1]
SCRIPTS = Path(__file__).with_name("web")
BROUGHT = ROOT / ".browser" / f"{PACKAGE}-{VERSION}"
COMMAND = "python -m tabs.webfiles"
MARK = f"Brought by {COMMAND}"
NOTICE = f"""# {PACKAGE} {VERSION}

{MARK}, from the package of this name and version on npm. The files are as they are there, under shorter names, the last
one compressed. Copyright (c) Microsoft Corporation, MIT License: https://github.com/microsoft/onnxruntime
"""


def scripts() -> dict[str, bytes]:
    """Name → our own scripts, the exported files' client in JavaScript among them."""
    own = {path.name: path.read_bytes() for path in sorted(SCRIPTS.glob("*.js"))}
    return own | {"client.js": javascript_module().encode()}


def onnxruntime_web(folder: Path | None = None) -> dict[str, Path]:
    """Name → onnxruntime-web's files in `folder`, .browser/ unless it is given. Raises FileError if they are not there,
    with the command that brings them."""
    found = {name: (folder or BROUGHT) / name for name in TAKEN.values()}
    if not all(path.is_file() for path in found.values()):
        raise FileError(f"{PACKAGE} is not here; {COMMAND} brings it (it needs npm).")
    return found


def fetch(folder: Path | None = None) -> list[Path]:
    """Bring onnxruntime-web's files into `folder`, .browser/ unless it is given, all or none of them.

    Raises FileError where npm is not there or fails, where what it brought is not the pinned package, and where the
    folder holds anything else.
    """
    with tempfile.TemporaryDirectory() as there:
        files = take(pack(Path(there)))
    return write_folder(folder or BROUGHT, {"README.md": NOTICE.encode(), **files}, MARK)


def pack(into: Path) -> bytes:
    """The pinned package's archive, unchecked, which npm downloads into the folder `into`."""
    command = ["npm", "pack", f"{PACKAGE}@{VERSION}", "--json", "--ignore-scripts", "--pack-destination", str(into)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=into)
    except FileNotFoundError:
        raise FileError(f"npm is not here, which brings {PACKAGE}: install Node.js with npm.") from None
    except subprocess.TimeoutExpired:
        raise FileError(f"npm did not bring {PACKAGE} within ten minutes: check the network and try again.") from None
    archives = list(into.glob("*.tgz"))
    if done.returncode or len(archives) != 1:
        said = next((line for line in done.stderr.splitlines() if line.strip()), "it said nothing")
        raise FileError(f"npm could not bring {PACKAGE} {VERSION} ({said:.200}): check the network and try again.")
    return archives[0].read_bytes()


def take(archive: bytes) -> dict[str, bytes]:
    """The package's archive → name → content of the files that a page needs, the large one compressed.

    Raises FileError unless the archive is the pinned one, before anything in it is read.
    """
    found = "sha512-" + base64.b64encode(hashlib.sha512(archive).digest()).decode()
    if found != INTEGRITY:
        raise FileError(
            f"What npm brought is not {PACKAGE} {VERSION}: its checksum is {found[:20]}…, expected {INTEGRITY[:20]}…. "
            "Nothing of it was kept; check where npm downloads from."
        )
    taken = {}
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as package:
        for inside, name in TAKEN.items():
            member = package.extractfile(inside)
            assert member is not None  # the checksum says which files there are
            content = member.read()
            taken[name] = gzip.compress(content, 9, mtime=0) if name.endswith(".gz") else content
    return taken


def main() -> int:
    """The command: bring the files, and say where they are and how large."""
    try:
        files = fetch()
    except SeqExportError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps({str(path.relative_to(ROOT)): path.stat().st_size for path in files}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
