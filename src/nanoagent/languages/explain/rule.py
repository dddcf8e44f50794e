"""A rule, and helpers to write one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, TypeAlias

from nanoagent.model.cause import Cause, Hint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nanoagent.languages.explain.facts import Facts
    from nanoagent.model.text import Text

    Rule: TypeAlias = Callable[[Facts], Hint | None]
    FromMatch: TypeAlias = Callable[[re.Match[str], Facts], Hint | None]

_COMMAND_FAILED: Final = re.compile(
    r"CalledProcessError|Command failed|exit status \d|the program exited with"
)
_MOST_MARKS: Final = 3
_MATCH_CHARACTERS: Final = 500
CODE_FOLDER: Final = "/work"


def in_message(pattern: str, hint: FromMatch | tuple[Cause, Text], *, flags: int = 0) -> Rule:
    """Return a rule that searches the error's first line.

    Args:
        pattern: A regular expression. It begins with a fixed word, and all repetitions are bounded.
        hint: Makes the hint of a match, or returns None if the rule does not apply. A cause with a text is
            the hint itself; the fields of the text are the named groups of the pattern.
        flags: The flags of the expression.
    """
    compiled, make = re.compile(pattern, flags), _maker(hint)

    def rule(facts: Facts) -> Hint | None:
        found = compiled.search(facts.line)
        return None if found is None else make(found, facts)

    return rule


def in_error(
    pattern: str,
    hint: FromMatch | tuple[Cause, Text],
    *,
    marks: tuple[str, ...] = (),
    of_children: bool = False,
    flags: int = 0,
) -> Rule:
    """Return a rule that searches the error's first line, and then the whole error (`Facts.block`).

    Use it for errors whose first line may not contain the cause.

    Args:
        pattern: See `in_message`.
        hint: See `in_message`.
        marks: Texts, of which each match has at least one. Only the surroundings of the first marks are
            searched: to search a text for a word is a hundred times as fast as to search it for a pattern.
        of_children: Whether to search everything that was printed, if the program failed because a command
            that it started has failed. The command has printed its error above that of the program.
        flags: See `in_message`.
    """
    compiled, make = re.compile(pattern, flags), _maker(hint)

    def rule(facts: Facts) -> Hint | None:
        everything = of_children and _COMMAND_FAILED.search(facts.line)
        for text in (facts.line, facts.tail if everything else facts.block):
            for part in _around(marks, text) if marks else (text,):
                found = compiled.search(part)
                if found is not None:
                    return make(found, facts)
        return None

    return rule


def _around(marks: tuple[str, ...], text: str) -> Iterator[str]:
    """Yield the surroundings of the first marks. They are longer than any match."""
    for mark in marks:
        at = -1
        for _ in range(_MOST_MARKS):
            at = text.find(mark, at + 1)
            if at < 0:
                break
            yield text[max(0, at - _MATCH_CHARACTERS) : at + _MATCH_CHARACTERS]


def first(rules: tuple[Rule, ...], facts: Facts) -> Hint | None:
    """Return the hint of the first rule that applies; None if no rule applies."""
    for rule in rules:
        hint = rule(facts)
        if hint is not None:
            return hint
    return None


def _maker(hint: FromMatch | tuple[Cause, Text]) -> FromMatch:
    if not isinstance(hint, tuple):
        return hint
    cause, text = hint
    return lambda found, _: Hint(cause, text.format(**found.groupdict()))
