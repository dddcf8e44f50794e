"""Notifies systemd with the protocol of sd_notify(3), without its library."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Final

_USEC: Final = 1_000_000


def notify(state: str) -> None:
    """Notify the service manager, if one started this process. Errors are ignored.

    Args:
        state: Assignments of sd_notify(3), one per line: `READY=1`, `STOPPING=1`, `WATCHDOG=1`, `STATUS=...`.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket, unix(7)
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(state.encode(), address)


def extend_start(seconds: float) -> None:
    """Ask systemd for more time for the start of this process, in seconds."""
    notify(f"EXTEND_TIMEOUT_USEC={int(seconds * _USEC)}")


def stopping(seconds: float) -> None:
    """Notify systemd that the stop has begun, and ask for time for it.

    Args:
        seconds: The time. It may be longer than the service's TimeoutStopSec.
    """
    notify(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int(seconds * _USEC)}")


def watchdog_interval_s() -> float | None:
    """Return the interval for `WATCHDOG=1`, seconds; None if systemd has no watchdog for this process.

    It is half of `WatchdogSec`, as sd_watchdog_enabled(3) recommends.
    """
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    if not (microseconds.isascii() and microseconds.isdigit() and int(microseconds) > 0):
        return None
    return int(microseconds) / _USEC / 2
