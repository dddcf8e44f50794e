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
    """Stray containers: those without a work directory. A creation or removal that failed midway leaves them.

    This object remembers whether stray containers may exist. It asks Docker only if they may.

    Args:
        driver: Finds and removes stray containers.
        home: The worker's folder.
    """

    def __init__(self, driver: Driver, home: WorkerHome) -> None:
        self._driver = driver
        self._home = home
        self._may_exist = False

    def suspect(self) -> None:
        """Note that stray containers may exist."""
        self._may_exist = True

    async def remove(self) -> None:
        """Remove stray containers, if any may exist."""
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
            log.info("stray containers removed", count=removed)
