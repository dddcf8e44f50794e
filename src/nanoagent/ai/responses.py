"""HTTP responses of the gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from aiohttp import web

if TYPE_CHECKING:
    from nanoagent.ai.refusals import Api, Refused

HEADERS: Final = {"Server": "nanoagent"}
"""The headers of every response. They hide the versions of Python and aiohttp."""


def json_response(document: Any) -> web.Response:
    """Return a response with a JSON document."""
    headers = HEADERS | {"Content-Type": "application/json"}
    return web.Response(body=msgspec.json.encode(document), headers=headers)


def refusal_response(refusal: Refused, api: Api) -> web.Response:
    """Return a response with an error, in the format of an API."""
    headers = HEADERS | refusal.headers()
    return web.Response(status=refusal.status, body=refusal.body(api), headers=headers)


def content_type_header(content_type: str) -> str:
    """Return a model server's content type, or `application/json` if it is not valid in a header."""
    return content_type if content_type.isascii() and content_type.isprintable() else "application/json"
