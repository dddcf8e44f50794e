"""An agent: a worker in a child process. This process starts it and stops it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import IO, TYPE_CHECKING, Final, Protocol

import aiohttp

from nanoagent.model.errors import PlatformError

if TYPE_CHECKING:
    from pathlib import Path

LOG_TAIL_LINES: Final = 15
"""The number of lines of a log that an error shows."""

ARGUMENTS: Final = ("run", "--env-file", os.devnull)
"""The arguments of an agent's module."""

_READY_TIMEOUT_S: Final = 90.0
_STOP_TIMEOUT_S: Final = 30.0


class ChildProcess(Protocol):
    """The part of `asyncio.subprocess.Process` that an agent needs."""

    @property
    def pid(self) -> int:
        """The process ID."""

    @property
    def returncode(self) -> int | None:
        """The exit code; None while the process runs."""

    def send_signal(self, signal: int) -> None:
        """Send a signal to the process."""

    def kill(self) -> None:
        """Kill the process."""

    async def wait(self) -> int:
        """Wait until the process ends, and return its exit code."""


class AgentProcess:
    """An agent that is started with `nanoagent run`, with its log in a file.

    Args:
        environment: Settings, in addition to the environment of this process. They have priority.
        log: The file for the agent's log.
        module: The Python module to run. Another module must accept the arguments of `nanoagent`.

    Attributes:
        port: The port of metrics and health, 0 before the agent has logged it.
    """

    def __init__(self, environment: dict[str, str], log: Path, *, module: str = "nanoagent") -> None:
        # `start` reads the port from the log, and asks that port whether the agent is ready.
        self._environment = environment | {"LOG_FORMAT": "json", "METRICS_HOST": "127.0.0.1"}
        self._log = log
        self._module = module
        self._process: ChildProcess | None = None
        self.port = 0

    async def start(self, *, until_ready: bool = True) -> None:
        """Start the agent, and wait until it is ready.

        Args:
            until_ready: If False, wait only until it serves health.

        Raises:
            PlatformError: The agent ended, or was not ready in time. The message shows the end of the log.
        """
        with self._log.open("wb") as output:
            self._process = await self._new_process(output)
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                await self._wait(until_ready=until_ready)
        except TimeoutError as exc:
            await self.stop()
            raise PlatformError(f"the agent was not ready in time\n{self.log_tail()}") from exc

    async def _new_process(self, output: IO[bytes]) -> ChildProcess:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            self._module,
            *ARGUMENTS,
            env=os.environ | self._environment,
            stdout=output,
            stderr=output,
            # Ctrl-C must not reach the agent, because the signal from `stop` would then be the second
            # one, and a second signal ends the drain.
            start_new_session=True,
        )

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
        """Return the port from the agent's log; 0 if it is not logged yet.

        METRICS_PORT does not show the port: with METRICS_PORT=0, the system chooses one.
        """
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
        """Stop the agent, by force after 30 s; return its exit code. Idempotent."""
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
        """Send a signal to the agent, for example to pause it."""
        if self._process is not None:
            self._process.send_signal(number)

    async def kill(self) -> None:
        """Kill the agent, as a crash does: without a chance to clean up."""
        if self._process is not None:
            self._process.kill()
            await self._process.wait()

    @property
    def has_ended(self) -> bool:
        """Whether the agent has ended, or was not started."""
        return self._process is None or self._process.returncode is not None

    @property
    def exit_code(self) -> int | None:
        """The exit code; None before the start and while the agent runs."""
        return self._process.returncode if self._process is not None else None

    async def ended(self) -> None:
        """Wait until the agent ends."""
        if self._process is not None:
            await self._process.wait()

    def log_tail(self) -> str:
        """Return the last lines of the log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
