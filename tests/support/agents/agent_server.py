"""`python -m support.agents.agent_server`: starts agents by fork, after it has imported the agent's modules.

The imports take more CPU time than all other work of a start. Each test process has one server, which ends
with it. `ForkedAgent` is the test's side.

A request is one message on the server's socket: JSON, with two descriptors. The first one is for the agent's
output. The second one is a socket on which the server sends the agent's process ID, and later its exit code.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Self

from nanoagent.dev.agent_process import ARGUMENTS, AgentProcess

if TYPE_CHECKING:
    from collections.abc import Mapping

TESTS: Final = Path(__file__).parents[2]
# All that an agent imports. A module that is missing here costs time only.
_MODULES: Final = (
    "nanoagent.app",
    "nanoagent.cli",
    "nanoagent.config",
    "nanoagent.doctor.variables",
    "typer._adapters",
    "uvloop",
)
_MOST_REQUEST_BYTES: Final = 1 << 20
_MAX_ANSWER_BYTES: Final = 64


# --- the test's side


class ForkedAgent(AgentProcess):
    """An agent that the server of this test process has forked."""

    async def _new_process(self, output: IO[bytes]) -> ForkedProcess:
        return await ForkedProcess.start(self._module, os.environ | self._environment, output)


class ForkedProcess:
    """A process that the server has forked."""

    def __init__(self, pid: int, status: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = asyncio.create_task(self._receive_exit_code(status))

    @classmethod
    async def start(cls, module: str, environment: Mapping[str, str], output: IO[bytes]) -> Self:
        """Fork a process that runs a module as `python -m` does, with the arguments of an agent."""
        status, of_server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        status.setblocking(False)
        with of_server:
            request = json.dumps([module, str(Path.cwd()), dict(environment)]).encode()
            control, _ = _server()
            socket.send_fds(control, [request], [output.fileno(), of_server.fileno()])
        return cls(int(await _received(status)), status)

    async def _receive_exit_code(self, status: socket.socket) -> int:
        with status:
            self.returncode = int(await _received(status))
        return self.returncode

    def send_signal(self, signal: int) -> None:
        """Send a signal to the process."""
        if self.returncode is None:
            os.kill(self.pid, signal)

    def kill(self) -> None:
        """Kill the process."""
        self.send_signal(signal.SIGKILL)

    async def wait(self) -> int:
        """Wait until the process ends, and return its exit code."""
        return await asyncio.shield(self._ended)


async def _received(status: socket.socket) -> bytes:
    message = await asyncio.get_running_loop().sock_recv(status, _MAX_ANSWER_BYTES)
    assert message, "the server of agents has ended"
    return message


@cache
def _server() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Start the server of this test process. It ends when its socket is closed, with the test process."""
    ours, of_server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with of_server:
        paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        server = subprocess.Popen(
            [sys.executable, "-m", "support.agents.agent_server", str(of_server.fileno())],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[of_server.fileno()],
            start_new_session=True,
        )
    return ours, server


# --- the server's side


def main() -> None:
    """Serve; in an agent, run its module."""
    with socket.socket(fileno=int(sys.argv[1])) as control:
        module = _serve(control)
    if module is not None:
        sys.argv = [module, *ARGUMENTS]
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def _serve(control: socket.socket) -> str | None:
    """Fork an agent for each request. Return None at the end, and in an agent the name of its module."""
    for name in _MODULES:
        importlib.import_module(name)
    assert threading.active_count() == 1  # a fork has only the thread that forks
    with selectors.DefaultSelector() as ready:
        ready.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                if key.data is not None:
                    ready.unregister(key.fd)
                    _report_end(key.fd, *key.data)
                    continue
                message, descriptors, _, _ = socket.recv_fds(control, _MOST_REQUEST_BYTES, 2)
                if not message:
                    return None
                output, status = descriptors
                pid = os.fork()
                end = socket.socket(fileno=status)
                if pid == 0:
                    end.close()
                    _close_all(ready)
                    return _become_agent(output, *json.loads(message))
                os.close(output)
                end.send(str(pid).encode())
                ready.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, end))


def _close_all(ready: selectors.BaseSelector) -> None:
    """In an agent: close what belongs to other agents."""
    for key in ready.get_map().values():
        if key.data is not None:
            os.close(key.fd)
            key.data[1].close()


def _report_end(pidfd: int, pid: int, status: socket.socket) -> None:
    os.close(pidfd)
    _, ended = os.waitpid(pid, 0)
    with status:
        try:
            status.send(str(os.waitstatus_to_exitcode(ended)).encode())
        except OSError:  # the test has ended
            return


def _become_agent(output: int, module: str, folder: str, environment: dict[str, Any]) -> str:
    """Give this process everything that a new process would have."""
    os.setsid()
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    return module


if __name__ == "__main__":
    main()
