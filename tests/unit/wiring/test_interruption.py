"""The reaction to EC2's interruption notices: the start waits, and a running worker drains."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from nanoagent.aws.interruption import InterruptionWatcher
from nanoagent.telemetry.status import Health
from nanoagent.wiring import interruption
from support.agents.worker_rig import Rig
from support.doubles.fakes import DEADLINE_S, make_settings, message
from support.services.metadata_service import SPOT, MetadataService, metadata_service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def service(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MetadataService]:
    async with metadata_service() as service:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.url)
        monkeypatch.delenv("AWS_EC2_METADATA_DISABLED", raising=False)
        yield service


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
