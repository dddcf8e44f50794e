from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from nanoagent.dev.follower.events import (
    AttemptEnded,
    Disconnected,
    Ended,
    Missing,
    Output,
    Position,
    Refused,
    Started,
    Taken,
    Waiting,
)
from nanoagent.dev.follower.printing import JsonPrinter, Printer, ReaderGone, TerminalText, size

if TYPE_CHECKING:
    from nanoagent.dev.follower.events import Event

AT = Position("1-0", 2, 3, 4)
EVERY_EVENT: list[Event] = [
    Waiting(),
    Taken("w"),
    Started("w", 1, is_again=False),
    Refused("w"),
    AttemptEnded(1),
    Disconnected("Redis is down"),
    Ended({"status": "FAILED", "errorType": "USER_ERROR", "exitCode": 3, "durationMs": 7, "hint": "try"}),
]


def out(data: bytes, offset: int = 0) -> Output:
    return Output("stdout", 1, offset, data)


def test_in_a_pipe_the_output_is_unchanged(capfdbinary: pytest.CaptureFixture[bytes]):
    printer = Printer("r")
    data = bytes(range(256))
    printer.event(out(data), AT)
    printer.event(Output("stderr", 1, 0, b"oops"), AT)
    assert capfdbinary.readouterr() == (data, b"oops")


def test_notices_go_to_standard_error_on_their_own_lines(capfdbinary: pytest.CaptureFixture[bytes]):
    printer = Printer("r")
    printer.event(Output("stderr", 1, 0, b"half a line"), AT)
    for event in EVERY_EVENT:
        printer.event(event, AT)
    printed, errors = capfdbinary.readouterr()
    assert printed == b""
    first, *others = errors.decode().splitlines()
    assert first == "half a line"
    assert len(others) == len(EVERY_EVENT)
    assert all(line.startswith("nanoagent: ") for line in others)
    assert others[-1] == "nanoagent: FAILED (USER_ERROR); exit code 3, ran 7 ms; hint: try"


def test_a_gap_is_a_line_in_its_stream(capfdbinary: pytest.CaptureFixture[bytes]):
    printer = Printer("r")
    printer.event(out(b"half"), AT)
    printer.event(Missing("stdout", 1, 4, 12_900_000), AT)
    printer.event(out(b"rest"), AT)
    assert capfdbinary.readouterr().out.decode() == "half\n… 12.3 MiB not shown …\nrest"


def test_only_the_chosen_stream_is_printed(capfdbinary: pytest.CaptureFixture[bytes]):
    printer = Printer("r", "stdout")
    printer.event(out(b"a"), AT)
    printer.event(Output("stderr", 1, 0, b"b"), AT)
    printer.event(Missing("stderr", 1, 1, 5), AT)
    assert capfdbinary.readouterr() == (b"a", b"")


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"plain \t text\n", "plain \t text\n"),
        ("안녕".encode(), "안녕"),
        (b"\x1b[31mred\x1b[0m", "red"),
        (b"\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        (b"\x1b[2J", "\\x1b[2J"),
        ("\u009b2J".encode(), "\\x9b2J"),  # CSI in one character
        ("\u202etxt".encode(), "\\u202etxt"),  # from right to left
        (b"\xff", "\N{REPLACEMENT CHARACTER}"),
        (b"50%\r60%\r\n", "50%\n60%\n"),
    ],
)
def test_a_terminal_gets_no_control_characters(data: bytes, shown: str):
    assert TerminalText().shown(data) == shown
    in_pieces = TerminalText()
    assert "".join(in_pieces.shown(bytes([byte])) for byte in data) == shown


def test_a_stream_that_was_closed_ends_the_command():
    reading, writing = os.pipe()
    os.close(reading)
    saved = os.dup(1)
    os.dup2(writing, 1)
    try:
        with pytest.raises(ReaderGone):
            Printer("r").event(out(b"a"), AT)
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(writing)


def test_json_has_one_event_in_each_line(capsys: pytest.CaptureFixture[str]):
    printer = JsonPrinter("r")
    korean = "안".encode()
    for event in [*EVERY_EVENT, out(b"a" + korean[:1]), out(korean[1:], 2), Missing("stdout", 1, 4, 9)]:
        printer.event(event, AT)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {(line["requestId"], line["position"]) for line in lines} == {("r", "1-0.2.3.4")}
    assert [line["event"] for line in lines[:7]] == [
        "waiting",
        "taken",
        "started",
        "refused",
        "attemptEnded",
        "disconnected",
        "ended",
    ]
    assert lines[2]["isAgain"] is False
    assert [line.get("text") for line in lines[7:]] == ["a", "안", None]
    assert lines[-1]["bytes"] == 9


@pytest.mark.parametrize(
    ("number", "text"), [(1, "1 byte"), (500, "500 bytes"), (2048, "2.0 KiB"), (3 << 30, "3.0 GiB")]
)
def test_sizes_are_for_people(number: int, text: str):
    assert size(number) == text
