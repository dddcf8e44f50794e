"""What the gateway itself answers with an error, in the shape of the API that was asked.

Ollama: `{"error": "…"}`. OpenAI: `{"error": {"message", "type", "param", "code"}}`
(platform.openai.com, error codes).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

import msgspec

_TYPES: Final = {403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class Api(StrEnum):
    """Whose shapes a path has."""

    OLLAMA = "ollama"
    OPENAI = "openai"


class Refused(Exception):  # noqa: N818 - it is an answer, and no error of ours
    """The gateway answers this instead of a model.

    Args:
        status: HTTP status.
        message: Which limit, its value, and what raises it; for whoever wrote the function.
        code: OpenAI's `code`, a word for programs.
        param: The field of the request that is meant.
        retry_after_s: When asking again may help, seconds; None: not while the run lasts.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    def body(self, api: Api) -> bytes:
        """The answer's JSON."""
        if api is Api.OLLAMA:
            return msgspec.json.encode({"error": str(self)})
        kind = "server_error" if self.status >= 500 else _TYPES.get(self.status, "invalid_request_error")
        if self.status == 429 and self.retry_after_s is None:
            kind = "insufficient_quota"
        error: dict[str, Any] = {
            "message": str(self),
            "type": kind,
            "param": self.param,
            "code": self.code,
        }
        return msgspec.json.encode({"error": error})

    def headers(self) -> dict[str, str]:
        """What tells clients whether to ask again: OpenAI's look at `x-should-retry` before the status."""
        headers = {"Content-Type": "application/json"}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        elif self.status in {429, 503}:
            headers["x-should-retry"] = "false"
        return headers
