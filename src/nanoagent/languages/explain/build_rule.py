"""A rule for failed builds."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from nanoagent.model.cause import Cause, Hint

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Collection

    from nanoagent.model.text import Text


class BuildRule(NamedTuple):
    """A pattern in the messages of a build, and its hint.

    Attributes:
        pattern: The pattern. All repetitions are bounded.
        hint: Takes the match and the names of the files. Returns None if the files show another cause.
    """

    pattern: re.Pattern[str]
    hint: Callable[[re.Match[str], Collection[str]], Hint | None]


def always(cause: Cause, text: Text) -> Callable[[re.Match[str], Collection[str]], Hint]:
    """Return a rule's hint that only inserts the pattern's named groups into the text."""
    return lambda match, _: Hint(cause, text.format(**match.groupdict()))
