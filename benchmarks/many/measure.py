"""Measures an agent with many functions: passes over all of them, a mixed load, and a small budget."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from benchmarks import lab as labs
from benchmarks.many.arrivals import Mix, arrivals
from benchmarks.many.summary import Load

from nanoagent.model.job import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from benchmarks.lab import Function, Lab
    from benchmarks.ours import AgentUnderTest, Call

    Reporter = Callable[[str, Load], None]

AT_ONCE: Final = 4  # unsettled jobs
HOT_SHARE: Final = 0.02  # functions count as hot if at most this share of their runs is a cold start
_SMALL_BUDGET_MB: Final = 2 * 1024
_STEP: Final = 10
_SEED: Final = 15
_WARM_AFTER_S: Final = 60.0  # the first minute of the mixed load creates most containers
_COMMENT: Final = {Runtime.PYTHON: "#", Runtime.NODEJS: "//"}
_HELLO: Final = {
    Runtime.PYTHON: labs.PYTHON,
    Runtime.NODEJS: labs.NODE,
    Runtime.CPP: labs.CPP,
    Runtime.GO: labs.GO,
}


def function(runtime: Runtime, number: int) -> Function:
    """Return a function. Functions in Python and Node.js have different code.

    Functions in C++ and Go have the same code under different IDs, because a build for each would take most
    of the time.
    """
    hello = replace(_HELLO[runtime], name=f"many-{runtime}-{number}")
    if (comment := _COMMENT.get(runtime)) is None:
        return hello
    files = {name: f"{text}{comment} {number}\n" for name, text in hello.files.items()}
    return replace(hello, files=files)


def calls(lab: Lab, runtime: Runtime, count: int) -> list[Call]:
    """Install functions, and return a job of each."""
    return [lab.install(function(runtime, number)) for number in range(count)]


async def one_pass(agent: AgentUnderTest, jobs: Iterable[Call]) -> Load:
    """Run jobs in their order, and return what was measured."""
    begun, cpu_begun = time.perf_counter(), time.process_time()
    times_ms = await agent.run_in_order(jobs, AT_ONCE)
    elapsed_s, cpu_s = time.perf_counter() - begun, time.process_time() - cpu_begun
    starts = [str(document["start"]) for document in await agent.results()]
    return Load(times_ms, starts, elapsed_s, cpu_s)


async def passes(agent: AgentUnderTest, jobs: Sequence[Call], least_jobs: int) -> tuple[Load, Load]:
    """Call each function once, then in the same order again and again.

    Returns:
        The first pass, and the passes after it together: at least one, and at least `least_jobs` jobs.
    """
    first = await one_pass(agent, jobs)
    again = -(-least_jobs // len(jobs))
    return first, await one_pass(agent, itertools.chain.from_iterable([jobs] * again))


async def many_functions(
    lab: Lab, runtime: Runtime, counts: Sequence[int], least_jobs: int, report: Reporter
) -> tuple[dict[int, tuple[Load, Load]], list[float]]:
    """Measure passes over more and more functions with one agent, which keeps its containers.

    Args:
        lab: The lab.
        runtime: The language of the functions.
        counts: The numbers of functions, ascending.
        least_jobs: The least number of jobs in the warm passes.
        report: Called after each number.

    Returns:
        The first pass and the warm passes of each number of functions. The memory of the containers at the
        end, MiB.
    """
    found: dict[int, tuple[Load, Load]] = {}
    jobs = calls(lab, runtime, counts[-1])
    async with lab.another_agent(f"many-{runtime}") as agent:
        for count in counts:
            found[count] = await passes(agent, jobs[:count], least_jobs)
            report(f"{runtime}, {count} functions", found[count][1])
        return found, (await lab.used_mb(agent))[runtime]


async def hot_in_small_budget(lab: Lab, runtime: Runtime, most: int, report: Reporter) -> int:
    """Return the largest number of functions that stay hot in a budget of 2 GiB, in steps of ten.

    Args:
        lab: The lab.
        runtime: The language of the functions.
        most: The largest number that is tried.
        report: Called after each number.
    """
    jobs = calls(lab, runtime, most)
    hot = 0
    async with lab.another_agent(f"budget-{runtime}", worker_memory_mb=_SMALL_BUDGET_MB) as agent:
        for count in range(_STEP, most + 1, _STEP):
            _, warm = await passes(agent, jobs[:count], count)
            report(f"{runtime}, {count} functions in {_SMALL_BUDGET_MB} MiB", warm)
            if warm.cold_share > HOT_SHARE:
                break
            hot = count
    return hot


async def mixed(lab: Lab, runtime: Runtime, mix: Mix, report: Reporter) -> Load:
    """Run a mixed load with open arrivals; return its jobs after the first minute.

    The time of a job begins when it is sent, so it includes the time in the queue.
    """
    jobs = calls(lab, runtime, mix.functions)
    plan = arrivals(mix, _SEED)
    async with lab.another_agent(f"mix-{runtime}") as agent:
        begun, cpu_begun = time.perf_counter(), time.process_time()
        ended = [
            asyncio.create_task(_timed(agent, jobs[arrival.function], begun + arrival.at_s))
            for arrival in plan
        ]
        ended_at = await asyncio.gather(*ended)
        cpu_s = (time.process_time() - cpu_begun) / len(plan)
        documents = await agent.results()
    warm_s = min(_WARM_AFTER_S, mix.seconds / 2)
    late = [number for number, arrival in enumerate(plan) if arrival.at_s >= warm_s]
    times_ms = [(ended_at[number] - begun - plan[number].at_s) * 1000 for number in late]
    load = Load(
        times_ms,
        [str(documents[number]["start"]) for number in late],
        mix.seconds - warm_s,
        cpu_s * len(late),
    )
    report(f"{runtime}, mixed load", load)
    return load


async def _timed(agent: AgentUnderTest, call: Call, at: float) -> float:
    """Send a job at a time of `time.perf_counter`; return the time at which it was settled."""
    await asyncio.sleep(at - time.perf_counter())
    await (await agent.send(call))
    return time.perf_counter()
