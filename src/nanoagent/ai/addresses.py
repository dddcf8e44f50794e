"""Where the calls of each API go at a model server: the rule for AI_ENDPOINT and the urls of AI_UPSTREAMS.

OpenAI's calls go where the official `openai` client sends them: to the base URL with `/chat/completions` (and
so on) appended. There is one exception: an address without a path is the root of a server, as is usual for
Ollama, and its OpenAI API is below `/v1`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urlsplit

from nanoagent.ai.refusals import Api

# Their API is at the root (docs.perplexity.ai, "OpenAI compatibility").
_AT_ROOT: Final = frozenset({"api.perplexity.ai"})
# They take the key of a resource in a header with this name (learn.microsoft.com, "Azure OpenAI", REST).
_AZURE: Final = ("openai.azure.com", "cognitiveservices.azure.com", "services.ai.azure.com")
_NEWER: Final = ("openai.com", "azure.com")  # they want max_completion_tokens


@dataclass(frozen=True, slots=True)
class Address:
    """A model server's address.

    Attributes:
        root: Scheme, host and port.
        host: The host's name.
        openai: The path to which `/chat/completions` is appended.
        ollama: The path to which `/api/chat` is appended.
        query: The text behind each path, `?` included (Azure's `api-version`); often empty.
        may_be_ollama: Whether Ollama's API may be there, as far as the address tells.
    """

    root: str
    host: str
    openai: str
    ollama: str
    query: str = ""
    may_be_ollama: bool = True

    def target(self, path: str) -> str:
        """The path and query at the server for a path of the gateway (`/v1/…` or `/api/…`)."""
        if path.startswith("/v1/"):
            return self.openai + path.removeprefix("/v1") + self.query
        return self.ollama + path + self.query

    @property
    def wants_newer(self) -> bool:
        """Whether it wants `max_completion_tokens` in place of `max_tokens`."""
        return _is_below(self.host, _NEWER)

    @property
    def takes_key_of_azure(self) -> bool:
        """Whether it takes its key in the header `api-key`."""
        return _is_below(self.host, _AZURE)


def of(url: str, api: Api | None) -> Address:
    """The address that a setting means.

    Args:
        url: As the setting has it.
        api: The API that the setting says the server has; None where it leaves that open.
    """
    parts = urlsplit(url)
    path = parts.path.rstrip("/")
    root = SplitResult(parts.scheme, parts.netloc, "", "", "").geturl()
    host = (parts.hostname or "").lower()
    query = f"?{parts.query}" if parts.query else ""
    if not path:
        return Address(root, host, "" if host in _AT_ROOT else "/v1", "", query)
    if api is Api.OLLAMA or (api is None and path == "/api"):  # http://localhost:11434/api, as Ollama has it
        ollama = path.removesuffix("/v1").removesuffix("/api")
        return Address(root, host, f"{ollama}/v1", ollama, query)
    has_version = path.endswith("/v1")
    return Address(root, host, path, path.removesuffix("/v1"), query, may_be_ollama=has_version)


def _is_below(host: str, names: tuple[str, ...]) -> bool:
    return any(host == name or host.endswith(f".{name}") for name in names)
