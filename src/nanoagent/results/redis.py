"""Results to Redis: the document at `job:{requestId}`, announced on `result:{requestId}`.

Who may answer a request is decided there as well, each time in one step (`scripts.py`): a claim takes the
round trip in which it is looked whether there is an answer already, and is let go in the one that publishes.

Of the client only its connections are used: they sign in, speak TLS and the protocol. Its pool and pipelines
cost more than twice the CPU of what they do for us (190 against 90 µs for a result).
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from nanoagent.host.background import Background, TaskName
from nanoagent.host.shielding import unless_cancelled
from nanoagent.model.errors import ResultStoreError
from nanoagent.results import failures, scripts
from nanoagent.results.base import Answered, Claim, Taken
from nanoagent.results.cancellations import PING_S, RedisCancellations
from nanoagent.results.failures import RedisCallError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Connection

    from nanoagent.results.scripts import Script
    from nanoagent.results.server import RedisServer

_MAX_CONNECTIONS: Final = 32
# Before each new try. The first is at once: a server closes connections that were idle, and nothing is wrong
# then. The client's own defaults make a dead server cost 4.5 s a call (docs/adr/0002).
_PAUSES_S: Final = (0.0, 0.2)
_WRITE_HOLDS_S: Final = 1.0  # what was written so lately shows that more can be; a job costs no round trip
_PROBE_TTL_S: Final = 60
# What is wrong with the connection, not with what is asked on it. A length that is no number: ValueError.
_BROKEN: Final = (RedisConnectionError, RedisTimeoutError, InvalidResponse, ValueError)

_Command: TypeAlias = "tuple[str | bytes | int, ...]"
_Call: TypeAlias = "tuple[Script, tuple[str, ...], _Command]"  # with its keys and its arguments

_log = structlog.get_logger(__name__)


class RedisResultStore:
    """A `ResultStore` on a Redis or Valkey server.

    Args:
        server: The server.
        ttl_s: How long a result is kept, seconds.
        claim_s: How long a claim lasts unless it is renewed, which it is three times as often, seconds.
        owner: Who has the claims, for people; a random part is added.
        op_timeout_s: The longest a call takes, waiting for a connection and retries included, seconds.
        background: Keeps the task that renews claims.
    """

    def __init__(
        self,
        server: RedisServer,
        *,
        ttl_s: int = 3600,
        claim_s: float = 60,
        owner: str = "worker",
        op_timeout_s: float = 5,
        background: Background | None = None,
    ) -> None:
        self._server = server
        self._ttl_s = ttl_s
        self._claim_s = claim_s
        # Not the worker's name alone: a restarted worker has nothing of what it was before.
        self._owner = f"{owner}/{secrets.token_hex(8)}"
        self._op_timeout_s = op_timeout_s
        self._connection_class = server.connection_class
        self._connection_settings = server.client_settings() | {
            "socket_connect_timeout": op_timeout_s,
            "socket_timeout": None,  # every call has a deadline of its own
            "socket_keepalive": True,
            "retry": Retry(NoBackoff(), 0),
        }
        self._idle: list[Connection] = []
        self._free = asyncio.Semaphore(_MAX_CONNECTIONS)
        self._closed = False
        self._written_at = -math.inf
        self._is_verified = False
        self._probe_key = f"nanoagent:worker:{owner}"
        self._claims: set[Claim] = set()
        self._renewing = asyncio.Lock()
        self._heartbeat: asyncio.Task[None] | None = None
        self._background = background or Background()
        self._releases: set[asyncio.Task[Any]] = set()

    async def claim(self, request_id: str) -> Claim | Taken | Answered:
        """Take the right to answer a request; see `ResultStore.claim`.

        Repeated after a broken connection, it may take the place of a claim that nobody was told of, which
        was no attempt.

        Raises:
            ResultStoreError: Redis failed.
        """
        keys = (*_keys(request_id), f"cancel:{request_id}")
        arguments = (self._owner, self._claim_us, self._ttl_s, f"result:{request_id}")
        answers = asyncio.ensure_future(self._evaluate("claim", (scripts.CLAIM, keys, arguments)))

        def abandoned() -> None:  # it may be granted yet, and nobody should have to wait for its end
            release = self._release_when_answered(request_id, answers)
            self._background.once(TaskName.CLAIM_RELEASE, release, self._releases)

        ((verdict, *details),) = await unless_cancelled(answers, abandoned)
        if verdict == b"answered":
            return Answered(details[0])
        if verdict == b"taken":
            return Taken(int(details[0]) / 1_000_000, int(details[1]))
        token, cancelled, failures = map(int, details)
        claim = Claim(request_id, token, cancelled=bool(cancelled), failures=failures)
        self._written_at = time.monotonic()
        self._claims.add(claim)
        if self._heartbeat is None:
            self._heartbeat = self._background.keep(TaskName.CLAIM_RENEWAL, self._renew_forever)
        return claim

    async def publish(self, claim: Claim, document: bytes) -> bool:
        """Store and announce the document in one step; see `ResultStore.publish`.

        Raises:
            ResultStoreError: Redis failed; the claim is kept.
        """
        held = claim in self._claims
        self._claims.discard(claim)  # a renewal must not take what is let go here for lost
        arguments = (claim.token, self._ttl_s, f"result:{claim.request_id}", document)
        call = scripts.PUBLISH, _keys(claim.request_id), arguments
        try:
            (published,) = await self._evaluate("publish", call)
        except ResultStoreError:
            if held:
                self._claims.add(claim)
            raise
        if published:
            self._written_at = time.monotonic()
        return bool(published)

    async def release(self, claim: Claim, *, failed: bool = False) -> int:
        """Let others claim the request; see `ResultStore.release`.

        Raises:
            ResultStoreError: Redis failed; the claim runs out.
        """
        self._claims.discard(claim)
        return await self._release(claim.request_id, claim.token, failed=failed)

    async def ping(self) -> None:
        """Succeed when Redis takes writes, or has taken one within the last second and not failed since.

        PING would be answered by a read-only replica as well, and by a server whose memory is used up: a key
        that says that this worker is there is written instead. The first call, and the first after each
        failure, verifies the server.

        Raises:
            ResultStoreError: It does not; the message says what is wrong and what to do.
        """
        if not self._is_verified:
            await self.verify()
            self._is_verified = True
        if time.monotonic() - self._written_at > _WRITE_HOLDS_S:
            await self._ask("write", ("SETEX", self._probe_key, _PROBE_TTL_S, "here"))
            self._written_at = time.monotonic()

    async def verify(self) -> None:
        """Run every command of a worker once, for a request that cannot exist; no key remains.

        PING is not enough: a cluster, a Sentinel, a server without scripts and a user without permissions
        all answer it.

        Raises:
            RedisCallError: A command failed, or the server cannot be reached.
        """
        doing = "verify"
        probe = scripts.PROBE, scripts.PROBE_KEYS, scripts.PROBE_CHANNELS[:1]
        listening = scripts.PROBE_CHANNELS[1]
        try:
            await self._evaluate(doing, probe)
            await self._ask(doing, ("SUBSCRIBE", listening), ("UNSUBSCRIBE", listening))
        except ResultStoreError as exc:
            cause = exc.__cause__ or exc
            kind = await self._server.diagnose(cause)
            raise RedisCallError(self._server.address, doing, kind, cause) from cause

    async def ask(self, *command: str | bytes | int) -> Any:
        """The answer to any one command; what `nanoagent doctor` looks with.

        Raises:
            ResultStoreError: Redis failed or refused; the cause is the client's own exception.
        """
        (answer,) = await self._ask(str(command[0]).lower(), command)
        return answer

    async def close(self) -> None:
        """Stop renewing and close all connections. Idempotent."""
        self._closed = True
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            await asyncio.wait({self._heartbeat})
        if self._releases:
            await asyncio.wait(self._releases)
        while self._idle:
            await self._idle.pop().disconnect()

    def cancellations(self, *, ping_s: float = PING_S) -> RedisCancellations:
        """What receives cancellations from the same server; to be closed before this."""

        async def is_set(key: str) -> bool:
            (count,) = await self._ask("look for a cancellation", ("EXISTS", key))
            return bool(count)

        return RedisCancellations(
            lambda: self._connection_class(**self._connection_settings),
            _packed,
            is_set,
            background=self._background,
            ping_s=ping_s,
        )

    # --- claims

    @property
    def _claim_us(self) -> int:
        return int(self._claim_s * 1_000_000)

    async def _release(self, request_id: str, token: int, *, failed: bool) -> int:
        async with self._renewing:  # a renewal under way would bring the claim back if it arrived after us
            call = scripts.RELEASE, _keys(request_id), (token, self._owner, int(failed))
            (failures,) = await self._evaluate("release", call)
        return int(failures)

    async def _release_when_answered(self, request_id: str, answers: asyncio.Future[list[Any]]) -> None:
        """Release a claim that nobody waits for any more. On another connection it could arrive first."""
        try:
            await asyncio.wait((answers,))
            answers.exception()  # Retrieved: the claim may have been granted although its call failed.
            await self._release(request_id, token=0, failed=False)
        except ResultStoreError as exc:
            _log.warning("claim not released; it runs out", error=str(exc))

    async def _renew_forever(self) -> None:
        while True:
            await asyncio.sleep(self._claim_s / 3)
            try:
                await self._renew_all()
            except (
                ResultStoreError
            ) as exc:  # they are still good, for as long as nobody else can claim either
                _log.warning("claims not renewed", error=str(exc), claims=len(self._claims))

    async def _renew_all(self) -> None:
        """Renew every claim, in one round trip."""
        async with self._renewing:
            claims = list(self._claims)
            if not claims:
                return
            answers = await self._evaluate("renew claims", *map(self._renewal, claims))
        for claim, kept in zip(claims, answers, strict=True):
            if not kept and claim in self._claims:
                self._claims.discard(claim)
                claim.lost.set_result("another worker has claimed the request, or answered it")

    def _renewal(self, claim: Claim) -> _Call:
        return scripts.RENEW, _keys(claim.request_id), (claim.token, self._claim_us, self._owner)

    async def _evaluate(self, doing: str, *calls: _Call) -> list[Any]:
        """The scripts' answers, in one round trip, or two where the server does not know them yet."""
        try:
            return await self._ask(doing, *(_called("EVALSHA", call[0].digest, call) for call in calls))
        except ResultStoreError as exc:
            if not isinstance(exc.__cause__, NoScriptError):
                raise
        return await self._ask(doing, *(_called("EVAL", call[0].text, call) for call in calls))

    # --- commands

    async def _ask(self, doing: str, *commands: _Command) -> list[Any]:
        """The commands' answers, within `op_timeout_s`, waiting for a connection and new tries included."""
        try:
            async with asyncio.timeout(self._op_timeout_s), self._free:
                answers = await self._try(commands)
        except (RedisError, OSError, TimeoutError, ValueError) as exc:
            self._written_at = -math.inf
            self._is_verified = False
            raise RedisCallError(self._server.address, doing, failures.kind_of(exc), exc) from exc
        return answers

    async def _try(self, commands: Sequence[_Command]) -> list[Any]:
        """Ask on a connection that nobody else uses meanwhile; again when it, or the server, was gone.

        So too when the server is not the one to ask any more: a new connection asks for its name's address
        anew, which is how a failover by DNS is followed.
        """
        connection = self._idle.pop() if self._idle else self._connection_class(**self._connection_settings)
        try:
            for pause_s in _PAUSES_S:
                try:
                    return await _exchange(connection, commands)
                except (*_BROKEN, ResponseError) as exc:
                    if not await self._hung_up(connection, exc):
                        raise
                    await asyncio.sleep(pause_s)
            try:
                return await _exchange(connection, commands)
            except (*_BROKEN, ResponseError) as exc:
                await self._hung_up(connection, exc)
                raise
        finally:
            if self._closed or not connection.is_connected:
                await connection.disconnect(nowait=True)
            else:
                self._idle.append(connection)

    async def _hung_up(self, connection: Connection, exc: Exception) -> bool:
        """Whether a new connection may fare better; then this one, or every one, is closed."""
        kind = failures.kind_of(exc)
        must_reconnect = kind is not None and kind.reconnect
        if must_reconnect:
            while self._idle:
                await self._idle.pop().disconnect(nowait=True)
        if must_reconnect or isinstance(exc, _BROKEN):
            await connection.disconnect(nowait=True)
        return must_reconnect or isinstance(exc, _BROKEN)


def _keys(request_id: str) -> tuple[str, ...]:
    """The result's, the claim's and the failures', which every script takes in this order."""
    return f"job:{request_id}", f"nanoagent:claim:{request_id}", f"nanoagent:failed:{request_id}"


def _called(verb: str, name: str, call: _Call) -> _Command:
    _, keys, arguments = call
    return verb, name, len(keys), *keys, *arguments


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
