"""Parses a message into a job, and checks each field, so that every `Job` is valid.

docs/contract.md, section 1, describes the fields.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from nanoagent.common.units import MIB
from nanoagent.model import variables
from nanoagent.model.errors import Rejected, UnreadableMessage, one_line
from nanoagent.model.job import MAX_TIMEOUT_MS, MIN_MEMORY_MB, Job, NetworkPolicy, Reuse, Runtime
from nanoagent.model.object_names import bucket_hint
from nanoagent.model.result import ErrorType
from nanoagent.model.text import LOCALES, Locale, Text
from nanoagent.model.variables import Variables

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nanoagent.model.job import JobDefaults

MAX_MESSAGE_BYTES: Final = MIB  # the limit of SQS since August 2025, attributes included
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_MAX_KEY_BYTES: Final = 1024  # the limit of S3 for an object key
_MAX_FUNCTION_ID: Final = 256
_MAX_MODEL_ID: Final = 256
_MAX_TENANT_ID: Final = 256
_MAX_SHOWN_RUNTIME: Final = 64
# An error shows a value of up to 100 characters whole, and a longer one cut to 80. A character that is not
# printable is escaped first, which takes up to ten characters.
_WHOLE_CHARACTERS: Final = 100
_SHOWN_CHARACTERS: Final = 80
_SHOWN_FROM_BYTES: Final = 4 * _WHOLE_CHARACTERS  # a character has up to four bytes in UTF-8
_WRONG: Final = Text(
    "{name} is {value}; expected {expected}", "{name} 값이 {value}입니다. 필요한 값: {expected}"
)
_NO_JSON: Final = Text(
    "{name} has {constant}; expected JSON, which has no such value",
    "{name}에 {constant}가 있습니다. JSON에는 없는 값입니다",
)
_NO_KEY: Final = Text(
    "s3Key is missing; expected the object key of the code zip",
    "s3Key가 없습니다. 필요한 값: 코드 zip의 객체 키",
)
_PRINTABLE: Final = Text(
    "a string of 1-{longest} printable characters", "출력 가능한 문자 1-{longest}자의 문자열"
)
_ONE_OF: Final = Text("one of {values}", "{values} 중 하나")
_NO_WIDER: Final = Text(
    "no more than this worker's NETWORK={widest} (or set NETWORK={wanted})",
    "이 워커의 NETWORK={widest}보다 넓지 않은 값 (또는 NETWORK={wanted} 설정)",
)
_KEY: Final = Text("a string of 1-{longest} bytes", "1-{longest}바이트의 문자열")
_BUCKET_NAME: Final = Text("a bucket's name (3-63 of a-z 0-9 . -)", "버킷 이름 (a-z 0-9 . - 3-63자)")
_INTEGER: Final = Text("an integer from {low} to {high}", "{low}에서 {high}까지의 정수")
_BYTE_ORDER_MARK: Final = "\ufeff"
# An optional punctuation mark, with the white space of JSON around it. RFC 8259, section 2.
_MARK: Final = re.compile(r"[ \t\n\r]*([{}:,]?)[ \t\n\r]*")


_ABSENT: Final = msgspec.Raw()
_NO_VARIABLES: Final = Variables()


class _RawMessage(msgspec.Struct, rename="camel"):
    """The JSON of each known field of a message. Later steps decode each field alone, to find all errors."""

    request_id: msgspec.Raw = msgspec.Raw()
    function_id: msgspec.Raw = msgspec.Raw()
    runtime: msgspec.Raw = msgspec.Raw()
    s3_key: msgspec.Raw = msgspec.Raw()
    s3_bucket: msgspec.Raw = msgspec.Raw()
    memory_mb: msgspec.Raw = msgspec.Raw()
    timeout_ms: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    model_id: msgspec.Raw = msgspec.Raw()
    network: msgspec.Raw = msgspec.Raw()
    locale: msgspec.Raw = msgspec.Raw()
    tenant_id: msgspec.Raw = msgspec.Raw()
    reuse: msgspec.Raw = _ABSENT
    env: msgspec.Raw = _ABSENT


_decoder = msgspec.json.Decoder(_RawMessage)
_NAMES: Final = {field.encode_name: field.name for field in msgspec.structs.fields(_RawMessage)}
_T = TypeVar("_T", str, int)
_Kind = TypeVar("_Kind", bound=StrEnum)


@dataclass(slots=True)
class InvalidJob(Exception):  # noqa: N818 - named after the outcome
    """A message that has a readable requestId, but is not a valid job.

    Attributes:
        request_id: The ID of the request.
        function_id: The ID of the function, or the default.
        runtime: The text of the field `runtime`, as one short line; the default if it is not a text.
        rejection: All problems of the message.
        locale: The language of the result's texts.
    """

    request_id: str
    function_id: str
    runtime: str
    rejection: Rejected
    locale: Locale


def parse_job(body: str | bytes, defaults: JobDefaults) -> Job:
    """Parse one message.

    Args:
        body: The JSON of the message.
        defaults: The values of fields that are absent or null, and the limits of fields.

    Raises:
        UnreadableMessage: The message is not a JSON object, or has no valid requestId.
        InvalidJob: The message has other problems. The rejection has all of them.
    """
    raw_message, problems = _read_fields(body)
    fields = _Fields(_request_id(raw_message), problems)
    function_id = fields.text("functionId", raw_message.function_id, "unknown", longest=_MAX_FUNCTION_ID)
    runtime = fields.choice("runtime", raw_message.runtime, Runtime, Runtime.PYTHON)
    env = _NO_VARIABLES if raw_message.env is _ABSENT else fields.env(raw_message.env)
    job = Job(
        request_id=fields.request_id,
        function_id=function_id,
        runtime=runtime,
        s3_key=fields.s3_key(raw_message.s3_key),
        s3_bucket=fields.bucket(raw_message.s3_bucket, defaults.s3_bucket),
        memory_mb=fields.integer(
            "memoryMb", raw_message.memory_mb, defaults.memory_mb, (MIN_MEMORY_MB, defaults.max_memory_mb)
        ),
        timeout_ms=fields.integer(
            "timeoutMs", raw_message.timeout_ms, defaults.timeout_ms, (1, MAX_TIMEOUT_MS)
        ),
        payload=bytes(raw_message.input) or b"{}",
        model_id=fields.text("modelId", raw_message.model_id, defaults.model_id, longest=_MAX_MODEL_ID),
        network=fields.network(raw_message.network, defaults.network),
        locale=fields.locale(raw_message.locale, defaults.locale),
        tenant_id=fields.text("tenantId", raw_message.tenant_id, "", longest=_MAX_TENANT_ID) or None,
        reuse=(
            Reuse.NONE
            if raw_message.reuse is _ABSENT
            else fields.choice("reuse", raw_message.reuse, Reuse, Reuse.NONE)
        ),
        env=env.values,
        secrets=env.secrets,
    )
    if fields.problems:
        shown_runtime = _decode(raw_message.runtime, str) or Runtime.PYTHON
        raise InvalidJob(
            request_id=job.request_id,
            function_id=function_id,
            runtime=one_line(shown_runtime[:_MAX_SHOWN_RUNTIME])[:_MAX_SHOWN_RUNTIME],
            rejection=fields.rejection(),
            locale=job.locale,
        )
    return job


def for_log(body: str) -> str:
    """Return a message as the log may show it: without the values of its environment variables."""
    if '"env"' not in body:
        return body
    try:
        fields = json.loads(body)
        fields["env"] = dict.fromkeys(fields["env"], "***")
    except (ValueError, TypeError, KeyError, RecursionError):
        return "(not shown, because it may have environment variables)"
    return json.dumps(fields, ensure_ascii=False)


def raw_fields(body: str | bytes) -> dict[str, bytes]:
    """Return the JSON of each known field that a message has, by its name in the message.

    Raises:
        UnreadableMessage: The message is not a JSON object.
    """
    raw_message, _ = _read_fields(body)
    return {wire: raw for wire, name in _NAMES.items() if (raw := bytes(getattr(raw_message, name)))}


# --- the fields of the message


def _read_fields(body: str | bytes) -> tuple[_RawMessage, list[Text]]:
    """Return the fields of the message, and problems that make the message invalid but not unreadable."""
    raw = _utf8(body)
    if len(raw) > MAX_MESSAGE_BYTES:
        raise UnreadableMessage(f"the message has {len(raw)} bytes; {MAX_MESSAGE_BYTES} are allowed")
    try:
        return _decoder.decode(raw), []
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        return _read_again(raw, f"the message is not a JSON object: {exc}")
    except RecursionError as exc:
        raise UnreadableMessage("the message is nested too deeply") from exc


def _utf8(body: str | bytes) -> bytes:
    try:
        if isinstance(body, str):
            return body.encode()
        body.decode()  # msgspec does not check the encoding of fields that stay raw
    except UnicodeError as exc:
        raise UnreadableMessage("the message is not valid Unicode") from exc
    return body


def _read_again(raw: bytes, problem: str) -> tuple[_RawMessage, list[Text]]:
    """Read a message with Python's JSON decoder, after msgspec has refused the message.

    If the message has a requestId, its sender can be notified. Three kinds of messages are readable here.
    `json.dumps` and `JSON.stringify` write escapes of lone surrogates. These are valid JSON (RFC 8259,
    section 8.2), but msgspec refuses them. `json.dumps` also writes NaN and Infinity, which are not valid.
    Some senders write a byte order mark, which may be ignored (section 8.1).

    Args:
        raw: The message.
        problem: The error of msgspec.

    Raises:
        UnreadableMessage: Python's JSON decoder refuses the message, too.
    """
    constants: list[str] = []
    # Numbers stay text: Python refuses integers of more than 4300 digits.
    decoder = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=constants.append)
    texts: dict[str, str] = {}
    problems: list[Text] = []
    try:
        for name, text in _members(raw.decode().removeprefix(_BYTE_ORDER_MARK), decoder):
            texts[name] = text
            if constants and not problems:  # only one problem: a message may have very many unknown fields
                problems = [_NO_JSON.format(name=_shown_name(name), constant=constants[0])]
    except (ValueError, RecursionError) as exc:
        raise UnreadableMessage(problem) from exc
    known = {name: msgspec.Raw(texts[wire].encode()) for wire, name in _NAMES.items() if wire in texts}
    return _RawMessage(**known), problems


def _shown_name(name: str) -> str:
    """Return the name of a field for an error. An unknown name is shown as JSON, on one line, and cut."""
    return name if name in _NAMES else _cut(one_line(json.dumps(name, ensure_ascii=False)))


def _members(text: str, decoder: json.JSONDecoder) -> Iterator[tuple[str, str]]:
    """Yield each name of a JSON object with the JSON of its value.

    Raises:
        ValueError: The text is not a JSON object.
    """
    mark, at = _next_mark(text, 0)
    if mark != "{":
        raise ValueError("the text is not an object")
    if text.startswith("}", at):
        mark, at = _next_mark(text, at)
    while mark != "}":
        if not text.startswith('"', at):
            raise ValueError("a name is not a string")
        name, at = decoder.raw_decode(text, at)
        colon, start = _next_mark(text, at)
        if colon != ":":
            raise ValueError("a name has no value")
        _, end = decoder.raw_decode(text, start)
        yield name, text[start:end]
        mark, at = _next_mark(text, end)
        if mark not in {",", "}"}:
            raise ValueError("a value is followed by neither a comma nor the end of the object")
    if at != len(text):
        raise ValueError("text follows the object")


def _next_mark(text: str, at: int) -> tuple[str, int]:
    """Return the punctuation mark at `at`, or an empty text, and the place after the mark and white space."""
    found = _MARK.match(text, at)
    assert found is not None  # noqa: S101 - the pattern also matches the empty text
    return found[1], found.end()


def _request_id(raw_message: _RawMessage) -> str:
    if not bytes(raw_message.request_id):
        raise UnreadableMessage("the message has no requestId")
    value = _decode(raw_message.request_id, str)
    if value is None or not _REQUEST_ID.fullmatch(value) or value in {".", ".."}:
        raise UnreadableMessage(
            f"requestId is {_shown(raw_message.request_id)}; expected 1-128 characters of A-Z a-z 0-9 . _ -"
        )
    return value


def _decode(raw: msgspec.Raw, kind: type[_T]) -> _T | None:
    """Return the value of a field; None if it is not of that type."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _shown(raw: msgspec.Raw) -> str:
    """Return the JSON of a field for an error text, on one line. A long JSON is cut."""
    return _cut(one_line(bytes(memoryview(raw)[:_SHOWN_FROM_BYTES]).decode(errors="replace")))


def _cut(text: str) -> str:
    return text if len(text) <= _WHOLE_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def _is_absent(raw: msgspec.Raw) -> bool:
    return bytes(memoryview(raw)[:5]) in {b"", b"null"}


class _Fields:
    """Checks the fields one by one and collects the problems. A wrong field gets a default value."""

    def __init__(self, request_id: str, problems: list[Text]) -> None:
        self.request_id = request_id
        self.problems = problems
        self.hint: Text | None = None

    def rejection(self) -> Rejected:
        """Return the rejection with every problem."""
        message = Text(
            "; ".join(problem.en for problem in self.problems),
            "; ".join(problem.ko for problem in self.problems),
        )
        return Rejected(ErrorType.INVALID_JOB, message, hint=self.hint)

    def _refuse(self, name: str, raw: msgspec.Raw, expected: Text) -> None:
        self.problems.append(_WRONG.format(name=name, value=_shown(raw), expected=expected))

    def text(self, name: str, raw: msgspec.Raw, default: str, *, longest: int) -> str:
        if _is_absent(raw):
            return default
        value: Any = _decode(raw, str)
        if value is None or not 1 <= len(value) <= longest or not value.isprintable():
            self._refuse(name, raw, _PRINTABLE.format(longest=longest))
            return default
        return str(value)

    def choice(self, name: str, raw: msgspec.Raw, kind: type[_Kind], default: _Kind) -> _Kind:
        if _is_absent(raw):
            return default
        value = _decode(raw, str)
        if value not in set(kind):
            self._refuse(name, raw, _ONE_OF.format(values=", ".join(kind)))
            return default
        return kind(str(value))

    def network(self, raw: msgspec.Raw, widest: NetworkPolicy) -> NetworkPolicy:
        if _is_absent(raw):
            return widest
        wanted = self.choice("network", raw, NetworkPolicy, widest)
        if not widest.allows(wanted):
            # With a narrower network the run would fail later, and the cause would be hard to find.
            self._refuse("network", raw, _NO_WIDER.format(widest=widest, wanted=wanted))
        return wanted

    def locale(self, raw: msgspec.Raw, default: Locale) -> Locale:
        if _is_absent(raw):
            return default
        value = _decode(raw, str)
        for locale in LOCALES:
            if value == locale:
                return locale
        self._refuse("locale", raw, _ONE_OF.format(values=", ".join(LOCALES)))
        return default

    def s3_key(self, raw: msgspec.Raw) -> str:
        if _is_absent(raw):
            self.problems.append(_NO_KEY)
            return ""
        value = _decode(raw, str)
        # An S3 key cannot contain a NUL or a lone surrogate. botocore's error would not mention this.
        if not value or len(value.encode(errors="replace")) > _MAX_KEY_BYTES or "\0" in value:
            self._refuse("s3Key", raw, _KEY.format(longest=_MAX_KEY_BYTES))
            return ""
        return value

    def env(self, raw: msgspec.Raw) -> Variables:
        if _is_absent(raw):
            return _NO_VARIABLES
        try:
            value = json.loads(bytes(raw))
        except (ValueError, RecursionError):
            value = None
        parsed = variables.parse(value)
        self.problems += parsed.problems
        return parsed

    def bucket(self, raw: msgspec.Raw, default: str) -> str:
        if _is_absent(raw):
            return default
        value = _decode(raw, str)
        if value is None or not _BUCKET.fullmatch(value):
            self._refuse("s3Bucket", raw, _BUCKET_NAME)
            self.hint = None if value is None else bucket_hint(value)
            return default
        return value

    def integer(self, name: str, raw: msgspec.Raw, default: int, bounds: tuple[int, int]) -> int:
        if _is_absent(raw):
            return default
        value = _decode(raw, int)
        low, high = bounds
        if value is None or not low <= value <= high:
            self._refuse(name, raw, _INTEGER.format(low=low, high=high))
            return default
        return value
