"""Answers requests for lists of models: asks the model servers, and returns the models that runs may use."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import unquote

import msgspec

from nanoagent.ai import upstreams
from nanoagent.ai.refusals import Api, Refused
from nanoagent.ai.responses import json_response
from nanoagent.ai.routes import api_of
from nanoagent.ai.translation import models as translated_models
from nanoagent.ai.untrusted_json import UNREADABLE
from nanoagent.common.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiohttp import web

    from nanoagent.ai.run_state import RunState
    from nanoagent.ai.upstreams import Upstream, Upstreams

_TIMEOUT_S: Final = 10.0
_MAX_BYTES: Final = 4 * MIB
_MOST_MODELS: Final = 4096  # of one server
_MOST_COMMAS: Final = 300_000  # about 70 for each model; a list with that many takes 30 ms to read
_VERSION: Final = b'{"version":"0.0.0"}'  # the answer to /api/version without an Ollama server

NamedEntry: TypeAlias = tuple[str, msgspec.Raw]
"""A model's name, and its entry in a list as the server wrote it."""


class _Entry(msgspec.Struct):
    id: str | None = None
    name: str | None = None


class _Listing(msgspec.Struct):
    data: msgspec.Raw = msgspec.Raw(b"")
    models: msgspec.Raw = msgspec.Raw(b"")


class ModelLists:
    """Answers requests of one run for lists of models.

    Args:
        servers: The model servers.
        state: The state of the run.
    """

    def __init__(self, servers: Upstreams, state: RunState) -> None:
        self._servers = servers
        self._state = state

    async def respond(self, path: str) -> web.Response:
        """Answer a GET request for a list (`routes.LISTS`), or for one model (`/v1/models/NAME`).

        Raises:
            Refused: No server has answered, or the model is not in the list.
        """
        if not self._servers.servers:
            raise upstreams.no_server()
        api = api_of(path)
        asked = [server for server in self._servers.servers if server.speaks(api)]
        if path == "/api/version":
            return await _version(asked)
        listed = await self._listed(path, asked)
        if path.startswith("/v1/models/"):
            name = unquote(path.removeprefix("/v1/models/"))
            if name not in listed:
                raise Refused(404, f"the model {name[:100]!r} does not exist", "model_not_found")
            return json_response(listed[name])
        entries = list(listed.values())
        return json_response(
            {"object": "list", "data": entries} if api is Api.OPENAI else {"models": entries}
        )

    async def _listed(self, path: str, asked: list[Upstream]) -> dict[str, msgspec.Raw]:
        """Return the entries of the models that the run may use, by name, in the format of the path.

        Raises:
            Refused: No server has answered. Not raised for `/api/ps`: then the list is empty.
        """
        found = await self.entries_of((server, path) for server in asked)
        others = [server for server, entries in zip(asked, found, strict=True) if entries is None]
        if path == "/api/tags" and others:  # a server without Ollama's API has a list in OpenAI's format
            lists = await self.entries_of((server, "/v1/models") for server in others)
            translated = dict(zip(others, map(_as_tags, lists), strict=True))
            pairs = zip(asked, found, strict=True)
            found = [translated[server] if entries is None else entries for server, entries in pairs]
        if asked and path != "/api/ps" and all(entries is None for entries in found):
            raise Refused(502, "no model server of this worker has answered", "upstream_failed")
        listed: dict[str, msgspec.Raw] = {}
        for server, entries in zip(asked, found, strict=True):
            with self._state.cpu_time.charged():
                serving = self._servers.serving
                listed |= {name: entry for name, entry in entries or () if serving(name) is server}
            await asyncio.sleep(0)
        return listed

    async def entries_of(self, asked: Iterable[tuple[Upstream, str]]) -> list[list[NamedEntry] | None]:
        """Ask servers for their lists.

        Args:
            asked: Pairs of a server and the path of a list.

        Returns:
            The models of each server; None for a server that returned no such list.
        """
        requests = [(server, "/v1/models" if path.startswith("/v1") else path) for server, path in asked]
        documents = await upstreams.get_from_each(requests, _TIMEOUT_S, _MAX_BYTES)
        found = []
        for (_, path), document in zip(requests, documents, strict=True):
            with self._state.cpu_time.charged():
                found.append(parse_list(document, api_of(path)))
            await asyncio.sleep(0)
        return found


async def _version(asked: list[Upstream]) -> web.Response:
    """Return the version of Ollama of the first server that has one; 0.0.0 without such a server.

    Servers of other APIs also answer this request with status 200, for example with a page of HTML.
    """
    requests = [(server, "/api/version") for server in asked]
    answers = await upstreams.get_from_each(requests, _TIMEOUT_S, upstreams.MAX_VERSION_BYTES)
    return json_response(msgspec.Raw(next(filter(upstreams.is_version, answers), None) or _VERSION))


def parse_list(document: bytes | None, api: Api) -> list[NamedEntry] | None:
    """Return the models of a list; None if the document is not a list of the API."""
    document = document or b""
    if document.count(b",") > _MOST_COMMAS:
        return None
    try:
        whole = msgspec.json.decode(document, type=_Listing | list[msgspec.Raw])
        if isinstance(whole, list):  # Together AI's list of models is a bare array
            listed = whole if api is Api.OPENAI else None
        else:
            inner = whole.data if api is Api.OPENAI else whole.models
            listed = msgspec.json.decode(inner, type=list[msgspec.Raw] | None) or []
    except UNREADABLE:
        return None
    found = []
    for entry in (listed or [])[:_MOST_MODELS]:
        with suppress(*UNREADABLE):
            names = msgspec.json.decode(entry, type=_Entry)
            if (name := names.id if api is Api.OPENAI else names.name) is not None:
                found.append((name, entry))
    return found


def _as_tags(listed: list[NamedEntry] | None) -> list[NamedEntry] | None:
    """Return the models of OpenAI's list in the format of Ollama's."""
    if listed is None:
        return None
    return [(name, translated_models.tags_entry(entry)) for name, entry in listed]
