"""Every sentence of ours in a result exists in both languages: the source is read for all of them."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Final

import pytest

import nanoagent
from nanoagent.jobs import tuner
from nanoagent.model.result import OUTCOMES
from nanoagent.model.text import LOCALES, Text

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE: Final = Path(nanoagent.__file__).parent
HANGUL: Final = re.compile("[가-힣]")
# What takes a sentence for a result: a plain string there would be English in every result.
TAKE_TEXT: Final = {
    "Rejected": ("error_type", "message", "hint", "stderr"),
    "CachedRejection": ("error_type", "message", "hint", "stderr"),
    "Exhausted": ("sender_message",),
    "Failed": ("detail", "sender_message"),
    "OutputError": ("path", "reason"),
    "Refusal": ("path", "reason"),
}
SENTENCES: Final = {"message", "hint", "sender_message", "reason"}


def sources() -> Iterator[tuple[str, str]]:
    for path in sorted(SOURCE.rglob("*.py")):
        if not {"programs", "templates"} & set(path.parts):  # these run in containers
            yield str(path.relative_to(SOURCE)), path.read_text()


def modules() -> Iterator[tuple[str, ast.Module]]:
    for name, text in sources():
        yield name, ast.parse(text)


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id, node


def imports_our_text(tree: ast.Module) -> bool:
    return any(
        isinstance(node, ast.ImportFrom)
        and node.module == "nanoagent.model.text"
        and any(name.name == "Text" for name in node.names)
        for node in ast.walk(tree)
    )


def literal(node: ast.expr) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def texts() -> Iterator[tuple[str, str, str]]:
    """Every `Text("…", "…")` of the source, with its place."""
    for name, text in sources():
        # Each test process collects this module; to parse every file takes longer than all of its tests.
        if "Text" not in text or not imports_our_text(tree := ast.parse(text)):
            continue
        for called, call in calls(tree):
            if called == "Text" and len(call.args) == 2:
                english, korean = (literal(argument) for argument in call.args)
                if english is not None and korean is not None:
                    yield f"{name}:{call.lineno}", english, korean


def held_by(value: object, depth: int = 4) -> Iterator[Text]:
    """The texts in a constant of a module: in tables, in rows of tables."""
    if isinstance(value, Text):
        yield value
    elif depth and isinstance(value, Mapping):
        for inner in value.values():
            yield from held_by(inner, depth - 1)
    elif depth and isinstance(value, tuple | list | frozenset):
        for inner in value:
            yield from held_by(inner, depth - 1)
    elif depth and dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from held_by(getattr(value, field.name, None), depth - 1)


def constants() -> Iterator[tuple[str, str, str]]:
    """Every text that a module or a class of it holds, also those that a function has composed."""
    for name, _ in sources():
        dotted = "nanoagent." + name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        if dotted.endswith("__main__"):
            continue
        for constant, value in vars(importlib.import_module(dotted)).items():
            attributes = vars(value).values() if isinstance(value, type) else [value]
            for attribute in attributes:
                for text in held_by(attribute):
                    if text.en != text.ko:
                        yield f"{name}:{constant}", text.en, text.ko


ALL_TEXTS: Final = [*texts(), *constants()]


def fields_of(template: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(template) if name is not None}


def words_of(template: str) -> str:
    return "".join(literal for literal, _, _, _ in Formatter().parse(template))


def test_the_source_has_texts_in_every_part_that_speaks_to_authors():
    found = {place.split(":")[0] for place, _, _ in ALL_TEXTS}
    assert {
        "code/code_cache.py",
        "container/judgment.py",
        "model/errors.py",
        "jobs/executor.py",
        "jobs/failure_cache.py",
        "languages/explain/common.py",
        "languages/explain/cpp_build.py",
        "languages/explain/go.py",
        "languages/explain/go_build.py",
        "languages/explain/limits.py",
        "languages/explain/modules.py",
        "languages/explain/native.py",
        "languages/explain/network.py",
        "languages/explain/nodejs.py",
        "languages/explain/python.py",
        "languages/explain/silence.py",
        "languages/explain/table.py",
        "languages/explain/texts.py",
        "model/message.py",
        "model/object_names.py",
        "jobs/output_names.py",
        "jobs/shortening.py",
        "model/payload.py",
        "model/result.py",
        "jobs/builder.py",
        "supervisor/gap.py",
        "supervisor/session.py",
        "supervisor/wire.py",
        "worker/answer.py",
        "worker/conclusion.py",
    } <= found


@pytest.mark.parametrize(("place", "english", "korean"), ALL_TEXTS, ids=[place for place, _, _ in ALL_TEXTS])
def test_a_text_says_the_same_in_both_languages(place: str, english: str, korean: str):
    assert fields_of(english) == fields_of(korean), place
    assert not HANGUL.search(english), place
    if re.search("[A-Za-z]", words_of(english)):
        assert HANGUL.search(words_of(korean)), place


def test_no_sentence_for_a_result_is_a_plain_string():
    plain = set()
    for name, tree in modules():
        for called, call in calls(tree):
            parameters = TAKE_TEXT.get(called, ())
            given = [*zip(parameters, call.args, strict=False), *((k.arg, k.value) for k in call.keywords)]
            for parameter, value in given:
                if parameter in SENTENCES.intersection(parameters) and (
                    literal(value) or isinstance(value, ast.JoinedStr)
                ):
                    plain.add(name)
    assert plain == set()


def test_every_outcome_that_is_published_speaks_both_languages():
    for outcome in OUTCOMES.values():
        if outcome.hint is not None:
            assert isinstance(outcome.hint, Text)
            assert HANGUL.search(outcome.hint.ko)
            assert not HANGUL.search(outcome.hint.en)


def test_the_tuners_advice_speaks_both_languages():
    assert set(tuner._TIPS) == set(tuner._SAVINGS) == set(LOCALES)
    for verdict in tuner.Verdict:
        english, korean = tuner._TIPS["en"][verdict], tuner._TIPS["ko"][verdict]
        assert fields_of(english) == fields_of(korean)
        assert HANGUL.search(korean)
        assert not HANGUL.search(english)
    assert fields_of(tuner._SAVINGS["en"]) == fields_of(tuner._SAVINGS["ko"])
    assert HANGUL.search(tuner._SAVINGS["ko"])
