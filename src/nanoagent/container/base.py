"""The port to a container engine, and what a container is to the rest of the agent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from nanoagent.model.result import Isolation
from nanoagent.supervisor import wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from nanoagent.container.cgroup import ControlGroup
    from nanoagent.container.spec import ContainerSpec
    from nanoagent.container.work_directory import WorkDirectory
    from nanoagent.network.listening_sockets import ListeningSockets
    from nanoagent.supervisor.session import Session


def configuration_of(spec: ContainerSpec) -> wire.Configuration:
    """What a container's supervisor is told to be."""
    sandboxed = spec.isolation is Isolation.SANDBOX
    return wire.Configuration(
        highest_level=wire.LEVEL_SANDBOX if sandboxed else wire.LEVEL_SHARED,
        file_size_bytes=spec.limits.file_size_bytes,
        open_files=spec.limits.open_files,
        work_bytes=spec.limits.work_bytes,
        work_files=spec.limits.inodes,
        listening_addresses=spec.listening_addresses,
        modules=spec.modules,
    )


def isolation_failure(spec: ContainerSpec, level: int, reason: str) -> str | None:
    """Why a supervisor did not reach the level its container was made for, or None."""
    if spec.isolation is not Isolation.SANDBOX or level == wire.LEVEL_SANDBOX:
        return None
    return f"no sandbox can be made here: {reason}"


class RunningContainer:
    """A container whose supervisor has connected.

    Attributes:
        id: The engine's name for it.
        spec: What it was made from.
        work_directory: Its folder on the host.
        session: The conversation with its supervisor.
        group: Its control group, None where its files cannot be seen.
        isolation: What stands between two runs in it: `SANDBOX` or `SHARED`.
        isolation_reason: Why it is not a higher level; None when there is none.
        base_bytes: What it held, page cache excluded, when it was bound and no run had begun.
    """

    def __init__(
        self,
        container_id: str,
        spec: ContainerSpec,
        work_directory: WorkDirectory,
        session: Session,
        group: ControlGroup | None,
        isolation_reason: str | None = None,
    ) -> None:
        self.id = container_id
        self.spec = spec
        self.work_directory = work_directory
        self.session = session
        self.group = group
        self.isolation = Isolation.SHARED if isolation_reason else spec.isolation
        self.isolation_reason = isolation_reason
        self.base_bytes = 0

    @property
    def listening_sockets(self) -> ListeningSockets | None:
        """Where its runs can reach the agent; None where they cannot."""
        return self.work_directory.socket.listening_sockets


class Driver(Protocol):
    """Makes and removes containers. Methods raise `ContainerError` when the engine fails."""

    async def create(self, spec: ContainerSpec, work_directory: WorkDirectory) -> RunningContainer:
        """Make and start a container, and wait until its supervisor has said hello.

        When it raises, nothing of the container is left.
        """
        ...

    async def remove(self, container_id: str) -> None:
        """Kill and remove; a container that is gone already is fine."""
        ...

    async def set_limits(self, container_id: str, memory_bytes: int, *, share: float, most: float) -> None:
        """Change limits through the engine, for an agent that may not write the control group.

        Args:
            container_id: Whose.
            memory_bytes: Of memory, swap excluded.
            share: CPUs under contention.
            most: CPUs while they are free.
        """
        ...

    async def ping(self) -> None:
        """Succeed when the engine answers."""
        ...

    async def remove_strays(self, home: Path) -> int:
        """Remove the stray containers of a worker: those without a work directory.

        A creation or a removal that failed midway leaves them.

        Args:
            home: The folder of the worker.

        Returns:
            The number of containers removed.
        """
        ...

    def deaths(self) -> AsyncIterator[str]:
        """The ids of containers that die, as they do; raises when the engine cannot be heard any more."""
        ...
