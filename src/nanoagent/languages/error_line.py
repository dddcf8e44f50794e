"""Finds the error's type and the first line of its message in a program's standard error.

Each runtime has a format: Python prints the type and the message after the traceback, Node.js and Go print
them before the stack. tests/unit/languages/stderr has recorded outputs of programs in the images.

The text is hostile input. Patterns are anchored and have no nested repetition, so the time is linear in the
length of the text.
"""

from __future__ import annotations

import itertools
import re
import signal
from typing import TYPE_CHECKING, Final

from nanoagent.model.errors import one_line
from nanoagent.model.job import Runtime
from nanoagent.supervisor import gap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_CHARACTERS: Final = 300
# Examined at the beginning and at the end of a longer text. Hostile text of this size takes up to 20 ms.
_EXAMINED_CHARACTERS: Final = 64 * 1024
# Lines that are read after one match. A traceback of a recursion has about 1000 frames of up to three lines:
# Python shortens it only if the frames are equal, so not if two functions call each other.
_MAX_LINES: Final = 4000
_MAX_TRACEBACK_LINES: Final = 8000  # lines that are read after all matches of tracebacks together
_MAX_MATCHES: Final = 50  # of one pattern, from the end of the text
_MAX_LINE_CHARACTERS: Final = 4096
_ESCAPE_SEQUENCES: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # colours (ECMA-48, CSI)


def error_line(
    runtime: Runtime | None, stderr: str, exit_code: int, killed_by: signal.Signals | None = None
) -> str | None:
    """Return the error's type and the first line of its message as one printable line.

    Args:
        runtime: The program's language; None for a program of the image, such as a compiler.
        stderr: Its standard error. A line replaces missing bytes, see `supervisor.gap`.
        exit_code: Its exit code, not 0.
        killed_by: The signal that killed it; None if it exited by itself.

    Returns:
        The line of a recognised format; else the last line that is not empty. None if the text is empty, or
        if no format is recognised and a signal killed the program.
    """
    text = _plain(stderr)
    for recognise in (_RECOGNISERS[runtime], _native) if runtime else ():
        if line := recognise(text, exit_code, killed_by):
            return _shown(line)
    return None if killed_by is not None else _shown(_last_line(text)) or None


def build_error(runtime: Runtime, messages: str) -> str | None:
    """Return the first error of a compiler or linker as one printable line; else the last line.

    Args:
        runtime: The language of the code.
        messages: The messages of the compiler or linker.

    Returns:
        None if there are no messages.
    """
    text = _plain(messages)
    first = _go_build_error if runtime is Runtime.GO else _cpp_build_error
    return _shown(first(text) or _last_line(text)) or None


# How each runtime prints EFBIG and SIGXFSZ. "file too large" alone may be any message of a program.
_FILE_SIZE_LIMIT: Final = re.compile(
    r"\[Errno 27\] File too large|<Signals\.SIGXFSZ: 25>"
    r"|\bEFBIG: file too large\b"
    r"|\b(?:write|pwrite|truncate|fallocate|copy_file_range|sendfile|splice) [^:]{1,1000}: file too large$"
    r"|\bsignal: file size limit exceeded$|^SIGXFSZ: file size limit exceeded$"
    r"|\bfilesystem error: [^:]{1,1000}: File too large\b"
)


def reports_file_size_limit(line: str) -> bool:
    """Whether an error line reports that a file could not grow (EFBIG, SIGXFSZ)."""
    return _FILE_SIZE_LIMIT.search(line) is not None


# --- Python

_PYTHON_HEADER: Final = re.compile(
    r"^(?:(?P<group>  \+ Exception Group )?Traceback \(most recent call last\):$"
    r"|Fatal Python error: (?P<fatal>.*)$"
    r"|Timeout \(\d{1,4}:\d\d:\d\d(?:\.\d{1,6})?\)!$)",
    re.MULTILINE,
)
_PYTHON_FRAME: Final = re.compile(r'^  File ".{1,4096}", line \d{1,9}(?:, in .*)?$', re.MULTILINE)
_PYTHON_ERROR: Final = re.compile(r"[^\W\d][\w.<>]{0,200}(?::|$)")
_PYTHON_GROUP_FRAME: Final = re.compile(r'^  \|   File ".{1,4096}", line \d{1,9}, in .*$', re.MULTILINE)
_PYTHON_IN_GROUP: Final = re.compile(r"^ {1,1000}\| ([^\W\d][\w.<>]{0,200}: .*)$", re.MULTILINE)
# If a traceback follows one of these texts, its error did not end the program.
_PYTHON_NOT_FATAL: Final = (
    "Exception ignored ",
    "Exception in thread ",
    "Task exception was never",
    "future: <",
)


def _python(text: str, exit_code: int, killed_by: signal.Signals | None) -> str | None:
    """Return the error. Search the part after the gap first, because it has the end of the traceback."""
    found = (_python_part(part, exit_code, killed_by) for part in gap.tail_and_whole(text))
    return next((line for line in found if line), None)


def _python_part(text: str, exit_code: int, killed_by: signal.Signals | None) -> str | None:
    """Return the uncaught error: that of the last traceback that begins at the top level of a module.

    A traceback that begins in a function was usually logged. Its error is returned only if no line follows
    it.
    """
    matches = _last_matches(_PYTHON_HEADER, text)
    for match in matches:
        if match["fatal"] is not None:
            return match[0]
    if killed_by not in {None, signal.SIGINT}:
        return None
    if not any(match.group().endswith("(most recent call last):") for match in matches):
        if timeout := _first_of([match for match in matches if match.group().startswith("Timeout")]):
            return timeout[0]
        return _python_without_header(text)
    fallback = None
    budget = iter(range(_MAX_TRACEBACK_LINES))
    for match in matches:
        error, first_frame, is_last = _python_traceback(text, match, budget)
        if not error or _is_not_fatal(text, match.start()):
            fallback = fallback or (error if is_last else None)
            continue
        if ", in <module>" in first_frame and (exit_code == 1 or killed_by is not None or is_last):
            return error
        fallback = fallback or (error if is_last else None)
    return fallback


def _python_traceback(text: str, match: re.Match[str], budget: Iterator[int]) -> tuple[str, str, bool]:
    """Read the traceback below a header.

    Args:
        text: The text.
        match: The header.
        budget: Has one item for each line that may still be read.

    Returns:
        The error, the first frame, and whether no other text follows. Notes and further lines of the message
        cannot be distinguished from other text, so any line after the error counts as other text.
    """
    bar = "  | " if match["group"] else ""
    lines = _lines(text, match.end() + 1, budget)
    first_frame = next(lines, "")
    error = _first_outer_line(lines, bar)
    if bar:
        return error, first_frame, all(line[:1] in {"", " "} for line in lines)
    return _with_next(error, lines), first_frame, not any(line.strip() for line in lines)


def _first_outer_line(lines: Iterator[str], bar: str = "") -> str:
    """Return the first line that is not indented. Frames and source lines are indented."""
    for line in lines:
        inner = line.removeprefix(bar) if bar else line
        if inner.strip() and inner[:1] != " ":
            return inner
    return ""


def _is_not_fatal(text: str, at: int) -> bool:
    """Whether the line before a traceback's header shows that the error did not end the program."""
    start = text.rfind("\n", 0, max(at - 1, 0)) + 1
    return text.startswith(_PYTHON_NOT_FATAL, start)


def _python_without_header(text: str) -> str | None:
    """Return the error of a traceback without a header: of a syntax error, or with its header in the gap."""
    if frame := _PYTHON_GROUP_FRAME.search(text):
        return _first_outer_line(_lines(text, frame.end() + 1), "  | ")
    if frame := _first_of(_last_matches(_PYTHON_FRAME, text)):
        line = _first_outer_line(_lines(text, frame.end() + 1))
        return line if _PYTHON_ERROR.match(line) else None
    if _last_line(text).startswith("+---") and (inner := _first_of(_last_matches(_PYTHON_IN_GROUP, text))):
        return inner[1]
    return None


# --- Node.js

_NODE_FOOTER: Final = re.compile(r"^Node\.js v\d{1,3}\.\d{1,3}\.\d{1,3}$", re.MULTILINE)
_NODE_LOCATION: Final = re.compile(
    r"^(?:/|node:|file:|<anonymous|evalmachine|\[).{0,4096}:\d{1,9}$", re.MULTILINE
)
_NODE_FATAL: Final = re.compile(r"^(?:FATAL ERROR: |# Fatal ).*$", re.MULTILINE)
_NODE_FRAME: Final = re.compile(r"^    at .", re.MULTILINE)
_NODE_ERROR: Final = re.compile(r".{0,200}?(?:Error|Exception)(?: \[[\w-]{1,100}\])?(?:: |$)")
_NODE_BRACKETED: Final = re.compile(r"\[([^\W\d][\w$.]{0,200}(?: \[\w{1,100}\])?(?:: .*)?)\](?: \{)?")
_NODE_HEAD_LINES: Final = 2  # below the location: the line of source, and the mark under it
_NODE_MESSAGE_LINES: Final = 50


def _node(text: str, exit_code: int, killed_by: signal.Signals | None) -> str | None:  # noqa: ARG001 - as the other recognisers
    """Return the uncaught error. It is printed between the source location and the version of Node.js."""
    if fatal := _first_of(_last_matches(_NODE_FATAL, text)):
        return fatal[0]
    if killed_by is not None:
        return None
    footer = _first_of(_last_matches(_NODE_FOOTER, text))
    if footer is None or text[footer.end() :].strip():
        return _node_printed_error(text)
    uncaught = text[: footer.start()]
    for match in _last_matches(_NODE_LOCATION, uncaught):
        lines = _lines(uncaught, match.end() + 1)
        head = [next(lines, "") for _ in range(_NODE_HEAD_LINES)]
        if not head[-1].strip(" ^\t"):
            return _node_message(lines)
    return _node_printed_error(uncaught)


def _node_message(lines: Iterator[str]) -> str:
    """Return the first line of the error. An object on several lines becomes one line."""
    line = next((line for line in lines if line.strip()), "")
    if bracketed := _NODE_BRACKETED.fullmatch(line):
        return bracketed[1]
    rest = (more.strip() for more in itertools.islice(lines, _NODE_MESSAGE_LINES))
    if line.endswith(("{", "[")):
        return " ".join((line, *itertools.takewhile(lambda more: not more.startswith("at "), rest)))
    return _with_next(line, rest)


def _node_printed_error(text: str) -> str | None:
    """Return the error above the last stack trace, if the text ends with a stack: `console.error(error)`."""
    last = _last_line(text)
    if not (last.startswith("at ") or last in {"}", "]", "})"}):
        return None
    frame = _first_frame_of_last_stack(text)
    if frame is None:
        return None
    above = text[:frame].rstrip("\n")
    message = [line.strip() for line in _lines_backwards(above, _NODE_MESSAGE_LINES)]
    return next((line for line in message if _NODE_ERROR.match(line)), message[0] if message else None)


def _first_frame_of_last_stack(text: str) -> int | None:
    """Return the position of the first frame of the last outermost stack, which may have nested stacks."""
    starts = [match.start() for match in _NODE_FRAME.finditer(text)]
    for above, start in zip(reversed(starts[:-1]), reversed(starts), strict=False):
        between = text[above:start].split("\n")[1:-1]
        if any(not line.startswith("    ") for line in between):
            return start
    return starts[0] if starts else None


# --- Go

_GO_END: Final = re.compile(r"^(?:panic|fatal error|SIG[A-Z]{2,6}): .*$", re.MULTILINE)
_GO_STACK: Final = re.compile(r"^goroutine \d{1,20} .*:$", re.MULTILINE)
_GO_PANIC_EXIT_CODE: Final = 2
_GO_RACE_EXIT_CODE: Final = 66
_GO_FLAG: Final = re.compile(
    r"^(?:flag provided but not defined|flag needs an argument|invalid (?:boolean )?value .{1,1000}): .*$",
    re.MULTILINE,
)
_GO_RECOVERED: Final = re.compile(r" \[recovered(?:, repanicked)?\]$")


def _go(text: str, exit_code: int, killed_by: signal.Signals | None) -> str | None:
    """Return the last panic; else a wrong flag, a data race, or the line above a printed stack.

    If several panics are printed, each later one was raised while the program handled an earlier one.
    """
    if exit_code == _GO_PANIC_EXIT_CODE or killed_by is signal.SIGABRT:  # SIGABRT: GOTRACEBACK=crash
        for match in _last_matches(_GO_END, text):
            return _go_last_panic(text, match)
        if "\nUsage of " in text and (flag := _first_of(_last_matches(_GO_FLAG, text))):
            return flag[0]
    if exit_code == _GO_RACE_EXIT_CODE and "WARNING: DATA RACE" in text:
        return "WARNING: DATA RACE"
    if killed_by is None and (stack := _first_of(_last_matches(_GO_STACK, text))):
        above = text[: stack.start()].rstrip("\n")
        first = next(_lines(text, stack.end() + 1), "")
        if first and _last_line(text).startswith(("function/", "runtime/", "/", "created by ")) and above:
            return next(_lines_backwards(above, 1))
    return None


def _go_last_panic(text: str, match: re.Match[str]) -> str:
    chain = [match[0]]
    for line in itertools.takewhile(lambda line: line[:1] == "\t", _lines(text, match.end() + 1)):
        if line.startswith("\tpanic: "):
            chain.clear()
        chain.append(line[1:])
    return _GO_RECOVERED.sub("", _with_next(chain[0], iter(chain[1:]))[:_MAX_LINE_CHARACTERS])


# --- C++, and native code below the other runtimes

_TERMINATE: Final = re.compile(
    r"^terminate called after throwing an instance of '(.{1,1000})'$\n?(?:  what\(\):  (.*)$)?", re.MULTILINE
)
_NATIVE_ABORT: Final = re.compile(
    r"^(?:pure virtual method called$|terminate called (?:without|recursively).*$"
    r"|\*\*\* .{1,200} \*\*\*: .*$|Fatal glibc error: .*$"
    r"|(?:free|malloc|realloc|calloc|munmap_chunk|malloc_consolidate)\(\): .*$"
    r"|(?:double free or corruption|corrupted (?:size vs|double-linked)|break adjusted to free).*$)",
    re.MULTILINE,
)
_ASSERTION: Final = re.compile(r"^.*' failed\.$", re.MULTILINE)
_SANITIZER: Final = re.compile(r"^==\d{1,10}==ERROR: (\w{1,30}Sanitizer: .*)$", re.MULTILINE)
_THREAD_SANITIZER: Final = re.compile(r"^WARNING: ThreadSanitizer: .*$", re.MULTILINE)
_UNDEFINED_BEHAVIOUR: Final = re.compile(r"^\S{1,1000}:\d{1,9}:\d{1,9}: runtime error: .*$", re.MULTILINE)
_THREAD_SANITIZER_EXIT_CODE: Final = 66


def _native(text: str, exit_code: int, killed_by: signal.Signals | None) -> str | None:
    """Return the message that the C++ library, glibc or a sanitizer printed before it ended the program."""
    if (found := _SANITIZER.search(text)) is not None:
        return found[1]
    if exit_code == _THREAD_SANITIZER_EXIT_CODE and (found := _THREAD_SANITIZER.search(text)):
        return found[0]
    if killed_by is signal.SIGABRT or exit_code == 128 + signal.SIGABRT:
        return _abort_reason(text)
    return None


def _abort_reason(text: str) -> str | None:
    if found := _first_of(_last_matches(_TERMINATE, text)):
        message = f": {found[2]}" if found[2] else ""
        return f"terminate called after throwing an instance of '{found[1]}'{message}"
    for found in _last_matches(_ASSERTION, text):
        where, mark, assertion = found[0].partition(": Assertion ")
        if mark and assertion.startswith("'"):  # libstdc++ prints the function, whose name may be very long
            where = where.partition(": ")[0]
        if mark:
            return where + mark + assertion
    return _first_match(_NATIVE_ABORT, text) or _first_match(_UNDEFINED_BEHAVIOUR, text)


_RECOGNISERS: Final[dict[Runtime, Callable[[str, int, signal.Signals | None], str | None]]] = {
    Runtime.PYTHON: _python,
    Runtime.NODEJS: _node,
    Runtime.CPP: _native,
    Runtime.GO: _go,
}

# --- builds

_CPP_ERROR: Final = re.compile(r"^\S.{0,1000}?:\d{1,9}:(?:\d{1,9}:)? (?:fatal )?error: .*$", re.MULTILINE)
_LINKER_ERROR: Final = re.compile(
    r"^(?:\S{0,1000}ld(?:\.\w{1,10})?: )?(?:(?P<file>[^\s:(][^:\n(]{0,1000}):)?"
    r"(?:\(\.[^)\n]{1,200}\):? ?)?\s?"
    r"(?P<message>(?:undefined reference to|multiple definition of) .*)$",
    re.MULTILINE,
)
_TOOL_ERROR: Final = re.compile(r"^\S{1,1000}: (?:fatal )?error: .*$", re.MULTILINE)
_GO_ERROR: Final = re.compile(r"^(?:\./)?[^\s:]{1,1000}\.go:\d{1,9}(?::\d{1,9})?: .*$", re.MULTILINE)
_GO_PROGRESS: Final = ("# ", "go: downloading ", "go: finding ", "go: added ", "go: creating ", "go: to add ")


def _cpp_build_error(text: str) -> str | None:
    if (error := _CPP_ERROR.search(text)) is not None:
        return error[0]
    if (linker := _LINKER_ERROR.search(text)) is not None:
        message = linker["message"].partition(";")[0]
        file = linker["file"]
        return f"{file}: {message}" if file and not file.endswith(".o") else message
    return _first_match(_TOOL_ERROR, text)


def _go_build_error(text: str) -> str | None:
    if (error := _GO_ERROR.search(text)) is not None:
        return error[0]
    lines = _lines(text, 0)
    line = next((line for line in lines if line.strip() and not line.startswith(_GO_PROGRESS)), "")
    return f"{line} {next(lines, '')}" if line.endswith(":") else line


# --- lines

_NO_MESSAGE: Final = re.compile(r"[^\W\d][\w$.<>]{0,200}(?: \[[\w-]{1,100}\])?: ?")


def _plain(text: str) -> str:
    """Remove escape sequences, and carriage returns before line feeds. Cut the middle out of a long text."""
    if len(text) > 2 * _EXAMINED_CHARACTERS:
        missing = len(text) - 2 * _EXAMINED_CHARACTERS
        text = str(gap.joined(text[:_EXAMINED_CHARACTERS], missing, text[-_EXAMINED_CHARACTERS:]))
    if "\x1b" in text:
        text = _ESCAPE_SEQUENCES.sub("", text)
    return text.replace("\r\n", "\n")


def _lines(text: str, start: int, budget: Iterator[int] | None = None) -> Iterator[str]:
    """Yield lines from `start`, each of bounded length. Skip the gap and the incomplete line after it."""
    for _ in itertools.islice(budget if budget is not None else itertools.count(), _MAX_LINES):
        if start >= len(text):
            return
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        line = text[start : min(end, start + _MAX_LINE_CHARACTERS)]
        start = end + 1
        if gap.is_gap(line):
            start = text.find("\n", start) + 1 or len(text)
            continue
        yield line


def _with_next(line: str, following: Iterator[str]) -> str:
    """Return the line. If it is a type without a message, add the next line: the message begins there."""
    if not _NO_MESSAGE.fullmatch(line):
        return line
    more = next((more for more in following if more.strip()), "")
    return line if more.lstrip().startswith("at ") else f"{line.rstrip()} {more}"


def _lines_backwards(text: str, most: int) -> Iterator[str]:
    """Yield the last lines of the text, the last one first."""
    end = len(text)
    for _ in range(most):
        start = text.rfind("\n", 0, end) + 1
        yield text[start : min(end, start + _MAX_LINE_CHARACTERS)]
        end = start - 1
        if end <= 0:
            return


def _last_matches(pattern: re.Pattern[str], text: str) -> list[re.Match[str]]:
    """Return the last matches, the last one first."""
    matches = list(pattern.finditer(text))[-_MAX_MATCHES:]
    return matches[::-1]


def _first_of(matches: list[re.Match[str]]) -> re.Match[str] | None:
    return matches[0] if matches else None


def _first_match(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.search(text)
    return found[0] if found else None


def _last_line(text: str) -> str:
    """Return the last line that is not empty. If a progress bar overwrote the line, return its last state."""
    stripped = text.rstrip()
    line = stripped[stripped.rfind("\n") + 1 :]
    return line[line.rfind("\r") + 1 :].strip()[:_MAX_LINE_CHARACTERS]


def _shown(line: str) -> str:
    """Make a line printable, and short enough for a result."""
    shown = one_line(line[:_MAX_LINE_CHARACTERS].strip().replace("\t", " "))
    return shown if len(shown) <= MAX_CHARACTERS else f"{shown[: MAX_CHARACTERS - 1]}…"
