"""Finds the language of the shell. Local commands request their results in this language."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nanoagent.model.text import Locale

VARIABLES: Final = ("LC_ALL", "LC_MESSAGES", "LANG")
"""The variables, in the order of priority of POSIX (Base Definitions, 8.2). An empty one counts as unset."""

_KOREAN: Final = re.compile(r"ko(rean)?([_.@-]|$)", re.IGNORECASE)


class Language(NamedTuple):
    """A language of results, and its source.

    Attributes:
        locale: The value of the message's field `locale`.
        source: The variable and its value, for messages.
    """

    locale: Locale
    source: str

    @property
    def name(self) -> str:
        """The English name of the language."""
        return "Korean" if self.locale == "ko" else "English"


def of_shell(environment: Mapping[str, str]) -> Language:
    """Return the language of the shell: Korean, or English for all others."""
    for name in VARIABLES:
        if value := environment.get(name):
            return Language("ko" if _KOREAN.match(value) else "en", f"{name}={value}")
    return Language("en", f"{', '.join(VARIABLES[:-1])} and {VARIABLES[-1]} are unset")
