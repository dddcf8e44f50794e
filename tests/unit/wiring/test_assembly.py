"""The start of the worker: readiness, and refusals."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from nanoagent.model.errors import ConfigError
from nanoagent.telemetry.status import Health
from nanoagent.wiring import assembly
from nanoagent.worker.readiness import ReadinessCheck, ReadinessChecks
from support.doubles.fakes import DEADLINE_S, make_settings


class Parts:
    """Parts that are not well when they are first looked at.

    Args:
        not_well: How many looks find a part not well, by its name.
    """

    def __init__(self, **not_well: int) -> None:
        self.not_well = not_well
        self.looks: list[str] = []

    def look(self, name: str) -> str | None:
        self.looks.append(name)
        return "not answered" if self.looks.count(name) <= self.not_well[name] else None

    def gate(self, name: str) -> ReadinessCheck:
        async def look() -> str | None:
            return self.look(name)

        return ReadinessCheck(name, look)

    async def not_ready_reason(self) -> str | None:
        """As the worker's own gates say it."""
        return self.look("results")


async def test_a_worker_is_not_ready_before_every_part_has_answered_once(systemd, monkeypatch):
    monkeypatch.setattr(assembly, "_RETRY_S", 0)
    health, parts = Health(), Parts(queue=1, storage=2, results=1)
    first = ReadinessChecks([parts.gate("queue"), parts.gate("storage")], health)
    async with asyncio.timeout(DEADLINE_S):
        await assembly.wait_until_ready(first, parts)  # type: ignore[arg-type]
    assert parts.looks == [*(["queue", "storage"] * 3), "results", "queue", "storage", "results"]
    assert health.ready
    # A slow start is not a failed one: systemd is asked for more time, each time.
    assert [systemd.recv(1000) for _ in range(3)] == [b"EXTEND_TIMEOUT_USEC=60000000"] * 3


async def test_a_worker_refuses_a_cache_that_it_cannot_make_by_the_settings_name():
    settings = make_settings(code_cache_dir="/proc/cache", metrics_host="127.0.0.1", metrics_port=0)
    async with AsyncExitStack() as opened:
        with pytest.raises(ConfigError, match=r"^CODE_CACHE_DIR: /proc/cache cannot be made or written"):
            await assembly.assemble(settings, opened)
