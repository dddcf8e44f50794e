"""The options of `nanoagent deploy`, and the differences that it shows."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import pytest

from nanoagent.dev.functions import choices, zip_index
from nanoagent.dev.functions.choices import Choices, Difference, differences
from nanoagent.dev.functions.zip_index import FileChanges, compared
from nanoagent.model.errors import InvalidCall
from nanoagent.model.function_record import FunctionSettings
from nanoagent.model.job import NetworkPolicy, Reuse, Runtime

BEFORE = FunctionSettings(
    runtime=Runtime.PYTHON,
    memory_mb=256,
    timeout_ms=5000,
    network=NetworkPolicy.NONE,
    model_id="big",
    reuse=Reuse.IMPORTS,
    env={"A": "1", "B": "2"},
)


def applied(before: FunctionSettings | None = BEFORE, **named: Any) -> FunctionSettings:
    return Choices(**named).parsed().applied(Runtime.PYTHON, before)


def test_settings_that_are_not_named_keep_their_values():
    assert applied() == BEFORE
    assert applied(None) == FunctionSettings(runtime=Runtime.PYTHON)
    after = applied(memory_mb=64, env=("B=x=y", "C="))
    assert (after.memory_mb, after.timeout_ms, after.model_id) == (64, 5000, "big")
    assert after.env == {"A": "1", "B": "x=y", "C": ""}


def test_settings_go_back_to_those_of_the_worker():
    after = applied(network="", model="", reuse="none", unset_env=("A", "B", "NEVER_SET"))
    assert (after.network, after.model_id, after.reuse, after.env) == (None, None, Reuse.NONE, {})


def test_the_language_is_that_of_the_code():
    assert Choices().parsed().applied(Runtime.GO, BEFORE).runtime is Runtime.GO


def test_a_secret_is_a_reference():
    after = applied(secrets=("B=ssm:/prod/db", "C=secretsManager:prod/db#password", "D=ssm:/a:b=c"))
    assert after.env == {
        "A": "1",
        "B": {"ssm": "/prod/db"},
        "C": {"secretsManager": "prod/db", "key": "password"},
        "D": {"ssm": "/a:b=c"},
    }


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"runtime": "ruby"}, "--runtime ruby: is not one of python, nodejs, cpp, go"),
        ({"network": "wide"}, "--network wide: is not one of none, ai, egress"),
        ({"reuse": "all"}, "--reuse all: is not one of none, imports"),
        ({"env": ("NEVER_SET",)}, "--env NEVER_SET: is not set in this environment"),
        ({"secrets": ("A=vault:x",)}, "--secret A=vault:x: write NAME=ssm:ID or NAME=secretsManager:ID"),
        ({"secrets": ("A=ssm:",)}, "--secret A=ssm:: write"),
        ({"secrets": ("A=ssm:/x#",)}, "--secret A=ssm:/x#: write"),
        ({"timeout_s": float("inf")}, "--timeout inf: is not a number of seconds"),
        ({"timeout_s": float("nan")}, "--timeout nan: is not a number of seconds"),
        ({"env": ("A=1",), "unset_env": ("A",)}, "--unset-env A: is also set"),
    ],
)
def test_an_option_with_a_wrong_value_is_named(named: dict[str, Any], said: str):
    with pytest.raises(InvalidCall) as caught:
        Choices(**named).parsed()
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"memory_mb": 5}, "memoryMb is 5; expected an integer from 32"),
        ({"timeout_s": 0}, "timeoutMs is 0"),
        ({"model": "x" * 300}, "modelId is"),
        ({"env": ("PATH=x",)}, "env sets PATH"),
        ({"env": ("a b=x",)}, "env has the name 'a b'"),
        ({"secrets": ("A=ssm:../x",)}, "env: the value of A is neither a string nor a reference"),
    ],
)
def test_settings_that_no_worker_would_accept_are_refused(named: dict[str, Any], said: str):
    with pytest.raises(InvalidCall) as caught:
        choices.check("f", applied(**named))
    assert said in str(caught.value)


def test_a_setting_that_a_worker_may_accept_is_accepted():
    choices.check("f" * 256, applied(memory_mb=100_000, network="egress", timeout_s=40_000))
    choices.check("f", applied(secrets=("DB=ssm:/prod/db", "KEY=secretsManager:prod/db#password")))


# --- differences


def test_differences_name_the_setting_and_show_no_value_of_a_variable():
    after = applied(memory_mb=512, network="", unset_env=("A",), env=("B=hidden", "C=hidden"))
    found = differences(BEFORE, after)
    assert found == [
        Difference("memory", "256 MiB", "512 MiB"),
        Difference("network", "none", "that of the worker"),
        Difference("env A", "set", None),
        Difference("env B", "set", "set"),
        Difference("env C", None, "set"),
    ]
    assert differences(after, after) == []


def test_of_a_new_function_every_setting_is_shown():
    found = differences(None, applied(None, secrets=("DB=ssm:/prod/db",)))
    assert [difference.setting for difference in found] == [
        "runtime",
        "memory",
        "timeout",
        "network",
        "model",
        "reuse",
        "env DB",
    ]
    assert found[-1] == Difference("env DB", None, "secret ssm /prod/db")


# --- files


def a_zip(files: dict[str, bytes], mode: int = 0o644) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("folder/", b"")
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, content)
    return buffer.getvalue()


def index(files: dict[str, bytes], mode: int = 0o644) -> zip_index.Index:
    return zip_index.of_zip(io.BytesIO(a_zip(files, mode)))


def test_files_are_compared_by_contents_and_mode():
    before = index({"a": b"1", "b": b"2", "c": b"3"})
    assert compared(before, index({"b": b"2", "c": b"4", "d": b"5"})) == FileChanges(("d",), ("c",), ("a",))
    assert compared(before, before) == FileChanges()
    assert compared(before, index({"a": b"1", "b": b"2", "c": b"3"}, 0o755)).changed == ("a", "b", "c")


def test_the_end_of_a_zip_is_enough_if_it_has_the_index():
    whole = a_zip({f"file-{number}": bytes(1000) for number in range(100)})
    end = whole[-20_000:]
    assert zip_index.of_zip(io.BytesIO(end)) == zip_index.of_zip(io.BytesIO(whole))
    with pytest.raises(zipfile.BadZipFile):
        zip_index.of_zip(io.BytesIO(whole[-1000:]))
