"""Answers the DNS queries of one run on its UDP socket."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog

from nanoagent.common.token_bucket import TokenBucket
from nanoagent.network import dns

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nanoagent.network.run_tasks import RunTasks

    Answer = Callable[[bytes], Awaitable[bytes | None]]

log = structlog.get_logger(__name__)

_MOST_PENDING: Final = 32  # queries; further ones are dropped, and clients repeat them
_QUERIES_PER_CALL: Final = 8  # of `_receive`; other tasks run between two calls
_MOST_LEFT_OVER: Final = 1024  # queries; the buffer of the socket holds fewer
# The rate limit of one run. A query takes about 0.3 ms of the worker's CPU time.
_QUERIES_PER_S: Final = 100.0
_QUERIES_BURST: Final = 100


class NameServer:
    """Answers the DNS queries of one run.

    Args:
        udp: A bound UDP socket, non-blocking.
        answer: Returns the answer to a query; None if the query gets no answer.
        tasks: The tasks of the run.
    """

    def __init__(self, udp: socket.socket, answer: Answer, tasks: RunTasks) -> None:
        self._udp = udp
        self._answer = answer
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        self._rate_limit = TokenBucket.full(_QUERIES_PER_S, _QUERIES_BURST, self._loop.time())
        self._pending = 0
        self._is_stopped = False

    def start(self) -> None:
        """Drop the unread queries of the previous run, and answer new queries from now on."""
        with suppress(OSError):
            for _ in range(_MOST_LEFT_OVER):
                self._udp.recvfrom(0, socket.MSG_DONTWAIT)
        self._loop.add_reader(self._udp.fileno(), self._receive)

    def stop(self) -> None:
        """Receive no more queries."""
        self._is_stopped = True
        self._loop.remove_reader(self._udp.fileno())

    def _receive(self) -> None:
        """Receive a few queries, and answer each in a task."""
        delay_s = 0.0
        for count in range(_QUERIES_PER_CALL):
            try:
                message, client = self._udp.recvfrom(dns.MAX_QUERY_BYTES + 1, socket.MSG_DONTWAIT)
            except OSError:
                if count == 0:  # the supervisor can make the socket readable again and again, without a query
                    delay_s = self._rate_limit.delay_s(self._loop.time())
                break
            delay_s = self._rate_limit.delay_s(self._loop.time())
            if self._pending < _MOST_PENDING:
                self._pending += 1
                self._tasks.start(self._reply(message, client))
        if delay_s > 0:
            self._loop.remove_reader(self._udp.fileno())
            self._tasks.start(self._receive_after(delay_s))

    async def _receive_after(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        if not self._is_stopped:
            self._loop.add_reader(self._udp.fileno(), self._receive)

    async def _reply(self, message: bytes, client: tuple[str, int]) -> None:
        try:
            reply = await self._answer(message)
            if reply is not None:
                self._udp.sendto(reply, socket.MSG_DONTWAIT, client)
        except OSError:
            pass  # the client has closed its socket, or its buffer is full
        except Exception:
            log.exception("internal error", operation="answer a DNS query")
        finally:
            self._pending -= 1
