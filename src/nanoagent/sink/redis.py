"""Results to Redis: the document at `job:{requestId}`, announced on `result:{requestId}`."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, cast

from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from nanoagent.errors import SinkError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_FAILURES_TTL_S: Final = 86_400  # a day: longer than any message is tried again
_MAX_CONNECTIONS: Final = 32
# The client's own defaults make a dead server cost 4.5 s a call (docs/adr/0002); these 0.3 s.
_RETRIES: Final = 2
_BACKOFF_BASE_S: Final = 0.1
_BACKOFF_CAP_S: Final = 0.2


class RedisSink:
    """A `ResultSink` on a Redis or Valkey server.

    Args:
        host: The server's name or address.
        port: Its port.
        db: Its database number.
        username: Its user, if it wants one.
        password: Its password, if it wants one.
        tls: Whether to speak TLS to it.
        ttl_s: How long a result is kept, seconds.
        op_timeout_s: The longest a call takes, waiting for a connection and retries included, seconds.
    """

    def __init__(  # noqa: PLR0913 - the settings that Redis has; they are only passed on
        self,
        host: str,
        port: int,
        *,
        db: int = 0,
        username: str | None = None,
        password: str | None = None,
        tls: bool = False,
        ttl_s: int = 3600,
        op_timeout_s: float = 5,
    ) -> None:
        self._address = f"{host}:{port}"
        self._ttl_s = ttl_s
        self._op_timeout_s = op_timeout_s
        pool = BlockingConnectionPool(
            max_connections=_MAX_CONNECTIONS,
            timeout=op_timeout_s,
            connection_class=SSLConnection if tls else Connection,
            host=host,
            port=port,
            db=db,
            username=username,
            password=password,
            protocol=2,
            socket_connect_timeout=op_timeout_s,
            socket_timeout=op_timeout_s,
            socket_keepalive=True,
            retry=Retry(ExponentialBackoff(cap=_BACKOFF_CAP_S, base=_BACKOFF_BASE_S), _RETRIES),
            retry_on_error=[RedisConnectionError, RedisTimeoutError],
        )
        self._redis = Redis.from_pool(pool)

    async def publish(self, request_id: str, document: bytes) -> None:
        """Store and announce the document in one transaction; see `ResultSink.publish`.

        Repeated after a broken connection, it may be announced twice, with the same document.

        Raises:
            SinkError: Redis failed.
        """
        async with self._deadline("publish"), self._redis.pipeline(transaction=True) as pipe:
            # The contract's own word; the client's setex() is deprecated.
            pipe.execute_command("SETEX", f"job:{request_id}", self._ttl_s, document)
            pipe.publish(f"result:{request_id}", document)
            await pipe.execute()

    async def stored(self, request_id: str) -> bytes | None:
        """The document stored for the request, if any.

        Raises:
            SinkError: Redis failed.
        """
        async with self._deadline("get"):
            document = await self._redis.get(f"job:{request_id}")
        return cast("bytes | None", document)  # bytes, since the client is not told to decode

    async def count_failure(self, request_id: str) -> int:
        """Note a failed attempt at `nanoagent:failures:{requestId}`; returns how many there have been.

        Repeated after a connection that broke before the answer, it may count one attempt twice.

        Raises:
            SinkError: Redis failed.
        """
        key = f"nanoagent:failures:{request_id}"
        async with self._deadline("count"), self._redis.pipeline(transaction=True) as pipe:
            pipe.incr(key)
            pipe.expire(key, _FAILURES_TTL_S)
            count, _ = await pipe.execute()
        return int(count)

    async def ping(self) -> None:
        """Succeed when Redis answers.

        Raises:
            SinkError: It does not.
        """
        async with self._deadline("ping"):
            await self._redis.ping()

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        await self._redis.aclose(close_connection_pool=True)

    @asynccontextmanager
    async def _deadline(self, doing: str) -> AsyncIterator[None]:
        """End the block after `op_timeout_s`, and translate what goes wrong in it."""
        try:
            async with asyncio.timeout(self._op_timeout_s):
                yield
        except (RedisError, OSError, TimeoutError) as exc:
            reason = str(exc) or type(exc).__name__
            raise SinkError(f"Redis at {self._address}: {doing}: {reason}") from exc
