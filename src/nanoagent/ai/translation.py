"""Ollama's calls for servers that have OpenAI's API only: the request there, the answer back.

`/api/generate` and `/api/chat` become chat completions (`raw` and `suffix`: completions), `/api/embed` and
`/api/embeddings` become embeddings. The request that comes of it is read and checked like any other of
OpenAI's API (`calls.read`), so a translation allows nothing that a direct call would not.

Parts without a counterpart are left out: model options that `_OPTIONS` does not have, and a boolean `think`.
Parts that change the meaning of the request are refused: `template`, `context`.

Sources: docs.ollama.com/api; platform.openai.com, API reference, chat, completions,
embeddings. `reasoning_content` is DeepSeek's and vLLM's, `reasoning` OpenRouter's.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict, deque
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nanoagent.ai.calls import ROUTES
from nanoagent.ai.refusals import Refused
from nanoagent.ai.upstreams import UpstreamFailed
from nanoagent.common.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from nanoagent.ai.calls import Call, Route
    from nanoagent.ai.metering import Tally

_MAX_LINE: Final = 4 * MIB  # of a stream
_MAX_TEXT: Final = 8 * MIB  # of a whole answer: two million tokens
_MAX_VECTORS: Final = 64 * MIB  # 2,048 texts (OpenAI's most) of 1,536 numbers are about 45 MB
_MAX_PARTS: Final = 1024 * 1024  # of a text that comes in parts
_MOST_OBJECTS: Final = 200_000  # of a whole answer; each takes many times its bytes while it is read
_MOST_IN_LINE: Final = 4096  # objects in a line of a stream: about 20 ms; servers send one token in a line
_MOST_CALLS_SENT: Final = 4096  # tool calls in all messages of a request
_MOST_CALLS: Final = 1024  # tool calls of an answer
_MAX_CALLS: Final = MIB  # bytes of the names and arguments of an answer's tool calls

_CHAT: Final = "/v1/chat/completions"
_COMPLETIONS: Final = "/v1/completions"
_EMBEDDINGS: Final = "/v1/embeddings"
_OPTIONS: Final = ("temperature", "top_p", "seed", "stop", "presence_penalty", "frequency_penalty")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/]+={0,2}")
# The first characters of a picture in base64, by its kind.
_PICTURES: Final = {"/9j/": "jpeg", "iVBOR": "png", "R0lGO": "gif", "UklGR": "webp"}
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_NO_DETAILS: Final = {
    "parent_model": "",
    "format": "",
    "family": "",
    "families": None,
    "parameter_size": "",
    "quantization_level": "",
}


class _Function(msgspec.Struct):
    name: str
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


class _ToolCall(msgspec.Struct):
    function: _Function
    id: str | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | None = None
    images: list[str] | None = None
    tool_calls: list[_ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


# --- requests


@dataclass(frozen=True, slots=True)
class Translation:
    """A call of Ollama's API as one of OpenAI's.

    Attributes:
        call: The call as it came.
        route: The route of OpenAI's API that serves it.
        request: The body for that route.
    """

    call: Call
    route: Route
    request: bytes

    def translator(self, tally: Tally, content_type: str, begun: float) -> StreamTranslator | WholeTranslator:
        """Make the translator of the answer to Ollama's API.

        Args:
            tally: The tokens that the answer has cost; filled while it is read, each piece before it is
                translated.
            content_type: The upstream's.
            begun: When the call began, by `time.perf_counter`.
        """
        shape = _Shape(self.call, tally, begun)
        if "event-stream" in content_type and self.route.tells == "text":
            return StreamTranslator(shape)
        return WholeTranslator(shape)


def of(call: Call, *, newer: bool) -> Translation:
    """The same call in OpenAI's API.

    Args:
        call: A call of Ollama's API.
        newer: Whether the server wants `max_completion_tokens` in place of `max_tokens`.

    Raises:
        Refused: A field has another kind, or OpenAI's API cannot express it.
    """
    fields = call.fields
    if call.route.tells == "vectors":
        return _as_embeddings(call)
    for name in ("template", "context"):
        if _is_set(fields, name):
            raise Refused(
                400,
                f"the field {name!r} works with an Ollama server only; this model's server has OpenAI's API",
                "invalid_field",
                param=name,
            )
    if call.route.path == "/api/generate" and (_get(fields, "raw", bool) or _get(fields, "suffix", str)):
        path = _COMPLETIONS
        asked = {"prompt": _get(fields, "prompt", str) or ""}
        if suffix := _get(fields, "suffix", str):
            asked["suffix"] = suffix
    else:
        path = _CHAT
        asked = {"messages": _conversation(call)} | _tools(fields) | _format(fields) | _effort(fields)
    limit = "max_completion_tokens" if newer and path == _CHAT else "max_tokens"
    asked |= _options(call, limit)
    return _translation(call, path, asked | {"stream": call.stream})


def is_load(call: Call) -> bool:
    """Whether a call only loads the model, as Ollama's clients do: it has no prompt to answer."""
    if call.route.path == "/api/chat":
        return not _get(call.fields, "messages", list[msgspec.Raw])
    return call.route.path == "/api/generate" and not any(
        _is_set(call.fields, name) for name in ("prompt", "images", "suffix")
    )


def loaded(call: Call) -> bytes:
    """The answer to a call that only loads the model."""
    line = _Shape(call, None, time.perf_counter()).piece("", done_reason="load")
    return line + b"\n" if call.stream else line


def _translation(call: Call, path: str, asked: dict[str, Any]) -> Translation:
    return Translation(call, ROUTES[path], msgspec.json.encode({"model": call.model} | asked))


def _as_embeddings(call: Call) -> Translation:
    name = "input" if call.route.path == "/api/embed" else "prompt"
    asked = {"input": _get(call.fields, name, str | list[str]) or ""}
    if (dimensions := _get(call.fields, "dimensions", int)) is not None:
        asked["dimensions"] = dimensions
    return _translation(call, _EMBEDDINGS, asked | {"encoding_format": "float"})


def _conversation(call: Call) -> list[dict[str, Any]]:
    if call.route.path == "/api/chat":
        return list(_messages(_get(call.fields, "messages", list[_Message]) or []))
    user = _Message("user", _get(call.fields, "prompt", str), _get(call.fields, "images", list[str]))
    system = _get(call.fields, "system", str)
    return [*([{"role": "system", "content": system}] if system else []), *_messages([user])]


def _messages(messages: list[_Message]) -> Iterator[dict[str, Any]]:
    """Ollama's messages as OpenAI's, with ids of tool calls, which Ollama tells apart by name and order.

    Raises:
        Refused: The messages have too many tool calls.
    """
    waiting = _Waiting([])
    seen = 0
    for at, message in enumerate(messages):
        said: dict[str, Any] = {"role": message.role, "content": _content(message)}
        if message.role == "tool":
            said["tool_call_id"] = message.tool_call_id or waiting.answered(message.tool_name)
        elif message.tool_calls:
            seen += len(message.tool_calls)
            if seen > _MOST_CALLS_SENT:
                raise Refused(
                    413,
                    f"the request has more than {_MOST_CALLS_SENT} tool calls",
                    "too_large",
                    param="messages",
                )
            calls = [_tool_call(call, f"call_{at}_{index}") for index, call in enumerate(message.tool_calls)]
            waiting = _Waiting([(call["id"], call["function"]["name"]) for call in calls])
            said |= {"tool_calls": calls, "content": said["content"] or None}
        yield said


class _Waiting:
    """The tool calls of one message that no later message has answered yet.

    Each call stands in two queues and leaves each of them once, so all answers together take linear time.

    Args:
        calls: The id and the name of each call.
    """

    def __init__(self, calls: list[tuple[str, str]]) -> None:
        self._ids = [id_ for id_, _ in calls]
        self._is_answered = [False] * len(calls)
        self._all = deque(range(len(calls)))
        self._by_name: defaultdict[str | None, deque[int]] = defaultdict(deque)
        for at, (_, name) in enumerate(calls):
            self._by_name[name].append(at)

    def answered(self, name: str | None) -> str:
        """Return the id of the call that a message answers: the first of that name, else the first of all."""
        for queue in (self._by_name.get(name, deque()), self._all):
            while queue:
                at = queue.popleft()
                if not self._is_answered[at]:
                    self._is_answered[at] = True
                    return self._ids[at]
        return "call_unknown"


def _tool_call(call: _ToolCall, made_up_id: str) -> dict[str, Any]:
    arguments = bytes(call.function.arguments)
    if arguments.startswith(b'"'):
        arguments = msgspec.json.decode(arguments, type=str).encode()
    return {
        "id": call.id or made_up_id,
        "type": "function",
        "function": {"name": call.function.name, "arguments": arguments.decode()},
    }


def _content(message: _Message) -> Any:
    if not message.images:
        return message.content or ""
    text = [{"type": "text", "text": message.content}] if message.content else []
    return [
        *text,
        *({"type": "image_url", "image_url": {"url": _picture(image)}} for image in message.images),
    ]


def _picture(image: str) -> str:
    """A picture as a data URL: the data itself, and no address that the upstream would fetch."""
    if _BASE64.fullmatch(image) is None:
        raise Refused(400, "the field 'images' should be pictures in base64", "invalid_field", param="images")
    kind = next((kind for start, kind in _PICTURES.items() if image.startswith(start)), "png")
    return f"data:image/{kind};base64,{image}"


def _tools(fields: dict[str, msgspec.Raw]) -> dict[str, Any]:
    tools = _get(fields, "tools", list[msgspec.Raw])
    return {"tools": tools} if tools else {}


def _format(fields: dict[str, msgspec.Raw]) -> dict[str, Any]:
    if not _is_set(fields, "format"):
        return {}
    schema = fields["format"]
    if bytes(schema) == b'"json"':
        return {"response_format": {"type": "json_object"}}
    if not bytes(schema).startswith(b"{"):
        raise Refused(
            400, "the field 'format' should be \"json\" or a schema", "invalid_field", param="format"
        )
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}}


def _effort(fields: dict[str, msgspec.Raw]) -> dict[str, Any]:
    effort = _get(fields, "think", bool | str)
    return {"reasoning_effort": effort} if isinstance(effort, str) and effort else {}


def _options(call: Call, limit: str) -> dict[str, Any]:
    options = call.options
    found: dict[str, Any] = {name: options[name] for name in _OPTIONS if _is_set(options, name)}
    if call.wanted is not None:
        found[limit] = max(1, call.wanted)
    return found


def _is_set(fields: dict[str, msgspec.Raw], name: str) -> bool:
    return name in fields and bytes(fields[name]) not in {b"null", b'""', b"[]"}


def _get(fields: dict[str, msgspec.Raw], name: str, kind: Any) -> Any:
    if name not in fields:
        return None
    try:
        return msgspec.json.decode(fields[name], type=kind | None)
    except _UNREADABLE as exc:
        raise Refused(400, f"the field {name!r}: {exc}", "invalid_field", param=name) from exc


# --- answers


class _FunctionDelta(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _CallDelta(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: _FunctionDelta | None = None


class _Part(msgspec.Struct):
    type: str | None = None
    text: str | None = None


class _Said(msgspec.Struct):
    """A message of an answer, or an addition to one in a chunk."""

    content: msgspec.Raw = msgspec.Raw(b"null")
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_CallDelta] | None = None

    @property
    def text(self) -> str:
        """Its text; some (Mistral) send it in parts."""
        raw = bytes(self.content)
        with suppress(*_UNREADABLE):
            if raw.startswith(b'"'):
                return msgspec.json.decode(raw, type=str)
            if raw.startswith(b"[") and len(raw) <= _MAX_PARTS:
                parts = msgspec.json.decode(raw, type=list[_Part])
                return "".join(part.text or "" for part in parts if part.type == "text")
        return ""

    @property
    def thinking(self) -> str:
        return self.reasoning_content or self.reasoning or ""


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Said | None = None
    message: _Said | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice] = []
    error: msgspec.Raw = msgspec.Raw(b"")


class _Vector(msgspec.Struct):
    embedding: msgspec.Raw
    index: int = 0


class _Vectors(msgspec.Struct):
    data: list[_Vector]


_completion: Final = msgspec.json.Decoder(_Completion)
_vectors: Final = msgspec.json.Decoder(_Vectors)


@dataclass(slots=True)
class _Shape:
    """The shape of the answers to one call in Ollama's API."""

    call: Call
    tally: Tally | None
    begun: float

    def piece(
        self,
        text: str,
        thinking: str = "",
        tool_calls: list[dict[str, Any]] | None = None,
        done_reason: str | None = None,
    ) -> bytes:
        """A piece of the answer; the last one, or the whole, has a `done_reason`."""
        said: dict[str, Any] = {"thinking": thinking} if thinking else {}
        if self.call.route.path == "/api/chat":
            message = {"role": "assistant", "content": text} | said
            said = {"message": message | ({"tool_calls": tool_calls} if tool_calls else {})}
        else:
            said = {"response": text} | said
        head = {"model": self.call.model, "created_at": datetime.now(UTC).isoformat()}
        end = {"done": False} if done_reason is None else self._end(done_reason)
        return msgspec.json.encode(head | said | end)

    def _end(self, done_reason: str) -> dict[str, Any]:
        return {"done": True, "done_reason": done_reason} | self._durations() | self._counts()

    def _durations(self) -> dict[str, int]:
        """Nanoseconds; the server does not tell the time of each step."""
        whole = round((time.perf_counter() - self.begun) * 1e9)
        return {"total_duration": whole, "load_duration": 0}

    def _counts(self) -> dict[str, int]:
        if self.tally is None:
            return {}
        told = {"prompt_eval_count": self.tally.prompt, "eval_count": self.tally.completion}
        return {name: count for name, count in told.items() if count is not None}

    def vectors(self, vectors: list[msgspec.Raw]) -> bytes:
        """The answer to a call for embeddings."""
        if self.call.route.path == "/api/embeddings":
            return msgspec.json.encode({"embedding": vectors[0]})
        counted = {"prompt_eval_count": self._counts().get("prompt_eval_count", 0)}
        return msgspec.json.encode(
            {"model": self.call.model, "embeddings": vectors} | self._durations() | counted
        )


class _Object(msgspec.Struct):
    """Any object; its members are checked and skipped."""


@dataclass(slots=True)
class _ToolCalls:
    """The tool calls of an answer: each arrives in pieces, and is passed on whole.

    Attributes:
        size: The bytes of their names and arguments.
    """

    size: int = 0
    # Index → name, arguments; bytes, as strings would be copied for each piece that is added.
    _calls: dict[int, tuple[bytearray, bytearray]] = field(default_factory=dict)

    def add(self, deltas: Iterable[_CallDelta]) -> None:
        """Add pieces.

        Raises:
            UpstreamFailed: There are too many calls, or they are too large.
        """
        for delta in deltas:
            if delta.index not in self._calls:
                if len(self._calls) == _MOST_CALLS:
                    raise UpstreamFailed(f"its answer has more than {_MOST_CALLS} tool calls")
                self._calls[delta.index] = (bytearray(), bytearray())
            if delta.function is not None:
                name, arguments = self._calls[delta.index]
                self._extend(name, delta.function.name)
                self._extend(arguments, delta.function.arguments)

    def _extend(self, held: bytearray, more: str | None) -> None:
        data = (more or "").encode()
        self.size += len(data)
        if self.size > _MAX_CALLS:
            raise UpstreamFailed(f"the tool calls of its answer are larger than {_MAX_CALLS} bytes")
        held += data

    def taken(self) -> list[dict[str, Any]]:
        """Return all of them, and forget them."""
        calls = [self._calls[index] for index in sorted(self._calls)]
        self._calls.clear()
        self.size = 0
        return [
            {"function": {"name": name.decode(), "arguments": _arguments(bytes(text))}}
            for name, text in calls
        ]


def _arguments(text: bytes) -> msgspec.Raw:
    """The arguments of a tool call as an object in one line; models do not always write an object."""
    with suppress(*_UNREADABLE):
        msgspec.json.decode(text, type=_Object)
        line = msgspec.json.format(text, indent=-1)
        if b"\n" not in line:
            return msgspec.Raw(line)
    return msgspec.Raw(b"{}")


class StreamTranslator:
    """Server-sent events to lines of JSON.

    Args:
        shape: The shape of the lines.
    """

    content_type = "application/x-ndjson"
    holds_whole = False

    def __init__(self, shape: _Shape) -> None:
        self._shape = shape
        self._line = bytearray()
        self._tool_calls = _ToolCalls()
        self._finish_reason: str | None = None
        self._is_over = False

    @property
    def held_bytes(self) -> int:
        """How much of the answer it holds."""
        return len(self._line) + self._tool_calls.size

    def feed(self, data: bytes) -> bytes:
        """Some of the answer has come; returns it in Ollama's shape.

        Raises:
            UpstreamFailed: A line is too long or has too many parts, or there are too many tool calls.
        """
        if len(self._line) + len(data) > _MAX_LINE:
            raise UpstreamFailed("a line of its answer is too long")
        if b"\n" not in data:
            self._line += data
            return b""
        first, *more = data.split(b"\n")
        *lines, rest = [bytes(self._line) + first, *more]
        self._line = bytearray(rest)
        return b"".join(map(self._translated, lines))

    def finish(self) -> bytes:
        """The answer has ended; returns the rest of it. One that broke off has no last line.

        Raises:
            UpstreamFailed: As `feed`.
        """
        rest = self._translated(bytes(self._line))
        return rest + (self._last() if self._finish_reason is not None else b"")

    def _translated(self, line: bytes) -> bytes:
        text = line.strip()
        if self._is_over or not text.startswith(b"data:"):
            return b""
        text = text[len(b"data:") :].strip()
        if text == b"[DONE]":
            return self._last()
        if text.count(b"{") > _MOST_IN_LINE:
            raise UpstreamFailed("a line of its answer has too many parts")
        try:
            chunk = _completion.decode(text)
        except _UNREADABLE:
            return b""
        if bytes(chunk.error) not in {b"", b"null"}:
            self._is_over = True
            return msgspec.json.encode({"error": words_of(bytes(text))}) + b"\n"
        return b"".join(self._piece(choice) for choice in chunk.choices if choice.index == 0)

    def _piece(self, choice: _Choice) -> bytes:
        said = choice.delta or _as_said(choice.text)
        self._tool_calls.add(said.tool_calls or [])
        self._finish_reason = choice.finish_reason or self._finish_reason
        if not said.text and not said.thinking:
            return b""
        return self._shape.piece(said.text, said.thinking) + b"\n"

    def _last(self) -> bytes:
        if self._is_over:
            return b""
        self._is_over = True
        calls = self._tool_calls.taken()
        before = self._shape.piece("", tool_calls=calls) + b"\n" if calls else b""
        return before + self._shape.piece("", done_reason=_done_reason(self._finish_reason)) + b"\n"


class WholeTranslator:
    """An answer in one piece.

    Args:
        shape: Its shape.
    """

    holds_whole = True

    def __init__(self, shape: _Shape) -> None:
        self._shape = shape
        self._held = bytearray()
        self._is_vectors = shape.call.route.tells == "vectors"
        self._is_line = shape.call.stream and not self._is_vectors
        self.content_type = "application/x-ndjson" if self._is_line else "application/json"

    @property
    def held_bytes(self) -> int:
        """How much of the answer it holds."""
        return len(self._held)

    def feed(self, data: bytes) -> bytes:
        """Some of the answer has come; nothing goes on before it is whole.

        Raises:
            UpstreamFailed: It is too large.
        """
        self._held += data
        if len(self._held) > (_MAX_VECTORS if self._is_vectors else _MAX_TEXT):
            raise UpstreamFailed("its answer is too large")
        return b""

    def finish(self) -> bytes:
        """The answer has ended; returns it in Ollama's shape.

        Raises:
            UpstreamFailed: It has another shape, or too many parts or tool calls.
        """
        held = bytes(self._held)
        self._held.clear()
        if held.count(b"{") > _MOST_OBJECTS:
            raise UpstreamFailed("its answer has too many parts")
        try:
            answer = self._vectors(held) if self._is_vectors else self._text(held)
        except _UNREADABLE as exc:
            raise UpstreamFailed("its answer does not have the format of OpenAI's API") from exc
        return answer + b"\n" if self._is_line else answer

    def _vectors(self, held: bytes) -> bytes:
        data = sorted(_vectors.decode(held).data, key=lambda vector: vector.index)
        if not data:
            raise UpstreamFailed("its answer has no vectors")
        return self._shape.vectors([vector.embedding for vector in data])

    def _text(self, held: bytes) -> bytes:
        choices = _completion.decode(held).choices
        if not choices:
            raise UpstreamFailed("its answer has no choices")
        choice = choices[0]
        said = choice.message or _as_said(choice.text)
        calls = _ToolCalls()
        calls.add(msgspec.structs.replace(call, index=at) for at, call in enumerate(said.tool_calls or []))
        return self._shape.piece(said.text, said.thinking, calls.taken(), _done_reason(choice.finish_reason))


def _as_said(text: str | None) -> _Said:
    """The text of a completion as a message of a chat."""
    return _Said(content=msgspec.Raw(msgspec.json.encode(text)))


def _done_reason(finish_reason: str | None) -> str:
    return "length" if finish_reason == "length" else "stop"


# --- errors


def refusal(body: bytes) -> bytes:
    """The body of an error of OpenAI's API, or of a server like it, in Ollama's shape."""
    return msgspec.json.encode({"error": words_of(body)})


class _Failure(msgspec.Struct):
    error: msgspec.Raw = msgspec.Raw(b"")
    message: msgspec.Raw = msgspec.Raw(b"")
    detail: msgspec.Raw = msgspec.Raw(b"")


def words_of(body: bytes) -> str:
    """The words of an error: `error.message`, `error`, `message` or `detail`, as servers have it."""
    said = body.strip()
    with suppress(*_UNREADABLE):  # where it is not an object, there is nothing further inside
        for name in _Failure.__struct_fields__:
            inner: msgspec.Raw = getattr(msgspec.json.decode(said, type=_Failure), name)
            said = bytes(inner) or said
    with suppress(*_UNREADABLE):
        if said.startswith(b'"'):
            return msgspec.json.decode(said, type=str)
        return msgspec.json.format(said, indent=-1).decode()
    return "null"


# --- lists of models


class _Model(msgspec.Struct):
    id: str
    created: float | None = None


def model_entry(entry: msgspec.Raw) -> msgspec.Raw:
    """A model of OpenAI's list as one of Ollama's `tags`.

    Raises:
        msgspec.MsgspecError: The entry has another shape.
    """
    model = msgspec.json.decode(entry, type=_Model)
    made = datetime.fromtimestamp(0, UTC)
    with suppress(ValueError, OverflowError, OSError):
        made = datetime.fromtimestamp(model.created or 0, UTC)
    return msgspec.Raw(
        msgspec.json.encode(
            {
                "name": model.id,
                "model": model.id,
                "modified_at": made.isoformat(),
                "size": 0,
                "digest": "",
                "details": _NO_DETAILS,
            }
        )
    )


def shown() -> dict[str, Any]:
    """The answer to `/api/show` for a model that is known by its name only."""
    nothing = {"modelfile": "", "parameters": "", "template": "", "license": ""}
    return nothing | {"details": _NO_DETAILS, "model_info": {}, "capabilities": ["completion"]}
