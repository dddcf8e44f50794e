"""Which rules apply to which ending, in which order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nanoagent.languages.explain import common, cpp, go, limits, native, network, nodejs, python, silence
from nanoagent.languages.explain.rule import first
from nanoagent.model import payload
from nanoagent.model.cause import Cause, Hint
from nanoagent.model.job import Runtime
from nanoagent.model.result import OUTCOMES, ErrorType
from nanoagent.model.text import Text

if TYPE_CHECKING:
    from nanoagent.languages.explain.facts import Facts
    from nanoagent.languages.explain.rule import Rule

_BOTH: Final = Text("{first} {second}", "{first} {second}")
_NOTHING_PRINTED: Final = Text(
    "The program ended by itself with exit code {code} and printed nothing to stderr. Print the reason to"
    " stderr before the program exits.",
    "프로그램이 종료 코드 {code}(으)로 스스로 끝났고 stderr에 아무것도 출력하지 않았습니다."
    " 끝나기 전에 이유를 stderr에 출력하세요.",
)


def _payload_left_out(facts: Facts) -> Hint | None:
    """The program reads the variable PAYLOAD, which is left out because the input is too large."""
    if facts.payload_fits:
        return None
    text = payload.left_out_hint(facts.payload_bytes, facts.tail, facts.line, facts.tree.source)
    return None if text is None else Hint(Cause.PAYLOAD_TOO_LARGE, text)


def _nothing_printed(facts: Facts) -> Hint | None:
    if facts.error_type is not ErrorType.USER_ERROR or facts.stderr.strip():
        return None
    return Hint(Cause.NOTHING_PRINTED, _NOTHING_PRINTED.format(code=facts.exit_code))


_SHARED: Final[tuple[Rule, ...]] = (*native.RULES, *network.RULES, *common.RULES)
_LANGUAGES: Final[dict[Runtime, tuple[Rule, ...]]] = {
    Runtime.PYTHON: python.RULES,
    Runtime.NODEJS: nodejs.RULES,
    Runtime.CPP: cpp.RULES,
    Runtime.GO: go.RULES,
}
_BY_ITSELF: Final[dict[Runtime, tuple[Rule, ...]]] = {
    runtime: (_payload_left_out, *rules, *_SHARED, _nothing_printed) for runtime, rules in _LANGUAGES.items()
}


def explain(facts: Facts) -> Hint | None:
    """Return the hint for a run, or None if the facts do not prove a cause.

    The rules of the table are tried in order; the first one that applies gives the hint.

    Args:
        facts: The facts about the run. A run that succeeded must have printed nothing and written no file.
    """
    if facts.error_type is None:
        return first(silence.RULES, facts)
    if facts.ended_by_itself:
        return first(_BY_ITSELF[facts.runtime], facts)
    return first(limits.RULES.get(facts.error_type, ()), facts)


def advice_for(facts: Facts) -> tuple[Cause | None, Text | None]:
    """Return the cause of a failure and the whole advice of a result.

    The advice is the hint, or else the default hint of the outcome table. For a killed program without
    output, advice to flush follows.
    """
    hint = explain(facts)
    cause = None if hint is None else hint.cause
    text = OUTCOMES[facts.error_type].hint if hint is None else hint.text
    lost = limits.lost_output(facts)
    if lost is not None:
        text = lost if text is None else _BOTH.format(first=text, second=lost)
    return cause, text
