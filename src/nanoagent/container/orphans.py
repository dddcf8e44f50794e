"""Removes the containers of dead workers, at the start of a worker."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from nanoagent.container import worker_home
from nanoagent.container.spec import LABEL_HOME, LABEL_WORKER

if TYPE_CHECKING:
    from nanoagent.container.docker_client import DockerClient


async def remove_orphans(client: DockerClient, own_home: Path) -> int:
    """Remove the containers of dead workers, and the folders of these workers.

    A worker is dead if the lock in its folder is free. A label of its containers names the folder.

    Args:
        client: Calls Docker.
        own_home: The folder of this worker. This worker has no container yet. So a container whose label
            names this folder belongs to an earlier worker with the same ID.

    Returns:
        The number of containers of dead workers.
    """
    containers = await client.list_containers(LABEL_WORKER, LABEL_HOME)
    homes = {container.id: Path(container["Labels"][LABEL_HOME]) for container in containers}
    running = {container.id for container in containers if container["State"] == "running"}
    orphans = [
        container_id
        for container_id, home in homes.items()
        if home == own_home or _is_orphan(home, is_running=container_id in running)
    ]
    for container_id in orphans:
        await client.try_to_remove_container(container_id)
    for home in {homes[container_id] for container_id in orphans} - {own_home}:
        await asyncio.to_thread(worker_home.remove_if_dead, home)
    return len(orphans)


def _is_orphan(home: Path, *, is_running: bool) -> bool:
    """Whether the worker of a container is dead.

    The folder of that worker is invisible here if it is on another file system. In that case, a running
    container shows that its worker lives: a supervisor ends when its connection to the worker closes.
    """
    dead = worker_home.is_worker_dead(home)
    return not is_running if dead is None else dead
