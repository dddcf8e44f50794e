"""Docker Engine as the container driver, over its REST API (≥ 1.41; Podman's socket speaks it too)."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiodocker
import aiohttp
import structlog

from nanoagent.container import cgroup, engine, work_directory
from nanoagent.container.base import RunningContainer, configuration_of, isolation_failure
from nanoagent.container.spec import LABEL_HOME, LABEL_WORKER, ContainerSpec, create_body
from nanoagent.host.shielding import uninterrupted
from nanoagent.model.errors import ContainerError
from nanoagent.model.result import Isolation
from nanoagent.supervisor import wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiodocker.containers import DockerContainer

    from nanoagent.container.work_directory import WorkDirectory
    from nanoagent.supervisor.session import Session

log = structlog.get_logger(__name__)

_CALL_TIMEOUT_S: Final = 60.0
_HELLO_TIMEOUT_S: Final = 30.0
_NO_CONNECTION: Final = 900  # aiodocker's, beyond HTTP's


@asynccontextmanager
async def _translated(doing: str) -> AsyncIterator[None]:
    """Docker's exceptions as ours."""
    try:
        async with asyncio.timeout(_CALL_TIMEOUT_S):
            yield
    except TimeoutError as exc:
        raise ContainerError(f"Docker did not answer within {_CALL_TIMEOUT_S:.0f} s while {doing}") from exc
    except aiodocker.DockerError as exc:
        verb = "cannot be reached" if exc.status == _NO_CONNECTION else "refused"
        raise ContainerError(f"Docker {verb} while {doing}: {exc.message}") from exc
    except (aiohttp.ClientError, OSError, ValueError) as exc:
        raise ContainerError(f"Docker cannot be reached while {doing}: {exc}") from exc


def _is_orphan(home: Path, *, is_running: bool) -> bool:
    """Whether a container's worker is dead.

    Its folder may be out of sight, when the agent has another file system than ours. A container that
    runs then has a living agent: its supervisor ends when the connection does.
    """
    dead = work_directory.worker_is_dead(home)
    return not is_running if dead is None else dead


def _supervisors(spec: ContainerSpec, pid: int) -> frozenset[int]:
    """The user ids that a container's supervisor may have when it connects.

    Args:
        spec: What the container is made from.
        pid: Its process 1, as the host sees it.
    """
    try:
        # Still the container's own map: the supervisor enters a user namespace only when it is configured.
        uid = engine.outside_uid(spec.uid, Path(f"/proc/{pid}/uid_map").read_text())
    except (OSError, ValueError):  # it has ended already, or is another machine's
        uid = spec.uid
    # Behind a kernel of its own (gVisor, a virtual machine) the runtime's helper connects for it, as root,
    # who needs no socket of ours to do as he likes here.
    return frozenset({spec.uid if uid is None else uid} | ({0} if spec.docker_runtime else set()))


def _has_slot(home: Path, names: list[str]) -> bool:
    """Whether the work directory of a container exists. It is created first and removed last."""
    return any(work_directory.is_there(home, name.rsplit("-", 1)[-1]) for name in names)


async def _session(spec: ContainerSpec, work_directory: WorkDirectory) -> Session:
    try:
        return await work_directory.session(_HELLO_TIMEOUT_S)
    except ContainerError as exc:
        if spec.docker_runtime is None:
            raise
        raise ContainerError(
            f"{exc}: under DOCKER_RUNTIME={spec.docker_runtime} the socket in its work directory may be out "
            "of its reach; gVisor takes --host-uds=open (docs/outer-walls.md)"
        ) from exc


class DockerDriver:
    """Implements `container.base.Driver`; also finds images and what dead workers left.

    The engine is where DOCKER_HOST or Docker's own context says.
    """

    def __init__(self) -> None:
        self._docker: aiodocker.Docker | None = None

    async def _engine(self) -> aiodocker.Docker:
        if self._docker is None:
            try:
                self._docker = aiodocker.Docker()
            except ValueError as exc:
                raise ContainerError(
                    "no Docker Engine was found: install one (make setup) or set DOCKER_HOST"
                ) from exc
        return self._docker

    async def create(self, spec: ContainerSpec, work_directory: WorkDirectory) -> RunningContainer:  # noqa: D102 - see Driver
        await work_directory.listen()
        if spec.isolation is not Isolation.SANDBOX:
            work_directory.name_user(spec.uid)
        # A task of its own: the engine goes on making a container when whoever asked for it is cancelled.
        making = asyncio.create_task(self._make(spec))
        try:
            container = await asyncio.shield(making)
            async with _translated(f"starting a container of {spec.image}"):
                await container.start()
            pid = int((await self._inspect(container.id))["State"]["Pid"])
            work_directory.admit(_supervisors(spec, pid))
            session = await _session(spec, work_directory)
            await session.greet()
            level, reason = await session.configure(configuration_of(spec))
            work_directory.take_listening_sockets(spec.listening_addresses, kept=level == wire.LEVEL_SHARED)
            group = cgroup.find(pid)
            why_not = isolation_failure(spec, level, reason)
            return RunningContainer(container.id, spec, work_directory, session, group, why_not)
        except BaseException:
            # A cancelled creation must not leave a container behind either.
            await uninterrupted(self._unmake(making, spec.name))
            raise

    async def _make(self, spec: ContainerSpec) -> DockerContainer:
        docker = await self._engine()
        async with _translated(f"making a container of {spec.image}"):
            return await docker.containers.create(create_body(spec), name=spec.name)

    async def _unmake(self, making: asyncio.Task[DockerContainer], name: str) -> None:
        try:
            container = await making
        except ContainerError:
            # The engine may have made it all the same, after we had stopped waiting for its answer.
            await self._remove_quietly(name)
        else:
            await self._remove_quietly(container.id)

    async def _inspect(self, container_id: str) -> dict[str, Any]:
        docker = await self._engine()
        async with _translated("inspecting a container"):
            return dict(await docker.containers.container(container_id).show())

    async def _remove_quietly(self, container_id: str) -> None:
        try:
            await self.remove(container_id)
        except ContainerError as exc:
            log.warning("container not removed", container=container_id[:12], reason=str(exc))

    async def remove(self, container_id: str) -> None:  # noqa: D102
        docker = await self._engine()
        async with _translated("removing a container"):
            try:
                await docker.containers.container(container_id).delete(force=True, v=True)
            except aiodocker.DockerError as exc:
                # 404: gone already. 409: its removal is under way.
                if exc.status not in {404, 409}:
                    raise

    async def set_limits(  # noqa: D102
        self, container_id: str, memory_bytes: int, *, share: float, most: float
    ) -> None:
        docker = await self._engine()
        limits = {
            "Memory": memory_bytes,
            "MemorySwap": memory_bytes,
            "CpuPeriod": 100_000,
            "CpuQuota": int(most * 100_000),
            "CpuShares": max(2, int(share * 1024)),
        }
        async with _translated("changing a container's limits"):
            # aiodocker has no call for it.
            await docker._query_json(f"containers/{container_id}/update", method="POST", data=limits)  # noqa: SLF001

    async def deaths(self) -> AsyncIterator[str]:  # noqa: D102
        docker = await self._engine()
        subscriber = docker.events.subscribe(  # type: ignore[no-untyped-call]
            # From now, not from when the request arrives: the engine tells again what it has told meanwhile.
            since=f"{time.time():.6f}",
            filters='{"type":["container"],"event":["die"],"label":["' + LABEL_WORKER + '"]}',
        )
        try:
            while (event := await subscriber.get()) is not None:
                if event.get("Action") == "die":
                    yield str(event.get("Actor", {}).get("ID", ""))
        finally:
            # Its reader may have failed long ago; stop() would raise that here.
            with suppress(aiodocker.DockerError, aiohttp.ClientError, OSError):
                await docker.events.stop()  # type: ignore[no-untyped-call]
        raise ContainerError("Docker's events ended")

    async def image_id(self, image: str) -> str:
        """The id of an image, which names its whole content.

        Raises:
            ContainerError: It is not there, with the remedy, or Docker cannot be asked.
        """
        docker = await self._engine()
        async with _translated(f"looking for the image {image}"):
            try:
                return str((await docker.images.inspect(image))["Id"])
            except aiodocker.DockerError as exc:
                if exc.status == 404:
                    raise ContainerError(
                        f"the image {image} is not there: build it (make images) or pull it"
                    ) from exc
                raise

    async def remove_orphans(self, own_home: Path) -> int:
        """Remove the containers of workers that are dead; returns how many.

        A worker is dead when nobody holds the lock in its folder, which its containers name in a label.

        Args:
            own_home: This worker's, which has made no container yet: what names it is a predecessor's.
        """
        docker = await self._engine()
        async with _translated("listing containers"):
            containers = await docker.containers.list(
                all=1, filters='{"label":["' + LABEL_WORKER + '","' + LABEL_HOME + '"]}'
            )
        homes = {container.id: Path(container["Labels"][LABEL_HOME]) for container in containers}
        running = {container.id for container in containers if container["State"] == "running"}
        dead = [
            container_id
            for container_id, home in homes.items()
            if home == own_home or _is_orphan(home, is_running=container_id in running)
        ]
        for container_id in dead:
            await self._remove_quietly(container_id)
        for home in {homes[container_id] for container_id in dead} - {own_home}:
            await asyncio.to_thread(work_directory.remove_home, home)
        return len(dead)

    async def remove_strays(self, home: Path) -> int:  # noqa: D102 - see Driver
        docker = await self._engine()
        async with _translated("listing containers"):
            filters = {"label": [f"{LABEL_HOME}={home}"]}
            containers = await docker.containers.list(all=1, filters=json.dumps(filters))
        strays = [container.id for container in containers if not _has_slot(home, container["Names"])]
        for container_id in strays:
            await self.remove(container_id)
        return len(strays)

    async def confines_with_apparmor(self) -> bool:
        """Whether the engine puts every container under an AppArmor profile."""
        docker = await self._engine()
        async with _translated("asking how it confines containers"):
            options = (await docker.system.info()).get("SecurityOptions") or []
        return any("name=apparmor" in option for option in options)

    async def ask(self, path: str) -> dict[str, Any]:
        """The engine's answer to a GET of its API, as it stands; what `nanoagent doctor` looks with.

        Raises:
            ContainerError: It does not answer, or says no; the cause is the client's own exception.
        """
        docker = await self._engine()
        async with _translated(f"asking for /{path}"):
            return dict(await docker._query_json(path))  # noqa: SLF001 - as above

    async def ping(self) -> None:
        """Succeed when the engine answers."""
        docker = await self._engine()
        async with _translated("asking for its version"):
            await docker.version()

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        if self._docker is not None:
            await self._docker.close()
            self._docker = None
