"""Telling systemd how the service is: the protocol of sd_notify(3), without its library."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Final

_USEC: Final = 1_000_000


def notify(state: str) -> None:
    """Tell the service manager, if there is one, and ignore that it does not listen.

    Args:
        state: Assignments as in sd_notify(3), a line each: `READY=1`, `STOPPING=1`, `WATCHDOG=1`,
            `STATUS=...`.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket, unix(7)
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(state.encode(), address)


def extend_start(seconds: float) -> None:
    """Ask for that much more time, because the start takes long."""
    notify(f"EXTEND_TIMEOUT_USEC={int(seconds * _USEC)}")


def stopping(seconds: float) -> None:
    """Say that the stop has begun, and ask for that much time, whatever TimeoutStopSec says."""
    notify(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int(seconds * _USEC)}")


def watchdog_interval_s() -> float | None:
    """How often `WATCHDOG=1` should be sent, seconds; None when no watchdog waits for this process.

    Half the service's `WatchdogSec`, as sd_watchdog_enabled(3) recommends.
    """
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    if not (microseconds.isascii() and microseconds.isdigit() and int(microseconds) > 0):
        return None
    return int(microseconds) / _USEC / 2
