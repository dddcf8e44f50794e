from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoagent.model import result as results
from nanoagent.model.result import ErrorType, Result, Start, Timings
from nanoagent.results import job_index
from support.doubles.fakes import make_job

TEXT = st.text(max_size=2000)
REQUEST_IDS = st.from_regex(r"[A-Za-z0-9._-]{1,128}", fullmatch=True)


def failed(**fields: Any) -> Result:
    defaults: dict[str, Any] = {
        "request_id": "r1",
        "function_id": "f",
        "runtime": "python",
        "status": results.status_of(ErrorType.USER_ERROR),
        "error_type": ErrorType.USER_ERROR,
        "exit_code": 1,
    }
    return Result(**(defaults | fields))


def test_an_entry_has_the_facts_of_the_result():
    result = failed(
        error_message="\n ValueError: no\nsecond line",
        start=Start.WARM,
        duration_ms=17,
        peak_memory_bytes=9_000_000,
        memory_mb=128,
        attempt=2,
        timings=Timings(total=40.7),
    )

    assert job_index.decode(job_index.of_result(result)) == job_index.Entry(
        "r1", "f", "FAILED", "USER_ERROR", "ValueError: no", 1, "warm", 17, 9_000_000, 128, 2, 40
    )


@given(REQUEST_IDS, st.text(min_size=1, max_size=256), TEXT)
def test_an_entry_is_small_and_names_its_request(request_id: str, function_id: str, message: str):
    result = failed(
        request_id=request_id,
        function_id=function_id,
        error_type=ErrorType.OUT_OF_MEMORY,
        exit_code=137,
        error_message=message,
        start=Start.COLD,
        duration_ms=42_000_000,
        peak_memory_bytes=10 << 30,
        memory_mb=10_240,
        attempt=10_000,
        timings=Timings(total=1e10),
    )

    data = job_index.of_result(result)

    assert len(data) <= job_index.MAX_ENTRY_BYTES
    entry = job_index.decode(data)
    assert entry is not None
    assert entry.request_id == request_id
    assert (entry.message or "").isprintable()
    assert job_index.is_same_function(entry.function_id, function_id)


def test_output_input_and_environment_are_not_in_an_entry():
    result = failed(stdout="secret-1", stderr="secret-2", hint="secret-3", error_message="first\nsecret-4")
    job = make_job(payload=b'"secret-5"', env=(("KEY", "secret-6"),))

    entries = job_index.of_result(result), job_index.of_failed_attempt(job, 1, "PLATFORM", "x\nsecret-7")

    assert not any(b"secret" in entry for entry in entries)


def test_a_failed_attempt_waits_for_the_next():
    job = make_job(request_id="r9", function_id="resize", memory_mb=256)

    entry = job_index.decode(job_index.of_failed_attempt(job, 3, "PLATFORM", "Docker failed"))

    assert entry is not None
    assert (entry.request_id, entry.function_id, entry.status) == ("r9", "resize", job_index.WAITING)
    assert (entry.error_type, entry.message, entry.memory_mb, entry.attempt) == (
        "PLATFORM",
        "Docker failed",
        256,
        3,
    )


@pytest.mark.parametrize("function_id", ["f", "f" * 48, "f" * 49, "…", "한" * 256])
def test_a_function_is_recognised_although_its_id_is_cut(function_id: str):
    about = job_index.about_of(job_index.about(function_id, 64))

    assert job_index.is_same_function(about.function_id, function_id)
    assert not job_index.is_same_function(about.function_id, "other")
    assert (len(about.function_id) <= 48, about.memory_mb) == (True, 64)


def test_what_a_later_version_appends_is_ignored():
    values = json.loads(job_index.of_result(failed()))
    assert job_index.decode(json.dumps([*values, "more"]).encode()) == job_index.decode(
        json.dumps(values).encode()
    )


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"[1]", b"\xff", b'["r"]', b"null"])
def test_what_is_no_entry_is_not_read(data: bytes):
    assert job_index.decode(data) is None


@pytest.mark.parametrize("data", [None, b"", b"{}", b"\xff", b"[1]"])
def test_a_claim_of_an_earlier_version_describes_nothing(data: bytes | None):
    assert job_index.about_of(data) == job_index.About()
