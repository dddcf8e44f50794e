"""Translates a request of Ollama's API to OpenAI's API.

Some parts have no counterpart and are left out: `truncate`, a boolean `think`, and all model options except
`num_predict` and those in `_OPTIONS`. The fields `template` and `context` change the meaning of the request,
so they are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nanoagent.ai.refusals import Refused
from nanoagent.ai.routes import ROUTES
from nanoagent.ai.translation import tool_calls
from nanoagent.ai.translation.answers import DocumentTranslator, OllamaAnswer, StreamTranslator
from nanoagent.ai.translation.tool_calls import PendingToolCalls, ToolCall
from nanoagent.ai.untrusted_json import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nanoagent.ai.calls import Call
    from nanoagent.ai.metering import Tally
    from nanoagent.ai.routes import Route

_MOST_TOOL_CALLS: Final = 4096  # in all messages of a request
_CHAT: Final = "/v1/chat/completions"
_COMPLETIONS: Final = "/v1/completions"
_EMBEDDINGS: Final = "/v1/embeddings"
_OPTIONS: Final = ("temperature", "top_p", "seed", "stop", "presence_penalty", "frequency_penalty")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/]+={0,2}")
# The first characters of a picture in base64, by its type.
_PICTURES: Final = {"/9j/": "jpeg", "iVBOR": "png", "R0lGO": "gif", "UklGR": "webp"}


class _Message(msgspec.Struct):
    role: str
    content: str | None = None
    images: list[str] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


@dataclass(frozen=True, slots=True)
class Translation:
    """A call of Ollama's API, translated to OpenAI's API.

    Attributes:
        call: The call as it came.
        route: The route of OpenAI's API that serves it.
        request: The body for that route.
    """

    call: Call
    route: Route
    request: bytes

    def translator(
        self, tally: Tally, content_type: str, begun_at: float
    ) -> StreamTranslator | DocumentTranslator:
        """Return the translator of the answer.

        Args:
            tally: The tokens of the answer. The caller meters each piece before it translates it.
            content_type: The content type of the model server's answer.
            begun_at: The start of the call, by `time.perf_counter`, in seconds.
        """
        answer = OllamaAnswer(self.call, tally, begun_at)
        if "event-stream" in content_type and self.route.answers_with == "text":
            return StreamTranslator(answer)
        return DocumentTranslator(answer)


def translate(call: Call, *, uses_max_completion_tokens: bool) -> Translation:
    """Translate a call to OpenAI's API.

    Args:
        call: A call of Ollama's API.
        uses_max_completion_tokens: Whether the server requires `max_completion_tokens` instead of
            `max_tokens`.

    Raises:
        Refused: A field has the wrong type, or has no counterpart in OpenAI's API.
    """
    fields = call.fields
    if call.route.answers_with == "vectors":
        return _embeddings(call)
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
        request = {"prompt": _get(fields, "prompt", str) or ""}
        if suffix := _get(fields, "suffix", str):
            request["suffix"] = suffix
    else:
        path = _CHAT
        request = {"messages": _conversation(call)} | _tools(fields) | _format(fields) | _effort(fields)
    bound_field = "max_completion_tokens" if uses_max_completion_tokens and path == _CHAT else "max_tokens"
    request |= _options(call, bound_field)
    return _translation(call, path, request | {"stream": call.stream})


def only_loads_model(call: Call) -> bool:
    """Whether a call only loads the model: it has no prompt. Ollama's clients send such calls."""
    if call.route.path == "/api/chat":
        return not _get(call.fields, "messages", list[msgspec.Raw])
    return call.route.path == "/api/generate" and not any(
        _is_set(call.fields, name) for name in ("prompt", "images", "suffix")
    )


def _translation(call: Call, path: str, request: dict[str, Any]) -> Translation:
    return Translation(call, ROUTES[path], msgspec.json.encode({"model": call.model} | request))


def _embeddings(call: Call) -> Translation:
    name = "input" if call.route.path == "/api/embed" else "prompt"
    request = {"input": _get(call.fields, name, str | list[str]) or ""}
    if (dimensions := _get(call.fields, "dimensions", int)) is not None:
        request["dimensions"] = dimensions
    return _translation(call, _EMBEDDINGS, request | {"encoding_format": "float"})


def _conversation(call: Call) -> list[dict[str, Any]]:
    if call.route.path == "/api/chat":
        return list(_messages(_get(call.fields, "messages", list[_Message]) or []))
    user = _Message("user", _get(call.fields, "prompt", str), _get(call.fields, "images", list[str]))
    system = _get(call.fields, "system", str)
    return [*([{"role": "system", "content": system}] if system else []), *_messages([user])]


def _messages(messages: list[_Message]) -> Iterator[dict[str, Any]]:
    """Yield the messages in OpenAI's format.

    OpenAI identifies tool calls by IDs, Ollama by names and order. So a call without an ID gets one.

    Raises:
        Refused: The messages have too many tool calls.
    """
    pending = PendingToolCalls([])
    count = 0
    for at, message in enumerate(messages):
        translated: dict[str, Any] = {"role": message.role, "content": _content(message)}
        if message.role == "tool":
            translated["tool_call_id"] = message.tool_call_id or pending.take(message.tool_name)
        elif message.tool_calls:
            count += len(message.tool_calls)
            if count > _MOST_TOOL_CALLS:
                raise Refused(
                    413,
                    f"the request has more than {_MOST_TOOL_CALLS} tool calls",
                    "too_large",
                    param="messages",
                )
            calls = [
                tool_calls.to_openai(call, f"call_{at}_{index}")
                for index, call in enumerate(message.tool_calls)
            ]
            pending = PendingToolCalls([(call["id"], call["function"]["name"]) for call in calls])
            translated |= {"tool_calls": calls, "content": translated["content"] or None}
        yield translated


def _content(message: _Message) -> Any:
    if not message.images:
        return message.content or ""
    text = [{"type": "text", "text": message.content}] if message.content else []
    return [
        *text,
        *({"type": "image_url", "image_url": {"url": _picture(image)}} for image in message.images),
    ]


def _picture(image: str) -> str:
    """Return a base64 picture as a data URL. A given URL is refused: the model server would fetch it."""
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


def _options(call: Call, bound_field: str) -> dict[str, Any]:
    options = call.options
    translated: dict[str, Any] = {name: options[name] for name in _OPTIONS if _is_set(options, name)}
    if call.bound is not None:
        translated[bound_field] = max(1, call.bound)
    return translated


def _is_set(fields: dict[str, msgspec.Raw], name: str) -> bool:
    return name in fields and bytes(fields[name]) not in {b"null", b'""', b"[]"}


def _get(fields: dict[str, msgspec.Raw], name: str, kind: Any) -> Any:
    """Return a field's value; None if the field is absent or null.

    Raises:
        Refused: The value has another type.
    """
    if name not in fields:
        return None
    try:
        return msgspec.json.decode(fields[name], type=kind | None)
    except UNREADABLE as exc:
        raise Refused(400, f"the field {name!r}: {exc}", "invalid_field", param=name) from exc
