"""Creates and removes containers with Docker."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nanoagent.container import cgroup, engine, proof, worker_home
from nanoagent.container.base import (
    NotRecycled,
    RecyclingFailure,
    RunningContainer,
    configuration_of,
    isolation_failure,
)
from nanoagent.container.docker_client import DockerClient
from nanoagent.container.limits import set_limits
from nanoagent.container.spec import (
    LABEL_HOME,
    LABEL_WORKER,
    ContainerSpec,
    cpu_limits,
    create_body,
    memory_limit,
)
from nanoagent.host.shielding import uninterrupted
from nanoagent.model.errors import ContainerError
from nanoagent.model.result import Isolation
from nanoagent.supervisor import wire
from nanoagent.supervisor.launcher import ResidueFound

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nanoagent.container.work_directory import WorkDirectory
    from nanoagent.supervisor.session import Session

_HELLO_TIMEOUT_S: Final = 30.0
_CLEAN_TIMEOUT_S: Final = 5.0  # it takes 10 ms, and a second on an overloaded machine


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
        await work_directory.socket.listen(launcher=spec.isolation is Isolation.SANDBOX)
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
            work_directory.launcher = work_directory.socket.take_launcher(pid)
            failure = await _configure(spec, work_directory, session)
            group = cgroup.find(pid)
            container = RunningContainer(container_id, spec, work_directory, session, group, failure)
        except BaseException:
            # A failed or cancelled creation must not leave a container behind.
            await uninterrupted(self._undo(creation, spec.name))
            raise
        launcher = work_directory.launcher
        container.process_1 = pid
        container.can_be_recycled = launcher is not None and launcher.is_process_1 and group is not None
        return container

    async def _undo(self, creation: asyncio.Task[str], name: str) -> None:
        try:
            container_id = await creation
        except ContainerError:
            # Docker may have created the container after the timeout of the call.
            await self.client.try_to_remove_container(name)
        else:
            await self.client.try_to_remove_container(container_id)

    async def recycle(self, container: RunningContainer) -> None:  # noqa: D102
        try:
            async with asyncio.timeout(_CLEAN_TIMEOUT_S):
                await _clean(container)
            await self._make_generic(container)
        except TimeoutError as exc:
            reason = f"the launcher did not answer within {_CLEAN_TIMEOUT_S:.0f} s"
            raise NotRecycled(RecyclingFailure.TIMEOUT, reason) from exc
        except ResidueFound as exc:
            raise NotRecycled(RecyclingFailure.RESIDUE, str(exc)) from exc
        except NotRecycled:
            raise
        except (ContainerError, OSError) as exc:
            raise NotRecycled(RecyclingFailure.ERROR, str(exc)) from exc

    async def _make_generic(self, container: RunningContainer) -> None:
        """Start a new supervisor in a clean container, as after the creation."""
        spec, work_directory = container.spec, container.work_directory
        assert work_directory.launcher is not None  # noqa: S101 - `_clean` has used it
        await work_directory.clear()
        await set_limits(self, container, memory_limit(spec), share=spec.cpus, most=spec.cpus)
        await work_directory.socket.listen()
        work_directory.socket.admit(_supervisor_uids(spec, container.process_1))
        await work_directory.launcher.start_supervisor()
        session = await _session(spec, work_directory)
        failure = await _configure(spec, work_directory, session)
        if failure is not None:
            raise ContainerError(failure)
        container.renew(session)

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


async def _clean(container: RunningContainer) -> None:
    """End the session, let the launcher clean its container, and check the result from outside."""
    launcher, group = container.work_directory.launcher, container.group
    if launcher is None or group is None or not container.can_be_recycled:
        raise ContainerError("it has no launcher that can be checked from outside")
    await launcher.begin_cleaning()
    await container.work_directory.renew_socket()
    await launcher.finish_cleaning()
    await proof.check_alone(group, container.process_1)


async def _configure(spec: ContainerSpec, work_directory: WorkDirectory, session: Session) -> str | None:
    """Greet and configure a supervisor; return why it did not reach the isolation level, or None."""
    await session.greet()
    level, reason = await session.configure(configuration_of(spec))
    work_directory.socket.take_listening_sockets(spec.listening_addresses, kept=level == wire.LEVEL_SHARED)
    return isolation_failure(spec, level, reason)


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
