"""What a run may ask of models: the table of calls, and a request's body, read and rewritten.

Only these fields are looked at; everything else goes to the upstream as it came, byte by byte. Where
something has to change, the values of all other fields stay the bytes that they were.

A request must mean to the upstream what it means here. So a field that is looked at may stand in a request
once, and in its own spelling only: Go's JSON (Ollama's) takes `MODEL` for `model`, others take the first of
two.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from nanoagent.ai.refusals import Api, Refused

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_MODEL_LENGTH: Final = 256
_MAX_FIELDS: Final = 256
_MAX_NAME: Final = 256
_MAX_TOOLS: Final = 1024  # OpenAI takes 128
_SMALL: Final = 64 * 1024  # no body of that size takes long to read
# What one body may have of what takes time to read, some 30 ms each: no prompt of a model's size has as many.
_MOST: Final = {b"[": 50_000, b"{": 50_000, b",": 1_000_000, b'"': 300_000, b"\\": 1_000_000}
# A byte-level tokenizer's usual yield for text; a prompt's tokens are estimated for reservations only.
_BYTES_PER_TOKEN: Final = 4
_MOST_SURE_TOKENS: Final = 4096
"""Every chat model takes so large a bound; several answer 400 to one that is above what they can do."""

# Pictures, sounds and files, where they can be and text cannot: elsewhere a prompt in base64 would be one.
_BLOB: Final = rb'"(?:data:[^",]{1,100},)?[A-Za-z0-9+/=]{1024,}"'
_BLOBS: Final = {
    Api.OPENAI: re.compile(rb'"(?:url|image_url|file_data|data)"\s*:\s*(' + _BLOB + rb")"),
    Api.OLLAMA: re.compile(rb"[\[,]\s*(" + _BLOB + rb")"),  # `images`
}
_BEFORE_VALUE: Final = re.compile(rb'[\s,{]*"(?:[^"\\]|\\.)*"\s*:\s*')
_LIST_OF_PROMPTS: Final = re.compile(rb'\[\s*["\[]')  # not one prompt as a list of tokens
_UNSET: Final = re.compile(rb'null|false|""|\[\s*\]|\{\s*\}')
_END: Final = re.compile(rb"[\s{]*\}\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One call that is forwarded.

    Attributes:
        api: Whose shapes it has.
        path: At the upstream, the same as here.
        tells: What it answers with: `text`, `vectors`, or `facts`, which cost no tokens.
        streams: Whether it does unless told otherwise.
        bounds: Fields that bound the answer's tokens, the oldest first.
    """

    api: Api
    path: str
    tells: Literal["text", "vectors", "facts"] = "text"
    streams: bool = False
    bounds: tuple[str, ...] = ()


def _routes() -> Iterator[Route]:
    for path in ("/api/generate", "/api/chat"):
        yield Route(api=Api.OLLAMA, path=path, streams=True, bounds=("options.num_predict",))
    for path in ("/api/embed", "/api/embeddings"):
        yield Route(api=Api.OLLAMA, path=path, tells="vectors")
    yield Route(api=Api.OLLAMA, path="/api/show", tells="facts")
    chat = ("max_tokens", "max_completion_tokens")
    yield Route(api=Api.OPENAI, path="/v1/chat/completions", bounds=chat)
    yield Route(api=Api.OPENAI, path="/v1/completions", bounds=("max_tokens",))
    yield Route(api=Api.OPENAI, path="/v1/responses", bounds=("max_output_tokens",))
    yield Route(api=Api.OPENAI, path="/v1/embeddings", tells="vectors")


ROUTES: Final = {route.path: route for route in _routes()}
LISTS: Final = frozenset({"/api/tags", "/api/ps", "/api/version", "/v1/models"})
"""What is asked with GET, and answered by the gateway from what the upstreams list."""

# They change what all jobs share: the models that the upstream has.
_CHANGING: Final = ("/api/pull", "/api/push", "/api/create", "/api/delete", "/api/copy", "/api/blobs/")

# Fields that would have the upstream ask another model than the one that was checked, go elsewhere, or work
# on when nobody counts any more; of OpenAI, and of servers that are compatible with it and more.
_FORBIDDEN: Final = {
    "models": "it names further models",
    "fallbacks": "it names further models",
    "route": "it names further models",
    "provider": "it names another upstream",
    "api_base": "it names another upstream",
    "custom_llm_provider": "it names another upstream",
    "model_list": "it names another upstream",
    "user_config": "it names another upstream",
    "extra_headers": "headers are the worker's",
    "base_url": "it names another upstream",
    "api_key": "keys are the worker's",
    "background": "its tokens could not be counted",
}
# Fields that have the upstream fetch from the network, or read what other jobs stored there: open only with
# AI_REMOTE_TOOLS.
_REMOTE: Final = {
    "web_search_options": "it has the upstream search the network",
    "plugins": "it has the upstream reach the network",
    "mcp_servers": "it has the upstream reach the network",
    "previous_response_id": "it names what is stored at the upstream, by whomever",
    "conversation": "it names what is stored at the upstream, by whomever",
}
_LOCAL_TOOLS: Final = frozenset({"function", "custom"})
_URL_FIELDS: Final = frozenset({"image_url", "file_url", "audio_url", "video_url"})
_STORED_FIELDS: Final = frozenset({"file_id", "vector_store_ids"})
_READ: Final = frozenset(
    {"model", "name", "stream", "stream_options", "options", "prompt", "input", "messages", "tools", "n"}
    | {"best_of", "keep_alive", "max_tokens", "max_completion_tokens", "max_output_tokens"}
)


def normalised(path: str) -> str:
    """A path with single slashes and none at its end, as routes have it.

    Clients that join a base URL and a path leave one slash too many, at either end or in between. Nothing
    else is changed: encoded slashes, dots and backslashes stay as they are, and have no route.
    """
    if not path.startswith("/") or "///" in path:
        return path
    single = path.replace("//", "/")
    return single if single == "/" else single.removesuffix("/")


def api_of(path: str) -> Api:
    """The API whose errors whoever asks for that path will understand."""
    return Api.OPENAI if path.startswith("/v1") else Api.OLLAMA


def unknown(method: str, path: str) -> Refused:
    """Why a path that has no route is not served."""
    if path.startswith(_CHANGING):
        return Refused(
            403,
            f"{path[:100]} changes the models that all jobs share: not from inside of a run; "
            "have whoever runs the worker do it",
            "not_permitted",
        )
    if path in ROUTES:
        return Refused(405, f"{path} wants POST, not {method[:20]}", "method_not_allowed")
    if path in LISTS:
        return Refused(405, f"{path} wants GET, not {method[:20]}", "method_not_allowed")
    served = ", ".join([*ROUTES, *sorted(LISTS)])
    return Refused(404, f"the worker's gateway has no {path[:100]!r}; it serves {served}", "unknown_url")


@dataclass(slots=True, kw_only=True)
class Call:
    """A request's body, as far as it matters here.

    Attributes:
        fields: Names and values; a value is the JSON text that came.
        sent: The whole text that came.
        changed: Whether `fields` say anything else than `sent` does.
        stream: Whether the answer comes in pieces.
        choices: How many answers at once it asks for.
        wanted: Tokens that one answer may have, None where it does not say.
        strips_usage: Whether the usage in the stream was asked for by the gateway alone.
        options: Members of Ollama's `options`.
    """

    route: Route
    model: str
    fields: dict[str, msgspec.Raw]
    sent: bytes
    changed: bool = False
    stream: bool = False
    choices: int = 1
    wanted: int | None = None
    strips_usage: bool = False
    options: dict[str, msgspec.Raw] = field(default_factory=dict)

    @property
    def prompt_tokens(self) -> int:
        """About how many its prompt has: by its bytes, those of pictures left out."""
        size = len(self.sent)
        if size > 1024 and self.route.tells == "text":
            size -= sum(map(len, _BLOBS[self.route.api].findall(self.sent)))
        return size // _BYTES_PER_TOKEN + 1

    @property
    def wanted_in_all(self) -> int | None:
        """Tokens that its answers may have together."""
        return None if self.wanted is None else self.wanted * self.choices

    def body(self, cap: int | None, *, newer: bool = False) -> bytes:
        """What goes to the upstream.

        Args:
            cap: Tokens that the answers may have together; None: as the request says.
            newer: Whether the upstream wants `max_completion_tokens` where it may have `max_tokens`.
        """
        if cap is not None and self.route.bounds:
            self._bound(max(1, cap // self.choices), newer=newer)
        return msgspec.json.encode(self.fields) if self.changed else self.sent

    def _bound(self, cap: int, *, newer: bool) -> None:
        if self.wanted is not None and self.wanted <= cap:
            return
        if self.route.api is Api.OLLAMA:
            self.options["num_predict"] = _raw(cap)
            self._set("options", self.options)
            return
        present = [name for name in self.route.bounds if _value(self.fields, name, int) is not None]
        for name in present:
            self._set(name, cap)
        if not present and cap <= _MOST_SURE_TOKENS:
            self._set(self.route.bounds[-1 if newer else 0], cap)

    def _set(self, name: str, value: Any) -> None:
        self.fields[name] = _raw(value)
        self.changed = True


def read(route: Route, sent: bytes, default_model: str, *, remote: bool = False) -> Call:
    """A request's body.

    Args:
        route: What is asked.
        sent: The body as it came.
        default_model: The job's, for a request that names none.
        remote: Whether it may have the upstream reach the network.

    Raises:
        Refused: It is no such request, or asks for what is not allowed.
    """
    fields, exact = _members(sent)
    unset = _check_names(fields, remote=remote)
    for name in unset:
        del fields[name]
    call = Call(route=route, model="", fields=fields, sent=sent, changed=not exact or bool(unset))
    call.model = _model(call, default_model)
    call.stream = _flag(call.fields, "stream", default=route.streams)
    if call.fields.pop("keep_alive", None) is not None:  # a loaded model is shared: nobody unloads another's
        call.changed = True
    if route.tells == "text":
        call.wanted = _wanted(call)
        call.choices = _choices(call)
    if route.api is Api.OPENAI:
        if not remote:
            _check_content(call.fields)
        if call.stream and route.bounds and route.path != "/v1/responses":
            _ask_for_usage(call)
    return call


def _members(text: bytes) -> tuple[dict[str, msgspec.Raw], bool]:
    """An object's members, and whether they are all that the text says: no name stands there twice."""
    if len(text) > _SMALL:
        for mark, most in _MOST.items():
            if text.count(mark) > most:
                raise Refused(413, f"the request has more than {most} of {mark.decode()}", "too_large")
    try:
        fields = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise Refused(400, f"the request is no JSON object: {exc}", "invalid_json") from exc
    if len(fields) > _MAX_FIELDS or any(len(name) > _MAX_NAME for name in fields):
        raise Refused(
            400,
            f"the request has more than {_MAX_FIELDS} fields, or one with a name longer than {_MAX_NAME}",
            "invalid_json",
        )
    at = 0
    for value in fields.values():
        before = _BEFORE_VALUE.match(text, at)
        if before is None or not text.startswith(bytes(value), before.end()):
            return fields, False
        at = before.end() + len(bytes(value))
    return fields, _END.fullmatch(text, at) is not None


def _check_names(fields: dict[str, msgspec.Raw], *, remote: bool) -> list[str]:
    """Refuse fields that are not allowed; returns those with an empty value, which are to be removed."""
    unset = []
    for name, value in fields.items():
        plain = name.casefold()
        if plain in _FORBIDDEN:
            if not _is_unset(plain, value):
                raise _not_allowed(name, _FORBIDDEN[plain])
            unset.append(name)
        elif not remote and plain in _REMOTE:
            if not _is_unset(plain, value):
                raise _closed(name, _REMOTE[plain])
            unset.append(name)
        elif plain in _READ and plain != name:
            raise Refused(400, f"the field {name!r} is spelt {plain!r}", "invalid_field", param=name)
    return unset


def _is_unset(plain: str, value: msgspec.Raw) -> bool:
    """Whether a value means the same as no field; typed clients send such values for all fields."""
    if plain == "web_search_options" and bytes(value).startswith(b"{"):  # empty options turn the search on
        return False
    return _UNSET.fullmatch(bytes(value)) is not None


def _model(call: Call, default: str) -> str:
    """The model that is asked; where none is named, the job's is filled in."""
    fields = call.fields
    name = _value(fields, "model", str)
    old = _value(fields, "name", str) if call.route.tells == "facts" else None
    model = name or old or default
    if len(model) > _MAX_MODEL_LENGTH or not model.isprintable():
        raise Refused(400, "the field 'model' is no name of a model", "invalid_field", param="model")
    if model != name:
        # First, where clients put it.
        call.fields = {"model": _raw(model)} | {key: fields[key] for key in fields if key != "model"}
        call.changed = True
    if old is not None:
        del call.fields["name"]
        call.changed = True
    return model


def _wanted(call: Call) -> int | None:
    """The bound that the request sets itself, None where it sets none. Below 0 is Ollama's for none."""
    if call.route.api is Api.OLLAMA:
        if "options" in call.fields and not _is_null(call.fields["options"]):
            call.options, exact = _members(bytes(call.fields["options"]))
            if not exact:
                call._set("options", call.options)  # noqa: SLF001 - its own module
        wanted = [_value(call.options, "num_predict", int)]
    else:
        wanted = [_value(call.fields, name, int) for name in call.route.bounds]
    given = [bound for bound in wanted if bound is not None]
    return None if min(given, default=-1) < 0 else max(given)


def _choices(call: Call) -> int:
    """How many answers it asks for at once."""
    several = max(_value(call.fields, name, int) or 1 for name in ("n", "best_of"))
    prompts = 1
    prompt = bytes(call.fields.get("prompt", b""))
    if call.route.path == "/v1/completions" and _LIST_OF_PROMPTS.match(prompt):
        listed = _decoded(prompt, "prompt", list[msgspec.Raw])
        prompts = sum(bytes(item)[:1] in {b'"', b"["} for item in listed)
    return max(1, several) * max(1, prompts)


def _ask_for_usage(call: Call) -> None:
    """Have the stream end with its usage; taken out again on its way where the job did not ask for it."""
    options: dict[str, msgspec.Raw] = {}
    if "stream_options" in call.fields and not _is_null(call.fields["stream_options"]):
        options, exact = _members(bytes(call.fields["stream_options"]))
        for name in options:
            if name.casefold() == "include_usage" != name:
                raise Refused(400, f"the field {name!r} is spelt 'include_usage'", "invalid_field")
        if exact and _flag(options, "include_usage", default=False):
            return
        call.strips_usage = not _flag(options, "include_usage", default=False)
    else:
        call.strips_usage = True
    options["include_usage"] = _raw(True)
    call._set("stream_options", options)  # noqa: SLF001


def _check_content(fields: dict[str, msgspec.Raw]) -> None:
    """Refuse what would have the upstream fetch from the network, or read what is stored there."""
    for name in ("messages", "input"):
        if name not in fields:
            continue
        try:
            json.loads(bytes(fields[name]).decode(), object_pairs_hook=_check_part)
        except (ValueError, RecursionError) as exc:
            raise Refused(400, f"the field {name!r} is no JSON: {exc}", "invalid_json", param=name) from exc
    if "prompt" in fields and bytes(fields["prompt"]).startswith(b"{"):
        raise _closed("prompt", "it names what is stored at the upstream, by whomever")
    if "tools" in fields and not _is_null(fields["tools"]):
        tools = _decoded(bytes(fields["tools"]), "tools", list[msgspec.Raw])
        if len(tools) > _MAX_TOOLS:
            raise Refused(400, f"the request has more than {_MAX_TOOLS} tools", "too_large", param="tools")
        for tool in tools:
            members, exact = _members(bytes(tool))
            kind = _value(members, "type", str) or "function"
            if kind not in _LOCAL_TOOLS or not exact:
                raise _closed("tools", f"the upstream itself would run {kind[:40]!r}")


def _check_part(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """One object of a message's content, with each of its names, also those that stand there twice."""
    for name, value in pairs:
        plain = name.casefold()
        if plain in _URL_FIELDS:
            url = value.get("url") if isinstance(value, dict) else value
            if isinstance(url, str) and not url.startswith("data:"):
                raise _closed(name, "the upstream would fetch it; send the data itself (data:…;base64,…)")
        elif (plain in _STORED_FIELDS and isinstance(value, str | list)) or (
            plain == "type" and value == "item_reference"
        ):
            raise _closed(name, "it names what is stored at the upstream, by whomever")
        elif plain == "url" and (name != plain or sum(other == plain for other, _ in pairs) > 1):
            # Of two the last counts here, and perhaps not there.
            raise Refused(400, "the field 'url' stands there once, and is spelt so", "invalid_field")
    return dict(pairs)


def _not_allowed(name: str, why: str) -> Refused:
    return Refused(400, f"the field {name!r} is not allowed: {why}", "not_permitted", param=name)


def _closed(name: str, why: str) -> Refused:
    return Refused(
        403,
        f"the field {name!r} is not allowed: {why}. AI_REMOTE_TOOLS=true on the worker would allow it",
        "not_permitted",
        param=name,
    )


def _is_null(raw: msgspec.Raw) -> bool:
    return bytes(raw) == b"null"


def _raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def _decoded(text: bytes, name: str, kind: Any) -> Any:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise Refused(400, f"the field {name!r}: {exc}", "invalid_field", param=name) from exc


def _value(fields: dict[str, msgspec.Raw], name: str, kind: type) -> Any:
    """A field's value, None where it is absent or null.

    Raises:
        Refused: It is of another kind.
    """
    return _decoded(bytes(fields[name]), name, kind | None) if name in fields else None


def _flag(fields: dict[str, msgspec.Raw], name: str, *, default: bool) -> bool:
    value = _value(fields, name, bool)
    return default if value is None else bool(value)
