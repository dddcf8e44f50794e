"""Model servers: selects the server of a model, and sends requests to it."""

from __future__ import annotations

import asyncio
import base64
import io
import math
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import unquote, urlsplit

import aiohttp
import msgspec

from nanoagent.ai import addresses
from nanoagent.ai.refusals import Api, Refused
from nanoagent.ai.untrusted_json import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

_CONNECT_S: Final = 10.0
# Less than uvicorn's 5 s. If the server closes a connection just when a request is sent on it, the request is
# lost. It must not be sent again, because it may have cost tokens.
_KEEPALIVE_S: Final = 2.0
_CHUNK: Final = 64 * 1024
_PROBE_VALID_S: Final = 300.0
_PROBE_RETRY_S: Final = 5.0
_PROBE_S: Final = 5.0
MAX_VERSION_BYTES: Final = 64 * 1024
"""The largest answer to `/api/version` that is read."""
# Servers of both APIs use these statuses, for example for a wrong key or for too many requests. So they do
# not show which API a server has.
_UNDECIDED: Final = frozenset({401, 403, 408, 429})
_LATEST: Final = ":latest"


class UpstreamFailed(Exception):  # noqa: N818 - a failure of the model server, not of the gateway
    """The model server was not reached, or its answer broke off or cannot be used.

    The job sees the message, so it must not contain an address.
    """


@dataclass(slots=True)
class Answer:
    """The answer of a model server.

    Attributes:
        status: The HTTP status.
        content_type: The content type.
        retry_after: The header `Retry-After`; None without one.
        size: The length of the body in bytes; None if it is unknown.
        chunks: The body in pieces, as they come. Raises UpstreamFailed if the body breaks off.
    """

    status: int
    content_type: str
    retry_after: str | None
    size: int | None
    chunks: AsyncIterator[bytes]


class _Version(msgspec.Struct):
    version: str


class Upstream(Protocol):
    """A model server, or an object that answers in its place.

    Attributes:
        name: The name in the log.
        uses_max_completion_tokens: Whether the server requires `max_completion_tokens` instead of
            `max_tokens`.
        takes_bounds: Whether the gateway may lower the token limit of a request to this server.
        secrets: Texts that the gateway removes from the errors of the server.
    """

    name: str
    uses_max_completion_tokens: bool
    takes_bounds: bool
    secrets: tuple[str, ...]

    def serves(self, model: str) -> bool:
        """Whether the server serves calls to a model."""
        ...

    def speaks(self, api: Api) -> bool:
        """Whether the server can serve calls of an API, directly or after a translation."""
        ...

    async def must_translate(self) -> bool:
        """Return whether calls of Ollama's API must be translated to OpenAI's. May ask the server."""
        ...

    def ask(self, method: str, path: str, body: bytes | None) -> AbstractAsyncContextManager[Answer]:
        """Send one request. If the block ends before the end of the answer, the connection is closed.

        Args:
            method: The HTTP method.
            path: The path at the gateway.
            body: The JSON of the request; None without a body.

        Raises:
            UpstreamFailed: The model server was not reached.
        """
        ...


class HttpUpstream:
    """A model server that is reached over HTTP.

    Args:
        session: The HTTP client.
        url: Its address; see `addresses`.
        patterns: The names of the models that it serves; `*` stands for any characters.
        api: The API that it has. None: the gateway finds out whether the server has Ollama's API; see
            `must_translate`.
        key: The key, which is sent as bearer token; None without one.
        now: The clock, in seconds.
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
        self.address = addresses.parse(url, api)
        self._base = self.address.root
        self._patterns = tuple(patterns)
        self._api = api
        self._headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
            if self.address.uses_api_key_header:
                self._headers["api-key"] = key
        self.name = self.address.host
        self.uses_max_completion_tokens = self.address.uses_max_completion_tokens
        self.secrets: tuple[str, ...] = ((key,) if key else ()) + _secrets_in(url)
        self._now = now
        self._must_translate = False
        self._probe_valid_until = -math.inf
        self._probe_lock = asyncio.Lock()

    def serves(self, model: str) -> bool:
        """See `Upstream`."""
        return matches(model, self._patterns)

    def speaks(self, api: Api) -> bool:
        """See `Upstream`."""
        return self._api is not Api.OLLAMA or api is Api.OLLAMA

    async def must_translate(self) -> bool:
        """See `Upstream`. If the API is unknown, the server is sometimes asked for Ollama's version."""
        if self._api is not None:
            return self._api is Api.OPENAI
        if not self.address.may_be_ollama:
            return True
        async with self._probe_lock:
            if self._now() >= self._probe_valid_until:
                lacks = await self._probe_lacks_ollama()
                # If the probe failed, the last value stays, and the job's own call will show the reason. The
                # calls that have waited for the lock use the same value.
                self._must_translate = self._must_translate if lacks is None else lacks
                self._probe_valid_until = self._now() + (_PROBE_RETRY_S if lacks is None else _PROBE_VALID_S)
            return self._must_translate

    async def _probe_lacks_ollama(self) -> bool | None:
        """Find out whether the server lacks Ollama's API. Return None if its answer does not show this."""
        try:
            async with asyncio.timeout(_PROBE_S), self.ask("GET", "/api/version", None) as answer:
                if answer.status >= 500 or answer.status in _UNDECIDED:
                    return None
                body = await read_up_to(answer, MAX_VERSION_BYTES) if answer.status == 200 else b""
        except (UpstreamFailed, TimeoutError):
            return None
        return not is_version(body)

    @asynccontextmanager
    async def ask(self, method: str, path: str, body: bytes | None) -> AsyncIterator[Answer]:
        """See `Upstream`."""
        headers = self._headers if body is None else self._headers | {"Content-Type": "application/json"}
        try:
            response = await self._session.request(
                method,
                self._base + self.address.target(path),
                # aiohttp sends a file in pieces, so that other tasks can run in between.
                data=None if body is None else io.BytesIO(body),
                headers=headers,
                allow_redirects=False,
            )
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise UpstreamFailed(_reason(exc)) from exc
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


def is_version(body: bytes | None) -> bool:
    """Whether the body of an answer to `/api/version` is that of Ollama; None stands for no answer."""
    try:
        msgspec.json.decode(body or b"", type=_Version)
    except UNREADABLE:
        return False
    return True


def _secrets_in(url: str) -> tuple[str, ...]:
    """Return the password of a URL in all forms in which a server knows it, the longest first.

    These are the password with and without percent-encoding, and the value of the header `Authorization`
    (RFC 7617), which contains the user, too.
    """
    parts = urlsplit(url)
    if not parts.password:
        return ()
    password = unquote(parts.password)
    pair = f"{unquote(parts.username or '')}:{password}"
    basic = base64.b64encode(pair.encode("latin-1", "replace")).decode()  # aiohttp encodes it as Latin-1
    return tuple(sorted({basic, parts.password, password}, key=len, reverse=True))


async def _chunks(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        while data := await response.content.readany():
            yield data
    except (aiohttp.ClientError, OSError) as exc:
        raise UpstreamFailed(_reason(exc)) from exc


def _reason(error: Exception) -> str:
    """Return the reason of a failure without an address, because a job must not learn the addresses."""
    if isinstance(error, TimeoutError):
        return f"it could not be reached within {_CONNECT_S:g} s"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "it cannot be reached"
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError | OSError):
        return "it closed the connection"
    return "its answer was not HTTP"


def matches(model: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern matches a model's name. `:latest` may be left out, as with Ollama."""
    short = model.removesuffix(_LATEST)
    return any(fnmatchcase(model, pattern) or fnmatchcase(short, pattern) for pattern in patterns)


def new_session() -> aiohttp.ClientSession:
    """Return the HTTP client for all model servers.

    It has no limit on connections, because the requests of each run are limited.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S),
        # The gateway limits the time of a whole request. `connect` includes the name lookup and TLS.
        timeout=aiohttp.ClientTimeout(total=None, connect=_CONNECT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=_CHUNK,
    )


@dataclass(frozen=True, slots=True)
class Upstreams:
    """All model servers of a worker.

    Attributes:
        servers: The servers. A model is served by the first one that has a matching pattern.
        allowed: Patterns of the models that runs may use (AI_MODELS).
    """

    servers: tuple[Upstream, ...]
    allowed: tuple[str, ...] = ("*",)

    def serving(self, model: str) -> Upstream | None:
        """Return the server of a model; None if no server has it or runs may not use it."""
        if not matches(model, self.allowed):
            return None
        return next((server for server in self.servers if server.serves(model)), None)

    def choose(self, model: str, api: Api) -> Upstream:
        """Return the server for a call.

        Args:
            model: The model of the call.
            api: The API of the call.

        Raises:
            Refused: No server has the model, or runs may not use it.
        """
        if not self.servers:
            raise no_server()
        if not matches(model, self.allowed):
            raise Refused(
                404,
                f"functions on this worker may not use the model {model!r} "
                f"(AI_MODELS={','.join(self.allowed)}); use an allowed model, or have it added to AI_MODELS",
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
                f"the server of the model {model!r} has only Ollama's API (/api/…)",
                "model_not_found",
                param="model",
            )
        return server


def no_server() -> Refused:
    """Return the error of a worker without model servers."""
    return Refused(
        503,
        "this worker has no model server: set AI_ENDPOINT (or AI_UPSTREAMS) to the address of one",
        "no_upstream",
    )


async def read_up_to(answer: Answer, most_bytes: int) -> bytes:
    """Return the whole body of an answer.

    Raises:
        UpstreamFailed: The body breaks off, or is larger than `most_bytes`.
    """
    read = bytearray()
    async for data in answer.chunks:
        read += data
        if len(read) > most_bytes:
            raise UpstreamFailed("its answer is too large")
    return bytes(read)


async def get_from_each(
    requests: Sequence[tuple[Upstream, str]], timeout_s: float, most_bytes: int
) -> list[bytes | None]:
    """Send GET requests to servers, all at once.

    Args:
        requests: Pairs of a server and a path.
        timeout_s: The time for each request, in seconds.
        most_bytes: The largest body.

    Returns:
        The bodies in the order of the requests; None for a server without a usable answer.
    """

    async def get(server: Upstream, path: str) -> bytes | None:
        try:
            async with asyncio.timeout(timeout_s), server.ask("GET", path, None) as answer:
                return await read_up_to(answer, most_bytes) if answer.status == 200 else None
        except (UpstreamFailed, TimeoutError):
            return None

    return list(await asyncio.gather(*(get(server, path) for server, path in requests)))
