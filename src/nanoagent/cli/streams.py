"""Standard output and standard error that outlive their reader."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TextIO, cast


class _PipeTolerantStream:
    """A text stream that discards its output after the reader has closed the pipe.

    A closed pipe is not a failure of the command: the command continues, and ends with its own exit code. For
    example, `nanoagent send X` in `nanoagent send X | head -1` still ends with the exit code for the job.

    Args:
        stream: Standard output or standard error.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text, or discard it."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._discard()
            return len(text)

    def flush(self) -> None:
        """Write the buffered text, or discard it."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._discard()

    def _discard(self) -> None:
        """Point the descriptor to /dev/null. Otherwise each flush of the buffered text would fail again."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def tolerant(stream: TextIO | None) -> TextIO:
    """Wrap a stream once. The stream is None if its descriptor was closed before the start."""
    if stream is None:
        stream = Path(os.devnull).open("w")  # noqa: SIM115 - stays open until the process ends
    return stream if isinstance(stream, _PipeTolerantStream) else cast("TextIO", _PipeTolerantStream(stream))
