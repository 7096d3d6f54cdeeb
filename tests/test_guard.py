"""Requests of a bounded size, whatever they say of their length."""

import asyncio
import json

import pytest

from tabs import guard
from tabs.guard import MEGABYTE, BodyLimit


def ask(chunks, told=None, path="/gradio_api/queue/join", application=None):
    """Send a body in chunks through the limit → status, body, bytes that the application read."""
    left, sent, read = list(chunks), [], []

    async def receive():
        body = left.pop(0)
        read.append(len(body))
        return {"type": "http.request", "body": body, "more_body": bool(left)}

    async def send(message):
        sent.append(message)

    async def reader(scope, receive, send):
        while (await receive())["more_body"]:
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"read"})

    headers = [] if told is None else [(b"content-length", str(told).encode())]
    scope = {"type": "http", "path": path, "headers": headers}
    asyncio.run(BodyLimit(application or reader)(scope, receive, send))
    return sent[0]["status"], sent[1]["body"], sum(read), len(sent)


def test_what_is_small_enough_is_read():
    assert ask([b"x" * guard.OTHER], told=guard.OTHER) == (200, b"read", guard.OTHER, 2)


def test_what_says_that_it_is_too_large_is_not_read():
    status, body, read, count = ask([b"x"], told=guard.OTHER + 1)
    assert (status, read, count) == (413, 0, 2)
    assert json.loads(body)["detail"] == "The request has more than 8 MB; expected less: send it in parts."


@pytest.mark.parametrize("told", [None, 3, "x", -1])
def test_what_turns_out_too_large_is_read_no_further(told):
    status, _, read, count = ask([b"x" * MEGABYTE] * 50, told)
    assert (status, count) == (413, 2)
    assert guard.OTHER < read <= guard.OTHER + MEGABYTE


def test_an_upload_may_be_larger():
    assert ask([b"x" * MEGABYTE] * 20, path="/gradio_api/upload")[0] == 200
    assert ask([b"x" * MEGABYTE] * 25, path="/gradio_api/upload")[0] == 413


def test_how_the_application_tells_of_it_does_not_count():
    async def wrapping(scope, receive, send):
        status = 200
        try:
            while (await receive())["more_body"]:
                pass
        except Exception:  # as a framework does with a body that it can't read
            status = 400
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"told"})

    assert ask([b"x" * MEGABYTE] * 12, application=wrapping)[0] == 413
    assert ask([b"x"], application=wrapping)[:2] == (200, b"told")


def test_an_error_of_the_application_is_its_own():
    async def failing(scope, receive, send):
        raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        ask([b"x"], application=failing)
