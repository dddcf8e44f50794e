"""Writes logs to standard error: JSON for programs, text in columns for a terminal.

Modules log with `structlog.get_logger()`. Fields bound with `structlog.contextvars.bind_contextvars` are in
every log entry of that task; the worker binds `request_id`. Log records of libraries have the same format,
from WARNING up.

Secrets are removed in three ways, also from tracebacks:

* fields, by their names;
* credentials, by the form in which they are written: in URLs, in signatures, as `password=…`;
* the secrets of this process, by their values.

Local variables are never shown.
"""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, TextIO, cast
from urllib.parse import quote, quote_plus

import structlog
from structlog.stdlib import ProcessorFormatter

from nanoagent.model.errors import one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, MutableMapping, Sequence

    from structlog.typing import EventDict, ExceptionRenderer, ExcInfo, Processor, WrappedLogger

LogFormat = Literal["auto", "json", "text"]

_HIDDEN: Final = "***"
_SECRET_NAME: Final = re.compile(
    r"passw(or)?d|secret|credential|authorization|cookie|api_?key|access_?key|signature"
    r"|token(?!s|_?count)",  # llm_token_count is a number, not a token
    re.IGNORECASE,
)
# If one of these words follows "password: ", the text is a sentence. Any other word there is hidden as a
# secret. A quoted value, and a value after "=", are always hidden.
_PROSE: Final = (
    r"(?:an?|the|it|its|this|that|they|any|all|each|every|one|which|your|our|their"
    r"|is|are|was|were|be|has|have|had|does|do|did|should|must|may|might|can|cannot|could|will|would"
    r"|not?|none|neither|only|also|too|so|then|and|or|but|if|as|at|by|for|from|in|of|on|to|with|without"
    r"|set|unset|see|use|check|choose|change|give|leave|read|refused?|deny|denied|expect|expected|found"
    r"|wrong|invalid|missing|unknown|empty|required|expired|please|try)"
    r"(?:\s|[.,;:)](?:\s|$)|$)"
)
# Words in lower case, the pattern of a credential, and its replacement. A text without these words cannot
# match the pattern. Most log entries have none of the words, and the search for words is faster.
_SECRET_IN_TEXT: Final = (
    # https://user:password@host. The password may have an @.
    (("://",), re.compile(r"(\w://)[^\s/?#\"'<>]+@"), rf"\1{_HIDDEN}@"),
    # AWS access key IDs, long-term and temporary
    (("akia", "asia"), re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), _HIDDEN),
    # Parts of requests in messages of SDKs and services: `password=…`, `"SecretAccessKey" : "…"`.
    (
        ("passw", "secret", "token"),
        re.compile(
            r"((?:passw(?:or)?d|secret_?access_?key|session_?token|security-?token)[\\\"']*\s?[:=]\s?[\\\"']*)"
            rf"(?!null|None|true|false)(?!(?<=: ){_PROSE})[^\s\"'\\,;&)}}]+",
            re.IGNORECASE,
        ),
        rf"\1{_HIDDEN}",
    ),
    (
        ("signature", "x-amz-"),
        re.compile(r"((?:X-Amz-(?:Signature|Credential|Security-Token)|Signature)=)[^&\s\"']+"),
        rf"\1{_HIDDEN}",
    ),
)
_MANY_LINES: Final = frozenset({"exception", "stack"})
# Characters that `json` does not escape, and that can change what a viewer shows: C1 controls, bidirectional
# controls, line and paragraph separators. Also lone surrogates, which no stream can encode.
_UNSAFE_IN_JSON: Final = re.compile(r"[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORTEST_SECRET: Final = 6
# The number of backslashes is 1, 3 or 7, depending on how often a text was written into JSON. The bound keeps
# the search fast: without it, a message of a megabyte of backslashes would take hours.
_BACKSLASHES: Final = r"\\{1,7}"
# The outermost ten and the innermost ten. The reason: log shippers split lines of more than 16 KiB.
_MAX_FRAMES: Final = 20


def configure(log_format: LogFormat, level: str, *, stream: TextIO | None = None) -> None:
    """Configure the logs of this process. A second call replaces the first.

    Args:
        log_format: `auto` is text if `stream` is a terminal, else JSON.
        level: The lowest level that is shown: DEBUG, INFO, WARNING or ERROR. For libraries it is WARNING or
            higher.
        stream: The output; by default standard error.
    """
    stream = stream or sys.stderr
    threshold = logging.getLevelNamesMapping()[level]
    as_json = log_format == "json" or (log_format == "auto" and not stream.isatty())
    render = _json_processors() if as_json else _text_processors(colors=stream.isatty())
    structlog.configure(
        processors=[*_common_processors(), *render],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _Lossy(stream))),
        cache_logger_on_first_use=False,
    )
    _route_libraries(stream, max(threshold, logging.WARNING), render)


class _Lossy:
    """A stream that discards its output if the reader has closed the pipe or the disk is full.

    Otherwise a worker that cannot log could not end a job, and could not stop.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def _common_processors() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        _hide_secret_fields,
    ]


def _json_processors() -> list[Processor]:
    # By default, tracebacks show local variables. These contain settings, payloads and passwords.
    transformer = structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=_MAX_FRAMES)
    renderer = structlog.processors.JSONRenderer(ensure_ascii=False)
    return [
        structlog.processors.ExceptionRenderer(transformer),
        _order_fields,
        _HideSecretText(renderer),
        _escape_json,
    ]


def _text_processors(*, colors: bool) -> list[Processor]:
    formatter: ExceptionRenderer = _write_traceback
    renderer = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=formatter)
    return [_escape, _HideSecretText(renderer)]


def _route_libraries(stream: TextIO, threshold: int, render: Sequence[Processor]) -> None:
    """Send the records of the standard module `logging` through the same processors."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *_common_processors()],
            processors=[ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(threshold)
    logging.captureWarnings(True)


def _order_fields(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Put time, level and event first, for readers."""
    leading = {key: event.pop(key) for key in ("timestamp", "level", "event") if key in event}
    return {**leading, **event}


def _hide_secret_fields(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace the values of fields that have the name of a secret, also in nested fields."""
    return _without_secrets(event)


def _without_secrets(fields: MutableMapping[str, Any]) -> dict[str, Any]:
    shown = {
        name: _HIDDEN if value is not None and _is_secret(name) else value for name, value in fields.items()
    }
    for name, value in shown.items():
        if isinstance(value, dict):
            shown[name] = _without_secrets(value)
    return shown


@lru_cache(maxsize=512)
def _is_secret(name: object) -> bool:
    """Return whether a field with this name is secret. The cache helps, because there are few names."""
    return _SECRET_NAME.search(str(name)) is not None


def _escape(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Escape control characters, which could control the terminal. Tracebacks keep their line breaks."""
    return {name: _escaped(name, value) for name, value in event.items()}


def _escaped(name: str, value: object) -> object:
    if not isinstance(value, str):
        return value
    return _indented(value) if name in _MANY_LINES else one_line(value)


def _write_traceback(out: TextIO, exc_info: ExcInfo) -> None:
    """Write an exception below its log entry, escaped: its message may contain untrusted text."""
    # The default formatter is that of rich, if rich is installed. It shows local variables.
    plain = io.StringIO()
    structlog.dev.plain_traceback(plain, exc_info)
    out.write("\n" + _indented(plain.getvalue().removeprefix("\n")))


def _indented(text: str) -> str:
    """Escape and indent each line of a traceback, so that no line of a message looks like a log entry."""
    # Secrets are removed first: a secret may contain a line break.
    return "\n".join(f"  {one_line(line)}" for line in without_secrets(text).split("\n"))


def _escape_json(_logger: WrappedLogger, _method: str, line: EventDict | str) -> str:
    """Escape characters in a line of JSON that could control a viewer. The values stay the same."""
    return _UNSAFE_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", str(line))


_known_values: list[re.Pattern[str]] = []


def hide(secrets: Iterable[str]) -> None:
    """Remove these values from all texts from now on. A second call replaces the first.

    Services quote their input: Redis repeats the arguments of an unknown command.

    Args:
        secrets: The secrets of this process. Secrets of less than six characters are not removed: they may be
            parts of ordinary words.
    """
    wanted = sorted({secret for secret in secrets if len(secret) >= _SHORTEST_SECRET}, key=len, reverse=True)
    patterns = ("".join(map(_written, secret)) for secret in wanted)
    _known_values[:] = [re.compile("|".join(patterns))] if wanted else []


@lru_cache(maxsize=512)
def _written(character: str) -> str:
    """Return a pattern for all notations of a character: plain, in JSON or Python (also nested), in a URL."""
    if character == "\\":
        return rf"(?:{_BACKSLASHES}|%5[Cc])"
    # An environment variable may contain bytes that are not UTF-8.
    in_urls = {quoted(character, safe="", errors="surrogatepass") for quoted in (quote, quote_plus)}
    ways = [re.escape(way) for way in (character, *sorted(in_urls))]
    ways += [way.lower() for way in ways if way.startswith("%")]
    in_json = json.dumps(character)[1:-1]
    if in_json != character:
        ways.append(in_json.replace("\\", _BACKSLASHES))
    elif character == "'":
        ways.append(f"{_BACKSLASHES}'")
    ways = list(dict.fromkeys(ways))
    return ways[0] if len(ways) == 1 else f"(?:{'|'.join(ways)})"


def without_secrets(text: str) -> str:
    """Return a text without the values of `hide`, and without texts that have the form of a credential."""
    for known in _known_values:
        text = known.sub(_HIDDEN, text)
    folded = text.casefold()
    for words, pattern, replacement in _SECRET_IN_TEXT:
        for word in words:
            if word in folded:
                text = pattern.sub(replacement, text)
                break
    return text


class _HideSecretText:
    """A renderer that removes secrets from the text of another renderer."""

    def __init__(self, renderer: Processor) -> None:
        self._renderer = renderer

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> str:
        return without_secrets(str(self._renderer(logger, method, event)))
