"""Prints the events of a job.

Output of the function goes to the same streams of this process. In a pipe or a file it is unchanged. On a
terminal, control characters are shown as escapes, because the output of a program is untrusted: escape
sequences can change the title, the clipboard or earlier lines of the terminal.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from nanoagent.dev.follower import events
from nanoagent.dev.follower.events import STDERR, STDOUT
from nanoagent.model.errors import one_line

if TYPE_CHECKING:
    from nanoagent.dev.follower.events import Event, Position

_DESCRIPTORS: Final = {STDOUT: 1, STDERR: 2}
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]{0,30}m")
_BEGUN_SEQUENCE: Final = re.compile(r"(?:\x1b(?:\[[0-9;]{0,30})?|\r)\Z")
_ESCAPES: Final = {"\x1b": "\\x1b"}
_UNITS: Final = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


class ReaderGone(Exception):  # noqa: N818 - not a failure
    """Nobody reads the output of this command any more."""


def size(number: int) -> str:
    """Return a number of bytes for a person."""
    for unit, name in _UNITS:
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number} byte{'s' * (number != 1)}"


class TerminalText:
    """Decodes the output of one stream for a terminal. Characters and sequences may arrive in pieces."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def shown(self, data: bytes) -> str:
        """Return the text that the terminal may get. Colours are left out."""
        text = self._held + self._decoder.decode(data)
        begun = _BEGUN_SEQUENCE.search(text)
        self._held = text[begun.start() :] if begun else ""
        text = text[: begun.start()] if begun else text
        text = _COLOUR.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
        return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character.isprintable() or character in "\n\t":
        return character
    return _ESCAPES.get(character) or character.encode("unicode_escape").decode()


class Printer:
    """Prints events.

    Args:
        request_id: The request ID of the job.
        stream: `stdout` or `stderr` to print only that stream; empty for both.
        is_quiet: Whether only the output is printed, without the notices of this command.
    """

    def __init__(self, request_id: str, stream: str = "", *, is_quiet: bool = False) -> None:
        self._request_id = request_id
        self._streams = {stream} if stream else {STDOUT, STDERR}
        self._is_quiet = is_quiet
        self._texts = {name: TerminalText() for name, number in _DESCRIPTORS.items() if os.isatty(number)}
        self._is_inside_line = dict.fromkeys(_DESCRIPTORS, False)

    def event(self, event: Event, position: Position) -> None:  # noqa: ARG002 - as `JsonPrinter`
        """Print an event.

        Raises:
            ReaderGone: The stream was closed.
        """
        if isinstance(event, events.Output):
            if event.stream in self._streams:
                self._write(event.stream, event.data)
        elif isinstance(event, events.Missing):
            if event.stream in self._streams:
                self._end_line(event.stream)
                self._write(event.stream, f"… {size(event.missing_bytes)} not shown …\n".encode())
        elif not self._is_quiet and (notice := _notice(event, self._request_id)):
            self.notice(notice)

    def notice(self, text: str) -> None:
        """Print a line of this command to standard error."""
        self.begin_line()
        self._write(STDERR, f"nanoagent: {one_line(text)}\n".encode())

    def begin_line(self) -> None:
        """End an unfinished line, so that a line of this command can follow on standard error."""
        for stream in (STDOUT, STDERR):
            if stream == STDERR or stream in self._texts:
                self._end_line(stream)

    def _end_line(self, stream: str) -> None:
        if self._is_inside_line[stream]:
            self._write(stream, b"\n")

    def _write(self, stream: str, data: bytes) -> None:
        if stream in self._texts:
            data = self._texts[stream].shown(data).encode(errors="replace")
        if not data:
            return
        is_inside = not data.endswith(b"\n")
        for other in self._texts if stream in self._texts else (stream,):  # a terminal has one cursor
            self._is_inside_line[other] = is_inside
        while data:
            try:
                data = data[os.write(_DESCRIPTORS[stream], data) :]
            except OSError as exc:
                raise ReaderGone from exc


def _notice(event: Event, request_id: str) -> str:  # noqa: PLR0911 - a table of sentences
    match event:
        case events.Waiting():
            return f"no worker has {request_id}: it waits, or its result has expired, or it was never sent"
        case events.Taken(worker):
            return f"worker {worker} has {request_id}"
        case events.Started(worker, attempt, is_again):
            return f"attempt {attempt} {'begins again' if is_again else 'runs'} on worker {worker}"
        case events.Refused(worker):
            limit = "LIVE_LOGS_MAX_JOBS"
            return f"worker {worker} follows {limit} jobs already; the output appears at the end of the job"
        case events.AttemptEnded(attempt):
            return f"attempt {attempt} ended without a result; the job will be tried again"
        case events.Disconnected(reason):
            return f"{reason}; trying again"
        case events.Ended(result):
            return _ending(result)
        case _:
            return ""


def _ending(result: dict[str, Any]) -> str:
    error_type, exit_code = result.get("errorType"), result.get("exitCode")
    status = str(result.get("status"))
    facts = [f"{status} ({error_type})" if error_type else status]
    if exit_code != -1:
        facts.append(f"exit code {exit_code}, ran {result.get('durationMs')} ms")
    if result.get("errorMessage"):
        facts.append(str(result["errorMessage"]))
    if result.get("hint"):
        facts.append(f"hint: {result['hint']}")
    return "; ".join(facts)


_NAMES: Final = {
    events.Waiting: "waiting",
    events.Taken: "taken",
    events.Started: "started",
    events.Output: "output",
    events.Missing: "missing",
    events.Refused: "refused",
    events.AttemptEnded: "attemptEnded",
    events.Disconnected: "disconnected",
    events.Ended: "ended",
}


_RESULT_FIELDS: Final = ("status", "exitCode", "errorType", "errorMessage")
_JSON_NAMES: Final = {"is_again": "isAgain", "missing_bytes": "bytes"}


class JsonPrinter:
    """Prints each event as one line of JSON to standard output.

    Args:
        request_id: The request ID of the job.
        stream: `stdout` or `stderr` to print only that stream; empty for both.
    """

    def __init__(self, request_id: str, stream: str = "") -> None:
        self._request_id = request_id
        self._streams = {stream} if stream else {STDOUT, STDERR}
        self._decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in (STDOUT, STDERR)}

    def event(self, event: Event, position: Position) -> None:
        """Print an event, with the position after it.

        Raises:
            ReaderGone: Standard output was closed.
        """
        if isinstance(event, events.Output | events.Missing) and event.stream not in self._streams:
            return
        line = {"event": _NAMES[type(event)], "requestId": self._request_id, **self._fields(event)}
        try:
            print(json.dumps(line | {"position": str(position)}), flush=True)  # noqa: T201
        except BrokenPipeError as exc:
            raise ReaderGone from exc

    def notice(self, text: str) -> None:
        """Print a line of this command to standard error."""
        print(f"nanoagent: {one_line(text)}", file=sys.stderr)  # noqa: T201

    def _fields(self, event: Event) -> dict[str, Any]:
        if isinstance(event, events.Ended):
            return {name: event.result.get(name) for name in _RESULT_FIELDS}
        fields = {_JSON_NAMES.get(name, name): value for name, value in asdict(event).items()}
        if isinstance(event, events.Output):
            fields["text"] = self._decoders[event.stream].decode(fields.pop("data"))
        elif isinstance(event, events.Missing):
            self._decoders[event.stream].reset()
        return fields
