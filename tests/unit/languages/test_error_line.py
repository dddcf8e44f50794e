# ruff: noqa: E501 - standard error stands here as it is
"""The error line of a result, by standard error that was recorded from the real interpreters."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nanoagent.languages import error_line as error_line_module
from nanoagent.languages.error_line import MAX_CHARACTERS, build_error, error_line
from nanoagent.model.job import Runtime
from nanoagent.supervisor.output import captured
from support.programs.error_programs import PROGRAMS, ErrorProgram
from support.programs.record_stderr import RECORDED, group_of

if TYPE_CHECKING:
    from collections.abc import Iterator

CODES = {
    folder.name: json.loads((folder / "exit_codes.json").read_text())
    for folder in RECORDED.iterdir()
    if folder.is_dir()
}


def recorded(program: ErrorProgram) -> str:
    return Path(RECORDED, group_of(program), f"{program.name}.txt").read_bytes().decode(errors="replace")


def shown(program: ErrorProgram, stderr: str) -> str | None:
    if not program.builds:
        return build_error(program.runtime, stderr)
    code = CODES[program.runtime][program.name]
    killed_by = signal.Signals(code - 128) if code > 128 else None
    return error_line(program.runtime, stderr, code, killed_by)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: f"{group_of(program)}-{program.name}")
def test_the_recorded_error_of_each_program_is_told_by_its_type_and_first_line(program: ErrorProgram):
    message = shown(program, recorded(program))
    expected = program.message
    if expected is not None and expected.endswith("…"):
        assert message is not None
        assert message.startswith(expected[:-1])
    else:
        assert message == expected


def test_each_recorded_file_belongs_to_a_program():
    kept = {str(path.relative_to(RECORDED)) for path in RECORDED.rglob("*.txt")}
    assert kept == {f"{group_of(program)}/{program.name}.txt" for program in PROGRAMS}
    assert {name for codes in CODES.values() for name in codes} >= {program.name for program in PROGRAMS}


def test_a_line_after_a_long_recursion_is_not_its_error():
    """As of a function registered with atexit. Each frame of this traceback has three lines."""
    frames = "".join(
        f'  File "/code/main.py", line {2 + n % 2}, in {"ab"[n % 2]}\n    return x(n)\n           ^^^^\n'
        for n in range(1000)
    )
    error = "RecursionError: maximum recursion depth exceeded"
    first = '  File "/code/main.py", line 5, in <module>\n    a(0)\n'
    stderr = f"Traceback (most recent call last):\n{first}{frames}{error}\nbye\n"
    assert error_line(Runtime.PYTHON, stderr, 1) == error


def test_few_lines_are_read_after_many_headers(monkeypatch: pytest.MonkeyPatch):
    read = 0
    lines = error_line_module._lines

    def counted(*args: Any) -> Iterator[str]:
        nonlocal read
        for line in lines(*args):
            read += 1
            yield line

    monkeypatch.setattr(error_line_module, "_lines", counted)
    error_line(
        Runtime.PYTHON,
        "  + Exception Group Traceback (most recent call last):\n" * 60 + " \n" * 60_000,
        1,
    )
    assert read <= 8000


# --- output that was cut in the middle


def cut(text: str, kept: int) -> str:
    """As a session captures it."""
    data = text.encode()
    if len(data) <= kept:
        return text
    return captured(data[: kept - kept // 2] + data[len(data) - kept // 2 :], len(data), kept).text


def noisy(program: ErrorProgram) -> str:
    return "a line of a log\n" * 4000 + recorded(program)


KNOWN = [program for program in PROGRAMS if program.message is not None and program.builds]


@pytest.mark.parametrize("program", KNOWN, ids=lambda program: f"{group_of(program)}-{program.name}")
def test_an_error_behind_much_output_is_told_when_the_middle_is_missing(program: ErrorProgram):
    whole = recorded(program)
    kept = max(2 * len(whole.encode()) + 2, 1024)
    message = shown(program, cut(noisy(program), kept))
    assert message == shown(program, whole)


@pytest.mark.parametrize("name", ["plain", "recursion_error", "mutual_recursion", "chained_direct_cause"])
@pytest.mark.parametrize("kept", [260, 300, 400])
def test_a_traceback_that_is_cut_among_its_frames_is_told_by_its_end(name: str, kept: int):
    program = next(program for program in PROGRAMS if program.name == name and program.runtime == "python")
    assert shown(program, cut(recorded(program), kept)) == program.message


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        (400, "ValueError: in a task"),
        (1100, "ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)"),
    ],
)
def test_a_group_that_is_cut_is_told_by_the_outermost_error_that_is_left(kept: int, expected: str):
    program = next(program for program in PROGRAMS if program.name == "task_group")
    assert shown(program, cut(recorded(program), kept)) == expected
    without_header = recorded(program).partition("\n")[2]
    assert shown(program, cut("log\n" * 9999 + without_header, 2 * len(without_header))) == program.message


@pytest.mark.parametrize("name", ["map_writes", "stack_overflow", "panic_string", "deadlock"])
def test_a_panic_whose_stacks_are_cut_is_told_by_its_beginning(name: str):
    program = next(program for program in PROGRAMS if program.name == name)
    text = recorded(program) + "goroutine 9 [select]:\nmain.f()\n\tfunction/main.go:8 +0x25\n\n" * 5000
    assert shown(program, cut(text, 4096)) == program.message


def test_a_message_that_is_cut_within_is_told_by_its_beginning():
    text = f'Traceback (most recent call last):\n  File "/work/main.py", line 1, in <module>\nValueError: {"x" * 9999}\n'
    message = error_line(Runtime.PYTHON, cut(text, 1024), 1)
    assert message is not None
    assert message.startswith("ValueError: xxx")
    text = f"/work/index.js:1\nthrow 1\n^\n\nError: {'y' * 9999}\n    at f (x.js:1:1)\n\nNode.js v20.19.2\n"
    message = error_line(Runtime.NODEJS, cut(text, 1024), 1)
    assert message is not None
    assert message.startswith("Error: yyy")


def test_a_line_of_source_that_fills_the_output_hides_no_error():
    bundle = f"/work/index.js:1\n{'x' * 50_000}\n{' ' * 49_999}^\n\nTypeError: a.b is not a function\n    at f (x.js:1:1)\n"
    text = f"{bundle}\nNode.js v20.19.2\n"
    assert error_line(Runtime.NODEJS, text, 1) == "TypeError: a.b is not a function"
    assert error_line(Runtime.NODEJS, cut(text, 4096), 1) == "TypeError: a.b is not a function"


# --- text that nobody recognises


@pytest.mark.parametrize("runtime", Runtime)
@pytest.mark.parametrize(
    ("stderr", "expected"),
    [
        ("", None),
        ("\n \n\t\n", None),
        ("first\nlast\n\n", "last"),
        ("10 %\r50 %\r100 %\n", "100 %"),
        ("first\r\nlast\r\n", "last"),
        ("\x1b[31mred\x1b[0m\n", "red"),
        ("\x1b]0;title\x07text\n", "\\x1b]0;title\\x07text"),
        ("a\u202eb\u2028c", "a\\u202eb\\u2028c"),
        ("오류가 났습니다\n", "오류가 났습니다"),
        ("ab\0c\ud800", "ab\\x00c\\ud800"),
    ],
)
def test_the_last_line_is_told_where_nothing_is_recognised(
    runtime: Runtime, stderr: str, expected: str | None
):
    assert error_line(runtime, stderr, 3) == expected


@pytest.mark.parametrize("runtime", Runtime)
def test_a_signal_is_not_explained_by_text_that_nobody_recognises(runtime: Runtime):
    assert error_line(runtime, "reading\nwriting\n", 139, signal.SIGSEGV) is None


def test_a_logged_traceback_does_not_explain_a_signal():
    program = next(program for program in PROGRAMS if program.name == "plain")
    assert error_line(Runtime.PYTHON, recorded(program), 137, signal.SIGKILL) is None


def test_node_says_which_of_its_own_checks_failed():
    text = "\n\n#\n# Fatal JavaScript invalid size error 169220804\n#\n#\n#\n#FailureMessage Object: 0x7ffd\n----- Native stack trace -----\n"
    expected = "# Fatal JavaScript invalid size error 169220804"
    assert error_line(Runtime.NODEJS, text, 133, signal.SIGTRAP) == expected


def test_a_data_race_is_told():
    text = "==================\nWARNING: DATA RACE\nRead at 0x1 by goroutine 7:\n  main.f()\n==================\nFound 1 data race(s)\n"
    assert error_line(Runtime.GO, text, 66) == "WARNING: DATA RACE"


def test_native_code_aborts_any_runtime():
    for runtime in Runtime:
        assert (
            error_line(runtime, "free(): invalid pointer\n", 134, signal.SIGABRT) == "free(): invalid pointer"
        )


def test_a_compiler_that_said_nothing_has_no_error_line():
    assert build_error(Runtime.CPP, "\n") is None
    assert build_error(Runtime.GO, "") is None
    assert build_error(Runtime.CPP, "g++: internal trouble\n") == "g++: internal trouble"


# --- hostile text

HOSTILE = [
    "x" * 300_000,
    "\n" * 300_000,
    " \n" * 150_000,
    "\x1b[" * 150_000,
    "\x1b[1;" * 75_000,
    "Traceback (most recent call last):\n" * 8_000,
    '  File "' + "a" * 300_000,
    '  File "a", line 1, in <module>\n' * 9_000,
    "  + Exception Group Traceback (most recent call last):\n" * 6_000,
    "Node.js v20.19.2\n" * 17_000,
    "/a:1\n" * 60_000 + "\nNode.js v20.19.2",
    "    at x\n" * 33_000,
    "    at x\n}\n" * 28_000,
    "Error" * 60_000 + "\n    at x",
    "panic: \n" * 37_000,
    "panic: x\n" + "\tpanic: y\n" * 30_000,
    "goroutine 1 [x]:\n" * 18_000,
    "terminate called after throwing an instance of '" * 6_000,
    "terminate called after throwing an instance of 'x'\n" * 6_000,
    ": Assertion `" * 23_000,
    "a:1: " * 60_000 + "Assertion '" * 1000,
    ("a:1: " + "Assertion '" * 180 + "\n") * 150,
    ("x" * 100 + ": Assertion `" * 77 + "' failed.x\n") * 250,
    "==1==ERROR: " * 25_000,
    "a:1:1: " * 42_000,
    "ld: a:(.text): " * 20_000,
    "… 1 bytes cut …\n" * 15_000,
    "\r" * 300_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:12]))
def test_hostile_text_is_examined_in_linear_time_and_shown_printable(text: str):
    """Work that is more than linear would not end within the time that a test has."""
    for runtime in Runtime:
        for exit_code, killed_by in ((1, None), (2, None), (134, signal.SIGABRT)):
            message = error_line(runtime, text, exit_code, killed_by)
            assert message is None or (message.isprintable() and len(message) <= MAX_CHARACTERS)
        said = build_error(runtime, text)
        assert said is None or (said.isprintable() and len(said) <= MAX_CHARACTERS)
