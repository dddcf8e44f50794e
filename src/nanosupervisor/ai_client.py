# ruff: noqa: INP001 - copied by itself into the Python image; this folder is no package
"""Ask a language model from a function: `import ai_client; print(ai_client.generate("Hello"))`.

Speaks Ollama's API (github.com/ollama/ollama, docs/api.md) to the address in AI_ENDPOINT or OLLAMA_HOST.
Every Python function can import this module, because it is in the image. It uses only the standard library:
other packages may be missing, and the import of a vendor's client takes longer than most functions run. The
clients for Node.js, C++ and Go in this folder have the same calls and the same error messages.
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

DEFAULT_ENDPOINT: Final = "http://127.0.0.1:11434"  # Ollama's default
DEFAULT_MODEL: Final = "llama3:8b"
DEFAULT_TIMEOUT_S: Final = 300.0  # the first answer of a large model includes the time to load it
_ERROR_TEXT_MAX: Final = 500  # characters of the server's text in an error message


class AIError(Exception):
    """The request to the model failed.

    Args:
        message: What went wrong.
        status: The server's HTTP status if it refused the request (429: a limit is reached), else None.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def generate(prompt: str, model: str | None = None, **options: Any) -> str:
    """Complete a prompt.

    Args:
        prompt: The prompt.
        model: The model's name; default: the job's `modelId` (LLM_MODEL).
        **options: `timeout` is the longest time without data from the server, in seconds (default 300).
            `system`, `format`, `keep_alive`, `think` and the other names in `_REQUEST_FIELDS` are fields of
            the request. Every other name is an option of the model (`temperature`, `num_predict`, …).

    Returns:
        The model's whole answer.

    Raises:
        AIError: The server cannot be reached, refused the request, or sent an invalid answer.
    """
    return _text(_ask("/api/generate", {"prompt": prompt}, model, options), "response")


def generate_stream(prompt: str, model: str | None = None, **options: Any) -> Iterator[str]:
    """Complete a prompt, and yield the answer in pieces as the model writes it.

    The request is sent when the first piece is asked for.

    Args:
        prompt: As for `generate`.
        model: As for `generate`.
        **options: As for `generate`.

    Yields:
        The pieces of the answer. A caller that stops early closes the connection.

    Raises:
        AIError: As for `generate`; also if the answer ends before it is complete.
    """
    for part in _stream("/api/generate", {"prompt": prompt}, model, options):
        yield _text(part, "response")


def chat(messages: Sequence[dict[str, Any]] | str, model: str | None = None, **options: Any) -> str:
    """Continue a conversation.

    Args:
        messages: Each is `{"role": "system" | "user" | "assistant", "content": …}`, oldest first. A string is
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
    """Continue a conversation, and yield the answer in pieces as the model writes it.

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
    """Compute the embedding vectors of texts.

    Args:
        text: One text, or several.
        model: As for `generate`.
        **options: As for `generate`; `truncate` and `dimensions` too.

    Returns:
        The vector of the text; for several texts a list of their vectors, in the same order.

    Raises:
        AIError: As for `generate`.
    """
    texts = [text] if isinstance(text, str) else list(text)
    vectors = _ask("/api/embed", {"input": texts}, model, options).get("embeddings")
    if not isinstance(vectors, list) or len(vectors) != len(texts):
        raise AIError(f"the model server's answer has no 'embeddings' for {len(texts)} texts")
    return vectors[0] if isinstance(text, str) else vectors


# Fields of the request itself. All other options are options of the model.
_REQUEST_FIELDS: Final = frozenset(
    {"system", "template", "format", "keep_alive", "think", "images", "suffix", "raw", "tools", "truncate"}
    | {"dimensions"}
)


def _conversation(messages: Sequence[dict[str, Any]] | str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)


# --- requests


def _ask(path: str, body: dict[str, Any], model: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """Send a request and return the JSON object of the whole answer."""
    request, timeout_s = _request(body | {"stream": False}, model, options)
    with _response(path, request, timeout_s) as response:
        return _parse(response.read())


def _stream(
    path: str, body: dict[str, Any], model: str | None, options: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Send a request and yield the JSON objects of the answer, one for each line."""
    request, timeout_s = _request(body | {"stream": True}, model, options)
    with _response(path, request, timeout_s) as response:
        done = False
        for line in response:
            if line.strip():
                part = _parse(line)
                done = part.get("done") is True
                yield part
        if not done:
            raise AIError("the model server's answer ended before it was complete")


def _request(body: dict[str, Any], model: str | None, options: dict[str, Any]) -> tuple[bytes, float]:
    """Return the request's body, and the timeout in seconds from the options."""
    if "stream" in options:
        raise AIError(
            "there is no option 'stream'; call generate_stream or chat_stream for an answer in pieces"
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
    """Send a request and provide the response, if its status is 200.

    No proxy is used, because a proxy for the internet cannot reach this address.
    """
    endpoint = _endpoint()
    connection = _connection(endpoint, timeout_s)
    answered = False
    try:
        connection.request("POST", urllib.parse.urlsplit(endpoint).path + path, body, _HEADERS)
        response = connection.getresponse()
        answered = True
        if response.status != http.client.OK:
            reason = _refusal(response)
            raise AIError(
                f"the model server at {endpoint} answered {response.status}: {reason}", status=response.status
            )
        yield response
    except TimeoutError as exc:
        raise AIError(f"the model server at {endpoint} did not answer within {timeout_s:g} s") from exc
    except (http.client.HTTPException, OSError) as exc:
        reason = str(exc) or type(exc).__name__
        if answered:
            raise AIError(f"the model server's answer ended before it was complete: {reason}") from exc
        raise AIError(f"the model server at {endpoint} cannot be reached: {reason}") from exc
    finally:
        connection.close()


_HEADERS: Final = {"Content-Type": "application/json", "Connection": "close"}


def _endpoint() -> str:
    """Return the server's URL. OLLAMA_HOST may have no scheme, as in Ollama's own programs."""
    for name in ("AI_ENDPOINT", "OLLAMA_HOST"):
        if endpoint := os.environ.get(name, "").rstrip("/"):
            if name == "OLLAMA_HOST" and "://" not in endpoint:
                return f"http://{endpoint}"
            if not endpoint.startswith(("http://", "https://")):
                raise AIError(f"{name} must start with http:// or https://, but is {endpoint!r}")
            return endpoint
    return DEFAULT_ENDPOINT


def _connection(endpoint: str, timeout_s: float) -> http.client.HTTPConnection:
    parts = urllib.parse.urlsplit(endpoint)
    try:
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        return kind(parts.hostname or "", parts.port, timeout=timeout_s)
    except (ValueError, http.client.HTTPException) as exc:
        raise AIError(f"the model server's address {endpoint!r} is invalid: {exc}") from exc


# --- answers


def _refusal(response: http.client.HTTPResponse) -> str:
    """Return the reason for a refusal: the field `error`, else the text, else the status line."""
    try:
        text = response.read(1 << 16).decode("utf-8", "replace").strip()
    except (http.client.HTTPException, OSError):
        text = ""
    reason = None
    with contextlib.suppress(ValueError, KeyError, TypeError):
        reason = json.loads(text)["error"]
    if reason is None:
        reason = text
    elif isinstance(reason, dict):  # the format of OpenAI, which some servers use for all their errors
        message = reason.get("message")
        reason = json.dumps(reason, ensure_ascii=False) if message is None else message
    return str(reason)[:_ERROR_TEXT_MAX] or response.reason


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(raw)
    except ValueError as exc:
        raise AIError(f"the model server's answer is not JSON: {_shown(raw)}") from exc
    if not isinstance(answer, dict):
        raise AIError(f"the model server's answer is not a JSON object: {_shown(raw)}")
    if "error" in answer:  # after the first byte of an answer, the status is 200 even for an error
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
