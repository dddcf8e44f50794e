"""Reads the ignore file of a folder, and compiles it to patterns that match in bounded time.

The folder may be from another person. So its ignore file is untrusted: it must not make `send` hang, and its
lines are escaped before they are printed.
"""

from __future__ import annotations

import codecs
import re
import stat
from typing import TYPE_CHECKING, AnyStr, Final

from pathspec import GitIgnoreSpec
from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

from nanoagent.model.errors import InvalidCall, one_line

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

IGNORE_FILE: Final = ".nanoagentignore"

_MAX_BYTES: Final = 64 * 1024
_MAX_STARS: Final = 4  # in one path part
_MAX_ANY_FOLDERS: Final = 3  # path parts `**` in one pattern; each one multiplies the time by the path depth
_UTF16_MARKS: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# In the regular expressions of pathspec, `*` is `[^/]*` and `?` is `[^/]`. Any other `/` ends a path part.
_UNTIL_NEXT_STAR: Final = re.compile(r"\[\^/\]\*((?:\[\^/\](?!\*)|[^/])*?)(?=\[\^/\]\*)")


def read(root: Path) -> list[str]:
    """Return the lines of a folder's ignore file; an empty list if the file does not exist.

    Args:
        root: The folder, resolved.

    Raises:
        InvalidCall: The file is not a regular file of the folder, is too large, or is not text.
    """
    file = root / IGNORE_FILE
    shown = one_line(str(file))
    try:
        file.lstat()
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise InvalidCall([f"{shown}: cannot be read: {exc.strerror}"]) from exc
    try:
        real = file.resolve(strict=True)
        if not real.is_relative_to(root):
            raise InvalidCall([f"{shown}: is a link to a file outside the folder; copy that file"])
        if not stat.S_ISREG(real.stat().st_mode):  # reading a pipe would wait forever
            raise InvalidCall([f"{shown}: is not a regular file"])
        with real.open("rb") as opened:
            content = opened.read(_MAX_BYTES + 1)
    except (OSError, RuntimeError) as exc:  # before Python 3.13 a loop of links raises RuntimeError
        raise InvalidCall([f"{shown}: cannot be read: {getattr(exc, 'strerror', None) or exc}"]) from exc
    if len(content) > _MAX_BYTES:
        raise InvalidCall([f"{shown}: has more than {_MAX_BYTES // 1024} KiB"])
    return _text(content, shown).splitlines()


def compiled(lines: Sequence[str]) -> GitIgnoreSpec:
    """Compile the lines of an ignore file to patterns.

    Raises:
        InvalidCall: A pattern is invalid, or has too many wildcards.
    """
    problems = [
        f"{IGNORE_FILE}, line {number}: {one_line(line)!r}: {problem}"
        for number, line in enumerate(lines, 1)
        if (problem := _problem(line)) is not None
    ]
    if problems:
        raise InvalidCall(problems)
    return spec(lines)


def spec(lines: Sequence[str]) -> GitIgnoreSpec:
    """Compile lines to patterns whose regular expressions do not backtrack."""
    # Not the backend "best": it uses RE2 or Hyperscan if they are installed, and these have no atomic groups.
    return GitIgnoreSpec.from_lines(_BoundedPattern, lines, backend="simple")


def _text(content: bytes, shown: str) -> str:
    """Decode the content. Editors on Windows write UTF-16, or UTF-8 with a byte order mark."""
    encoding = "utf-16" if content.startswith(_UTF16_MARKS) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as exc:
        raise InvalidCall([f"{shown}: is not text in UTF-8; save it as UTF-8"]) from exc
    if "\0" in text:
        raise InvalidCall([f"{shown}: has null characters; save it as UTF-8"])
    return text


def _problem(line: str) -> str | None:
    """Return why a line cannot be used; None if it can."""
    if line.startswith("#"):
        return None
    parts = re.sub(r"\\.", "", line.strip()).removeprefix("!").split("/")
    if parts.count("**") > _MAX_ANY_FOLDERS:
        return f"has more than {_MAX_ANY_FOLDERS} path parts `**`; use fewer"
    if any(part.count("*") > _MAX_STARS for part in parts):
        return f"has more than {_MAX_STARS} `*` in one path part; use fewer"
    try:
        GitIgnoreSpec.from_lines([line])
    except (ValueError, re.error):  # a range such as [z-a] reaches `re`
        return "is not a valid pattern"
    return None


class _BoundedPattern(GitIgnoreSpecPattern):
    """A pattern whose `*` do not backtrack.

    The text between two `*` of a path part has a fixed length. If the text matches at several places, the
    first place is always sufficient. So an atomic group can exclude the other places. Without atomic
    groups, the time for a pattern with n `*` grows with the n-th power of the name's length.
    """

    @classmethod
    def pattern_to_regex(cls, pattern: AnyStr) -> tuple[AnyStr | None, bool | None]:
        """Return the regular expression of a pattern, and whether matching paths are left out."""
        regex, leaves_out = super().pattern_to_regex(pattern)
        if isinstance(regex, str):
            regex = _UNTIL_NEXT_STAR.sub(lambda found: f"(?>[^/]*?{found[1]})", regex)
        return regex, leaves_out
