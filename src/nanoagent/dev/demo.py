"""The command `nanoagent demo`: runs the programs in `examples/` as jobs, twice, with local services.

In the first round, no job has a hot start. The C++ and Go programs are built, unless an earlier demo has
built them. In the second round, the jobs have hot starts. One program asks a language model. If the
environment names no model server, the stub model server answers.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from redis import asyncio as redis
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from nanoagent.common.units import MIB
from nanoagent.dev import environment, sources
from nanoagent.dev.environment import cancel_on_signal
from nanoagent.dev.sender import pack
from nanoagent.model.errors import PlatformError
from nanoagent.model.job import Runtime

if TYPE_CHECKING:
    from pathlib import Path

    from nanoagent.dev.local_services import EmbeddedStack

_ROUND_TIMEOUT_S: Final = 180.0
_ROUNDS: Final = ("first round", "the same jobs again")
_MEMORY_MB: Final = 256
_FUNCTION_PREFIX: Final = "demo-"
_EXAMPLES: Final = (*Runtime, "python-llm")  # folders of examples/


@dataclass(slots=True)
class _Sent:
    """A job that was sent, and its result.

    Attributes:
        request_id: The request ID.
        example: The folder of examples/ with the code. Its name begins with the runtime.
        result: The document of the result; empty before the job has ended.
    """

    request_id: str
    example: str
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def runtime(self) -> Runtime:
        return Runtime(self.example.partition("-")[0])


async def run(state: Path, *, as_json: bool) -> int:
    """Run the demo. Return the exit code: 1 if a job failed, else 0.

    Args:
        state: The folder for logs and caches, absolute.
        as_json: Print the results as JSON instead of tables.
    """
    console = Console(stderr=as_json)
    console.rule("NanoAgent demo")
    cancel_on_signal()
    rounds: list[list[_Sent]] = []
    async with environment.running(state, console, {"METRICS_PORT": "0"}) as running:
        for number, title in enumerate(_ROUNDS):
            rounds.append(await _round(running.stack, console, f"{number + 1}. {title}"))
    results = [sent.result for jobs in rounds for sent in jobs]
    if as_json:
        print(json.dumps(results, indent=2, ensure_ascii=False))  # noqa: T201 - a command's output
    return _print_verdict(results, console, state)


def _print_verdict(results: list[dict[str, Any]], console: Console, state: Path) -> int:
    """Print the failed jobs and a summary. Return 1 if a job failed, else 0."""
    failed = [result for result in results if result.get("status") != "SUCCESS"]
    for result in failed:
        example = result["functionId"].removeprefix(_FUNCTION_PREFIX)
        console.print(f"[red]{escape(example)} failed:[/] {escape(str(result.get('errorMessage')))}")
        console.print(
            f"  hint: {result.get('hint')}\n  stderr: {result.get('stderr', '')[-2000:]}", markup=False
        )
    if failed:
        console.print(
            f"[red]{len(failed)} of {len(results)} jobs failed;[/] the agent's log is {state}/agent.log"
        )
        return 1
    console.print(f"[green]All {len(results)} jobs succeeded.[/] The agent's log is {state}/agent.log")
    return 0


async def _round(stack: EmbeddedStack, console: Console, title: str) -> list[_Sent]:
    """Send a job for each example, show their progress, and wait for all results."""
    client = redis.Redis(host=stack.redis_host, port=stack.redis_port)
    jobs = [_Sent(f"demo-{example}-{uuid.uuid4().hex[:8]}", example) for example in _EXAMPLES]
    try:
        async with client.pubsub() as listener:
            await listener.subscribe(*(f"result:{job.request_id}" for job in jobs))
            begun_at = time.monotonic()
            for job in jobs:
                await _send(stack, job)
            await _collect(listener, jobs, console, title, begun_at)
    finally:
        await client.aclose()
    return jobs


async def _send(stack: EmbeddedStack, job: _Sent) -> None:
    folder = sources.folder("examples") / job.example
    key = f"demo/{job.example}.zip"
    await stack.buckets.put_code(key, pack(folder))
    message = {
        "requestId": job.request_id,
        "functionId": _FUNCTION_PREFIX + job.example,
        "runtime": job.runtime,
        "s3Key": key,
        "memoryMb": _MEMORY_MB,
        "timeoutMs": 60_000,
        "input": json.loads((folder / "input.json").read_text()),
    }
    await stack.queues.send(json.dumps(message, ensure_ascii=False))


async def _collect(listener: Any, jobs: list[_Sent], console: Console, title: str, begun_at: float) -> None:
    """Receive all results, and show them in a table.

    If the output is not a terminal, also print a line for each result as it arrives, before the table.
    """
    by_id = {job.request_id: job for job in jobs}
    try:
        with Live(_table(jobs, title), console=console, refresh_per_second=8, transient=False) as live:
            async with asyncio.timeout(_ROUND_TIMEOUT_S):
                async for message in listener.listen():
                    if message["type"] != "message":
                        continue
                    result = json.loads(message["data"])
                    done = by_id[result["requestId"]]
                    done.result = result
                    elapsed = time.monotonic() - begun_at
                    live.update(_table(jobs, title))
                    if not console.is_terminal:
                        console.print(f"  {done.example}: {result['status']} after {elapsed:.1f} s")
                    if all(job.result for job in jobs):
                        break
        console.print()  # without a terminal, Live prints no final new line
    except TimeoutError as exc:
        missing = ", ".join(job.example for job in jobs if not job.result)
        raise PlatformError(f"no result within {_ROUND_TIMEOUT_S:.0f} s for: {missing}") from exc


def _table(jobs: list[_Sent], title: str) -> Group:
    """Return a table with a row for each job, and the tips of the AutoTuner below it."""
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False
    )
    for heading in ("example", "status", "start"):
        table.add_column(heading, no_wrap=True)
    for heading in ("ms\nrun/total", "MiB\npeak/tip", "LLM\ntokens"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("output files", overflow="fold")
    for job in jobs:
        table.add_row(job.example, *_cells(job.result))
    tips = [
        f"{job.example}: {job.result['optimizationTip']}" for job in jobs if job.result.get("optimizationTip")
    ]
    return Group(table, Text("\n".join(tips), style="dim"))


def _cells(result: dict[str, Any]) -> list[str]:
    if not result:
        return ["[dim]running …[/]", *([""] * 5)]
    color = "green" if result["status"] == "SUCCESS" else "red"
    peak, tuning = result["peakMemoryBytes"], result["tuning"]
    peak_mib = "-" if peak is None else f"{peak / MIB:.1f}"
    tip_mib = "-" if tuning is None else tuning["recommendedMemoryMb"]
    files = [link.split("/outputs/", 1)[-1].split("/", 1)[-1] for link in result["outputFiles"]]
    return [
        f"[{color}]{result['status']}[/]",
        result["start"] or "-",
        f"{result['timings']['run']:.0f} / {result['timings']['total']:.0f}",
        f"{peak_mib} / {tip_mib}",
        str(result["llmTokenCount"] or "-"),
        escape("\n".join(files)),
    ]
