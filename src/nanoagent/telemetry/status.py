"""The health of the worker, and the HTTP server of health and metrics.

The server runs in the event loop of the worker, so an answer of `/healthz` shows that the loop runs.
"""

from __future__ import annotations

import asyncio
import errno
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web
from prometheus_client.aiohttp import make_aiohttp_handler

from nanoagent.model.errors import ConfigError
from nanoagent.telemetry import logs

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry

_MAX_CONNECTIONS = 64  # a scraper and a few probes need one each
_STOP_SECONDS = 1.0  # a scrape takes milliseconds; no request may delay a shutdown


@dataclass(frozen=True, slots=True)
class _Part:
    ok: bool
    reason: str


class Health:
    """Whether each part of the worker is ready for jobs. Each part sets its own state.

    Args:
        watch: Called each time the state of a part changes, with the part and whether it is ready.
    """

    def __init__(self, watch: Callable[[str, bool], None] = lambda _, __: None) -> None:
        self._parts: dict[str, _Part] = {}
        self._watch = watch

    def set(self, part: str, ok: bool, reason: str = "") -> None:  # noqa: FBT001 - the state itself
        """Set the state of a part.

        Args:
            part: The name of the part. A later call for the same part replaces its state.
            ok: Whether the part is ready for jobs.
            reason: One sentence for operators: why the part is not ready.
        """
        before = self._parts.get(part)
        if before is not None and before.ok is ok and before.reason == reason:
            return  # the readiness checks set every state before each receipt of messages
        self._parts[part] = _Part(ok, reason)
        self._watch(part, ok)

    @property
    def ready(self) -> bool:
        """Whether every part is ready. False until at least one part has set its state."""
        return bool(self._parts) and all(part.ok for part in self._parts.values())

    def document(self) -> dict[str, Any]:
        """Return the document of `/readyz`: `{"status": …, "parts": {name: {"ok": …, "reason": …}}}`."""
        parts = {name: {"ok": part.ok, "reason": part.reason} for name, part in sorted(self._parts.items())}
        return {"status": "ready" if self.ready else "not ready", "parts": parts}


class StatusServer:
    """Serves `/metrics`, `/healthz` (the worker lives), `/readyz` (it is ready for jobs) and `/pool`.

    Args:
        health: The document of `/readyz`. The status code is 200 if the worker is ready, else 503.
        registry: The metrics of `/metrics`.
        host: The address to listen on.
        port: The port to listen on; 0 for any free port.
    """

    def __init__(self, health: Health, registry: CollectorRegistry, host: str, port: int) -> None:
        self._health = health
        self._registry = registry
        self._host = host
        self._wanted_port = port
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None
        self._pool: Callable[[], dict[str, Any]] | None = None

    @property
    def port(self) -> int:
        """The port that the server listens on. Before its start, the requested port."""
        if self._server is None:
            return self._wanted_port
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self) -> None:
        """Start to listen.

        Raises:
            ConfigError: The address or the port cannot be used.
        """
        app = web.Application()
        app.router.add_get("/metrics", make_aiohttp_handler(self._registry))
        app.router.add_get("/healthz", self._alive)
        app.router.add_get("/readyz", self._ready)
        app.router.add_get("/pool", self._show_pool)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_STOP_SECONDS)
        await runner.setup()
        handlers = runner.server
        assert handlers is not None  # noqa: S101 - `setup` makes the server

        def accept() -> asyncio.Protocol:
            _close_oldest_connections(handlers)
            return handlers()

        try:
            self._server = await _listen(accept, self._host, self._wanted_port)
        except ConfigError:
            await runner.cleanup()
            raise
        self._runner = runner

    async def stop(self) -> None:
        """Stop listening. Idempotent."""
        runner, self._runner = self._runner, None
        server, self._server = self._server, None
        if server is not None:
            server.close()
        if runner is not None:
            await runner.cleanup()

    def watch_pool(self, document: Callable[[], dict[str, Any]]) -> None:
        """Set the function that returns the document of `/pool`."""
        self._pool = document

    async def _show_pool(self, _request: web.Request) -> web.Response:
        if self._pool is None:
            return web.json_response({"reason": "the pool has not started"}, status=503)
        return web.json_response(self._pool())

    async def _alive(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _ready(self, _request: web.Request) -> web.Response:
        # Reasons quote errors of services, and any client may read them.
        text = logs.without_secrets(json.dumps(self._health.document()))
        status = 200 if self._health.ready else 503
        return web.Response(text=text, status=status, content_type="application/json")


def _close_oldest_connections(handlers: web.Server) -> None:
    """Close the oldest connections, so that one more is within the limit.

    A client could otherwise use up all file descriptors of the worker with idle connections. The oldest
    connections are the idle ones: a scrape takes milliseconds.
    """
    connections = [handler for handler in handlers.connections if handler.transport is not None]
    for handler in connections[: max(0, len(connections) + 1 - _MAX_CONNECTIONS)]:
        handler.force_close()


async def check_address(host: str, port: int) -> None:
    """Check that a worker can listen on an address, by listening for a moment.

    Raises:
        ConfigError: The address or the port cannot be used.
    """
    server = await _listen(asyncio.Protocol, host, port)
    server.close()
    await server.wait_closed()


async def _listen(accept: Callable[[], asyncio.Protocol], host: str, port: int) -> asyncio.Server:
    try:
        return await asyncio.get_running_loop().create_server(accept, host, port, reuse_address=True)
    except OSError as exc:
        raise ConfigError([_listen_problem(exc, host, port)]) from exc


def _listen_problem(exc: OSError, host: str, port: int) -> str:
    """Return the sentence about a wrong METRICS_HOST or METRICS_PORT."""
    if exc.errno == errno.EADDRINUSE:
        return (
            f"METRICS_PORT: {port} is already in use on {host}; stop the process that uses it, choose another"
            " port, or set 0 for any free port"
        )
    if exc.errno == errno.EACCES:
        return f"METRICS_PORT: {port} may not be used by this user; choose a port above 1023"
    return f"METRICS_HOST: cannot listen on {host}; it should be an address of this machine ({exc.strerror})"
