"""The oracle for messages, for property tests and fuzzing.

The oracle reads a message with Python's own JSON reader, and applies section 1 of the contract.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any, Final

from nanoagent.jobs.environment import environment_of
from nanoagent.model import result as results
from nanoagent.model.errors import UnreadableMessage
from nanoagent.model.job import Job, JobDefaults, Runtime
from nanoagent.model.message import MAX_MESSAGE_BYTES, InvalidJob, parse_job
from nanoagent.model.result import ErrorType, Result, Status

DEFAULTS: Final = JobDefaults(s3_bucket="code-bucket", model_id="llama3:8b", max_memory_mb=4096)
LONGEST_MESSAGE: Final = 2000
_NESTING: Final = 300
"""Every JSON value up to this depth must be read. Deeper values depend on the stack."""

_FIELDS: Final = (
    *("requestId", "functionId", "runtime", "s3Key", "s3Bucket", "memoryMb", "timeoutMs", "input", "modelId"),
    *("network", "locale", "tenantId", "reuse"),
)


class _Number(str):
    """The text of a number, distinct from a string of the message."""

    __slots__ = ()


class _Integer(_Number):
    __slots__ = ()


Ending = Job | InvalidJob | UnreadableMessage


def ending_of(body: str | bytes) -> Ending:
    """Return how a message ends. Unexpected exceptions reach the caller."""
    try:
        return parse_job(body, DEFAULTS)
    except (InvalidJob, UnreadableMessage) as ending:
        return ending


def tried(body: str | bytes) -> Ending:
    """Parse a message and check the result.

    Raises:
        AssertionError: The message did not end as the contract says, the error is not one clear sentence, or
            an accepted value could do harm.
    """
    ending = ending_of(body)
    document, has_constants = _read(body)
    if isinstance(ending, UnreadableMessage):
        _check_sentence(str(ending), ("the message ", "requestId is "))
        too_deep = document is not None and _depth(body) > _NESTING
        assert too_deep or not _has_request_id(document), f"unreadable, though it can be read: {ending}"
        return ending
    assert document is not None, "no JSON object, and not unreadable"
    assert _has_request_id(document), "no requestId, and not unreadable"
    assert ending.request_id == document["requestId"]
    wrong = {name for name in _FIELDS[1:] if not _is_right(name, document.get(name))}
    if isinstance(ending, InvalidJob):
        # tests/unit/model/test_variables.py has the rules of `env`.
        has_variables = document.get("env") is not None
        _check_invalid(ending, wrong, may_be_refused=has_constants or has_variables)
    else:
        assert not wrong, f"taken although {wrong} is wrong"
        assert not has_constants, "taken although it is no JSON"
        _check_job(ending, document, body)
    return ending


def _check_sentence(text: str, beginnings: tuple[str, ...]) -> None:
    """Check that an error is one clear line."""
    assert text.startswith(beginnings)
    assert text.isprintable(), f"not one printable line: {text!r}"
    assert len(text) <= LONGEST_MESSAGE


def _check_invalid(invalid: InvalidJob, wrong: set[str], *, may_be_refused: bool) -> None:
    rejection = invalid.rejection
    assert rejection.error_type is ErrorType.INVALID_JOB
    message = str(rejection.message)
    _check_sentence(message, ("",))
    assert "; expected " in message or re.search(r"(^|; )env\b", message), "what was expected is not said"
    assert wrong or may_be_refused, f"refused without a reason: {message}"
    for name in _FIELDS[1:]:
        named = re.search(rf"(^|; ){name} is ", message) is not None
        assert named or name not in wrong, f"{name} is wrong and not named"
    assert invalid.function_id.isprintable()
    assert len(invalid.function_id) <= 256
    assert invalid.runtime.isprintable()
    assert 1 <= len(invalid.runtime) <= 64
    result = Result(
        request_id=invalid.request_id,
        function_id=invalid.function_id,
        runtime=invalid.runtime,
        status=Status.FAILED,
        error_type=rejection.error_type,
        error_message=message,
    )
    assert results.decode(results.encode(result)) == result


def _check_job(job: Job, document: dict[str, Any], body: str | bytes) -> None:
    """Check that a job has the values of its message, all harmless to Redis, S3, folders and programs."""
    given = {name: value for name, value in document.items() if value is not None}
    assert job.function_id == given.get("functionId", "unknown")
    assert job.runtime is Runtime(given.get("runtime", "python"))
    assert job.s3_key == given["s3Key"]
    assert job.s3_bucket == given.get("s3Bucket", DEFAULTS.s3_bucket)
    assert job.memory_mb == int(given.get("memoryMb", 128))
    assert job.timeout_ms == int(given.get("timeoutMs", 300_000))
    assert job.model_id == given.get("modelId", DEFAULTS.model_id)
    assert job.network == given.get("network", DEFAULTS.network)
    assert job.locale == given.get("locale", DEFAULTS.locale)
    assert job.tenant_id == given.get("tenantId")
    assert job.reuse == given.get("reuse", "none")
    assert {name for name, _ in (*job.env, *job.secrets)} == set(given.get("env", {}))
    text = job.payload.decode()
    assert text in ((body if isinstance(body, str) else body.decode()) if "input" in document else "{}")
    assert _parse(text, []) == document.get("input", {})
    check_names(job.request_id)
    for name, value in environment_of(job).items():
        assert "\0" not in f"{name}={value}".encode().decode(), "no environment can carry that"


def check_names(request_id: str) -> None:
    """Check that a request ID gives one separate folder and one separate key after any prefix."""
    assert Path("/a", request_id).name == request_id
    assert posixpath.normpath(f"/outputs/{request_id}/x") == f"/outputs/{request_id}/x"
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", request_id)
    assert not request_id.endswith("\n")


# --- the oracle's reader


def _read(body: str | bytes) -> tuple[dict[str, Any] | None, bool]:
    """Return the message as an object with numbers as text, and whether it contains NaN or Infinity.

    Return None if the message is not an object, or too large.
    """
    constants: list[str] = []
    try:
        raw = body.encode() if isinstance(body, str) else body
        document = _parse(raw.decode().removeprefix("\ufeff"), constants)
    except (ValueError, RecursionError):
        return None, False
    if len(raw) > MAX_MESSAGE_BYTES or not isinstance(document, dict):
        return None, False
    return document, bool(constants)


def _parse(text: str, constants: list[str]) -> Any:
    return json.loads(text, parse_int=_Integer, parse_float=_Number, parse_constant=constants.append)


def _has_request_id(document: dict[str, Any] | None) -> bool:
    value = (document or {}).get("requestId")
    if not _is_text(value):
        return False
    return re.fullmatch(r"[A-Za-z0-9._-]{1,128}", str(value)) is not None and value not in {".", ".."}


def _depth(body: str | bytes) -> int:
    """Return an upper bound of the depth of a message."""
    return sum(map(body.count, "[{")) if isinstance(body, str) else sum(map(body.count, (b"[", b"{")))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not isinstance(value, _Number)


def _is_right(name: str, value: Any) -> bool:  # noqa: PLR0911 - the contract's table, a line a field
    if name == "input" or (value is None and name != "s3Key"):
        return True
    if name in {"memoryMb", "timeoutMs"}:
        least, most = (32, DEFAULTS.max_memory_mb) if name == "memoryMb" else (1, 42_000_000)
        return isinstance(value, _Integer) and len(value) < 20 and least <= int(value) <= most
    if not _is_text(value):
        return False
    if name == "runtime":
        return value in {"python", "nodejs", "cpp", "go"}
    if name == "network":  # at most DEFAULTS.network
        return value in {"none", "ai"}
    if name == "locale":
        return value in {"ko", "en"}
    if name == "s3Bucket":
        return re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", value) is not None
    if name == "s3Key":
        return (
            1 <= len(value.encode(errors="surrogatepass")) <= 1024
            and _is_unicode(value)
            and "\0" not in value
        )
    return 1 <= len(value) <= 256 and value.isprintable()


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)
