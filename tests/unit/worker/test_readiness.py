"""Gates: why no jobs are taken, part by part."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from nanoagent.model.errors import ResultStoreError
from nanoagent.telemetry.metrics import Metrics
from nanoagent.telemetry.status import Health
from nanoagent.worker import readiness as gates_module
from nanoagent.worker.readiness import ReadinessCheck, ReadinessChecks

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE_S = 60


class Part:
    """One whose word the test gives.

    Attributes:
        said: What it says, or raises.
        asked: How often it has been asked.
        answers: While it is not set, it does not answer.
        was_asked: Set when it is asked.
    """

    def __init__(self, said: str | Exception | None = None) -> None:
        self.said = said
        self.asked = 0
        self.answers = asyncio.Event()
        self.answers.set()
        self.was_asked = asyncio.Event()

    async def look(self) -> str | None:
        self.asked += 1
        self.was_asked.set()
        await self.answers.wait()
        if isinstance(self.said, Exception):
            raise self.said
        return self.said


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def health(metrics: Metrics) -> Health:
    return Health(metrics.worker.part)


@pytest.fixture
def parts() -> dict[str, Part]:
    return {"results": Part(), "disk": Part()}


@pytest.fixture
def gates(parts: dict[str, Part], health: Health) -> ReadinessChecks:
    return ReadinessChecks([ReadinessCheck(name, part.look) for name, part in parts.items()], health)


def shown(health: Health, part: str) -> tuple[bool, str]:
    found = health.document()["parts"][part]
    return found["ok"], found["reason"]


async def test_jobs_are_taken_while_every_part_is_well(gates: ReadinessChecks, health: Health):
    assert await gates.reason() is None
    assert health.ready


async def test_one_part_that_is_not_well_closes_the_way_for_jobs_and_is_named_everywhere(
    gates: ReadinessChecks, parts: dict[str, Part], health: Health, metrics: Metrics
):
    parts["results"].said = ResultStoreError("Redis is a read-only replica")
    assert await gates.reason() == "Redis is a read-only replica"
    assert shown(health, "results") == (False, "Redis is a read-only replica")
    assert shown(health, "disk") == (True, "")
    assert not health.ready
    values = {
        name: metrics.registry.get_sample_value("worker_part_ok", {"part": name})
        for name in ("results", "disk")
    }
    assert values == {"results": 0.0, "disk": 1.0}


async def test_every_part_that_is_not_well_is_named_at_once(
    gates: ReadinessChecks, parts: dict[str, Part], health: Health
):
    parts["results"].said, parts["disk"].said = "no answer", "3 MiB are free"
    assert await gates.reason() == "no answer; 3 MiB are free"
    assert [shown(health, name)[0] for name in ("results", "disk")] == [False, False]


async def test_what_is_well_again_lets_jobs_in_again(
    gates: ReadinessChecks, parts: dict[str, Part], health: Health
):
    parts["disk"].said = "3 MiB are free"
    assert await gates.reason() is not None
    parts["disk"].said = None
    assert await gates.reason() is None
    assert shown(health, "disk") == (True, "")


async def test_a_part_that_tells_of_itself_is_not_overruled(health: Health):
    pool = Part("all runtimes: no space left")
    health.set("containers", ok=False, reason="go: no such image")
    gates = ReadinessChecks([ReadinessCheck("containers", pool.look, reports_itself=True)], health)
    assert await gates.reason() == "all runtimes: no space left"
    pool.said = None
    assert await gates.reason() is None
    assert shown(health, "containers") == (False, "go: no such image")


async def test_a_part_that_hangs_is_not_well_and_hides_no_other(
    gates: ReadinessChecks, parts: dict[str, Part], health: Health, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gates_module, "CHECK_MAX_S", 0.01)
    parts["results"].answers.clear()
    parts["disk"].said = "3 MiB are free"
    async with asyncio.timeout(DEADLINE_S):
        assert await gates.reason() == "results: the readiness check took longer than 0.01 s; 3 MiB are free"
    assert shown(health, "disk") == (False, "3 MiB are free")


async def test_a_bug_in_a_part_closes_its_gate_and_is_logged(
    gates: ReadinessChecks, parts: dict[str, Part], health: Health
):
    parts["disk"].said = KeyError("x")
    with capture_logs() as logs:
        assert await gates.reason() == "disk: an error inside the worker: KeyError"
    assert logs[0]["event"] == "internal error"
    assert shown(health, "disk")[0] is False


async def test_a_look_under_way_is_shared(gates: ReadinessChecks, parts: dict[str, Part]):
    parts["results"].answers.clear()
    looks = [asyncio.create_task(gates.reason()) for _ in range(5)]
    await parts["results"].was_asked.wait()
    parts["results"].answers.set()
    assert await asyncio.gather(*looks) == [None] * 5
    assert parts["results"].asked == 1


async def test_who_gives_up_a_look_does_not_spoil_it_for_others(
    gates: ReadinessChecks, parts: dict[str, Part]
):
    parts["results"].answers.clear()
    one, other = (asyncio.create_task(gates.reason()) for _ in range(2))
    await parts["results"].was_asked.wait()
    one.cancel()
    parts["results"].answers.set()
    assert await other is None


async def test_the_log_says_an_outage_once_and_how_long_it_was(parts: dict[str, Part], health: Health):
    now = [0.0]
    gates = ReadinessChecks(
        [ReadinessCheck(name, part.look) for name, part in parts.items()], health, clock=lambda: now[0]
    )
    with capture_logs() as logs:
        for now[0], said in ((1.0, "refused"), (2.0, "refused"), (3.0, "silent"), (61.0, None), (62.0, None)):
            parts["results"].said = said
            await gates.reason()
    assert [(line["event"], line.get("reason"), line.get("after_s")) for line in logs] == [
        ("not taking jobs", "refused", None),
        ("taking jobs again", None, 60.0),
    ]


async def test_parts_are_looked_at_also_while_nobody_asks(
    gates: ReadinessChecks, parts: dict[str, Part], health: Health, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gates_module, "_EVERY_S", 0)
    watch = asyncio.create_task(gates.watch())
    try:
        await until(lambda: parts["disk"].asked > 0)
        parts["disk"].said = "3 MiB are free"
        await until(lambda: not health.ready)
        parts["disk"].said = None
        await until(lambda: health.ready)
    finally:
        watch.cancel()
        await asyncio.wait({watch})


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - the watch takes its steps meanwhile
            await asyncio.sleep(0)
