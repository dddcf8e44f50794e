"""Creates and removes containers with Docker."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nanoagent.container import cgroup, engine, worker_home
from nanoagent.container.base import RunningContainer, configuration_of, isolation_failure
from nanoagent.container.docker_client import DockerClient
from nanoagent.container.spec import LABEL_HOME, LABEL_WORKER, ContainerSpec, cpu_limits, create_body
from nanoagent.host.shielding import uninterrupted
from nanoagent.model.errors import ContainerError
from nanoagent.model.result import Isolation
from nanoagent.supervisor import wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nanoagent.container.work_directory import WorkDirectory
    from nanoagent.supervisor.session import Session

_HELLO_TIMEOUT_S: Final = 30.0


class DockerDriver:
    """Implements `container.base.Driver`.

    Attributes:
        client: Calls Docker.
    """

    def __init__(self) -> None:
        self.client = DockerClient()

    async def close(self) -> None:
        """Close the connections to Docker. Idempotent."""
        await self.client.close()

    async def create(self, spec: ContainerSpec, work_directory: WorkDirectory) -> RunningContainer:  # noqa: D102 - see Driver
        await work_directory.socket.listen()
        if spec.isolation is not Isolation.SANDBOX:
            # The image's /etc/passwd has the user of a sandbox, but not this user.
            work_directory.name_user(spec.uid)
        body = create_body(spec)
        # A separate task: if the caller is cancelled, Docker still continues the creation.
        creation = asyncio.create_task(self.client.create_container(spec.image, body, spec.name))
        try:
            container_id = await asyncio.shield(creation)
            await self.client.start_container(spec.image, container_id)
            pid = int((await self.client.inspect_container(container_id))["State"]["Pid"])
            work_directory.socket.admit(_supervisor_uids(spec, pid))
            session = await _session(spec, work_directory)
            await session.greet()
            level, reason = await session.configure(configuration_of(spec))
            work_directory.socket.take_listening_sockets(
                spec.listening_addresses, kept=level == wire.LEVEL_SHARED
            )
            group = cgroup.find(pid)
            failure = isolation_failure(spec, level, reason)
            return RunningContainer(container_id, spec, work_directory, session, group, failure)
        except BaseException:
            # A failed or cancelled creation must not leave a container behind.
            await uninterrupted(self._undo(creation, spec.name))
            raise

    async def _undo(self, creation: asyncio.Task[str], name: str) -> None:
        try:
            container_id = await creation
        except ContainerError:
            # Docker may have created the container after the timeout of the call.
            await self.client.try_to_remove_container(name)
        else:
            await self.client.try_to_remove_container(container_id)

    async def remove(self, container_id: str) -> None:  # noqa: D102
        await self.client.remove_container(container_id)

    async def set_limits(  # noqa: D102
        self, container_id: str, memory_bytes: int, *, share: float, most: float
    ) -> None:
        limits = {"Memory": memory_bytes, "MemorySwap": memory_bytes} | cpu_limits(share, most)
        await self.client.update_container(container_id, limits)

    async def ping(self) -> None:  # noqa: D102
        await self.client.ping()

    def deaths(self) -> AsyncIterator[str]:  # noqa: D102
        return self.client.container_deaths(LABEL_WORKER)

    async def remove_strays(self, home: Path) -> int:  # noqa: D102
        containers = await self.client.list_containers(f"{LABEL_HOME}={home}")
        # A stray has no work directory. An orphan is another thing: a container of a dead worker.
        strays = [
            container.id for container in containers if not _has_work_directory(home, container["Names"])
        ]
        for container_id in strays:
            await self.client.remove_container(container_id)
        return len(strays)


def _supervisor_uids(spec: ContainerSpec, pid: int) -> frozenset[int]:
    """Return the user IDs that a supervisor may have when it connects.

    Args:
        spec: The specification of the container.
        pid: Process 1 of the container, as the host numbers it.
    """
    try:
        # This file shows the map of the container, not of a sandbox: the supervisor enters its own user
        # namespace only after it has been configured.
        uid = engine.outside_uid(spec.uid, Path(f"/proc/{pid}/uid_map").read_text())
    except (OSError, ValueError):  # the process has ended, or runs on another machine
        uid = spec.uid
    # If the container has a separate kernel (gVisor, a virtual machine), a helper of the runtime connects, as
    # root. So root is also admitted. This is no risk: root on the host can do everything without this socket.
    return frozenset({spec.uid if uid is None else uid} | ({0} if spec.docker_runtime else set()))


async def _session(spec: ContainerSpec, work_directory: WorkDirectory) -> Session:
    try:
        return await work_directory.socket.session(_HELLO_TIMEOUT_S)
    except ContainerError as exc:
        if spec.docker_runtime is None:
            raise
        raise ContainerError(
            f"{exc}: under DOCKER_RUNTIME={spec.docker_runtime} the container possibly cannot reach the "
            "socket in its work directory; gVisor needs --host-uds=open (docs/outer-walls.md)"
        ) from exc


def _has_work_directory(home: Path, names: list[str]) -> bool:
    """Whether the work directory of a container exists. It is made before the container.

    Args:
        home: The folder of the worker.
        names: The names of the container. The last part of a name is the name of the work directory.
    """
    return any(worker_home.has_work_directory(home, name.rsplit("-", 1)[-1]) for name in names)
