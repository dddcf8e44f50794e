"""The calls that a run may make: the table of routes, and the errors for other paths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from nanoagent.ai.refusals import Api, Refused

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A call that the gateway forwards.

    Attributes:
        api: The API of the call.
        path: The path, which is the same at the gateway and in the API of the model server.
        answers_with: The kind of answer: `text`, `vectors`, or `facts`, which cost no tokens.
        streams: Whether the answer is a stream unless the request says otherwise.
        bounds: The request fields that limit the tokens of the answer. The field that the API had first
            comes first.
    """

    api: Api
    path: str
    answers_with: Literal["text", "vectors", "facts"] = "text"
    streams: bool = False
    bounds: tuple[str, ...] = ()


def _routes() -> Iterator[Route]:
    for path in ("/api/generate", "/api/chat"):
        yield Route(api=Api.OLLAMA, path=path, streams=True, bounds=("options.num_predict",))
    for path in ("/api/embed", "/api/embeddings"):
        yield Route(api=Api.OLLAMA, path=path, answers_with="vectors")
    yield Route(api=Api.OLLAMA, path="/api/show", answers_with="facts")
    chat = ("max_tokens", "max_completion_tokens")
    yield Route(api=Api.OPENAI, path="/v1/chat/completions", bounds=chat)
    yield Route(api=Api.OPENAI, path="/v1/completions", bounds=("max_tokens",))
    yield Route(api=Api.OPENAI, path="/v1/responses", bounds=("max_output_tokens",))
    yield Route(api=Api.OPENAI, path="/v1/embeddings", answers_with="vectors")


ROUTES: Final = {route.path: route for route in _routes()}
"""The forwarded calls by path. Their method is POST."""

LISTS: Final = frozenset({"/api/tags", "/api/ps", "/api/version", "/v1/models"})
"""Paths of GET requests, which the gateway answers itself.

It makes the answer from the lists of the model servers, or (`/api/version`) from the version of one of them.
"""

# These calls change the models of a model server, which all jobs share.
_CHANGING: Final = ("/api/pull", "/api/push", "/api/create", "/api/delete", "/api/copy", "/api/blobs/")


def normalised(path: str) -> str:
    """Return a path with single slashes and without a slash at its end, as in the table of routes.

    Some clients join a base URL and a path with one slash too many: at the start, in between or at the end.
    Nothing else changes: a path with encoded slashes, dots or backslashes has no route.
    """
    if not path.startswith("/") or "///" in path:
        return path
    single = path.replace("//", "/")
    return single if single == "/" else single.removesuffix("/")


def api_of(path: str) -> Api:
    """Return the API of a path. Errors are sent in the format of this API."""
    return Api.OPENAI if path.startswith("/v1") else Api.OLLAMA


def unknown(method: str, path: str) -> Refused:
    """Return the error for a request without a route."""
    if path.startswith(_CHANGING):
        return Refused(
            403,
            f"{path[:100]} changes the models that all jobs share, which a run may not do; "
            "have the operator of the worker do it",
            "not_permitted",
        )
    if path in ROUTES:
        return Refused(405, f"{path} needs POST, not {method[:20]}", "method_not_allowed")
    if path in LISTS:
        return Refused(405, f"{path} needs GET, not {method[:20]}", "method_not_allowed")
    served = ", ".join([*ROUTES, *sorted(LISTS)])
    return Refused(404, f"the worker's gateway has no {path[:100]!r}; it serves {served}", "unknown_url")
