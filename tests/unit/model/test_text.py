from __future__ import annotations

import pytest

from nanoagent.model.text import Text, as_text

GREETING = Text("hello {name}, {times} times", "{name}님, {times}번 안녕하세요")


@pytest.mark.parametrize(
    ("locale", "said"),
    [("en", "hello Kim, 2 times"), ("ko", "Kim님, 2번 안녕하세요"), ("fr", "hello Kim, 2 times")],
)
def test_a_text_is_said_in_the_language_that_is_asked_for_else_in_english(locale: str, said: str):
    assert GREETING.format(name="Kim", times=2).in_(locale) == said


def test_a_text_within_a_text_is_said_in_the_language_of_the_whole():
    whole = Text("{why}; try again", "{why}. 다시 시도하세요").format(why=Text("it is full", "가득 찼습니다"))
    assert whole == Text("it is full; try again", "가득 찼습니다. 다시 시도하세요")


def test_logs_see_the_english_sentence():
    assert str(Text("it is full", "가득 찼습니다")) == "it is full"


def test_braces_of_a_program_s_own_words_are_no_fields():
    assert (
        Text("{said}", "{said}").format(said=Text.verbatim("KeyError: '{x}'")).in_("ko") == "KeyError: '{x}'"
    )


def test_a_plain_string_is_the_same_in_every_language():
    assert as_text("ValueError: x") == Text("ValueError: x", "ValueError: x")
