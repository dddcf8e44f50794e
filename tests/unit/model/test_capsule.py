"""A capsule from anywhere is decoded, or refused in one sentence."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoagent.model import capsule as capsules
from nanoagent.model.capsule import Capsule, CapsuleWorker, InvalidCapsule
from nanoagent.model.result import ErrorType, Result, Status

RESULT: Final = Result(
    request_id="r1",
    function_id="f",
    runtime="python",
    status=Status.FAILED,
    exit_code=1,
    error_type=ErrorType.USER_ERROR,
)
CAPSULE: Final = Capsule(
    schema=1,
    request_id="r1",
    made_at="2026-12-01T00:00:00+00:00",
    worker=CapsuleWorker("w", "0.1.0", "x86_64"),
    message={"requestId": "r1", "env": {"A": None}},
    input="{}",
    job=None,
    code=None,
    image=None,
    settings={},
    result=RESULT,
)
DOCUMENT: Final[dict[str, Any]] = json.loads(capsules.encode(CAPSULE))


def test_a_capsule_is_the_same_after_its_document() -> None:
    assert capsules.decode(capsules.encode(CAPSULE)) == CAPSULE
    assert CAPSULE.env == {"A": None}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"schema": 2}, "schema 2"),
        ({"schema": "1"}, "not a capsule"),
        ({"message": []}, "not a capsule"),
        ({"settings": 3}, "not a capsule"),
        ({"job": {"functionId": 1}}, "not a capsule"),
        ({"result": DOCUMENT["result"] | {"status": "SUCCESS"}}, "not a capsule"),
        ({"result": DOCUMENT["result"] | {"requestId": "r2"}}, "different request IDs"),
        ({"message": {"requestId": "r2"}}, "different request IDs"),
        ({"message": {"requestId": {"a": 1}}}, "different request IDs"),
        ({"omitted": {"input": "x"}}, "not a capsule"),
    ],
)
def test_a_wrong_document_is_refused_in_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidCapsule) as refused:
        capsules.decode(json.dumps(DOCUMENT | changes).encode())
    assert sentence in str(refused.value)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    "document", [b"", b"null", b"\xff\xfe", b"[" * 100_000, b'{"schema": 1, "message": ' + b"[" * 100_000]
)
def test_other_data_is_refused(document: bytes) -> None:
    with pytest.raises(InvalidCapsule):
        capsules.decode(document)


@given(st.binary(max_size=200))
def test_no_data_raises_another_exception(document: bytes) -> None:
    with pytest.raises(InvalidCapsule):
        capsules.decode(document)


@pytest.mark.parametrize(
    ("text", "values", "masked"),
    [
        ("a secret1 b", ["secret1"], "a *** b"),
        ("short x", ["x", "short"], "short x"),
        ("longest-value", ["longest", "longest-value"], "***"),
    ],
)
def test_values_are_masked_the_longest_first(text: str, values: list[str], masked: str) -> None:
    assert capsules.masked(text, values) == masked
