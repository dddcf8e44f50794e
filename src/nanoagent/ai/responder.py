"""Answers one request of a run: finds its route, reads and checks it, and forwards it to a model server."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import HttpVersion10, web

from nanoagent.ai import calls, routes
from nanoagent.ai.bodies import read_body
from nanoagent.ai.exchange import Exchange
from nanoagent.ai.model_lists import ModelLists
from nanoagent.ai.outgoing import OutgoingCall
from nanoagent.ai.refusals import Api, Refused
from nanoagent.ai.responses import HEADERS, json_response, refusal_response
from nanoagent.ai.routes import LISTS, ROUTES
from nanoagent.ai.translation import models as translated_models
from nanoagent.ai.translation.answers import model_loaded_answer
from nanoagent.ai.translation.requests import only_loads_model, translate
from nanoagent.ai.upstreams import no_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nanoagent.ai.calls import Call
    from nanoagent.ai.client import Client
    from nanoagent.ai.routes import Route
    from nanoagent.ai.run_state import RunState
    from nanoagent.ai.shared import Shared
    from nanoagent.ai.translation.requests import Translation
    from nanoagent.ai.upstreams import Upstream

_LARGE_BYTES: Final = 256 * 1024  # a body of this size takes milliseconds to parse


class Responder:
    """Answers the requests of one connection.

    Args:
        shared: The objects that all runs share.
        state: The state of the run.
        client: The program at the other end of the connection.
    """

    def __init__(self, shared: Shared, state: RunState, client: Client) -> None:
        self._shared = shared
        self._state = state
        self._client = client
        self._lists = ModelLists(shared.servers, state)

    async def respond(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        """Answer a request.

        Args:
            request: The request.
            path: Its normalised path (`routes.normalised`).

        Raises:
            Refused: The gateway refuses the request, or no model server has answered it.
            ConnectionError: The program has hung up, or the answer broke off.
        """
        if request.version < HttpVersion10:
            raise Refused(505, "the gateway speaks HTTP/1.1")
        if request.method in {"GET", "HEAD"}:
            if path == "/":  # clients look for this text to find Ollama
                return web.Response(text="Ollama is running", headers=HEADERS)
            if path in LISTS or path.startswith("/v1/models/"):
                with self._state.budget.request():
                    return await self._lists.respond(path)
        route = ROUTES.get(path)
        if route is None or request.method != "POST":
            raise routes.unknown(request.method, path)
        with self._state.budget.request(), self._state.memory.holding() as hold:
            body = await read_body(request, self._state, self._shared.limits.request_bytes, hold)
            return await self._forward(request, route, body)

    async def _forward(self, request: web.BaseRequest, route: Route, body: bytes) -> web.StreamResponse:
        """Check a call, translate it if necessary, and send it to a model server."""
        if not self._shared.servers.servers:
            raise no_server()
        call, prompt_tokens = await self._parse(route, body)
        server = self._shared.servers.choose(call.model, route.api)
        translation, upstream_call = None, call
        if route.api is Api.OLLAMA and await server.must_translate():
            if route.answers_with == "facts":
                return await self._show(call, server)
            if only_loads_model(call):
                return json_response(msgspec.Raw(model_loaded_answer(call)))
            translation, upstream_call = await self._translate(call, server)
        # A hang-up shortens the timeout only of calls that have been sent. If the program has already hung
        # up, this call could last for the whole AI_TIMEOUT_SECONDS, so it is not sent.
        if self._client.has_hung_up:
            raise ConnectionResetError
        answers = upstream_call.choices if route.answers_with == "text" else 0
        reservation = self._state.budget.reserve(prompt_tokens, upstream_call.total_bound, answers=answers)
        recording = self._state.recording
        with self._state.cpu_time.charged():
            outgoing = OutgoingCall(
                call=call,
                upstream_call=upstream_call,
                translation=translation,
                server=server,
                prompt_tokens=prompt_tokens,
                reservation=reservation,
                record=None if recording is None else recording.start(call),
                begun_at=time.perf_counter(),
            )
        exchange = Exchange(self._shared, self._state, self._client, request, outgoing)
        try:
            return await exchange.run()
        except Refused as failure:
            return refusal_response(failure, route.api)
        finally:
            with self._state.cpu_time.charged():
                exchange.settle()

    async def _parse(self, route: Route, body: bytes) -> tuple[Call, int]:
        """Return a call and the estimated tokens of its prompt."""
        remote_tools = self._shared.limits.remote_tools
        async with self._turn_to_parse(body):
            with self._state.cpu_time.charged():
                call = calls.read(route, body, self._state.run.model, remote_tools=remote_tools)
                return call, 0 if route.answers_with == "facts" else call.prompt_tokens

    async def _translate(self, call: Call, server: Upstream) -> tuple[Translation, Call]:
        """Translate a call of Ollama's API to OpenAI's API, and check the result like a direct call."""
        remote_tools = self._shared.limits.remote_tools
        async with self._turn_to_parse(call.original):
            with self._state.cpu_time.charged():
                translation = translate(call, uses_max_completion_tokens=server.uses_max_completion_tokens)
                upstream_call = calls.read(
                    translation.route, translation.request, call.model, remote_tools=remote_tools
                )
                return translation, upstream_call

    @asynccontextmanager
    async def _turn_to_parse(self, body: bytes) -> AsyncIterator[None]:
        """Wait until a body may be parsed: one large body at a time, and only if its run has CPU time left.

        The CPU time is checked again with the lock held: while this request waited for the lock, other
        requests of the run may have used the CPU time. The lock is not held while the run waits for CPU time,
        because other runs need the lock.
        """
        if len(body) <= _LARGE_BYTES:
            yield
            return
        while True:
            await self._state.cpu_time.wait()
            async with self._shared.large_body_lock:
                if self._state.cpu_time.delay_s() == 0:
                    yield
                    return

    async def _show(self, call: Call, server: Upstream) -> web.Response:
        """Answer `/api/show` for a server that has only OpenAI's API.

        Such a server tells only the names of its models.
        """
        (listed,) = await self._lists.entries_of([(server, "/v1/models")])
        if listed is not None and call.model not in {name for name, _ in listed}:
            raise Refused(404, f"model {call.model!r} not found", "model_not_found", param="model")
        return json_response(translated_models.show_answer())
