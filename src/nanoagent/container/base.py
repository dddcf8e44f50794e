"""The interface to a container engine, and a running container."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from nanoagent.container.charges import IdleMemory
from nanoagent.model.errors import ContainerError
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


class RecyclingFailure(StrEnum):
    """Why a container could not be made generic again. The values are labels of a metric."""

    RESIDUE = "residue"  # its launcher has found something of the last function
    PROCESSES = "processes"  # its control group has processes besides the launcher
    MEMORY = "memory"  # it holds more memory than a new container
    TIMEOUT = "timeout"  # the launcher or the new supervisor did not answer in time
    ERROR = "error"  # the container has died, or the engine has failed


class NotRecycled(ContainerError):  # noqa: N818 - a state of the container
    """A container could not be made generic again. It must be removed.

    Args:
        failure: The kind of the failure.
        reason: The reason.
    """

    def __init__(self, failure: RecyclingFailure, reason: str) -> None:
        super().__init__(f"a container could not be made generic again: {reason}")
        self.failure = failure


def configuration_of(spec: ContainerSpec) -> wire.Configuration:
    """Return the configuration of a container's supervisor."""
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
    """Return why a supervisor did not reach the level of the specification; None if it reached the level.

    Args:
        spec: The specification of the container.
        level: The level that the supervisor reached.
        reason: Why it reached no higher level.
    """
    if spec.isolation is not Isolation.SANDBOX or level == wire.LEVEL_SANDBOX:
        return None
    return f"no sandbox can be made here: {reason}"


class RunningContainer:
    """A container whose supervisor has connected.

    Attributes:
        id: The ID that the engine gave it.
        spec: Its specification.
        work_directory: The folder on the host that is mounted into it.
        session: The session with its supervisor.
        group: Its control group; None if the files of the group are not visible.
        process_1: Its process 1, as this machine numbers it; 0 if that is not known.
        isolation: The isolation between two runs in it: `SANDBOX` or `SHARED`.
        isolation_reason: Why the isolation is lower than in the specification; None if it is not lower.
        can_be_recycled: Whether it can be made generic again, and the result can be checked from outside.
        created_ms: The time that its creation took, ms.
        idle_memory: Measures its memory while it is idle; None if its control group is not visible.
        generic_bytes: The memory that it held when it was created, without the page cache.
        base_bytes: The memory that it held just after it was bound, without the page cache.
        held_bytes: The memory that it held when it was last measured without a run, without the page cache.
        sandbox_bytes: The memory of one of its sandboxes before a run; 0 if it has not been measured.
        imports_refusal: Why the supervisor was not asked to import the packages of the code once; `OFF` if
            it was asked, or if the function does not want it.
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
        self.process_1 = 0
        self.isolation = Isolation.SHARED if isolation_reason else spec.isolation
        self.isolation_reason = isolation_reason
        self.idle_memory = None if group is None else IdleMemory(group)
        self.can_be_recycled = False
        self.created_ms = 0.0
        self.generic_bytes = 0
        self.base_bytes = 0
        self.held_bytes = 0
        self.sandbox_bytes = 0
        self.imports_refusal = wire.ImportsState.OFF

    def renew(self, session: Session) -> None:
        """Note that the container is generic again.

        Args:
            session: The session with its new supervisor.
        """
        self.session = session
        self.idle_memory = None if self.group is None else IdleMemory(self.group)
        self.base_bytes = self.held_bytes = self.sandbox_bytes = 0

    @property
    def imports(self) -> wire.ImportsState:
        """Whether the next run gets the packages of its code imported, or the reason if not."""
        return self.session.imports or self.imports_refusal

    @property
    def listening_sockets(self) -> ListeningSockets | None:
        """The sockets at which its runs reach the worker; None if its runs cannot reach the worker."""
        return self.work_directory.socket.listening_sockets


class Driver(Protocol):
    """Creates and removes containers. Methods raise `ContainerError` when the engine fails."""

    async def create(self, spec: ContainerSpec, work_directory: WorkDirectory) -> RunningContainer:
        """Create and start a container, and wait until its supervisor has been configured.

        If the creation fails, no container is left.

        Args:
            spec: The specification of the container.
            work_directory: Its work directory.
        """
        ...

    async def recycle(self, container: RunningContainer) -> None:
        """Make a container generic again: a new supervisor, no code, the limits of its specification.

        Nothing of the function that it has served is left. If that cannot be shown, the container must be
        removed.

        Args:
            container: A container that `can_be_recycled`, and that no job has.

        Raises:
            NotRecycled: Something is left, or the container has died.
        """
        ...

    async def remove(self, container_id: str) -> None:
        """Kill and remove a container, if it exists."""
        ...

    async def set_limits(self, container_id: str, memory_bytes: int, *, share: float, most: float) -> None:
        """Change limits through the engine, for a worker that may not write to the control group.

        Args:
            container_id: The container.
            memory_bytes: The limit of memory. There is no swap.
            share: The CPUs that the container gets under contention.
            most: The CPUs that it may use while they are free.
        """
        ...

    async def ping(self) -> None:
        """Check that the engine answers."""
        ...

    async def remove_strays(self, home: Path) -> int:
        """Remove the stray containers of a worker: those without a work directory.

        They remain after a creation or a removal that failed midway.

        Args:
            home: The folder of the worker.

        Returns:
            The number of containers removed.
        """
        ...

    def deaths(self) -> AsyncIterator[str]:
        """Yield the IDs of containers that die, as they die.

        Raises:
            ContainerError: The engine sends no more events.
        """
        ...
