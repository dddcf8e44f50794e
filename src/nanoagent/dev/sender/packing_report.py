"""Says which files were packed, and which were left out."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final

from nanoagent.dev.sender import package
from nanoagent.dev.sender.ignorefile import IGNORE_FILE
from nanoagent.dev.sender.selection import Reason
from nanoagent.model.errors import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nanoagent.dev.sender.package import Package

_SHOWN_PATHS: Final = 10
_SHOWN_IN_FULL: Final = (Reason.OUTSIDE, Reason.SECRET_OUTSIDE)
_ADVICE: Final = {
    Reason.SECRET: f"To send one, add !NAME to {IGNORE_FILE}.",
    Reason.OUTSIDE: "To send their targets, use --follow-outside-links.",
    Reason.SECRET_OUTSIDE: "To send one, copy it into the folder.",
}


def lines(path: Path, code: Package, command: str) -> Iterator[str]:
    """Yield the lines of the report.

    Args:
        path: The path of the code.
        code: The packed code.
        command: The command, `send` or `deploy`.
    """
    sizes = f"{package.shown_size(code.unpacked_bytes)} ({package.shown_size(code.zip_bytes)} as a zip)"
    alone = f" {sent_alone(path, command)}" if package.has_other_sources(path) else ""
    yield f"Packed {code.files} file{'s' * (code.files != 1)}, {sizes}.{alone}"
    for reason, paths in package.by_reason(code.left_out).items():
        shown = len(paths) if reason in _SHOWN_IN_FULL else _SHOWN_PATHS
        names = ", ".join(one_line(path) for path in paths[:shown])
        more = f" and {len(paths) - shown} more" if len(paths) > shown else ""
        advice = f" {_ADVICE[reason]}" if reason in _ADVICE else ""
        yield f"Left out {len(paths)} ({reason}): {names}{more}.{advice}"
    yield from code.notices


def sent_alone(path: Path, command: str) -> str:
    """Return the sentence about a source file whose folder has other sources."""
    folder = shlex.quote(str(path.parent))
    entry = package.entry_of(path)
    needs = "" if (path.parent / entry).is_file() else f" (it needs a {entry})"
    return f"Only {one_line(path.name)} is sent; `nanoagent {command} {folder}` sends the folder{needs}."
