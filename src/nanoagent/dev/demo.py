"""`nanoagent demo` and `nanoagent dev`: an agent of its own process on an embedded stack, for a person.

The demo runs the programs of `examples/` as jobs, twice: the first round finds warm containers (and builds
what has to be built), the second finds them hot. One of them asks a language model: where the environment
names no model server, a stand-in answers.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import shlex
import signal
import sys
import time
import uuid
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from redis import asyncio as redis
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from nanoagent.common.units import MIB
from nanoagent.dev.local_services import EmbeddedStack
from nanoagent.dev.sender import dev, language, pack
from nanoagent.dev.stub_model_server import StubModelServer
from nanoagent.model.errors import ConfigError, PlatformError
from nanoagent.model.job import Runtime

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

_READY_TIMEOUT_S: Final = 90.0
_ROUND_TIMEOUT_S: Final = 180.0
_STOP_TIMEOUT_S: Final = 30.0
_ROUNDS: Final = ("first round", "the same jobs again")
_LOG_TAIL_LINES: Final = 15
_MEMORY_MB: Final = 256
_SERVICES: Final = {"redis": "Redis", "moto": "the server of SQS, S3 and CloudWatch"}
_LOCK: Final = "lock"
_FUNCTION_PREFIX: Final = "demo-"
_EXAMPLES: Final = (*Runtime, "python-llm")  # folders of examples/
_MODEL_SERVER_SETTINGS: Final = ("AI_ENDPOINT", "AI_UPSTREAMS", "AI_REPLAY")


def examples_folder() -> Path:
    """The examples of this checkout.

    Raises:
        ConfigError: There are none: the package was installed without its repository.
    """
    folder = Path(__file__).resolve().parents[3] / "examples"
    if not folder.is_dir():
        raise ConfigError([f"{folder}: is not there; run this from a checkout of the repository"])
    return folder


# --- the agent's process


class AgentProcess:
    """An agent started as a person would start it, with its log in a file.

    Args:
        environment: Its settings.
        log: The file.
        module: What Python runs; another than this package's takes the same arguments.
    """

    def __init__(self, environment: dict[str, str], log: Path, *, module: str = "nanoagent") -> None:
        # It is watched through both: its port stands in the log, its readiness at the port.
        self._environment = environment | {"LOG_FORMAT": "json", "METRICS_HOST": "127.0.0.1"}
        self._log = log
        self._module = module
        self._process: asyncio.subprocess.Process | None = None
        self.port = 0

    async def start(self, *, until_ready: bool = True) -> None:
        """Start it, and wait until it says that it is ready.

        Args:
            until_ready: False: wait only until it says how it is.

        Raises:
            PlatformError: It ended, or was not ready in time; with the end of its log.
        """
        with self._log.open("wb") as output:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self._module,
                "run",
                "--env-file",
                os.devnull,
                env=os.environ | self._environment,
                stdout=output,
                stderr=output,
                # Not our Ctrl-C: it is told to stop by us, once.
                start_new_session=True,
            )
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                await self._wait(until_ready=until_ready)
        except TimeoutError as exc:
            await self.stop()
            raise PlatformError(f"the agent was not ready in time\n{self.log_tail()}") from exc

    async def _wait(self, *, until_ready: bool) -> None:
        async with aiohttp.ClientSession() as client:
            while True:
                if self._process is not None and self._process.returncode is not None:
                    raise PlatformError(f"the agent ended at start\n{self.log_tail()}")
                self.port = self.port or self._announced_port()
                if self.port and (not until_ready or await self._is_ready(client)):
                    return
                await asyncio.sleep(0.1)

    def _announced_port(self) -> int:
        """The port from the agent's log line; it may be any free one."""
        for line in self._log.read_text(errors="replace").splitlines():
            if '"metrics and health"' in line:
                return int(json.loads(line)["port"])
        return 0

    async def _is_ready(self, client: aiohttp.ClientSession) -> bool:
        try:
            async with client.get(f"http://127.0.0.1:{self.port}/readyz") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    async def stop(self) -> int:
        """Ask it to stop, wait, and return its exit code. Idempotent."""
        process = self._process
        if process is None:
            return 0
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(_STOP_TIMEOUT_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        return process.returncode or 0

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal: to pause it, say."""
        if self._process is not None:
            self._process.send_signal(number)

    async def kill(self) -> None:
        """End it without a chance to clean up: what a crash looks like."""
        if self._process is not None:
            self._process.kill()
            await self._process.wait()

    @property
    def has_ended(self) -> bool:
        """Whether it does not run any more."""
        return self._process is None or self._process.returncode is not None

    @property
    def exit_code(self) -> int | None:
        """How it ended; None while it runs."""
        return self._process.returncode if self._process is not None else None

    async def ended(self) -> None:
        """Wait until it ends by itself."""
        if self._process is not None:
            await self._process.wait()

    def log_tail(self) -> str:
        """The last lines of its log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:])


@asynccontextmanager
async def _running(state: Path, console: Console, settings: dict[str, str]) -> AsyncIterator[_Running]:
    """The embedded stack and an agent on it.

    Raises:
        PlatformError: The folder is in use, or a part did not start.
    """
    async with AsyncExitStack() as opened:
        opened.enter_context(_sole_use(state))
        console.print("Starting moto (SQS, S3, CloudWatch) and Redis …")
        stack = await opened.enter_async_context(EmbeddedStack(state / "stack"))
        environment = (
            stack.environment()
            | await _model_server(opened, console)
            | {
                "CODE_CACHE_DIR": str(state / "cache"),
                "SQS_WAIT_SECONDS": "1",  # the stack is local: a short poll lets the agent stop at once
                "LOCALE": _locale(console),
                **settings,
            }
        )
        console.print("Starting the agent and filling its warm pool …")
        agent = AgentProcess(environment, state / "agent.log")
        opened.push_async_callback(agent.stop)
        await agent.start()
        yield _Running(stack, agent, environment)


@contextmanager
def _sole_use(state: Path) -> Iterator[None]:
    """Keep other embedded stacks out of a state folder: each would truncate the logs of the other.

    The kernel releases the lock when the process ends, however it ends. Child processes do not inherit it.

    Raises:
        PlatformError: Another process holds the lock, or the folder cannot be used.
    """
    try:
        state.mkdir(parents=True, exist_ok=True)
        lock = (state / _LOCK).open("a+")
    except OSError as exc:
        raise PlatformError(f"{state}: cannot be used ({exc}); name another folder with --state") from exc
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            if exc.errno != errno.EWOULDBLOCK:
                raise PlatformError(f"{lock.name}: cannot be locked: {exc}; use --state") from exc
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise PlatformError(
                f"another `nanoagent dev` or `nanoagent demo` (pid {holder}) uses {state}: "
                "stop it, or name another folder with --state"
            ) from exc
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def _locale(console: Console) -> str:
    """The language of the results' texts: as LOCALE says, or as the shell does."""
    if locale := os.environ.get("LOCALE"):
        return locale
    shell = language.of_shell(os.environ)
    other = "en" if shell.locale == "ko" else "ko"
    console.print(
        f"Tips, hints and errors come in {shell.name} ({shell.source}); LOCALE={other} changes that.",
        markup=False,
        highlight=False,
    )
    return shell.locale


async def _model_server(opened: AsyncExitStack, console: Console) -> dict[str, str]:
    """The settings by which the agent finds a model server: none, or a stand-in's that was started."""
    if any(os.environ.get(name) for name in _MODEL_SERVER_SETTINGS):
        return {}
    stub_model_server = await opened.enter_async_context(StubModelServer())
    console.print("AI_ENDPOINT is not set: a stand-in that repeats the question answers in a model's place.")
    return {"AI_ENDPOINT": stub_model_server.url}


@dataclass(frozen=True, slots=True)
class _Running:
    stack: EmbeddedStack
    agent: AgentProcess
    environment: dict[str, str]


# --- the demo


@dataclass(slots=True)
class _Sent:
    """A job of the demo and what has come of it.

    Attributes:
        example: The folder of examples/ that it runs; its name begins with the runtime's.
        result: The result's document, once it is there.
    """

    request_id: str
    example: str
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def runtime(self) -> Runtime:
        return Runtime(self.example.partition("-")[0])


async def run(state: Path, *, as_json: bool) -> int:
    """Run the demo; returns the exit code.

    Args:
        state: Folder for logs and caches, absolute.
        as_json: Print the results as JSON instead of tables.
    """
    console = Console(stderr=as_json)
    console.rule("NanoAgent demo")
    end_in_order()
    rounds: list[list[_Sent]] = []
    async with _running(state, console, {"METRICS_PORT": "0"}) as running:
        for number, title in enumerate(_ROUNDS):
            rounds.append(await _round(running.stack, console, f"{number + 1}. {title}"))
    results = [sent.result for jobs in rounds for sent in jobs]
    if as_json:
        print(json.dumps(results, indent=2, ensure_ascii=False))  # noqa: T201 - this is a command's output
    return _verdict(results, console, state)


_END_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end_in_order() -> None:
    """Have a signal unwind this task, so that the agent and the stack are stopped and not left behind.

    The first one only: a second must not cut that short.
    """
    task = asyncio.current_task()
    loop = asyncio.get_running_loop()
    assert task is not None  # noqa: S101 - called from a coroutine

    def end() -> None:
        for number in _END_SIGNALS:
            loop.add_signal_handler(number, lambda: None)
        task.cancel()

    for number in _END_SIGNALS:
        loop.add_signal_handler(number, end)


def _verdict(results: list[dict[str, Any]], console: Console, state: Path) -> int:
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
            begun = time.monotonic()
            for job in jobs:
                await _send(stack, job)
            await _collect(listener, jobs, console, title, begun)
    finally:
        await client.aclose()
    return jobs


async def _send(stack: EmbeddedStack, job: _Sent) -> None:
    folder = examples_folder() / job.example
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


async def _collect(listener: Any, jobs: list[_Sent], console: Console, title: str, begun: float) -> None:
    """Fill in the results as they come; a table that grows on a terminal, a line each elsewhere."""
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
                    elapsed = time.monotonic() - begun
                    live.update(_table(jobs, title))
                    if not console.is_terminal:
                        console.print(f"  {done.example}: {result['status']} after {elapsed:.1f} s")
                    if all(job.result for job in jobs):
                        break
        console.print()  # off a terminal, Live ends without a new line
    except TimeoutError as exc:
        missing = ", ".join(job.example for job in jobs if not job.result)
        raise PlatformError(f"no result within {_ROUND_TIMEOUT_S:.0f} s for: {missing}") from exc


def _table(jobs: list[_Sent], title: str) -> Group:
    """What is known of the jobs so far: a row each, and the AutoTuner's sentences below."""
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


# --- development


async def develop(state: Path) -> int:
    """Keep the stack and an agent up until Ctrl-C; returns the exit code."""
    console = Console()
    stop = asyncio.Event()
    end_in_order()
    console.rule("NanoAgent, for development")
    port = {"METRICS_PORT": os.environ.get("METRICS_PORT", "8000")}
    async with AsyncExitStack() as opened:
        running = await opened.enter_async_context(_running(state, console, port))
        settings = opened.enter_context(_settings_file(state, running.environment))
        _explain(console, running, state, settings)
        for number in _END_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        ends = [stop.wait(), running.agent.ended(), *(service.ended() for service in running.stack.services)]
        waits = [asyncio.create_task(end) for end in ends]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if not stop.is_set():
            ended, log_tail = _ended(running)
            # At once: the agent may take a while to stop without the service.
            console.print(f"[red]{ended} ended.[/] Stopping everything …")
            raise PlatformError(f"{ended} ended\n{log_tail}")
        console.print("Stopping …")
    console.print("Stopped.")
    return 0


def _ended(running: _Running) -> tuple[str, str]:
    """The part that ended by itself, and the end of its log. An agent may end because a service did."""
    for service in running.stack.services:
        if service.has_ended:
            lines = service.output().splitlines()[-_LOG_TAIL_LINES:]
            return f"{_SERVICES.get(service.name, service.name)} ({service.log})", "\n".join(lines)
    return "the agent", running.agent.log_tail()


@contextmanager
def _settings_file(state: Path, environment: dict[str, str]) -> Iterator[Path]:
    """A file by which `nanoagent send` finds this stack, there for as long as the stack runs."""
    path = state / dev.SETTINGS
    text = "".join(f"{name}={value}\n" for name, value in environment.items())
    path.write_text(text)
    try:
        yield path
    finally:
        with suppress(OSError):
            if path.read_text() == text:  # not that of another one, started since
                path.unlink()


def _explain(console: Console, running: _Running, state: Path, settings: Path) -> None:
    stack, port, option = running.stack, running.agent.port, dev.option(settings)
    finds = f"needs{option}: the state folder is not the default one" if option else f"reads {settings}"
    console.print(
        f"""
SQS, S3, CloudWatch  {stack.endpoint_url}
Redis                {stack.redis_host}:{stack.redis_port}
metrics and health   http://127.0.0.1:{port}/metrics  /healthz  /readyz
the agent's log      {state}/agent.log

Send a job, from another terminal:

  .venv/bin/nanoagent send examples/python --input '{{"text": "hello hello world"}}'{option}

To find this worker, the command {finds}.
For other programs: set -a; . {shlex.quote(str(settings))}; set +a

Ctrl-C stops everything.
""",
        markup=False,
        highlight=False,
        soft_wrap=True,  # the command must survive copy and paste
    )
