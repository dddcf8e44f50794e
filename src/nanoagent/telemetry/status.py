"""Health, and the small HTTP server that shows it beside the metrics.

It runs in the worker's own event loop on purpose: that `/healthz` answers shows that the loop turns.
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

_MAX_CONNECTIONS = 64  # a scraper and a probe or two want one each
_STOP_SECONDS = 1.0  # a scrape takes milliseconds; nobody's request is worth delaying a shutdown for


@dataclass(frozen=True, slots=True)
class _Part:
    ok: bool
    reason: str


class Health:
    """Whether the worker can take jobs, part by part; each component sets its own.

    Args:
        watch: Told of a part, and whether it is ok, each time that is said.
    """

    def __init__(self, watch: Callable[[str, bool], None] = lambda _, __: None) -> None:
        self._parts: dict[str, _Part] = {}
        self._watch = watch

    def set(self, part: str, ok: bool, reason: str = "") -> None:  # noqa: FBT001 - the fact itself, read as `set("redis", True)`
        """Say how a part is.

        Args:
            part: Its name; a later call for the same name replaces the earlier.
            ok: Whether jobs can be taken as far as it is concerned.
            reason: One sentence for a person; wanted when it is not ok.
        """
        self._parts[part] = _Part(ok, reason)
        self._watch(part, ok)

    @property
    def ready(self) -> bool:
        """Whether every part is ok; not before at least one has been set."""
        return bool(self._parts) and all(part.ok for part in self._parts.values())

    def document(self) -> dict[str, Any]:
        """What `/readyz` shows: `{"status": ..., "parts": {name: {"ok": ..., "reason": ...}}}`."""
        parts = {name: {"ok": part.ok, "reason": part.reason} for name, part in sorted(self._parts.items())}
        return {"status": "ready" if self.ready else "not ready", "parts": parts}


class StatusServer:
    """Serves `/metrics`, `/healthz` (alive) and `/readyz` (can take jobs).

    Args:
        health: Shown at `/readyz`: 200 when ready, else 503.
        registry: Shown at `/metrics`.
        host: Address to listen on.
        port: Its port; 0 for any free one.
    """

    def __init__(self, health: Health, registry: CollectorRegistry, host: str, port: int) -> None:
        self._health = health
        self._registry = registry
        self._host = host
        self._wanted_port = port
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """The port that is listened on; the one asked for while the server is not running."""
        if self._server is None:
            return self._wanted_port
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: The address or the port cannot be had.
        """
        app = web.Application()
        app.router.add_get("/metrics", make_aiohttp_handler(self._registry))
        app.router.add_get("/healthz", self._alive)
        app.router.add_get("/readyz", self._ready)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_STOP_SECONDS)
        await runner.setup()
        handlers = runner.server
        assert handlers is not None  # noqa: S101 - there is one once it is set up

        def accept() -> asyncio.Protocol:
            _hang_up_on_the_oldest(handlers)
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

    async def _alive(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _ready(self, _request: web.Request) -> web.Response:
        # Reasons quote what services have said; who asks need not be the operator.
        text = logs.without_secrets(json.dumps(self._health.document()))
        status = 200 if self._health.ready else 503
        return web.Response(text=text, status=status, content_type="application/json")


def _hang_up_on_the_oldest(handlers: web.Server) -> None:
    """Make room for one more connection.

    Anybody who can reach the port could take up all descriptors of the worker by connections on which he says
    nothing. Those that are open for longest are his: a scrape takes milliseconds.
    """
    connections = [handler for handler in handlers.connections if handler.transport is not None]
    for handler in connections[: len(connections) + 1 - _MAX_CONNECTIONS]:
        handler.force_close()


async def check_address(host: str, port: int) -> None:
    """Listen as the worker does at its start, for a moment.

    Raises:
        ConfigError: The address or the port cannot be had.
    """
    server = await _listen(asyncio.Protocol, host, port)
    server.close()
    await server.wait_closed()


async def _listen(accept: Callable[[], asyncio.Protocol], host: str, port: int) -> asyncio.Server:
    try:
        return await asyncio.get_running_loop().create_server(accept, host, port, reuse_address=True)
    except OSError as exc:
        raise ConfigError([_why_not_listening(exc, host, port)]) from exc


def _why_not_listening(exc: OSError, host: str, port: int) -> str:
    """The sentence for whoever set METRICS_HOST and METRICS_PORT."""
    if exc.errno == errno.EADDRINUSE:
        return (
            f"METRICS_PORT: {port} is already in use on {host}; stop what uses it, choose another port,"
            " or set 0 for any free one"
        )
    if exc.errno == errno.EACCES:
        return f"METRICS_PORT: {port} may not be used by this user; choose one above 1023"
    return f"METRICS_HOST: cannot listen on {host}; it should be an address of this machine ({exc.strerror})"
