"""The event loop of a worker's process: uvloop, or that of asyncio where uvloop cannot be imported.

With uvloop, the agent needs about a tenth less CPU time for a job (docs/adr/0028). uvloop has no build for
some platforms.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

_T = TypeVar("_T")


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine in a new event loop, and return its result. Otherwise the same as `asyncio.run`."""
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        return runner.run(main)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop  # noqa: PLC0415 - it may be missing
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
