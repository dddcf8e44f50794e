from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from nanoagent.model import result as results
from nanoagent.model.result import (
    OUTCOMES,
    Blame,
    ErrorType,
    Isolation,
    Outcome,
    OutputError,
    Result,
    Settle,
    Start,
    Status,
    Timings,
    Tuning,
    hint_for,
)

UNHURRIED = hypothesis_settings(deadline=None)  # the machine is shared


# Contract, section 3, in its order; the two links are what MAX_RESULT_BYTES adds.
WIRE_NAMES = {
    *("requestId", "functionId", "runtime", "status", "exitCode", "stdout", "stderr"),
    *("stdoutTruncatedBytes", "stderrTruncatedBytes", "durationMs", "peakMemoryBytes"),
    *("optimizationTip", "estimatedSavings", "tuning", "outputFiles", "outputErrors", "llmTokenCount"),
    *("errorType", "errorMessage", "hint", "timings", "start", "isolation", "workerId", "attempt"),
    *("stdoutUrl", "stderrUrl"),
}
# Contract, section 4: errorType → status, blame, label.
TABLE = {
    None: ("SUCCESS", "-", "success"),
    "USER_ERROR": ("FAILED", "user", "failure"),
    "SIGNAL": ("FAILED", "user", "failure"),
    "TIMEOUT": ("TIMEOUT", "user", "timeout"),
    "OUT_OF_MEMORY": ("FAILED", "user", "oom"),
    "DISK_LIMIT": ("FAILED", "user", "failure"),
    "PROCESS_LIMIT": ("FAILED", "user", "failure"),
    "BUILD_FAILED": ("FAILED", "user", "failure"),
    "INVALID_CODE": ("FAILED", "user", "failure"),
    "CODE_NOT_FOUND": ("FAILED", "user", "failure"),
    "INVALID_JOB": ("FAILED", "user", "invalid"),
    "UNREADABLE": (None, "-", "invalid"),
    "PLATFORM": ("FAILED", "platform", "error"),
    "CANCELLED": ("FAILED", "-", "cancelled"),
    "INTERRUPTED": (None, "platform", "interrupted"),
}


def a_result(**changes: object) -> Result:
    return msgspec.structs.replace(
        Result(request_id="r1", function_id="f", runtime="python", status=Status.SUCCESS), **changes
    )


# --- the table


def test_every_error_type_has_its_row_and_success_has_one():
    assert set(OUTCOMES) == {None, *ErrorType}
    assert all(outcome.error_type == error_type for error_type, outcome in OUTCOMES.items())


def test_the_table_is_the_contracts():
    assert {
        error_type: (outcome.status, outcome.blame, outcome.label) for error_type, outcome in OUTCOMES.items()
    } == TABLE


@pytest.mark.parametrize("outcome", OUTCOMES.values(), ids=lambda outcome: str(outcome.error_type))
def test_a_row_hangs_together(outcome: Outcome):
    assert (outcome.status is None) == (outcome.settle in {Settle.POISON, Settle.RELEASE})
    assert (outcome.settle in {Settle.RETRY, Settle.RELEASE}) == (outcome.blame is Blame.PLATFORM)
    assert (outcome.status is Status.SUCCESS) == (outcome.error_type is None)
    assert (outcome.status is Status.TIMEOUT) == (outcome.error_type is ErrorType.TIMEOUT)
    assert outcome.meaning
    assert not outcome.meaning.endswith(".")


@pytest.mark.parametrize("error_type", ErrorType)
@pytest.mark.parametrize("locale", ["ko", "en"])
def test_whoever_could_do_something_is_told_what_in_both_languages(error_type: ErrorType, locale: str):
    outcome = OUTCOMES[error_type]
    is_told = outcome.status is not None and outcome.blame is not Blame.NOBODY
    hint = hint_for(error_type, locale)
    assert (hint is not None) == is_told
    if hint is not None:
        assert hint.endswith(".")
        assert any("가" <= character <= "힣" for character in hint) == (locale == "ko")


def test_a_result_knows_its_row():
    assert a_result().outcome is OUTCOMES[None]
    assert a_result(error_type=ErrorType.SIGNAL).outcome is OUTCOMES[ErrorType.SIGNAL]


# --- the document


def test_the_document_has_exactly_the_contracts_fields_always():
    assert set(json.loads(results.encode(a_result()))) == WIRE_NAMES


def test_the_nested_objects_have_the_contracts_names():
    document = json.loads(
        results.encode(
            a_result(
                tuning=Tuning(64, 0.3, 1, 12.5),
                output_errors=[OutputError("a", "is a link")],
                start=Start.HOT,
                isolation=Isolation.SHARED,
            )
        )
    )
    assert document["tuning"] == {
        "recommendedMemoryMb": 64,
        "confidence": 0.3,
        "samples": 1,
        "savingsPercent": 12.5,
    }
    assert document["outputErrors"] == [{"path": "a", "reason": "is a link"}]
    assert (document["start"], document["isolation"]) == ("hot", "shared")
    assert set(document["timings"]) == {
        *("queue", "fetch", "build", "acquire", "start", "run", "upload", "total")
    }


def test_the_words_that_consumers_switch_on_are_the_contracts():
    assert [*Status] == ["SUCCESS", "FAILED", "TIMEOUT"]
    assert [*Start] == ["hot", "warm", "cold"]
    assert [*Isolation] == ["sandbox", "shared", "container"]


def test_what_is_not_known_is_null_and_not_left_out():
    document = json.loads(results.encode(a_result()))
    for name in ("peakMemoryBytes", "optimizationTip", "tuning", "errorType", "hint", "stdoutUrl", "start"):
        assert document[name] is None
    assert (document["exitCode"], document["outputFiles"], document["attempt"]) == (-1, [], 1)


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)


@UNHURRIED
@given(
    st.builds(
        Result,
        request_id=text,
        function_id=text,
        runtime=text,
        status=st.sampled_from(Status),
        stdout=text,
        error_type=st.none() | st.sampled_from(ErrorType),
        error_message=st.none() | text,
        peak_memory_bytes=st.none() | st.integers(0, 2**60),
        tuning=st.none()
        | st.builds(Tuning, st.integers(32, 10_240), st.floats(0, 1), st.just(1), st.just(-0.5)),
        output_files=st.lists(text, max_size=3),
        output_errors=st.lists(st.builds(OutputError, text, text), max_size=3),
        timings=st.builds(Timings, run=st.floats(0, 1e9)),
        start=st.none() | st.sampled_from(Start),
    )
)
def test_a_document_reads_back_as_the_same_result(result: Result):
    document = results.encode(result)
    assert results.decode(document) == result
    assert results.decode(document.decode()) == result
    assert json.loads(document)["stdout"] == result.stdout


@pytest.mark.parametrize("document", [b"{}", b"[]", b'{"requestId":1}', b'{"requestId":"r1"}'])
def test_what_is_no_document_of_ours_is_refused(document: bytes):
    with pytest.raises(msgspec.ValidationError):
        results.decode(document)


def test_two_results_share_no_list():
    a_result().output_files.append("x")
    assert a_result().output_files == []
