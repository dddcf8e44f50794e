"""EC2's instance metadata service, version 2, as documented by AWS.

PUT with a lifetime in a header returns a token, and every GET needs a token. The answers are 401 without a
valid token, 404 for a missing path, and 403 for a request through a proxy ("Use the Instance Metadata
Service", EC2 User Guide).
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

SPOT = "spot/instance-action"
REBALANCE = "events/recommendations/rebalance"
LIFECYCLE = "autoscaling/target-lifecycle-state"


class MetadataService:
    """The answers of the service, and its requests.

    Attributes:
        values: Path below `meta-data` → text.
        tokens: The valid tokens.
        asked: Method and path of every request, in order.
        instead: A handler that answers instead of the service, if it is set.
    """

    def __init__(self) -> None:
        self.values: dict[str, str] = {LIFECYCLE: "InService"}
        self.tokens: set[str] = set()
        self.asked: list[tuple[str, str]] = []
        self.instead: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None
        self.url = ""
        self._changed = asyncio.Event()

    def interrupt(self, action: str, at: float) -> None:
        """Announce a spot interruption at a time, Unix epoch seconds."""
        time = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.values[SPOT] = f'{{"action": "{action}", "time": "{time}"}}'

    async def until_asked(self, path: str, *, times: int = 1) -> None:
        """Wait until a path has been requested a number of times."""
        while sum(asked.endswith(path) for _, asked in self.asked) < times:
            self._changed.clear()
            await self._changed.wait()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.method, request.path))
        self._changed.set()
        if self.instead is not None:
            return await self.instead(request)
        if "X-Forwarded-For" in request.headers:
            return web.Response(status=403)
        if request.path == "/latest/api/token":
            return self._new_token(request)
        if request.headers.get("X-aws-ec2-metadata-token") not in self.tokens:
            return web.Response(status=401)
        value = self.values.get(request.path.removeprefix("/latest/meta-data/"))
        return web.Response(status=404) if value is None else web.Response(text=value)

    def _new_token(self, request: web.Request) -> web.Response:
        life = request.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
        if request.method != "PUT" or not life.isdecimal() or not 1 <= int(life) <= 21600:
            return web.Response(status=400)
        token = secrets.token_urlsafe(40) + "=="
        self.tokens.add(token)
        return web.Response(text=token, headers={"X-aws-ec2-metadata-token-ttl-seconds": life})


@asynccontextmanager
async def metadata_service() -> AsyncIterator[MetadataService]:
    """Start a metadata service, which listens at its `url`."""
    service = MetadataService()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", service.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    service.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield service
    finally:
        await runner.cleanup()
