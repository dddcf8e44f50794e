"""Results to Redis: the document at `job:{requestId}`, announced on `result:{requestId}`.

Of the client only its connections are used: they sign in, speak TLS and the protocol. Its pool and pipelines
cost more than twice the CPU of what they do for us (190 against 90 µs for a result).
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from redis.asyncio import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from nanoagent.errors import SinkError

if TYPE_CHECKING:
    from collections.abc import Sequence

_FAILURES_TTL_S: Final = 86_400  # a day: longer than any message is tried again
_MAX_CONNECTIONS: Final = 32
# Before each new try. The first is at once: a server closes connections that were idle, and nothing is wrong
# then. The client's own defaults make a dead server cost 4.5 s a call (docs/adr/0002).
_PAUSES_S: Final = (0.0, 0.2)
_ANSWER_HOLDS_S: Final = 1.0  # whoever answered so lately is there; a job then costs no extra round trip

_Command: TypeAlias = "tuple[str | bytes | int, ...]"


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
        self._connection_class = SSLConnection if tls else Connection
        self._connection_settings: dict[str, Any] = {
            "host": host,
            "port": port,
            "db": db,
            "username": username,
            "password": password,
            "protocol": 2,
            "socket_connect_timeout": op_timeout_s,
            "socket_timeout": None,  # every call has a deadline of its own
            "socket_keepalive": True,
            "retry": Retry(NoBackoff(), 0),
        }
        self._idle: list[Connection] = []
        self._free = asyncio.Semaphore(_MAX_CONNECTIONS)
        self._closed = False
        self._answered_at = -math.inf

    async def publish(self, request_id: str, document: bytes) -> None:
        """Store and announce the document in one transaction; see `ResultSink.publish`.

        Repeated after a broken connection, it may be announced twice, with the same document.

        Raises:
            SinkError: Redis failed.
        """
        await self._transaction(
            "publish",
            ("SETEX", f"job:{request_id}", self._ttl_s, document),
            ("PUBLISH", f"result:{request_id}", document),
        )

    async def stored(self, request_id: str) -> bytes | None:
        """The document stored for the request, if any.

        Raises:
            SinkError: Redis failed.
        """
        (document,) = await self._ask("get", ("GET", f"job:{request_id}"))
        return cast("bytes | None", document)  # bytes, since the client is not told to decode

    async def count_failure(self, request_id: str) -> int:
        """Note a failed attempt at `nanoagent:failures:{requestId}`; returns how many there have been.

        Repeated after a connection that broke before the answer, it may count one attempt twice.

        Raises:
            SinkError: Redis failed.
        """
        key = f"nanoagent:failures:{request_id}"
        count, _ = await self._transaction("count", ("INCR", key), ("EXPIRE", key, _FAILURES_TTL_S))
        return int(count)

    async def ping(self) -> None:
        """Succeed when Redis answers, or has answered within the last second and not failed since.

        Raises:
            SinkError: It does not.
        """
        if time.monotonic() - self._answered_at > _ANSWER_HOLDS_S:
            await self._ask("ping", ("PING",))

    async def ask(self, *command: str | bytes | int) -> Any:
        """The answer to any one command; what `nanoagent doctor` looks with.

        Raises:
            SinkError: Redis failed or refused; the cause is the client's own exception.
        """
        (answer,) = await self._ask(str(command[0]).lower(), command)
        return answer

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        self._closed = True
        while self._idle:
            await self._idle.pop().disconnect()

    async def _transaction(self, doing: str, *commands: _Command) -> list[Any]:
        """Both or neither, in one round trip; returns their answers."""
        *_, answers = await self._ask(doing, ("MULTI",), *commands, ("EXEC",))
        for answer in answers:
            if isinstance(answer, ResponseError):
                raise self._failure(doing, answer)
        return list(answers)

    async def _ask(self, doing: str, *commands: _Command) -> list[Any]:
        """The commands' answers, within `op_timeout_s`, waiting for a connection and new tries included."""
        try:
            async with asyncio.timeout(self._op_timeout_s), self._free:
                answers = await self._try(commands)
        except (RedisError, OSError, TimeoutError) as exc:
            self._answered_at = -math.inf
            raise self._failure(doing, exc) from exc
        self._answered_at = time.monotonic()
        return answers

    def _failure(self, doing: str, exc: Exception) -> SinkError:
        return SinkError(f"Redis at {self._address}: {doing}: {str(exc) or type(exc).__name__}")

    async def _try(self, commands: Sequence[_Command]) -> list[Any]:
        """Ask on a connection that nobody else uses meanwhile; again when it, or the server, was gone."""
        connection = self._idle.pop() if self._idle else self._connection_class(**self._connection_settings)
        try:
            for pause_s in _PAUSES_S:
                try:
                    return await _exchange(connection, commands)
                except (RedisConnectionError, RedisTimeoutError):
                    await connection.disconnect(nowait=True)
                    await asyncio.sleep(pause_s)
            return await _exchange(connection, commands)
        finally:
            if self._closed or not connection.is_connected:
                await connection.disconnect(nowait=True)
            else:
                self._idle.append(connection)


def _packed(command: _Command) -> bytes:
    """The command as an array of bulk strings (redis.io, "Redis serialization protocol specification")."""
    words = [word if isinstance(word, bytes) else str(word).encode() for word in command]
    return b"*%d\r\n%b" % (len(words), b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words))


async def _exchange(connection: Connection, commands: Sequence[_Command]) -> list[Any]:
    """Send all commands at once and read their answers.

    A connection that is left in between has answers to come that are for nobody: the client hangs up then.
    """
    await connection.send_packed_command(b"".join(map(_packed, commands)), check_health=False)
    answers: list[Any] = []
    refusal: ResponseError | None = None
    for _ in commands:
        try:
            answers.append(await connection.read_response())
        except ResponseError as exc:
            refusal = refusal or exc
    if refusal is not None:
        raise refusal
    return answers
