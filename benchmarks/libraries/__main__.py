"""Runs every library of the catalogue on a real worker, or those that are named: `make libraries`.

    python -m benchmarks.libraries [NAME …] [--json] [--report FILE]

Exit codes: 0 all libraries work, 1 a library does not work, 2 wrong arguments, 130 interrupted. With names,
or after an interruption, a report keeps the rows of libraries that did not run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import secrets
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.libraries import install
from benchmarks.libraries.catalogue import libraries
from redis import asyncio as redis
from rich.console import Console
from rich.table import Table

from nanoagent.common.units import MIB
from nanoagent.dev.agent_process import AgentProcess
from nanoagent.dev.environment import cancel_on_signal
from nanoagent.dev.local_services import EmbeddedStack
from nanoagent.model.job import Runtime

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.libraries.catalogue import Library

_DEADLINE_S: Final = 300
_HOT_RUNS: Final = 3
_SHOWN_CHARACTERS: Final = 90
_COLUMNS: Final = 6
_INTERRUPTED: Final = 130  # exit code


@dataclass(frozen=True, slots=True)
class Row:
    """The result for one library.

    Attributes:
        name: The name of the library.
        runtime: Its language.
        zip_mb: The size of its zip, MiB.
        first_ms: The time of its first run from receipt to result, ms: fetch, unpack, build, start and run.
        hot_ms: The shortest time of its later runs from receipt to result, ms.
        problem: Why it did not work; empty if it works.
        is_known: Whether it also fails with the language's own tools.
    """

    name: str
    runtime: str
    zip_mb: float = 0
    first_ms: float | None = None
    hot_ms: float | None = None
    problem: str = ""
    is_known: bool = False


class Bench:
    """A worker on an embedded stack.

    Args:
        stack: The services.
        folder: The folder for packages, logs and caches.
    """

    def __init__(self, stack: EmbeddedStack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder

    def agent(self) -> AgentProcess:
        """Make a worker with the default limits."""
        settings = {
            "CODE_CACHE_DIR": str(self._folder / "cache"),
            "METRICS_PORT": "0",
            "SELFTEST_INTERVAL_SECONDS": "0",
            "SQS_WAIT_SECONDS": "1",
            "LOCALE": "en",
        }
        return AgentProcess(self._stack.environment() | settings, self._folder / "agent.log")

    async def row(self, library: Library) -> Row:
        """Fetch, upload and run one library."""
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            try:
                archive = await asyncio.to_thread(install.pack, library, Path(folder))
            except install.InstallError as exc:
                return Row(library.name, library.runtime, problem=f"not fetched: {exc}")
            content = archive.read_bytes()
        row = Row(library.name, library.runtime, round(len(content) / MIB, 1))
        key = f"{secrets.token_hex(6)}.zip"
        await self._stack.buckets.put_code(key, content)
        try:
            results = [await self._run(library, key) for _ in range(1 + _HOT_RUNS)]
        except TimeoutError:
            return replace(row, problem=f"no result within {_DEADLINE_S} s")
        times = [_worked_ms(result) for result in results]
        hot = [ms for ms in times[1:] if ms is not None]
        problem = next((_problem(result) for result in results if _problem(result)), "")
        if problem and library.known_problem:
            return replace(row, problem=library.known_problem, is_known=True)
        return replace(row, first_ms=times[0], hot_ms=min(hot, default=None), problem=problem)

    async def _run(self, library: Library, key: str) -> dict[str, Any]:
        request_id = f"library-{secrets.token_hex(6)}"
        job = {
            "requestId": request_id,
            "functionId": library.name,
            "runtime": library.runtime,
            "s3Key": key,
            "memoryMb": library.memory_mb,
            "timeoutMs": 120_000,
        }
        client = redis.Redis(host=self._stack.redis_host, port=self._stack.redis_port)
        async with client, client.pubsub() as listener, asyncio.timeout(_DEADLINE_S):
            await listener.subscribe(f"result:{request_id}")
            await self._stack.queues.send(json.dumps(job))
            async for event in listener.listen():
                if event["type"] == "message":
                    return dict(json.loads(event["data"]))
        raise AssertionError("a subscription does not end by itself")


def _worked_ms(result: dict[str, Any]) -> float | None:
    timings = result["timings"]
    return None if _problem(result) else round(timings["total"], 1)


def _problem(result: dict[str, Any]) -> str:
    if result["status"] == "SUCCESS" and "ok" in result["stdout"].splitlines():
        return ""
    message = result["errorMessage"] or result["stderr"].strip() or result["stdout"].strip()
    return f"{result['errorType'] or 'no ok'}: {message[-_SHOWN_CHARACTERS:]}"


async def measure(tried: Sequence[Library], rows: list[Row], console: Console) -> None:
    """Run each library in turn, add its row, and print it."""
    cancel_on_signal()
    with tempfile.TemporaryDirectory(prefix="na-lib-") as name:
        folder = Path(name)
        async with EmbeddedStack(folder / "stack") as stack:
            bench = Bench(stack, folder)
            agent = bench.agent()
            await agent.start()
            try:
                for number, library in enumerate(tried, 1):
                    row = await bench.row(library)
                    rows.append(row)
                    mark = row.problem or f"{row.first_ms} ms, hot {row.hot_ms} ms"
                    console.print(f"{number}/{len(tried)} {row.runtime} {row.name}: {mark}", markup=False)
            finally:
                await agent.stop()


def show(rows: Sequence[Row], console: Console) -> None:
    """Print the rows as a table."""
    table = Table(title="libraries and functions: first run and hot run", title_justify="left")
    for heading in ("runtime", "library", "zip MiB", "first ms", "hot ms", "problem"):
        table.add_column(heading, justify="right" if heading[-1] in "Bs" else "left")
    for row in rows:
        first, hot = row.first_ms or "-", row.hot_ms or "-"
        table.add_row(row.runtime, row.name, str(row.zip_mb), str(first), str(hot), row.problem)
    console.print(table)


def from_markdown(report: str) -> list[Row]:
    """Parse the rows of a report."""
    rows = []
    for line in report.splitlines():
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == _COLUMNS and cells[0] in list(Runtime):
            runtime, name, zip_mb, first, hot, problem = cells
            first_ms, hot_ms = (None if cell == "-" else float(cell) for cell in (first, hot))
            rows.append(Row(name, runtime, float(zip_mb), first_ms, hot_ms, problem))
    return rows


def replaced(before: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
    """Return the old rows, with the new rows in their places."""
    new = {(row.runtime, row.name): row for row in rows}
    kept = {(row.runtime, row.name): row for row in before}
    wanted = {(library.runtime, library.name): library for library in libraries()}
    merged = (new.get(key) or kept.get(key) for key in wanted)
    return [
        replace(row, is_known=bool(row.problem and wanted[Runtime(row.runtime), row.name].known_problem))
        for row in merged
        if row is not None
    ]


def as_markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a document."""
    works = sum(not row.problem for row in rows)
    known = sum(row.is_known for row in rows)
    lines = [
        "# Libraries and programs of other projects",
        "",
        f"`make libraries` writes this page. {works} of {len(rows)} work with the default limits.",
        f"Libraries that also fail with the language's own tools: {known}.",
        "",
        "`first` is the time of the first run (fetch, unpack, build, start, run). `hot` is the shortest time",
        "of three later runs. Both are in ms, from receipt to result.",
        "",
        "| runtime | library | zip MiB | first | hot | problem |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        problem = row.problem.replace("|", "\\|").replace("\n", " ")
        times = f"{row.first_ms or '-'} | {row.hot_ms or '-'}"
        lines.append(f"| {row.runtime} | {row.name} | {row.zip_mb} | {times} | {problem} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the libraries; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="libraries to run; default: all")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--report", type=Path, help="write the table to this Markdown file")
    options = parser.parse_args(arguments)
    chosen = [library for library in libraries() if not options.names or library.name in options.names]
    if not chosen:
        parser.error(f"unknown libraries: {', '.join(options.names)}")
    console = Console(stderr=True)
    rows: list[Row] = []
    is_interrupted = False
    try:
        asyncio.run(measure(chosen, rows, console))
    except asyncio.CancelledError:
        is_interrupted = True
        console.print(f"interrupted after {len(rows)} of {len(chosen)}")
    if options.report is not None:
        keeps_others = (options.names or is_interrupted) and options.report.exists()
        before = from_markdown(options.report.read_text()) if keeps_others else []
        options.report.write_text(as_markdown(replaced(before, rows)))
    if options.json:
        print(json.dumps([asdict(row) for row in rows]))
    else:
        show(rows, Console())
    return _INTERRUPTED if is_interrupted else int(any(row.problem and not row.is_known for row in rows))


if __name__ == "__main__":
    sys.exit(main())
