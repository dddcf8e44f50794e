from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from nanoagent.aws import interruption as notices_module
from nanoagent.aws.interruption import (
    InterruptionNotice,
    InterruptionWatcher,
    MetadataError,
    endpoint_of,
    lifecycle_notice,
    spot_notice,
)
from nanoagent.model.errors import ConfigError
from support.doubles.fakes import DEADLINE_S
from support.services.metadata_service import LIFECYCLE, REBALANCE, SPOT, MetadataService, metadata_service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

AT = 1_800_000_000.0
AT_TEXT = "2027-01-15T08:00:00Z"


@pytest.fixture
async def service() -> AsyncIterator[MetadataService]:
    async with metadata_service() as service:
        yield service


@pytest.fixture
async def notices(service: MetadataService) -> AsyncIterator[InterruptionWatcher]:
    async with InterruptionWatcher(service.url, poll_s=0.01) as notices:
        yield notices


# --- what it says


async def test_without_a_notice_there_is_none_and_nothing_to_log(notices: InterruptionWatcher):
    with capture_logs() as logs:
        assert await notices.poll() is None
    assert logs == []


@pytest.mark.parametrize("action", ["terminate", "stop", "hibernate"])
async def test_a_spot_instance_that_is_taken_back_says_what_and_when(service, notices, action: str):
    service.interrupt(action, AT)
    notice = await notices.poll()
    assert notice is not None
    assert notice.ends_at == AT
    assert action in notice.reason


@pytest.mark.parametrize("state", ["Terminated", "Warmed:Terminated", "Warmed:Stopped", "Warmed:Hibernated"])
async def test_an_instance_that_its_group_takes_out_says_so_without_a_time(service, notices, state: str):
    service.values[LIFECYCLE] = state
    notice = await notices.poll()
    assert notice is not None
    assert notice.ends_at is None
    assert state in notice.reason


@pytest.mark.parametrize("state", ["InService", "Standby", "Detached", "Warmed:Running", None])
async def test_an_instance_that_stays_says_nothing(service, notices, state: str | None):
    service.values.pop(LIFECYCLE)
    if state is not None:
        service.values[LIFECYCLE] = state
    assert await notices.poll() is None


async def test_a_recommendation_is_logged_once_and_is_no_notice(service, notices):
    service.values[REBALANCE] = f'{{"noticeTime": "{AT_TEXT}"}}'
    with capture_logs() as logs:
        assert [await notices.poll() for _ in range(3)] == [None] * 3
    assert len(logs) == 1


async def test_a_notice_is_told_once_and_again_when_its_time_changes(service, notices):
    heard: asyncio.Queue[InterruptionNotice] = asyncio.Queue()
    service.interrupt("stop", AT)
    watching = asyncio.create_task(notices.watch(heard.put_nowait))
    async with asyncio.timeout(DEADLINE_S):
        assert (await heard.get()).ends_at == AT
        asked = len(service.asked)
        await service.until_asked(SPOT, times=asked + 3)
        service.interrupt("stop", AT + 60)
        assert (await heard.get()).ends_at == AT + 60
    watching.cancel()
    assert heard.empty()


# --- the protocol


async def test_one_token_serves_until_it_is_refused(service, notices):
    for _ in range(3):
        await notices.poll()
    assert service.asked.count(("PUT", "/latest/api/token")) == 1
    service.tokens.clear()
    service.interrupt("stop", AT)
    assert await notices.poll() is not None
    assert service.asked.count(("PUT", "/latest/api/token")) == 2


async def test_no_proxy_is_asked(service, notices, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    service.interrupt("stop", AT)
    assert await notices.poll() is not None


# --- what is not well


async def silent(request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"x" * 4096)


async def dripping(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"x")
        await asyncio.sleep(0.01)


async def cut_off(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


def answering(status: int, text: str = "", **headers: str):
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text=text, headers=headers)

    return answer


UNWELL = {
    "silent": (silent, "did not answer within"),
    "endless": (endless, "with more than 4096 bytes"),
    "dripping": (dripping, "did not answer within"),
    "cut off": (cut_off, "isconnected"),
    "no token": (answering(404), "gave no token"),
    "forbidden": (answering(403), "gave no token"),
    "never authorised": (answering(401), "gave no token"),
    "broken": (answering(500), "answered 500"),
    "throttled": (answering(503), "answered 503"),
    "elsewhere": (answering(302, Location="/elsewhere"), "answered 302"),
    "a page": (answering(200, "<html>please log in</html>"), "<html>please log in</html>"),
    "an empty token": (answering(200, ""), "gave no token"),
    "a token of two lines": (answering(200, "a\r\nX-Evil: b"), "gave no token"),
    "a token with nothing behind it": (answering(200, "{}"), "spot/instance-action is invalid"),
}


@pytest.mark.parametrize("how", UNWELL)
async def test_a_service_that_is_not_well_is_logged_once_and_heard_when_it_is(
    service, notices, how: str, monkeypatch: pytest.MonkeyPatch
):
    patience_s = 0.2 if how in {"silent", "dripping"} else DEADLINE_S
    monkeypatch.setattr(notices_module, "_ANSWER_MAX_S", patience_s)
    async with InterruptionWatcher(service.url) as impatient:
        service.instead, said = UNWELL[how]
        with capture_logs() as logs:
            assert [await impatient.poll() for _ in range(3)] == [None] * 3
        assert [entry["event"] for entry in logs] == ["interruption notices not received"]
        assert said in logs[0]["reason"]
        assert not [path for _, path in service.asked if "elsewhere" in path]
        service.instead = None
        service.interrupt("stop", AT)
    # With all the time that a loaded machine may need.
    monkeypatch.undo()
    with capture_logs() as logs:
        assert await notices.poll() is not None
    assert logs == []


async def test_a_service_that_is_not_there_is_logged_once_and_heard_when_it_is(unused_tcp_port: int):
    async with InterruptionWatcher(f"http://127.0.0.1:{unused_tcp_port}") as notices:
        with capture_logs() as logs:
            assert [await notices.poll() for _ in range(3)] == [None] * 3
        assert [entry["event"] for entry in logs] == ["interruption notices not received"]
        async with metadata_service() as service:
            notices._endpoint = service.url
            with capture_logs() as logs:
                assert await notices.poll() is None
            assert [entry["event"] for entry in logs] == ["interruption notices received again"]


async def test_a_service_that_is_not_well_is_asked_ever_more_seldom(service, monkeypatch):
    pauses: list[float] = []

    async def note(seconds: float) -> None:
        pauses.append(seconds)

    async with InterruptionWatcher(service.url) as notices:
        service.instead = answering(500)
        for _ in range(5):
            await notices.poll()
            monkeypatch.setattr(asyncio, "sleep", note)
            await notices.pause()
            monkeypatch.undo()
        service.instead = None
        await notices.poll()
        monkeypatch.setattr(asyncio, "sleep", note)
        await notices.pause()
        monkeypatch.undo()
    assert pauses == [10, 20, 30, 30, 30, 5]


# --- pure


@pytest.mark.parametrize(
    "text",
    [
        "",
        "stop",
        "[]",
        "null",
        "{}",
        '{"action": "stop"}',
        '{"time": "2027-01-15T08:00:00Z"}',
        '{"action": "stop", "time": "soon"}',
        '{"action": "stop", "time": null}',
        '{"action": "dance", "time": "2027-01-15T08:00:00Z"}',
        "[" * 100_000,
        "<html>\x1b[2J</html>",
    ],
)
def test_what_is_no_interruption_notice_starts_no_drain(text: str):
    with pytest.raises(MetadataError) as problem:
        spot_notice(text)
    assert str(problem.value).isprintable()


@pytest.mark.parametrize("text", ["", "terminated", "Terminating", "<html>\r\n"])
def test_what_is_no_lifecycle_state_starts_no_drain(text: str):
    with pytest.raises(MetadataError) as problem:
        lifecycle_notice(text)
    assert str(problem.value).isprintable()


@pytest.mark.parametrize("time", [AT_TEXT, "2027-01-15T08:00:00", "2027-01-15T09:00:00+01:00"])
def test_a_time_is_utc_unless_it_says_otherwise(time: str):
    notice = spot_notice(f'{{"action": "stop", "time": "{time}"}}')
    assert notice is not None
    assert notice.ends_at == AT


def test_jobs_may_run_until_what_has_to_be_left():
    assert InterruptionNotice("", AT).grace_s(AT - 120, 20) == 100
    assert InterruptionNotice("", AT).grace_s(AT + 120, 20) == 0
    assert InterruptionNotice("").grace_s(AT, 20) is None


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "http://169.254.169.254"),
        ({"AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE": "IPv6"}, "http://[fd00:ec2::254]"),
        ({"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://10.0.0.1:1338/"}, "http://10.0.0.1:1338"),
        (
            {
                "AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://10.0.0.1",
                "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE": "IPv6",
            },
            "http://10.0.0.1",
        ),
        ({"AWS_EC2_METADATA_DISABLED": "True"}, None),
        ({"AWS_EC2_METADATA_DISABLED": "false"}, "http://169.254.169.254"),
    ],
)
def test_the_sdks_own_variables_say_where_the_service_is(environment, expected):
    assert endpoint_of(environment) == expected


@pytest.mark.parametrize(
    "environment",
    [
        {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "169.254.169.254"},
        {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://"},
        {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://[fd00"},
        {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://a:99999"},
        {"AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE": "IPv5"},
    ],
)
def test_variables_that_name_no_service_are_refused_by_name(environment):
    with pytest.raises(ConfigError, match=next(iter(environment))):
        endpoint_of(environment)
