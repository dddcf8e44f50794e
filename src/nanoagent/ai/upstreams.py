"""Model servers: which serves a model, and one request to one of them."""

from __future__ import annotations

import asyncio
import io
import math
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

import aiohttp
import msgspec

from nanoagent.ai import addresses
from nanoagent.ai.refusals import Api, Refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

_CONNECT_S: Final = 10.0
# Below uvicorn's 5 s: a connection that the server is about to close would lose the request sent on it, and
# such requests cannot be sent twice, as they cost tokens.
_KEPT_S: Final = 2.0
_CHUNK: Final = 64 * 1024
_KNOWN_S: Final = 300.0  # how long an answer about a server's API stays valid
_UNKNOWN_S: Final = 5.0  # how long a server that has not answered is not asked again
_PROBE_S: Final = 5.0
_PROBE_BYTES: Final = 64 * 1024
# They say nothing about the server's API: they come from a check of the key or a rate limit.
_UNDECIDED: Final = frozenset({401, 403, 408, 429})
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


class _Version(msgspec.Struct):
    version: str


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
        """Whether calls of that API can be served by it, translated or not."""
        ...

    async def lacks_ollama(self) -> bool:
        """Whether calls of Ollama's API have to be translated to OpenAI's for it."""
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
        url: Its address; see `addresses`.
        patterns: Names of models that go to it, `*` for any part.
        api: The API that it has; None: the server is asked whether it is Ollama, now and then.
        key: Sent as bearer token.
        now: The clock, seconds.
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
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = session
        self.address = addresses.of(url, api)
        self._base = self.address.root
        self._patterns = tuple(patterns)
        self._api = api
        self._headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
            if self.address.takes_key_of_azure:
                self._headers["api-key"] = key
        self.name = self.address.host
        self.newer = self.address.wants_newer
        password = urlsplit(url).password
        self.secrets: tuple[str, ...] = tuple(secret for secret in (key, password) if secret)
        self._now = now
        self._lacks_ollama = False
        self._known_until = -math.inf
        self._asking = asyncio.Lock()

    def serves(self, model: str) -> bool:
        """See `Upstream`."""
        return matches(model, self._patterns)

    def speaks(self, api: Api) -> bool:
        """See `Upstream`."""
        return self._api is not Api.OLLAMA or api is Api.OLLAMA

    async def lacks_ollama(self) -> bool:
        """See `Upstream`. A server whose setting leaves it open is asked for Ollama's version."""
        if self._api is not None:
            return self._api is Api.OPENAI
        if not self.address.may_be_ollama:
            return True
        async with self._asking:
            if self._now() >= self._known_until:
                lacks = await self._asked_for_version()
                # Where that is not known, the call itself will show why; calls that wait do not ask again.
                self._lacks_ollama = self._lacks_ollama if lacks is None else lacks
                self._known_until = self._now() + (_UNKNOWN_S if lacks is None else _KNOWN_S)
            return self._lacks_ollama

    async def _asked_for_version(self) -> bool | None:
        """Whether it has no Ollama API; None where that is not known."""
        try:
            async with asyncio.timeout(_PROBE_S), self.ask("GET", "/api/version", None) as answer:
                if answer.status >= 500 or answer.status in _UNDECIDED:
                    return None
                body = await read_up_to(answer, _PROBE_BYTES) if answer.status == 200 else b""
        except (UpstreamFailed, TimeoutError):
            return None
        try:
            msgspec.json.decode(body, type=_Version)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return True
        return False

    @asynccontextmanager
    async def ask(self, method: str, path: str, body: bytes | None) -> AsyncIterator[Answer]:
        """See `Upstream`."""
        headers = self._headers if body is None else self._headers | {"Content-Type": "application/json"}
        try:
            response = await self._session.request(
                method,
                self._base + self.address.target(path),
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
            raise Refused(
                404,
                f"the model {model!r} is served by Ollama's API (/api/…) only",
                "model_not_found",
                param="model",
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
    asked: Sequence[tuple[Upstream, str]], timeout_s: float, most_bytes: int
) -> list[bytes | None]:
    """Send a GET to each server, all at once; None for those without a usable answer."""

    async def one(server: Upstream, path: str) -> bytes | None:
        try:
            async with asyncio.timeout(timeout_s), server.ask("GET", path, None) as answer:
                return await read_up_to(answer, most_bytes) if answer.status == 200 else None
        except (UpstreamFailed, TimeoutError):
            return None

    return list(await asyncio.gather(*(one(server, path) for server, path in asked)))
