"""Follows a job that this process sends: `send --follow` and `invoke --follow`.

If live output is not available, the job is sent nevertheless, and the output of its result is printed at the
end.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nanoagent.dev.exec import summary
from nanoagent.dev.follower import events, following
from nanoagent.dev.follower.events import STDERR, Position
from nanoagent.dev.follower.following import Following
from nanoagent.dev.follower.printing import Printer, ReaderGone
from nanoagent.model import result as results_of
from nanoagent.results.failures import RedisCallError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from nanoagent.config import Settings
    from nanoagent.dev.follower.events import Event
    from nanoagent.dev.sender.delivery import Results
    from nanoagent.results.live_log import LiveLogReader

_NOT_PERMITTED: Final = (
    "this Redis user may not follow jobs, so the output appears at the end; docs/logs.md has the permissions"
)
_NOT_STORED: Final = (
    "no live output arrived, and this is the output of the result: LIVE_LOGS of the worker may be off, or "
    "its Redis user may lack a permission"
)


def problems(*, as_json: bool, wait_s: float) -> list[str]:
    """Return the options that cannot be used with `--follow`, one sentence each."""
    found = []
    if as_json:
        found.append(
            "--follow: cannot be used with --json; `nanoagent logs ID --follow --json` prints events as JSON"
        )
    if wait_s == 0:
        found.append("--follow: cannot be used with --wait 0, which does not wait for any output")
    return found


@asynccontextmanager
async def of_job(settings: Settings, request_id: str) -> AsyncIterator[LiveOutput]:
    """Return the live output of a job that is not sent yet. Its connection ends with the context."""
    async with following.reader(settings) as reader:
        yield LiveOutput(reader, request_id)


class LiveOutput:
    """Prints the output of a job that this process sends, while the job runs.

    Args:
        logs: The live logs.
        request_id: The request ID of the job.
    """

    def __init__(self, logs: LiveLogReader, request_id: str) -> None:
        self._request_id = request_id
        self._following = Following(logs, request_id)
        self._printer = Printer(request_id)
        self._is_permitted = True
        self._is_explained = False  # whether it is said where the output comes from
        self._closed: set[str] = set()

    @property
    def since(self) -> str | None:
        """The position at which `nanoagent logs` can continue; empty for the beginning.

        None if this user may not follow jobs.
        """
        if not self._is_permitted:
            return None
        position = self._following.position
        return "" if position == Position() else str(position)

    async def announce(self) -> None:
        """Begin to follow the job. Call it before the message is sent, so that its worker knows the follower.

        Raises:
            ResultStoreError: Redis failed. A missing permission is only reported.
        """
        try:
            await self._following.announce()
        except RedisCallError as exc:
            self._do_without(exc)

    async def result(self, results: Results, wait_s: float) -> dict[str, Any] | None:
        """Print the output until the job has ended, and return the result.

        Args:
            results: The results, for a user who may not follow jobs.
            wait_s: The longest time, seconds.

        Returns:
            The document; None if the time has passed.

        Raises:
            ResultStoreError: Redis failed.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        try:
            async with asyncio.timeout_at(deadline):
                if self._is_permitted and (found := await self._followed()) is not None:
                    return found
        except TimeoutError:
            return None
        document = await results.wait(self._request_id, max(0.0, deadline - loop.time()))
        if document is not None:
            self._show(self._following.finish(document))
        return document

    def show_end(self, document: dict[str, Any], memory_mb: int) -> None:
        """Print the summary of a result; after success, only on a terminal.

        The result of a newer worker, which this version cannot read, is printed as JSON without the output.
        """
        try:
            result = results_of.decode(json.dumps(document))
        except msgspec.MsgspecError:
            rest = {name: value for name, value in document.items() if name not in events.STREAMS.values()}
            print(json.dumps(rest, indent=2))  # noqa: T201 - a command's output
            return
        summary.show(result, memory_mb, self._begin_line)

    async def _followed(self) -> dict[str, Any] | None:
        """Print the events until the job has ended; return the result, or None without the permission."""
        try:
            async for event in self._following.events():
                self._show([event])
        except RedisCallError as exc:
            self._do_without(exc)
        return self._following.result

    def _do_without(self, error: RedisCallError) -> None:
        """Say that a permission is missing.

        Raises:
            RedisCallError: The error, if it is another one.
        """
        if not error.is_denied:
            raise error
        self._is_permitted, self._is_explained = False, True
        self._notice(_NOT_PERMITTED)

    # --- printing

    def _show(self, new: Iterable[Event]) -> None:
        """Print events, except the end: `show_end` prints a summary instead."""
        for event in new:
            match event:
                case events.Ended():
                    continue
                case events.Waiting():
                    self._notice(f"no worker has received {self._request_id} yet")
                    continue
                case events.Started() | events.Refused():
                    self._is_explained = True
                case events.AttemptEnded() if self._is_permitted:
                    self._is_explained = False
                case events.Output() | events.Missing() if not self._is_explained:
                    self._is_explained = True
                    self._notice(_NOT_STORED)
                case _:
                    pass
            self._print(event)

    def _print(self, event: Event) -> None:
        """Print an event, unless the reader of its stream has gone: that does not change the exit code."""
        stream = event.stream if isinstance(event, events.Output | events.Missing) else STDERR
        if stream not in self._closed:
            try:
                self._printer.event(event, self._following.position)
            except ReaderGone:
                self._closed.add(stream)

    def _notice(self, text: str) -> None:
        if STDERR not in self._closed:
            try:
                self._printer.notice(text)
            except ReaderGone:
                self._closed.add(STDERR)

    def _begin_line(self) -> None:
        if STDERR not in self._closed:
            try:
                self._printer.begin_line()
            except ReaderGone:
                self._closed.add(STDERR)
