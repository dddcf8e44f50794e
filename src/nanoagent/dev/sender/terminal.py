"""Makes the output of functions safe for a terminal."""

from __future__ import annotations

from typing import Final

_KEPT: Final = "\n\t"


def clean(text: str) -> str:
    """Return an untrusted text with escapes instead of control characters. Line breaks and tabs are kept.

    Otherwise the text could control the terminal of its reader.
    """
    return "".join(
        character
        if character.isprintable() or character in _KEPT
        else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )
