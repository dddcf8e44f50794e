"""Shared by the commands of the benchmarks: the event loop, the interruption, an option and a remark."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from typing import TYPE_CHECKING, Any, Final, TypeVar

from nanoagent.host import event_loop

if TYPE_CHECKING:
    from collections.abc import Coroutine

_QUIET_LOAD: Final = 0.7  # load average of the last minute; an install or a build leaves a higher one
_INTERRUPTED: Final = 130  # exit code

_T = TypeVar("_T")


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """Run a benchmark in the event loop of a worker. SIGTERM ends it like Ctrl-C.

    In both cases the benchmark removes its containers and files, and this process exits with code 130.
    """
    try:
        return event_loop.run(_interruptible(main))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted; all containers, processes and files have been removed", file=sys.stderr)
        sys.exit(_INTERRUPTED)


async def _interruptible(main: Coroutine[Any, Any, _T]) -> _T:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await main


def positive_seconds(text: str) -> float:
    """Parse the value of `--seconds`.

    Raises:
        ArgumentTypeError: It is not a positive number.
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return seconds


def remarks_on_load(load: float) -> list[str]:
    """Return a sentence for readers if the machine was busy before the benchmark.

    Args:
        load: The load average of the last minute.
    """
    if load <= _QUIET_LOAD:
        return []
    return [f"the machine was busy before (load average {load:.1f}): another run may differ"]
