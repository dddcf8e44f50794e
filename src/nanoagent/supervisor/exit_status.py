"""Reads the exit code and the signal from a wait status of waitpid(2)."""

from __future__ import annotations

import os
import signal


def exit_code_of(wait_status: int) -> int:
    """Return the contract's exit code: the program's exit code, or 128 + the signal that killed it."""
    code = os.waitstatus_to_exitcode(wait_status & 0xFFFF)
    return code if code >= 0 else 128 - code


def signal_of(wait_status: int) -> signal.Signals | None:
    """Return the signal that killed the program; None if it exited by itself."""
    if not os.WIFSIGNALED(wait_status & 0xFFFF):
        return None
    try:
        return signal.Signals(os.WTERMSIG(wait_status & 0xFFFF))
    except ValueError:  # Python has no names for most real-time signals
        return signal.SIGRTMIN
