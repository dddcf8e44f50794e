"""`.env.example` says nothing that the code does not know, and is usable as it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from nanoagent import config

EXAMPLE: Final = Path(__file__).parents[3] / ".env.example"
SDK_VARIABLE: Final = re.compile(r"AWS_[A-Z_]+|DOCKER_HOST")
ENTRY: Final = re.compile(r"(?P<comment>#?)(?P<name>[A-Z][A-Z0-9_]*)=(?P<value>.*)")


def _entries() -> list[re.Match[str]]:
    return [entry for line in EXAMPLE.read_text().splitlines() if (entry := ENTRY.fullmatch(line))]


@pytest.fixture
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in config.Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def test_every_line_is_an_entry_a_comment_or_empty():
    lines = EXAMPLE.read_text().splitlines()
    assert [line for line in lines if line and not ENTRY.fullmatch(line) and not line.startswith("# ")] == []


@pytest.mark.parametrize("entry", _entries(), ids=lambda entry: entry["name"])
def test_every_name_is_a_setting_or_a_variable_of_an_sdk(entry):
    assert entry["name"].lower() in config.Settings.model_fields or SDK_VARIABLE.fullmatch(entry["name"])


def test_no_name_stands_twice():
    names = [entry["name"] for entry in _entries()]
    assert sorted(names) == sorted(set(names))


@pytest.mark.usefixtures("bare_environment")
def test_the_file_as_copied_can_be_loaded():
    settings = config.load(EXAMPLE)
    assert settings.s3_code_bucket == "nanogrid-code"


@pytest.mark.usefixtures("bare_environment")
def test_what_is_commented_out_shows_the_default(tmp_path):
    shown = {entry["name"]: entry["value"] for entry in _entries() if entry["value"]}
    everything = tmp_path / "everything.env"
    everything.write_text("\n".join(f"{name}={value}" for name, value in shown.items()))
    defaults, spelled_out = config.load(EXAMPLE), config.load(everything)
    fields = [name.lower() for name in shown if name.lower() in config.Settings.model_fields]
    different = {
        name: (getattr(spelled_out, name), getattr(defaults, name))
        for name in fields
        if getattr(spelled_out, name) != getattr(defaults, name)
    }
    assert different == {}


@pytest.mark.usefixtures("bare_environment")
def test_every_required_setting_has_a_sample_value():
    required = {name.upper() for name, field in config.Settings.model_fields.items() if field.is_required()}
    assert required <= {entry["name"] for entry in _entries() if not entry["comment"] and entry["value"]}
