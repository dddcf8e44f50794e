"""Programs that succeeded, printed nothing and wrote no output file."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from nanoagent.languages.explain.limits import HOW_TO_FLUSH
from nanoagent.languages.recipes import RECIPES
from nanoagent.model.cause import Cause, Hint
from nanoagent.model.job import Runtime
from nanoagent.model.text import Text

if TYPE_CHECKING:
    from nanoagent.languages.explain.facts import Facts
    from nanoagent.languages.explain.rule import Rule

_NEVER_CALLED: Final = Text(
    "The program printed nothing. {entry} defines {name}, but nothing calls it: {entry} runs as a program,"
    " from top to bottom. Read the input from the environment variable PAYLOAD (JSON) or from standard"
    " input, call {name} with it, and print its result.",
    "프로그램이 아무것도 출력하지 않았습니다. {entry}에 {name}이(가) 정의되어 있지만 호출하는 곳이 없습니다."
    " {entry}는 프로그램으로 처음부터 끝까지 실행됩니다. 입력은 환경 변수 PAYLOAD(JSON)나 표준 입력에서 읽어"
    " {name}에 넘기고, 결과를 출력하세요.",
)
_LOST: Final = Text(
    "stdout is empty, because {name} ends the program without flushing its output. {how}",
    "{name}은(는) 출력을 flush하지 않고 프로그램을 끝내므로 stdout이 비어 있습니다. {how}",
)
_WRITER: Final = Text(
    "stdout is empty, because a bufio.Writer was not flushed. Call Flush before main returns: defer"
    " w.Flush().",
    "bufio.Writer를 flush하지 않아서 stdout이 비어 있습니다. main이 끝나기 전에 Flush를 호출하세요:"
    " defer w.Flush().",
)
_HANDLERS: Final = {
    Runtime.PYTHON: re.compile(r"^(?:async )?def (?P<name>lambda_handler|handler|main)\(", re.MULTILINE),
    Runtime.NODEJS: re.compile(
        r"^(?:module\.)?exports\.(?P<name>handler) ?=|^module\.exports ?= ?\{ ?(?=handler\b)"
        r"|^export (?:const handler ?=|(?:async )?function handler\()",
        re.MULTILINE,
    ),
}
_EXITS: Final = {
    Runtime.PYTHON: (
        re.compile(r"^(?![ \t]*#)[^\n]{0,200}\bos\._exit\(", re.MULTILINE),
        "print(",
        "os._exit",
    ),
    Runtime.CPP: (re.compile(r"^(?![ \t]*//)[^\n]{0,200}\b_(?:e|E)xit\(", re.MULTILINE), "cout", "_exit"),
}
_FLUSHES: Final = re.compile(r"\.flush\(\)|flush=True|fflush|std::endl|std::flush|<< ?endl|reconfigure\(")


def _never_called(facts: Facts) -> Hint | None:
    pattern, source = _HANDLERS.get(facts.runtime), facts.tree.source
    found = pattern.search(source) if pattern is not None else None
    if found is None:
        return None
    name = found["name"] or "handler"
    # Any other mention may be a call, a thread's target or a registration.
    mentions = len(re.findall(rf"\b{name}\b", source))
    own = 1 + len(re.findall(rf"module\.exports ?= ?\{{ ?{name}\b", source))
    if mentions > own:
        return None
    return Hint(Cause.NEVER_CALLED, _NEVER_CALLED.format(entry=RECIPES[facts.runtime].entry, name=name))


def _ends_without_flushing(facts: Facts) -> Hint | None:
    pattern, prints, name = _EXITS.get(facts.runtime, (None, "", ""))
    source = facts.tree.source
    if pattern is None or prints not in source or _FLUSHES.search(source) or not pattern.search(source):
        return None
    return Hint(Cause.NOT_FLUSHED, _LOST.format(name=name, how=HOW_TO_FLUSH[facts.runtime]))


def _writer_not_flushed(facts: Facts) -> Hint | None:
    source = facts.tree.source
    if facts.runtime is not Runtime.GO or "bufio.NewWriter" not in source or ".Flush()" in source:
        return None
    return (
        Hint(Cause.NOT_FLUSHED, _WRITER)
        if re.search(r"bufio\.NewWriter(?:Size)?\(os\.Stdout\b", source)
        else None
    )


RULES: Final[tuple[Rule, ...]] = (_never_called, _ends_without_flushing, _writer_not_flushed)
