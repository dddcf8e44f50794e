"""Measures one function: its arms, and the runs until it is as fast as it will be."""

from __future__ import annotations

import asyncio
import shutil
import statistics
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from benchmarks.bare import WRITABLE
from benchmarks.lab import Function
from benchmarks.measurements import Ours, bare_arm, run_arm
from benchmarks.real.summary import Row
from benchmarks.real.vendor import packages_of
from benchmarks.schedule import Budget, Series, interleave
from benchmarks.stats import ratio_of_medians

from nanoagent.jobs.byte_code import Compilation
from nanoagent.model.job import Runtime

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.bare import Program
    from benchmarks.lab import Lab
    from benchmarks.measurements import Started
    from benchmarks.ours import AgentUnderTest, Call
    from benchmarks.real.catalogue import RealFunction

# Node.js prepares a standby process after a run, which takes longer than a new sandbox.
_PAUSE_S: Final = {Runtime.NODEJS: 0.15}
_DEFAULT_PAUSE_S: Final = 0.03
_SAMPLES: Final = 3
_RARE: Final = 3  # `docker run` is sampled in every third round
_COMPILATIONS: Final = 3
_POSTPONED: Final = {Compilation.NO_ROOM, Compilation.CANCELLED}  # a later run starts another one
_BLOCK: Final = 3
_MOST_WARM_UPS: Final = 30
_FASTER: Final = 0.9
_OURS: Final = "ours"
_REUSING: Final = "ours, imports reused"
_COMPILED: Final = "bare, compiled"


class NeverHot(Exception):  # noqa: N818 - a fact about the function
    """No run of the function was a hot start."""


def is_steady(times_ms: Sequence[float]) -> bool:
    """Return whether the times of successive runs have stopped falling.

    The median of the last three runs is compared with that of the three before.
    """
    if len(times_ms) < 2 * _BLOCK:
        return False
    before, last = times_ms[-2 * _BLOCK : -_BLOCK], times_ms[-_BLOCK:]
    return statistics.median(last) > _FASTER * statistics.median(before)


async def reach_steady_state(agent: AgentUnderTest, call: Call, pause_s: float) -> bool:
    """Run a function until it is hot, its byte code is compiled, and its runs get no faster.

    Returns:
        Whether the worker has compiled its code. True if there was nothing to compile.

    Raises:
        JobFailed: A run failed, or printed another text.
        NeverHot: The last run was not a hot start.
    """
    ended = None
    for _ in range(_COMPILATIONS):
        await agent.run(call)
        ended = await agent.compiled()
        if ended not in _POSTPONED:
            break
    times_ms: list[float] = []
    while not is_steady(times_ms) and len(times_ms) < _MOST_WARM_UPS:
        await asyncio.sleep(pause_s)
        times_ms.append(await agent.run(call))
    last = (await agent.results())[-1]
    if last["start"] != "hot":
        raise NeverHot(f"the last of {len(times_ms)} runs was a {last['start']} start")
    return ended in {None, Compilation.COMPILED, Compilation.NOTHING}


def lab_function(function: RealFunction) -> Function:
    """Return the function with its packages, as the lab installs it.

    Raises:
        InstallError: A package could not be fetched.
    """
    folders = packages_of(function), function.shared_code, function.code
    return Function(
        function.name,
        function.runtime,
        {},
        function.expected,
        folders=tuple(folder for folder in folders if folder is not None),
        payload=function.payload,
        memory_mb=function.memory_mb,
        calls_model=function.calls_model,
    )


def compiled_program(lab: Lab, function: Function, program: Program) -> Program:
    """Return the program in a writable folder, into which its first run writes the byte code."""
    folder = lab.writable / f"{function.name}-compiled"
    shutil.copytree(lab.shared / "code" / function.name, folder, symlinks=True)
    for each in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        each.chmod(0o777)
    return replace(program, folder=f"{WRITABLE}/{folder.name}")


async def measure(lab: Lab, function: RealFunction, seconds: float) -> Row:
    """Measure one function.

    Args:
        lab: The shared resources.
        function: The function.
        seconds: The time for its samples, without the warm-up. Each arm has at least one sample.

    Raises:
        InstallError: A package could not be fetched.
        JobFailed, BaselineError: A run failed, or printed another text.
        NeverHot: No run was a hot start.
    """
    pause_s = _PAUSE_S.get(function.runtime, _DEFAULT_PAUSE_S)
    installed = await asyncio.to_thread(lab_function, function)
    agent, call = await lab.agent(), lab.install(installed)
    program = await lab.program(installed)
    container = await lab.baselines.bare_for(installed)
    arms: list[Started] = [bare_arm(container, program)]
    if function.runtime is Runtime.PYTHON:
        compiled = await asyncio.to_thread(compiled_program, lab, installed, program)
        arms.append(replace(bare_arm(container, compiled), name=_COMPILED))
    for arm in arms:
        for _ in range(2):
            await arm.sample()
    is_compiled = await reach_steady_state(agent, call, pause_s)
    series = [Series(Ours(agent, call, _OURS), _SAMPLES), *(Series(arm, _SAMPLES) for arm in arms)]
    if function.runtime is Runtime.PYTHON and function.packages:
        reusing = replace(call, message={**call.message, "reuse": "imports"})
        await reach_steady_state(agent, reusing, pause_s)
        if (await agent.results())[-1]["reuse"] == "imports":
            series.append(Series(Ours(agent, reusing, _REUSING), _SAMPLES))
    if lab.has_docker_command:
        run = run_arm(lab.baselines.docker_run(function.runtime, installed.network), program)
        series.append(Series(run, 1, _RARE))
    samples = await interleave(series, Budget(time.monotonic() + seconds), pause_s=pause_s)
    mine = samples[_OURS]
    return Row(
        hot_ms=statistics.median(mine),
        bare_ms=statistics.median(samples["bare"]),
        vs_bare=ratio_of_medians(mine, samples["bare"]),
        vs_compiled=ratio_of_medians(mine, samples[_COMPILED]) if samples.get(_COMPILED) else None,
        vs_run=ratio_of_medians(mine, samples["run"]) if samples.get("run") else None,
        is_compiled=is_compiled,
        reusing_ms=statistics.median(samples[_REUSING]) if samples.get(_REUSING) else None,
        reusing_vs_bare=ratio_of_medians(samples[_REUSING], samples["bare"])
        if samples.get(_REUSING)
        else None,
    )
