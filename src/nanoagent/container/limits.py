"""Sets the limits of a container: in its control group, or through the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanoagent.model.errors import ContainerError

if TYPE_CHECKING:
    from nanoagent.container.base import Driver, RunningContainer


async def set_limits(
    driver: Driver, container: RunningContainer, memory_bytes: int, *, share: float, most: float
) -> None:
    """Set the limits of memory and CPU.

    Args:
        driver: Sets the limits if the worker may not write to the control group.
        container: The container.
        memory_bytes: The limit of memory. There is no swap.
        share: The CPUs that the container gets under contention.
        most: The CPUs that it may use while they are free.

    Raises:
        ContainerError: The limits could not be set.
    """
    try:
        if container.group is not None:
            container.group.set_memory_limit(memory_bytes)
            container.group.set_cpus(share, most)
            return
    except PermissionError:
        pass  # this worker is not root; Docker is root, but needs a thousand times as long
    except OSError as exc:
        raise ContainerError(f"the container's limits could not be set: {exc}") from exc
    await driver.set_limits(container.id, memory_bytes, share=share, most=most)
