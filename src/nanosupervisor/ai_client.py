# ruff: noqa: INP001 - copied by itself into the Python image; this folder is no package
"""Ask a language model from a function: `import ai_client; print(ai_client.generate("Hello"))`.

Speaks Ollama's API (github.com/ollama/ollama, docs/api.md) to the address in AI_ENDPOINT or OLLAMA_HOST.
Injected into every Python function; standard library only, because the function's own environment has nothing
else, and because importing a vendor's client takes longer than most functions run. The clients for Node.js,
C++ and Go beside this one have the same calls and say the same of what goes wrong.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import urllib.parse
from typing import TYPE_CHECKING, Any, Final, overload

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["AIError", "chat", "chat_stream", "embed", "generate", "generate_stream"]

DEFAULT_ENDPOINT: Final = "http://127.0.0.1:11434"  # where Ollama listens unless told otherwise
DEFAULT_MODEL: Final = "llama3:8b"
DEFAULT_TIMEOUT_S: Final = 300.0  # a large model's first answer includes loading it
_ERROR_TEXT_MAX: Final = 500  # characters of a server's words in a message


class AIError(Exception):
    """The model could not be asked, or did not answer as it should.

    Args:
        message: What went wrong, for a person.
        status: The server's HTTP status where it refused (429: a limit is reached), else None.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def generate(prompt: str, model: str | None = None, **options: Any) -> str:
    """Complete a prompt.

    Args:
        prompt: What the model is asked.
        model: Its name; default: the job's `modelId` (LLM_MODEL).
        **options: `timeout` (longest silence of the server in seconds, default 300), `system`, `format`,
            `keep_alive`, `think` and the like go to the request as they are; every other name is an option of
            the model (`temperature`, `num_predict`, …).

    Returns:
        The model's whole answer.

    Raises:
        AIError: The server was not reached, refused, or answered something else.
    """
    return _text(_ask("/api/generate", {"prompt": prompt}, model, options), "response")


def generate_stream(prompt: str, model: str | None = None, **options: Any) -> Iterator[str]:
    """Complete a prompt, piece by piece as the model writes; it is asked when the first piece is wanted.

    Args:
        prompt: As for `generate`.
        model: As for `generate`.
        **options: As for `generate`.

    Yields:
        The pieces of the answer. Who stops in between hangs up.

    Raises:
        AIError: As for `generate`; also when the answer breaks off before its end.
    """
    for part in _stream("/api/generate", {"prompt": prompt}, model, options):
        yield _text(part, "response")


def chat(messages: Sequence[dict[str, Any]] | str, model: str | None = None, **options: Any) -> str:
    """Continue a conversation.

    Args:
        messages: `{"role": "system" | "user" | "assistant", "content": …}` each, oldest first; a string is
            one message of the user.
        model: As for `generate`.
        **options: As for `generate`; `tools` too.

    Returns:
        The content of the model's answer.

    Raises:
        AIError: As for `generate`.
    """
    return _content(_ask("/api/chat", {"messages": _conversation(messages)}, model, options))


def chat_stream(
    messages: Sequence[dict[str, Any]] | str, model: str | None = None, **options: Any
) -> Iterator[str]:
    """Continue a conversation, piece by piece as the model writes.

    Args:
        messages: As for `chat`.
        model: As for `generate`.
        **options: As for `chat`.

    Yields:
        As `generate_stream`.

    Raises:
        AIError: As for `generate_stream`.
    """
    for part in _stream("/api/chat", {"messages": _conversation(messages)}, model, options):
        yield _content(part)


@overload
def embed(text: str, model: str | None = None, **options: Any) -> list[float]: ...
@overload
def embed(text: Sequence[str], model: str | None = None, **options: Any) -> list[list[float]]: ...
def embed(
    text: str | Sequence[str], model: str | None = None, **options: Any
) -> list[float] | list[list[float]]:
    """Turn text into vectors.

    Args:
        text: One text, or several at once.
        model: As for `generate`.
        **options: As for `generate`; `truncate` and `dimensions` too.

    Returns:
        The text's vector; for several texts a list of theirs, in the same order.

    Raises:
        AIError: As for `generate`.
    """
    texts = [text] if isinstance(text, str) else list(text)
    vectors = _ask("/api/embed", {"input": texts}, model, options).get("embeddings")
    if not isinstance(vectors, list) or len(vectors) != len(texts):
        raise AIError(f"the model server's answer has no 'embeddings' for {len(texts)} texts")
    return vectors[0] if isinstance(text, str) else vectors


# Fields of the request itself; whatever else a caller names is an option of the model.
_REQUEST_FIELDS: Final = frozenset(
    {"system", "template", "format", "keep_alive", "think", "images", "suffix", "raw", "tools", "truncate"}
    | {"dimensions"}
)


def _conversation(messages: Sequence[dict[str, Any]] | str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)


# --- asking


def _ask(path: str, body: dict[str, Any], model: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """One request with the whole answer in one piece; the answer's JSON object."""
    request, timeout_s = _request(body | {"stream": False}, model, options)
    with _response(path, request, timeout_s) as response:
        return _parse(response.read())


def _stream(
    path: str, body: dict[str, Any], model: str | None, options: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """One request with the answer in many pieces, a line of JSON each."""
    request, timeout_s = _request(body | {"stream": True}, model, options)
    with _response(path, request, timeout_s) as response:
        done = False
        for line in response:
            if line.strip():
                part = _parse(line)
                done = part.get("done") is True
                yield part
        if not done:
            raise AIError("the model server's answer broke off before its end")


def _request(body: dict[str, Any], model: str | None, options: dict[str, Any]) -> tuple[bytes, float]:
    """The request's body, and the timeout in seconds that was among the options."""
    if "stream" in options:
        raise AIError(
            "for an answer in pieces call generate_stream or chat_stream; there is no option 'stream'"
        )
    model_options = dict(options)
    timeout_s = float(model_options.pop("timeout", DEFAULT_TIMEOUT_S))
    body |= {"model": model or os.environ.get("LLM_MODEL") or DEFAULT_MODEL}
    body |= {name: model_options.pop(name) for name in _REQUEST_FIELDS & model_options.keys()}
    if model_options:
        body["options"] = model_options
    return json.dumps(body).encode(), timeout_s


@contextlib.contextmanager
def _response(path: str, body: bytes, timeout_s: float) -> Iterator[http.client.HTTPResponse]:
    """The response to a request, once its status says that it is an answer.

    No proxy is asked: one that is meant for the world outside would not find this address.
    """
    endpoint = _endpoint()
    connection = _connection(endpoint, timeout_s)
    answered = False
    try:
        connection.request("POST", urllib.parse.urlsplit(endpoint).path + path, body, _HEADERS)
        response = connection.getresponse()
        answered = True
        if response.status != http.client.OK:
            words = _words(response)
            raise AIError(
                f"the model server at {endpoint} answered {response.status}: {words}", status=response.status
            )
        yield response
    except TimeoutError as exc:
        raise AIError(f"the model server at {endpoint} did not answer within {timeout_s:g} s") from exc
    except (http.client.HTTPException, OSError) as exc:
        reason = str(exc) or type(exc).__name__
        if answered:
            raise AIError(f"the model server's answer broke off before its end: {reason}") from exc
        raise AIError(f"the model server at {endpoint} cannot be reached: {reason}") from exc
    finally:
        connection.close()


_HEADERS: Final = {"Content-Type": "application/json", "Connection": "close"}


def _endpoint() -> str:
    """Where the server is; OLLAMA_HOST may come without a scheme, as Ollama's own programs take it."""
    for name in ("AI_ENDPOINT", "OLLAMA_HOST"):
        if endpoint := os.environ.get(name, "").rstrip("/"):
            if name == "OLLAMA_HOST" and "://" not in endpoint:
                return f"http://{endpoint}"
            if not endpoint.startswith(("http://", "https://")):
                raise AIError(f"{name} should start with http:// or https://, but is {endpoint!r}")
            return endpoint
    return DEFAULT_ENDPOINT


def _connection(endpoint: str, timeout_s: float) -> http.client.HTTPConnection:
    parts = urllib.parse.urlsplit(endpoint)
    try:
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        return kind(parts.hostname or "", parts.port, timeout=timeout_s)
    except (ValueError, http.client.HTTPException) as exc:
        raise AIError(f"the model server's address {endpoint!r} is none: {exc}") from exc


# --- reading answers


def _words(response: http.client.HTTPResponse) -> str:
    """What the server said about its refusal: Ollama's `error` field, else its text, else the status line."""
    try:
        text = response.read(1 << 16).decode("utf-8", "replace").strip()
    except (http.client.HTTPException, OSError):
        text = ""
    try:
        said = json.loads(text)["error"]
    except (ValueError, KeyError, TypeError):
        said = text
    if isinstance(said, dict):  # OpenAI's shape, which some servers use for all their errors
        said = said.get("message", said)
    return str(said)[:_ERROR_TEXT_MAX] or response.reason


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(raw)
    except ValueError as exc:
        raise AIError(f"the model server answered no JSON: {_shown(raw)}") from exc
    if not isinstance(answer, dict):
        raise AIError(f"the model server answered no JSON object: {_shown(raw)}")
    if "error" in answer:  # Ollama reports what fails after its first byte this way, under status 200
        raise AIError(f"the model server failed: {answer['error']}")
    return answer


def _content(answer: dict[str, Any]) -> str:
    return _text(answer.get("message"), "content")


def _text(answer: Any, field: str) -> str:
    text = answer.get(field) if isinstance(answer, dict) else None
    if not isinstance(text, str):
        raise AIError(f"the model server's answer has no text in {field!r}")
    return text


def _shown(raw: bytes) -> str:
    return repr(raw[:_ERROR_TEXT_MAX].decode("utf-8", "replace"))
