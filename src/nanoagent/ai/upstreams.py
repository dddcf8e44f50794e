"""Model servers: which serves a model, and one request to one of them."""

from __future__ import annotations

import asyncio
import io
from contextlib import asynccontextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

import aiohttp

from nanoagent.ai.refusals import Api, Refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from contextlib import AbstractAsyncContextManager

_CONNECT_S: Final = 10.0
# Below uvicorn's 5 s: a connection that the server is about to close would lose the request sent on it, and
# such requests cannot be sent twice, as they cost tokens.
_KEPT_S: Final = 2.0
_CHUNK: Final = 64 * 1024
_NEWER: Final = ("openai.com", "azure.com")  # they want max_completion_tokens
_LATEST: Final = ":latest"


class UpstreamFailed(Exception):  # noqa: N818 - the upstream's failure, told to the job as an HTTP error
    """It was not reached, or broke off. The message is the job's to read: it names no address."""


@dataclass(slots=True)
class Answer:
    """What an upstream answers.

    Attributes:
        size: Its bytes, None where it does not say.
        chunks: Them, as they come; raises UpstreamFailed when they break off.
    """

    status: int
    content_type: str
    retry_after: str | None
    size: int | None
    chunks: AsyncIterator[bytes]


class Upstream(Protocol):
    """Answers calls.

    Attributes:
        name: For the log.
        newer: Whether it wants `max_completion_tokens` where it may have `max_tokens`.
        takes_bounds: Whether a call may be given a lower bound on its way to it.
        secrets: What its answers must not show to a job.
    """

    name: str
    newer: bool
    takes_bounds: bool
    secrets: tuple[str, ...]

    def serves(self, model: str) -> bool:
        """Whether calls of that model go to it."""
        ...

    def speaks(self, api: Api) -> bool:
        """Whether it has that API, as far as is known."""
        ...

    def ask(self, method: str, path: str, body: bytes | None) -> AbstractAsyncContextManager[Answer]:
        """Send one request. When the block ends early, the upstream sees its caller go.

        Raises:
            UpstreamFailed: It was not reached.
        """
        ...


class HttpUpstream:
    """A model server.

    Args:
        session: What carries the requests.
        url: Its address, with `/v1` at the end or without.
        patterns: Names of models that go to it, `*` for any part.
        api: What it speaks; None: both, or unknown.
        key: Sent as bearer token.
    """

    takes_bounds = True

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        patterns: Sequence[str] = ("*",),
        *,
        api: Api | None = None,
        key: str | None = None,
    ) -> None:
        self._session = session
        self._base = url.rstrip("/").removesuffix("/v1").removesuffix("/api").rstrip("/")
        self._patterns = tuple(patterns)
        self._api = api
        self._headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        parts = urlsplit(self._base)
        host = parts.hostname or ""
        self.name = host
        self.newer = any(host == name or host.endswith(f".{name}") for name in _NEWER)
        self.secrets: tuple[str, ...] = tuple(secret for secret in (key, parts.password) if secret)

    def serves(self, model: str) -> bool:
        """See `Upstream`."""
        return matches(model, self._patterns)

    def speaks(self, api: Api) -> bool:
        """See `Upstream`."""
        return self._api is None or self._api is api

    @asynccontextmanager
    async def ask(self, method: str, path: str, body: bytes | None) -> AsyncIterator[Answer]:
        """See `Upstream`."""
        headers = self._headers if body is None else self._headers | {"Content-Type": "application/json"}
        try:
            response = await self._session.request(
                method,
                self._base + path,
                # What is read from a file goes out in pieces, and leaves the loop to others in between.
                data=None if body is None else io.BytesIO(body),
                headers=headers,
                allow_redirects=False,
            )
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise UpstreamFailed(_why(exc)) from exc
        try:
            yield Answer(
                response.status,
                response.headers.get("Content-Type", "application/octet-stream"),
                response.headers.get("Retry-After"),
                response.content_length if "Content-Encoding" not in response.headers else None,
                _chunks(response),
            )
        finally:
            response.release() if response.content.at_eof() else response.close()


async def _chunks(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        while data := await response.content.readany():
            yield data
    except (aiohttp.ClientError, OSError) as exc:
        raise UpstreamFailed(_why(exc)) from exc


def _why(error: Exception) -> str:
    """What happened, without an address: what lies behind the gateway is not the job's to know."""
    if isinstance(error, TimeoutError):
        return f"it could not be reached within {_CONNECT_S:g} s"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "it cannot be reached"
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError | OSError):
        return "it closed the connection"
    return "its answer was no HTTP"


def matches(model: str, patterns: Sequence[str]) -> bool:
    """Whether a model's name is one of the patterns'; `:latest` may be left out, as with Ollama."""
    short = model.removesuffix(_LATEST)
    return any(fnmatchcase(model, pattern) or fnmatchcase(short, pattern) for pattern in patterns)


def new_session() -> aiohttp.ClientSession:
    """What carries requests to all upstreams; unbounded in number, because each run's are bounded."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEPT_S),
        # A request's whole time is the gateway's to watch. To connect is to find the name, and TLS, as well.
        timeout=aiohttp.ClientTimeout(total=None, connect=_CONNECT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=_CHUNK,
    )


@dataclass(frozen=True, slots=True)
class Upstreams:
    """All model servers of a worker, in the order in which they are asked.

    Attributes:
        allowed: Patterns of models that runs may use at all (AI_MODELS).
    """

    servers: tuple[Upstream, ...]
    allowed: tuple[str, ...] = ("*",)

    def serving(self, model: str) -> Upstream | None:
        """Who serves a model that runs may use, None: nobody."""
        if not matches(model, self.allowed):
            return None
        return next((server for server in self.servers if server.serves(model)), None)

    def choose(self, model: str, api: Api) -> Upstream:
        """Who answers a call.

        Raises:
            Refused: Nobody may, or can.
        """
        if not self.servers:
            raise Refused(
                503,
                "this worker has no model server: set AI_ENDPOINT (or AI_UPSTREAMS) to the address of one",
                "no_upstream",
            )
        if not matches(model, self.allowed):
            raise Refused(
                404,
                f"the model {model!r} is not among those that functions may use here "
                f"(AI_MODELS={','.join(self.allowed)}); use one of them, or have it added to AI_MODELS",
                "model_not_found",
                param="model",
            )
        server = self.serving(model)
        if server is None:
            raise Refused(
                404,
                f"no model server of this worker has the model {model!r}; have it added to AI_UPSTREAMS",
                "model_not_found",
                param="model",
            )
        if not server.speaks(api):
            other = "OpenAI's API (/v1/…)" if api is Api.OLLAMA else "Ollama's API (/api/…)"
            raise Refused(
                404, f"the model {model!r} is served by {other} only", "model_not_found", param="model"
            )
        return server


async def read_up_to(answer: Answer, most_bytes: int) -> bytes:
    """The whole of a small answer.

    Raises:
        UpstreamFailed: It breaks off, or is larger.
    """
    read = bytearray()
    async for data in answer.chunks:
        read += data
        if len(read) > most_bytes:
            raise UpstreamFailed("its answer is too large")
    return bytes(read)


async def from_each(
    servers: Sequence[Upstream], path: str, timeout_s: float, most_bytes: int
) -> list[bytes | None]:
    """The answers to a GET of all of them together, None of those that have none."""

    async def one(server: Upstream) -> bytes | None:
        try:
            async with asyncio.timeout(timeout_s), server.ask("GET", path, None) as answer:
                return await read_up_to(answer, most_bytes) if answer.status == 200 else None
        except (UpstreamFailed, TimeoutError):
            return None

    return list(await asyncio.gather(*map(one, servers)))
