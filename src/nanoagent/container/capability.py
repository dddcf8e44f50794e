"""Makes the worker's one capability effective only while the worker opens files of control groups.

These files belong to root. If the worker is an ordinary user, the operator may give it CAP_DAC_OVERRIDE, so
that it can write these files (docs/adr/0015). With this capability, the worker could also open all other
files of the host. So the capability is permitted but not effective. Only the thread of the event loop makes
it effective, while it opens a file of a control group.

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
    """Make all capabilities ineffective, in this thread and in the threads that it starts later.

    Nothing changes if the worker is root, which needs its capabilities.
    """
    words = _get()
    if os.geteuid() == 0 or not any(word.effective for word in words):
        return
    for word in words:
        word.effective = 0
    _set(words)


@contextmanager
def raised() -> Iterator[None]:
    """Make the capability effective in this thread while the block runs, if it is permitted.

    The block must not await: other tasks of the loop would have the capability, too.
    """
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
    """Return the capabilities of this thread."""
    words = _Words()
    _call(_libc.capget, words)
    return words


def _set(words: ctypes.Array[_Word]) -> None:
    _call(_libc.capset, words)


def _call(function: ctypes._FuncPointer, words: ctypes.Array[_Word]) -> None:
    if function(ctypes.byref(_Header(_VERSION, 0)), words):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
