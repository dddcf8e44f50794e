"""The owner of a job's function."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from nanoagent.container.policy import Owner, OwnerSource
from nanoagent.jobs.owners import owner_of
from nanoagent.model.job import JobDefaults
from nanoagent.model.message import parse_job

DEFAULTS = JobDefaults(s3_bucket="code", model_id="m", max_memory_mb=1024)
USERS = re.compile("users/([^/]+)/")


def owner(pattern: re.Pattern[str] | None = USERS, **fields: Any) -> Owner | None:
    message = {"requestId": "r", "s3Key": "functions/f.zip"} | fields
    return owner_of(parse_job(json.dumps(message), DEFAULTS), pattern)


def test_a_job_names_its_owner():
    assert owner(tenantId="alice") == Owner(OwnerSource.FIELD, "alice")


def test_the_field_comes_before_the_pattern():
    assert owner(tenantId="alice", s3Key="users/bob/f.zip") == Owner(OwnerSource.FIELD, "alice")


def test_the_key_of_the_code_names_the_owner_within_its_bucket():
    assert owner(s3Key="users/alice/f.zip") == Owner(OwnerSource.KEY, "alice", "code")
    assert owner(s3Key="users/alice/f.zip", s3Bucket="other") == Owner(OwnerSource.KEY, "alice", "other")


def test_the_function_id_names_the_owner_if_the_key_does_not():
    assert owner(functionId="users/alice/f") == Owner(OwnerSource.FUNCTION_ID, "alice")
    assert owner(functionId="users/bob/f", s3Key="users/alice/f.zip") == Owner(
        OwnerSource.KEY, "alice", "code"
    )


def test_owners_of_different_sources_are_different_although_their_names_are_equal():
    found = {owner(tenantId="a"), owner(s3Key="users/a/f.zip"), owner(functionId="users/a/f")}
    assert len(found) == 3


@pytest.mark.parametrize(
    "fields", [{}, {"s3Key": "my/users/alice/f.zip"}, {"s3Key": "users/f.zip"}, {"tenantId": None}]
)
def test_the_owner_is_unknown_if_the_job_has_none_and_the_pattern_does_not_match_the_beginning(fields):
    assert owner(**fields) is None


def test_without_a_pattern_only_the_field_counts():
    assert owner(None, s3Key="users/alice/f.zip") is None


@pytest.mark.parametrize("pattern", ["users/([^/]*)", "users/(x)?"])
def test_an_empty_group_is_no_owner(pattern):
    assert owner(re.compile(pattern), s3Key="users//f.zip") is None
