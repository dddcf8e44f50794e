"""Examines the configured model servers before jobs use them, for `check` and `doctor`.

Each server is asked for its list of models, which costs no tokens. `judge` turns the answers into findings.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from nanoagent.ai.refusals import Api
from nanoagent.ai.untrusted_json import UNREADABLE
from nanoagent.ai.upstreams import UpstreamFailed, matches, read_up_to
from nanoagent.common.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nanoagent.ai.upstreams import HttpUpstream

_DEADLINE_S: Final = 10.0
_MAX_BYTES: Final = 4 * MIB
_MAX_NAMES_SHOWN: Final = 5
_OPENAI_LIST: Final = "/v1/models"
_OLLAMA_LIST: Final = "/api/tags"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A model server in the settings.

    Attributes:
        upstream: Its client.
        api: The API that the settings name for it; None if they name none.
        setting: The name of the setting that contains its address.
        key_setting: The name of the setting for its key.
        has_key: Whether the settings have a key for it.
    """

    upstream: HttpUpstream
    api: Api | None
    setting: str
    key_setting: str
    has_key: bool


@dataclass(frozen=True, slots=True)
class Listing:
    """A server's answer to the request for its list of models.

    Attributes:
        path: The path of the request at the server.
        failure: The reason why it did not answer; None if it answered.
        status: The HTTP status of the answer; 0 without an answer.
        models: The names in the list; None if the answer has another format.
    """

    path: str
    failure: str | None = None
    status: int = 0
    models: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Inspected:
    """A finding about a server, or about the models in the settings.

    Attributes:
        found: The finding, as a sentence.
        remedy: The correction; None if nothing is wrong.
        is_certain: Whether calls to models will certainly fail. If not, the server may still serve them. Has
            no meaning without a remedy.
    """

    found: str
    remedy: str | None = None
    is_certain: bool = True


async def inspect(servers: Sequence[Server], allowed: Sequence[str], model: str) -> list[Inspected]:
    """Ask all servers at once, and judge their answers.

    Args:
        servers: The servers. A model is served by the first one that has a matching pattern.
        allowed: Patterns of the models that functions may use (AI_MODELS).
        model: The model of jobs without `modelId` (AI_MODEL).
    """
    listings = await asyncio.gather(*(_listing(server) for server in servers))
    return list(judge(list(zip(servers, listings, strict=True)), allowed, model))


async def _listing(server: Server) -> Listing:
    """Ask a server for its models.

    If it has no list in OpenAI's format, it may be an old Ollama server. Then it is asked for Ollama's list.
    """
    listing = await _ask(server, _OLLAMA_LIST if server.api is Api.OLLAMA else _OPENAI_LIST)
    address = server.upstream.address
    if listing.status in {404, 405} and server.api is None and address.may_be_ollama:
        other = await _ask(server, _OLLAMA_LIST)
        return other if other.models is not None else listing
    return listing


async def _ask(server: Server, path: str) -> Listing:
    target = server.upstream.address.target(path).partition("?")[0]
    try:
        async with asyncio.timeout(_DEADLINE_S), server.upstream.ask("GET", path, None) as answer:
            body = await read_up_to(answer, _MAX_BYTES) if answer.status == 200 else b""
            return Listing(target, status=answer.status, models=models_of(body))
    except UpstreamFailed as exc:
        return Listing(target, failure=str(exc.__cause__ or exc))
    except TimeoutError:
        return Listing(target, failure=f"no answer within {_DEADLINE_S:g} s")


class _Entry(msgspec.Struct):
    id: str | None = None
    name: str | None = None


class _List(msgspec.Struct):
    data: list[_Entry] | None = None
    models: list[_Entry] | None = None


def models_of(body: bytes) -> tuple[str, ...] | None:
    """Return the names in a list of models of either API; None if the document is not such a list."""
    try:
        found = msgspec.json.decode(body, type=_List | list[_Entry])  # together.ai's list is a bare array
    except UNREADABLE:
        return None
    entries = found if isinstance(found, list) else found.models if found.data is None else found.data
    if entries is None:
        return None
    return tuple(name for entry in entries if (name := entry.id or entry.name))


def judge(asked: Sequence[tuple[Server, Listing]], allowed: Sequence[str], model: str) -> Iterator[Inspected]:
    """Yield findings from the servers' answers; see `inspect` for the arguments."""
    if not asked:
        yield Inspected("no model server: calls to models are refused (AI_ENDPOINT is not set)")
        return
    serving = next((server for server, _ in asked if server.upstream.serves(model)), None)
    if not matches(model, allowed):
        yield Inspected(
            f"AI_MODEL={model} is not among the models that functions may use (AI_MODELS="
            f"{','.join(allowed)})",
            "set AI_MODEL to one of them, or add it to AI_MODELS",
        )
        serving = None
    elif serving is None:
        yield Inspected(
            f"no model server has AI_MODEL={model}",
            "set AI_MODEL to a model that a pattern in AI_UPSTREAMS matches, or AI_ENDPOINT to a server that "
            "has it",
        )
    for server, listing in asked:
        yield _judged(server, listing, model if server is serving else None)


def _judged(server: Server, listing: Listing, model: str | None) -> Inspected:  # noqa: PLR0911 - a decision list
    """Return the finding about one server. `model` is AI_MODEL if this server serves it, else None."""
    name = f"the model server {server.upstream.name} ({server.setting})"
    base_url = (
        f"{server.setting}: the base URL that the openai client takes, or the address of an Ollama server"
    )
    status = listing.status
    if listing.failure is not None:
        reach = f"start it, or correct {server.setting}; the network must let this machine reach it"
        return Inspected(f"{name} cannot be reached: {listing.failure}", reach)
    if status in {401, 403}:
        verb = "refuses its key" if server.has_key else "requires a key"
        return Inspected(f"{name} {verb} ({status})", f"set {server.key_setting}")
    if status in {404, 405}:
        return Inspected(f"{name} has no list of models at {listing.path} ({status})", base_url, False)
    if status != 200:
        return Inspected(f"{name} answers {status} to {listing.path}", "see its log for the reason", False)
    if listing.models is None:
        return Inspected(f"{name} does not answer like a model server at {listing.path}", base_url, False)
    if model is not None and not lists(listing.models, model):
        listed = ", ".join(listing.models[:_MAX_NAMES_SHOWN]) or "none"
        more = ", …" if len(listing.models) > _MAX_NAMES_SHOWN else ""
        return Inspected(
            f"{name} does not list AI_MODEL={model}; it lists {listed}{more}",
            f"set AI_MODEL to a model that it has (with Ollama: ollama pull {model})",
            False,
        )
    return Inspected(f"{name} answers and lists {len(listing.models)} models")


def lists(models: Sequence[str], model: str) -> bool:
    """Whether a model is in a list. `:latest` may be left out, and Gemini lists `models/NAME`."""
    return any(matches(listed.removeprefix("models/"), (_literal(model),)) for listed in models)


def _literal(model: str) -> str:
    """Return a pattern that matches one name only."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in model)
