"""Finds a capsule by a path, a request ID or an `s3://` URL, with its code and its recorded model calls."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nanoagent.aws import clients as aws
from nanoagent.common.units import MIB
from nanoagent.dev.replay import bundle
from nanoagent.dev.replay.bundle import Contents
from nanoagent.model import capsule as capsules
from nanoagent.model.capsule import InvalidCapsule
from nanoagent.model.errors import InvalidCall, NanoAgentError, StorageError, one_line
from nanoagent.storage.base import Absence, ObjectMissing, ObjectTooLarge, shown
from nanoagent.storage.s3 import S3Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from nanoagent.config import Settings
    from nanoagent.model.capsule import Capsule, StoredObject

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_URL: Final = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(.+)", re.DOTALL)
_MAX_SHOWN: Final = 200


class NoCapsule(NanoAgentError):  # noqa: N818 - names what is missing
    """There is no such capsule."""


class CodeNotReadable(NanoAgentError):  # noqa: N818 - names what is missing
    """The code of a capsule cannot be read from S3."""


@dataclass(frozen=True, slots=True)
class Services:
    """The settings by which S3 is found.

    Attributes:
        region: The region of the buckets.
        bucket: The bucket of capsules.
        max_code_bytes: The largest code zip.
    """

    region: str
    bucket: str
    max_code_bytes: int

    @classmethod
    def of(cls, settings: Settings) -> Services:
        """Return the part of the settings that matters here."""
        return cls(settings.aws_region, settings.s3_user_data_bucket, settings.code_max_zip_mb * MIB)


@dataclass(frozen=True, slots=True)
class Found:
    """A capsule with its parts.

    Attributes:
        contents: The capsule and its parts.
        notes: What the reader should know about them, as sentences.
        code_is_other: Whether the code in S3 is not the recorded code any more.
    """

    contents: Contents
    notes: tuple[str, ...] = ()
    code_is_other: bool = False


async def find(
    name: str, into: Path, services: Callable[[], Services], max_code_bytes: int, *, with_code: bool
) -> Found:
    """Find a capsule and its parts. Nothing is asked for that a file already has.

    Args:
        name: A path, a request ID or an `s3://` URL.
        into: The folder for the code and the model calls.
        services: Reads the settings of S3. It is called only if S3 is asked.
        max_code_bytes: The largest code zip in a file.
        with_code: Whether the code and the model calls are needed, too.

    Raises:
        InvalidCall: The name is none of these, or the file cannot be read.
        InvalidCapsule: The capsule is invalid.
        NoCapsule: There is no such capsule.
        CodeNotReadable: The code cannot be read from S3.
        StorageError: S3 failed.
    """
    path = Path(name)
    if is_file(path):
        if bundle.is_bundle(path):
            contents = bundle.read(path, into, max_code_bytes)
            if contents.code is not None or not _needs_code(contents.capsule):
                return Found(contents)
        else:
            contents = Contents(capsules.decode(_read(path)))
        if not with_code or not _needs_code(contents.capsule):
            return Found(contents)
        found = services()
        async with aws.AwsClients(found.region) as clients:
            return await _with_parts(contents, into, S3Store(await clients.s3()), found)
    place = _place(name)
    found = services()
    bucket, key = place or (found.bucket, capsules.key_of(name))
    async with aws.AwsClients(found.region) as clients:
        store = S3Store(await clients.s3())
        contents = Contents(await _capsule(store, bucket, key, into, name))
        if not with_code:
            return Found(contents)
        return await _with_parts(contents, into, store, found)


def needs_bucket(name: str) -> bool:
    """Return whether the capsule is found by its request ID, which needs the bucket of a worker."""
    return not is_file(Path(name)) and _URL.fullmatch(name) is None


def is_file(path: Path) -> bool:
    """Return whether the path is an existing file."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or a NUL
        return False


def _place(name: str) -> tuple[str, str] | None:
    """Return the bucket and the key of a URL; None for a request ID.

    Raises:
        InvalidCall: The name is neither.
    """
    if (url := _URL.fullmatch(name)) is not None:
        return url[1], url[2]
    if _REQUEST_ID.fullmatch(name) and name not in {".", ".."}:
        return None
    raise InvalidCall(
        [f"{one_line(name)[:_MAX_SHOWN]}: is not an existing file, a request ID, or a URL s3://BUCKET/KEY"]
    )


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(bundle.MAX_CAPSULE_BYTES + 1)
    except OSError as exc:
        raise InvalidCall([f"{path}: {exc.strerror or exc}"]) from exc
    if len(data) > bundle.MAX_CAPSULE_BYTES:
        raise InvalidCapsule(f"not a capsule: the file is larger than {bundle.MAX_CAPSULE_BYTES:,} bytes")
    return data


async def _capsule(store: S3Store, bucket: str, key: str, into: Path, name: str) -> Capsule:
    file = into / bundle.CAPSULE
    try:
        await store.fetch(bucket, key, file, etag=None, max_bytes=bundle.MAX_CAPSULE_BYTES)
    except ObjectMissing as missing:
        if missing.absence not in {Absence.KEY, Absence.DENIED}:
            raise StorageError(str(missing)) from missing
        reasons = (
            "check the ID (nanoagent jobs lists recent jobs). Only failed jobs leave a capsule, unless the "
            "worker's setting CAPSULES says otherwise, and a lifecycle rule of the bucket may delete it"
        )
        refused = "; or these credentials may not read it" if missing.absence is Absence.DENIED else ""
        raise NoCapsule(
            f"no capsule of {one_line(name)} at {shown(bucket, key)}: {reasons}{refused}"
        ) from missing
    except ObjectTooLarge as exc:
        raise InvalidCapsule(f"not a capsule: {exc}") from exc
    return capsules.decode(file.read_bytes())


# --- the parts


def _needs_code(capsule: Capsule) -> bool:
    """Return whether a run needs code. A message that was not a valid job is refused without it."""
    return capsule.job is not None


async def _with_parts(contents: Contents, into: Path, store: S3Store, services: Services) -> Found:
    """Return the capsule with the code and the model calls from S3."""
    capsule, notes = contents.capsule, []
    code, is_other = contents.code, False
    if code is None and capsule.job is not None:
        code = await _code(capsule, into / bundle.CODE, store, services.max_code_bytes)
        recorded = capsule.code.digest if capsule.code else None
        if code is not None and recorded is None:
            notes.append("The code in S3 may have changed since then: the worker did not record its digest.")
        elif code is not None and bundle.digest_of(code) != recorded:
            is_other = True
            notes.append("The code in S3 has changed since then; the replay uses the new code.")
    calls = contents.model_calls
    if calls is None and capsule.model_calls is not None:
        calls, note = await _model_calls(capsule.model_calls, into / bundle.MODEL_CALLS, store)
        notes += [note] if note else []
    return Found(Contents(capsule, code, calls), tuple(notes), is_other)


async def _code(capsule: Capsule, into: Path, store: S3Store, max_bytes: int) -> Path | None:
    """Fetch the code; None if it does not exist, and the worker did not find it either."""
    job = capsule.job
    assert job is not None  # noqa: S101 - the caller has checked it
    try:
        await store.fetch(job.s3_bucket, job.s3_key, into, etag=None, max_bytes=max_bytes)
    except (ObjectMissing, ObjectTooLarge) as exc:
        if capsule.result.error_type == "CODE_NOT_FOUND" and isinstance(exc, ObjectMissing):
            return None
        raise CodeNotReadable(f"the code cannot be read: {exc}; give it with --code PATH") from exc
    return into


async def _model_calls(place: StoredObject, into: Path, store: S3Store) -> tuple[Path | None, str | None]:
    """Fetch the recorded model calls. Returns them, and a note if that was not possible."""
    try:
        await store.fetch(place.bucket, place.key, into, etag=None, max_bytes=bundle.MAX_MODEL_CALLS_BYTES)
    except (ObjectMissing, ObjectTooLarge) as exc:
        return None, f"The recorded model calls cannot be read, so calls get an error: {one_line(str(exc))}."
    bundle.check_model_calls(into)
    return into, None
