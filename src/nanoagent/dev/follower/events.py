"""Turns the records of a live log into events, and finds the places where output is missing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from nanoagent.results.live_log import BEGINNING, Kind, Record
from nanoagent.supervisor import gap

if TYPE_CHECKING:
    from collections.abc import Iterator

_POSITION: Final = re.compile(r"(\d{1,20}-\d{1,20})\.(\d{1,20})\.(\d{1,20})\.(\d{1,20})")

STDOUT: Final = "stdout"
STDERR: Final = "stderr"
STREAMS: Final = {Kind.STDOUT: STDOUT, Kind.STDERR: STDERR}


@dataclass(frozen=True, slots=True)
class Waiting:
    """No worker has the job now."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A worker has the job. Its live output has not begun."""

    worker: str


@dataclass(frozen=True, slots=True)
class Started:
    """Live output begins.

    Attributes:
        worker: The ID of the worker.
        attempt: The number of the attempt.
        is_again: Whether output of an earlier run of the job was shown.
    """

    worker: str
    attempt: int
    is_again: bool


@dataclass(frozen=True, slots=True)
class Output:
    """Output of the program.

    Attributes:
        stream: `stdout` or `stderr`.
        attempt: The number of the attempt.
        offset: The number of bytes of the stream before it.
        data: The bytes.
    """

    stream: str
    attempt: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Missing:
    """Output that is not shown.

    Attributes:
        stream: `stdout` or `stderr`.
        attempt: The number of the attempt.
        offset: The number of bytes of the stream before it.
        missing_bytes: Its length, bytes.
    """

    stream: str
    attempt: int
    offset: int
    missing_bytes: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The worker stores the output of too many jobs already."""

    worker: str


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """The attempt has ended without a result; the job will be tried again."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The job has ended.

    Attributes:
        result: The result document.
    """

    result: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Disconnected:
    """Redis does not answer; the follower tries again."""

    reason: str


Event: TypeAlias = (
    "Waiting | Taken | Started | Output | Missing | Refused | AttemptEnded | Ended | Disconnected"
)


@dataclass(frozen=True, slots=True)
class Position:
    """How far a follower has read.

    Attributes:
        record: The position of the last record in the live log.
        token: The fencing token of the run.
        stdout: The number of bytes of stdout that were shown or reported as missing.
        stderr: The same for stderr.
    """

    record: str = BEGINNING
    token: int = 0
    stdout: int = 0
    stderr: int = 0

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        return f"{self.record}.{self.token}.{self.stdout}.{self.stderr}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """Return the position that a follower has printed.

        Raises:
            ValueError: The text is not a position.
        """
        if not (found := _POSITION.fullmatch(text)):
            raise ValueError(f"{text!r} is not a position, as printed by `nanoagent logs`")
        return cls(found[1], *map(int, found.groups()[1:]))


class Tracker:
    """Follows the records of one job.

    Args:
        since: The position after which events are wanted.

    Attributes:
        attempt: The number of the attempt of the last record; 0 before the first record.
        has_started: Whether the last run has live output, and has not ended without a result.
        has_ended: Whether the last run has ended with a result.
    """

    def __init__(self, since: Position | None = None) -> None:
        since = since or Position()
        self.attempt = 0
        self.has_started = since.token > 0
        self.has_ended = False
        self._record = since.record
        self._token = since.token
        self._ends = {STDOUT: since.stdout, STDERR: since.stderr}

    @property
    def position(self) -> Position:
        """The position after the last record."""
        return Position(self._record, self._token, self._ends[STDOUT], self._ends[STDERR])

    def take(self, position: str, record: Record) -> Iterator[Event]:
        """Yield the events of the next record."""
        self._record = position
        self.attempt = record.attempt
        if record.kind in STREAMS:
            yield from self._output(STREAMS[record.kind], record)
        elif record.kind is Kind.STARTED:
            yield from self._start(record)
        elif record.kind is Kind.REFUSED:
            yield Refused(record.data.decode(errors="replace"))
        elif record.data:
            self.has_ended = True
        else:
            self.has_started = False
            yield AttemptEnded(record.attempt)

    def _start(self, record: Record) -> Iterator[Event]:
        if record.position == self._token:  # stored twice, because the worker did not get the first answer
            return
        is_again = self._token > 0
        self._token = record.position
        self._ends = {STDOUT: 0, STDERR: 0}
        self.has_started, self.has_ended = True, False
        yield Started(record.data.decode(errors="replace"), record.attempt, is_again)

    def _output(self, stream: str, record: Record) -> Iterator[Event]:
        end = self._ends[stream]
        if record.end < end or (record.end == end and record.data):  # seen already
            return
        if record.position > end:
            yield Missing(stream, record.attempt, end, record.position - end)
        self._ends[stream] = record.end
        if record.data:
            yield Output(stream, record.attempt, record.position, record.data)

    def finish(self, result: dict[str, Any]) -> Iterator[Event]:
        """Yield the output of a result that the live log does not have, and the end."""
        attempt = int(result.get("attempt") or 1)
        if not self.has_ended:
            if not self.has_started:  # the last run had no live output
                self._ends = {STDOUT: 0, STDERR: 0}
            for stream in (STDOUT, STDERR):
                yield from self._rest(stream, attempt, result)
        yield Ended(result)

    def _rest(self, stream: str, attempt: int, result: dict[str, Any]) -> Iterator[Event]:
        text, cut = str(result.get(stream) or ""), int(result.get(f"{stream}TruncatedBytes") or 0)
        for offset, data in parts_of(text, cut):
            end = self._ends[stream]
            if offset + len(data) <= end:
                continue
            if offset > end:
                yield Missing(stream, attempt, end, offset - end)
            yield Output(stream, attempt, max(offset, end), data[max(0, end - offset) :])
            self._ends[stream] = offset + len(data)


def parts_of(text: str, cut_bytes: int) -> list[tuple[int, bytes]]:
    """Return the parts of a stream that a result has, each with its offset.

    The offsets are wrong by a few bytes if the program has printed bytes that are not UTF-8.

    Args:
        text: The stream in the result.
        cut_bytes: How many bytes of its middle are missing.
    """
    parts = gap.split(text) if cut_bytes else None
    if parts is None:
        return [(0, text.encode(errors="replace"))] if text else []
    head, tail = (part.encode(errors="replace") for part in parts)
    return [(0, head), (len(head) + cut_bytes, tail)]
