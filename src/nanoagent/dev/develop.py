"""The command `nanoagent dev`: runs an embedded stack and an agent until Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import shlex
from contextlib import AsyncExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Final

from rich.console import Console

from nanoagent.dev import environment
from nanoagent.dev.agent_process import LOG_TAIL_LINES
from nanoagent.dev.environment import cancel_on_signal
from nanoagent.dev.sender import dev
from nanoagent.model.errors import PlatformError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nanoagent.dev.environment import Environment

_SERVICES: Final = {"redis": "Redis", "moto": "the server of SQS, S3 and CloudWatch"}


async def run(state: Path) -> int:
    """Run the stack and an agent until Ctrl-C; return the exit code.

    Args:
        state: The folder for logs and caches, absolute.

    Raises:
        PlatformError: The agent or a service did not start, or ended.
    """
    console = Console()
    stop = asyncio.Event()
    cancel_on_signal()
    console.rule("NanoAgent, for development")
    port = {"METRICS_PORT": os.environ.get("METRICS_PORT", "8000")}
    async with AsyncExitStack() as opened:
        running = await opened.enter_async_context(environment.running(state, console, port))
        settings = opened.enter_context(settings_file(state, running.settings))
        print_instructions(console, running, state, settings)
        for number in environment.END_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        ends = [stop.wait(), running.agent.ended(), *(service.ended() for service in running.stack.services)]
        waits = [asyncio.create_task(end) for end in ends]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if not stop.is_set():
            ended, log_tail = _find_ended_part(running)
            # Print this now, because without the service the agent may need a while to stop.
            console.print(f"[red]{ended} ended.[/] Stopping everything …")
            raise PlatformError(f"{ended} ended\n{log_tail}")
        console.print("Stopping …")
    console.print("Stopped.")
    return 0


def _find_ended_part(running: Environment) -> tuple[str, str]:
    """Return the part that has ended, and the end of its log.

    If a service and the agent have ended, return the service, because it is the likely cause.
    """
    for service in running.stack.services:
        if service.has_ended:
            lines = service.output().splitlines()[-LOG_TAIL_LINES:]
            return f"{_SERVICES.get(service.name, service.name)} ({service.log})", "\n".join(lines)
    return "the agent", running.agent.log_tail()


@contextmanager
def settings_file(state: Path, settings: dict[str, str]) -> Iterator[Path]:
    """Write the settings file with which `nanoagent send` finds this stack, and delete it at the end."""
    path = state / dev.SETTINGS
    text = "".join(f"{name}={value}\n" for name, value in settings.items())
    path.write_text(text)
    try:
        yield path
    finally:
        with suppress(OSError):
            if path.read_text() == text:  # otherwise it belongs to a stack that was started later
                path.unlink()


def print_instructions(console: Console, running: Environment, state: Path, settings: Path) -> None:
    """Print the addresses of the parts, and the commands to use them."""
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
        soft_wrap=True,  # users copy the command, so it must stay on one line
    )
