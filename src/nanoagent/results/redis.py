"""The result store on Redis: results at `job:{requestId}`, published on the channel `result:{requestId}`.

Redis also decides which worker may answer a request. Each decision is one script (`scripts`). `claim` looks
for a result and takes the claim in one round trip. `publish` stores the result and ends the claim in one
round trip.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from typing import TYPE_CHECKING, Any, Final

import structlog

from nanoagent.host.background import Background, TaskName
from nanoagent.host.shielding import unless_cancelled
from nanoagent.model.errors import ResultStoreError
from nanoagent.results import redis_live_log, scripts
from nanoagent.results.base import Answered, Claim, Taken
from nanoagent.results.cancellations import PING_S, RedisCancellations
from nanoagent.results.connections import RedisConnections, pack
from nanoagent.results.failures import RedisCallError

if TYPE_CHECKING:
    from nanoagent.results.connections import ScriptCall
    from nanoagent.results.server import RedisServer

# Within this time after a write, `ping` does not write again. So `ping` costs no round trip while jobs run.
_WRITE_VALID_S: Final = 1.0
_PROBE_TTL_S: Final = 60
_FOLLOW_REMEDY: Final = "use the ACL rule in docs/operations.md"
_INDEX_REMEDY: Final = "use the ACL rule in docs/operations.md, or set JOB_INDEX_SIZE=0"

_log = structlog.get_logger(__name__)


class RedisResultStore:
    """A `ResultStore` on a Redis or Valkey server.

    Args:
        server: The server.
        ttl_s: How long a result is kept, seconds.
        claim_s: How long a claim lasts without a renewal, seconds. It is renewed three times in this time.
        owner: The worker's name. It is stored with claims, with a random part added.
        indexed_jobs: The number of jobs that the index keeps (`job_index`); 0 for no index.
        index_ttl_s: How long the index keeps a job, seconds.
        op_timeout_s: The longest time that a call may take, seconds. This includes the wait for a free
            connection and the retries.
        background: Runs the task that renews claims.

    Attributes:
        follow_refusal: Why this user may not listen to followers; None if it may. `verify` sets it.
        index_refusal: Why Redis refuses the commands for the index of jobs; None if it does not. `verify`
            sets it.
    """

    def __init__(  # noqa: PLR0913 - the settings of the store, by name
        self,
        server: RedisServer,
        *,
        ttl_s: int = 3600,
        claim_s: float = 60,
        owner: str = "worker",
        indexed_jobs: int = 2000,
        index_ttl_s: int = 604_800,
        op_timeout_s: float = 5,
        background: Background | None = None,
    ) -> None:
        self.index_refusal: str | None = None
        self.follow_refusal: str | None = None
        self._server = server
        self._ttl_s = ttl_s
        self._claim_s = claim_s
        # The random part is for a restarted worker: it does not own the claims of its predecessor.
        self._owner = f"{owner}/{secrets.token_hex(8)}"
        self._indexed_jobs = indexed_jobs
        self._index_size, self._index_ttl_s = str(indexed_jobs).encode(), str(index_ttl_s).encode()
        self._connections = RedisConnections(server, op_timeout_s)
        self._written_at = self._verified_at = -math.inf
        self._probe_key = f"nanoagent:worker:{owner}"
        self._claims: set[Claim] = set()
        self._renewing = asyncio.Lock()
        self._renewal: asyncio.Task[None] | None = None
        self._background = background or Background()
        self._releases: set[asyncio.Task[Any]] = set()

    async def claim(self, request_id: str, about: bytes = b"") -> Claim | Taken | Answered:
        """Claim a request; see `ResultStore.claim`.

        If the connection fails, the call is repeated. The repeated call may replace a claim that Redis
        granted in the failed call. The replaced claim does not count as an attempt.

        Raises:
            ResultStoreError: Redis failed.
        """
        keys = (*_keys(request_id), f"cancel:{request_id}", redis_live_log.lease_key(request_id))
        described = about if self._indexed_jobs else b""
        arguments = (self._owner, self._claim_us, self._ttl_s, f"result:{request_id}", described)
        answers = asyncio.ensure_future(
            self._connections.run_scripts("claim", (scripts.CLAIM, keys, arguments))
        )

        def abandoned() -> None:  # Redis may still grant the claim. Then other workers would have to wait.
            release = self._release_when_answered(request_id, answers)
            self._background.once(TaskName.CLAIM_RELEASE, release, self._releases)

        (answer,) = await unless_cancelled(answers, abandoned)
        verdict, _, details = answer.partition(b" ")
        if verdict == b"answered":
            return Answered(details)
        if verdict == b"taken":
            left_us, refusals = map(int, details.split())
            return Taken(left_us / 1_000_000, refusals)
        token, cancelled, failures, followed = map(int, details.split())
        claim = Claim(request_id, token, cancelled > 0, failures, followed > 0)
        self._written_at = time.monotonic()
        self._claims.add(claim)
        if self._renewal is None:
            self._renewal = self._background.keep(TaskName.CLAIM_RENEWAL, self._renew_forever)
        return claim

    async def publish(self, claim: Claim, document: bytes, entry: bytes = b"") -> bool:
        """Store and publish a result; see `ResultStore.publish`.

        Raises:
            ResultStoreError: Redis failed. The claim is kept.
        """
        held = claim in self._claims
        self._claims.discard(claim)  # otherwise a renewal would find this claim ended, and report it as lost
        channel = f"result:{claim.request_id}"
        indexed = entry if self._indexed_jobs else b""
        index = (indexed, self._index_size, self._index_ttl_s)
        arguments = (claim.token, self._ttl_s, channel, document, *index)
        call = scripts.PUBLISH, _keys(claim.request_id), arguments
        try:
            (published,) = await self._connections.run_scripts("publish", call)
        except ResultStoreError:
            if held:
                self._claims.add(claim)
            raise
        if published:
            self._written_at = time.monotonic()
        return bool(published)

    async def release(self, claim: Claim, *, failed: bool = False, entry: bytes = b"") -> int:
        """End a claim; see `ResultStore.release`.

        Raises:
            ResultStoreError: Redis failed. The claim is not renewed any more, and ends by itself.
        """
        self._claims.discard(claim)
        return await self._release(claim.request_id, claim.token, failed=failed, entry=entry)

    async def ping(self) -> None:
        """Check that Redis takes writes.

        A write within the last second is enough, if no call has failed since. Otherwise a key with the
        worker's name is written. PING is not used: a read-only replica and a server without free memory
        answer it too. The first call, and the first after a failure, verify the server.

        Raises:
            ResultStoreError: Redis does not take writes. The message has the cause and the remedy.
        """
        if self._verified_at <= self._connections.failed_at:
            await self.verify()
            self._verified_at = time.monotonic()
        if not self.took_write_lately():
            await self._connections.ask("write", ("SETEX", self._probe_key, _PROBE_TTL_S, "here"))
            self._written_at = time.monotonic()

    def took_write_lately(self) -> bool:
        """Return whether a write succeeded within the last second and no call has failed since."""
        failed_at = self._connections.failed_at
        is_recent = time.monotonic() - self._written_at <= _WRITE_VALID_S
        return is_recent and self._written_at > failed_at and self._verified_at > failed_at

    async def verify(self) -> None:
        """Run each command that a worker needs, for a request that cannot exist. No key is left.

        PING is not enough. A cluster, a Sentinel, and a server without scripts answer PING. A server also
        answers PING for a user without permissions.

        If the user may not listen to followers, no live output is stored.
        If only the commands for the index of jobs fail, the jobs run, but `nanoagent jobs` does not list
        them.

        Raises:
            RedisCallError: A command failed, or the server cannot be reached.
        """
        operation = "verify"
        arguments = (scripts.PROBE_CHANNELS[0], int(self._indexed_jobs > 0))
        probe = scripts.PROBE, scripts.PROBE_KEYS, arguments
        channel = scripts.PROBE_CHANNELS[1]
        try:
            (answer,) = await self._connections.run_scripts(operation, probe)
            await self._connections.ask(operation, ("SUBSCRIBE", channel), ("UNSUBSCRIBE", channel))
        except ResultStoreError as exc:
            cause = exc.__cause__ or exc
            kind = await self._server.diagnose(cause)
            raise RedisCallError(self._server.address, operation, kind, cause) from cause
        self.index_refusal = answer.decode(errors="replace") if isinstance(answer, bytes) else None
        await self._verify_follow_channel()
        if self.index_refusal is not None:
            _log.warning("jobs not listed", reason=self.index_refusal, remedy=_INDEX_REMEDY)

    async def _verify_follow_channel(self) -> None:
        """Find out whether this user may listen to followers. Jobs run without that, too."""
        channel = scripts.PROBE_CHANNELS[2]
        self.follow_refusal = None
        try:
            await self._connections.ask("verify", ("SUBSCRIBE", channel), ("UNSUBSCRIBE", channel))
        except ResultStoreError as exc:
            self.follow_refusal = str(exc)
            _log.warning("followers not noticed", reason=self.follow_refusal, remedy=_FOLLOW_REMEDY)

    async def ask(self, *command: str | bytes | int) -> Any:
        """Send one command, and return the reply. `nanoagent doctor` uses this method.

        Raises:
            ResultStoreError: Redis failed or refused the command. The cause is the Redis client's exception.
        """
        (answer,) = await self._connections.ask(str(command[0]).lower(), command)
        return answer

    async def close(self) -> None:
        """Stop renewing claims and close all connections. Idempotent."""
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.wait({self._renewal})
        if self._releases:
            await asyncio.wait(self._releases)
        await self._connections.close()

    def live_log(self, *, ttl_s: int, max_bytes: int) -> redis_live_log.RedisLiveLog:
        """Return the live logs on the same server. Close this result store last.

        Args:
            ttl_s: How long a live log is kept, seconds.
            max_bytes: See `RedisLiveLog`.
        """
        return redis_live_log.RedisLiveLog(self._connections, ttl_s=ttl_s, max_bytes=max_bytes)

    def cancellations(self, *, ping_s: float = PING_S, hears_followers: bool = True) -> RedisCancellations:
        """Return the receiver of cancellations from the same server. Close it before this result store.

        Args:
            ping_s: See `RedisCancellations`.
            hears_followers: Whether followers of jobs are noticed.
        """

        async def is_set(key: str) -> bool:
            (count,) = await self._connections.ask("look for a cancellation", ("EXISTS", key))
            return bool(count)

        follow_channel = redis_live_log.follow_channel(self._owner)
        return RedisCancellations(
            self._connections.new,
            pack,
            is_set,
            lambda: follow_channel if hears_followers and self.follow_refusal is None else None,
            background=self._background,
            ping_s=ping_s,
        )

    # --- claims

    @property
    def _claim_us(self) -> int:
        """How long a claim lasts, microseconds."""
        return int(self._claim_s * 1_000_000)

    async def _release(self, request_id: str, token: int, *, failed: bool, entry: bytes = b"") -> int:
        index = (entry if self._indexed_jobs else b"", self._index_size, self._index_ttl_s)
        arguments = (token, self._owner, int(failed), *index)
        async with self._renewing:  # a renewal that arrives after the release would restore the claim
            call = scripts.RELEASE, _keys(request_id), arguments
            (failures,) = await self._connections.run_scripts("release", call)
        return int(failures)

    async def _release_when_answered(self, request_id: str, answers: asyncio.Future[list[Any]]) -> None:
        """Release the claim of an abandoned call, after the call has ended.

        An earlier release could arrive before the claim, because it uses another connection.
        """
        try:
            await asyncio.wait((answers,))
            answers.exception()  # marks it as handled: Redis may have granted the claim in a failed call
            await self._release(request_id, token=0, failed=False)
        except ResultStoreError as exc:
            _log.warning("claim not released", error=str(exc))

    async def _renew_forever(self) -> None:
        while True:
            await asyncio.sleep(self._claim_s / 3)
            try:
                await self._renew_all()
            except ResultStoreError as exc:  # no worker can take over a claim while Redis fails
                _log.warning("claims not renewed", error=str(exc), claims=len(self._claims))
                continue
            if self._indexed_jobs:
                await self._tend_index()

    async def _tend_index(self) -> None:
        """Remove what has expired from the index of jobs."""
        try:
            await self._connections.run_scripts(
                "tend the index of jobs", (scripts.TEND, (), (self._index_ttl_s,))
            )
        except ResultStoreError as exc:  # `verify` has logged a permanent cause
            _log.debug("index of jobs not tended", error=str(exc))

    async def _renew_all(self) -> None:
        """Renew every claim, in one round trip."""
        async with self._renewing:
            claims = list(self._claims)
            if not claims:
                return
            answers = await self._connections.run_scripts("renew claims", *map(self._renewal_of, claims))
        for claim, kept in zip(claims, answers, strict=True):
            if not kept and claim in self._claims:
                self._claims.discard(claim)
                claim.lost.set_result("another worker has claimed the request, or answered it")

    def _renewal_of(self, claim: Claim) -> ScriptCall:
        arguments = (claim.token, self._claim_us, self._owner, int(self._indexed_jobs > 0))
        return scripts.RENEW, _keys(claim.request_id), arguments


def _keys(request_id: str) -> tuple[str, ...]:
    """Return the keys of the result, the claim and the failed attempts, in the order of all scripts."""
    return f"job:{request_id}", f"nanoagent:claim:{request_id}", f"nanoagent:failed:{request_id}"
