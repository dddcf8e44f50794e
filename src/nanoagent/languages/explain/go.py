"""Errors of Go programs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from nanoagent.languages.explain.rule import in_error, in_message
from nanoagent.languages.explain.texts import ARGUMENTS, RECURSION
from nanoagent.model.cause import Cause, Hint
from nanoagent.model.text import Text

if TYPE_CHECKING:
    from nanoagent.languages.explain.facts import Facts
    from nanoagent.languages.explain.rule import Rule

_DEADLOCK: Final = Text(
    "Every goroutine waits for another one. stderr names the line and the operation: a channel that nobody"
    " sends to"
    " or receives from, a WaitGroup without Done, or a Mutex that is locked twice.",
    "모든 고루틴이 서로를 기다립니다. stderr에 줄과 동작이 있습니다. 아무도 보내거나 받지 않는 채널,"
    " Done이 없는 WaitGroup, 두 번 잠근 Mutex 중 하나입니다.",
)
_NIL_MAP: Final = Text(
    "The map is nil: it was declared, but not made. Create it before you assign: m := make(map[string]int).",
    "맵이 nil입니다. 선언만 하고 만들지 않았습니다. 값을 넣기 전에 m := make(map[string]int)처럼 만드세요.",
)
_LINE: Final = re.compile(r"main\.go:(?P<line>\d{1,6})")


def _arguments(_: re.Match[str], facts: Facts) -> Hint | None:
    """An index out of range: only if the line of the program's topmost frame reads os.Args."""
    found = _LINE.search(facts.block)
    lines = facts.tree.source.split("\n")
    if found is None or int(found["line"]) > len(lines) or "os.Args[" not in lines[int(found["line"]) - 1]:
        return None
    return Hint(Cause.NO_ARGUMENTS, ARGUMENTS)


RULES: Final[tuple[Rule, ...]] = (
    in_message(r"fatal error: all goroutines are asleep - deadlock!", (Cause.DEADLOCK, _DEADLOCK)),
    in_message(r"assignment to entry in nil map", (Cause.NIL_MAP, _NIL_MAP)),
    in_error(
        r"goroutine stack exceeds \d{1,20}-byte limit|fatal error: stack overflow",
        (Cause.RECURSION, RECURSION),
    ),
    in_message(r"runtime error: index out of range|runtime error: slice bounds out of range", _arguments),
)
