"""Calls of the embedded stack's services, with AWS clients that outlive the call."""

from __future__ import annotations

import asyncio
import threading
from contextlib import ExitStack
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from concurrent.futures import Future
    from types import TracebackType

    from nanoagent.aws.clients import AwsClients

_P = ParamSpec("_P")
_T = TypeVar("_T")


class ServiceCalls:
    """Runs calls of AWS on an event loop in its own thread, which owns the clients.

    So the calls of all event loops share the clients. To make a client takes far more CPU time than a call. A
    context manager: calls are possible only inside it.

    Args:
        make: Makes the clients.
    """

    def __init__(self, make: Callable[[], AwsClients]) -> None:
        self._make = make
        self._running = ExitStack()

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._running.callback(self._loop.close)
        thread = threading.Thread(target=self._loop.run_forever, name="aws-calls", daemon=True)
        thread.start()
        self._running.callback(thread.join)
        self._running.callback(self._loop.call_soon_threadsafe, self._loop.stop)
        self.clients = self._make()
        self._running.callback(lambda: self._submit(self.clients.close()).result())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()

    async def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine that uses `clients`; may be called from any event loop."""
        return await asyncio.wrap_future(self._submit(work))

    def _submit(self, work: Coroutine[Any, Any, _T]) -> Future[_T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)


def with_shared_clients(
    method: Callable[_P, Coroutine[Any, Any, _T]],
) -> Callable[_P, Coroutine[Any, Any, _T]]:
    """Run a method of an object with `_calls` on the loop of these calls."""

    @wraps(method)
    async def call(*arguments: _P.args, **options: _P.kwargs) -> _T:
        caller: Any = arguments[0]
        calls: ServiceCalls = caller._calls  # noqa: SLF001 - the methods are of this package
        return await calls.run(method(*arguments, **options))

    return call
