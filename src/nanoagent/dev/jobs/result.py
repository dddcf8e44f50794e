"""The command `nanoagent result`: prints the result of a job."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console

from nanoagent.dev.exec import summary
from nanoagent.dev.sender import delivery, dev, message, terminal
from nanoagent.dev.sender.command import Report, shown
from nanoagent.dev.sender.stages import Exit, Stage, service_failed
from nanoagent.model import result as results_
from nanoagent.model.errors import InvalidCall, PlatformError

if TYPE_CHECKING:
    from pathlib import Path

    from nanoagent.config import Settings


def result(
    settings: Settings, request_id: str, *, wait_s: float, as_json: bool, settings_file: Path = dev.DEFAULT
) -> int:
    """Print the result of a request, and return the exit code.

    A terminal gets the output of the program and a summary. A pipe gets the document, because programs read
    it.
    """

    async def read() -> dict[str, Any] | None:
        async with delivery.results(settings) as results:
            return await (results.wait(request_id, wait_s) if wait_s else results.stored(request_id))

    report = Report(as_json, Stage.UNKNOWN, {"requestId": request_id})
    try:
        message.check_request_id(request_id)
        found = asyncio.run(read())
    except InvalidCall as exc:
        return report.end(Exit.INVALID_CALL, error=str(exc))
    except PlatformError as exc:
        return report.end(Exit.SERVICE_FAILED, error=service_failed(exc, settings_file))
    if found is None:
        reasons = "the job has not ended, was not sent, or its result is older than RESULT_TTL_SECONDS"
        return report.end(Exit.NO_RESULT, error=f"no result of {request_id}: {reasons}")
    report.stage = Stage.SENT
    code = Exit.SUCCESS if found.get("status") == "SUCCESS" else Exit.NOT_SUCCESSFUL
    if as_json or not sys.stdout.isatty():
        return report.end(code, result=found)
    show(found)
    return code


def show(document: dict[str, Any]) -> None:
    """Print the output of the program to the same streams, and the summary to standard error.

    The text of a program is untrusted: control characters are escaped. A document of another version that
    cannot be read is printed as JSON.
    """
    try:
        found = results_.decode(json.dumps(document))
    except msgspec.DecodeError:
        print(shown(document))  # noqa: T201 - a command's output
        return
    for text, stream in ((found.stdout, sys.stdout), (found.stderr, sys.stderr)):
        if text:
            stream.write(printable(text))
            stream.flush()
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    for line in summary.lines(found, found.memory_mb):
        console.print(line)


def printable(text: str) -> str:
    """Return the output of a program for a terminal: lines without control characters."""
    whole = text if text.endswith("\n") else f"{text}\n"
    return terminal.clean(whole.replace("\r\n", "\n"))
