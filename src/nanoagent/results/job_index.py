"""The index of jobs in Redis, which `nanoagent jobs` reads.

The stream `nanoagent:jobs` has an entry for each job that has ended, and for each failed attempt after which
the job waits for another one. The ID of the entry is the time, ms since the Unix epoch, by the server's
clock. Its field `job` is a JSON array, see `Entry`. The stream has about JOB_INDEX_SIZE entries, and keeps
them for JOB_INDEX_TTL_SECONDS.

The sorted set `nanoagent:running` has the requests that workers have claimed. The score is the end of the
claim, the server's clock in microseconds. The field `about` of the claim (`scripts`) has the function and the
memory of the job. If a worker dies, the claim ends soon, so the request does not count as running for long.

The entries have no input, no environment variable, no stdout and no stderr. The error message is the first
line of that of the result, which may quote a line of stderr. docs/adr/0039 gives the reasons for this design.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from nanoagent.model.errors import one_line

if TYPE_CHECKING:
    from nanoagent.model.job import Job
    from nanoagent.model.result import Result

MAX_ENTRY_BYTES: Final = 300
"""The largest size of an entry, bytes."""

WAITING: Final = "WAITING"
"""The status of a job whose attempt has failed, and that waits for the next one."""

_FUNCTION_CHARACTERS: Final = 48  # a functionId has up to 256
_CUT: Final = "…"


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """An entry of the index. Later versions may append fields.

    Attributes:
        request_id: The request.
        function_id: The function; a long ID is cut.
        status: The status of the result, or `WAITING`.
        error_type: The error type of the result; None for success.
        message: The first line of the error message; a long line is cut.
        exit_code: The exit code of the program.
        start: The state of the run's container before the run; None without a run.
        duration_ms: The wall time of the program.
        peak_memory_bytes: The peak memory of the run; None if it is unknown.
        memory_mb: The memory limit, MiB; None for an invalid job.
        attempt: The number of the attempt.
        total_ms: The time from the receipt of the message to the result, ms.
    """

    request_id: str
    function_id: str
    status: str
    error_type: str | None = None
    message: str | None = None
    exit_code: int = -1
    start: str | None = None
    duration_ms: int = 0
    peak_memory_bytes: int | None = None
    memory_mb: int | None = None
    attempt: int = 1
    total_ms: int = 0


class About(msgspec.Struct, array_like=True, frozen=True):
    """What the claim says about a running job: the function, and the memory limit, MiB."""

    function_id: str = ""
    memory_mb: int | None = None


_encoder: Final = msgspec.json.Encoder()
_entries: Final = msgspec.json.Decoder(Entry)
_abouts: Final = msgspec.json.Decoder(About)


def about(function_id: str, memory_mb: int | None) -> bytes:
    """Return the description of a running job."""
    return _encoder.encode((_short(function_id), memory_mb))


def about_of(data: bytes | None) -> About:
    """Return the description in a claim; an empty one if it cannot be read."""
    try:
        return _abouts.decode(data or b"[]")
    except msgspec.DecodeError:
        return About()


def of_result(result: Result) -> bytes:
    """Return the entry of a job that has ended."""
    return _sized(
        Entry(
            result.request_id,
            _short(result.function_id),
            result.status,
            result.error_type,
            result.error_message,
            result.exit_code,
            result.start,
            result.duration_ms,
            result.peak_memory_bytes,
            result.memory_mb,
            result.attempt,
            int(result.timings.total),
        )
    )


def of_failed_attempt(job: Job, attempt: int, error_type: str, message: str) -> bytes:
    """Return the entry of a job that waits for another attempt."""
    return _sized(
        Entry(
            job.request_id,
            _short(job.function_id),
            WAITING,
            error_type,
            message,
            memory_mb=job.memory_mb,
            attempt=attempt,
        )
    )


def is_same_function(listed: str, function_id: str) -> bool:
    """Return whether the function ID of an entry, which may be cut, belongs to a function."""
    start = listed.removesuffix(_CUT)
    return listed == function_id or (start not in {"", listed} and function_id.startswith(start))


def decode(data: bytes) -> Entry | None:
    """Return an entry; None if it cannot be read."""
    try:
        return _entries.decode(data)
    except msgspec.DecodeError:
        return None


def _sized(entry: Entry) -> bytes:
    """Return the JSON of an entry. If it is too large, first the message and then the function ID is cut."""
    if entry.message is not None:
        lines = entry.message.lstrip().splitlines()
        entry = msgspec.structs.replace(entry, message=one_line(lines[0]) if lines else None)
    encoded = _encoder.encode(entry)
    while (excess := len(encoded) - MAX_ENTRY_BYTES) > 0:
        if entry.message:
            entry = msgspec.structs.replace(entry, message=_cut(entry.message, excess))
        else:
            function_id = _cut(entry.function_id.removesuffix(_CUT), excess + len(_CUT.encode())) + _CUT
            entry = msgspec.structs.replace(entry, function_id=function_id)
        encoded = _encoder.encode(entry)
    return encoded


def _short(function_id: str) -> str:
    """Return a function ID of limited length. A cut ID ends with an ellipsis."""
    if len(function_id) <= _FUNCTION_CHARACTERS:
        return function_id
    return function_id[: _FUNCTION_CHARACTERS - 1] + _CUT


def _cut(text: str, excess: int) -> str:
    """Return a text without its last bytes. Each call removes at least one character."""
    data = text.encode(errors="replace")
    return data[: max(0, len(data) - excess)].decode(errors="ignore")
