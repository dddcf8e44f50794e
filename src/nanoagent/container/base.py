"""The port to a container engine, and what a container is to the rest of the agent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nanoagent.container.cgroup import ControlGroup
    from nanoagent.container.slot import Slot
    from nanoagent.container.spec import ContainerSpec
    from nanoagent.runtime.session import Session


class RunningContainer:
    """A container whose supervisor has connected.

    Attributes:
        id: The engine's name for it.
        spec: What it was made from.
        slot: Its folder on the host.
        session: The conversation with its supervisor.
        group: Its control group, None where its files cannot be seen.
        base_bytes: What it held, page cache excluded, when it was bound and no run had begun.
    """

    def __init__(
        self, container_id: str, spec: ContainerSpec, slot: Slot, session: Session, group: ControlGroup | None
    ) -> None:
        self.id = container_id
        self.spec = spec
        self.slot = slot
        self.session = session
        self.group = group
        self.base_bytes = 0


class Driver(Protocol):
    """Makes and removes containers. Methods raise `ContainerError` when the engine fails."""

    async def create(self, spec: ContainerSpec, slot: Slot) -> RunningContainer:
        """Make and start a container, and wait until its supervisor has said hello.

        When it raises, nothing of the container is left.
        """
        ...

    async def remove(self, container_id: str) -> None:
        """Kill and remove; a container that is gone already is fine."""
        ...

    async def set_limits(self, container_id: str, memory_bytes: int, cpus: float) -> None:
        """Change limits through the engine, for an agent that may not write the control group."""
        ...

    def deaths(self) -> AsyncIterator[str]:
        """The ids of containers that die, as they do; raises when the engine cannot be heard any more."""
        ...
