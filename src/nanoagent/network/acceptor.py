"""Accepts the connections of one run on its listening sockets.

**Connections are accepted in threads.** The supervisor may still hold a listening socket, and every process
that holds a socket can make it blocking. In the event loop, an accept that blocks would stop the whole
worker. In a thread, the worker can end the accept by shutting the socket down. Only the worker holds an
accepted connection, so nobody else can make it blocking.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog

from nanoagent.common.token_bucket import TokenBucket
from nanoagent.host.shielding import until_done

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import ThreadPoolExecutor

    from nanoagent.network.run_tasks import RunTasks

    Serve = Callable[[socket.socket], Awaitable[None]]

log = structlog.get_logger(__name__)

_BACKLOG: Final = 16
_ACCEPT_S: Final = 2.0  # accept is called only when a connection waits, so it should return at once
# The rate limit of one run. A connection takes about 0.2 ms of the worker's CPU time.
_CONNECTIONS_PER_S: Final = 100.0
_CONNECTIONS_BURST: Final = 100
_RESET: Final = struct.pack("ii", 1, 0)  # close at once, and reset the other end: SO_LINGER, socket(7)
_NO_LINGER: Final = struct.pack("ii", 0, 0)


class Acceptor:
    """Accepts the connections of one run.

    Args:
        threads: The threads in which connections are accepted.
        max_connections: The largest number of open connections of the run. Further connections wait to be
            accepted.
        tasks: The tasks of the run.
    """

    def __init__(self, threads: ThreadPoolExecutor, max_connections: int, tasks: RunTasks) -> None:
        self._threads = threads
        self._tasks = tasks
        self._connections = asyncio.Semaphore(max_connections)
        self._loop = asyncio.get_running_loop()
        self._rate_limit = TokenBucket.full(_CONNECTIONS_PER_S, _CONNECTIONS_BURST, self._loop.time())
        self._listening: list[socket.socket] = []
        self._is_stopped = False

    def listen(self, listener: socket.socket, serve: Serve) -> None:
        """Listen on a socket, and serve its connections.

        Args:
            listener: A bound TCP socket, non-blocking.
            serve: Serves an accepted connection until it ends.

        Raises:
            OSError: Another process listens on the address.
        """
        listener.listen(_BACKLOG)
        self._listening.append(listener)
        self._loop.add_reader(listener.fileno(), self._connection_waits, listener, serve)

    def stop(self) -> None:
        """Stop listening, and reset the connections that wait to be accepted. The port stays bound."""
        self._is_stopped = True
        for listener in self._listening:
            self._loop.remove_reader(listener.fileno())
            _shut_down(listener)  # also ends an accept in a thread

    def _connection_waits(self, listener: socket.socket, serve: Serve) -> None:
        self._loop.remove_reader(listener.fileno())
        self._tasks.start(self._accept_and_serve(listener, serve))

    async def _accept_and_serve(self, listener: socket.socket, serve: Serve) -> None:
        """Accept one connection, wait for the next one in the background, and serve this one to its end."""
        async with self._connections:
            if (delay_s := self._rate_limit.delay_s(self._loop.time())) > 0:
                await asyncio.sleep(delay_s)
            connection = await self._accept(listener)
            # If the supervisor has shut the socket down, the socket would be readable again and again.
            if not self._is_stopped and listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                self._loop.add_reader(listener.fileno(), self._connection_waits, listener, serve)
            if connection is None:
                return
            try:
                await serve(connection)
            except OSError:
                _reset(connection)  # most likely the program has hung up
            except asyncio.CancelledError:
                _reset(connection)
                raise
            except Exception:
                _reset(connection)
                log.exception("internal error", operation="serve a connection")
            finally:
                connection.close()

    async def _accept(self, listener: socket.socket) -> socket.socket | None:
        """Accept a connection in a thread. Return None if the connection no longer exists."""
        accepting = self._loop.run_in_executor(self._threads, _accept, listener)
        timeout = self._loop.call_later(_ACCEPT_S, _shut_down, listener)
        try:
            # After a cancellation, the caller closes the listener. So this waits until the thread no longer
            # uses the listener's descriptor.
            await until_done(accepting)
            return accepting.result()
        except asyncio.CancelledError:
            if (connection := accepting.result()) is not None:
                _reset(connection)
                connection.close()
            raise
        finally:
            timeout.cancel()


def _accept(listener: socket.socket) -> socket.socket | None:
    """Accept a connection. Called in a thread, because it may block."""
    try:
        connection, _ = listener.accept()
    except OSError:
        return None
    connection.setblocking(False)
    with suppress(OSError):
        # The supervisor may have set SO_LINGER on the listener, and connections inherit it. Then closing
        # would block.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _shut_down(listener: socket.socket) -> None:
    with suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)


def _reset(connection: socket.socket) -> None:
    """Make `close` reset the connection, so that the program sees an error instead of a normal end."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
