"""The command `nanoagent logs`: its steps and exit codes."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from nanoagent.dev.follower import following
from nanoagent.dev.follower.events import STDERR, STDOUT, Position
from nanoagent.dev.follower.printing import JsonPrinter, Printer, ReaderGone
from nanoagent.dev.sender import message, stages
from nanoagent.model.errors import InvalidCall, PlatformError

if TYPE_CHECKING:
    from pathlib import Path

    from nanoagent.config import RedisSettings
    from nanoagent.dev.follower.following import Following

_TIMED_OUT: Final = "TIMEOUT"


class Exit(IntEnum):
    """Exit codes of `nanoagent logs`; Ctrl-C ends with 130."""

    SUCCESS = 0  # the job succeeded, or runs and --follow was not given
    FAILED = 1  # the job ended with another status
    INVALID_CALL = 2
    SERVICE_FAILED = 3  # Redis failed
    NOT_KNOWN = 4  # no output is known; or the job has not ended within --wait
    TIMEOUT = 124  # the time limit of the job was exceeded


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call of `nanoagent logs`.

    Attributes:
        request_id: The request ID of the job.
        is_following: Whether to wait for further output until the job has ended.
        stream: `stdout` or `stderr` to print only that stream; empty for both.
        since: A position that was printed before; empty for the beginning.
        wait_s: The longest time to follow, seconds; 0 for no limit.
        as_json: Whether to print events as JSON.
        settings_file: The file with the settings.
    """

    request_id: str
    is_following: bool = False
    stream: str = ""
    since: str = ""
    wait_s: float = 0
    as_json: bool = False
    settings_file: Path


def logs(settings: RedisSettings, call: Call) -> int:
    """Print the output of a job, and return the exit code."""
    try:
        since = _check(call)
        return asyncio.run(_print_logs(settings, call, since))
    except InvalidCall as exc:
        print(f"nanoagent: {exc}", file=sys.stderr)  # noqa: T201
        return Exit.INVALID_CALL
    except PlatformError as exc:
        error = stages.service_failed(exc, call.settings_file)
        print(f"nanoagent: {error}", file=sys.stderr)  # noqa: T201
        return Exit.SERVICE_FAILED


def _check(call: Call) -> Position | None:
    """Check the arguments; return the position of `--since`.

    Raises:
        InvalidCall: An argument is invalid.
    """
    message.check_request_id(call.request_id)
    if call.stream not in {"", STDOUT, STDERR}:
        raise InvalidCall([f"--stream {call.stream}: is not {STDOUT} or {STDERR}"])
    if not call.wait_s >= 0:  # NaN, too
        raise InvalidCall([f"--wait {call.wait_s:g}: is not a number of seconds"])
    try:
        return Position.parse(call.since) if call.since else None
    except ValueError as exc:
        raise InvalidCall([f"--since: {exc}"]) from exc


async def _print_logs(settings: RedisSettings, call: Call, since: Position | None) -> int:
    printer = printer_of(call.request_id, call.stream, as_json=call.as_json)
    async with following.reader(settings) as reader:
        of_job = following.Following(reader, call.request_id, since)
        try:
            if call.is_following:
                await print_events(of_job, printer, call.wait_s)
            else:
                async for event in of_job.snapshot():
                    printer.event(event, of_job.position)
        except ReaderGone:
            return Exit.SUCCESS
        except asyncio.CancelledError:
            _say_how_to_continue(of_job, call, printer)
            raise
        return _exit(of_job, call, printer)


async def print_events(of_job: Following, printer: Printer | JsonPrinter, wait_s: float = 0) -> None:
    """Print the events of a job until it has ended.

    Args:
        of_job: The job. Afterwards it has the result, unless the time has passed.
        printer: Prints the events.
        wait_s: The longest time, seconds; 0 for no limit.

    Raises:
        ReaderGone: Nobody reads the output any more.
        ResultStoreError: Redis failed.
    """
    try:
        async with asyncio.timeout(wait_s or None):
            async for event in of_job.events():
                printer.event(event, of_job.position)
    except TimeoutError:
        printer.notice(f"the job has not ended within {wait_s:g} s")


def printer_of(request_id: str, stream: str = "", *, as_json: bool = False) -> Printer | JsonPrinter:
    """Return the printer for a call."""
    return JsonPrinter(request_id, stream) if as_json else Printer(request_id, stream)


def exit_of(result: dict[str, Any]) -> Exit:
    """Return the exit code for a job that has ended."""
    if result.get("status") == "SUCCESS":
        return Exit.SUCCESS
    return Exit.TIMEOUT if result.get("status") == _TIMED_OUT else Exit.FAILED


def _exit(of_job: Following, call: Call, printer: Printer | JsonPrinter) -> Exit:
    if of_job.result is not None:
        return exit_of(of_job.result)
    if not of_job.is_known:
        printer.notice(
            f"no output of {call.request_id} is known: no worker has received it, or its output and result "
            "have expired"
        )
        return Exit.NOT_KNOWN
    _say_how_to_continue(of_job, call, printer)
    return Exit.NOT_KNOWN if call.is_following else Exit.SUCCESS


def _say_how_to_continue(of_job: Following, call: Call, printer: Printer | JsonPrinter) -> None:
    """Print the command that continues here. The job is not affected by the end of this one."""
    if call.as_json:
        return
    since = f" --since {of_job.position}" if of_job.position != Position() else ""
    printer.notice(f"the job continues; to follow it: nanoagent logs {call.request_id} --follow{since}")
