"""Finds the hint for a failed build, from the messages of compiler and linker, and the names of the files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nanoagent.languages.explain import cpp_build, go_build
from nanoagent.model.job import Runtime

if TYPE_CHECKING:
    from collections.abc import Collection

    from nanoagent.languages.explain.build_rule import BuildRule
    from nanoagent.model.cause import Hint

_READ_CHARACTERS: Final = 64 * 1024
_RULES: Final[dict[Runtime, tuple[BuildRule, ...]]] = {
    Runtime.CPP: cpp_build.RULES,
    Runtime.GO: go_build.RULES,
}


def explain_build(runtime: Runtime, messages: str, files: Collection[str]) -> Hint | None:
    """Return the hint of the first rule that matches the messages.

    Args:
        runtime: The language of the code.
        messages: The messages of the compiler or linker. They may be hostile input.
        files: Paths of the code's files, relative to its root.

    Returns:
        None if no rule matches.
    """
    text = messages[:_READ_CHARACTERS]
    for rule in _RULES.get(runtime, ()):
        match = rule.pattern.search(text)
        hint = rule.hint(match, files) if match else None
        if hint is not None:
            return hint
    return None
