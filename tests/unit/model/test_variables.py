"""The field `env` of a job: the rules, and that no error and no log shows a value."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nanoagent.jobs.environment import environment_of
from nanoagent.model import message, variables
from nanoagent.model.job import JobDefaults, Runtime
from support.doubles.fakes import make_job

DEFAULTS = JobDefaults(s3_bucket="code", model_id="m", max_memory_mb=1024)
SECRET = "hunter2"


def parse(env: Any) -> Any:
    return message.parse_job(json.dumps({"requestId": "r", "s3Key": "k", "env": env}), DEFAULTS)


def test_variables_of_a_job_are_in_its_environment() -> None:
    job = parse({"DB_URL": "postgres://…", "_1": "", "LINES": "a\nb=c"})
    environment = environment_of(job)
    assert environment["DB_URL"] == "postgres://…"
    assert (environment["_1"], environment["LINES"], environment["JOB_ID"]) == ("", "a\nb=c", "r")


@pytest.mark.parametrize("env", [None, {}])
def test_no_variables_change_nothing(env: Any) -> None:
    assert environment_of(parse(env)).keys() == environment_of(make_job()).keys()


@pytest.mark.parametrize("runtime", Runtime)
def test_every_variable_of_the_worker_is_reserved(runtime: Runtime) -> None:
    assert environment_of(make_job(runtime=runtime)).keys() <= variables.RESERVED


@pytest.mark.parametrize(
    ("env", "shown"),
    [
        ([SECRET], "is not an object"),
        ({"A": 1, "B": SECRET}, "the value of A is neither a string nor a reference"),
        ({"A": None}, "the value of A is neither"),
        ({"A": [SECRET]}, "the value of A is neither"),
        ({"A": {"b": SECRET}}, "the value of A is neither"),
        ({"A": {"ssm": f"{SECRET}*"}}, "the value of A is neither"),
        ({"PATH": {"ssm": "/a"}, "B": SECRET}, "env sets PATH"),
        ({"": SECRET}, "the name ''"),
        ({"1A": SECRET}, "the name '1A'"),
        ({"A=B": SECRET}, "the name 'A=B'"),
        ({"가": SECRET}, r"the name '\uac00'"),
        ({"A" * 129: SECRET}, "at most 128"),
        ({"PAYLOAD": SECRET}, "env sets PAYLOAD"),
        ({"OPENAI_API_KEY": SECRET}, "env sets OPENAI_API_KEY"),
        ({"A": f"{SECRET}\0"}, "the value of A has a NUL"),
        ({"A": f"{SECRET}\ud800"}, "the value of A has a NUL character or invalid Unicode"),
        ({f"A{n}": SECRET for n in range(65)}, "65 variables; at most 64"),
        ({"A": SECRET * 8000}, "env has 56001 bytes; at most 32768"),
    ],
)
def test_what_is_refused_is_named_and_no_value_is_shown(env: Any, shown: str) -> None:
    with pytest.raises(message.InvalidJob) as caught:
        parse(env)
    for text in (caught.value.rejection.message.en, caught.value.rejection.message.ko):
        assert SECRET not in text
    assert shown in caught.value.rejection.message.en


def test_all_problems_are_named_together() -> None:
    with pytest.raises(message.InvalidJob) as caught:
        parse({"PATH": "x", "1": "y"})
    assert "PATH" in str(caught.value.rejection.message)
    assert "'1'" in str(caught.value.rejection.message)


def test_a_job_is_printed_without_values() -> None:
    assert SECRET not in repr(parse({"A": SECRET}))


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"requestId": "r", "env": {"A": SECRET}}),
        json.dumps({"requestId": "r", "env": SECRET}),
        json.dumps({"requestId": "r", "env": {"A": {"B": SECRET}}}),
        json.dumps({"requestId": "r", "env": {"A": SECRET}})[:-1],
        json.dumps([{"env": {"A": SECRET}}]),
        json.dumps({"Message": {"env": {"A": SECRET}}}),
    ],
)
def test_the_log_shows_a_message_without_values(body: str) -> None:
    assert SECRET not in message.for_log(body)


def test_the_log_shows_other_messages_unchanged() -> None:
    assert message.for_log('{"requestId": 1, "env') == '{"requestId": 1, "env'
    shown = json.loads(message.for_log('{"requestId": "가", "env": {"A": "b"}}'))
    assert shown == {"requestId": "가", "env": {"A": "***"}}
