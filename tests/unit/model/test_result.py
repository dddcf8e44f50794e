from __future__ import annotations

import json
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from collections.abc import Collection

UNHURRIED = hypothesis_settings(deadline=None)  # the machine is shared


# Contract, section 3, in its order; the two links are what MAX_RESULT_BYTES adds.
WIRE_NAMES = {
    *("requestId", "functionId", "runtime", "status", "exitCode", "stdout", "stderr"),
    *("stdoutTruncatedBytes", "stderrTruncatedBytes", "durationMs", "peakMemoryBytes"),
    *("optimizationTip", "estimatedSavings", "tuning", "outputFiles", "outputErrors", "llmTokenCount"),
    *("errorType", "errorMessage", "hint", "cause", "timings", "start", "isolation", "workerId", "attempt"),
    *("stdoutUrl", "stderrUrl", "reuse", "memoryMb", "capsule"),
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
    blank = Result(request_id="r1", function_id="f", runtime="python", status=Status.SUCCESS, exit_code=0)
    return msgspec.structs.replace(blank, **changes)


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
    # A program that failed by itself gets advice only if a rule of languages/explain knows the cause.
    assert (hint is not None) == (is_told and error_type is not ErrorType.USER_ERROR)
    if hint is not None:
        assert hint.endswith(".")
        assert any("가" <= character <= "힣" for character in hint) == (locale == "ko")


def test_a_result_knows_its_row():
    assert a_result().outcome is OUTCOMES[None]
    signal = a_result(status=Status.FAILED, error_type=ErrorType.SIGNAL, exit_code=139)
    assert signal.outcome is OUTCOMES[ErrorType.SIGNAL]


# --- legal combinations

# Contract, section 3: the exit code is the program's, 128 + n after signal n, and -1 if it never started.
NEVER_STARTED = {"BUILD_FAILED", "INVALID_CODE", "CODE_NOT_FOUND", "INVALID_JOB", "PLATFORM"}
LIMITS = {"TIMEOUT", "OUT_OF_MEMORY", "DISK_LIMIT", "PROCESS_LIMIT"}
EXIT_CODES: dict[str | None, Collection[int]] = {
    None: (0,),
    "USER_ERROR": range(1, 256),
    "SIGNAL": range(129, 256),
    **dict.fromkeys(NEVER_STARTED, (-1,)),
    **dict.fromkeys(LIMITS, range(256)),
    "CANCELLED": range(-1, 256),
    "UNREADABLE": (),
    "INTERRUPTED": (),
}


def make(status: str, exit_code: int, error_type: ErrorType | None) -> Result:
    return Result(
        request_id="r1",
        function_id="f",
        runtime="python",
        status=Status(status),
        exit_code=exit_code,
        error_type=error_type,
    )


@pytest.mark.parametrize("error_type", OUTCOMES, ids=str)
def test_only_the_combinations_of_the_table_can_be_constructed(error_type: ErrorType | None):
    allowed = set()
    for status in Status:
        for exit_code in range(-2, 258):
            try:
                made = make(status, exit_code, error_type)
            except ValueError:
                continue
            allowed.add((made.status, made.exit_code))
    assert allowed == {(TABLE[error_type][0], exit_code) for exit_code in EXIT_CODES[error_type]}


def test_a_legal_result_cannot_be_made_illegal():
    result = make("FAILED", 3, ErrorType.USER_ERROR)
    with pytest.raises(AttributeError):
        result.exit_code = 0  # type: ignore[misc]
    with pytest.raises(ValueError, match="a result of USER_ERROR has an exit code in"):
        msgspec.structs.replace(result, exit_code=0)
    with pytest.raises(ValueError, match="a result of TIMEOUT has the status TIMEOUT, not FAILED"):
        msgspec.structs.replace(result, error_type=ErrorType.TIMEOUT)


def test_an_illegal_document_is_refused():
    document = json.loads(results.encode(make("FAILED", 3, ErrorType.USER_ERROR)))
    for change in ({"exitCode": 0}, {"status": "SUCCESS"}, {"errorType": None}, {"errorType": "INTERRUPTED"}):
        with pytest.raises(msgspec.ValidationError):
            results.decode(json.dumps(document | change))


@pytest.mark.parametrize("error_type", ErrorType)
def test_an_outcome_without_a_result_has_no_status(error_type: ErrorType):
    if TABLE[error_type][0] is None:
        with pytest.raises(ValueError, match="no result is published"):
            results.status_of(error_type)
    else:
        assert results.status_of(error_type) == TABLE[error_type][0]


def test_a_program_has_ended_by_itself_only_without_a_limit_or_a_kill():
    by_itself = {error_type for error_type, outcome in OUTCOMES.items() if outcome.ended_by_itself}
    assert by_itself == {None, "USER_ERROR", "SIGNAL"}


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
    blank = Result(
        request_id="r1",
        function_id="f",
        runtime="python",
        status=Status.FAILED,
        error_type=ErrorType.INVALID_JOB,
    )
    document = json.loads(results.encode(blank))
    assert (document["exitCode"], document["outputFiles"], document["attempt"]) == (-1, [], 1)


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
legal = st.sampled_from([outcome for outcome in OUTCOMES.values() if outcome.status is not None])


@UNHURRIED
@given(
    legal.flatmap(
        lambda row: st.builds(
            Result,
            request_id=text,
            function_id=text,
            runtime=text,
            status=st.just(row.status),
            exit_code=st.sampled_from(row.exit_codes.value),
            stdout=text,
            error_type=st.just(row.error_type),
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
