"""The HTTP server: routes, the bearer key, and the errors that every API has."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, Self

from aiohttp import web

from nanoagent.common.units import MIB
from nanoagent.dev.stub_model_server.faults import Faults, error_response
from nanoagent.dev.stub_model_server.ollama import OllamaApi
from nanoagent.dev.stub_model_server.openai import OpenAiApi
from nanoagent.dev.stub_model_server.requests import RECORD, RecordedRequest, RequestLog

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_MODELS: Final = ("llama3:8b", "nomic-embed-text:latest", "gpt-4o-mini")
_MAX_BODY_BYTES: Final = 64 * MIB


class StubModelServer:
    """The server, an asynchronous context manager.

    Args:
        host: The address to listen on.
        port: The port to listen on; 0 for any free port.
        key: The bearer key that requests must have, None for no key.
        models: The models that it lists. It answers for every model whose name does not begin with `no-such`.
        openai_only: Whether it has only OpenAI's API, and answers 404 to requests of Ollama's API.

    Attributes:
        url: The URL, once it listens.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        key: str | None = None,
        models: tuple[str, ...] = _MODELS,
        openai_only: bool = False,
    ) -> None:
        self.url = ""
        self._address = (host, port)
        self._key = key
        self._requests = RequestLog()
        self._faults = Faults(self._requests)
        self._routes = OpenAiApi(models, self._faults).routes()
        if not openai_only:
            self._routes += OllamaApi(models, self._faults).routes()

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=_MAX_BODY_BYTES, middlewares=[self._record])
        app.add_routes(
            [
                *self._routes,
                web.get("/stub_model_server/log", self._show_log),
                web.post("/stub_model_server/release", self._release),
            ]
        )
        # Cancel a handler when the caller closes its connection. Ollama does the same, to free the model.
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, *self._address)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
        await self._runner.cleanup()

    @property
    def log(self) -> list[RecordedRequest]:
        """The requests so far, oldest first.

        Requests for the version are not recorded, nor are requests below /stub_model_server/.
        """
        return self._requests.entries

    async def until(self, is_true: Callable[[list[RecordedRequest]], bool]) -> None:
        """Wait until a condition on the log is true."""
        await self._requests.until(is_true)

    def release(self) -> None:
        """Let requests for `fault/hold` and `fault/never` continue, and end those for `fault/gigabytes`."""
        self._faults.release()

    @web.middleware
    async def _record(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Add a request to the log, and keep its state up to date."""
        if request.path.startswith("/stub_model_server/"):
            response: web.StreamResponse = await handler(request)
            return response
        raw = await request.read()
        if request.path == "/api/version":  # the gateway asks for the version to find the API of a server
            return await self._respond(request, None, handler)
        body = None
        with suppress(ValueError):
            body = json.loads(raw)
        record = RecordedRequest(request.method, request.raw_path, dict(request.headers), body, raw)
        self.log.append(record)
        request[RECORD] = record
        await self._requests.notify()
        try:
            response = await self._respond(request, body, handler)
        except (asyncio.CancelledError, ConnectionError):
            record.state = "cut"
            raise
        else:
            record.state = "finished"
            return response
        finally:
            await self._requests.notify()

    async def _respond(self, request: web.Request, body: Any, handler: Any) -> web.StreamResponse:
        """Answer with an error if the request is wrong or its model fails; else call the handler."""
        if self._key is not None and request.headers.get("Authorization") != f"Bearer {self._key}":
            return error_response(request, 401, "Incorrect API key provided", "invalid_request_error")
        if request.method == "POST":
            if not isinstance(body, dict):
                return error_response(request, 400, "invalid JSON", "invalid_request_error")
            model = body.get("model")
            if not isinstance(model, str) or not model:
                return error_response(request, 400, "model is required", "invalid_request_error")
            if model.startswith("no-such"):
                return error_response(request, 404, f"model '{model}' not found", "not_found_error")
            fault = await self._faults.respond(request, model)
            if fault is not None:
                return fault
        response: web.StreamResponse = await handler(request)
        return response

    async def _show_log(self, _request: web.Request) -> web.Response:
        shown = [asdict(record) | {"raw": record.raw.decode(errors="replace")} for record in self.log]
        return web.json_response(shown)

    async def _release(self, _request: web.Request) -> web.Response:
        self.release()
        return web.json_response({})
