"""Speaks HTTP on one connection of a run, with the server of aiohttp.

If a program hangs up, its calls do not end at once. The gateway continues to read their answers for a while,
to count their tokens. Only the end of the run cancels the calls.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from nanoagent.ai import routes
from nanoagent.ai.client import Client
from nanoagent.ai.cpu_time import REQUEST_S, CpuTimeLimit
from nanoagent.ai.refusals import Refused
from nanoagent.ai.responder import Responder
from nanoagent.ai.responses import HEADERS, refusal_response
from nanoagent.ai.run_state import CallOutcome

if TYPE_CHECKING:
    import socket

    from nanoagent.ai.run_state import RunState
    from nanoagent.ai.shared import Shared

log = structlog.get_logger(__name__)

_IDLE_S: Final = 60  # a connection without the whole head of a request is closed after this time
_LINGER_S: Final = 1.0
_MAX_LINE_BYTES: Final = 8190
_MAX_HEADERS: Final = 64
_READ_BYTES: Final = 64 * 1024
# aiohttp would log every error of a hostile client, which does not concern the operator.
_NO_LOG: Final = logging.getLogger("nanoagent.ai.http")
_NO_LOG.disabled = True


class Connection:
    """One connection of a run.

    Args:
        shared: The objects that all runs share.
        state: The state of the run.
    """

    def __init__(self, shared: Shared, state: RunState) -> None:
        self._shared = shared
        self._state = state
        self._client = Client(shared.limits.drain_s)
        self._responder = Responder(shared, state, self._client)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_over = asyncio.Event()

    @property
    def cpu_time(self) -> CpuTimeLimit:
        """The limit of the CPU time of the run."""
        return self._state.cpu_time

    async def serve(self, connection: socket.socket) -> None:
        """Serve the connection until it is lost and all its calls have ended, or until cancelled."""
        loop = asyncio.get_running_loop()
        server = _Server(self)
        transport, _ = await loop.connect_accepted_socket(server, connection)
        try:
            await self._is_over.wait()
        finally:
            self._client.has_hung_up = True
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            transport.abort()
            await asyncio.gather(*tasks, return_exceptions=True)

    def record_loss(self) -> None:
        """Record that the connection is lost. The gateway continues to read the answers for a while."""
        self._client.hang_up()
        self._end_if_idle()

    def _end_if_idle(self) -> None:
        if self._client.has_hung_up and not self._tasks:
            self._is_over.set()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        if self._client.has_hung_up:
            raise ConnectionResetError
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in a task
        self._tasks.add(task)
        path = routes.normalised(request.raw_path.partition("?")[0])
        self.cpu_time.charge(REQUEST_S)
        try:
            await self.cpu_time.wait()
            return await self._responder.respond(request, path)
        except Refused as refusal:
            self._state.run.usage.refused += 1
            self._shared.metrics.models.request(None, CallOutcome.REFUSED)
            await self._linger(request)
            return refusal_response(refusal, routes.api_of(path))
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception:
            log.exception(
                "internal error",
                operation="answer a model call",
                request_id=self._state.run.request_id,
                path=path[:100],
            )
            failed = Refused(500, "the worker's gateway failed; the worker's log has the details")
            return refusal_response(failed, routes.api_of(path))
        finally:
            self._tasks.discard(task)
            self._end_if_idle()

    async def _linger(self, request: web.BaseRequest) -> None:
        """Continue to read the body of a refused request for a short time.

        If the program were still sending when the connection closes, the kernel would reset the connection
        and discard the error before the program has read it.
        """
        with suppress(TimeoutError, web.RequestPayloadError, HttpProcessingError):
            async with asyncio.timeout(_LINGER_S):
                while not request.content.at_eof():
                    await request.content.readany()
                    await self.cpu_time.wait()


class _Server(web.Server):
    """aiohttp's server for one connection. It reports the loss of the connection."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(
            connection.answer,
            access_log=None,
            logger=_NO_LOG,
            keepalive_timeout=_IDLE_S,
            lingering_time=0,  # aiohttp would not wait for CPU time; Connection._linger does
            max_line_size=_MAX_LINE_BYTES,
            max_field_size=_MAX_LINE_BYTES,
            max_headers=_MAX_HEADERS,
            read_bufsize=_READ_BYTES,
            auto_decompress=False,
            tcp_keepalive=False,
        )
        self._connection = connection

    def __call__(self) -> web.RequestHandler:
        """Return the protocol of the connection."""
        handler = _RequestHandler(self, loop=self._loop, **self._kwargs)
        handler.cpu_time = self._connection.cpu_time
        return handler

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:
        """Report that the connection is lost, or was closed by the gateway."""
        super().connection_lost(handler, exc)
        self._connection.record_loss()


class _RequestHandler(web.RequestHandler):
    """aiohttp's protocol, which also charges the CPU time of parsing to the run."""

    cpu_time: CpuTimeLimit

    def data_received(self, data: bytes) -> None:
        """Parse received bytes.

        If the run has no CPU time left, its requests wait, and so does the reading of bodies. Then aiohttp's
        buffers fill up, and aiohttp stops reading from the socket.
        """
        begun = time.thread_time()
        super().data_received(data)
        self.cpu_time.charge(time.thread_time() - begun)

    def handle_error(self, *args: Any, **kwargs: Any) -> web.StreamResponse:
        """Return the answer to bytes that are not HTTP, without aiohttp's header with its version."""
        answer = super().handle_error(*args, **kwargs)
        answer.headers.update(HEADERS)
        return answer
