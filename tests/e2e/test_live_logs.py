"""`nanoagent logs` as its users run it, beside real workers, on real Docker and Redis."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest
import pytest_asyncio

from support.agents.worker import WorkerUnderTest
from support.services.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from nanoagent.dev.local_services import EmbeddedStack

DEADLINE_S: Final = 60
SETTINGS: Final = {
    "WORKER_CPUS": "4",
    "SQS_VISIBILITY_SECONDS": "5",
    "MIN_ISOLATION": "L1",
    "WARM_POOL_NODEJS_SIZE": "0",
    "WARM_POOL_CPP_SIZE": "0",
    "WARM_POOL_GO_SIZE": "0",
}
LINES: Final = 50
# Each line has the time at which it was printed.
CLOCK: Final = f"""
import time
for n in range({LINES}):
    print(n, time.time(), flush=True)
    time.sleep(0.1)
"""
COUNTS: Final = """
import sys, time
for n in range(60):
    print("out", n, flush=True)
    print("err", n, file=sys.stderr, flush=True)
    time.sleep(0.2)
"""
OUT: Final = "".join(f"out {n}\n" for n in range(60))
ERR: Final = "".join(f"err {n}\n" for n in range(60))
FLOOD: Final = """
import os, time
end = time.time() + 10
text = b"x" * 1023 + b"\\n"
while time.time() < end:
    os.write(1, text * 1024)
print("the end")
"""
HELLO: Final = "print('hello')\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker(
    stack: EmbeddedStack, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[WorkerUnderTest]:
    async with WorkerUnderTest(stack, tmp_path_factory.mktemp("worker"), SETTINGS) as worker:
        yield worker


pytestmark = pytest.mark.asyncio(loop_scope="module")


class Follower:
    """A process `nanoagent logs`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def line(self) -> str:
        assert self._process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            return (await self._process.stdout.readline()).decode()

    async def notice(self) -> str:
        """Return the next line of standard error. The first one says that it follows."""
        assert self._process.stderr is not None
        async with asyncio.timeout(DEADLINE_S):
            return (await self._process.stderr.readline()).decode()

    async def end(self) -> tuple[int, str, str]:
        """Return the exit code, and the rest of standard output and of standard error."""
        async with asyncio.timeout(DEADLINE_S):
            out, err = await self._process.communicate()
        return self._process.returncode or 0, out.decode(), err.decode()

    async def kill(self) -> None:
        self._process.kill()
        await self._process.wait()


@asynccontextmanager
async def logs_of(worker: WorkerUnderTest, *arguments: str) -> AsyncIterator[Follower]:
    environment = worker.stack.environment() | worker.settings
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "nanoagent", "logs", *arguments, "--env-file", os.devnull),
        env=os.environ | {name: environment[name] for name in environment if name.startswith("REDIS_")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=1 << 24,
    )
    try:
        yield Follower(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def job(worker: WorkerUnderTest, program: str, **fields: Any) -> tuple[str, Callable[[], Any]]:
    """Return the ID of a new job, and a function that sends it."""
    key = await worker.upload({"main.py": program})
    message = worker.message(s3Key=key, timeoutMs=60_000, functionId=f"f-{hash(program)}", **fields)
    body = worker.body(message)
    return message["requestId"], lambda: worker.stack.queues.send(body, queue_url=worker.queue_url)


async def until_running(worker: WorkerUnderTest) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while await worker.metric("worker_active_jobs") < 1:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.02)


async def result_of(worker: WorkerUnderTest, request_id: str) -> dict[str, Any]:
    async with asyncio.timeout(DEADLINE_S):
        while (document := await worker.redis.get(f"job:{request_id}")) is None:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.05)
    return dict(json.loads(document))


async def test_lines_arrive_in_order_while_the_job_runs(
    worker: WorkerUnderTest, record_property: Callable[[str, object], None]
):
    request_id, send = await job(worker, CLOCK)
    async with logs_of(worker, request_id, "--follow") as follower:
        assert (await follower.notice()).startswith(f"nanoagent: no worker has {request_id}: it waits, or ")
        await send()
        delays, numbers = [], []
        for _ in range(LINES):
            number, printed_at = (await follower.line()).split()
            delays.append(time.time() - float(printed_at))
            numbers.append(int(number))
        code, out, err = await follower.end()
    assert numbers == list(range(LINES))
    assert (code, out) == (0, "")
    assert f"attempt 1 runs on worker {worker.worker_id}" in err
    assert "SUCCESS; exit code 0" in err
    assert min(delays) < 2  # the lines did not arrive together, at the end
    median, most = statistics.median(delays), max(delays)
    print(f"\nlatency of a line: median {median * 1000:.0f} ms, max {most * 1000:.0f} ms")
    record_property(
        "ratio", [f"median latency of a line of a live log, of 200 ms (max {most:.3f} s)", median / 0.2]
    )


async def test_a_follower_that_was_killed_continues_where_it_was(worker: WorkerUnderTest):
    request_id, send = await job(worker, COUNTS)
    events: list[dict[str, Any]] = []
    for number in range(2):
        since = ["--since", events[-1]["position"]] if events else []
        async with logs_of(worker, request_id, "--follow", "--json", *since) as follower:
            events.append(json.loads(await follower.line()))
            if number == 0:
                await send()
            before = len(events)
            while len(events) < before + 8:
                events.append(json.loads(await follower.line()))
            await follower.kill()
    async with logs_of(
        worker, request_id, "--follow", "--json", "--since", events[-1]["position"]
    ) as follower:
        code, out, _ = await follower.end()
    events += [json.loads(line) for line in out.splitlines()]
    assert code == 0
    for stream, printed in (("stdout", OUT), ("stderr", ERR)):
        assert "".join(event["text"] for event in events if event.get("stream") == stream) == printed
    assert [event["event"] for event in events].count("started") == 1
    assert events[-1]["event"] == "ended"
    assert events[-1]["status"] == "SUCCESS"


async def test_a_job_that_runs_already_can_be_followed_from_its_beginning(worker: WorkerUnderTest):
    request_id, send = await job(worker, COUNTS)
    await send()
    await until_running(worker)
    await asyncio.sleep(1)
    async with logs_of(worker, request_id) as follower:  # what is there until now
        code, out, err = await follower.end()
    assert code == 0
    assert out
    assert OUT.startswith(out)
    assert "the job continues; to follow it: nanoagent logs" in err
    async with logs_of(worker, request_id, "--follow") as follower:
        code, out, err = await follower.end()
    assert (code, out) == (0, OUT)
    assert "".join(line for line in err.splitlines(keepends=True) if line.startswith("err")) == ERR


async def test_only_one_stream_can_be_chosen(worker: WorkerUnderTest):
    request_id, send = await job(worker, COUNTS)
    await send()
    async with logs_of(worker, request_id, "--follow", "--stream", "stderr") as follower:
        code, out, err = await follower.end()
    assert (code, out) == (0, "")
    assert "".join(line for line in err.splitlines(keepends=True) if line.startswith("err")) == ERR


@pytest.mark.parametrize(
    ("program", "fields", "code", "shown"),
    [
        ("print('before')\nraise SystemExit(7)\n", {}, 1, "FAILED (USER_ERROR); exit code 7"),
        ("print('before', flush=True)\nwhile True: pass\n", {"timeoutMs": 700}, 124, "TIMEOUT (TIMEOUT)"),
    ],
)
async def test_the_exit_code_says_how_the_job_ended(
    worker: WorkerUnderTest, program: str, fields: dict[str, Any], code: int, shown: str
):
    key = await worker.upload({"main.py": program})
    result = await worker.run(s3Key=key, **{"timeoutMs": 30_000} | fields)
    for options in ([], ["--follow"]):  # nobody followed it; the output is that of the result
        async with logs_of(worker, result["requestId"], *options) as follower:
            found, out, err = await follower.end()
        assert (found, out) == (code, "before\n")
        assert shown in err


async def test_an_unknown_job_is_no_success(worker: WorkerUnderTest):
    async with logs_of(worker, "unknown") as follower:
        code, out, err = await follower.end()
    assert (code, out) == (4, "")
    assert "no output of unknown is known" in err
    async with logs_of(worker, "unknown", "--follow", "--wait", "1") as follower:
        assert (await follower.end())[0] == 4


async def test_the_second_attempt_on_another_worker_is_marked(stack: EmbeddedStack, tmp_path: Path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    async with WorkerUnderTest(stack, tmp_path / "first", SETTINGS) as first:
        request_id, send = await job(first, COUNTS)
        async with logs_of(first, request_id, "--follow") as follower:
            await follower.notice()
            await send()
            lines = [await follower.line() for _ in range(5)]
            await first.agent.kill()
            async with WorkerUnderTest(stack, tmp_path / "second", SETTINGS, beside=first) as second:
                code, out, err = await follower.end()
    assert code == 0
    assert OUT.startswith("".join(lines))
    assert ("".join(lines) + out).endswith(OUT)
    assert f"attempt 1 runs on worker {first.worker_id}" in err
    assert f"attempt 2 begins again on worker {second.worker_id}" in err


async def honest_ms(worker: WorkerUnderTest, key: str) -> float:
    """Return the median of the durations of small jobs, one after the other, ms."""
    durations = [(await worker.run(s3Key=key))["timings"]["total"] for _ in range(25)]
    return float(statistics.median(durations))


async def test_a_flood_is_counted_and_costs_the_jobs_beside_it_nothing(
    worker: WorkerUnderTest, record_property: Callable[[str, object], None]
):
    """The durations are reported, not compared: the machine is shared."""
    key = await worker.upload({"main.py": HELLO})
    await honest_ms(worker, key)
    durations = {}
    for is_followed in (False, True):
        request_id, send = await job(worker, FLOOD, memoryMb=256)
        async with logs_of(worker, request_id if is_followed else "nobody", "--follow", "--json") as follower:
            assert json.loads(await follower.line())["event"] == "waiting"
            await send()
            await until_running(worker)
            durations[is_followed] = await honest_ms(worker, key)
            result = await result_of(worker, request_id)
            if is_followed:
                code, out, _ = await follower.end()
        assert result["status"] == "SUCCESS"
    assert code == 0
    events = [json.loads(line) for line in out.splitlines()]
    outputs = [event for event in events if event["event"] == "output"]
    missing = [event for event in events if event["event"] == "missing"]
    shown = sum(len(event["text"]) for event in outputs)
    dropped = sum(event["bytes"] for event in missing)
    total = (
        result["stdoutTruncatedBytes"]
        + len(result["stdout"].encode())
        - len(f"\n… {result['stdoutTruncatedBytes']} bytes cut …\n".encode())
    )
    assert shown + dropped == total
    assert shown < 4 << 20
    assert outputs[-1]["text"].endswith("the end\n")
    ratio = durations[True] / durations[False]
    print(
        f"\nflood of {total / 2**20:.0f} MiB, shown {shown / 2**20:.1f} MiB in {len(outputs)} pieces; jobs "
        f"beside it {durations[False]:.1f} ms unfollowed, {durations[True]:.1f} ms followed"
    )
    record_property("ratio", ["jobs beside a flood that is followed, of one that is not", ratio])


@pytest.mark.parametrize("fault", ["cut", "hang"])
async def test_a_job_ends_in_time_while_redis_is_dead(stack: EmbeddedStack, tmp_path: Path, fault: str):
    async with Proxy(stack.redis_host, stack.redis_port) as redis:
        settings = SETTINGS | {"REDIS_PORT": str(redis.port), "LIVE_LOGS": "always"}
        async with WorkerUnderTest(stack, tmp_path, settings) as worker:
            request_id, send = await job(worker, COUNTS)
            await send()
            async with logs_of(worker, request_id, "--follow") as follower:
                await follower.line()
                if fault == "cut":
                    await redis.cut()
                else:
                    redis.hang()
                await asyncio.sleep(15)  # the program ends meanwhile
                await redis.restore()
                code, out, err = await follower.end()
            result = await result_of(worker, request_id)
    assert (code, result["status"], result["stdout"]) == (0, "SUCCESS", OUT)
    assert result["durationMs"] < 16_000
    assert OUT.endswith(out[-20:]), err
