"""A sentence for the authors of functions, in every language of a result.

A result has one language: the job's `locale`, or the worker's LOCALE. Logs and errors for operators are in
English. `str()` of a text is its English sentence.
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
        """Return a text that is the same in every language: a name, a number, the output of a program."""
        return cls(text, text)

    def format(self, **fields: object) -> Text:
        """Return the text with its fields filled in. For a `Text` as a field, the language is the same."""
        return Text(
            self.en.format(**{name: _in_locale(value, "en") for name, value in fields.items()}),
            self.ko.format(**{name: _in_locale(value, "ko") for name, value in fields.items()}),
        )

    def in_(self, locale: str) -> str:
        """Return the sentence in `locale` (`ko` or `en`)."""
        return self.ko if locale == "ko" else self.en

    def __str__(self) -> str:
        return self.en


def as_text(text: Text | str) -> Text:
    """Return a text; a plain string is the same in every language."""
    return text if isinstance(text, Text) else Text.verbatim(text)


def _in_locale(value: object, locale: Locale) -> object:
    return value.in_(locale) if isinstance(value, Text) else value
