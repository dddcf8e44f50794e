"""Observes the effect of a fault on jobs from outside: by their results and by the logs of workers.

A test records a row for docs/reliability.md::

    async with observed(worker, fault="Redis is cut", when="in the run") as seen:
        seen.sent(message["requestId"])
        await send(worker, message)
        ...
        seen.struck()          # the fault begins; recovery is counted from here
        ...
        seen.over()            # or from here, if the service was down for a while
        await seen.answered()  # every request has a stored result; FAULT_DEADLINE_S at most

At its end the block checks the invariant: no result is lost, no request has two different results, and no
program has run twice. It appends the row to the file in RELIABILITY_ROWS, if that is set. It counts runs by
the line `run begins` in the logs of the given workers and in `seen.logs`. Workers write this line with
`LOG_LEVEL=DEBUG` (`COUNTED`). A restarted worker overwrites its log, so give each process a separate file. If
the design allows a second run, give the reason: `repeats="…"`.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter, defaultdict
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from redis import asyncio as redis
from redis.exceptions import RedisError

from nanoagent.languages.recipes import RECIPES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from support.agents.worker import WorkerUnderTest

ROWS: Final = "RELIABILITY_ROWS"  # the file that rows are appended to
COUNTED: Final = {"LOG_LEVEL": "DEBUG"}  # the setting that makes runs countable
FAULT_DEADLINE_S: Final = 120.0
_LOOK_S: Final = 0.1
_BUILDS: Final = frozenset(recipe.build[0] for recipe in RECIPES.values() if recipe.build)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table.

    Attributes:
        fault: The fault.
        when: Its moment in the life of a job.
        sent: The number of requests.
        seen: The number of requests with a published and stored result.
        duplicates: The number of requests with two different results.
        lost: The number of requests without a stored result.
        repeated: The number of requests whose program was started more than once; None without a log.
        recovery_s: Seconds from the fault, or from its end, to the last result.
        why: The reason why a program may start twice, if the design allows it.
    """

    fault: str
    when: str
    sent: int
    seen: int
    duplicates: int
    lost: int
    repeated: int | None
    recovery_s: float | None
    why: str = ""


def starts_in(logs: Iterable[Path]) -> Counter[str]:
    """Count the program starts of each request in the logs of workers, without builds."""
    starts: Counter[str] = Counter()
    for log in logs:
        with suppress(FileNotFoundError), log.open(errors="replace") as lines:
            for line in lines:
                if '"run begins"' in line:
                    # A killed worker may leave half a line.
                    with suppress(ValueError):
                        fields = json.loads(line)
                        if fields["command"] not in _BUILDS and "request_id" in fields:
                            starts[fields["request_id"]] += 1
    return starts


@dataclass(slots=True, eq=False)
class Observation:
    """The results that are visible during a fault.

    Attributes:
        logs: The workers' logs in which runs are counted; a test may add more.
        documents: Request → its different results, in the order in which a reader saw them.
        announcements: Request → how often its result was published.
        seen_at: Request → the time at which a reader first saw its result, Unix seconds.
    """

    redis: redis.Redis
    fault: str
    when: str
    logs: list[Path]
    repeats: str = ""
    documents: dict[str, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    announcements: Counter[str] = field(default_factory=Counter)
    seen_at: dict[str, float] = field(default_factory=dict)
    _sent: set[str] = field(default_factory=set)
    _answered: set[str] = field(default_factory=set)
    _struck_at: float | None = None

    def sent(self, *request_ids: str) -> None:
        """Record requests that are about to be sent."""
        self._sent.update(request_ids)

    def struck(self) -> None:
        """The fault begins now."""
        self._struck_at = time.time()

    over = struck

    async def answered(self, deadline_s: float = FAULT_DEADLINE_S) -> dict[str, dict[str, Any]]:
        """Wait until every sent request has a stored result; return the results by request.

        Raises:
            AssertionError: Some requests have no result in time.
        """
        deadline = time.monotonic() + deadline_s
        while missing := await self._without_result():
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.fault}, {self.when}: no result for {sorted(missing)[:10]}")
            await asyncio.sleep(_LOOK_S)
        return {request_id: json.loads(document) for request_id, document in (await self.stored()).items()}

    async def stored(self) -> dict[str, bytes]:
        """Return the stored results of the sent requests."""
        names = sorted(self._sent)
        found = await self.redis.mget([f"job:{name}" for name in names]) if names else []
        return {
            name: document for name, document in zip(names, found, strict=True) if isinstance(document, bytes)
        }

    async def _without_result(self) -> set[str]:
        """Return the sent requests whose result was not seen yet. `row` checks all requests again."""
        names = sorted(self._sent - self._answered)
        if names:
            with suppress(RedisError, OSError):  # Redis may be the faulty service
                found = await self.redis.mget([f"job:{name}" for name in names])
                self._answered.update(name for name, document in zip(names, found, strict=True) if document)
        return self._sent - self._answered

    async def missing(self) -> int:
        """Return the number of requests without a stored result."""
        return len(await self._without_result())

    async def row(self) -> Row:
        """Return the row for the present state."""
        row = await self.row_of(self._sent, self.when, struck_at=self._struck_at)
        return replace(row, why=self.repeats)

    async def row_of(self, requests: Iterable[str], when: str, *, struck_at: float | None) -> Row:
        """Return the row for the present state of some requests.

        Args:
            requests: Their request IDs.
            when: The moment of the fault, for the table.
            struck_at: The time of the fault, Unix seconds, if it is known.
        """
        names = set(requests)
        stored = {name: document for name, document in (await self.stored()).items() if name in names}
        starts = starts_in(self.logs)
        seen = [name for name in names if self.documents[name] and name in stored]
        documents = {name: {*self.documents[name], *filter(None, [stored.get(name)])} for name in names}
        recovery_s = None
        if struck_at is not None and seen:
            last = max(self.seen_at[name] for name in seen)
            recovery_s = round(max(0.0, last - struck_at), 1)
        return Row(
            self.fault,
            when,
            sent=len(names),
            seen=len(seen),
            duplicates=sum(len(different) > 1 for different in documents.values()),
            lost=len(names - stored.keys()),
            repeated=sum(starts[name] > 1 for name in names) if starts.keys() & names else None,
            recovery_s=recovery_s,
        )

    def log_of_repeated(self) -> str:
        """Return the log lines of the requests whose program was started more than once."""
        starts = starts_in(self.logs)
        repeated = [name for name in self._sent if starts[name] > 1]
        lines = [line for log in self.logs for line in log.read_text(errors="replace").splitlines()]
        return "\n".join(line for line in lines if any(name in line for name in repeated))

    def _note(self, request_id: str, document: bytes) -> None:
        self.seen_at.setdefault(request_id, time.time())
        if document not in self.documents[request_id]:
            self.documents[request_id].append(document)

    async def _listen(self, ready: asyncio.Event) -> None:
        """Receive all published results; reconnect each time, because a test may restart the server."""
        while True:
            try:
                async with self.redis.pubsub() as listener:
                    await listener.psubscribe("result:*")
                    async for event in listener.listen():
                        if event["type"] == "pmessage":
                            request_id = event["channel"].decode().removeprefix("result:")
                            self.announcements[request_id] += 1
                            self._note(request_id, event["data"])
                        elif event["type"] == "psubscribe":
                            ready.set()
                            # Results that were published while the connection was lost are stored.
                            for name, document in (await self.stored()).items():
                                self._note(name, document)
            except (RedisError, OSError):
                await asyncio.sleep(_LOOK_S)


def record(row: Row) -> None:
    """Append the row to the file in RELIABILITY_ROWS, if it is set."""
    if path := os.environ.get(ROWS):
        with Path(path).open(
            "a"
        ) as file:  # one write of a short line, so that test processes do not mix lines
            file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")


@asynccontextmanager
async def observed(
    *workers: WorkerUnderTest,
    fault: str,
    when: str,
    repeats: str = "",
    server: tuple[str, int] | None = None,
) -> AsyncIterator[Observation]:
    """Watch the results of the requests that are sent in the block; see the module's docstring.

    Args:
        workers: The workers whose logs show runs.
        fault: The fault, for the table.
        when: Its moment, for the table.
        repeats: The reason why a program may start twice, if the design allows it.
        server: Host and port of Redis if it is not the stack's; never those of a proxy.
    """
    host, port = server or (workers[0].stack.redis_host, workers[0].stack.redis_port)
    client = redis.Redis(host=host, port=port)
    seen = Observation(client, fault, when, [worker.log for worker in workers], repeats)
    ready = asyncio.Event()
    listening = asyncio.create_task(seen._listen(ready))
    try:
        async with asyncio.timeout(FAULT_DEADLINE_S):
            await ready.wait()
        yield seen
        # A result that was just stored may not have been received yet. Both happen in one step.
        await until(lambda: _heard_all(seen))
        row = await seen.row()
    finally:
        listening.cancel()
        await asyncio.wait({listening})
        await client.aclose()
    record(row)
    assert (row.lost, row.duplicates) == (0, 0), row
    if row.repeated and not repeats:
        raise AssertionError(f"{row}\n{seen.log_of_repeated()}")


async def _heard_all(seen: Observation) -> bool:
    return all(seen.documents[name] for name in await seen.stored())


async def until(condition: Callable[[], Awaitable[bool]], deadline_s: float = FAULT_DEADLINE_S) -> None:
    """Poll until a condition in another process is true."""
    async with asyncio.timeout(deadline_s):
        while not await condition():  # noqa: ASYNC110 - another process's state has no event
            await asyncio.sleep(_LOOK_S)
