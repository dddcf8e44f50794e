"""Runs an embedded stack and an agent that uses it, for `nanoagent demo` and `nanoagent dev`."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import signal
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nanoagent.dev.agent_process import AgentProcess
from nanoagent.dev.local_services import EmbeddedStack
from nanoagent.dev.sender import language
from nanoagent.dev.stub_model_server import StubModelServer
from nanoagent.model.errors import PlatformError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from rich.console import Console

END_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that end a command."""

_LOCK: Final = "lock"
_MODEL_SERVER_SETTINGS: Final = ("AI_ENDPOINT", "AI_UPSTREAMS", "AI_REPLAY")


@dataclass(frozen=True, slots=True)
class Environment:
    """A running embedded stack with an agent.

    Attributes:
        stack: The stack.
        agent: The agent.
        settings: The settings of the agent.
    """

    stack: EmbeddedStack
    agent: AgentProcess
    settings: dict[str, str]


@asynccontextmanager
async def running(state: Path, console: Console, settings: dict[str, str]) -> AsyncIterator[Environment]:
    """Run an embedded stack, and an agent that uses it.

    Args:
        state: The folder for logs and caches.
        console: Prints the progress.
        settings: Settings of the agent, in addition to those of the stack.

    Raises:
        PlatformError: The folder is in use, or a part did not start.
    """
    async with AsyncExitStack() as opened:
        opened.enter_context(lock_folder(state))
        console.print("Starting moto (SQS, S3, CloudWatch) and Redis …")
        stack = await opened.enter_async_context(EmbeddedStack(state / "stack"))
        settings = (
            stack.environment()
            | await model_server_settings(opened, console)
            | {
                "CODE_CACHE_DIR": str(state / "cache"),
                "SQS_WAIT_SECONDS": "1",  # a short poll, so that the agent stops quickly
                "LOCALE": result_locale(console),
                # The embedded services have only secrets of this stack.
                "SECRETS_ALLOW": os.environ.get("SECRETS_ALLOW", "*=ssm:**,*=secretsManager:**"),
                **settings,
            }
        )
        console.print("Starting the agent and filling its warm pool …")
        agent = AgentProcess(settings, state / "agent.log")
        opened.push_async_callback(agent.stop)
        await agent.start()
        yield Environment(stack, agent, settings)


@contextmanager
def lock_folder(state: Path) -> Iterator[None]:
    """Lock a state folder, because two embedded stacks in one folder would truncate each other's logs.

    The kernel releases the lock at the end of the process, also after a crash. Child processes do not inherit
    the lock.

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


def result_locale(console: Console) -> str:
    """Return the language of the texts in results: the value of LOCALE, or the language of the shell."""
    if locale := os.environ.get("LOCALE"):
        return locale
    shell = language.of_shell(os.environ)
    other = "en" if shell.locale == "ko" else "ko"
    console.print(
        f"Tips, hints and errors are in {shell.name} ({shell.source}); LOCALE={other} changes that.",
        markup=False,
        highlight=False,
    )
    return shell.locale


async def model_server_settings(opened: AsyncExitStack, console: Console) -> dict[str, str]:
    """Return the settings of the agent's model server.

    If the environment names a model server, no settings are added. Otherwise the stub model server is
    started.
    """
    if any(os.environ.get(name) for name in _MODEL_SERVER_SETTINGS):
        return {}
    stub_model_server = await opened.enter_async_context(StubModelServer())
    console.print("AI_ENDPOINT is not set: a stub model server answers. It repeats the question.")
    return {"AI_ENDPOINT": stub_model_server.url}


def cancel_on_signal() -> None:
    """Cancel this task at the first signal, so that it stops the agent and the stack before it ends.

    Later signals are ignored, because they would interrupt the stopping.
    """
    task = asyncio.current_task()
    loop = asyncio.get_running_loop()
    assert task is not None  # noqa: S101 - called from a coroutine

    def end() -> None:
        for number in END_SIGNALS:
            loop.add_signal_handler(number, lambda: None)
        task.cancel()

    for number in END_SIGNALS:
        loop.add_signal_handler(number, end)
