"""One function per measurement: its arms, the order of their samples, and the resulting figures."""

from __future__ import annotations

import asyncio
import secrets
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from benchmarks import lab as labs
from benchmarks.bare import WRITABLE
from benchmarks.figures import Arm as ArmFigure
from benchmarks.figures import Findings
from benchmarks.schedule import Budget, Series, interleave
from benchmarks.stats import percentile, ratio_of_medians, summarise

from nanoagent.model.job import Runtime

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from benchmarks.bare import BareContainer, DockerRun, Program
    from benchmarks.lab import Function, Lab
    from benchmarks.ours import AgentUnderTest, Call

_PAUSE_S: Final = 0.03
_NODE_PAUSE_S: Final = 0.15
_WARM_UP_S: Final = 0.5
_OURS: Final = "ours"
_BLOCK_S: Final = 0.5  # of full load: some hundred jobs, or a few of `docker run`
_BLOCKS: Final = 3  # in each round, except for arms of Docker


class CannotMeasureHere(Exception):  # noqa: N818 - a fact about the machine, not a failure
    """This machine lacks a requirement of a measurement. The message names it."""


# --- arms


@dataclass(slots=True)
class Ours:
    """Jobs that the agent runs."""

    agent: AgentUnderTest
    call: Call
    name: str = _OURS
    leaves_work: bool = False

    async def sample(self) -> float:
        """Run one job; return its time, ms."""
        return await self.agent.run(self.call)

    async def check(self) -> None:
        """Check the stored results."""
        await self.agent.results()


@dataclass(slots=True)
class Started:
    """A program that is started in another way. That way also checks its output."""

    name: str
    start: Callable[[], Awaitable[float]]
    leaves_work: bool = False

    async def sample(self) -> float:
        """Run the program; return its time, ms."""
        return await self.start()

    async def check(self) -> None:
        """Do nothing: each run was checked."""


def bare_arm(container: BareContainer, program: Program) -> Started:
    """Return the arm whose program is started by the helper inside a container."""

    async def start() -> float:
        return (await container.run(program)).wall_ms

    return Started("bare", start)


def exec_arm(container: BareContainer, program: Program) -> Started:
    """Return the arm whose program is started by `docker exec` in the same container."""
    return Started("exec", partial(container.exec, program), leaves_work=True)


def run_arm(docker: DockerRun, program: Program) -> Started:
    """Return the arm whose program is started by `docker run`."""
    return Started("run", partial(docker.run, program), leaves_work=True)


# --- hello


@dataclass(frozen=True, slots=True)
class Hello:
    """Runs of a small program, compared with other ways to start the same program.

    Attributes:
        function: The program.
        pause_s: The pause before each sample, seconds.
        back_to_back: Whether samples follow each other without a pause.
        samples: The samples of ours and of bare in each round.
        rare: `docker run` is sampled in every `rare`-th round, a build in half as many rounds.
        is_warm: Whether the bare program has just run, so that its pages are loaded.
    """

    function: Function
    pause_s: float = _PAUSE_S
    back_to_back: bool = False
    samples: tuple[int, int] = (6, 4)
    rare: int = 3
    is_warm: bool = False

    async def __call__(self, lab: Lab, key: str, until: float, findings: Findings) -> None:
        """Measure, and add the figures to the findings; see `Measurement`."""
        agent, container = await lab.agent(), await lab.baselines.bare(self.function.runtime)
        program = await lab.program(self.function)
        mine, theirs = Ours(agent, lab.install(self.function)), bare_arm(container, program)
        await warm_up(mine, *([] if self.is_warm else [theirs]))
        series = [Series(mine, self.samples[0]), Series(theirs, self.samples[1])]
        series.append(Series(exec_arm(container, program), 1))
        if lab.has_docker_command:
            series.append(
                Series(run_arm(lab.baselines.docker_run(self.function.runtime), program), 1, self.rare)
            )
        else:
            findings.skipped[f"{key}.vs_run"] = "no docker command on PATH"
        if program.arguments[0].startswith(WRITABLE):
            series.append(Series(build_and_run_arm(lab, self.function, container, program), 1, 2 * self.rare))
        samples = await interleave(
            series, Budget(until), pause_s=self.pause_s, back_to_back=self.back_to_back
        )
        add_arms(findings, key, samples, "ms")
        for arm, part in (
            ("bare", "vs_bare"),
            ("exec", "vs_exec"),
            ("run", "vs_run"),
            ("build and run", "vs_build_and_run"),
        ):
            if samples.get(arm):
                findings.put(f"{key}.{part}", ratio_of_medians(samples[_OURS], samples[arm]))
        tail = percentile(samples[_OURS], 99) / statistics.median(samples["bare"])
        findings.values[f"{key}.p99_vs_bare_p50"] = tail


async def warm_up(*arms: Ours | Started, rounds: int = 6) -> None:
    """Run each arm a few times, to fill caches, bind containers and load pages.

    A slow program runs once. Our second run is the first one that is hot, so there are at least two of ours.
    """
    enough_at = time.monotonic() + _WARM_UP_S
    for done in range(rounds):
        for arm in arms:
            if done < (2 if isinstance(arm, Ours) else 1) or time.monotonic() < enough_at:
                await arm.sample()
    for arm in arms:
        await arm.check()


def build_and_run_arm(lab: Lab, function: Function, container: BareContainer, program: Program) -> Started:
    """Return the arm of a worker without a program cache: a build with warm caches, then the bare program."""

    async def start() -> float:
        # A new name for each build: the go command does not rebuild an existing program.
        build = await lab.build_of(function, into=f"/tmp/built-{secrets.token_hex(4)}")  # noqa: S108 - in the container
        built = await (await lab.baselines.builder(function.runtime)).run(build)
        return built.wall_ms + (await container.run(program)).wall_ms

    return Started("build and run", start)


async def pandas(lab: Lab, key: str, until: float, findings: Findings) -> None:
    """Measure `python_pandas`, if the image has pandas."""
    container = await lab.baselines.bare(Runtime.PYTHON)
    with_pandas = "idle_container_mb.python_with_pandas"
    findings.skipped[with_pandas] = "python_pandas was not measured"
    status, output, _ = await container.try_run(replace(await lab.program(labs.PANDAS), expected=None))
    if status != 0:
        reason = output.strip().splitlines()[-1:] or ["its import failed"]
        raise CannotMeasureHere(f"the Python image has no pandas ({reason[0]})")
    await Hello(labs.PANDAS, samples=(6, 1), rare=6, is_warm=True)(lab, key, until, findings)
    used = (await lab.used_mb(await lab.agent()))[Runtime.PYTHON]
    if used:  # the Python container with pandas is the one that uses the most memory
        findings.values[with_pandas] = max(used)
        del findings.skipped[with_pandas]


# --- the isolation level


async def sandbox_vs_shared(lab: Lab, key: str, until: float, findings: Findings) -> None:
    """Compare the isolation levels L2 and L1 with two agents, in C++: only L2 has warm interpreters."""
    sizes = {Runtime.CPP: 1, Runtime.PYTHON: 1}
    async with (
        lab.another_agent("sandbox", sizes) as sandboxed,
        lab.another_agent("shared", sizes, shared=True) as shared,
    ):
        call = lab.install(labs.CPP)
        arms = [Ours(sandboxed, call, "sandbox"), Ours(shared, call, "shared")]
        python = lab.install(labs.PYTHON)
        others = [Ours(sandboxed, python, "python, sandbox"), Ours(shared, python, "python, shared")]
        await warm_up(*arms, *others)
        levels = sandboxed.levels, shared.levels
        if levels != ({"sandbox"}, {"shared"}):
            raise CannotMeasureHere(f"the two agents ran at {' and '.join(map(str, map(sorted, levels)))}")
        series = [Series(arm, 6) for arm in arms] + [Series(arm, 1) for arm in others]
        samples = await interleave(series, Budget(until), pause_s=_PAUSE_S)
    add_arms(findings, key, samples, "ms")
    findings.put(key, ratio_of_medians(samples["sandbox"], samples["shared"]))


# --- builds


async def cpp_miss(lab: Lab, key: str, until: float, findings: Findings) -> None:
    """Compare our build with a plain call of the compiler, each in a fresh copy in the same container."""
    stock = ("/usr/bin/g++", "-std=c++20", "-O2", "-pthread", "-I.", "-o", "/tmp/stock", "main.cpp")  # noqa: S108
    await _miss(lab, key, labs.CPP, stock, Budget(until), findings)


async def go_miss(lab: Lab, key: str, until: float, findings: Findings) -> None:
    """Compare our build with `go build` with an empty cache, each in a fresh copy in the same container."""
    script = (
        'cache=$(mktemp -d) && trap \'chmod -R u+w "$cache" && rm -rf "$cache"\' EXIT && '
        "export GOCACHE=$cache GOPATH=$cache/path GOTMPDIR=$cache GOTOOLCHAIN=local GOFLAGS=-mod=mod && "
        "go mod init function >/dev/null 2>&1 && go build -o /tmp/stock ."
    )
    await _miss(lab, key, labs.GO, ("/bin/sh", "-c", script), Budget(until), findings, often=6)


async def _miss(  # noqa: PLR0913, PLR0917 - the arguments of a measurement, and the differences of two
    lab: Lab,
    key: str,
    function: Function,
    stock: tuple[str, ...],
    budget: Budget,
    findings: Findings,
    often: int = 1,
) -> None:
    container = await lab.baselines.builder(function.runtime)

    async def our_build() -> float:
        into = f"/tmp/ours-{secrets.token_hex(4)}"  # noqa: S108 - in the container
        return (await container.run(await lab.build_of(function, into=into))).wall_ms

    async def stock_build() -> float:
        return (await container.run(await lab.in_fresh_copy(function, stock))).wall_ms

    mine, theirs = Started("our build", our_build), Started("stock build", stock_build)
    await warm_up(mine, rounds=1)
    samples = await interleave([Series(mine, often), Series(theirs, 1)], budget, pause_s=_PAUSE_S)
    add_arms(findings, key, samples, "ms")
    findings.put(key, ratio_of_medians(samples["our build"], samples["stock build"]))


# --- throughput


async def throughput(lab: Lab, key: str, until: float, findings: Findings) -> None:
    """Compare jobs per second with all cores busy: the same program and concurrency in every arm."""
    del key
    agent, call, program = await lab.agent(), lab.install(labs.PYTHON), await lab.program(labs.PYTHON)
    at_once = max(1, int(lab.settings.worker_cpus / lab.settings.cpus_for(labs.MEMORY_MB)))
    containers = [await lab.baselines.bare(Runtime.PYTHON, number) for number in range(at_once)]
    docker = lab.baselines.docker_run(Runtime.PYTHON)

    async def through_agent(count: int) -> float:
        elapsed_s = await agent.run_many(call, count)
        await agent.results()
        return count / elapsed_s

    works: dict[str, Callable[[int], Awaitable[float]]] = {
        _OURS: through_agent,
        "bare": _parallel([partial(each.run, program) for each in containers]),
        "exec": _parallel([partial(each.exec, program) for each in containers]),
    }
    if lab.has_docker_command:
        works["run"] = _parallel([partial(docker.run, program)] * at_once)
    else:
        findings.skipped["throughput_vs_run"] = "no docker command on PATH"
    series, budget = [], Budget(until)
    for name, work in works.items():
        leaves_work = name in {"exec", "run"}
        if not leaves_work:
            await work(4 * at_once)  # binds containers, and loads pages
        # The trial for the size of a block takes as long as a block. It is left out if no time is left.
        rate = 0.0 if budget.is_over else await work(at_once if leaves_work else 4 * at_once)
        count = at_once * max(1, round(rate * _BLOCK_S / at_once))
        series.append(Series(Started(name, partial(work, count), leaves_work), 1 if leaves_work else _BLOCKS))
    rates = await interleave(series, budget, pause_s=_PAUSE_S)
    add_arms(findings, "throughput", rates, "jobs/s")
    for name in rates.keys() - {_OURS}:
        findings.put(f"throughput_vs_{name}", ratio_of_medians(rates[_OURS], rates[name]))
    findings.notes.append(f"throughput: {at_once} at a time, in every arm")


def _parallel(starts: Sequence[Callable[[], Awaitable[object]]]) -> Callable[[int], Awaitable[float]]:
    """Return a function: runs per second if all `starts` are called concurrently, until `count` runs."""

    async def work(count: int) -> float:
        left = iter(range(count))

        async def one_after_another(start: Callable[[], Awaitable[object]]) -> None:
            for _ in left:
                await start()

        begun = time.perf_counter()
        await asyncio.gather(*(one_after_another(start) for start in starts))
        return count / (time.perf_counter() - begun)

    return work


# --- first runs, CPU and memory


async def first_run(lab: Lab, key: str, until: float, findings: Findings) -> None:
    """Compare the first run of a function in a warm container with a run in its own container."""
    async with lab.another_agent("first", {Runtime.PYTHON: 2}) as agent:
        hot = Ours(agent, lab.install(labs.PYTHON), "hot")
        await warm_up(hot)
        samples: dict[str, list[float]] = defaultdict(list)
        budget, refill_s = Budget(until, least=2, most=60), 0.4
        others = 0
        while budget.begin_round():
            await asyncio.sleep(refill_s)  # until the pool is full and the machine idle again
            new = lab.install(_never_seen())
            elapsed_ms = await agent.run(new)
            (result,) = await agent.results()
            if result["start"] == "warm":
                samples["first"].append(elapsed_ms)
            else:
                others += 1
            for _ in range(3):
                await asyncio.sleep(_PAUSE_S)
                samples["hot"].append(await hot.sample())
            await hot.check()
    if not samples["first"]:
        raise CannotMeasureHere(f"{others} new functions ran, but not in a warm container")
    add_arms(findings, key, samples, "ms")
    findings.put(key, ratio_of_medians(samples["first"], samples["hot"]))


def _never_seen() -> Function:
    """Return the program with a new name and a new digest, so that no cache has it."""
    name = f"first-{secrets.token_hex(6)}"
    return replace(labs.PYTHON, name=name, files={"main.py": f'print("hello")  # {name}\n'})


async def agent_cpu(lab: Lab, key: str, until: float, findings: Findings) -> None:
    """Compare the agent's CPU time per job with the CPU time of the bare program.

    The agent is this process. The code that sends the jobs is in it, too, and takes about 30 µs per job.
    """
    agent, call = await lab.agent(), lab.install(labs.PYTHON)
    container, program = await lab.baselines.bare(Runtime.PYTHON), await lab.program(labs.PYTHON)
    jobs = 25

    async def of_agent() -> float:
        before = time.process_time()
        for _ in range(jobs):
            await agent.run(call)
        return (time.process_time() - before) * 1000 / jobs

    async def of_program() -> float:
        return statistics.mean([(await container.run(program)).cpu_ms for _ in range(jobs // 5)])

    mine = Started("agent", of_agent)
    await warm_up(Ours(agent, call), bare_arm(container, program))
    samples = await interleave(
        [Series(mine, 3), Series(Started("bare", of_program), 3)], Budget(until), pause_s=_PAUSE_S
    )
    await agent.results()
    add_arms(findings, key, samples, "ms CPU")
    findings.put(key, ratio_of_medians(samples["agent"], samples["bare"]))


async def idle_memory(lab: Lab, key: str, until: float, findings: Findings) -> None:
    """Measure the memory of an idle generic container of each runtime."""
    del until
    async with lab.another_agent("idle", dict.fromkeys(Runtime, 1)) as agent:
        await asyncio.sleep(0.5)  # the first sandbox may still be being created
        used = await lab.used_mb(agent)
    for runtime, sizes in used.items():
        if sizes:
            findings.values[f"{key}.{runtime}"] = statistics.median(sizes)
        else:
            findings.skipped[f"{key}.{runtime}"] = (
                "it has no container, or its control group is not accessible"
            )


def add_arms(findings: Findings, key: str, samples: Mapping[str, Sequence[float]], unit: str) -> None:
    """Add a summary of each arm's samples."""
    findings.arms += [ArmFigure(key, name, unit, summarise(taken)) for name, taken in sorted(samples.items())]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measurement.

    Attributes:
        keys: The keys that it produces.
        weight: Its share of the time: about the seconds that it needs for accurate figures.
        measure: Measures. Its arguments are the lab, the first key, the end of its time (monotonic seconds),
            and the findings to add to. It raises `CannotMeasureHere` to skip the keys.
    """

    keys: tuple[str, ...]
    weight: float
    measure: Callable[[Lab, str, float, Findings], Awaitable[None]]


# The order is from short to long samples: a long sample at the end cannot use up the time of the others.
MEASUREMENTS: Final = (
    Measurement(("python_hello",), 5, Hello(labs.PYTHON)),
    Measurement(("python_hello_b2b",), 3, Hello(labs.PYTHON, back_to_back=True, samples=(12, 6))),
    Measurement(("agent_cpu_vs_bare_cpu",), 2, agent_cpu),
    Measurement(("node_hello",), 6, Hello(labs.NODE, pause_s=_NODE_PAUSE_S, samples=(5, 2))),
    Measurement(("node_hello_b2b",), 4, Hello(labs.NODE, back_to_back=True, samples=(5, 3))),
    Measurement(("cpp_hello",), 3.5, Hello(labs.CPP)),
    Measurement(("go_hello",), 3, Hello(labs.GO)),
    Measurement(("cpp_miss_vs_stock",), 3, cpp_miss),
    Measurement(("throughput_vs_bare", "throughput_vs_exec", "throughput_vs_run"), 6, throughput),
    Measurement(("sandbox_vs_shared",), 4, sandbox_vs_shared),
    Measurement(("first_run_vs_hot",), 3, first_run),
    Measurement(("idle_container_mb",), 1.5, idle_memory),
    Measurement(("go_miss_vs_cold",), 6, go_miss),
    Measurement(("python_pandas",), 5, pandas),
)
