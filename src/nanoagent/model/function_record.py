"""The record of a deployed function: its versions, and the code and the settings of each version.

`nanoagent deploy` keeps one JSON object for each function in the code bucket, and `nanoagent invoke` fills
jobs from it. Workers do not read records. docs/deploying.md describes the fields.
"""

from __future__ import annotations

import hashlib
import json
import re
from datetime import datetime
from typing import Annotated, Any, Final, TypeAlias

import msgspec

from nanoagent.model.errors import InvalidCall, NanoAgentError, one_line
from nanoagent.model.job import (
    DEFAULT_MEMORY_MB,
    DEFAULT_TIMEOUT_MS,
    MAX_TIMEOUT_MS,
    MIN_MEMORY_MB,
    NetworkPolicy,
    Reuse,
    Runtime,
)

SCHEMA: Final = 1
"""The schema of records. A new number is needed when an older `nanoagent` would lose or misread a field."""

MAX_VERSIONS: Final = 100
"""The number of versions in a record. The zips of older versions stay in the bucket."""

MAX_RECORD_BYTES: Final = 16 * 1024 * 1024  # a hundred versions with 32 KiB of env need a quarter
KEY_PREFIX: Final = "function-records/"
"""The beginning of the object keys of records."""

_MAX_FUNCTION_ID: Final = 256
_READABLE_CHARACTERS: Final = 64
_NOT_READABLE: Final = re.compile(r"[^A-Za-z0-9_-]+")
_SHOWN_CHARACTERS: Final = 80
_PLACE: Final = re.compile(r"(.*) - at `\$\.?([^`]*)`", re.DOTALL)
_STEP: Final = re.compile(r"\[(\d+)\]|([^.\[\]]+)")

Variable: TypeAlias = "str | dict[str, Any]"
"""The value of an environment variable: a text, or an object that names a secret."""

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
Number: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]


class InvalidRecord(NanoAgentError):  # noqa: N818 - names the thing that is invalid
    """A record cannot be used. The message names the object, the field, its value and the remedy."""


class FunctionSettings(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """The settings of a version. The names on the wire are those of a job's message.

    Attributes:
        runtime: The language.
        memory_mb: The memory limit, MiB.
        timeout_ms: The time limit, ms.
        network: The network; None for that of the worker.
        model_id: The model of the AI client; None for that of the worker.
        reuse: What the runs of a container reuse.
        env: The environment variables. Their values may be secret.
    """

    runtime: Runtime
    memory_mb: Annotated[int, msgspec.Meta(ge=MIN_MEMORY_MB)] = DEFAULT_MEMORY_MB
    timeout_ms: Annotated[int, msgspec.Meta(ge=1, le=MAX_TIMEOUT_MS)] = DEFAULT_TIMEOUT_MS
    network: NetworkPolicy | None = None
    model_id: Annotated[str, msgspec.Meta(min_length=1, max_length=256)] | None = None
    reuse: Reuse = Reuse.NONE
    env: dict[str, str | dict[str, Any]] = msgspec.field(default_factory=dict)

    def job_fields(self) -> dict[str, Any]:
        """Return the fields of a job with these settings. Fields for which the worker decides are absent."""
        fields: dict[str, Any] = {
            "runtime": self.runtime,
            "memoryMb": self.memory_mb,
            "timeoutMs": self.timeout_ms,
        }
        optional = {
            "network": self.network,
            "modelId": self.model_id,
            "reuse": self.reuse if self.reuse is not Reuse.NONE else None,
            "env": self.env or None,
        }
        return fields | {name: value for name, value in optional.items() if value is not None}


class Version(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A version of a function. It does not change after its deployment.

    Attributes:
        number: The number; each deployment takes the next one.
        digest: The digest of the code.
        key: The object key of the zip.
        zip_bytes: The size of the zip.
        files: The number of files in it.
        bytes: The total size of the files.
        deployed_at: The time of the deployment.
        author: The person or program that deployed it.
        replaced: The number of the version that was current before; None for the first version. A rollback
            returns to it.
        settings: The settings.
    """

    number: Number
    digest: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    key: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
    zip_bytes: Count
    files: Count
    bytes: Count
    deployed_at: Annotated[datetime, msgspec.Meta(tz=True)]
    author: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    replaced: Number | None = None
    settings: FunctionSettings


class FunctionRecord(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """The record of one function.

    Attributes:
        schema: The schema of the record.
        function_id: The function.
        current: The number of the version that jobs use.
        versions: The latest versions, ordered by their numbers.

    Raises:
        ValueError: The versions are not ordered, or none of them is the current one.
    """

    schema: int = SCHEMA
    function_id: Annotated[str, msgspec.Meta(min_length=1, max_length=_MAX_FUNCTION_ID)]
    current: Number
    versions: tuple[Version, ...]

    def __post_init__(self) -> None:
        numbers = [version.number for version in self.versions]
        if numbers != sorted(set(numbers)):
            raise ValueError(f"versions have the numbers {numbers}; expected each number once, in order")
        if self.current not in numbers:
            raise ValueError(f"current is {self.current}; expected the number of one of the versions")

    @property
    def current_version(self) -> Version:
        """The version that jobs use."""
        return self.version(self.current)

    def version(self, number: int) -> Version:
        """Return a version.

        Raises:
            InvalidCall: The record has no version with this number.
        """
        for version in self.versions:
            if version.number == number:
                return version
        first, last = self.versions[0].number, self.versions[-1].number
        raise InvalidCall(
            [f"version {number}: {one_line(self.function_id)} has no such version; it has {first} to {last}"]
        )

    def has_code(self, key: str) -> bool:
        """Return whether a version has its code at an object key."""
        return any(version.key == key for version in self.versions)


class NewVersion(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a version that are known before its number; see `Version`."""

    digest: str
    key: str
    zip_bytes: int
    files: int
    bytes: int
    deployed_at: datetime
    author: str
    settings: FunctionSettings


def with_version(record: FunctionRecord | None, function_id: str, new: NewVersion) -> FunctionRecord:
    """Return the record with one more version, which is the current one.

    The same record is returned if its current version has this code and these settings. Above `MAX_VERSIONS`,
    the oldest versions are left out.

    Args:
        record: The record before the deployment; None for a new function.
        function_id: The function.
        new: The version.
    """
    if record is not None:
        current = record.current_version
        if (current.digest, current.key, current.settings) == (new.digest, new.key, new.settings):
            return record
    earlier = () if record is None else record.versions
    version = Version(
        number=earlier[-1].number + 1 if earlier else 1,
        replaced=None if record is None else record.current,
        **msgspec.structs.asdict(new),
    )
    return FunctionRecord(
        function_id=function_id,
        current=version.number,
        versions=(*earlier, version)[-MAX_VERSIONS:],
    )


def rolled_back(record: FunctionRecord, number: int | None) -> FunctionRecord:
    """Return the record with an earlier version as the current one.

    Args:
        record: The record before the rollback.
        number: The version; None for the version that the current one replaced. After a rollback from 3 to 1
            and a deployment of 4, this is 1: the last version that was in use before 4.

    Raises:
        InvalidCall: The record has no such version.
    """
    if number is None:
        number = record.current_version.replaced
        if number is None:
            name = one_line(record.function_id)
            advice = f"name another version (nanoagent functions {name} lists them)"
            problem = f"--rollback: version {record.current} of {name} is the first one; {advice}"
            raise InvalidCall([problem])
    return msgspec.structs.replace(record, current=record.version(number).number)


# --- the object


def key_of(function_id: str) -> str:
    """Return the object key of a function's record.

    The key has a readable part of the ID. The SHA-256 of the ID makes the key unique. So an ID may have any
    characters, and up to 1,024 bytes in UTF-8.
    """
    readable = _NOT_READABLE.sub("-", function_id)[:_READABLE_CHARACTERS].strip("-")
    digest = hashlib.sha256(function_id.encode()).hexdigest()
    return f"{KEY_PREFIX}{readable}{'-' * bool(readable)}{digest}.json"


def encode(record: FunctionRecord) -> bytes:
    """Return the record as JSON, on several lines, because people may read it."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2)


class _Header(msgspec.Struct):
    """The only field that all schemas have."""

    schema: Number


def decode(document: bytes, key: str, name: str) -> FunctionRecord:
    """Parse a record.

    Args:
        document: The JSON of the record.
        key: The key of the object.
        name: The name of the object, for errors.

    Raises:
        InvalidRecord: The record cannot be used.
    """
    try:
        schema = msgspec.json.decode(document, type=_Header).schema
        if schema > SCHEMA:
            raise InvalidRecord(
                f"{name}: schema is {schema}; this nanoagent knows {SCHEMA}; install a newer nanoagent"
            )
        record = msgspec.json.decode(document, type=FunctionRecord)
    except msgspec.ValidationError as exc:
        raise InvalidRecord(f"{name}: {_problem(str(exc), document)}; {_REMEDY}") from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidRecord(f"{name}: is not JSON ({exc}); {_REMEDY}") from exc
    if key_of(record.function_id) != key:
        shown = json.dumps(record.function_id)
        raise InvalidRecord(f"{name}: functionId is {shown}; expected the ID that has this key; {_REMEDY}")
    return record


_REMEDY: Final = "restore an earlier version of this object, or delete it and deploy the function again"


def _problem(error: str, document: bytes) -> str:
    """Return an error of msgspec with the name of the field first, and with its value."""
    found = _PLACE.fullmatch(error)
    if found is None:
        return error
    expected, path = found.groups()
    return f"{path or 'the record'}{_value_at(path, document)}: {expected}"


def _value_at(path: str, document: bytes) -> str:
    """Return the value of a field for an error, on one line; empty for objects, lists and variables.

    The values of variables may be secret, and objects may have them.
    """
    value = json.loads(document)
    for index, name in _STEP.findall(path):
        if name == "env":
            return ""
        try:
            value = value[int(index)] if index else value[name]
        except (LookupError, TypeError):  # a path that msgspec cannot name exactly
            return ""
    if isinstance(value, (dict, list)):
        return ""
    text = one_line(json.dumps(value, ensure_ascii=False))
    return f" is {text if len(text) <= _SHOWN_CHARACTERS else f'{text[:_SHOWN_CHARACTERS]}…'}"
