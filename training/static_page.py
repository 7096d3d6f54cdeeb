"""A page on which the shipped nets run in the visitor's browser, and no server computes anything.

    python -m training.static_page OUT_DIR

writes index.html, its scripts, onnxruntime-web (which `python -m tabs.webfiles` brings) and five exported files: any
file server can serve the folder, from any path: `python -m http.server -d OUT_DIR`. With --precision int8 the nets are
the int8 ones, which are a quarter of the size. The folder is written as a whole or not at all, and replaced only if it
was written by this command.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqexport.errors import FileError, SeqExportError
from seqexport.files import write_folder
from seqexport.runtimes import int8_path, onnx_metadata
from tabs import webfiles

EXPORTED = Path(__file__).parents[1] / "exported"
PAGE = webfiles.SCRIPTS / "page"
PRECISIONS = ("fp32", "int8")
OPENING = 1998  # the January that the forecast starts from at first: a whole cycle, 132 months, is known after it
MARK = "Written by python -m training.static_page"
README = f"""# Recurrent nets in the browser

{MARK}: serve this folder with any file server, from any path, for example `python -m http.server`. The page asks no
other host. The nets are exported by seqexport (MIT License); what each was trained on stands on the page.
onnxruntime-web {webfiles.VERSION} (ort.js, ort-wasm.js, ort-wasm.wasm.gz) is Copyright (c) Microsoft Corporation, MIT
License, https://github.com/microsoft/onnxruntime, and is here as its package on npm has it.
"""


@dataclass(frozen=True)
class Net:
    """A net of the page: exported/`name`, its pipeline, and its language, None where it reads numbers."""

    name: str
    pipeline: str
    language: str | None = None

    def path(self, precision: str) -> Path:
        """The exported file. Raises FileError where it is not there."""
        path = EXPORTED / self.name / f"checkpoint.{self.pipeline}.onnx"
        path = int8_path(path) if precision == "int8" else path
        if not path.is_file():
            raise FileError(f"There is no {path}: run python -m training.publish.")
        return path


NETS = (
    Net("sunspots-gru", "forecast"),
    Net("sentiment-en", "classify", "en"),
    Net("sentiment-zh", "classify", "zh"),
    Net("characters-en", "generate", "en"),
    Net("characters-zh", "generate", "zh"),
)


def contents(precision: str = "fp32", web: Path | None = None) -> dict[str, bytes]:
    """Path in the folder → what stands there. web: the folder with onnxruntime-web, .browser/ unless it is given.

    Raises FileError where onnxruntime-web was not brought or a net is missing.
    """
    runtime = {name: path.read_bytes() for name, path in webfiles.onnxruntime_web(web).items()}
    nets = {f"{net.name}.onnx": net.path(precision) for net in NETS}
    files = {f"models/{name}": path.read_bytes() for name, path in nets.items()}
    about = [_about(net, name, path) for net, (name, path) in zip(NETS, nets.items(), strict=True)]
    facts = {"runtime": sum(map(len, runtime.values())), "nets": about, "series": _series(nets["sunspots-gru.onnx"])}
    own = {name: text for name, text in webfiles.scripts().items() if name != "column.js"}  # which is the demo's
    page = {path.name: path.read_bytes() for path in sorted(PAGE.iterdir())}
    return {
        "README.md": README.encode(),
        **files,
        **runtime,
        **own,
        "nets.json": json.dumps(facts, ensure_ascii=False).encode(),
        **page,
    }


def _about(net: Net, name: str, path: Path) -> dict[str, Any]:
    data = onnx_metadata(path)["data"]
    told = {"source": data["source"], "licence": data["licence"]}
    return {"task": net.pipeline, "language": net.language, "file": name, "bytes": path.stat().st_size, **told}


def _series(path: Path) -> dict[str, Any]:
    """The sunspots, and from which Januaries a forecast may start: those after what the net was trained on."""
    try:
        rows = [row.split(",") for row in (EXPORTED / "sunspots.csv").read_text(encoding="utf-8").split()[1:]]
    except OSError:
        raise FileError(f"There is no {EXPORTED / 'sunspots.csv'}: run python -m training.publish.") from None
    metadata = onnx_metadata(path)
    seen = sum(metadata["data"]["split"][part] for part in ("train", "validation"))
    return {
        "values": [float(value) for _, value in rows],
        "first": int(rows[0][0][:4]),
        "from": int(rows[seen - 1][0][:4]) + 1,
        "to": int(rows[-1][0][:4]),
        "opening": OPENING,
        "context": metadata["preprocessing"]["context"],
        "season": metadata["preprocessing"]["season"],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: write the folder, and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT_DIR", help="a new or empty folder, or one that this wrote")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the nets' weights")
    options = parser.parse_args(arguments)
    try:
        files = write_folder(options.out, contents(options.precision), MARK)
    except SeqExportError as error:
        print(error, file=sys.stderr)
        return 2
    sizes = {path.relative_to(options.out).as_posix(): path.stat().st_size for path in files}
    for name, size in sizes.items():
        print(f"{size:>12,}  {name}")
    print(f"{sum(sizes.values()):>12,}  bytes in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
