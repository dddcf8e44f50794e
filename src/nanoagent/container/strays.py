"""Finds and removes stray containers of this worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from nanoagent.model.errors import ContainerError

if TYPE_CHECKING:
    from nanoagent.container.base import Driver
    from nanoagent.container.worker_home import WorkerHome

log = structlog.get_logger(__name__)


class Strays:
    """Containers without a work directory: leftovers of a creation or a removal that failed midway.

    It owns the knowledge whether there may be any. Docker is asked only then.

    Args:
        driver: Finds and removes them.
        home: The worker's folder.
    """

    def __init__(self, driver: Driver, home: WorkerHome) -> None:
        self._driver = driver
        self._home = home
        self._may_exist = False

    def suspect(self) -> None:
        """Note that there may be stray containers."""
        self._may_exist = True

    async def remove(self) -> None:
        """Remove stray containers, if there may be any."""
        if not self._may_exist:
            return
        self._may_exist = False
        try:
            removed = await self._driver.remove_strays(self._home.path)
        except ContainerError as exc:
            self._may_exist = True
            log.warning("stray containers not removed", reason=str(exc))
            return
        if removed:
            log.info("removed stray containers", count=removed)
