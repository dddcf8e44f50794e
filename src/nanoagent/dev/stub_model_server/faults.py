"""Models that fail. Their names are `fault/` and one of the names in `FAULTS`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from nanoagent.dev.stub_model_server.requests import RECORD

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nanoagent.dev.stub_model_server.replies import Reply
    from nanoagent.dev.stub_model_server.requests import RequestLog

FAULTS: Final = {
    "401": "refuses the key, and quotes the key",
    "404": "answers 404, as for an unknown model, and quotes the key",
    "429": "asks the caller to try again later",
    "500": "answers 500 in the format of the API, and quotes the key",
    "html": "answers 502 with an HTML page, like a proxy in front of a server",
    "redirect": "redirects the caller",
    "garbage": "answers 200 and bytes without meaning",
    "lines": "streams lines that are not JSON between the lines of the answer",
    "gigabytes": "streams one endless line",
    "close": "closes the connection after three pieces",
    "hold": "stops after three pieces and waits until `release`",
    "never": "accepts the request and does not answer until `release`",
    "slow": "waits 10 ms before each piece",
    "nousage": "does not report its numbers of tokens",
}
"""The behaviour of each model."""

_PIECES_BEFORE_FAULT: Final = 3
_GARBAGE: Final = b"\x00\xff\xfe<garbage>" * 100
_BLOCK: Final = b"a" * 65536
_FIXED: Final = {
    "html": (502, {"Content-Type": "text/html"}, b"<html>Bad Gateway</html>"),
    "redirect": (307, {"Location": "/api/version"}, b""),
    "garbage": (200, {"Content-Type": "application/octet-stream"}, _GARBAGE),
}


class Faults:
    """Answers requests for models that fail.

    Args:
        log: The log of requests, notified after each piece of an answer.
    """

    def __init__(self, log: RequestLog) -> None:
        self._log = log
        self._released = asyncio.Event()

    def release(self) -> None:
        """Let requests for `hold` and `never` continue, and end those for `gigabytes`."""
        self._released.set()

    async def respond(self, request: web.Request, model: str) -> web.StreamResponse | None:
        """Answer a request for a model that fails before its first piece.

        Return None for all other models: the caller then answers. For `never`, first wait until `release`.
        """
        fault = model.removeprefix("fault/") if model.startswith("fault/") else ""
        key = request.headers.get("Authorization")
        if fault == "401":
            return error_response(request, 401, f"Incorrect API key provided: {key}", "invalid_request_error")
        if fault in {"404", "429", "500"}:
            response = error_response(
                request, int(fault), f"the stub fails with status {fault}; the key is {key}", "server_error"
            )
            if fault == "429":
                response.headers["Retry-After"] = "7"
            return response
        if fault in _FIXED:
            status, headers, body = _FIXED[fault]
            return web.Response(status=status, headers=headers, body=body)
        if fault == "never":
            await self._released.wait()
        if fault == "gigabytes":
            return await self._endless(request)
        return None

    async def _endless(self, request: web.Request) -> web.StreamResponse:
        record = request[RECORD]
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        while not self._released.is_set():
            await response.write(_BLOCK)
            record.pieces += 1
            await asyncio.sleep(0)
        return response

    async def pieces(self, request: web.Request, reply: Reply) -> AsyncIterator[str]:
        """Yield the pieces of an answer at the speed of its model, up to the point at which the model fails.

        Raises:
            ConnectionResetError: The model closes the connection.
        """
        record = request[RECORD]
        for at, piece in enumerate(reply.pieces):
            if at == _PIECES_BEFORE_FAULT and reply.model == "fault/close":
                assert request.transport is not None  # noqa: S101 - the connection is open
                request.transport.close()
                raise ConnectionResetError
            if at == _PIECES_BEFORE_FAULT and reply.model == "fault/hold":
                await self._released.wait()
            if reply.model == "fault/slow":
                await asyncio.sleep(0.01)
            yield piece
            record.pieces += 1
            record.completion_tokens += 1
            await self._log.notify()

    async def whole_text(self, request: web.Request, reply: Reply) -> str:
        """Wait for all pieces of an answer, and return them as one text."""
        return "".join([piece async for piece in self.pieces(request, reply)])


def error_response(request: web.Request, status: int, message: str, kind: str) -> web.Response:
    """Make an error in the format of the API that the request's path belongs to."""
    document: dict[str, Any] = {"error": message}
    if request.path.startswith("/v1/"):
        document = {"error": {"message": message, "type": kind, "param": None, "code": None}}
    return web.json_response(document, status=status)
