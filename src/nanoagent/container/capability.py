"""The one capability that an agent may have, used for the one thing that wants it.

The files of containers' control groups are root's. An agent that runs as an ordinary user may be given
CAP_DAC_OVERRIDE to write them (docs/adr/0015), and then could open every other file of the host as well.
So it keeps the capability lowered: permitted, but not in effect, in none of its threads, except in the
loop's own while it opens one of these files.

Sources: capabilities(7), capget(2).
"""

from __future__ import annotations

import ctypes
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_VERSION: Final = 0x20080522  # _LINUX_CAPABILITY_VERSION_3: two words of 32 bits each
_DAC_OVERRIDE: Final = 1 << 1

_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Word(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


_Words = _Word * 2


def lower() -> None:
    """Take every capability out of effect; called before there are threads, which then never have any.

    Root is left alone: it owns what it opens, and what it does not own it may open for a reason.
    """
    words = _get()
    if os.geteuid() == 0 or not any(word.effective for word in words):
        return
    for word in words:
        word.effective = 0
    _set(words)


@contextmanager
def raised() -> Iterator[None]:
    """Have the capability in effect in this thread, if it is kept; nothing may await inside."""
    words = _get()
    if words[0].effective & _DAC_OVERRIDE or not words[0].permitted & _DAC_OVERRIDE:
        yield
        return
    words[0].effective |= _DAC_OVERRIDE
    _set(words)
    try:
        yield
    finally:
        words[0].effective &= ~_DAC_OVERRIDE
        _set(words)


def _get() -> ctypes.Array[_Word]:
    """This thread's capabilities."""
    words = _Words()
    _call(_libc.capget, words)
    return words


def _set(words: ctypes.Array[_Word]) -> None:
    _call(_libc.capset, words)


def _call(function: ctypes._FuncPointer, words: ctypes.Array[_Word]) -> None:
    if function(ctypes.byref(_Header(_VERSION, 0)), words):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
