"""Errors that the gateway itself returns, in the format of the API that the program called.

Ollama: `{"error": "…"}`. OpenAI: `{"error": {"message", "type", "param", "code"}}`
(platform.openai.com, error codes).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

import msgspec

_TYPES: Final = {403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class Api(StrEnum):
    """The API that a path belongs to."""

    OLLAMA = "ollama"
    OPENAI = "openai"


class Refused(Exception):  # noqa: N818 - an answer to the program, not an error of the gateway
    """The gateway returns this error to the program instead of a model's answer.

    Args:
        status: The HTTP status.
        message: The limit, its value and the remedy, for the author of the function.
        code: OpenAI's `code`: a word for programs.
        param: The name of the request's field that is wrong.
        retry_after_s: The time after which the program may try again, in seconds. With None, the response
            has no `Retry-After`; with status 429 or 503 it then tells clients not to try again.
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
        """Return the body of the response, as JSON."""
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
        """Return the headers of the response. They tell clients whether to try again."""
        headers = {"Content-Type": "application/json"}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        elif self.status in {429, 503}:
            headers["x-should-retry"] = "false"  # for OpenAI's clients this decides, whatever the status
        return headers
