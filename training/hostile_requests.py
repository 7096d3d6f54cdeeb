"""A thousand hostile requests against the demo, after each hundred of which it has to answer an ordinary question.

    python -m training.hostile_requests --count 1000 --seed 0

Starts its own demo, or asks one at --url. Sent are bodies that are too large, arguments of wrong types, too few and too
many, NaN and infinities, paths out of the folders that are served, names of uploads that lead elsewhere, files of the
server named as uploads, prompts of megabytes, JSON a hundred thousand levels deep, functions that there are not,
sessions of others, and ways around the queue. Prints what came back by kind. Exit code 1 where the server told a secret
(a mark in its environment, in a file beside it, its source, a traceback), no longer answers, or let a request hang.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seqexport.errors import InputError
from seqexport.files import replace_file
from training.command import Parser, exit_code
from training.publish import ROOT
from training.serving import served

COUNT, EACH = 1000, 100
PATIENCE = 60.0  # seconds until a request is said to hang
API = "/gradio_api"
TASKS = ("forecast_values", "sentiment_values", "characters_values", "forecast", "sentiment")
ORDINARY: Mapping[str, Mapping[str, Any]] = {  # questions that are answered
    "forecast_values": {"values": [1.0, 2.0, 3.0, 4.0], "cell": "GRU", "horizon": 5, "paths": 5},
    "sentiment_values": {"texts": ["A fine film."]},
    "characters_values": {"prompt": "ROMEO\n", "length": 20},
}
TRACES = ("Traceback (most recent call last)", "root:x:0:0", "from seqexport", "import gradio", "[build-system]")


@dataclass
class Told:
    """What came back. outcomes: how often, by kind of request and outcome; secrets, faults: what must not be."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    secrets: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether no secret was told and the demo goes on."""
        return not self.secrets and not self.faults


class Attacker:
    """Sends requests to a demo and looks at what comes back. secret: what no answer may have in it; lure: a file of
    the server with the secret in it."""

    def __init__(self, url: str, seed: int, secret: str, lure: Path) -> None:
        import httpx

        once = httpx.Limits(max_keepalive_connections=0)  # what is refused half-sent closes its connection
        self.client = httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False, limits=once)
        self.rng = random.Random(seed)
        self.secret, self.lure = secret, lure
        self.parameters: Mapping[str, Any] = {}

    def post(self, path: str, content: Any, **headers: str) -> tuple[str, str]:
        """POST raw bytes, or what becomes JSON → the outcome, and the body."""
        body = content if isinstance(content, bytes | Iterator) else json.dumps(content).encode()
        return self.send("POST", path, content=body, headers={"content-type": "application/json"} | headers)

    def send(self, method: str, path: str, **options: Any) -> tuple[str, str]:
        """Any request → the outcome, and the body."""
        import httpx

        try:
            with self.client.stream(method, path, **options) as reply:
                body, end = b"", time.monotonic() + PATIENCE
                for chunk in reply.iter_bytes():
                    body += chunk
                    if len(body) > 2**22 or time.monotonic() > end:
                        break
            return f"{reply.status_code}", body.decode("utf-8", "replace")
        except httpx.TimeoutException:
            return "hangs", ""
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, UnicodeError) as error:
            return f"closed ({type(error).__name__})", ""

    def call(self, name: str, data: Any) -> tuple[str, str]:
        """Ask an endpoint in gradio's two steps, data being its arguments by name, in order, or raw → "answered",
        "refused" with its sentence, or how the first step was refused."""
        version, asked = ("v2/", data) if isinstance(data, dict) else ("", {"data": data})
        outcome, body = self.post(f"{API}/call/{version}{name}", data if isinstance(data, bytes) else asked)
        if outcome != "200":
            return outcome, body
        try:
            event = json.loads(body)["event_id"]
        except (ValueError, KeyError, TypeError):
            return "200, no event", body
        outcome, body = self.send("GET", f"{API}/call/{name}/{event}")
        if outcome == "200":
            outcome = "answered" if "event: complete" in body else "refused" if "event: error" in body else "cut off"
        return outcome, body

    def question(self) -> tuple[str, list[Any]]:
        """An endpoint, and arguments in order that it would answer."""
        if not self.parameters:
            body = self.send("GET", f"{API}/info")[1]
            self.parameters = json.loads(body).get("named_endpoints") or {"": {"parameters": []}}
        name = self.rng.choice(list(ORDINARY))
        known = ORDINARY[name]
        given = self.parameters.get(f"/{name}", {"parameters": []})["parameters"]
        named = {each["parameter_name"]: each.get("parameter_default") for each in given} | dict(known)
        return name, list(named.values())

    def odd(self) -> Any:
        """A value of any type that nobody asked for."""
        file = {"path": str(self.lure), "meta": {"_type": "gradio.FileData"}}
        values: list[Any] = [
            None,
            True,
            -1,
            0,
            10**30,
            1.5,
            -1e308,
            "",
            "\x00",
            "💥" * 99,
            [],
            {},
            [[[]]],
            file,
            [file],
        ]
        values += [{"__type__": "update", "value": 1}, {"_type": "state"}, "<script>", "../" * 9, "{{7*7}}", "\ud800"]
        return self.rng.choice(values)


def large(it: Attacker) -> tuple[str, str]:
    """Bodies beyond the limit: told, lied about, in chunks."""
    path = f"{API}/{it.rng.choice(['queue/join', 'call/sentiment_values', 'run/forecast_values', 'component_server'])}"
    how = it.rng.randrange(3)
    if how == 0:
        return it.post(path, b'{"data": ["' + b"x" * (9 * 2**20) + b'"]}')
    if how == 1:
        return it.post(path, iter([b'{"data": ["'] + [b"x" * 2**20] * 12))
    files = [("files", (f"{place}.bin", b"\0" * 2**22)) for place in range(8)]
    return it.send("POST", f"{API}/upload", files=files)


def wrong_types(it: Attacker) -> tuple[str, str]:
    """An ordinary question, one to three of its arguments replaced."""
    name, data = it.question()
    for _ in range(it.rng.randint(1, 3)):
        data[it.rng.randrange(len(data))] = it.odd()
    return it.call(name, data)


def wrong_count(it: Attacker) -> tuple[str, str]:
    """Arguments left out, or too many, or no list."""
    name, data = it.question()
    return it.call(it.rng.choice([name, *TASKS]), it.rng.choice([[], data[:1], data + [1] * 500, {}, None, "x", 7]))


def numbers(it: Attacker) -> tuple[str, str]:
    """NaN, infinities and numbers far out of range, in the numbers' places, as JSON that Python reads."""
    name, data = it.question()
    places = [place for place, value in enumerate(data) if isinstance(value, int | float)]
    value = it.rng.choice(["NaN", "Infinity", "-Infinity", "1e999", "-1", "1e18", "9" * 400, "0.5", "true", '"7"'])
    marked = [value if place in places else json.dumps(item) for place, item in enumerate(data)]
    if not places:
        marked[0] = f"[{value}]"
    return it.call(name, f'{{"data": [{", ".join(marked)}]}}'.encode())


def paths(it: Attacker) -> tuple[str, str]:
    """Files that are not for everybody, by every door that serves files."""
    wanted = it.rng.choice([str(it.lure), "/etc/passwd", "/proc/self/environ", str(ROOT / "demo.py"), "demo.py"])
    wanted = it.rng.choice(
        [wanted, "pyproject.toml", "..", "exported/sunspots.csv", "http://127.0.0.1:1/", "file:///etc"]
    )
    doors = ("/file=", "/file/", "/proxy=http://", "/stream/", "/deep_link?hash=", "/upload_progress?upload_id=")
    door = it.rng.choice(
        [f"{API}{door}" for door in doors] + ["/static/", "/assets/", "/svelte/", "/", "/custom_component/"]
    )
    trick = it.rng.choice(["", "../" * 8, "..%2f" * 8, "%2e%2e/" * 8, "....//" * 6, "/", "%00", "\\..\\..\\", "~/"])
    return it.send("GET", door + trick + wanted, headers={"range": "bytes=0-99"} if it.rng.random() < 0.2 else {})


def uploads(it: Attacker) -> tuple[str, str]:
    """Names of uploads that lead out of the folder; what comes back may not."""
    names = [
        "../../../x.py",
        "/etc/cron.d/x",
        "..\\..\\x",
        "a" * 4000,
        ".",
        "..",
        "\u202exyz.tp",
        "a\r\nb: c",
        "%2e%2e%2fx",
        "",
    ]
    name = it.rng.choice([*names, "con", "x.pt\x00.txt", "💥.onnx", "-rf", "$(id)", "a/b/c.pt", "demo.py"])
    outcome, body = it.send("POST", f"{API}/upload", files={"files": (name, it.rng.randbytes(it.rng.randint(0, 999)))})
    if outcome == "200" and ".." in Path(json.loads(body)[0]).parts:
        return "kept outside", body
    return outcome, body


def named_files(it: Attacker) -> tuple[str, str]:
    """A file of the server, named as if it had been uploaded."""
    path = it.rng.choice([str(it.lure), "/etc/passwd", "/proc/self/environ", "demo.py", "../demo.py"])
    file = {"path": path, "url": None, "orig_name": "x.pt", "meta": {"_type": "gradio.FileData"}}
    name, data = it.question()
    data[it.rng.randrange(len(data))] = it.rng.choice([file, [file], {"a": file}])
    return it.call(it.rng.choice([name, "convert", "sentiment"]), data)


def bombs(it: Attacker) -> tuple[str, str]:
    """Texts and series that are too long, or of what no text is made of."""
    sign = it.rng.choice(["a", "a ", "\u200b", "e\u0301", "中", "\n", "\x00", "💥", "\u202e", "\ufeff"])
    text = sign * it.rng.choice([5_001, 50_000, 1_000_000])
    name = it.rng.choice(["characters_values", "sentiment_values", "forecast_values"])
    if name == "characters_values":
        return it.call(name, {"prompt": text})
    if name == "sentiment_values":
        return it.call(name, {"texts": it.rng.choice([[text], ["x"] * 5000, [""] * 5000])})
    return it.call(name, {"values": it.rng.choice([[1] * 50_000, text[:100_000]]), "cell": "GRU"})


def deep(it: Attacker) -> tuple[str, str]:
    """JSON within JSON within JSON."""
    levels = it.rng.choice([500, 5_000, 100_000])
    opened, closed = it.rng.choice([(b"[", b"]"), (b'{"a":', b"}")])
    inner = opened * levels + (b"1" if opened != b"[" else b"") + closed * it.rng.choice([0, levels])
    return it.post(f"{API}/{it.rng.choice(['call/sentiment_values', 'queue/join'])}", b'{"data": [' + inner + b"]}")


def functions(it: Attacker) -> tuple[str, str]:
    """Functions that there are not, or that are the page's own; sessions that are no session."""
    index: Any = it.rng.choice([-1, 10**9, 0, 1, 2, 3, 5, 8, 13, None, "0", "x", 1.5, [], {"a": 1}])
    session = it.rng.choice(["a", "", "../../x", "x" * 10_000, None, 7, "\x00", {"$ne": 1}, uuid.uuid4().hex])
    body = {"data": [it.odd()] * it.rng.randrange(12), "fn_index": index, "session_hash": session}
    return it.post(f"{API}/queue/join", body | {"event_data": it.odd(), "trigger_id": it.rng.choice([0, -1, None])})


def sessions(it: Attacker) -> tuple[str, str]:
    """Other people's sessions, their events and what only the page itself calls."""
    session, event = uuid.uuid4().hex, uuid.uuid4().hex
    body = {"session_hash": session, "event_id": event, "fn_index": 0, "data": [], "component_id": 1, "fn_name": "x"}
    path = it.rng.choice(
        ["cancel", "reset", "component_server", "stream/" + event, "vibe-edit/", "run/x", "process_recording"]
    )
    if it.rng.random() < 0.3:
        return it.send("GET", f"{API}/call/{it.rng.choice(TASKS)}/{event}")
    return it.post(f"{API}/{path}", body)


def past_the_queue(it: Attacker) -> tuple[str, str]:
    """Gradio's direct endpoints, which no queue bounds."""
    name, data = it.question()
    return it.post(f"{it.rng.choice([API, ''])}/{it.rng.choice(['run', 'api'])}/{name}", {"data": data})


def doors(it: Attacker) -> tuple[str, str]:
    """Pages for whoever runs the demo, and requests that are none."""
    door = it.rng.choice(
        ["/monitoring", f"{API}/dev/reload", f"{API}/login", "/login", f"{API}/token", f"{API}/app_id"]
    )
    door = it.rng.choice(
        [door, f"{API}/queue/status", f"{API}/runs", f"{API}/profiling/summary", "/docs", "/openapi.json"]
    )
    headers = {"host": "evil.example", "x-forwarded-host": "evil.example", "origin": "http://evil.example"}
    return it.send(it.rng.choice(["GET", "PUT", "DELETE", "OPTIONS", "PATCH", "HEAD"]), door, headers=headers)


KINDS: Mapping[str, Callable[[Attacker], tuple[str, str]]] = {
    function.__name__.replace("_", " "): function
    for function in (
        large, wrong_types, wrong_count, numbers, paths, uploads, named_files, bombs, deep, functions, sessions,
        past_the_queue, doors,
    )
}  # fmt: skip


def attack(url: str, count: int, seed: int, secret: str, lure: Path) -> Told:
    """Send so many requests, each kind in its turn, and look after each hundred whether the demo still answers."""
    it, told = Attacker(url, seed, secret, lure), Told()
    kinds = list(KINDS.items())
    for number in range(count):
        kind, send = kinds[number % len(kinds)]
        outcome, body = send(it)
        told.outcomes[kind, outcome] += 1
        if found := [trace for trace in (secret, *TRACES) if trace in body]:
            told.secrets.append(f"{kind}, request {number}: {found[0]!r} in {body[:300]!r}")
        if outcome in ("hangs", "kept outside", "cut off"):
            told.faults.append(f"{kind}, request {number}: {outcome}")
        if kind == "past the queue" and outcome == "200":
            told.faults.append(f"{kind}, request {number}: it was answered: {body[:200]!r}")
        if number % EACH == EACH - 1 or number == count - 1:
            outcome, body = it.call("sentiment_values", dict(ORDINARY["sentiment_values"]))
            if outcome != "answered" or "positive" not in body:
                told.faults.append(
                    f"after request {number} an ordinary question was not answered: {outcome} {body[:200]}"
                )
    it.client.close()
    return told


def table(told: Told) -> str:
    """What came back, as Markdown: a row for each kind."""
    lines = ["| kind | requests | what came back |", "|---|---:|---|"]
    for kind in KINDS:
        found = {outcome: count for (of, outcome), count in sorted(told.outcomes.items()) if of == kind}
        lines.append(
            f"| {kind} | {sum(found.values())} | {', '.join(f'{count} × {what}' for what, count in found.items())} |"
        )
    lines += ["", *(f"secret: {secret}" for secret in told.secrets), *(f"fault: {fault}" for fault in told.faults)]
    lines.append(f"Secrets told: {len(told.secrets)}; faults: {len(told.faults)}.")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Attack, print what came back."""
    parser = Parser(prog="python -m training.hostile_requests", description="Hostile requests against the demo.")
    parser.add_argument("--count", type=int, default=COUNT, help="requests (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (default: %(default)s)")
    parser.add_argument("--url", help="a demo that runs already; the mark in its environment is then not there")
    options = parser.parse_args(arguments)
    secret = f"secret-{uuid.uuid4().hex}"

    def work() -> bool:
        if not 1 <= options.count <= 10**6:
            raise InputError(f"The number of requests is {options.count}; expected 1 to 1,000,000.")
        with tempfile.TemporaryDirectory() as folder:
            lure = Path(folder) / "lure.txt"
            replace_file(lure, secret.encode())
            if options.url:
                told = attack(options.url, options.count, options.seed, secret, lure)
            else:
                with served({"SEQEXPORT_SECRET": secret}) as demo:
                    told = attack(demo.url, options.count, options.seed, secret, lure)
                    if demo.process.poll() is not None:
                        told.faults.append(f"the demo ended: {demo.log()[-1000:]}")
        print(table(told))
        return told.good

    return exit_code("hostile_requests", work)


if __name__ == "__main__":
    sys.exit(main())
