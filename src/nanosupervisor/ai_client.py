# ruff: noqa: INP001 - copied by itself into the Python image; this folder is no package
"""Ask a language model from a function: `import ai_client; print(ai_client.generate("Hello"))`.

Speaks Ollama's API (github.com/ollama/ollama, docs/api.md) to the address in AI_ENDPOINT. Injected into every
Python function; standard library only, because the function's own environment has nothing else, and because
importing a vendor's client takes longer than most functions run.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from typing import Any, Final

__all__ = ["AIError", "chat", "generate"]

DEFAULT_ENDPOINT: Final = "http://127.0.0.1:11434"  # where Ollama listens unless told otherwise
DEFAULT_MODEL: Final = "llama3:8b"
DEFAULT_TIMEOUT_S: Final = 300.0  # a large model's first answer includes loading it
_ERROR_TEXT_MAX: Final = 500  # characters of a server's words in a message


class AIError(Exception):
    """The model could not be asked, or did not answer with text.

    Args:
        message: What went wrong, for a person.
        status: The server's HTTP status, or None where it was not reached or the answer was unusable.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def generate(prompt: str, model: str | None = None, **options: Any) -> str:
    """Complete a prompt.

    Args:
        prompt: What the model is asked.
        model: Its name; default: the job's `modelId` (LLM_MODEL).
        **options: `timeout` (seconds, default 300), `system`, `format`, `keep_alive`, `think` and the like go
            to the request as they are; every other name is a model option (`temperature`, `num_predict`, …).

    Returns:
        The model's whole answer.

    Raises:
        AIError: The server was not reached, refused, or answered something else.
    """
    return _text(_ask("/api/generate", {"prompt": prompt}, model, options), "response")


def chat(messages: list[dict[str, Any]] | str, model: str | None = None, **options: Any) -> str:
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
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    answer = _ask("/api/chat", {"messages": messages}, model, options)
    return _text(answer.get("message"), "content")


# Fields of the request itself; whatever else a caller names is an option of the model.
_REQUEST_FIELDS: Final = frozenset(
    {"system", "template", "format", "keep_alive", "think", "images", "suffix", "raw", "tools"}
)


def _ask(path: str, body: dict[str, Any], model: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """One request with the whole answer in one piece; the answer's JSON object."""
    model_options = dict(options)
    timeout_s = float(model_options.pop("timeout", DEFAULT_TIMEOUT_S))
    body |= {"model": model or os.environ.get("LLM_MODEL") or DEFAULT_MODEL, "stream": False}
    body |= {name: model_options.pop(name) for name in _REQUEST_FIELDS & model_options.keys()}
    if model_options:
        body["options"] = model_options
    return _parse(_post(path, json.dumps(body).encode(), timeout_s))


def _post(path: str, body: bytes, timeout_s: float) -> bytes:
    endpoint = os.environ.get("AI_ENDPOINT") or DEFAULT_ENDPOINT
    if not endpoint.startswith(("http://", "https://")):
        raise AIError(f"AI_ENDPOINT should start with http:// or https://, but is {endpoint!r}")
    request = urllib.request.Request(  # noqa: S310 - the scheme was checked above
        endpoint.rstrip("/") + path, data=body, headers={"Content-Type": "application/json"}
    )
    # A proxy meant for the world outside would not find this address.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout_s) as response:
            return bytes(response.read())
    except urllib.error.HTTPError as exc:
        with exc:
            raise AIError(
                f"the model server at {endpoint} answered {exc.code}: {_words(exc)}", status=exc.code
            ) from exc
    except TimeoutError as exc:
        raise AIError(f"the model server at {endpoint} did not answer within {timeout_s:g} s") from exc
    except (urllib.error.URLError, OSError) as exc:
        reason = getattr(exc, "reason", exc)
        if isinstance(reason, TimeoutError):
            raise AIError(f"the model server at {endpoint} did not answer within {timeout_s:g} s") from exc
        raise AIError(f"the model server at {endpoint} cannot be reached: {reason}") from exc


def _words(error: urllib.error.HTTPError) -> str:
    """What the server said about its refusal: Ollama's `error` field, else its text, else the status line."""
    try:
        text = error.read(1 << 16).decode("utf-8", "replace").strip()
    except OSError:
        text = ""
    try:
        said = json.loads(text)["error"]
    except (ValueError, KeyError, TypeError):
        said = text
    if isinstance(said, dict):  # OpenAI's shape, which some servers use for all their errors
        said = said.get("message", said)
    return str(said)[:_ERROR_TEXT_MAX] or str(error.reason)


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


def _text(answer: Any, field: str) -> str:
    text = answer.get(field) if isinstance(answer, dict) else None
    if not isinstance(text, str):
        raise AIError(f"the model server's answer has no text in {field!r}")
    return text


def _shown(raw: bytes) -> str:
    return repr(raw[:_ERROR_TEXT_MAX].decode("utf-8", "replace"))
