"""Counts what one hot job costs, without a clock: the figures of budgets.toml.

    python -m benchmarks.counts agent python        with a stub in place of the container
    python -m benchmarks.counts container nodejs    with a real container

The job is a program that prints hello. Its container is bound, its code is fresh, and it has no output files
and no network use. The last line of standard output is a JSON object: `counts` has a number for each counter,
and `skipped` has the reason for each counter that cannot be counted on this machine. The tests of
tests/integration (test_cost_of_the_agent.py, test_cost_of_the_container.py) compare them with the budgets.

A count is the median of several jobs, or their sum, divided by their number and rounded down. So a renewal
among these jobs changes nothing, but one more command for each job does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

from aiobotocore.httpsession import AIOHTTPSession
from benchmarks import container_counts, tracing
from benchmarks.agent_cost import Load, agent_under_test
from benchmarks.timed_broker import JobFailed
from benchmarks.tracing import CannotCount
from redis import asyncio as redis
from redis.asyncio.connection import AbstractConnection

from nanoagent.code.fresh_trees import FreshTrees
from nanoagent.model.job import Runtime
from nanoagent.telemetry import logs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.agent_cost import AgentUnderTest

JOBS: Final = 25
_WARM_UP_JOBS: Final = 8  # enough to bind the containers and to fill the caches
_CODE_FRESH_S: Final = 3600  # on a slow machine, the code would be asked for in the middle
_PYTHON: Final = (3, 11)  # other versions make other calls for the same code
_ONE_AT_A_TIME: Final = Load("single", 1)
_SHOWN_LINES: Final = 20

Counts = dict[str, float]


class LoopCounter:
    """Counts what an event loop does, and what is sent to Redis and AWS.

    Attributes:
        counts: The counts since the start.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Count until the block ends. The loop and the clients are patched."""
        loop: Any = asyncio.get_running_loop()

        def task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
            self.counts["tasks"] += 1
            return asyncio.Task(coroutine, loop=loop, **options)

        before = loop.get_task_factory()
        loop.set_task_factory(task)
        with ExitStack() as patched:
            for target, name, counter in (
                (loop, "run_in_executor", "thread_hops"),
                (loop._selector, "select", "loop_turns"),  # noqa: SLF001 - asyncio has no public counter
            ):
                patched.enter_context(mock.patch.object(target, name, self._counted(target, name, counter)))
            for owner, name, counter in (
                (asyncio.Handle, "_run", "loop_handles"),
                (AbstractConnection, "send_packed_command", "redis_round_trips"),
                (AIOHTTPSession, "send", "aws_calls"),
            ):
                patched.enter_context(mock.patch.object(owner, name, self._counted(owner, name, counter)))
            try:
                yield
            finally:
                loop.set_task_factory(before)

    def _counted(self, owner: Any, name: str, counter: str) -> Any:
        original = getattr(owner, name)

        def count(*arguments: Any, **options: Any) -> Any:
            self.counts[counter] += 1
            return original(*arguments, **options)

        return count


async def of_agent(agent: AgentUnderTest, log: Path) -> tuple[Counts, dict[str, str]]:
    """Count what the agent's process does for a hot job."""
    counts: Counts = {}
    skipped: dict[str, str] = {}
    counts |= await _of_loop(agent)
    counts |= await _of_services(agent, log)
    if sys.version_info[:2] == _PYTHON:
        counts["function_calls"] = await _function_calls(agent)
    else:
        for counter in ("function_calls", "revalidation_function_calls"):
            skipped[counter] = f"the budgets are those of Python {_PYTHON[0]}.{_PYTHON[1]}"
    try:
        counts["file_calls"] = await _file_calls(agent)
    except CannotCount as lack:
        skipped["file_calls"] = str(lack)
    try:
        counts["agent_syscalls"] = await _syscalls(agent)
    except CannotCount as lack:
        skipped["agent_syscalls"] = str(lack)
    # Last, because it leaves cancelled timers in the loop, which make new timers dearer.
    counts |= await _of_revalidation(agent, counts.get("function_calls"))
    return counts, skipped


async def _of_loop(agent: AgentUnderTest) -> Counts:
    """Return the medians of several jobs: two events may share a turn of the loop, or not."""
    counter = LoopCounter()
    taken: list[Counter[str]] = []
    with counter.installed():
        for _ in range(JOBS):
            before = counter.counts.copy()
            await agent.run(_ONE_AT_A_TIME, 1)
            taken.append(Counter(counter.counts))
            taken[-1].subtract(before)
    names = ("tasks", "thread_hops", "loop_turns", "loop_handles", "redis_round_trips", "aws_calls")
    return {name: statistics.median_low([each[name] for each in taken]) for name in names}


async def _of_revalidation(agent: AgentUnderTest, hot_function_calls: float | None) -> Counts:
    """Count what a job does to ask S3 whether its code has changed.

    Args:
        agent: The agent.
        hot_function_calls: The function calls of a job that does not ask; None if they cannot be counted.
    """
    counter = LoopCounter()
    # Without fresh trees, each job asks.
    with mock.patch.object(FreshTrees, "recall", return_value=None):
        with counter.installed():
            await agent.run(_ONE_AT_A_TIME, JOBS)
        counts: Counts = {"revalidation_aws_calls": counter.counts["aws_calls"] // JOBS}
        if hot_function_calls is not None:
            counts["revalidation_function_calls"] = await _function_calls(agent) - hot_function_calls
    return counts


async def _of_services(agent: AgentUnderTest, log: Path) -> Counts:
    """Count the commands that Redis has executed, those of scripts included, and the lines of the log."""
    async with redis.Redis(host="127.0.0.1", port=agent.redis_port) as client:
        lines = _lines(log)
        before = await _commands(client)
        await agent.run(_ONE_AT_A_TIME, JOBS)
        commands = await _commands(client) - before
        lines = _lines(log) - lines
    return {"redis_commands": commands // JOBS, "log_lines": lines // JOBS}


def _lines(log: Path) -> int:
    return len(log.read_text().splitlines())


async def _commands(client: redis.Redis) -> int:
    statistics_of_commands = await client.info("commandstats")
    return sum(
        int(one["calls"])
        for name, one in statistics_of_commands.items()
        if name not in {"cmdstat_info", "cmdstat_hello", "cmdstat_client|setinfo"}
    )


async def _function_calls(agent: AgentUnderTest) -> float:
    """Return the calls of Python and C functions in the thread of the loop; the median of several jobs."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        del frame, argument
        calls += event in {"call", "c_call"}

    taken = []
    for _ in range(JOBS):
        calls = 0
        sys.setprofile(count)
        try:
            await agent.run(_ONE_AT_A_TIME, 1)
        finally:
            sys.setprofile(None)
        taken.append(calls)
    return statistics.median_low(taken)


async def _file_calls(agent: AgentUnderTest) -> float:
    """Return the calls of read and write on files, pipes and event descriptors, without those on sockets."""
    before = container_counts.io_of(os.getpid())
    await agent.run(_ONE_AT_A_TIME, JOBS)
    after = container_counts.io_of(os.getpid())
    return (after["syscr"] + after["syscw"] - before["syscr"] - before["syscw"]) // JOBS


async def _syscalls(agent: AgentUnderTest) -> float:
    """Return the system calls of the thread of the loop."""
    async with tracing.traced([os.getpid()], follow=False) as calls:
        await agent.run(_ONE_AT_A_TIME, JOBS)
    return len(calls) // JOBS


async def measure(side: str, runtime: Runtime, folder: Path) -> tuple[Counts, dict[str, str]]:
    """Start the agent, and count.

    Args:
        side: `agent` or `container`.
        runtime: The runtime of the function.
        folder: An empty folder.
    """
    is_stub = side == "agent"
    async with agent_under_test(
        runtime, folder, stub=is_stub, warm_up_jobs=_WARM_UP_JOBS, code_fresh_seconds=_CODE_FRESH_S
    ) as agent:
        if is_stub:
            return await of_agent(agent, folder / "agent.log")
        return await container_counts.of_container(agent, runtime)


def main(arguments: Sequence[str] | None = None) -> None:
    """Count, and print the counts. The last line is a JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("side", choices=("agent", "container"))
    parser.add_argument("runtime", choices=list(Runtime), type=Runtime)
    options = parser.parse_args(arguments)
    folder = Path(
        tempfile.mkdtemp(prefix="na-count-")
    )  # a short path, because Unix sockets are made below it
    log = folder / "agent.log"
    try:
        with log.open("w", buffering=1) as stream:
            logs.configure("json", "INFO", stream=stream)
            counts, skipped = asyncio.run(measure(options.side, options.runtime, folder))
    except (JobFailed, TimeoutError):
        print("".join(log.read_text().splitlines(keepends=True)[-_SHOWN_LINES:]), file=sys.stderr)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps({"counts": counts, "skipped": skipped}))


if __name__ == "__main__":
    main()
