"""The table of refusals: each has a message and advice, in both languages, that belong together."""

from __future__ import annotations

import string

import pytest

from nanoagent.code import refusals
from nanoagent.code.refusals import RULES, refused
from nanoagent.model.result import ErrorType
from nanoagent.model.text import LOCALES
from support.checks.archives import check_refusal

FIELDS = {
    "name": "a/b.py",
    "other": "c",
    "target": "../d",
    "detail": "Bad magic number",
    "limit": 9,
    "limit_mb": 250.0,
    "size": 12345,
    "method": 12,
}


def test_every_rule_is_in_the_table() -> None:
    assert len(RULES) > 30
    assert RULES["ABSOLUTE"] is refusals.ABSOLUTE


@pytest.mark.parametrize("name", RULES)
def test_a_rule_says_the_same_in_both_languages(name: str) -> None:
    rule = RULES[name]
    fields = [
        {field for _, field, _, _ in string.Formatter().parse(text) if field}
        for text in (rule.message.en, rule.message.ko)
    ]

    assert fields[0] == fields[1]
    refusal = refused(rule, **FIELDS)
    check_refusal(refusal)
    assert refusal.error_type is ErrorType.INVALID_CODE
    for locale in LOCALES:
        assert "{" not in refusal.message.in_(locale)
        assert "{" not in rule.hint.in_(locale)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_about_the_whole_zip_names_no_entry(name: str) -> None:
    message = str(refused(RULES[name], **FIELDS).message)

    about_entry = message.startswith("the code zip's entry 'a/b.py' ")
    assert about_entry or (message.startswith("the code zip ") and "a/b.py" not in message)
    assert about_entry != (
        name
        in {
            "ZIP_TOO_LARGE",
            "NOT_A_ZIP",
            "EMPTY",
            "TOO_MANY_ENTRIES",
            "UNPACKED_TOO_LARGE",
            "DIRECTORY_TOO_LARGE",
        }
    )


def test_no_advice_is_the_same_for_everything() -> None:
    hints = {rule.hint for rule in RULES.values()}

    assert len(hints) > 15
    assert not any("main.py" in hint.en for hint in hints), "the advice of a missing entry file"


def test_a_limit_names_its_setting_in_message_and_advice() -> None:
    limited = [rule for rule in RULES.values() if "CODE_MAX_" in rule.message.en]

    assert len(limited) == 4
    for rule in limited:
        setting = rule.message.en.partition("(")[2].partition(")")[0]
        assert setting in rule.hint.en
        assert setting in rule.hint.ko


def test_a_name_is_escaped_and_cut() -> None:
    message = str(refused(refusals.ABSOLUTE, name="/\x1b[31m" + "n" * 9000).message)

    assert message.isprintable()
    assert len(message) < 200
