"""A job: one SQS message, checked field by field. Past `parse_job` a `Job` cannot be wrong.

docs/contract.md, section 1.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from nanoagent.common.units import MIB
from nanoagent.model.errors import Rejected, UnreadableMessage, one_line
from nanoagent.model.object_names import bucket_hint
from nanoagent.model.result import ErrorType
from nanoagent.model.text import LOCALES, Locale, Text

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_MESSAGE_BYTES: Final = MIB  # SQS's own limit since 2025-08, attributes included
MIN_MEMORY_MB: Final = 32
DEFAULT_MEMORY_MB: Final = 128
MAX_TIMEOUT_MS: Final = 42_000_000  # below the 12 h for which SQS lets one receipt be held
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_MAX_KEY_BYTES: Final = 1024  # S3's limit for an object key
_MAX_FUNCTION_ID: Final = 256
_MAX_MODEL_ID: Final = 256
_MAX_SHOWN_RUNTIME: Final = 64
# Of a value, shown in an error. What cannot be printed is escaped first, to ten characters at most.
_WHOLE_CHARACTERS: Final = 100
_SHOWN_CHARACTERS: Final = 80
_SHOWN_FROM_BYTES: Final = 4 * _WHOLE_CHARACTERS  # UTF-8's longest
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
_MARK: Final = re.compile(r"[ \t\n\r]*([{}:,]?)[ \t\n\r]*")  # with JSON's white space, RFC 8259, section 2


class Runtime(StrEnum):
    """The languages a function can be written in."""

    PYTHON = "python"
    NODEJS = "nodejs"
    CPP = "cpp"
    GO = "go"


class NetworkPolicy(StrEnum):
    """What a run may reach, the narrowest first."""

    NONE = "none"
    AI = "ai"
    EGRESS = "egress"

    def allows(self, other: NetworkPolicy) -> bool:
        """Whether the other is this one or a narrower one."""
        return _WIDTHS[other] <= _WIDTHS[self]


_WIDTHS: Final = {policy: width for width, policy in enumerate(NetworkPolicy)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request to run a function once.

    Attributes:
        request_id: Names Redis keys, S3 keys and folders; safe for all three.
        function_id: Whose code it is; any printable text.
        runtime: The language.
        s3_bucket: Where the code lies.
        s3_key: Which object of it.
        memory_mb: The limit in MiB, swap excluded.
        timeout_ms: For the user's code alone.
        payload: The `input` field's own JSON bytes.
        model_id: The default model of the AI client.
        network: What the run may reach.
        locale: The language of the result's texts.
    """

    request_id: str
    function_id: str
    runtime: Runtime
    s3_bucket: str
    s3_key: str
    memory_mb: int
    timeout_ms: int
    payload: bytes
    model_id: str
    network: NetworkPolicy = NetworkPolicy.NONE
    locale: Locale = "en"

    def version(self, digest: str) -> FunctionVersion:
        """The function version that the job runs.

        Args:
            digest: The SHA-256 of the zip file that is at its key now.
        """
        return FunctionVersion(self.function_id, self.runtime, digest, self.memory_mb)


@dataclass(frozen=True, slots=True)
class FunctionVersion:
    """The code under a function ID, in one size.

    Attributes:
        function_id: The function. Functions do not share what belongs to a version, even with the same code.
        runtime: The language.
        digest: The SHA-256 of the zip file.
        memory_mb: The memory that a run may use, MiB.
    """

    function_id: str
    runtime: Runtime
    digest: str
    memory_mb: int


@dataclass(frozen=True, slots=True)
class JobDefaults:
    """What a message that leaves a field out gets, and how far its fields may go."""

    s3_bucket: str
    model_id: str
    max_memory_mb: int
    memory_mb: int = DEFAULT_MEMORY_MB
    timeout_ms: int = 300_000
    network: NetworkPolicy = NetworkPolicy.AI
    locale: Locale = "ko"


class _Envelope(msgspec.Struct, rename="camel"):
    """The message with every known field still raw, so that one wrong field hides no other."""

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


_envelope_decoder = msgspec.json.Decoder(_Envelope)
_NAMES: Final = {field.encode_name: field.name for field in msgspec.structs.fields(_Envelope)}
_T = TypeVar("_T", str, int)


@dataclass(slots=True)
class InvalidJob(Exception):  # noqa: N818 - an ending's name, not an error of ours
    """A message whose requestId is readable and whose other fields are not all right.

    Carries what a result needs so that the sender can be told.
    """

    request_id: str
    function_id: str
    runtime: str
    rejection: Rejected
    locale: Locale


def parse_job(body: str | bytes, defaults: JobDefaults) -> Job:
    """Read one message.

    Args:
        body: The message's JSON text.
        defaults: For fields that are absent or null.

    Raises:
        UnreadableMessage: No JSON object, or no valid requestId in it.
        InvalidJob: Any other field is wrong; every wrong field is named.
    """
    envelope, problems = _open_envelope(body)
    fields = _Fields(_request_id(envelope), problems)
    function_id = fields.text("functionId", envelope.function_id, "unknown", longest=_MAX_FUNCTION_ID)
    runtime = fields.runtime(envelope.runtime)
    job = Job(
        request_id=fields.request_id,
        function_id=function_id,
        runtime=runtime,
        s3_key=fields.s3_key(envelope.s3_key),
        s3_bucket=fields.bucket(envelope.s3_bucket, defaults.s3_bucket),
        memory_mb=fields.integer(
            "memoryMb", envelope.memory_mb, defaults.memory_mb, (MIN_MEMORY_MB, defaults.max_memory_mb)
        ),
        timeout_ms=fields.integer("timeoutMs", envelope.timeout_ms, defaults.timeout_ms, (1, MAX_TIMEOUT_MS)),
        payload=bytes(envelope.input) or b"{}",
        model_id=fields.text("modelId", envelope.model_id, defaults.model_id, longest=_MAX_MODEL_ID),
        network=fields.network(envelope.network, defaults.network),
        locale=fields.locale(envelope.locale, defaults.locale),
    )
    if fields.problems:
        shown_runtime = _loose(envelope.runtime, str) or Runtime.PYTHON
        raise InvalidJob(
            request_id=job.request_id,
            function_id=function_id,
            runtime=one_line(shown_runtime[:_MAX_SHOWN_RUNTIME])[:_MAX_SHOWN_RUNTIME],
            rejection=fields.rejection(),
            locale=job.locale,
        )
    return job


def _open_envelope(body: str | bytes) -> tuple[_Envelope, list[Text]]:
    """The message's fields, and what of it is no JSON although its fields can be told apart."""
    raw = _utf8(body)
    if len(raw) > MAX_MESSAGE_BYTES:
        raise UnreadableMessage(f"the message has {len(raw)} bytes; {MAX_MESSAGE_BYTES} are allowed")
    try:
        return _envelope_decoder.decode(raw), []
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        return _second_reading(raw, f"the message is not a JSON object: {exc}")
    except RecursionError as exc:
        raise UnreadableMessage("the message is nested too deeply") from exc


def _utf8(body: str | bytes) -> bytes:
    try:
        if isinstance(body, str):
            return body.encode()
        body.decode()  # msgspec does not look at the text of strings that stay raw
    except UnicodeError as exc:
        raise UnreadableMessage("the message is not valid Unicode") from exc
    return body


def _second_reading(raw: bytes, problem: str) -> tuple[_Envelope, list[Text]]:
    """Read again what msgspec has refused, to tell the sender if there is a requestId.

    `json.dumps` and `JSON.stringify` write escapes of lone surrogates, which are JSON (RFC 8259, section 8.2)
    but not to msgspec, and `json.dumps` writes NaN and Infinity, which are not. Some put a byte order mark
    before it all, which may be ignored (section 8.1).

    Raises:
        UnreadableMessage: It is no JSON object to Python's reader either.
    """
    constants: list[str] = []
    # Numbers stay text: Python makes no integers of more than 4300 digits.
    decoder = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=constants.append)
    texts: dict[str, str] = {}
    problems: list[Text] = []
    try:
        for name, text in _members(raw.decode().removeprefix(_BYTE_ORDER_MARK), decoder):
            texts[name] = text
            if constants and not problems:  # one is enough: of unknown fields there may be any number
                problems = [_NO_JSON.format(name=_named(name), constant=constants[0])]
    except (ValueError, RecursionError) as exc:
        raise UnreadableMessage(problem) from exc
    known = {name: msgspec.Raw(texts[wire].encode()) for wire, name in _NAMES.items() if wire in texts}
    return _Envelope(**known), problems


def _named(name: str) -> str:
    """A field's name; one that is a stranger's as the JSON that it came as, and short."""
    return name if name in _NAMES else _cut(one_line(json.dumps(name, ensure_ascii=False)))


def _members(text: str, decoder: json.JSONDecoder) -> Iterator[tuple[str, str]]:
    """The names of a JSON object, each with its value's own text.

    Raises:
        ValueError: It is none.
    """
    mark, at = _next_mark(text, 0)
    if mark != "{":
        raise ValueError("no object")
    if text.startswith("}", at):
        mark, at = _next_mark(text, at)
    while mark != "}":
        if not text.startswith('"', at):
            raise ValueError("a name that is no string")
        name, at = decoder.raw_decode(text, at)
        colon, start = _next_mark(text, at)
        if colon != ":":
            raise ValueError("a name without a value")
        _, end = decoder.raw_decode(text, start)
        yield name, text[start:end]
        mark, at = _next_mark(text, end)
        if mark not in {",", "}"}:
            raise ValueError("neither another value nor the end")
    if at != len(text):
        raise ValueError("something behind the object")


def _next_mark(text: str, at: int) -> tuple[str, int]:
    """The punctuation mark there, which may be none, and where what follows it begins."""
    found = _MARK.match(text, at)
    assert found is not None  # noqa: S101 - the pattern matches nothing, too
    return found[1], found.end()


def _request_id(envelope: _Envelope) -> str:
    if not bytes(envelope.request_id):
        raise UnreadableMessage("the message has no requestId")
    value = _loose(envelope.request_id, str)
    if value is None or not _REQUEST_ID.fullmatch(value) or value in {".", ".."}:
        raise UnreadableMessage(
            f"requestId is {_shown(envelope.request_id)}; expected 1-128 characters of A-Z a-z 0-9 . _ -"
        )
    return value


def _loose(raw: msgspec.Raw, kind: type[_T]) -> _T | None:
    """The value when it is of that kind, else None."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _shown(raw: msgspec.Raw) -> str:
    """A field's value as a person should see it in an error: one line, and short."""
    return _cut(one_line(bytes(memoryview(raw)[:_SHOWN_FROM_BYTES]).decode(errors="replace")))


def _cut(text: str) -> str:
    return text if len(text) <= _WHOLE_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def _is_absent(raw: msgspec.Raw) -> bool:
    return bytes(memoryview(raw)[:5]) in {b"", b"null"}


class _Fields:
    """Checks fields one by one and gathers what is wrong; a wrong field yields its default meanwhile."""

    def __init__(self, request_id: str, problems: list[Text]) -> None:
        self.request_id = request_id
        self.problems = problems
        self.hint: Text | None = None

    def rejection(self) -> Rejected:
        """Every problem in one sentence, and what to do about them."""
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
        value: Any = _loose(raw, str)
        if value is None or not 1 <= len(value) <= longest or not value.isprintable():
            self._refuse(name, raw, _PRINTABLE.format(longest=longest))
            return default
        return str(value)

    def runtime(self, raw: msgspec.Raw) -> Runtime:
        if _is_absent(raw):
            return Runtime.PYTHON
        value = _loose(raw, str)
        if value not in set(Runtime):
            self._refuse("runtime", raw, _ONE_OF.format(values=", ".join(Runtime)))
            return Runtime.PYTHON
        return Runtime(str(value))

    def network(self, raw: msgspec.Raw, widest: NetworkPolicy) -> NetworkPolicy:
        if _is_absent(raw):
            return widest
        value = _loose(raw, str)
        if value not in set(NetworkPolicy):
            self._refuse("network", raw, _ONE_OF.format(values=", ".join(NetworkPolicy)))
            return widest
        wanted = NetworkPolicy(str(value))
        if not widest.allows(wanted):
            # Narrowed silently, it would fail later, where nobody looks for the reason.
            self._refuse("network", raw, _NO_WIDER.format(widest=widest, wanted=wanted))
        return wanted

    def locale(self, raw: msgspec.Raw, default: Locale) -> Locale:
        if _is_absent(raw):
            return default
        value = _loose(raw, str)
        for locale in LOCALES:
            if value == locale:
                return locale
        self._refuse("locale", raw, _ONE_OF.format(values=", ".join(LOCALES)))
        return default

    def s3_key(self, raw: msgspec.Raw) -> str:
        if _is_absent(raw):
            self.problems.append(_NO_KEY)
            return ""
        value = _loose(raw, str)
        # A NUL or lone surrogate cannot be part of an S3 key; botocore would fail on it obscurely.
        if not value or len(value.encode(errors="replace")) > _MAX_KEY_BYTES or "\0" in value:
            self._refuse("s3Key", raw, _KEY.format(longest=_MAX_KEY_BYTES))
            return ""
        return value

    def bucket(self, raw: msgspec.Raw, default: str) -> str:
        if _is_absent(raw):
            return default
        value = _loose(raw, str)
        if value is None or not _BUCKET.fullmatch(value):
            self._refuse("s3Bucket", raw, _BUCKET_NAME)
            self.hint = None if value is None else bucket_hint(value)
            return default
        return value

    def integer(self, name: str, raw: msgspec.Raw, default: int, bounds: tuple[int, int]) -> int:
        if _is_absent(raw):
            return default
        value = _loose(raw, int)
        low, high = bounds
        if value is None or not low <= value <= high:
            self._refuse(name, raw, _INTEGER.format(low=low, high=high))
            return default
        return value
