"""The demo as a process of its own, for whoever asks it from outside: how soon it answers, how much memory it takes."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from urllib.error import URLError
from urllib.request import urlopen

from seqexport.errors import SeqExportError
from training.publish import ROOT


@dataclass
class Served:
    """A demo that answers. seconds: from the start of its process until it did. log: what it said so far."""

    url: str
    process: subprocess.Popen[bytes]
    said: IO[bytes]
    seconds: float = field(default=0.0)

    def log(self) -> str:
        """What the demo wrote to its output."""
        self.said.flush()
        return Path(self.said.name).read_text(encoding="utf-8", errors="replace")

    def memory(self) -> int | None:
        """Bytes that the process holds in memory now; None where the system does not say, or it has ended."""
        return memory_of(self.process.pid)


def memory_of(process: int) -> int | None:
    """Bytes that a process holds in memory now; None where the system does not say, or it has ended."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * resource.getpagesize()


def free_port() -> int:
    """A port that nobody listens on."""
    with contextlib.closing(socket.socket()) as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def answers(url: str, within: float = 5.0) -> bool:
    """Whether a GET is answered with a page."""
    try:
        with urlopen(url, timeout=within) as reply:
            return bool(reply.status == 200 and reply.read(1))
    except (URLError, OSError):
        return False


@contextlib.contextmanager
def served(environment: Mapping[str, str] | None = None, within: float = 180.0) -> Iterator[Served]:
    """Start `python demo.py` with these variables besides, wait until it answers, and end it afterwards.

    Raises SeqExportError, with the end of what it said, where it ends before or does not answer in so many seconds.
    """
    port = (environment or {}).get("GRADIO_SERVER_PORT") or str(free_port())
    variables = os.environ | {"GRADIO_SERVER_PORT": port, "PYTHONUNBUFFERED": "1"} | dict(environment or {})
    with tempfile.NamedTemporaryFile(suffix=".log") as said:
        start = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "demo.py"], cwd=ROOT, env=variables, stdout=said, stderr=subprocess.STDOUT
        )
        demo = Served(f"http://127.0.0.1:{port}", process, said)
        try:
            while not answers(demo.url):
                if process.poll() is not None:
                    raise SeqExportError(f"The demo ended with exit code {process.returncode}: {demo.log()[-2000:]}")
                if time.monotonic() - start > within:
                    raise SeqExportError(f"The demo did not answer within {within:.0f} s: {demo.log()[-2000:]}")
                time.sleep(0.05)
            demo.seconds = time.monotonic() - start
            yield demo
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
