"""The command `nanoagent functions`: lists the deployed functions, or shows one of them."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nanoagent.aws import clients as aws
from nanoagent.dev.functions import choices
from nanoagent.dev.functions.output import check_function_id, exit_of, no_function, table
from nanoagent.dev.functions.s3_records import S3Records
from nanoagent.dev.sender import dev, stages
from nanoagent.dev.sender.package import shown_size
from nanoagent.dev.sender.stages import Exit
from nanoagent.model.errors import InvalidCall, PlatformError, one_line
from nanoagent.model.function_record import FunctionRecord, InvalidRecord

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

    from nanoagent.config import Settings
    from nanoagent.model.function_record import Version

_HEADINGS: Final = ("FUNCTION", "RUNTIME", "VERSION", "MEMORY", "TIMEOUT", "SIZE", "DEPLOYED", "BY")
_VERSION_HEADINGS: Final = ("VERSION", "CODE", *_HEADINGS[1:2], *_HEADINGS[3:])
_RIGHT: Final = ("VERSION", "MEMORY", "TIMEOUT", "SIZE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call of `nanoagent functions`.

    Attributes:
        function_id: The function to show; empty for all functions.
        as_json: Whether the output is JSON.
        settings_file: The file with the settings.
    """

    function_id: str = ""
    as_json: bool = False
    settings_file: Path = dev.DEFAULT


def functions(settings: Settings, call: Call) -> int:
    """Print the functions or one function, and return the exit code."""
    try:
        if call.function_id:
            check_function_id(call.function_id)
        found = asyncio.run(_read(settings, call.function_id))
    except (InvalidCall, InvalidRecord) as exc:
        return _fail(call, exit_of(exc), str(exc))
    except PlatformError as exc:
        return _fail(call, Exit.SERVICE_FAILED, stages.service_failed(exc, call.settings_file))
    if call.function_id:
        (record,) = found
        assert isinstance(record, FunctionRecord)  # noqa: S101 - `_read` raises the other errors
        _show_one(record, as_json=call.as_json)
        return Exit.SUCCESS
    return _show_all(found, settings.s3_code_bucket, as_json=call.as_json)


async def _read(settings: Settings, function_id: str) -> Sequence[FunctionRecord | InvalidRecord]:
    """Return the records of all functions, or that of one function.

    Raises:
        NoFunction: There is no such function.
        InvalidRecord: The record of this function cannot be used.
        PlatformError: S3 failed.
    """
    async with aws.AwsClients(settings.aws_region) as clients:
        store = S3Records(await clients.s3(), settings.s3_code_bucket)
        if not function_id:
            return await store.all()
        stored = await store.read(function_id)
        if stored is None:
            raise no_function(function_id, settings.s3_code_bucket)
        return [stored.record]


def _fail(call: Call, code: Exit, error: str) -> Exit:
    if call.as_json:
        print(json.dumps({"error": error}))  # noqa: T201
    else:
        print(f"nanoagent: {error}", file=sys.stderr)  # noqa: T201
    return code


# --- all functions


def _show_all(found: Sequence[FunctionRecord | InvalidRecord], bucket: str, *, as_json: bool) -> Exit:
    """Print the functions, and the records that cannot be used."""
    records = sorted(
        (record for record in found if isinstance(record, FunctionRecord)), key=lambda one: one.function_id
    )
    invalid = [str(record) for record in found if isinstance(record, InvalidRecord)]
    if as_json:
        document = {"functions": [_document(record, record.current_version) for record in records]}
        print(json.dumps(document | {"errors": invalid}, indent=2, ensure_ascii=False))  # noqa: T201
    elif records:
        table(_HEADINGS, [_row(record) for record in records], right=_RIGHT)
    else:
        print(f"The bucket {bucket} has no functions; `nanoagent deploy` makes one.", file=sys.stderr)  # noqa: T201
    if not as_json:
        for problem in invalid:
            print(f"nanoagent: {problem}", file=sys.stderr)  # noqa: T201
    return Exit.NOT_SUCCESSFUL if invalid else Exit.SUCCESS


def _row(record: FunctionRecord) -> list[str]:
    version = record.current_version
    return [record.function_id, str(version.settings.runtime), str(version.number), *_cells(version)]


def _cells(version: Version) -> list[str]:
    shown = choices.shown(version.settings)
    return [
        shown["memory"],
        shown["timeout"],
        shown_size(version.zip_bytes),
        time_shown(version.deployed_at),
        version.author,
    ]


def time_shown(moment: datetime) -> str:
    """Return a time in the time zone of this machine, without seconds."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M}"


# --- one function


def _show_one(record: FunctionRecord, *, as_json: bool) -> None:
    """Print the settings of the current version, and all versions."""
    current = record.current_version
    if as_json:
        versions = [_version_document(version) for version in record.versions]
        document = _document(record, current) | {"versions": versions}
        print(json.dumps(document, indent=2, ensure_ascii=False))  # noqa: T201
        return
    settings = {"version": str(current.number), **choices.shown(current.settings)}
    settings["code"] = f"{current.key} ({shown_size(current.zip_bytes)})"
    settings |= {
        f"env {name}": choices.value_shown(value) for name, value in sorted(current.settings.env.items())
    }
    width = max(len(name) for name in settings)
    print(one_line(record.function_id))  # noqa: T201
    for name, value in settings.items():
        print(f"  {one_line(name):{width}}  {one_line(value)}")  # noqa: T201
    print()  # noqa: T201
    rows = [_version_row(version, is_current=version is current) for version in reversed(record.versions)]
    table(_VERSION_HEADINGS, rows, right=_RIGHT)


def _version_row(version: Version, *, is_current: bool) -> list[str]:
    number = f"{'* ' if is_current else ''}{version.number}"
    return [number, version.digest[:12], str(version.settings.runtime), *_cells(version)]


def _document(record: FunctionRecord, version: Version) -> dict[str, Any]:
    """Return a function for `--json`, with one of its versions."""
    return {"functionId": record.function_id, **_version_document(version)}


def _version_document(version: Version) -> dict[str, Any]:
    """Return a version for `--json`. Of the variables, only the names are shown."""
    settings = version.settings
    return {
        "version": version.number,
        "runtime": settings.runtime,
        "memoryMb": settings.memory_mb,
        "timeoutMs": settings.timeout_ms,
        "network": settings.network,
        "modelId": settings.model_id,
        "reuse": settings.reuse,
        "env": sorted(settings.env),
        "digest": version.digest,
        "s3Key": version.key,
        "zipBytes": version.zip_bytes,
        "files": version.files,
        "bytes": version.bytes,
        "deployedAt": version.deployed_at.isoformat(),
        "author": version.author,
        "replaced": version.replaced,
    }
