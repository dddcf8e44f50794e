"""Makes the message of a job. The values of the input do not change, and SQS accepts the body."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from nanoagent.model.errors import InvalidCall
from nanoagent.model.message import MAX_MESSAGE_BYTES

_STANDARD_INPUT: Final = "-"
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
# Characters that JSON allows in strings, but SQS refuses (SendMessage, "MessageBody").
_REFUSED_BY_SQS: Final = {0xFFFE: "\\ufffe", 0xFFFF: "\\uffff"}


def read_input(option: str) -> str:
    """Return the JSON text of the option `--input`: its value, `@file`, or `-` for standard input.

    The text is sent, not the parsed values. So numbers keep all their digits.

    Raises:
        InvalidCall: The input cannot be read, or is not JSON.
    """
    shown = "--input" if len(option) > 100 else f"--input {option}"
    raw = _raw_input(option, shown)
    if len(raw) > 4 * MAX_MESSAGE_BYTES:  # UTF-32 has 4 bytes per character; a longer text cannot fit
        size = f"has more than {4 * MAX_MESSAGE_BYTES} bytes; a message may have {MAX_MESSAGE_BYTES}"
        raise InvalidCall([f"{shown}: {size}"])
    is_file = option == _STANDARD_INPUT or option.startswith("@")
    try:
        # PowerShell writes UTF-16. Some editors write a byte order mark.
        text = raw.decode(json.detect_encoding(raw)).removeprefix("\ufeff").strip()
        _checker.decode(text)
    except (ValueError, RecursionError) as exc:
        raise InvalidCall([f"{shown}: is not JSON ({exc}){'' if is_file else _advice(option)}"]) from exc
    return _compact(text)


def _raw_input(option: str, shown: str) -> bytes:
    try:
        if option == _STANDARD_INPUT:
            if sys.stdin.isatty():
                print("Reading the input from the terminal; Ctrl-D ends it.", file=sys.stderr)  # noqa: T201
            return sys.stdin.buffer.read(4 * MAX_MESSAGE_BYTES + 1)
        if option.startswith("@"):
            with Path(option[1:]).expanduser().open("rb") as file:
                return file.read(4 * MAX_MESSAGE_BYTES + 1)
    except (OSError, RuntimeError, ValueError) as exc:
        raise InvalidCall([f"{shown}: cannot be read: {exc}"]) from exc
    return option.encode(errors="surrogateescape")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not part of JSON")


# Numbers stay text: Python refuses integers of more than 4300 digits.
_checker: Final = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_refuse_constant)


def _advice(option: str) -> str:
    try:
        is_path = Path(option).is_file()
    except (OSError, ValueError):
        is_path = False
    return f"; for a file: --input @{option}" if is_path else "; quote strings, as in '\"text\"'"


def _compact(text: str) -> str:
    """Remove white space between the tokens of a JSON text, if msgspec can parse it."""
    try:
        return msgspec.json.format(text, indent=-1)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return text  # msgspec refuses escapes of lone surrogates, for example


def body(fields: dict[str, Any], payload: str) -> str:
    """Return the body of a job's message.

    Args:
        fields: The fields of the job without its input.
        payload: The input as JSON text.

    Raises:
        InvalidCall: The message is too large for SQS, or the input has a lone surrogate.
    """
    head = json.dumps(fields, ensure_ascii=False)[:-1]
    text = f'{head}, "input": {payload}}}'.translate(_REFUSED_BY_SQS)
    try:
        size = len(text.encode())
    except UnicodeEncodeError as exc:
        raise InvalidCall(["--input: has a lone surrogate; write it as an escape, such as \\ud800"]) from exc
    if size > MAX_MESSAGE_BYTES:
        room = MAX_MESSAGE_BYTES - (size - len(payload.encode()))
        problem = f"--input: has {len(payload.encode())} bytes; at most {room} fit into a message of SQS"
        raise InvalidCall([f"{problem}; put larger data into the code's folder or an object store"])
    return text


def check_request_id(request_id: str) -> None:
    """Refuse an invalid request ID.

    Raises:
        InvalidCall: The ID is invalid.
    """
    if not _REQUEST_ID.fullmatch(request_id) or request_id in {".", ".."}:
        raise InvalidCall([f"{request_id!r}: is not a request ID (1-128 of A-Z a-z 0-9 . _ -)"])
