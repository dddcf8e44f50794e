"""How the agent starts and ends around its worker: notices of the cloud, systemd, parts that do not close."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from nanoagent import app
from nanoagent.aws.interruption import InterruptionWatcher
from nanoagent.model.errors import ConfigError
from nanoagent.telemetry.status import Health
from nanoagent.wiring import assembly, closing, interruption
from nanoagent.worker.readiness import ReadinessCheck, ReadinessChecks
from support.agents.worker_rig import Rig
from support.doubles.fakes import DEADLINE_S, make_settings, message
from support.services.metadata_service import SPOT, MetadataService, metadata_service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.fixture
async def service(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MetadataService]:
    async with metadata_service() as service:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.url)
        monkeypatch.delenv("AWS_EC2_METADATA_DISABLED", raising=False)
        yield service


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Its end of the socket that it gives to services."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(DEADLINE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield channel


# --- notices


async def test_a_worker_does_not_start_while_a_notice_stands_and_says_why(service, systemd, monkeypatch):
    monkeypatch.setattr(InterruptionWatcher.__init__, "__kwdefaults__", {"poll_s": 0.01})
    health = Health()
    service.interrupt("stop", time.time())
    async with AsyncExitStack() as opened, asyncio.timeout(DEADLINE_S):
        with capture_logs() as logs:
            opening = asyncio.create_task(
                interruption.open_watcher(make_settings(interruption_notices="ec2"), health, opened)
            )
            await service.until_asked(SPOT, times=3)
            assert not opening.done()
            part = health.document()["parts"]["drain"]
            assert not part["ok"]
            assert "not started: EC2 is about to stop" in part["reason"]
            del service.values[SPOT]
            assert await opening is not None
        assert health.ready
        assert [entry["event"] for entry in logs] == ["start delayed by interruption notice"]
        assert systemd.recv(1000) == b"EXTEND_TIMEOUT_USEC=60000000"


async def test_metadata_that_may_not_be_asked_is_not(service, monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    async with AsyncExitStack() as opened:
        with capture_logs() as logs:
            settings = make_settings(interruption_notices="ec2")
            assert await interruption.open_watcher(settings, Health(), opened) is None
    assert [entry["log_level"] for entry in logs] == ["warning"]
    assert service.asked == []


async def test_nothing_is_asked_unless_it_is_configured(service):
    async with AsyncExitStack() as opened:
        assert await interruption.open_watcher(make_settings(), Health(), opened) is None
    assert service.asked == []


async def test_a_notice_drains_the_worker_in_the_time_that_it_leaves(service, systemd, tmp_path):
    rig = Rig(tmp_path, drain_seconds=3600)
    rig.hold("r1")
    await rig.broker.send(message("r1"))
    run = rig.start()
    await rig.journal.until_noted("running", "r1")
    async with AsyncExitStack() as opened, asyncio.timeout(DEADLINE_S):
        notices = await opened.enter_async_context(InterruptionWatcher(service.url, poll_s=0.01))
        service.interrupt("terminate", time.time() + 120)
        interruption.drain_on_notice(notices, rig.worker, rig.settings, opened)
        await _until_draining(rig)
        assert 0 < rig.worker._lifecycle.left_s() <= 120 - interruption.NOTICE_RESERVE_S
        service.interrupt("terminate", time.time())
        await run
    assert systemd.recv(1000).startswith(b"STOPPING=1\nEXTEND_TIMEOUT_USEC=")
    assert len(rig.broker.returned) == 1


async def _until_draining(rig: Rig) -> None:
    while "drain" not in rig.health.document()["parts"]:  # noqa: ASYNC110 - health has no event
        await asyncio.sleep(0)  # another turn of this loop is what makes it so


# --- the first answers


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

    async def why_no_jobs(self) -> str | None:
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


# --- the end


async def test_systemd_is_asked_for_as_long_as_a_drain_may_take(systemd, tmp_path):
    rig = Rig(tmp_path, drain_seconds=3600)
    run = rig.start()
    app._stop(rig.worker, rig.settings)
    stopping, extend = systemd.recv(1000).decode().splitlines()
    assert stopping == "STOPPING=1"
    assert int(extend.removeprefix("EXTEND_TIMEOUT_USEC=")) == (3600 + closing.STOP_TAIL_S) * 1_000_000
    rig.worker.stop()
    await run


async def test_a_part_that_does_not_close_keeps_the_others_from_nothing():
    closed: list[str] = []

    async def hang() -> None:
        await asyncio.Event().wait()

    async def close() -> None:
        closed.append("last")

    with capture_logs() as logs:
        async with asyncio.timeout(DEADLINE_S):
            async with AsyncExitStack() as opened:
                closing.close_within(opened, "last", close, 3600)
                closing.close_within(opened, "hanging", hang, 0.01)
    assert closed == ["last"]
    assert [(entry["event"], entry["part"]) for entry in logs] == [("not closed in time", "hanging")]


async def test_a_worker_refuses_a_cache_that_it_cannot_make_by_the_settings_name():
    settings = make_settings(code_cache_dir="/proc/cache", metrics_host="127.0.0.1", metrics_port=0)
    async with AsyncExitStack() as opened:
        with pytest.raises(ConfigError, match=r"^CODE_CACHE_DIR: /proc/cache cannot be made or written"):
            await assembly.assemble(settings, opened)
