"""A sentence for the authors of functions, in every language of a result.

A result has one language: the job's `locale`, or the worker's LOCALE. Logs and errors for operators are
English; `str()` of a text is its English sentence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

Locale: TypeAlias = Literal["ko", "en"]
"""The languages of a result."""

LOCALES: Final[tuple[Locale, ...]] = get_args(Locale)


@dataclass(frozen=True, slots=True)
class Text:
    """One sentence in English and Korean.

    Attributes:
        en: The English sentence; a `str.format` template where `format` is called.
        ko: The Korean sentence, with the same fields.
    """

    en: str
    ko: str

    @classmethod
    def verbatim(cls, text: str) -> Text:
        """The text of a program, a name or a number: the same in every language."""
        return cls(text, text)

    def format(self, **fields: object) -> Text:
        """Fill the fields in. A field that is a `Text` appears in the language of the sentence."""
        return Text(
            self.en.format(**{name: _said(value, "en") for name, value in fields.items()}),
            self.ko.format(**{name: _said(value, "ko") for name, value in fields.items()}),
        )

    def in_(self, locale: str) -> str:
        """The sentence in `locale` (`ko` or `en`)."""
        return self.ko if locale == "ko" else self.en

    def __str__(self) -> str:
        return self.en


def as_text(text: Text | str) -> Text:
    """A plain string counts as verbatim."""
    return text if isinstance(text, Text) else Text.verbatim(text)


def _said(value: object, locale: Locale) -> object:
    return value.in_(locale) if isinstance(value, Text) else value
