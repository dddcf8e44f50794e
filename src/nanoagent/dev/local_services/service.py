"""A child process that provides a service of the embedded stack: moto's server or Redis."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from nanoagent.model.errors import PlatformError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_START_DEADLINE_S: Final = 60.0  # moto takes 3 s to import on an idle machine
_STOP_DEADLINE_S: Final = 5.0
_PROBE_INTERVAL_S: Final = 0.05
_SHOWN_CHARACTERS: Final = 2000

_T = TypeVar("_T")


class StackError(PlatformError):
    """A service of the embedded stack is not installed, did not start, or did not answer."""


@dataclass(frozen=True, slots=True)
class Service:
    """A child process, with its output in a file.

    Attributes:
        name: The name in messages.
        process: The process.
        log: The file with its output.
    """

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(cls, name: str, command: list[str], folder: Path) -> Service:
        """Start the process; its log is in the folder.

        The process has its own session, so Ctrl-C does not reach it. The process that has started the service
        must stop it.
        """
        log = folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 - our own command
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return cls(name, process, log)

    def wait_until(self, probe: Callable[[], _T | None]) -> _T:
        """Call the probe until it returns a value other than None; return that value.

        Raises:
            StackError: The process ended, or did not answer within the deadline.
        """
        deadline = time.monotonic() + _START_DEADLINE_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise StackError(f"{self.name} ended at its start; its output:\n{self._last_output()}")
            answer = probe()
            if answer is not None:
                return answer
            time.sleep(_PROBE_INTERVAL_S)
        raise StackError(
            f"{self.name} did not answer within {_START_DEADLINE_S:.0f} s; its output:\n{self._last_output()}"
        )

    async def ended(self) -> None:
        """Wait until the process ends."""
        try:
            descriptor = os.pidfd_open(self.process.pid)
        except ProcessLookupError:  # the process has ended, and `poll` has collected its exit code
            return
        loop, is_over = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(descriptor, is_over.set)
        try:
            await is_over.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return self.process.poll() is not None

    def output(self) -> str:
        """Return the output so far."""
        return self.log.read_text(errors="replace")

    def _last_output(self) -> str:
        return self.output()[-_SHOWN_CHARACTERS:]

    def stop(self) -> None:
        """End the process, by force after 5 s. Idempotent."""
        self.process.terminate()
        try:
            self.process.wait(_STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
