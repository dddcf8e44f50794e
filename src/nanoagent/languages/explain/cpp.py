"""Errors of C++ programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nanoagent.languages.explain import common
from nanoagent.languages.explain.rule import in_message
from nanoagent.languages.explain.texts import ALLOCATION
from nanoagent.model.cause import Cause, Hint

if TYPE_CHECKING:
    from nanoagent.languages.explain.rule import Rule

RULES: Final[tuple[Rule, ...]] = (
    in_message(
        r"instance of 'std::bad_(?:alloc|array_new_length)'",
        lambda _, facts: Hint(Cause.ALLOCATION_TOO_LARGE, ALLOCATION.format(memory_mb=facts.memory_mb)),
    ),
    in_message(r"locale::facet::_S_create_c_locale name not valid", (Cause.LOCALE_MISSING, common.LOCALE)),
)
