"""The rules of SECRETS_ALLOW. Senders choose `functionId` and `tenantId`."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoagent.config.secret_rules import parse_rules
from nanoagent.model.secret import SecretReference, SecretService, is_name
from support.doubles.fakes import make_settings

SSM, SECRETS_MANAGER = SecretService.SSM, SecretService.SECRETS_MANAGER
# Texts that might mean more than themselves.
HOSTILE = st.one_of(
    st.text(alphabet="ab*/.?[]{}()|+\\^$-, =:\n", max_size=12),
    st.sampled_from(
        ["*", "**", "..", ".", "", "/", "a/b", "a/../b", ".*", "[ab]", "{functionId}", "{tenantId}"]
    ),
)
NAMES = st.text(alphabet="ab./_-", min_size=1, max_size=16)


def allows(rules: str, name: str, function_id: str = "f", tenant_id: str | None = None) -> bool:
    service, _, name = name.partition(":")
    reference = SecretReference(SecretService(service), name)
    return any(rule.allows(reference, function_id, tenant_id) for rule in parse_rules(rules))


@pytest.mark.parametrize(
    ("rules", "name", "function_id", "is_allowed"),
    [
        ("f=ssm:/prod/db", "ssm:/prod/db", "f", True),
        ("f=ssm:/prod/db", "ssm:/prod/db2", "f", False),
        ("f=ssm:/prod/db", "ssm:prod/db", "f", False),
        ("f=ssm:/prod/db", "secretsManager:/prod/db", "f", False),
        ("f=ssm:/prod/db", "ssm:/prod/db", "F", False),
        ("f=ssm:/prod/db", "ssm:/prod/db", "ff", False),
        ("shop-*=ssm:/prod/*", "ssm:/prod/db", "shop-cart", True),
        ("shop-*=ssm:/prod/*", "ssm:/prod/db", "other", False),
        ("*-shop=ssm:/prod/*", "ssm:/prod/db", "a-shop", True),
        ("a*b*c=ssm:/p", "ssm:/p", "abc", True),
        ("a*b*c=ssm:/p", "ssm:/p", "a-b-c", True),
        ("a*b*c=ssm:/p", "ssm:/p", "acb", False),
        ("ab*ba=ssm:/p", "ssm:/p", "aba", False),
        ("*=ssm:/prod/*", "ssm:/prod/a/b", "f", False),
        ("*=ssm:/prod/*", "ssm:/prod", "f", False),
        ("*=ssm:/prod/**", "ssm:/prod/a/b", "f", True),
        ("*=ssm:/prod/**", "ssm:/prod", "f", False),
        ("*=ssm:/prod/**", "ssm:/production/a", "f", False),
        ("*=ssm:/prod/*-db", "ssm:/prod/cart-db", "f", True),
        ("*=ssm:**", "ssm:/a/b", "f", True),
        ("*=ssm:**", "ssm:a", "f", True),
        ("*=ssm:*", "ssm:/a", "f", False),
        ("*=ssm:/fn/{functionId}/*", "ssm:/fn/f/db", "f", True),
        ("*=ssm:/fn/{functionId}/*", "ssm:/fn/g/db", "f", False),
        ("*=secretsManager:{functionId}", "secretsManager:f", "f", True),
        ("a=ssm:/a,, f=ssm:/b ", "ssm:/b", "f", True),
        ("f=secretsManager:a=b", "secretsManager:a=b", "f", True),
        ("", "ssm:/a", "f", False),
    ],
)
def test_a_rule_allows_what_it_says(rules: str, name: str, function_id: str, *, is_allowed: bool):
    assert allows(rules, name, function_id) is is_allowed


def test_a_tenant_is_the_jobs_and_a_job_without_one_has_no_such_rule():
    rule = "*=ssm:/t/{tenantId}/{functionId}"
    assert allows(rule, "ssm:/t/acme/f", "f", "acme")
    assert not allows(rule, "ssm:/t/acme/f", "f", "other")
    assert not allows(rule, "ssm:/t/None/f", "f", None)


@given(function_id=HOSTILE, tenant_id=st.none() | HOSTILE, name=NAMES)
def test_no_id_widens_a_rule(function_id: str, tenant_id: str | None, name: str):
    """What a rule with placeholders allows is exactly one segment for each, equal to the value."""
    if not is_name(SSM, name):
        return
    full = f"ssm:/fn/{name}"
    is_allowed = allows("*=ssm:/fn/{functionId}/{tenantId}/x", full, function_id, tenant_id)
    assert is_allowed == (f"/fn/{function_id}/{tenant_id}/x" == f"/fn/{name}" and name.count("/") == 2)
    below = allows("*=ssm:/fn/{functionId}/**", full, function_id, tenant_id)
    assert below == (name.partition("/")[0] == function_id and "/" in name)


@given(
    pattern=st.text(alphabet="ab*", min_size=1, max_size=8), function_id=st.text(alphabet="ab*", max_size=8)
)
def test_a_pattern_of_functions_means_what_a_regular_expression_means(pattern: str, function_id: str):
    expression = re.escape(pattern).replace(r"\*", ".*")
    assert allows(f"{pattern}=ssm:/a", "ssm:/a", function_id) == bool(re.fullmatch(expression, function_id))


def test_a_long_id_takes_no_time_to_match():
    # With a backtracking regular expression this would not end.
    rule = parse_rules(f"{'*a' * 60}*b=ssm:/{'*a' * 60}*b")[0]
    assert not rule.allows(SecretReference(SSM, "/" + "a" * 1000), "a" * 256, None)


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ("ssm:/prod/db", "'ssm:/prod/db' is not one"),
        ("=ssm:/prod/db", "is not one"),
        ("f=/prod/db", "is not one"),
        ("f=vault:/prod/db", "is not one"),
        ("f=ssm:", "cannot match the name of a secret of ssm"),
        ("f=ssm:/a b", "cannot match"),
        ("f=ssm:/a/../b", "cannot match"),
        ("f=ssm:arn:aws:ssm:x", "cannot match"),
        ("f g=ssm:/a", "has spaces or braces"),
        ("{tenantId}=ssm:/a", "has spaces or braces"),
        ("*=ssm:/prod/{functionId}*", "must be a whole segment between two /, unlike '{functionId}*'"),
        ("*=ssm:/prod/a-{tenantId}", "must be a whole segment"),
        ("*=ssm:/prod/{functionid}", "must be a whole segment"),
        ("*=ssm:/**/db", "** must be the last segment"),
        ("*=ssm:/a**", "** must be the last segment"),
        ("*=ssm:/a/***", "** must be the last segment"),
    ],
)
def test_a_wrong_rule_is_refused_with_the_reason(rules: str, says: str):
    with pytest.raises(ValueError, match=re.escape(says)):
        parse_rules(rules)


def test_the_setting_has_the_rules():
    settings = make_settings(secrets_allow="f=ssm:/a, *=secretsManager:{functionId}/*")
    assert [rule.service for rule in settings.secret_rules] == [SSM, SECRETS_MANAGER]
    assert make_settings().secret_rules == ()
