"""What a fault did to the jobs beside it, seen from outside: by who waits for results, and by logs.

A scenario of any test records a row for docs/reliability.md::

    async with observed(worker, fault="Redis is cut", when="in the run") as seen:
        seen.sent(message["requestId"])
        await send(worker, message)
        ...
        seen.struck()          # the fault begins; recovery is counted from here
        ...
        seen.over()            # or from here, where the service was away for a while
        await seen.answered()  # every request has a stored result; FAULT_DEADLINE_S at most

The block's end checks the invariant (nothing lost, no request with two different answers, nothing run twice)
and appends the row to the file that RELIABILITY_ROWS names, if it is set. Executions are counted by the line
`run begins` in the logs of the workers that were given, and of `seen.logs`: settings with `LOG_LEVEL=DEBUG`
(`COUNTED`) make workers write it. An agent that is started again writes its log anew: give every life a file
of its own. Where the design says that a second execution cannot be helped, say `repeats="why"`.
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
COUNTED: Final = {"LOG_LEVEL": "DEBUG"}  # what a worker needs so that its executions can be counted
FAULT_DEADLINE_S: Final = 120.0
_LOOK_S: Final = 0.1
_BUILDS: Final = frozenset(recipe.build[0] for recipe in RECIPES.values() if recipe.build)


@dataclass(frozen=True, slots=True)
class Row:
    """One scenario of the table.

    Attributes:
        fault: What happened.
        when: When it struck, by the job's course.
        sent: Requests sent.
        seen: Requests for which whoever waits has a result: announced, and stored.
        duplicates: Requests for which two different documents were to be seen.
        lost: Requests without a stored result.
        repeated: Requests whose program was started more than once; None where no log tells.
        recovery_s: From the fault, or its end, until the last result.
        why: Why programs may have been started twice, where the design says so.
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
    """How often each request's program was started, by agents' logs; builds do not count."""
    starts: Counter[str] = Counter()
    for log in logs:
        with suppress(FileNotFoundError), log.open(errors="replace") as lines:
            for line in lines:
                if '"run begins"' in line:
                    # A killed agent may leave half a line.
                    with suppress(ValueError):
                        fields = json.loads(line)
                        if fields["command"] not in _BUILDS and "request_id" in fields:
                            starts[fields["request_id"]] += 1
    return starts


@dataclass(slots=True, eq=False)
class Observation:
    """What is to be seen while a fault strikes.

    Attributes:
        logs: Agents' logs, in which executions are counted; more may be added.
        documents: Request → the different documents that a reader came to see, in that order.
        announcements: Request → how often a result of it was announced.
        seen_at: Request → when a reader first saw its result, Unix seconds.
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
        """Note requests that are being sent."""
        self._sent.update(request_ids)

    def struck(self) -> None:
        """The fault begins now."""
        self._struck_at = time.time()

    over = struck

    async def answered(self, deadline_s: float = FAULT_DEADLINE_S) -> dict[str, dict[str, Any]]:
        """Wait until every request that was sent has a stored result; returns them by request.

        Raises:
            AssertionError: Some have none by then.
        """
        deadline = time.monotonic() + deadline_s
        while missing := await self._without_result():
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.fault}, {self.when}: no result for {sorted(missing)[:10]}")
            await asyncio.sleep(_LOOK_S)
        return {request_id: json.loads(document) for request_id, document in (await self.stored()).items()}

    async def stored(self) -> dict[str, bytes]:
        """The stored documents of the requests that were sent."""
        names = sorted(self._sent)
        found = await self.redis.mget([f"job:{name}" for name in names]) if names else []
        return {
            name: document for name, document in zip(names, found, strict=True) if isinstance(document, bytes)
        }

    async def _without_result(self) -> set[str]:
        """Those that were sent and not seen answered yet; `row` looks at all of them again."""
        names = sorted(self._sent - self._answered)
        if names:
            with suppress(RedisError, OSError):  # it may be what the fault is about
                found = await self.redis.mget([f"job:{name}" for name in names])
                self._answered.update(name for name, document in zip(names, found, strict=True) if document)
        return self._sent - self._answered

    async def missing(self) -> int:
        """How many requests have no stored result yet."""
        return len(await self._without_result())

    async def row(self) -> Row:
        """What is to be seen now."""
        row = await self.row_of(self._sent, self.when, struck_at=self._struck_at)
        return replace(row, why=self.repeats)

    async def row_of(self, requests: Iterable[str], when: str, *, struck_at: float | None) -> Row:
        """What is to be seen now of some of the requests.

        Args:
            requests: Their ids.
            when: When the fault struck those, for the table.
            struck_at: The same in Unix seconds, if it is known.
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
        """The log lines of the requests whose program was started more than once."""
        starts = starts_in(self.logs)
        repeated = [name for name in self._sent if starts[name] > 1]
        lines = [line for log in self.logs for line in log.read_text(errors="replace").splitlines()]
        return "\n".join(line for line in lines if any(name in line for name in repeated))

    def _note(self, request_id: str, document: bytes) -> None:
        self.seen_at.setdefault(request_id, time.time())
        if document not in self.documents[request_id]:
            self.documents[request_id].append(document)

    async def _listen(self, ready: asyncio.Event) -> None:
        """Hear every announcement; again and again, since the server may be what is restarted."""
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
                            # As a reader does who has been cut off: what was announced meanwhile is stored.
                            for name, document in (await self.stored()).items():
                                self._note(name, document)
            except (RedisError, OSError):
                await asyncio.sleep(_LOOK_S)


def record(row: Row) -> None:
    """Append the row to the file that the environment names, if it names one."""
    if path := os.environ.get(ROWS):
        with Path(path).open("a") as file:  # one write of a short line: test processes do not mix them up
            file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")


@asynccontextmanager
async def observed(
    *workers: WorkerUnderTest,
    fault: str,
    when: str,
    repeats: str = "",
    server: tuple[str, int] | None = None,
) -> AsyncIterator[Observation]:
    """Watch what comes of the requests that are sent in the block; see the module's docstring.

    Args:
        workers: Whose logs tell of executions.
        fault: What happens, for the table.
        when: When it strikes, for the table.
        repeats: Why a program may be started twice, where that cannot be helped.
        server: Host and port of Redis, where it is not the stack's; never those of a proxy.
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
        # What was stored a moment ago may not have been heard yet; it was announced in the same step.
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
    """Wait for something that has no signal of its own to wait for: another process's doing."""
    async with asyncio.timeout(deadline_s):
        while not await condition():  # noqa: ASYNC110 - another process's state has no event
            await asyncio.sleep(_LOOK_S)
