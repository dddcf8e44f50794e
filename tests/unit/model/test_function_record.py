"""The record of a function: versions, rollbacks, object keys, and errors that name the field."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoagent.model import function_record
from nanoagent.model.errors import InvalidCall
from nanoagent.model.function_record import (
    KEY_PREFIX,
    MAX_VERSIONS,
    FunctionRecord,
    FunctionSettings,
    InvalidRecord,
    NewVersion,
    decode,
    encode,
    key_of,
    rolled_back,
    with_version,
)
from nanoagent.model.job import JobDefaults, NetworkPolicy, Reuse, Runtime
from nanoagent.model.message import parse_job

NOW = datetime(2026, 12, 1, 12, 0, tzinfo=UTC)


def a_version(code: str = "a", **settings: Any) -> NewVersion:
    return NewVersion(
        digest=(code * 64)[:64],
        key=f"functions/f/{code}.zip",
        zip_bytes=10,
        files=1,
        bytes=20,
        deployed_at=NOW,
        author="ann@host",
        settings=FunctionSettings(runtime=Runtime.PYTHON, **settings),
    )


def deployed(*codes: str) -> FunctionRecord:
    """The record after deployments of these codes."""
    record = None
    for code in codes:
        record = with_version(record, "f", a_version(code))
    assert record is not None
    return record


def numbers(record: FunctionRecord) -> list[int]:
    return [version.number for version in record.versions]


# --- deployments


def test_each_deployment_takes_the_next_number_and_is_the_current_one():
    record = deployed("a", "b", "c")
    assert (numbers(record), record.current) == ([1, 2, 3], 3)
    assert [version.replaced for version in record.versions] == [None, 1, 2]
    assert record.current_version.digest == "c" * 64


def test_the_same_code_and_settings_make_no_version():
    record = deployed("a", "b")
    assert with_version(record, "f", a_version("b")) is record
    assert numbers(with_version(record, "f", a_version("b", memory_mb=256))) == [1, 2, 3]
    assert numbers(with_version(record, "f", a_version("a"))) == [1, 2, 3]  # it is not the current one


def test_the_oldest_versions_are_left_out():
    record = None
    for number in range(MAX_VERSIONS + 5):
        record = with_version(record, "f", a_version("a", timeout_ms=1 + number))
    assert record is not None
    assert numbers(record) == list(range(6, MAX_VERSIONS + 6))
    assert record.current == MAX_VERSIONS + 5
    with pytest.raises(InvalidCall, match="version 1: f has no such version; it has 6 to 105"):
        rolled_back(record, 1)


# --- rollbacks


def test_a_rollback_goes_back_to_the_version_that_was_in_use_before():
    record = rolled_back(deployed("a", "b", "c"), 1)
    assert (record.current, numbers(record)) == (1, [1, 2, 3])
    record = with_version(record, "f", a_version("d"))
    assert (record.current, record.current_version.replaced) == (4, 1)
    assert rolled_back(record, None).current == 1  # neither 3 nor 2, which were given up


def test_rollbacks_in_sequence_go_further_back_until_the_first_version():
    record = deployed("a", "b", "c")
    record = rolled_back(record, None)
    assert record.current == 2
    record = rolled_back(record, None)
    assert record.current == 1
    with pytest.raises(InvalidCall, match="version 1 of f is the first one"):
        rolled_back(record, None)


# --- the fields of a job


def test_a_job_has_all_settings_and_leaves_the_others_to_the_worker():
    defaults = JobDefaults(
        s3_bucket="bucket", model_id="m", max_memory_mb=1024, network=NetworkPolicy.EGRESS, locale="en"
    )
    settings = FunctionSettings(
        runtime=Runtime.GO,
        memory_mb=512,
        timeout_ms=7,
        network=NetworkPolicy.NONE,
        model_id="big",
        reuse=Reuse.IMPORTS,
        env={"A": "1"},
    )
    message = {"requestId": "r", "functionId": "f", "s3Key": "k", **settings.job_fields()}
    job = parse_job(json.dumps(message), defaults)
    assert (job.runtime, job.memory_mb, job.timeout_ms) == (Runtime.GO, 512, 7)
    assert (job.network, job.model_id, job.reuse, job.env) == (
        NetworkPolicy.NONE,
        "big",
        Reuse.IMPORTS,
        (("A", "1"),),
    )
    assert FunctionSettings(runtime=Runtime.CPP).job_fields() == {
        "runtime": "cpp",
        "memoryMb": 128,
        "timeoutMs": 300_000,
    }


# --- the object key


@given(st.text(min_size=1, max_size=256).filter(str.isprintable))
def test_a_key_is_plain_whatever_the_id_is(function_id: str):
    key = key_of(function_id)
    assert key.isascii()
    assert key.isprintable()
    assert len(key) <= 200
    assert key.startswith(KEY_PREFIX)
    assert "/" not in key.removeprefix(KEY_PREFIX)
    assert ".." not in key


def test_ids_that_look_alike_have_different_keys():
    ids = [
        "a/b",
        "a-b",
        "a b",
        "A-b",
        "a.b",
        "a/../b",
        "..",
        ".",
        "/",
        "a" * 256,
        "a" * 255,
        "가",
        "나",
        "-",
        "--",
    ]
    assert len({key_of(function_id) for function_id in ids}) == len(ids)


# --- the object


def test_a_record_is_read_as_it_was_written():
    env = {"A": "가", "DB": {"ssm": "/prod/db", "later": [1]}}
    record = with_version(deployed("a"), "f", a_version("b", env=env, network=NetworkPolicy.AI))
    assert decode(encode(record), key_of("f"), "s3://b/k") == record
    assert json.loads(encode(record))["versions"][1]["settings"]["env"]["DB"] == env["DB"]


def test_unknown_fields_are_ignored():
    document = json.loads(encode(deployed("a"))) | {"later": 1}
    assert decode(json.dumps(document).encode(), key_of("f"), "n") == deployed("a")


def changed(path: str, value: Any) -> bytes:
    """A record in which one field has another value; the field is left out if the value is `...`."""
    document = json.loads(encode(deployed("a", "b")))
    *parents, name = path.split(".")
    place = document
    for parent in parents:
        place = place[int(parent)] if parent.isdecimal() else place[parent]
    if value is ...:
        del place[name]
    else:
        place[name] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("current", 3, "current is 3; expected the number of one of the versions"),
        ("current", "x", 'current is "x": Expected `int`, got `str`'),
        ("versions", [], "current is 2; expected the number of one of the versions"),
        ("versions.0.number", 2, "versions have the numbers [2, 2]; expected each number once, in order"),
        ("versions.0.digest", "zz", 'versions[0].digest is "zz": Expected `str` matching regex'),
        ("versions.1.author", ..., "versions[1]: Object missing required field `author`"),
        ("versions.1.deployedAt", "yesterday", 'versions[1].deployedAt is "yesterday": Invalid RFC3339'),
        ("versions.1.settings.memoryMb", 3, "versions[1].settings.memoryMb is 3: Expected `int` >= 32"),
        ("versions.1.settings.runtime", "ruby", 'versions[1].settings.runtime is "ruby": Invalid enum value'),
        ("functionId", "g", 'functionId is "g"; expected the ID that has this key'),
        ("schema", None, "schema is null: Expected `int`, got `null`"),
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_the_remedy(path: str, value: Any, said: str):
    with pytest.raises(InvalidRecord) as caught:
        decode(changed(path, value), key_of("f"), "s3://b/k")
    assert f"s3://b/k: {said}" in str(caught.value)
    assert str(caught.value).endswith(
        "; restore an earlier version of this object, or delete it and deploy the function again"
    )


def test_the_values_of_variables_are_in_no_error():
    with pytest.raises(InvalidRecord) as caught:
        decode(changed("versions.0.settings.env", {"TOKEN": ["hidden"]}), key_of("f"), "n")
    assert "env" in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_a_record_of_a_newer_schema_is_refused_before_its_fields_are_read():
    document = {"schema": function_record.SCHEMA + 1, "functions": "other"}
    with pytest.raises(
        InvalidRecord, match="n: schema is 2; this nanoagent knows 1; install a newer nanoagent"
    ):
        decode(json.dumps(document).encode(), key_of("f"), "n")


@pytest.mark.parametrize("document", [b"", b"[]", b"\xff", b"{}", b"null", b'{"schema": 0}', b"[" * 100_000])
def test_an_object_that_is_no_record_is_refused(document: bytes):
    with pytest.raises(InvalidRecord, match=r"^n: "):
        decode(document, key_of("f"), "n")


@given(
    st.binary(max_size=50)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(
        lambda value: json.dumps({"schema": 1, "versions": value}).encode()
    )
)
def test_no_document_ends_with_another_error(document: bytes):
    with pytest.raises(InvalidRecord):
        decode(document, key_of("f"), "n")


def test_a_record_cannot_be_changed():
    with pytest.raises(AttributeError):
        deployed("a").current = 2  # type: ignore[misc]
    assert isinstance(deployed("a"), msgspec.Struct)
