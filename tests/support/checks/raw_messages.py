"""Makes messages from any bytes: each byte decides one property, as in `raw_archives`."""

from __future__ import annotations

import json
from typing import Final

from support.checks.raw_archives import Choices

_MOST_MEMBERS: Final = 12
_DEPTH: Final = 4
_DAMAGED_BELOW: Final = 64  # of 256 messages
_BROKEN_BELOW: Final = 8  # of 256 values

_NAMES: Final = (
    *("requestId", "s3Key", "functionId", "runtime", "s3Bucket", "memoryMb", "timeoutMs", "input", "modelId"),
    *("REQUESTID", "request_id", "", "requestI\\u0064", "\\ud800", "s3Key\\u0000", "__proto__", "한"),
)
_IDS: Final = (
    *("r1", "a" * 128, "a" * 129, ".", "..", "...", "../x", "a/b", "a\\u0000", "a\\n", "a b", "%2e%2e", "*"),
    *("job:x", "r1\\r\\nFLUSHALL", "\\u202e", "-", "", "\\ud800", "CON", "~", "a\\\\b"),
)
_KEYS: Final = (
    "k",
    "../x",
    "a//b",
    "x" * 1024,
    "가" * 342,
    "a\\u0000",
    "\\u001b[2J",
    "?versionId=1",
    "\\udfff",
)
_TEXTS: Final = (*_IDS, "python", "nodejs", "cpp", "go", "Python", "f" * 256, "f" * 257, "가" * 256, "\u202e")
_BUCKETS: Final = ("other-bucket", "ab", "a" * 63, "a..b", "1.2.3.4", "A", "a/b", "-a-", "a" * 64, "a\\nb")
_NUMBERS: Final = (
    *("0", "1", "31", "32", "128", "4096", "4097", "42000000", "42000001", "-1", "-0", "128.0", "1e2", "0.1"),
    *("1e400", "-1E+9999", "9" * 30, "9" * 5000, "18446744073709551616", "64", "256", "1000"),
)
_WORDS: Final = ("null", "true", "false")
_NO_JSON: Final = (
    *(
        "01",
        "1.",
        "+1",
        ".5",
        "0x10",
        "1_0",
        "NaN",
        "Infinity",
        "-Infinity",
        "NaN",
        "nan",
        "None",
        "undefined",
        "",
    ),
)
_SPACES: Final = ("", " ", "\n", "\t\r\n ", "\v", "\u00a0", "\ufeff", "/**/")
_NESTINGS: Final = (40, 200, 3000, 100_000)


def message_of(data: bytes) -> str | bytes:
    """Return the message for these bytes: usually an object, and often a job."""
    choices = Choices(data)
    text = _space(choices) + _object(choices, ["requestId", "s3Key"], 0) + _space(choices)
    return _damaged(choices, text) if choices.byte() < _DAMAGED_BELOW else text


def _damaged(choices: Choices, text: str) -> str | bytes:
    text += choices.lie(("x", "{}", ",", "\0", "}")) or ""
    if (cut := choices.lie(range(256))) is not None:
        text = text[: len(text) * cut // 256]
    if (place := choices.lie(range(256))) is not None:
        at = (place << 8 | choices.byte()) % (len(text) + 1)
        text = text[:at] + chr(choices.byte()) + text[at + 1 :]
    encoding = choices.of(("utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252", "str", "surrogates", "none"))
    if encoding == "str":
        return text
    if encoding == "surrogates":
        return text.replace("k", "\ud800")
    if encoding == "none":
        return text.encode(errors="surrogatepass").replace(b"f", b"\xff")
    return text.encode(encoding, errors="replace")


def _object(choices: Choices, names: list[str], depth: int) -> str:
    names = list(names)
    names += [choices.of(_NAMES) for _ in range(choices.byte() % _MOST_MEMBERS)]
    members = [
        f'{_space(choices)}"{name}"{_space(choices)}:{_member(choices, name, depth)}' for name in names
    ]
    return "{" + ",".join(members) + "}"


def _member(choices: Choices, name: str, depth: int) -> str:
    return _space(choices) + (_fitting(choices, name) or _value(choices, depth)) + _space(choices)


def _fitting(choices: Choices, name: str) -> str | None:
    """Return a value that usually has the right type and is valid or nearly valid."""
    if choices.byte() < 32:
        return None
    options = {
        "requestId": _IDS,
        "s3Key": _KEYS,
        "runtime": _TEXTS[-9:-3],
        "s3Bucket": _BUCKETS,
        "functionId": _TEXTS,
        "modelId": _TEXTS,
    }
    if name in {"memoryMb", "timeoutMs"}:
        return choices.of(_NUMBERS)
    if name not in options:
        return None
    return f'"{options[name][0] if choices.byte() >= 64 else choices.of(options[name])}"'


def _value(choices: Choices, depth: int) -> str:  # noqa: PLR0911 - one kind of value a line
    if choices.byte() < _BROKEN_BELOW:
        return choices.of(_NO_JSON)
    kind = choices.byte() % 8
    if kind == 0:
        return choices.of(_NUMBERS)
    if kind == 1:
        return choices.of(_WORDS)
    if kind == 2:
        return f'"{choices.of(_TEXTS + _KEYS)}"'
    if kind == 3:
        return json.dumps(
            choices.text(60).decode(errors="surrogateescape"), ensure_ascii=choices.byte() >= 32
        )
    if kind == 4 and choices.byte() < _BROKEN_BELOW:
        return '"' + choices.text(20).decode("latin-1") + '"'
    if kind == 5 and choices.byte() < 64:
        levels = choices.of(_NESTINGS)
        return "[" * levels + "]" * (levels - (choices.lie((1,)) or 0))
    if depth >= _DEPTH:
        return "0"
    if kind == 6:
        return "[" + ",".join(_value(choices, depth + 1) for _ in range(choices.byte() % 4)) + "]"
    return _object(choices, [], depth + 1)


def _space(choices: Choices) -> str:
    if choices.byte() >= 24:
        return ""
    return choices.of(_SPACES if choices.byte() < _BROKEN_BELOW else _SPACES[:4])
