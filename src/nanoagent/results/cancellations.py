"""Receives the cancellations of requests from Redis.

One connection has a subscription to `cancel:{requestId}` for each request in progress. A single subscription
to `cancel:*` would deliver every cancellation to every worker. A request that ends within 0.1 s gets no
subscription.

A published message reaches only the workers that are subscribed at that moment. No worker is subscribed
before the job is received, or while the connection is re-established. Then PUBLISH returns 0. Therefore a
sender can also set a key with the name of the channel. A worker looks for the key when it claims the request,
and each time that a subscription begins.

The same connection has one subscription of the worker, on which followers of jobs announce themselves
(`redis_live_log`). They repeat that every few seconds, so a lost message is no loss.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import structlog
from redis.exceptions import InvalidResponse, RedisError

from nanoagent.common.backoff import Backoff
from nanoagent.host.background import Background, TaskName
from nanoagent.model.errors import ResultStoreError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio import Connection

_SUBSCRIBE_AFTER_S: Final = 0.1
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 30.0
PING_S: Final = 20.0
"""The time without commands after which the connection is tested, seconds.

A firewall may have dropped the connection without notice.
"""

_FOLLOW: Final = "nanoagent:follow:"  # see `redis_live_log`
_SILENT_PINGS: Final = 2.5  # without a reply for this many `ping_s`, the connection is replaced

log = structlog.get_logger(__name__)


class RedisCancellations:
    """`Cancellations` on a Redis or Valkey server.

    Args:
        connect: Returns a new connection that is not yet open.
        pack: Returns the bytes of a command.
        is_set: Returns whether a key exists. Raises `ResultStoreError`.
        follow_channel: Returns the channel on which followers announce themselves; None not to listen. It is
            called for each connection.
        background: Runs the task that receives cancellations.
        ping_s: The time without a command after which a PING is sent, seconds.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        pack: Callable[[tuple[str, ...]], bytes],
        is_set: Callable[[str], Awaitable[bool]],
        follow_channel: Callable[[], str | None] = lambda: None,
        *,
        background: Background | None = None,
        ping_s: float = PING_S,
    ) -> None:
        self._connect = connect
        self._pack = pack
        self._is_set = is_set
        self._background = background or Background()
        self._ping_s = ping_s
        self._follow_channel = follow_channel
        self._watched: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {}
        self._subscribed: set[str] = set()
        self._outbox: asyncio.Queue[tuple[str, ...]] = asyncio.Queue()
        self._lookups: set[asyncio.Task[Any]] = set()
        self._listener: asyncio.Task[None] | None = None

    def watch(
        self,
        request_id: str,
        cancelled: Callable[[], object],
        followed: Callable[[], object] = lambda: None,
    ) -> Callable[[], None]:
        """Call `cancelled` when the request is cancelled; see `Cancellations.watch`."""
        self._watched[request_id] = cancelled, followed
        timer = asyncio.get_running_loop().call_later(_SUBSCRIBE_AFTER_S, self._subscribe, request_id)

        def end() -> None:
            timer.cancel()
            self._watched.pop(request_id, None)
            if request_id in self._subscribed:
                self._subscribed.discard(request_id)
                self._outbox.put_nowait(("UNSUBSCRIBE", _channel(request_id)))

        return end

    async def close(self) -> None:
        """Close the connection. Idempotent."""
        tasks = {*self._lookups, *({self._listener} if self._listener is not None else ())}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _subscribe(self, request_id: str) -> None:
        self._subscribed.add(request_id)
        self._outbox.put_nowait(("SUBSCRIBE", _channel(request_id)))
        if self._listener is None:
            self._listener = self._background.keep(TaskName.CANCELLATIONS, self._listen_forever)

    def _cancel(self, request_id: str) -> None:
        watched = self._watched.pop(request_id, None)
        if watched is not None:
            watched[0]()

    def _note_follower(self, request_id: str) -> None:
        watched = self._watched.get(request_id)
        if watched is not None:
            watched[1]()

    # --- the connection

    async def _listen_forever(self) -> None:
        backoff = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        while True:
            connection = self._connect()
            try:
                await connection.connect()  # type: ignore[no-untyped-call]
                backoff.reset()
                # Commands for the previous connection are dropped. `_subscribed` has the requests.
                self._outbox = asyncio.Queue()
                if (follow_channel := self._follow_channel()) is not None:
                    self._outbox.put_nowait(("SUBSCRIBE", follow_channel))
                for request_id in self._subscribed:
                    self._outbox.put_nowait(("SUBSCRIBE", _channel(request_id)))
                await self._use(connection)
            except (RedisError, OSError, TimeoutError) as exc:
                log.warning("cancellations not received", reason=str(exc) or type(exc).__name__)
            finally:
                await connection.disconnect(nowait=True)
            await asyncio.sleep(backoff.next_s())

    async def _use(self, connection: Connection) -> None:
        """Write commands and read replies until the connection fails."""
        writing = asyncio.create_task(self._write(connection))
        reading = asyncio.create_task(self._read(connection))
        try:
            await asyncio.wait({writing, reading}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (writing, reading):
                task.cancel()
            await asyncio.wait({writing, reading})
        for task in (writing, reading):
            if not task.cancelled() and (failure := task.exception()) is not None:
                raise failure

    async def _write(self, connection: Connection) -> None:
        while True:
            try:
                async with asyncio.timeout(self._ping_s):
                    command = await self._outbox.get()
            except TimeoutError:
                command = ("PING",)
            await connection.send_packed_command(self._pack(command), check_health=False)

    async def _read(self, connection: Connection) -> None:
        while True:
            async with asyncio.timeout(_SILENT_PINGS * self._ping_s):
                answer: Any = await connection.read_response()
            kind, channel, content = _parse(answer)
            request_id = channel.removeprefix(_channel(""))
            if channel.startswith(_FOLLOW):
                if kind == b"message":
                    self._note_follower(content.decode(errors="replace"))
            elif kind == b"message":
                self._cancel(request_id)
            elif kind == b"subscribe":  # the request may have been cancelled before the subscription
                self._background.once(TaskName.CANCELLATION_LOOKUP, self._look_up(request_id), self._lookups)

    async def _look_up(self, request_id: str) -> None:
        try:
            is_set = await self._is_set(_channel(request_id))
        except ResultStoreError as exc:
            log.warning("cancellation not looked up", request_id=request_id, reason=str(exc))
            return
        if is_set:
            self._cancel(request_id)


def _parse(answer: object) -> tuple[bytes, str, bytes]:
    """Return the kind of a reply, its channel, and the content of a message.

    While a channel is subscribed, every reply is an array: `message`, `subscribe`, `unsubscribe`, `pong`.
    Otherwise the connection is in its normal mode, where the reply to PING is the simple string PONG
    (redis.io, "Redis serialization protocol specification").

    Raises:
        InvalidResponse: The reply is neither an array nor a string.
    """
    if isinstance(answer, bytes):
        return answer.lower(), "", b""
    if isinstance(answer, list) and len(answer) > 1 and isinstance(answer[0], bytes):
        channel = answer[1] if isinstance(answer[1], bytes) else b""
        content = answer[2] if len(answer) > 2 and isinstance(answer[2], bytes) else b""
        return answer[0], channel.decode(errors="replace"), content
    raise InvalidResponse(f"neither a reply to PING nor a message: {type(answer).__name__}")


def _channel(request_id: str) -> str:
    return f"cancel:{request_id}"
