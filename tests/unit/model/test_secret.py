"""References to secrets in the field `env`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nanoagent.jobs.environment import environment_of
from nanoagent.model import message, secret
from nanoagent.model.job import JobDefaults
from nanoagent.model.secret import SecretReference, SecretService

DEFAULTS = JobDefaults(s3_bucket="code", model_id="m", max_memory_mb=1024)
SSM, SECRETS_MANAGER = SecretService.SSM, SecretService.SECRETS_MANAGER
VERSION = "11111111-2222-3333-4444-555555555555"


@pytest.mark.parametrize(
    ("value", "reference"),
    [
        ({"ssm": "/prod/db"}, SecretReference(SSM, "/prod/db")),
        ({"ssm": "db", "version": "3"}, SecretReference(SSM, "db", version="3")),
        ({"ssm": "/a", "key": "p"}, SecretReference(SSM, "/a", "p")),
        ({"secretsManager": "prod/db"}, SecretReference(SECRETS_MANAGER, "prod/db")),
        (
            {"secretsManager": "a", "key": "p", "stage": "AWSPREVIOUS"},
            SecretReference(SECRETS_MANAGER, "a", "p", stage="AWSPREVIOUS"),
        ),
        ({"secretsManager": "a", "version": VERSION}, SecretReference(SECRETS_MANAGER, "a", None, VERSION)),
    ],
)
def test_a_reference_is_read(value: Any, reference: SecretReference):
    assert secret.parse(value) == reference


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"ssm": ""},
        {"ssm": None},
        {"ssm": "/a", "secretsManager": "a"},
        {"ssm": "/a", "unknown": "b"},
        {"ssm": "/a", "version": 3},
        {"ssm": "/a", "version": "label"},
        {"ssm": "/a", "stage": "AWSCURRENT"},
        {"ssm": "/a:3"},
        {"ssm": "/a*"},
        {"ssm": "/a\n"},
        {"ssm": "/a/../b"},
        {"ssm": "./b"},
        {"ssm": "arn:aws:ssm:eu-west-1:123456789012:parameter/a"},
        {"ssm": "/aws/reference/secretsmanager/prod/db"},
        {"ssm": "aws/reference/secretsmanager/prod/db"},
        {"ssm": "//AWS/reference/secretsmanager"},
        {"secretsManager": "arn:aws:secretsmanager:eu-west-1:123456789012:secret:a"},
        {"secretsManager": "a b"},
        {"secretsManager": "a", "key": ""},
        {"secretsManager": "a", "key": "x\ny"},
        {"secretsManager": "a", "version": "1"},
        {"secretsManager": "a", "version": VERSION, "stage": "AWSCURRENT"},
    ],
)
def test_anything_else_is_no_reference(value: Any):
    assert secret.parse(value) is None


def test_a_message_has_values_and_references():
    env = {"A": "plain", "DB": {"ssm": "/prod/db"}}
    job = message.parse_job(json.dumps({"requestId": "r", "s3Key": "k", "env": env}), DEFAULTS)
    assert job.env == (("A", "plain"),)
    assert job.secrets == (("DB", SecretReference(SSM, "/prod/db")),)
    assert "DB" not in environment_of(job)


@pytest.mark.parametrize(
    ("reference", "shown"),
    [
        (SecretReference(SSM, "/prod/db"), "ssm:/prod/db"),
        (
            SecretReference(SECRETS_MANAGER, "a", "p", stage="AWSPREVIOUS"),
            "secretsManager:a (key p, stage AWSPREVIOUS)",
        ),
    ],
)
def test_a_reference_is_shown_in_one_line(reference: SecretReference, shown: str):
    assert str(reference) == shown
