"""The circuit breaker over the object store. Its clock moves only when a test moves it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from nanoagent.model.errors import ReturnToQueue, StorageError, Superseded
from nanoagent.storage import resilient
from nanoagent.storage.base import Absence, ObjectMissing
from nanoagent.storage.health import storage_breaker
from nanoagent.storage.resilient import ResilientStore

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE_S = 60
NOWHERE = Path("/nowhere")


def failure(code: str | Exception = "InternalError", status: int = 500) -> StorageError:
    """As `S3Store` raises it."""
    if isinstance(code, str):
        cause: Exception = ClientError(
            {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject"
        )
    else:
        cause = code
    error = StorageError(f"failed: {code}")
    error.__cause__ = cause
    return error


UNREACHABLE = EndpointConnectionError(endpoint_url="http://s3")


@dataclass
class Bench:
    """A resilient store on one that does as it is told.

    Attributes:
        fails: What every call raises, while it is set.
        down: What the probe raises, while it is set.
        gate: Calls wait until it is set.
        calls: The keys of what was asked for.
        unchanged: Whether objects are unchanged.
    """

    fails: Exception | None = None
    down: StorageError | None = None
    now: float = 0.0
    probes: int = 0
    calls: list[str] = field(default_factory=list)
    unchanged: bool = True
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()
        self.resilient = ResilientStore(
            self, self.probe, code_bucket="code", clock=lambda: self.now, write_wait_s=100
        )

    async def probe(self) -> None:
        self.probes += 1
        if self.down is not None:
            raise self.down

    async def is_unchanged(self, bucket: str, key: str, etag: str) -> bool:
        self.calls.append(key)
        await self.gate.wait()
        return self.unchanged

    async def fetch(self, bucket: str, key: str, into: Path, **_: Any) -> str:
        await self._do(key)
        return "etag"

    async def put(self, bucket: str, key: str, source: Path, **_: Any) -> None:
        await self._do(key)

    def plain_url(self, bucket: str, key: str) -> str:
        return f"{bucket}/{key}"

    async def presigned_url(self, bucket: str, key: str, *, expires_s: int) -> str:
        return "link"

    async def close(self) -> None: ...

    async def _do(self, key: str) -> None:
        self.calls.append(key)
        await self.gate.wait()
        if self.fails is not None:
            raise self.fails

    async def read(self, key: str = "k", bucket: str = "code") -> str | None:
        return await self.resilient.fetch(bucket, key, NOWHERE, etag=None, max_bytes=1)

    async def write(self, key: str = "outputs/r1/file") -> None:
        await self.resilient.put("data", key, NOWHERE, content_type="text/plain")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(resilient, "_RETRY_PAUSE_S", 0)  # between two tries of a write
    return Bench()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - others take their steps meanwhile
            await asyncio.sleep(0)


async def test_what_a_healthy_store_says_is_handed_on(bench: Bench):
    assert await bench.read() == "etag"
    await bench.write()
    assert await bench.resilient.presigned_url("b", "k", expires_s=1) == "link"
    assert bench.resilient.plain_url("b", "k") == "b/k"
    assert await bench.resilient.not_ready_reason() is None
    assert bench.probes == 0


async def test_an_unchanged_object_is_a_success(bench: Bench):
    bench.fails = failure()
    for key in "ab":
        with pytest.raises(StorageError):
            await bench.read(key)
    assert await bench.resilient.is_unchanged("code", "k", "etag")
    with pytest.raises(StorageError):  # the third failure, but not the third in a row
        await bench.read("c")
    assert await bench.resilient.not_ready_reason() is None


async def test_an_object_that_may_have_changed_says_nothing_of_the_store(bench: Bench):
    bench.unchanged, bench.fails = False, failure()
    for key in "ab":
        assert not await bench.resilient.is_unchanged("code", key, "etag")
        with pytest.raises(StorageError):
            await bench.read(key)
    with pytest.raises(ReturnToQueue):
        await bench.read("c")


async def test_a_store_that_cannot_be_used_is_not_asked_whether_an_object_has_changed(bench: Bench):
    bench.fails, bench.down = failure(UNREACHABLE), failure(UNREACHABLE)
    with pytest.raises(ReturnToQueue):
        await bench.read()
    bench.calls.clear()
    assert not await bench.resilient.is_unchanged("code", "k", "etag")
    assert bench.calls == []

    bench.down = None
    bench.now += 1
    assert await bench.resilient.not_ready_reason() is None  # on trial
    assert await bench.resilient.is_unchanged("code", "k", "etag")
    bench.fails = failure()  # one failure would open it again, were it still on trial
    with pytest.raises(StorageError):
        await bench.read()
    assert await bench.resilient.not_ready_reason() is None


async def test_a_bucket_whose_object_is_unchanged_was_read(bench: Bench):
    assert await bench.resilient.is_unchanged("code", "k", "etag")
    bench.fails = ObjectMissing("denied", Absence.DENIED)
    for key in "abcd":
        with pytest.raises(ObjectMissing):
            await bench.read(key)
    assert await bench.resilient.not_ready_reason() is None


async def test_a_question_without_an_answer_is_noticed(bench: Bench):
    bench.gate.clear()
    asking = asyncio.create_task(bench.resilient.is_unchanged("code", "k", "etag"))
    await until(lambda: bench.calls == ["k"])
    bench.now += 4
    bench.down = failure(UNREACHABLE)
    assert await bench.resilient.not_ready_reason() is not None
    assert bench.probes == 1
    bench.gate.set()
    assert await asking


async def test_an_object_that_is_missing_says_nothing_of_the_store(bench: Bench):
    bench.fails, bench.down = ObjectMissing("no such key"), failure(UNREACHABLE)
    for number in range(10):
        with pytest.raises(ObjectMissing):
            await bench.read(f"k{number}")
    assert await bench.resilient.not_ready_reason() is None


async def test_when_a_probe_fails_too_the_first_failure_opens_it_and_is_no_attempt(bench: Bench):
    bench.fails, bench.down = failure(UNREACHABLE), failure(UNREACHABLE)
    with pytest.raises(ReturnToQueue, match="the object store is unavailable"):
        await bench.read()
    assert (await bench.resilient.not_ready_reason() or "").startswith("failed: Could not connect")
    with pytest.raises(ReturnToQueue):
        await bench.read("other")
    assert bench.calls == ["k"]


async def test_a_store_that_answers_a_probe_has_only_failed_this_one(bench: Bench):
    bench.fails = failure()
    with pytest.raises(StorageError, match="InternalError"):
        await bench.read()
    assert await bench.resilient.not_ready_reason() is None
    assert bench.probes == 1


async def test_failures_of_three_different_jobs_in_a_row_open_it_whatever_a_probe_says(bench: Bench):
    bench.fails = failure()
    for key in ("a", "a", "a", "b"):
        with pytest.raises(StorageError):
            await bench.read(key)
    assert await bench.resilient.not_ready_reason() is None
    with pytest.raises(ReturnToQueue):
        await bench.read("c")
    assert await bench.resilient.not_ready_reason() == "failed: InternalError"


async def test_the_log_tells_each_time_that_the_store_cannot_be_used_and_that_it_can_again(bench: Bench):
    bench.fails = failure()
    with capture_logs() as logged:
        for key in "abcd":  # the third failure opens the circuit breaker, the fourth tells nothing new
            with pytest.raises((StorageError, ReturnToQueue)):
                await bench.read(key)
        bench.now += 1
        assert await bench.resilient.not_ready_reason() is None  # on trial
        with pytest.raises(ReturnToQueue):
            await bench.read("e")
    assert [(entry["event"], entry.get("reason")) for entry in logged] == [
        ("object store unavailable", "failed: InternalError"),
        ("object store available again", None),
        ("object store unavailable", "failed: InternalError"),
    ]


async def test_a_success_in_between_starts_the_count_anew(bench: Bench):
    for keys in ("ab", "cd"):
        bench.fails = failure()
        for key in keys:
            with pytest.raises(StorageError):
                await bench.read(key)
        bench.fails = None
        await bench.read()
    assert await bench.resilient.not_ready_reason() is None


@pytest.mark.parametrize("code", ["PermanentRedirect", "InvalidRequest", "AuthorizationHeaderMalformed"])
async def test_a_fault_of_the_bucket_of_one_job_never_stops_other_jobs(bench: Bench, code: str):
    bench.fails, bench.down = failure(code, 400), failure(UNREACHABLE)
    for number in range(10):
        with pytest.raises(StorageError):
            await bench.read(f"k{number}")
    assert await bench.resilient.not_ready_reason() is None


async def test_a_full_disk_of_ours_says_nothing_of_the_store(bench: Bench):
    bench.fails, bench.down = failure(OSError(28, "No space left on device")), failure(UNREACHABLE)
    for number in range(10):
        with pytest.raises(StorageError):
            await bench.read(f"k{number}")
    assert await bench.resilient.not_ready_reason() is None


async def test_being_throttled_is_no_attempt_and_opens_it_like_any_failure(bench: Bench):
    bench.fails = failure("SlowDown", 503)
    for key in "abc":
        with pytest.raises(ReturnToQueue):
            await bench.read(key)
    assert await bench.resilient.not_ready_reason() == "failed: SlowDown"
    assert bench.probes == 0


async def test_after_its_pause_a_probe_closes_it_and_jobs_succeed(bench: Bench):
    bench.fails = bench.down = failure(UNREACHABLE)
    with pytest.raises(ReturnToQueue):
        await bench.read()
    probes = bench.probes
    assert await bench.resilient.not_ready_reason() is not None  # too early to ask
    assert bench.probes == probes
    bench.now += 1
    assert await bench.resilient.not_ready_reason() is not None  # asked, in vain
    bench.fails = bench.down = None
    bench.now += 1.5
    assert await bench.resilient.not_ready_reason() is not None  # the pause is longer now
    bench.now += 0.5
    assert await bench.resilient.not_ready_reason() is None
    assert await bench.read() == "etag"


async def test_a_write_waits_while_the_store_is_down_because_its_job_has_run(bench: Bench):
    bench.fails = bench.down = failure(UNREACHABLE)
    write = asyncio.create_task(bench.write())
    await until(lambda: bench.resilient._health.reason is not None)
    bench.fails = bench.down = None
    bench.now += 1
    assert (
        await bench.resilient.not_ready_reason() is not None
    )  # what waits goes first, and jobs are not taken yet
    await asyncio.wait_for(write, DEADLINE_S)
    assert await bench.resilient.not_ready_reason() is None


async def test_a_write_that_has_waited_long_enough_gives_its_job_back(bench: Bench):
    bench.fails = bench.down = failure(UNREACHABLE)
    write = asyncio.create_task(bench.write())
    await until(lambda: bench.resilient._health.reason is not None)
    bench.now += 100
    bench.resilient._health.wake_waiting()
    bench.resilient._health.wake_waiting()
    with pytest.raises(ReturnToQueue):
        await asyncio.wait_for(write, DEADLINE_S)


async def test_a_write_is_tried_again_before_an_attempt_is_lost_with_it(bench: Bench):
    bench.fails = failure()
    with pytest.raises(StorageError):
        await bench.write()
    assert len(bench.calls) == 3


@pytest.mark.parametrize(
    "cause",
    [
        failure("AccessDenied", 403),
        failure("NoSuchBucket", 404),
        failure("ExpiredToken", 400),
        failure(NoCredentialsError()),
    ],
    ids=["denied", "missing", "over", "none"],
)
async def test_a_bucket_for_outputs_that_may_not_be_written_to_stops_intake_at_once(
    bench: Bench, cause: StorageError
):
    bench.fails = cause
    write = asyncio.create_task(bench.write())
    await until(lambda: bench.resilient._health.reason is not None)
    for _ in range(3):  # a probe is answered each time, and what waits is refused again
        bench.now += 40
        assert await bench.resilient.not_ready_reason() is not None
        tried = len(bench.calls)
        await until(lambda tried=tried: len(bench.calls) > tried or write.done())  # type: ignore[misc]
        await until(lambda: bench.resilient._health.reason is not None)
        if write.done():
            break
    bench.fails = None
    bench.now += 40
    await bench.resilient.not_ready_reason()
    await asyncio.wait({write}, timeout=DEADLINE_S)
    assert await bench.resilient.not_ready_reason() is None


# --- the default bucket of code

NO_BUCKET = ObjectMissing("read s3://code/k: NoSuchBucket", Absence.BUCKET)
DENIED = ObjectMissing("read s3://code/k: Access Denied", Absence.DENIED)


async def test_a_missing_default_bucket_is_no_jobs_fault_and_stops_intake_at_once(bench: Bench):
    bench.fails = NO_BUCKET
    with pytest.raises(ReturnToQueue, match="S3_CODE_BUCKET"):
        await bench.read()
    assert "NoSuchBucket" in (await bench.resilient.not_ready_reason() or "")
    bench.fails = None
    bench.now += 1
    assert await bench.resilient.not_ready_reason() is None  # someone has made it
    assert await bench.read() == "etag"


async def test_the_pauses_grow_while_the_default_bucket_is_missing(bench: Bench):
    bench.fails = NO_BUCKET
    for pause_s in (1, 2, 4):
        with pytest.raises(ReturnToQueue):
            await bench.read()
        bench.now += pause_s - 0.5
        assert await bench.resilient.not_ready_reason() is not None
        bench.now += 0.5
        assert await bench.resilient.not_ready_reason() is None


@pytest.mark.parametrize("missing", [NO_BUCKET, DENIED, ObjectMissing("archived", Absence.ARCHIVED)])
async def test_a_bucket_that_a_job_names_never_stops_other_jobs(bench: Bench, missing: ObjectMissing):
    bench.fails, bench.down = missing, failure(UNREACHABLE)
    for number in range(10):
        with pytest.raises(ObjectMissing):
            await bench.read(f"k{number}", "of the job")
    assert await bench.resilient.not_ready_reason() is None


async def test_a_default_bucket_that_lets_nothing_be_read_stops_intake_after_three_keys(bench: Bench):
    bench.fails = DENIED
    for key in ("a", "a", "a", "b"):
        with pytest.raises(ObjectMissing):
            await bench.read(key)
    assert await bench.resilient.not_ready_reason() is None
    with pytest.raises(ReturnToQueue, match="nothing was read yet"):
        await bench.read("c")
    assert "S3_CODE_BUCKET: access was denied each time" in (await bench.resilient.not_ready_reason() or "")
    bench.now += 1
    assert await bench.resilient.not_ready_reason() is None  # on trial: a probe cannot tell
    with pytest.raises(ReturnToQueue):
        await bench.read("d")
    assert await bench.resilient.not_ready_reason() is not None


@pytest.mark.parametrize("before", [None, ObjectMissing("no such key", Absence.KEY)])
async def test_keys_that_are_denied_stop_nothing_once_the_bucket_was_read(
    bench: Bench, before: ObjectMissing | None
):
    bench.fails = before
    if before is None:
        await bench.read()
    else:
        with pytest.raises(ObjectMissing):
            await bench.read()
    bench.fails = DENIED
    for number in range(10):
        with pytest.raises(ObjectMissing):
            await bench.read(f"k{number}")
    assert await bench.resilient.not_ready_reason() is None


async def test_many_files_of_one_job_are_one_failure(bench: Bench):
    bench.fails = failure()
    await asyncio.gather(*(bench.write(f"outputs/r1/{n}") for n in range(4)), return_exceptions=True)
    assert await bench.resilient.not_ready_reason() is None


async def test_outputs_of_a_later_attempt_are_no_failure_of_the_store(bench: Bench):
    bench.fails = Superseded("a later attempt has written it")
    for number in range(5):
        with pytest.raises(Superseded):
            await bench.write(f"outputs/r{number}/file")
    assert await bench.resilient.not_ready_reason() is None


async def test_a_store_that_does_not_answer_is_asked_and_found_out_before_its_calls_end(bench: Bench):
    bench.gate.clear()
    read = asyncio.create_task(bench.read())
    await until(lambda: bench.calls == ["k"])
    assert await bench.resilient.not_ready_reason() is None
    assert bench.probes == 0
    bench.now += 4
    assert await bench.resilient.not_ready_reason() is None  # it answers: a large object takes its time
    assert bench.probes == 1
    bench.down = failure(TimeoutError())
    bench.now += 4
    assert await bench.resilient.not_ready_reason() == "failed: "
    bench.gate.set()
    assert await read == "etag"
    assert await bench.resilient.not_ready_reason() is None


@given(st.lists(st.sampled_from(["fail a", "fail b", "fail c", "open", "try again", "succeed", "wait"])))
def test_the_breaker_is_closed_by_success_alone_or_on_trial(steps: list[str]):
    breaker, now = storage_breaker(), 0.0
    for step in steps:
        if step == "succeed":
            breaker.record_success()
            assert (breaker.reason, breaker.trial_reason) == (None, None)
        elif step == "try again" and breaker.reason is not None:
            breaker.try_again()
            assert breaker.trial_reason is not None
            breaker.record_failure("again", now, cause="a")
            assert breaker.reason is not None
        elif step == "open":
            breaker.open("down", now)
            assert breaker.reason is not None
        elif step.startswith("fail"):
            was_open = breaker.reason is not None
            breaker.record_failure("down", now, cause=step)
            assert breaker.reason is not None or not was_open
        else:
            now += 5
        assert breaker.open_until <= now + 30
