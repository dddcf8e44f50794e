"""Containers without Docker: `container.base.Driver` with a fake supervisor in this process for each."""

from __future__ import annotations

import asyncio
import itertools
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nanoagent.common.units import MIB
from nanoagent.container.base import (
    NotRecycled,
    RecyclingFailure,
    RunningContainer,
    configuration_of,
    isolation_failure,
)
from nanoagent.container.policy import PoolPolicy
from nanoagent.container.spec import Limits
from nanoagent.model.errors import ContainerError
from nanoagent.model.job import Runtime
from nanoagent.supervisor import wire
from support.doubles.fake_supervisor import FakeSupervisor, Script

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from nanoagent.container.cgroup import ControlGroup
    from nanoagent.container.spec import ContainerSpec
    from nanoagent.container.work_directory import WorkDirectory
    from nanoagent.supervisor.session import Session

_HELLO_TIMEOUT_S = 10.0


def fake_policy(**changes: Any) -> PoolPolicy:
    """Return the settings of a pool that keeps no containers ready; `changes` are fields of `PoolPolicy`."""
    fields: dict[str, Any] = {
        "images": {runtime: f"image-{runtime}" for runtime in Runtime},
        "sizes": dict.fromkeys(Runtime, 0),
        "memory_mb": 1024,
        "generic_cpus": 0.5,
        "idle_s": 60,
        "max_runs": 100,
        "max_age_s": 1000,
        "uid_base": 1_900_000_000,
        "limits": Limits(64, MIB, MIB, MIB, 64),
    }
    return PoolPolicy(**(fields | changes))


@dataclass(slots=True)
class FakeContainer:
    """A running container.

    Attributes:
        spec: Its specification.
        supervisor: Its process 1.
        serving: The supervisor's task.
        limits: Memory in bytes, CPU share and most CPUs, if they were set through the engine.
    """

    spec: ContainerSpec
    supervisor: FakeSupervisor
    serving: asyncio.Task[None]
    limits: tuple[int, float, float] | None = None


@dataclass(slots=True)
class FakeDriver:
    """See the module. Everything runs under this process's user ID, which the work directories accept.

    Attributes:
        script: The script of the supervisors of new containers.
        group: The control group of new containers, if any.
        failures: The reasons with which the next creations fail, one for each.
        broken: If set, the reason with which every creation fails.
        recyclable: Whether new containers can be recycled.
        residues: The kinds of failure of the next recyclings, one for each.
        may_recycle: Recyclings wait until it is set. It is set at the start.
        recycled: The IDs of all recycled containers, in order.
        away: If set, the reason why the engine is unavailable.
        answers: Checks of the engine wait until it is set. It is set at the start.
        may_create: Creations wait until it is set. It is set at the start.
        may_remove: Removals wait until it is set. It is set at the start.
        creating: The creations that are under way.
        running: Containers by ID.
        created: The specifications of all created containers, in order.
        removed: The IDs of all removed containers, in order.
    """

    script: Script = field(default_factory=Script)
    group: ControlGroup | None = None
    failures: list[str] = field(default_factory=list)
    broken: str | None = None
    recyclable: bool = False
    residues: list[RecyclingFailure] = field(default_factory=list)
    may_recycle: asyncio.Event = field(default_factory=asyncio.Event)
    recycled: list[str] = field(default_factory=list)
    away: str | None = None
    answers: asyncio.Event = field(default_factory=asyncio.Event)
    may_create: asyncio.Event = field(default_factory=asyncio.Event)
    may_remove: asyncio.Event = field(default_factory=asyncio.Event)
    creating: int = 0
    running: dict[str, FakeContainer] = field(default_factory=dict)
    created: list[ContainerSpec] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _deaths: asyncio.Queue[str | None] = field(default_factory=asyncio.Queue)

    def __post_init__(self) -> None:
        self.answers.set()
        self.may_create.set()
        self.may_recycle.set()
        self.may_remove.set()

    async def create(self, spec: ContainerSpec, directory: WorkDirectory) -> RunningContainer:
        self.creating += 1
        supervisor = FakeSupervisor(self.script)
        serving = None
        try:
            await directory.socket.listen(os.getuid())
            await self.may_create.wait()
            self._fail_on_demand()
            serving = asyncio.create_task(supervisor.serve(directory.path / "agent.sock"))
            session, failure = await _configured_session(spec, directory)
        except BaseException:
            if serving is not None:
                await _end(supervisor, serving)
            raise
        finally:
            self.creating -= 1
        container_id = f"fake-{next(self._numbers)}"
        self.running[container_id] = FakeContainer(spec, supervisor, serving)
        self.created.append(spec)
        container = RunningContainer(container_id, spec, directory, session, self.group, failure)
        container.can_be_recycled = self.recyclable
        return container

    async def recycle(self, container: RunningContainer) -> None:
        await self.may_recycle.wait()
        fake = self.running.get(container.id)
        if fake is None or fake.serving.done():
            raise NotRecycled(RecyclingFailure.ERROR, "the container has ended")
        if self.residues:
            raise NotRecycled(self.residues.pop(0), "residue was planted")
        directory = container.work_directory
        await _end(fake.supervisor, fake.serving)
        await directory.renew_socket()
        await directory.clear()
        await directory.socket.listen(os.getuid())
        fake.supervisor = FakeSupervisor(self.script)
        fake.serving = asyncio.create_task(fake.supervisor.serve(directory.path / "agent.sock"))
        session, _ = await _configured_session(container.spec, directory)
        container.renew(session)
        self.recycled.append(container.id)

    def _fail_on_demand(self) -> None:
        self._fail_when_away()
        reason = self.failures.pop(0) if self.failures else self.broken
        if reason is not None:
            raise ContainerError(reason)

    async def remove(self, container_id: str) -> None:
        await self.may_remove.wait()
        self._fail_when_away()
        container = self.running.pop(container_id, None)
        if container is not None:
            self.removed.append(container_id)
            await _end(container.supervisor, container.serving)
            self._deaths.put_nowait(container_id)

    async def ping(self) -> None:
        await self.answers.wait()
        self._fail_when_away()

    async def remove_strays(self, home: Path) -> int:
        self._fail_when_away()
        strays = [
            container_id
            for container_id, container in self.running.items()
            if not container.spec.work_directory.is_dir() and container.spec.home == home
        ]
        for container_id in strays:
            await self.remove(container_id)
        return len(strays)

    def _fail_when_away(self) -> None:
        if self.away is not None:
            raise ContainerError(self.away)

    async def set_limits(self, container_id: str, memory_bytes: int, *, share: float, most: float) -> None:
        if container_id not in self.running:
            raise ContainerError("no such container")
        self.running[container_id].limits = (memory_bytes, share, most)

    async def deaths(self) -> AsyncIterator[str]:
        while (container_id := await self._deaths.get()) is not None:
            yield container_id
        raise ContainerError("the events ended")

    def kill(self, container_id: str, *, silently: bool = False) -> None:
        """End a container's process 1, and report its death unless `silently`."""
        self.running[container_id].supervisor.die()
        if not silently:
            self._deaths.put_nowait(container_id)

    def end_events(self) -> None:
        """End the streams of container deaths."""
        self._deaths.put_nowait(None)

    async def close(self) -> None:
        self.away = None
        for container_id in list(self.running):
            await self.remove(container_id)


async def _configured_session(spec: ContainerSpec, directory: WorkDirectory) -> tuple[Session, str | None]:
    session = await directory.socket.session(_HELLO_TIMEOUT_S)
    await session.greet()
    level, reason = await session.configure(configuration_of(spec))
    directory.socket.take_listening_sockets(spec.listening_addresses, kept=level == wire.LEVEL_SHARED)
    return session, isolation_failure(spec, level, reason)


async def _end(supervisor: FakeSupervisor, serving: asyncio.Task[None]) -> None:
    supervisor.die()
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
