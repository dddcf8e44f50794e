"""The environment variable PAYLOAD. It contains the job's input if Linux allows a variable of that size."""

from __future__ import annotations

import re
from typing import Final

from nanoagent.model.text import Text

# Linux limits a variable with its name and final NUL to MAX_ARG_STRLEN, 32 pages of 4 KiB. execve(2)
_MAX_VARIABLE_BYTES: Final = 131_071
MAX_BYTES: Final = _MAX_VARIABLE_BYTES - len("PAYLOAD=")
_VARIABLE: Final = re.compile(r"\bPAYLOAD\b")
_FILE: Final = re.compile(r"\bPAYLOAD_FILE\b")
# The errors of programs that parse a variable which is not set.
_MISSING_VALUE: Final = re.compile(
    r"the JSON object must be str, bytes or bytearray, not NoneType"  # json.loads(os.environ.get(...))
    r"|JSONDecodeError: Expecting value: line 1 column 1 \(char 0\)"  # json.loads(os.environ.get(..., ""))
    r"|SyntaxError: (?:\"undefined\" is not valid JSON|Unexpected token '?u'? in JSON at position 0)"
    r"|SyntaxError: Unexpected end of JSON input"  # JSON.parse(""), JSON.parse(null) is null
    r"|unexpected end of JSON input"  # Go: json.Unmarshal of an empty string
    r"|basic_string: construction from null|basic_string::_M_construct null"  # std::string(getenv(...))
    r"|\[json\.exception\.parse_error\.101\]"  # nlohmann::json
)
_LEFT_OUT: Final = Text(
    "The environment variable PAYLOAD is left out because the input has {size} bytes and a variable holds at"
    " most {most}; read the input from the file that PAYLOAD_FILE names, or from standard input.",
    "입력이 {size}바이트여서 환경 변수 PAYLOAD가 없습니다(최대 {most}바이트)."
    " PAYLOAD_FILE이 가리키는 파일이나 표준 입력에서 입력을 읽으세요.",
)


def fits_variable(payload: bytes) -> bool:
    """Whether the variable can contain the input: it is not too long and has no NUL. Valid JSON has none."""
    return len(payload) <= MAX_BYTES and b"\0" not in payload


def left_out_hint(size: int, stderr: str, error_message: str, source: str) -> Text | None:
    """Return the hint for a failed program that reads PAYLOAD, or None if it does not read it.

    Args:
        size: The size of the job's input, which does not fit into the variable, bytes.
        stderr: The program's standard error; a traceback may show the line that reads the variable.
        error_message: The error's type and message.
        source: The text of the entry file. A program that also names PAYLOAD_FILE is assumed to handle both
            cases.
    """
    reads_variable = _VARIABLE.search(source) is not None and _FILE.search(source) is None
    error_shows_it = (
        _VARIABLE.search(stderr) or _MISSING_VALUE.search(error_message) or _MISSING_VALUE.search(stderr)
    )
    if not (reads_variable or error_shows_it):
        return None
    return _LEFT_OUT.format(size=size, most=MAX_BYTES)
