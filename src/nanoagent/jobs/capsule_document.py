"""Makes the document of a capsule from the facts about a job. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from nanoagent.model import capsule as capsules
from nanoagent.model import message, secret
from nanoagent.model.capsule import (
    SCHEMA,
    Capsule,
    CapsuleCode,
    CapsuleImage,
    CapsuleJob,
    CapsuleWorker,
    StoredObject,
)

if TYPE_CHECKING:
    from nanoagent.config import Settings
    from nanoagent.model.job import Job
    from nanoagent.model.result import Result

RUN_SETTINGS: Final = (
    *("max_processes", "max_open_files", "max_file_mb", "tmp_max_mb", "work_max_mb", "output_dir_max_mb"),
    *("max_inodes", "max_output_bytes", "output_max_files", "output_max_file_mb", "output_max_total_mb"),
    *("code_max_zip_mb", "code_max_unpacked_mb", "code_max_file_mb", "code_max_entries"),
    *("build_timeout_seconds", "build_memory_mb"),
    *("cpu_min", "cpu_max", "cpu_memory_mb", "cpu_burst", "python_preload", "function_reuse", "locale"),
    *("network", "network_max_connections", "egress_allow", "egress_deny", "egress_ports", "egress_max_mb"),
    *("ai_model", "ai_models", "ai_max_tokens", "ai_max_requests", "ai_max_concurrent", "ai_max_bytes"),
    *("ai_max_request_bytes", "ai_timeout_seconds", "ai_remote_tools"),
)
"""The settings that change what a program can do or see. None of them is secret."""

_MAX_FIELD_BYTES: Final = 4096  # a key of S3 has 1,024 bytes, and each may take six in JSON
_MAX_ENV_BYTES: Final = 64 * 1024  # names only; the largest valid `env` has 32 KiB


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The facts about a job.

    Attributes:
        body: The message.
        job: The job; None if the message was not a valid job.
        result: The result, with whole texts.
        settings: The settings of the worker.
        worker: The worker.
        image_id: The ID of the runtime's image; None if the message was not a valid job.
        digest: The SHA-256 of the code; None if the code was not fetched.
        etag: The ETag of the code; None if it is not known.
        hidden: Values that the texts of the result must not show.
        ai_record_key: The object key of the recorded model calls; None if there are none.
        made_at: The present time: UTC, ISO 8601.
    """

    body: str
    job: Job | None
    result: Result
    settings: Settings
    worker: CapsuleWorker
    image_id: str | None
    digest: str | None
    etag: str | None
    hidden: tuple[str, ...]
    ai_record_key: str | None
    made_at: str


class _Size(NamedTuple):
    """How much a capsule keeps: characters of a stream, entries of a list, and whether the input."""

    characters: int
    entries: int
    has_input: bool


# The first size that fits is used. The input has at most 1 MiB. So it is left out only if other parts are
# very large.
_SIZES: Final = (
    _Size(64 * 1024, 200, True),
    _Size(16 * 1024, 50, True),
    _Size(4096, 20, True),
    _Size(4096, 20, False),
    _Size(0, 0, False),
)


def document(facts: Facts, max_bytes: int = capsules.MAX_BYTES) -> bytes:
    """Return the JSON of a capsule, cut until it fits.

    Raises:
        UnreadableMessage: The message is not a JSON object.
        ValueError: The capsule does not fit.
    """
    raw = message.raw_fields(facts.body)
    text_of_input = raw.pop("input", b"").decode(errors="replace") or None
    fields, left_out = _fields(raw)
    for size in _SIZES:
        made = capsules.encode(_capsule(facts, fields, left_out, text_of_input, size))
        if len(made) <= max_bytes:
            return made
    raise ValueError(f"the capsule has {len(made)} bytes; {max_bytes} are allowed")


def _capsule(
    facts: Facts, fields: dict[str, Any], left_out: int, text_of_input: str | None, size: _Size
) -> Capsule:
    job, settings = facts.job, facts.settings
    result, omitted = _shortened(_masked(facts.result, facts.hidden), size)
    if left_out:
        omitted["message"] = left_out
    if text_of_input is not None and not size.has_input:
        omitted["input"] = len(text_of_input.encode())
    return Capsule(
        schema=SCHEMA,
        request_id=facts.result.request_id,
        made_at=facts.made_at,
        worker=facts.worker,
        message=fields,
        input=text_of_input if size.has_input else None,
        job=None if job is None else _job(job),
        code=None if job is None else CapsuleCode(facts.digest, facts.etag),
        image=_image(facts),
        settings=_settings(settings),
        model_calls=_model_calls(facts),
        omitted=omitted,
        result=result,
    )


# --- the message


def _fields(raw: dict[str, bytes]) -> tuple[dict[str, Any], int]:
    """Return the fields of a message, without the values of `env`, and how many fields are left out.

    A field of a valid job fits. A field of an invalid message may be of any size, or not be readable.
    """
    fields: dict[str, Any] = {}
    for name, text in raw.items():
        largest = _MAX_ENV_BYTES if name == "env" else _MAX_FIELD_BYTES
        try:
            value = msgspec.json.decode(text) if len(text) <= largest else None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            value = None
        if name == "env":
            value = _without_values(value)
        if value is not None:
            fields[name] = value
    return fields, sum(1 for name in raw if name not in fields and raw[name] != b"null")


def _without_values(env: object) -> dict[str, Any] | None:
    """Return the names of variables, with None for each value. A reference to a secret stays.

    A reference is an object that names a secret. Any other value may be a secret itself.
    """
    if not isinstance(env, dict):
        return None
    return {name: None if secret.parse(value) is None else value for name, value in env.items()}


# --- the other parts


def _job(job: Job) -> CapsuleJob:
    return CapsuleJob(**{name: getattr(job, name) for name in CapsuleJob.__struct_fields__})


def _image(facts: Facts) -> CapsuleImage | None:
    if facts.job is None or facts.image_id is None:
        return None
    return CapsuleImage(facts.settings.image(facts.job.runtime), facts.image_id)


def _settings(settings: Settings) -> dict[str, Any]:
    shown = settings.model_dump(mode="json", include=set(RUN_SETTINGS))
    return {name.upper(): shown[name] for name in RUN_SETTINGS}


def _model_calls(facts: Facts) -> StoredObject | None:
    if facts.ai_record_key is None:
        return None
    return StoredObject(facts.settings.s3_user_data_bucket, facts.ai_record_key)


# --- the result


def _masked(result: Result, hidden: tuple[str, ...]) -> Result:
    """Return the result without the values of environment variables, and with links that grant nothing."""

    def text(value: str) -> str:
        return capsules.masked(value, hidden)

    return msgspec.structs.replace(
        result,
        stdout=text(result.stdout),
        stderr=text(result.stderr),
        error_message=None if result.error_message is None else text(result.error_message),
        hint=None if result.hint is None else text(result.hint),
        output_files=[text(link.partition("?")[0]) for link in result.output_files],
        output_errors=[
            msgspec.structs.replace(error, path=text(error.path), reason=text(error.reason))
            for error in result.output_errors
        ],
    )


def _shortened(result: Result, size: _Size) -> tuple[Result, dict[str, int]]:
    """Return the result with the ends of streams and the beginnings of lists, and how much is left out."""
    omitted = {
        "stdout": len(result.stdout) - size.characters,
        "stderr": len(result.stderr) - size.characters,
        "outputFiles": len(result.output_files) - size.entries,
        "outputErrors": len(result.output_errors) - size.entries,
    }
    shorter = msgspec.structs.replace(
        result,
        stdout=end_of(result.stdout, size.characters),
        stderr=end_of(result.stderr, size.characters),
        output_files=result.output_files[: size.entries],
        output_errors=result.output_errors[: size.entries],
    )
    return shorter, {name: count for name, count in omitted.items() if count > 0}


def end_of(text: str, characters: int) -> str:
    """Return the last characters of a text."""
    return text[max(0, len(text) - characters) :]
