"""Finds the paths of each API at a model server, from AI_ENDPOINT or a URL in AI_UPSTREAMS.

OpenAI's calls go to the same path as from the official `openai` client: the gateway appends
`/chat/completions` (and so on) to the base URL. There are two exceptions. An address without a path is the
root of a server, as is usual for Ollama. An address with the path `/api`, or with `"api": "ollama"` in
AI_UPSTREAMS, is Ollama's own API. In both cases the server's OpenAI API is below `/v1`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urlsplit

from nanoagent.ai.refusals import Api

# Hosts whose API is at the root, not below /v1 (docs.perplexity.ai, "OpenAI compatibility").
_API_AT_ROOT: Final = frozenset({"api.perplexity.ai"})
# Hosts that read the key from the header `api-key` (learn.microsoft.com, "Azure OpenAI", REST).
_AZURE: Final = ("openai.azure.com", "cognitiveservices.azure.com", "services.ai.azure.com")
# Hosts that require `max_completion_tokens`.
_MAX_COMPLETION_TOKENS: Final = ("openai.com", "azure.com")


@dataclass(frozen=True, slots=True)
class Address:
    """A model server's address.

    Attributes:
        root: Scheme, host and port.
        host: The host's name.
        openai: The path to which `/chat/completions` is appended.
        ollama: The path to which `/api/chat` is appended.
        query: The query of each request, with its `?` (Azure's `api-version`). Often empty.
        may_be_ollama: Whether a server at this address can be Ollama.
    """

    root: str
    host: str
    openai: str
    ollama: str
    query: str = ""
    may_be_ollama: bool = True

    def target(self, path: str) -> str:
        """Return the path and query at the server for a path of the gateway (`/v1/…` or `/api/…`)."""
        if path.startswith("/v1/"):
            return self.openai + path.removeprefix("/v1") + self.query
        return self.ollama + path + self.query

    @property
    def uses_max_completion_tokens(self) -> bool:
        """Whether the server requires `max_completion_tokens` instead of `max_tokens`."""
        return _is_below(self.host, _MAX_COMPLETION_TOKENS)

    @property
    def uses_api_key_header(self) -> bool:
        """Whether the server reads its key from the header `api-key`."""
        return _is_below(self.host, _AZURE)


def parse(url: str, api: Api | None) -> Address:
    """Return the address for the URL in a setting.

    Args:
        url: The URL in the setting.
        api: The API that the setting names for the server; None if it names none.
    """
    parts = urlsplit(url)
    path = parts.path.rstrip("/")
    root = SplitResult(parts.scheme, parts.netloc, "", "", "").geturl()
    host = (parts.hostname or "").lower()
    query = f"?{parts.query}" if parts.query else ""
    if not path:
        return Address(root, host, "" if host in _API_AT_ROOT else "/v1", "", query)
    if api is Api.OLLAMA or (
        api is None and path == "/api"
    ):  # the base URL in Ollama's documents ends in /api
        ollama = path.removesuffix("/v1").removesuffix("/api")
        return Address(root, host, f"{ollama}/v1", ollama, query)
    has_version = path.endswith("/v1")
    return Address(root, host, path, path.removesuffix("/v1"), query, may_be_ollama=has_version)


def _is_below(host: str, names: tuple[str, ...]) -> bool:
    """Whether a host is one of the names, or a subdomain of one."""
    return any(host == name or host.endswith(f".{name}") for name in names)
