"""What a stranger may send: requests of a bounded size, told before they are read into memory."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

MEGABYTE = 2**20
UPLOAD, OTHER = (
    24 * MEGABYTE,
    8 * MEGABYTE,
)  # bytes of an upload, all files together, and of another request

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


class _TooLarge(Exception):
    pass


class BodyLimit:
    """Refuse a request with a body beyond the limit, by status 413 and a sentence: at once where it tells its length,
    else when it has sent that much. Gradio itself bounds each uploaded file, but not their number, and no JSON."""

    def __init__(self, application: Application) -> None:
        self.application = application

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """An ASGI application around another."""
        if scope["type"] != "http":
            await self.application(scope, receive, send)
            return
        most = UPLOAD if str(scope["path"]).rstrip("/").endswith("/upload") else OTHER
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if told.isdigit() and int(told) > most:
            await _refuse(send, most)
            return
        taken, started = 0, False

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > most:
                raise _TooLarge
            return message

        async def noted(message: Message) -> None:
            nonlocal started
            if started or taken <= most:  # else it is how the application tells of _TooLarge, as of a broken request
                started = True
                await send(message)

        with contextlib.suppress(_TooLarge):
            await self.application(scope, counted, noted)
        if taken > most and not started:
            await _refuse(send, most)


async def _refuse(send: Send, most: int) -> None:
    sentence = f"The request has more than {most // MEGABYTE} MB; expected less: send it in parts."
    body = json.dumps({"detail": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 413, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})
