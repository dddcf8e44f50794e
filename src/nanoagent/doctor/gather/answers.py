"""Sends requests to services, and records the answers."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

from nanoagent.aws import failures as aws_failures
from nanoagent.doctor.facts import Answer
from nanoagent.model.errors import NanoAgentError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

DEADLINE_S: Final = 5.0
"""The time limit for one request, seconds."""


async def ask(request: Callable[[], Awaitable[Any]]) -> Answer:
    """Send one request, and record the answer. A failure or a timeout is recorded as an answer, too."""
    asked_at, started_at = time.time(), time.monotonic()
    code, message, data = None, "", None
    try:
        async with asyncio.timeout(DEADLINE_S):
            data = await request()
        response: Any = data
    except TimeoutError as exc:
        code, response = "TimeoutError", None
        message = str(exc) or f"no answer within {DEADLINE_S:.0f} s"
    except Exception as exc:  # noqa: BLE001 - any failure is recorded as a fact
        cause = exc.__cause__ if isinstance(exc, NanoAgentError) and exc.__cause__ else exc
        code, message, response = (
            aws_failures.error_code(cause),
            message_of(cause),
            getattr(cause, "response", None),
        )
        if isinstance(response, dict):
            message = str(response.get("Error", {}).get("Message") or message)
    return Answer(code, message, _date_of(response), asked_at, time.monotonic() - started_at, data)


async def ask_all(requests: Mapping[str, Callable[[], Awaitable[Any]]]) -> dict[str, Answer]:
    """Send all requests at the same time. Return the answers by the names of the requests."""
    answers = await asyncio.gather(*map(ask, requests.values()))
    return dict(zip(requests, answers, strict=True))


def message_of(exc: BaseException) -> str:
    """Return an exception's message; never empty."""
    message = str(exc).strip()
    status = getattr(exc.__cause__, "status", None)
    if message.endswith(":") and status is not None:  # an engine or a proxy that gives no reason
        return f"{message} HTTP status {status}"
    return message or type(exc).__name__


def _date_of(response: Any) -> str | None:
    try:
        return str(response["ResponseMetadata"]["HTTPHeaders"]["date"])
    except (TypeError, KeyError):
        return None
