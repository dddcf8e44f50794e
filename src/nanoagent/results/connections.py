"""Sends commands to a Redis server, within a time limit, on a small pool of connections.

This module uses only the connection class of the Redis client, which authenticates, uses TLS and parses
replies. It does not use the client's pool and pipelines: they need more than twice the CPU time (190 µs for
one result, against 90 µs).
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from nanoagent.model.errors import ResultStoreError
from nanoagent.results import failures
from nanoagent.results.failures import RedisCallError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Connection

    from nanoagent.results.scripts import Script
    from nanoagent.results.server import RedisServer

_MAX_CONNECTIONS: Final = 32
# The pauses before the retries, seconds. The first retry is immediate: a server may have closed an idle
# connection, which is not a failure. With the client's default retries, a call to a dead server takes 4.5 s
# (docs/adr/0002).
_PAUSES_S: Final = (0.0, 0.2)
# Errors of the connection, not of the command. The client raises ValueError for an invalid length in a reply.
_CONNECTION_ERRORS: Final = (RedisConnectionError, RedisTimeoutError, InvalidResponse, ValueError)

Command: TypeAlias = "tuple[str | bytes | int, ...]"
"""A command and its arguments."""

ScriptCall: TypeAlias = "tuple[Script, tuple[str, ...], Command]"
"""A script, its keys and its arguments."""


class RedisConnections:
    """The connections to one Redis server.

    Args:
        server: The server.
        timeout_s: The longest time that a call may take, seconds. This includes the wait for a free
            connection and the retries.

    Attributes:
        failed_at: The time of the latest failed call, monotonic seconds; minus infinity before the first. An
            unknown script is not a failure: the call is repeated with its text.
    """

    def __init__(self, server: RedisServer, timeout_s: float) -> None:
        self.failed_at = -math.inf
        self._server = server
        self._timeout_s = timeout_s
        self._connection_class = server.connection_class
        self._settings = server.client_settings() | {
            "socket_connect_timeout": timeout_s,
            "socket_timeout": None,  # each call has its own time limit
            "socket_keepalive": True,
            "retry": Retry(NoBackoff(), 0),
        }
        self._idle: list[Connection] = []
        self._free = asyncio.Semaphore(_MAX_CONNECTIONS)
        self._closed = False

    def new(self) -> Connection:
        """Return a new connection that is not yet open; the caller closes it."""
        return self._connection_class(**self._settings)

    async def run_scripts(self, operation: str, *calls: ScriptCall) -> list[Any]:
        """Run scripts in one round trip, or in two if the server does not have the scripts yet.

        Args:
            operation: The operation, for the error message.
            *calls: The scripts.

        Returns:
            The scripts' results, in order.

        Raises:
            ResultStoreError: Redis failed.
        """
        try:
            return await self.ask(operation, *(_script("EVALSHA", call[0].digest, call) for call in calls))
        except ResultStoreError as exc:
            if not isinstance(exc.__cause__, NoScriptError):
                raise
        return await self.ask(operation, *(_script("EVAL", call[0].text, call) for call in calls))

    async def ask(self, operation: str, *commands: Command) -> list[Any]:
        """Send commands, and return their replies, in order.

        Args:
            operation: The operation, for the error message.
            *commands: The commands.

        Raises:
            RedisCallError: Redis failed, refused a command, or did not answer in time.
        """
        try:
            async with asyncio.timeout(self._timeout_s), self._free:
                answers = await self._try(commands)
        except (RedisError, OSError, TimeoutError, ValueError) as exc:
            if not isinstance(exc, NoScriptError):  # an ordinary answer of a server that has just started
                self.failed_at = time.monotonic()
            raise RedisCallError(self._server.address, operation, failures.kind_of(exc), exc) from exc
        return answers

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        self._closed = True
        while self._idle:
            await self._idle.pop().disconnect()

    async def _try(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands on an unused connection; retry if a new connection may succeed.

        A new connection resolves the server's name again. So it leads to the right server after a failover by
        DNS.
        """
        connection = self._idle.pop() if self._idle else self.new()
        try:
            for pause_s in _PAUSES_S:
                try:
                    return await _exchange(connection, commands)
                except (*_CONNECTION_ERRORS, ResponseError) as exc:
                    if not await self._disconnect_after(exc, connection):
                        raise
                    await asyncio.sleep(pause_s)
            try:
                return await _exchange(connection, commands)
            except (*_CONNECTION_ERRORS, ResponseError) as exc:
                await self._disconnect_after(exc, connection)
                raise
        finally:
            if self._closed or not connection.is_connected:
                await connection.disconnect(nowait=True)
            else:
                self._idle.append(connection)

    async def _disconnect_after(self, exc: Exception, connection: Connection) -> bool:
        """Close the connections that are useless after a failure; return whether any was closed.

        If the failure's kind has `reconnect`, all idle connections are closed, too.
        """
        kind = failures.kind_of(exc)
        reconnect_all = kind is not None and kind.reconnect
        if reconnect_all:
            while self._idle:
                await self._idle.pop().disconnect(nowait=True)
        if reconnect_all or isinstance(exc, _CONNECTION_ERRORS):
            await connection.disconnect(nowait=True)
            return True
        return False


def pack(command: Command) -> bytes:
    """Return the bytes of a command: an array of bulk strings.

    Subclasses of bytes are not supported. The check by `type` is not a function call: a job has 25 words.

    Source: redis.io, "Redis serialization protocol specification".
    """
    packed = b"*%d\r\n" % len(command)
    for word in command:
        data = word if type(word) is bytes else str(word).encode()
        packed += b"$%d\r\n%b\r\n" % (len(data), data)
    return packed


def _script(verb: str, name: str, call: ScriptCall) -> Command:
    _, keys, arguments = call
    return verb, name, len(keys), *keys, *arguments


async def _exchange(connection: Connection, commands: Sequence[Command]) -> list[Any]:
    """Send all commands at once and read all replies.

    If this function is cancelled, replies remain unread. The client then closes the connection, so that no
    later command receives these replies.
    """
    await connection.send_packed_command(b"".join(map(pack, commands)), check_health=False)
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
