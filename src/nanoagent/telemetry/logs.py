"""Logs on standard error: JSON lines for machines, columns for a person at a terminal.

Modules log with `structlog.get_logger()`; what is bound with `structlog.contextvars.bind_contextvars`
(the worker binds `request_id`) stands on every line of that task. Libraries that log with the standard
module come out the same way, from WARNING up. Secrets are taken out three times: fields by their names,
credentials by the form in which they are written (in URLs, in signatures, as `password=…`), and those that
this process has by their values, wherever they stand, tracebacks included. Local variables are never shown.
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
# Words with which a sentence continues after "password: ". A quoted value, a value after "=", and a longer
# word are secrets.
_PROSE: Final = (
    r"(?:an?|the|it|its|this|that|they|any|all|each|every|one|which|your|our|their"
    r"|is|are|was|were|be|has|have|had|does|do|did|should|must|may|might|can|cannot|could|will|would"
    r"|not?|none|neither|only|also|too|so|then|and|or|but|if|as|at|by|for|from|in|of|on|to|with|without"
    r"|set|unset|see|use|check|choose|change|give|leave|read|refused?|deny|denied|expect|expected|found"
    r"|wrong|invalid|missing|unknown|empty|required|expired|please|try)"
    r"(?:\s|[.,;:)](?:\s|$)|$)"
)
_SECRET_IN_TEXT: Final = (
    # https://user:password@host, also with an @ in the password.
    (re.compile(r"(\w://)[^\s/?#\"'<>]+@"), rf"\1{_HIDDEN}@"),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), _HIDDEN),  # AWS access keys, long-lived and temporary
    # What SDKs and services write of a request or of themselves: `password=…`, `"SecretAccessKey" : "…"`.
    (
        re.compile(
            r"((?:passw(?:or)?d|secret_?access_?key|session_?token|security-?token)[\\\"']*\s?[:=]\s?[\\\"']*)"
            rf"(?!null|None|true|false)(?!(?<=: ){_PROSE})[^\s\"'\\,;&)}}]+",
            re.IGNORECASE,
        ),
        rf"\1{_HIDDEN}",
    ),
    (
        re.compile(r"((?:X-Amz-(?:Signature|Credential|Security-Token)|Signature)=)[^&\s\"']+"),
        rf"\1{_HIDDEN}",
    ),
)
_MANY_LINES: Final = frozenset({"exception", "stack"})
# What json leaves as it is, and a viewer may obey: C1 controls, bidirectional controls, line and paragraph
# separators; lone surrogates, too, which no stream can encode.
_UNSAFE_IN_JSON: Final = re.compile(r"[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORTEST_SECRET: Final = 6
# One, three or seven of them, as text is written into JSON once more. If it were any number, a message of
# a megabyte of them would take hours.
_BACKSLASHES: Final = r"\\{1,7}"
_MAX_FRAMES: Final = 20  # the innermost are kept; a line stays below the 16 KiB that log shippers split at


def configure(log_format: LogFormat, level: str, *, stream: TextIO | None = None) -> None:
    """Set up logging for the whole process; a second call replaces the first.

    Args:
        log_format: `auto` is text when `stream` is a terminal, else JSON.
        level: The least level of our own lines that is shown: DEBUG, INFO, WARNING or ERROR.
        stream: Where lines go; standard error by default.
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
    """A stream whose reader may be gone or whose disk may be full: a line is lost then, and not the work.

    A worker that could not log would end no job, and not stop when it is told to.
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
    # show_locals is on by default: a frame's variables hold settings, payloads and passwords.
    transformer = structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=_MAX_FRAMES)
    renderer = structlog.processors.JSONRenderer(ensure_ascii=False)
    return [
        structlog.processors.ExceptionRenderer(transformer),
        _lead_with_what_matters,
        _HideSecretText(renderer),
        _escape_json,
    ]


def _text_processors(*, colors: bool) -> list[Processor]:
    formatter: ExceptionRenderer = _write_traceback
    renderer = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=formatter)
    return [_escape, _HideSecretText(renderer)]


def _route_libraries(stream: TextIO, threshold: int, render: Sequence[Processor]) -> None:
    """Send what the standard module is given through the same processors."""
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


def _lead_with_what_matters(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Put time, level and event first: lines are read by people too."""
    leading = {key: event.pop(key) for key in ("timestamp", "level", "event") if key in event}
    return {**leading, **event}


def _hide_secret_fields(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace the values of fields whose names say that they are secret, nested ones too."""
    return _without_secrets(event)


def _without_secrets(fields: MutableMapping[str, Any]) -> dict[str, Any]:
    return {name: _shown(name, value) for name, value in fields.items()}


def _shown(name: object, value: object) -> object:
    if _is_secret(str(name)) and value is not None:
        return _HIDDEN
    return _without_secrets(value) if isinstance(value, dict) else value


@lru_cache(maxsize=512)
def _is_secret(name: str) -> bool:
    """Whether a field of that name is not to be shown; the same dozen of names come with every line."""
    return _SECRET_NAME.search(name) is not None


def _escape(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Escape what a stranger's text could order the terminal to do; tracebacks keep their lines."""
    return {name: _escaped(name, value) for name, value in event.items()}


def _escaped(name: str, value: object) -> object:
    if not isinstance(value, str):
        return value
    return _indented(value) if name in _MANY_LINES else one_line(value)


def _write_traceback(out: TextIO, exc_info: ExcInfo) -> None:
    """Write an exception below its log line; its message may be a stranger's text."""
    # The default formatter is rich's where rich is installed, and that one shows variables.
    plain = io.StringIO()
    structlog.dev.plain_traceback(plain, exc_info)
    out.write("\n" + _indented(plain.getvalue().removeprefix("\n")))


def _indented(text: str) -> str:
    """Lines of a traceback, each escaped, and indented: a line of a message must not look like a log line."""
    # Secrets first: one may have a line break.
    return "\n".join(f"  {one_line(line)}" for line in without_secrets(text).split("\n"))


def _escape_json(_logger: WrappedLogger, _method: str, line: EventDict | str) -> str:
    """Escape in a line of JSON what could order a viewer to do something; the values stay the same."""
    return _UNSAFE_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", str(line))


_known_values: list[re.Pattern[str]] = []


def hide(secrets: Iterable[str]) -> None:
    """Have these values stand in no line and no answer from now on; a second call replaces the first.

    Services quote what they are sent: Redis repeats the arguments of a command that it does not know.

    Args:
        secrets: Those that this process has. One shorter than six characters is left alone: as a part of
            words it would be taken out of everything.
    """
    wanted = sorted({secret for secret in secrets if len(secret) >= _SHORTEST_SECRET}, key=len, reverse=True)
    patterns = ("".join(map(_written, secret)) for secret in wanted)
    _known_values[:] = [re.compile("|".join(patterns))] if wanted else []


@lru_cache(maxsize=512)
def _written(character: str) -> str:
    """A pattern of the ways to write a character: as it is, in JSON and Python (twice over too), in a URL."""
    if character == "\\":
        return rf"(?:{_BACKSLASHES}|%5[Cc])"
    # surrogatepass: an environment variable need not be UTF-8.
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
    """The text without what `hide` was told of, and without what is written as a credential is."""
    for known in _known_values:
        text = known.sub(_HIDDEN, text)
    for pattern, replacement in _SECRET_IN_TEXT:
        text = pattern.sub(replacement, text)
    return text


class _HideSecretText:
    """A renderer whose text has the secrets taken out."""

    def __init__(self, renderer: Processor) -> None:
        self._renderer = renderer

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> str:
        return without_secrets(str(self._renderer(logger, method, event)))
