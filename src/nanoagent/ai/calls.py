"""The body of a request to a model: reads it, checks it, and changes it where necessary.

The gateway examines only the fields in `_EXAMINED`, and the fields that it refuses. All other fields go to
the model server as the bytes that came. If the gateway changes one field, the values of the others keep their
bytes.

A request must mean the same to the model server as to the gateway. But servers read JSON differently: the
JSON parser of Go (Ollama) accepts `MODEL` as `model`, and some servers take the first of two fields with the
same name. Therefore the gateway refuses another spelling of an examined field. If a name occurs twice, it
encodes the body again, with only the last value.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nanoagent.ai.refusals import Api, Refused
from nanoagent.ai.untrusted_json import UNREADABLE

if TYPE_CHECKING:
    from nanoagent.ai.routes import Route

_MAX_MODEL_LENGTH: Final = 256
_MAX_FIELDS: Final = 256
_MAX_NAME_LENGTH: Final = 256
_MAX_TOOLS: Final = 1024  # OpenAI accepts 128
_SMALL_BYTES: Final = 64 * 1024  # a body of this size is read quickly, whatever it contains
# The largest number of each of these characters in one body. A body with that many takes about 30 ms to
# read. A prompt that fits into the context of a model has fewer.
_MAX_CHARACTERS: Final = {b"[": 50_000, b"{": 50_000, b",": 1_000_000, b'"': 300_000, b"\\": 1_000_000}
# A byte-level tokenizer usually makes one token of about four bytes of text. Only reservations use this
# estimate.
_BYTES_PER_TOKEN: Final = 4
_SAFE_BOUND: Final = 4096
"""All chat models accept a bound of this size; some answer 400 if a bound exceeds their maximum."""

# Pictures, sounds and files in base64. Only fields that cannot contain text are searched for them: in other
# fields, a prompt could look like base64.
_BLOB: Final = rb'"(?:data:[^",]{1,100},)?[A-Za-z0-9+/=]{1024,}"'
_BLOBS: Final = {
    Api.OPENAI: re.compile(rb'"(?:url|image_url|file_data|data)"\s*:\s*(' + _BLOB + rb")"),
    Api.OLLAMA: re.compile(rb"[\[,]\s*(" + _BLOB + rb")"),  # `images`
}
_BEFORE_VALUE: Final = re.compile(rb'[\s,{]*"(?:[^"\\]|\\.)*"\s*:\s*')
_LIST_OF_PROMPTS: Final = re.compile(rb'\[\s*["\[]')  # a list of numbers is one prompt, as tokens
_UNSET: Final = re.compile(rb'null|false|""|\[\s*\]|\{\s*\}')
_END: Final = re.compile(rb"[\s{]*\}\s*")

# Fields of OpenAI's API and of compatible servers that are never allowed. With these fields the model server
# would use another model than the checked one, connect to another server, or use tokens that nobody counts.
_FORBIDDEN: Final = {
    "models": "it names further models",
    "fallbacks": "it names further models",
    "route": "it names further models",
    "provider": "it names another model server",
    "api_base": "it names another model server",
    "custom_llm_provider": "it names another model server",
    "model_list": "it names another model server",
    "user_config": "it names another model server",
    "extra_headers": "only the worker sets headers",
    "base_url": "it names another model server",
    "api_key": "only the worker sets keys",
    "background": "its tokens could not be counted",
}
_STORED: Final = "it names an object that any job may have stored at the model server"
# Fields that make the model server reach the network, or read data of other jobs. AI_REMOTE_TOOLS allows
# them.
_REMOTE: Final = {
    "web_search_options": "it makes the model server search the network",
    "plugins": "it makes the model server reach the network",
    "mcp_servers": "it makes the model server reach the network",
    "previous_response_id": _STORED,
    "conversation": _STORED,
}
_LOCAL_TOOLS: Final = frozenset({"function", "custom"})
_URL_FIELDS: Final = frozenset({"image_url", "file_url", "audio_url", "video_url"})
_STORED_FIELDS: Final = frozenset({"file_id", "vector_store_ids"})
_EXAMINED: Final = frozenset(
    {"model", "name", "stream", "stream_options", "options", "prompt", "input", "messages", "tools", "n"}
    | {"best_of", "keep_alive", "max_tokens", "max_completion_tokens", "max_output_tokens"}
)


@dataclass(slots=True, kw_only=True)
class Call:
    """A request's body, with the parts that the gateway needs.

    Attributes:
        route: The route of the request.
        model: The name of the model.
        fields: The fields by name. Each value is the JSON text that came.
        original: The whole body as it came.
        changed: Whether `fields` differ from `original`.
        stream: Whether the request asks for a stream.
        choices: The number of answers that the request asks for.
        bound: The request's own limit on the tokens of one answer; None if it sets none.
        strips_usage: Whether the usage must be removed from the stream, because the job did not ask for it.
        options: The fields of Ollama's `options`, each as its JSON text.
    """

    route: Route
    model: str
    fields: dict[str, msgspec.Raw]
    original: bytes
    changed: bool = False
    stream: bool = False
    choices: int = 1
    bound: int | None = None
    strips_usage: bool = False
    options: dict[str, msgspec.Raw] = field(default_factory=dict)

    @property
    def prompt_tokens(self) -> int:
        """The estimated tokens of the prompt, from its bytes without pictures."""
        size = len(self.original)
        if size > 1024 and self.route.answers_with == "text":
            size -= sum(map(len, _BLOBS[self.route.api].findall(self.original)))
        return size // _BYTES_PER_TOKEN + 1

    @property
    def total_bound(self) -> int | None:
        """The request's own limit on the tokens of all answers together; None if it sets none."""
        return None if self.bound is None else self.bound * self.choices

    def body(self, cap: int | None, *, uses_max_completion_tokens: bool = False) -> bytes:
        """Return the body to send to the model server.

        Args:
            cap: The gateway's limit on the tokens of all answers together. None: the bound of the request
                stays unchanged.
            uses_max_completion_tokens: Whether the model server requires `max_completion_tokens` instead of
                `max_tokens`.
        """
        if cap is not None and self.route.bounds:
            self._lower_bound(
                max(1, cap // self.choices), uses_max_completion_tokens=uses_max_completion_tokens
            )
        return msgspec.json.encode(self.fields) if self.changed else self.original

    def _lower_bound(self, cap: int, *, uses_max_completion_tokens: bool) -> None:
        if self.bound is not None and self.bound <= cap:
            return
        if self.route.api is Api.OLLAMA:
            self.options["num_predict"] = _raw(cap)
            self.set("options", self.options)
            return
        present = [name for name in self.route.bounds if _value(self.fields, name, int) is not None]
        for name in present:
            self.set(name, cap)
        if not present and cap <= _SAFE_BOUND:
            self.set(self.route.bounds[-1 if uses_max_completion_tokens else 0], cap)

    def set(self, name: str, value: Any) -> None:
        """Set a field."""
        self.fields[name] = _raw(value)
        self.changed = True


def read(route: Route, original: bytes, default_model: str, *, remote_tools: bool = False) -> Call:
    """Read and check a request's body.

    Args:
        route: The route of the request.
        original: The body as it came.
        default_model: The job's model, for a request without one.
        remote_tools: Whether the request may make the model server reach the network.

    Raises:
        Refused: The body is invalid, or a field is not allowed.
    """
    fields, exact = _object(original)
    unset = _check_names(fields, remote_tools=remote_tools)
    for name in unset:
        del fields[name]
    call = Call(route=route, model="", fields=fields, original=original, changed=not exact or bool(unset))
    call.model = _take_model(call, default_model)
    call.stream = _flag(call.fields, "stream", default=route.streams)
    # All jobs share a loaded model, so no job may unload it.
    if call.fields.pop("keep_alive", None) is not None:
        call.changed = True
    if route.answers_with == "text":
        call.bound = _take_bound(call)
        call.choices = _choices(call)
    if route.api is Api.OPENAI:
        if not remote_tools:
            _check_content(call.fields)
        if call.stream and route.bounds and route.path != "/v1/responses":
            _ask_for_usage(call)
    return call


def _object(text: bytes) -> tuple[dict[str, msgspec.Raw], bool]:
    """Return an object's fields, and whether each name occurs only once in the text."""
    if len(text) > _SMALL_BYTES:
        for mark, most in _MAX_CHARACTERS.items():
            if text.count(mark) > most:
                raise Refused(
                    413, f"the request has more than {most} characters {mark.decode()!r}", "too_large"
                )
    try:
        fields = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except UNREADABLE as exc:
        raise Refused(400, f"the request is not a JSON object: {exc}", "invalid_json") from exc
    if len(fields) > _MAX_FIELDS or any(len(name) > _MAX_NAME_LENGTH for name in fields):
        raise Refused(
            400,
            f"the request has more than {_MAX_FIELDS} fields, or one with a name longer than "
            f"{_MAX_NAME_LENGTH}",
            "invalid_json",
        )
    at = 0
    for value in fields.values():
        before = _BEFORE_VALUE.match(text, at)
        if before is None or not text.startswith(bytes(value), before.end()):
            return fields, False
        at = before.end() + len(bytes(value))
    return fields, _END.fullmatch(text, at) is not None


def _check_names(fields: dict[str, msgspec.Raw], *, remote_tools: bool) -> list[str]:
    """Refuse fields that are not allowed.

    Returns:
        The names of such fields that have an empty value. They are not refused; the caller removes them.
    """
    unset = []
    for name, value in fields.items():
        plain = name.casefold()
        if plain in _FORBIDDEN:
            if not _is_unset(plain, value):
                raise Refused(
                    400,
                    f"the field {name!r} is not allowed: {_FORBIDDEN[plain]}",
                    "not_permitted",
                    param=name,
                )
            unset.append(name)
        elif not remote_tools and plain in _REMOTE:
            if not _is_unset(plain, value):
                raise _needs_remote_tools(name, _REMOTE[plain])
            unset.append(name)
        elif plain in _EXAMINED and plain != name:
            raise _misspelt(name, plain)
    return unset


def _is_unset(plain: str, value: msgspec.Raw) -> bool:
    """Whether a value means the same as no field. Typed clients send such values for all their fields."""
    if plain == "web_search_options" and bytes(value).startswith(b"{"):  # `{}` turns the search on
        return False
    return _UNSET.fullmatch(bytes(value)) is not None


def _take_model(call: Call, default: str) -> str:
    """Return the name of the model, and write it into the fields if they do not have it."""
    fields = call.fields
    name = _value(fields, "model", str)
    old = _value(fields, "name", str) if call.route.answers_with == "facts" else None
    model = name or old or default
    if len(model) > _MAX_MODEL_LENGTH or not model.isprintable():
        raise Refused(400, "the field 'model' is not the name of a model", "invalid_field", param="model")
    if model != name:
        # Clients write `model` as the first field.
        call.fields = {"model": _raw(model)} | {key: fields[key] for key in fields if key != "model"}
        call.changed = True
    if old is not None:
        del call.fields["name"]
        call.changed = True
    return model


def _take_bound(call: Call) -> int | None:
    """Return the request's own bound on the tokens of an answer; None if it sets none.

    In Ollama's API, a negative number means no bound.
    """
    if call.route.api is Api.OLLAMA:
        if "options" in call.fields and not _is_null(call.fields["options"]):
            call.options, exact = _object(bytes(call.fields["options"]))
            if not exact:
                call.set("options", call.options)
        bounds = [_value(call.options, "num_predict", int)]
    else:
        bounds = [_value(call.fields, name, int) for name in call.route.bounds]
    given = [bound for bound in bounds if bound is not None]
    return None if min(given, default=-1) < 0 else max(given)


def _choices(call: Call) -> int:
    """Return the number of answers that the request asks for."""
    per_prompt = max(_value(call.fields, name, int) or 1 for name in ("n", "best_of"))
    prompts = 1
    prompt = bytes(call.fields.get("prompt", b""))
    if call.route.path == "/v1/completions" and _LIST_OF_PROMPTS.match(prompt):
        listed = _decoded(prompt, "prompt", list[msgspec.Raw])
        prompts = sum(bytes(item)[:1] in {b'"', b"["} for item in listed)
    return max(1, per_prompt) * max(1, prompts)


def _ask_for_usage(call: Call) -> None:
    """Ask for the usage at the end of the stream.

    If the job did not ask for the usage, the gateway will remove it from the answer.
    """
    options: dict[str, msgspec.Raw] = {}
    if "stream_options" in call.fields and not _is_null(call.fields["stream_options"]):
        options, exact = _object(bytes(call.fields["stream_options"]))
        for name in options:
            if name.casefold() == "include_usage" != name:
                raise _misspelt(name, "include_usage")
        if exact and _flag(options, "include_usage", default=False):
            return
        call.strips_usage = not _flag(options, "include_usage", default=False)
    else:
        call.strips_usage = True
    options["include_usage"] = _raw(True)
    call.set("stream_options", options)


def _check_content(fields: dict[str, msgspec.Raw]) -> None:
    """Refuse content that makes the model server fetch from the network, or read stored data."""
    for name in ("messages", "input"):
        if name not in fields:
            continue
        try:
            json.loads(bytes(fields[name]).decode(), object_pairs_hook=_check_object)
        except (ValueError, RecursionError) as exc:
            raise Refused(
                400, f"the field {name!r} is not valid JSON: {exc}", "invalid_json", param=name
            ) from exc
    if "prompt" in fields and bytes(fields["prompt"]).startswith(b"{"):
        raise _needs_remote_tools("prompt", _STORED)
    if "tools" in fields and not _is_null(fields["tools"]):
        tools = _decoded(bytes(fields["tools"]), "tools", list[msgspec.Raw])
        if len(tools) > _MAX_TOOLS:
            raise Refused(400, f"the request has more than {_MAX_TOOLS} tools", "too_large", param="tools")
        for tool in tools:
            members, exact = _object(bytes(tool))
            kind = _value(members, "type", str) or "function"
            if kind not in _LOCAL_TOOLS or not exact:
                raise _needs_remote_tools("tools", f"the model server itself would run {kind[:40]!r}")


def _check_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Check one object of a message's content. `pairs` also has the members whose name occurs twice."""
    for name, value in pairs:
        plain = name.casefold()
        if plain in _URL_FIELDS:
            url = value.get("url") if isinstance(value, dict) else value
            if isinstance(url, str) and not url.startswith("data:"):
                raise _needs_remote_tools(
                    name, "the model server would fetch it; send the data itself (data:…;base64,…)"
                )
        elif (plain in _STORED_FIELDS and isinstance(value, str | list)) or (
            plain == "type" and value == "item_reference"
        ):
            raise _needs_remote_tools(name, _STORED)
        elif plain == "url" and (name != plain or sum(other == plain for other, _ in pairs) > 1):
            # If a name occurs twice, Python takes the last value, but the model server may take the first.
            raise Refused(
                400, "the field 'url' may occur once only, in this spelling", "invalid_field", param="url"
            )
    return dict(pairs)


def _misspelt(name: str, right: str) -> Refused:
    return Refused(400, f"the field {name!r} must be spelt {right!r}", "invalid_field", param=name)


def _needs_remote_tools(name: str, reason: str) -> Refused:
    return Refused(
        403,
        f"the field {name!r} is not allowed: {reason}. AI_REMOTE_TOOLS=true on the worker would allow it",
        "not_permitted",
        param=name,
    )


def _is_null(raw: msgspec.Raw) -> bool:
    return bytes(raw) == b"null"


def _raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def _decoded(text: bytes, name: str, kind: Any) -> Any:
    """Return a field's value.

    Raises:
        Refused: The value has another type.
    """
    try:
        return msgspec.json.decode(text, type=kind)
    except UNREADABLE as exc:
        raise Refused(400, f"the field {name!r}: {exc}", "invalid_field", param=name) from exc


def _value(fields: dict[str, msgspec.Raw], name: str, kind: type) -> Any:
    """Return a field's value; None if the field is absent or null. Errors are those of `_decoded`."""
    return _decoded(bytes(fields[name]), name, kind | None) if name in fields else None


def _flag(fields: dict[str, msgspec.Raw], name: str, *, default: bool) -> bool:
    value = _value(fields, name, bool)
    return default if value is None else bool(value)
